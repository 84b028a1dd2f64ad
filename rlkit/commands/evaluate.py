"""``rlkit eval``: a model on the held-out prompts of a configuration, every sample kept."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlkit.checks import context_length
from rlkit.commands.engines import given_control, model_folder, running, under, voter
from rlkit.config import plain
from rlkit.data.prompts import first_of_each, load_prompts
from rlkit.errors import ConfigError
from rlkit.evaluation.compare import Forgetting, forgetting_of
from rlkit.evaluation.report import Report
from rlkit.evaluation.samples import Record, SampleFile, draw, tenths
from rlkit.files import replace_file, told
from rlkit.model.load import load_tokenizer
from rlkit.record.output import require_folder
from rlkit.rollout.control import Control
from rlkit.rollout.hf import HFEngine
from rlkit.run import Run
from rlkit.samples import Prompt, Sampling
from rlkit.session import quiet_libraries


def evaluate(
    run: Run,
    model: str | Path,
    *,
    n: int = 1,
    out: str | Path | None = None,
    temperatures: Sequence[float] = (),
    adaptive: bool = False,
    self_certainty: bool = False,
    forgetting: str | Path | None = None,
    control: Control | str | None = None,
    engines: int = 1,
    address: str | None = None,
    say: Callable[[str], None] = print,
) -> Report:
    """Draws ``n`` responses to every prompt of ``run.data.test``, grades them by the run's first reward, and measures.

    Of a run that plays episodes it plays ``n`` of each prompt; their last answers are what votes, and correct is what the first reward, or
    else the episode, says. ``out`` also gets ``transcripts.txt``, where people read them.

    Args:
        model: a model folder, a hub name, or a run folder, which stands for its final model.
        out: a folder for every response and the report; the same call goes on after an interruption, and a larger ``n`` adds to it.
        temperatures: none is that of the run's evaluation; several are also voted over.
        adaptive: no further sample of a prompt whose majority answer is settled; ``n`` is the most.
        self_certainty: also votes weighed by it, at the price of one more pass over each response.
        forgetting: a base model; also KL(base‖model) on the base's own responses (RL's Razor).
        control: what decoding makes of the model (:mod:`rlkit.rollout.control`), or the YAML of one: that is what is measured.
        engines, address: more than one engine, or a Ray cluster, run on Ray.

    Raises:
        ConfigError: no model, no held-out prompts, or a folder that holds samples of something else.
    """
    if self_certainty and run.rollout.episode is not None:
        raise ConfigError(
            "--self-certainty is about single responses, and rollout.episode plays conversations. Leave it out."
        )
    quiet_libraries()
    if out is not None:
        require_folder(out, "--out")
    path = model_folder(model)
    base = None if forgetting is None else model_folder(forgetting, "--forgetting")
    if adaptive and n < 2:
        raise ConfigError(
            "--adaptive stops sampling when the majority is settled: -n must be above 1 (it is the most it draws)."
        )
    control = given_control(control)
    if control is not None:
        if self_certainty or base is not None:
            raise ConfigError(
                "--self-certainty and --forgetting look at the model itself, and --control samples from something else: leave one out."
            )
        run = under(run, control, path)
    prompts = _held_out(run, path, say)
    usual = run.sampling.temperature if run.eval.temperature is None else run.eval.temperature
    temperatures = list(temperatures) or [usual]
    sampling = dataclasses.replace(run.sampling, seed=run.seed if run.sampling.seed is None else run.sampling.seed)
    settings = _settings(run, path, sampling, control)
    store = SampleFile(Path(out) / "samples.jsonl" if out is not None else None, settings)
    if store.rows:
        say(f"{out}/samples.jsonl: {len(store.rows)} samples are there already.")
    label = run.right
    with running(run, path, prompts, engines, address, say) as (engine, scores), contextlib.ExitStack() as stack:
        draw(
            engine.generate,
            scores.score,
            prompts,
            n=n,
            sampling=sampling,
            temperatures=temperatures,
            label=label,
            vote=voter(run),
            store=store,
            adaptive=adaptive,
            certainty=_hf_engine(run, path, 1 << 30, stack).self_certainty if self_certainty else None,
            progress=tenths(say),
        )
    store.finish()
    rows = store.of(prompts, n, temperatures)
    say(f"\n{path}: {len(rows)} responses to {len(prompts)} prompts; correct is what {label!r} says")
    moved = None if base is None else _forgetting(run, base, path, prompts)
    report = Report.of(path, rows, settings, forgetting=moved, base=base)
    if out is not None:
        report.write(Path(out) / "report.json")
        if run.rollout.episode is not None:
            write_transcripts(Path(out) / "transcripts.txt", rows)
    return report


def write_transcripts(path: Path, rows: Sequence[Record]) -> None:
    """Episodes as people read them, each below a line that says which it is and what it got."""
    shown = [
        f"=== {r['prompt_id']}, {r['k']}, temperature {r['temperature']:g}: reward {r['reward']}, correct {r['correct']:g}"
        + (f", {r['error']}" if "error" in r else "")
        + f"\n{r['transcript']}\n"
        for r in rows
    ]
    with told("transcripts"):
        replace_file(path, "\n".join(shown))


def _held_out(run: Run, path: str, say: Callable[[str], None]) -> list[Prompt]:
    prompts = load_prompts(run.data, "test", load_tokenizer(path, "--model"), say)
    if not prompts:
        raise ConfigError(
            "data.test is not set: there are no prompts to score. Add e.g. data.test=my_prompts.jsonl or data.test=math500."
        )
    return first_of_each(prompts, run.eval.prompts)


def _settings(run: Run, path: str, sampling: Sampling, control: Control | None) -> dict[str, Any]:
    """What must be equal so that samples belong to one file."""
    episode = run.rollout.episode
    return {
        "model": str(Path(path).resolve() if Path(path).exists() else path),
        "template": run.data.template,
        "max_tokens": sampling.max_tokens,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "stop": list(sampling.stop),
        "seed": sampling.seed,
        "rewards": [f"{s.label} {s.args}" if s.args else s.label for s in run.scored_by],
        **(
            {} if episode is None else {"episode": f"{episode.label} {episode.args}" if episode.args else episode.label}
        ),
        **({} if control is None else {"control": plain(control)}),
    }


def _hf_engine(run: Run, path: str, max_model_len: int, stack: contextlib.ExitStack) -> HFEngine:
    engine = HFEngine(path, dtype=run.model.dtype, max_model_len=max_model_len)
    stack.callback(engine.close)
    return engine


def _forgetting(run: Run, base: str, path: str, prompts: Sequence[Prompt]) -> Forgetting:
    """KL(base‖model) on one response of the base model to each prompt."""
    length = context_length(run, prompts, base)
    with contextlib.ExitStack() as stack:
        before, after = (_hf_engine(run, model, length, stack) for model in (base, path))
        sampling = dataclasses.replace(run.sampling, temperature=1.0, top_p=1.0, top_k=0, seed=run.seed)
        rollouts = [before.generate(p, 1, sampling)[0] for p in prompts]
        return forgetting_of(before, after, rollouts)
