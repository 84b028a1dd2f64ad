"""``rlkit eval``: a model on the held-out prompts of a configuration, every sample kept."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from rlkit.checks import context_length
from rlkit.commands.engines import model_folder, running, voter
from rlkit.data.prompts import first_of_each, load_prompts
from rlkit.errors import ConfigError
from rlkit.evaluation.compare import Forgetting, forgetting_of
from rlkit.evaluation.report import Report
from rlkit.evaluation.samples import SampleFile, dataset_of, draw, tenths
from rlkit.model.load import load_tokenizer
from rlkit.record.output import require_folder
from rlkit.rollout.hf import HFEngine
from rlkit.run import Run
from rlkit.samples import Prompt
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
    engines: int = 1,
    address: str | None = None,
    say: Callable[[str], None] = print,
) -> Report:
    """Draws ``n`` responses to every prompt of ``run.data.test``, grades them by the run's first reward, and measures.

    Args:
        model: a model folder, a hub name, or a run folder, which stands for its final model.
        out: a folder for every response and the report; the same call goes on after an interruption, and a larger ``n`` adds to it.
        temperatures: none is that of the run's evaluation; several are also voted over.
        adaptive: no further sample of a prompt whose majority answer is settled; ``n`` is the most.
        self_certainty: also votes weighed by it, at the price of one more pass over each response.
        forgetting: a base model; also KL(base‖model) on the base's own responses (RL's Razor).
        engines, address: more than one engine, or a Ray cluster, run on Ray.

    Raises:
        ConfigError: no model, no held-out prompts, or a folder that holds samples of something else.
    """
    quiet_libraries()
    if out is not None:
        require_folder(out, "--out")
    path = model_folder(model)
    base = None if forgetting is None else model_folder(forgetting, "--forgetting")
    tokenizer = load_tokenizer(path, "--model")
    if adaptive and n < 2:
        raise ConfigError(
            "--adaptive stops sampling when the majority is settled: -n must be above 1 (it is the most it draws)."
        )
    prompts = load_prompts(run.data, "test", tokenizer, say)
    if not prompts:
        raise ConfigError(
            "data.test is not set: there are no prompts to score. Add e.g. data.test=my_prompts.jsonl or data.test=math500."
        )
    prompts = first_of_each(prompts, run.eval.prompts)
    usual = run.sampling.temperature if run.eval.temperature is None else run.eval.temperature
    temperatures = list(temperatures) or [usual]
    specs = run.scored_by
    sampling = dataclasses.replace(run.sampling, seed=run.seed if run.sampling.seed is None else run.sampling.seed)
    settings = {
        "model": str(Path(path).resolve() if Path(path).exists() else path),
        "template": run.data.template,
        "max_tokens": sampling.max_tokens,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "stop": list(sampling.stop),
        "seed": sampling.seed,
        "rewards": [f"{s.label} {s.args}" if s.args else s.label for s in specs],
    }
    store = SampleFile(Path(out) / "samples.jsonl" if out is not None else None, settings)
    if store.rows:
        say(f"{out}/samples.jsonl: {len(store.rows)} samples are there already.")
    with running(run, path, prompts, engines, address) as (group, scorer), contextlib.ExitStack() as stack:
        scorer.report = say
        certainty = None
        if self_certainty:
            scoring = HFEngine(path, dtype=run.model.dtype, max_model_len=1 << 30)
            stack.callback(scoring.close)
            certainty = scoring.self_certainty
        draw(
            group.generate,
            scorer.score,
            prompts,
            n=n,
            sampling=sampling,
            temperatures=temperatures,
            label=specs[0].label,
            vote=voter(run),
            store=store,
            adaptive=adaptive,
            certainty=certainty,
            progress=tenths(say),
        )
    store.finish()
    wanted = {(dataset_of(p), p.id) for p in prompts}
    rows = [
        r
        for r in store.rows
        if (r["dataset"], r["prompt_id"]) in wanted and r["k"] < n and r["temperature"] in temperatures
    ]
    say(f"\n{path}: {len(rows)} responses to {len(prompts)} prompts; correct is what {specs[0].label!r} says")
    moved = None if base is None else _forgetting(run, base, path, prompts)
    report = Report.of(path, rows, settings, forgetting=moved, base=base)
    if out is not None:
        report.write(Path(out) / "report.json")
    return report


def _forgetting(run: Run, base: str, path: str, prompts: Sequence[Prompt]) -> Forgetting:
    """KL(base‖model) on one response of the base model to each prompt."""
    length = context_length(run, prompts, base)
    with contextlib.ExitStack() as stack:
        engines = []
        for model in (base, path):
            engines.append(HFEngine(model, dtype=run.model.dtype, max_model_len=length))
            stack.callback(engines[-1].close)
        sampling = dataclasses.replace(run.sampling, temperature=1.0, top_p=1.0, top_k=0, seed=run.seed)
        rollouts = [engines[0].generate(p, 1, sampling)[0] for p in prompts]
        return forgetting_of(engines[0], engines[1], rollouts)
