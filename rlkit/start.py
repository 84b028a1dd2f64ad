"""The model that training starts from: a folder or hub name, or a small one that the run makes; warmed up where it is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlkit.files import sync_tree
from rlkit.learner.warm_up import warm_up
from rlkit.model.generation import eos_tokens, load_settings, settled
from rlkit.model.load import load_tokenizer
from rlkit.model.tiny import make_tiny, make_tokenizer
from rlkit.run import Run
from rlkit.types import Prompt


def tokenizer_of(run: Run) -> Any:
    """The tokenizer of the model that training starts from, which need not be made for it."""
    if run.model.path is None:
        return make_tokenizer(run.alphabet)
    return load_tokenizer(run.model.path)


def made(run: Run, folder: str | Path, context: int = 512) -> Path:
    """The model that ``model.make`` describes, with room for ``context`` tokens, written to ``folder``."""
    m = run.model.make
    assert m is not None, "model.path names a model: there is none to make"
    return make_tiny(
        folder,
        run.alphabet,
        family=m.family,
        hidden=m.hidden,
        layers=m.layers,
        heads=m.heads,
        kv_heads=m.kv_heads,
        max_length=max(512, context),
        seed=run.seed,
    )


def start_model(
    run: Run, folder: Path, prompts: Sequence[Prompt], tokenizer: Any, context: int, say: Callable[[str], object]
) -> str:
    """The path of the model to start from; makes and warms it up in the run folder where the configuration says so."""
    if run.model.path is not None and run.model.warm_up is None:
        return run.model.path
    path = folder / "start"
    if (path / "done").exists():
        return str(path)
    if run.model.make is not None:
        made(run, path, context)
    else:
        from transformers import AutoModelForCausalLM

        start = AutoModelForCausalLM.from_pretrained(str(run.model.path))
        settings = load_settings(str(run.model.path))
        start.generation_config, _ = settled(settings, eos_tokens(settings))
        start.save_pretrained(path)
        tokenizer.save_pretrained(path)
    if run.model.warm_up is not None:
        _warm_up(run, path, prompts, tokenizer, say)
    sync_tree(path)
    (path / "done").touch()
    return str(path)


def _warm_up(run: Run, path: Path, prompts: Sequence[Prompt], tokenizer: Any, say: Callable[[str], object]) -> None:
    task, spec = run.data.task, run.model.warm_up
    assert task is not None and spec is not None, "checks.py refuses a warm-up without a task"
    began = time.monotonic()

    def report(step: int, loss: float) -> None:
        if step % max(1, spec.steps // 4) == 0:
            say(f"  warm-up step {step}/{spec.steps}: loss {loss:.3f} nats per token")

    say(f"Supervised warm-up on {len(prompts)} demonstrations:")
    warm_up(
        path,
        spec,
        prompts,
        lambda p, rng: task.demonstration({**p.columns, "answer": p.answer}, rng),
        tokenizer,
        run.seed,
        report,
    )
    say(f"  done in {time.monotonic() - began:.0f} s")
