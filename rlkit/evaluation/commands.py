"""`rlkit eval`, `rlkit metrics`, `rlkit fit` and `rlkit sample`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlkit.errors import ConfigError
from rlkit.evaluation.compare import aligned, compare, forgetting_of
from rlkit.evaluation.metrics import summarize
from rlkit.evaluation.samples import SampleFile, dataset_of, draw, read_samples, tenths
from rlkit.evaluation.voting import temperature_vote, weighted_vote
from rlkit.files import replace_file, told
from rlkit.model.hub import require_model
from rlkit.record.output import require_file, require_folder
from rlkit.samples import Prompt, Rollout, Sampling


def model_folder(name: str) -> str:
    """A run folder stands for its final model; refuses what is no model at once."""
    final = Path(name) / "final"
    path = str(final) if os.path.isdir(final) else name
    require_model(path, "--model")
    return path


@contextlib.contextmanager
def running(
    run: Any, path: str, prompts: Sequence[Prompt], engines: int = 1, address: str | None = None
) -> Iterator[tuple[Any, Any]]:
    """``(engines, scorer)`` for a model and the rewards of a run: one engine in this process, or several on Ray."""
    from rlkit.checks import context_length
    from rlkit.cluster.groups import EngineGroup, LocalWorkers
    from rlkit.rewards import Scorer
    from rlkit.run import Cluster
    from rlkit.session import make_engine

    with contextlib.ExitStack() as stack:
        scorer = Scorer(run.scored_by, on_error=run.on_reward_error, base=Path(run.base))
        stack.callback(scorer.close)
        scorer.check(list(prompts[0].columns))
        for note in scorer.trial(prompts[0]):
            scorer.report(note)
        cluster = run.cluster or Cluster()
        options = {
            "kind": run.rollout.engine,
            "seed": run.seed,
            "dtype": run.model.dtype,
            "options": run.vllm,
            "max_model_len": context_length(run, prompts, path),
            "tensor_parallel": cluster.tensor_parallel,
        }
        if engines == 1 and address is None:
            group = EngineGroup(LocalWorkers(make_engine(path, **options)))
        else:
            from rlkit.cluster.ray import connect, start_engines
            from rlkit.rollout.vllm import environment

            cluster = dataclasses.replace(cluster, engines=engines, address=address or cluster.address)
            connect(cluster, learners=0)
            env = environment() if run.rollout.engine == "vllm" else {}
            group = EngineGroup(start_engines(cluster, path, make_engine, env, options), cluster.restarts)
        stack.callback(group.close)
        yield group, scorer


def voter(run: Any) -> Callable[[Rollout], str | None]:
    """How a response votes: its final answer where the first reward is ``math``, else its whole text."""

    first = run.scored_by[0]
    if not first.is_math:
        return lambda r: r.text.strip() or None
    from rlkit.verifier.finding import EXTRACT, extract_answer
    from rlkit.verifier.verify import vote_key

    places = tuple(first.args.get("extract", EXTRACT))

    def key(r: Rollout) -> str | None:
        found = extract_answer(r.text, places, r.finish)
        return None if found is None else vote_key(found)

    return key


def evaluate(a: argparse.Namespace) -> None:
    from rlkit.config import load
    from rlkit.data.prompts import first_of_each, load_prompts
    from rlkit.model.load import load_tokenizer
    from rlkit.session import quiet_libraries

    quiet_libraries()
    if a.out:
        require_folder(a.out, "--out")
    run = load(a.config, a.overrides)
    path = model_folder(a.model)
    tokenizer = load_tokenizer(path)
    if a.adaptive and a.n < 2:
        raise ConfigError(
            "--adaptive stops sampling when the majority is settled: -n must be above 1 (it is the most it draws)."
        )
    prompts = load_prompts(run.data, "test", tokenizer, print, run.base)
    if not prompts:
        raise ConfigError(
            "data.test is not set: there are no prompts to score. Add e.g. data.test=my_prompts.jsonl or data.test=math500."
        )
    prompts = first_of_each(prompts, run.eval.prompts)
    temperatures = a.temperature or [run.sampling.temperature if run.eval.temperature is None else run.eval.temperature]
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
    store = SampleFile(Path(a.out) / "samples.jsonl" if a.out else None, settings)
    known = len(store.rows)
    if known:
        print(f"{a.out}/samples.jsonl: {known} samples are there already.")
    with running(run, path, prompts, a.engines, a.address) as (engines, scorer), contextlib.ExitStack() as stack:
        scorer.report = print
        certainty = None
        if a.self_certainty:
            from rlkit.rollout.hf import HFEngine

            scoring = HFEngine(path, dtype=run.model.dtype, max_model_len=1 << 30)
            stack.callback(scoring.close)
            certainty = scoring.self_certainty
        draw(
            engines.generate,
            scorer.score,
            prompts,
            n=a.n,
            sampling=sampling,
            temperatures=temperatures,
            label=specs[0].label,
            vote=voter(run),
            store=store,
            adaptive=a.adaptive,
            certainty=certainty,
            progress=tenths(print),
        )
    store.finish()
    wanted = {(dataset_of(p), p.id) for p in prompts}
    rows = [
        r
        for r in store.rows
        if (r["dataset"], r["prompt_id"]) in wanted and r["k"] < a.n and r["temperature"] in temperatures
    ]
    print(f"\n{path}: {len(rows)} responses to {len(prompts)} prompts; correct is what {specs[0].label!r} says")
    report = show(rows)
    if a.forgetting:
        report["forgetting"] = forgets(run, a.forgetting, path, prompts)
    if a.out:
        _write_json(Path(a.out) / "report.json", report)
        print(
            f"\n{a.out}/: samples.jsonl (every response), report.json (every metric with its interval). Again without a model: rlkit "
            f"metrics {a.out}"
        )


def _write_json(path: Path, content: Any) -> None:
    with told("the report", "Make room, or give another --out."):
        replace_file(path, json.dumps(content, indent=1))


def forgets(run: Any, base: str, path: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """KL(base‖model) on one response of the base model to each prompt (RL's Razor), printed and returned."""
    from rlkit.checks import context_length
    from rlkit.rollout.hf import HFEngine

    base = model_folder(base)
    length = context_length(run, prompts, base)
    engines = [HFEngine(m, dtype=run.model.dtype, max_model_len=length) for m in (base, path)]
    try:
        sampling = dataclasses.replace(run.sampling, temperature=1.0, top_p=1.0, top_k=0, seed=run.seed)
        rollouts = [engines[0].generate(p, 1, sampling)[0] for p in prompts]
        found = forgetting_of(engines[0], engines[1], rollouts)
    finally:
        for e in engines:
            e.close()
    print(
        f"\nforgetting: KL({base}‖model) on its own responses: {found.per_sequence:.4f} ± {1.96 * found.per_sequence_error:.4f} nats per "
        f"response, {found.per_token:.5f} per token ({found.sequences} responses)"
    )
    return {k: v for k, v in dataclasses.asdict(found).items() if k != "values"}


def metrics(a: argparse.Namespace) -> None:
    if a.out:
        require_file(a.out, "--out")
    settings, rows = read_samples(a.samples)
    if not rows:
        raise ConfigError(f"{a.samples}: there is no sample in it yet.")
    print(f"{settings.get('model', a.samples)}: {len(rows)} samples")
    if a.against is None:
        report = show(rows, a.k)
        if a.out:
            _write_json(Path(a.out), report)
        return
    other_settings, others = read_samples(a.against)
    differ = [
        k for k in ("template", "max_tokens", "top_p", "top_k", "rewards") if settings.get(k) != other_settings.get(k)
    ]
    if differ:
        print(f"note: the two were evaluated with different {', '.join(differ)}")
    print(f"a: {settings.get('model', a.samples)}\nb: {other_settings.get('model', a.against)}\n")
    found = compare(voting(rows), voting(others))
    print(found.table())
    for what, ids in (("solved by b only", found.gained), ("solved by a only", found.lost)):
        if ids:
            print(f"{what}: {', '.join(ids[:8])}{' ...' if len(ids) > 8 else ''}")
    if a.out:
        _write_json(Path(a.out), dataclasses.asdict(found))


def voting(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Samples as the metrics read them: ``answer`` is what a response votes for. Files of others may have that already."""
    return [{**r, "answer": r["vote"]} if "vote" in r else r for r in rows]


def show(rows: Sequence[dict[str, Any]], ks: Sequence[int] | None = None) -> dict[str, Any]:
    """Prints a table of the main metrics with their intervals and returns all of them, by temperature if there are several."""
    rows = voting(rows)
    temperatures = sorted({r.get("temperature", 1.0) for r in rows})
    report: dict[str, Any] = {}
    for t in temperatures:
        mine = [r for r in rows if r.get("temperature", 1.0) == t]
        found = summarize(mine, ks=ks)
        report[str(t)] = found
        parts = [*found["datasets"].items(), *([("all", found["overall"])] if len(found["datasets"]) > 1 else [])]
        shown = sorted({int(k) for _, part in parts for k in part["pass@k"]})
        few = [k for k in shown if k in (4, 16, 64, shown[-1]) and k > 1]
        most = few[-1:]
        table = [
            (
                "data set",
                "prompts",
                "n",
                "avg",
                *(f"pass@{k}" for k in few),
                *(f"maj@{k}" for k in most),
                "cut off",
                "length",
            )
        ]
        for name, part in parts:
            cells = [
                part["avg"],
                *(part["pass@k"].get(str(k)) for k in few),
                *((part["maj@k"] or {}).get(str(k)) for k in most),
            ]
            low, high = (part["samples_per_prompt"][x] for x in ("min", "max"))
            length = f"{part['length']['mean']['value']:.0f}" if part["length"] else "-"
            table.append(
                (
                    name or "-",
                    str(part["prompts"]),
                    f"{low}" if low == high else f"{low}-{high}",
                    *map(_cell, cells),
                    _cell(part["truncated"]),
                    length,
                )
            )
        which = f"temperature {t:g}; " if len(temperatures) > 1 else ""
        print(f"\n{which}mean over prompts, ± half of the 95 % interval (bootstrap over prompts)")
        print(aligned(table))
    by_prompt: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for r in rows:
        by_prompt.setdefault((r.get("dataset", ""), r["prompt_id"]), []).append(r)
    groups = list(by_prompt.values())
    if len({len(g) for g in groups}) > 1:
        every = [weighted_vote([r.get("answer") for r in g], [r["correct"] for r in g], [1.0] * len(g)) for g in groups]
        report["majority_of_all"] = sum(every) / len(every)
        print(
            f"majority of all samples of a prompt ({len(rows) / len(groups):.1f} on average): {report['majority_of_all']:.4f}"
        )
    if len(groups[0]) > 1 and all("certainty" in r for r in rows):
        weighed = [
            weighted_vote([r.get("answer") for r in g], [r["correct"] for r in g], [r["certainty"] for r in g])
            for g in groups
        ]
        report["self_certainty_vote"] = sum(weighed) / len(weighed)
        print(f"vote weighed by self-certainty: {report['self_certainty_vote']:.4f}")
    if len(temperatures) > 1:
        right = 0.0
        for g in groups:
            vote = temperature_vote(
                {t: [r.get("answer") for r in g if r.get("temperature", 1.0) == t] for t in temperatures}
            )
            right += (
                next((r["correct"] for r in g if r.get("answer") == vote.answer), 0.0)
                if vote.answer is not None
                else 0.0
            )
        report["temperature_vote"] = right / len(groups)
        print(f"vote over all temperatures: {report['temperature_vote']:.4f}")
    return report


def _cell(x: dict[str, float] | None) -> str:
    return "-" if x is None or x["value"] is None else f"{x['value']:.4f} ± {(x['high'] - x['low']) / 2:.4f}"


def fit(a: argparse.Namespace) -> None:
    from rlkit.evaluation.scaling import fit_runs

    require_file(a.out, "--out")
    report = fit_runs(
        a.runs,
        law=a.law,
        unit=a.unit,
        sizes=a.sizes or (),
        skip=a.skip,
        until=a.until,
        ceiling=a.ceiling,
        extrapolate=a.extrapolate,
    )
    print(report.table())
    print(f"drawn in {report.plot(a.out)}")


def renderer(model: str, tokenizer: Any, template: str | None) -> Any:
    """How ``rlkit sample`` makes prompts: as ``template`` says, else as the run did that the model is of; it says which."""
    from rlkit.data.render import Renderer, load_template

    if template is not None:
        return Renderer(tokenizer, template, load_template(template))
    for folder in (Path(model), Path(model).parent):  # a run, or its final model
        if (folder / "config.yaml").is_file() and (folder / "environment.jsonl").is_file():
            made = Renderer.trained(folder / "config.yaml", tokenizer)
            note = f"template: {made.name}, with which {folder} was trained (--template NAME applies another)"
            print(note, file=sys.stderr)
            return made
    if tokenizer.chat_template:
        note = (
            "template: plain, prompts go in as they are; this model has a chat template, which --template chat applies"
        )
        print(note, file=sys.stderr)
    return Renderer(tokenizer)


def sample(a: argparse.Namespace) -> None:
    """``rlkit sample``: responses of a model or of a realigned one, all of them, the best, or those that rejection keeps."""
    from rlkit.data.render import Encoder
    from rlkit.evaluation.selection import (
        best_of_n,
        best_of_n_kl,
        best_of_n_kl_bound,
        frontier,
        rejection_sample,
    )
    from rlkit.model.load import load_tokenizer
    from rlkit.rewards import RewardSpec, Scorer
    from rlkit.rollout.dera import DeRaEngine
    from rlkit.session import make_engine, quiet_libraries

    if (a.reference is None) != (a.realign is None):
        raise ConfigError(
            "--reference MODEL and --realign LAMBDA belong together: the mixture of two models needs both."
        )
    if (a.best or a.tilt is not None) and a.reward is None:
        raise ConfigError(
            "--best and --tilt choose by a reward: give --reward, e.g. --reward my_rewards.py:helpful or --reward math."
        )
    if a.answer and len(a.answer) != len(a.prompt):
        raise ConfigError(
            f"there are {len(a.prompt)} --prompt and {len(a.answer)} --answer; give one answer for each prompt."
        )
    if a.best and a.tilt is not None:
        raise ConfigError("--best and --tilt are two ways to choose: use one of them.")
    quiet_libraries()
    path = model_folder(a.model)
    tokenizer = load_tokenizer(path)
    answers = a.answer or [None] * len(a.prompt)
    render, encode = renderer(a.model, tokenizer, a.template), Encoder(tokenizer)
    prompts = [
        Prompt(question, encode(r.text, r.templated), r.text, answer)
        for question, answer in zip(a.prompt, answers, strict=True)
        for r in [render(question, "--prompt")]
    ]
    sampling = Sampling(temperature=a.temperature, top_p=a.top_p, max_tokens=a.max_tokens, seed=a.seed)
    length = max(len(p.token_ids) for p in prompts) + a.max_tokens + 8
    scorer = None
    if a.reward is not None:
        scorer = Scorer([RewardSpec(a.reward)])
        scorer.check([])
    if a.realign is not None:
        engine: Any = DeRaEngine(path, model_folder(a.reference), a.realign, max_model_len=length)
    else:
        engine = make_engine(
            path, kind=a.engine, seed=a.seed, dtype="float32", max_model_len=length, options={}, tensor_parallel=1
        )
    try:
        for p in prompts:
            group = list(engine.generate(p, a.n, sampling))
            print(p.text)
            if scorer is not None:
                scorer.score(group)
            kept = group
            if a.best:
                kept = best_of_n(group)
                kl = float(best_of_n_kl([sum(kept[0].logp)], a.n)[0])
                print(f"  best of {a.n}: KL to the model about {kl:.3f} nats (at most {best_of_n_kl_bound(a.n):.3f})")
            elif a.tilt is not None:
                group = [r for r in group if not math.isnan(r.reward)]
                kept = [group[i] for i in rejection_sample([r.reward for r in group], a.tilt, seed=a.seed)]
                point = frontier([r.reward for r in group], [a.tilt])[0]
                print(
                    f"  {len(kept)} of {len(group)} kept; the optimum at this beta: reward {point.reward:.3f}, KL {point.kl:.3f} nats"
                    + ("" if point.valid else f" (from too few samples: {point.ess:.1f} effective ones)")
                )
            for r in kept:
                score = "" if scorer is None else f", reward {r.reward:g}"
                print(f"  {r.text!r}  ({len(r.tokens)} tokens, {r.finish}, log-prob {sum(r.logp):.2f}{score})")
    finally:
        engine.close()
        if scorer is not None:
            scorer.close()
