"""The straight line: prompts -> rollouts -> rewards -> log-probs -> advantages -> loss -> update -> weight sync.

:func:`train` is the program; what follows it writes down what happened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rlkit.breakdown import gradient_shares, kl_breakdown, kl_tokens
from rlkit.build import Parts, build, columns
from rlkit.checkpoint import Checkpoints
from rlkit.cluster.groups import EngineGroup
from rlkit.cluster.sync import probe_parity
from rlkit.evaluation.compare import mcnemar
from rlkit.evaluation.metrics import pass_at_k, powers_of_two
from rlkit.evaluation.samples import correctness, dataset_of
from rlkit.log import Timeline, duration
from rlkit.memory import resident
from rlkit.objective.corrections import correction_stats, weights
from rlkit.objective.penalties import with_advantages
from rlkit.rewards import Scorer
from rlkit.run import Run
from rlkit.types import Batch, Prompt, Rollout, Sampling, Stats

STATISTICS = "prompts.sqlite"


def train(run: Run, *, resume: bool = False, quiet: bool = False) -> Path:
    """Trains as ``run`` says and returns the run folder; ``folder / "final"`` is the model.

    With ``resume`` the newest run of this name continues from its last complete checkpoint.

    Raises:
        ValueError: something is wrong with the configuration, the data, a reward or the cluster, and what to do.
    """
    with build(run, resume=resume, quiet=quiet) as p:
        step = restore(p, resume)
        p.sync.publish(step)
        probe(p, step)
        evaluate(p, step)
        while step < run.steps:
            clock = Clock(p.engines.busy(), p.learners.busy(), p.timeline)
            if p.lengths is not None:
                p.collector.sampling = dataclasses.replace(p.sampling, max_tokens=p.lengths.limit)
            with clock("generate"):
                rollouts = p.collector.next(step)
            with clock("annotate"):
                extra = p.stored.draw(step, run.rollout.prompts) if p.stored is not None else []
                batch = Batch.from_rollouts([*rollouts, *extra], columns(run))
                batch = p.learners.annotate(batch, p.before_update)
                if step == 0:
                    p.drift.begin(p.learners.uncut_logprobs)
                batch = with_advantages(batch, run.advantage, run.reward_penalties, p.penalties.values())
                if run.correction is not None:
                    batch = batch.replace(weight=weights(run.correction, batch))
            with clock("update"):
                compare = bool(run.log.breakdown) and step % run.log.breakdown == 0
                stats = p.learners.update(
                    batch, p.terms.values(), seed=run.seed + step, breakdown=compare, say=p.log.say
                )
                step += 1
                if p.new_score is not None:
                    stats.update({"eval/score": p.new_score})
                    p.new_score = None
                p.learners.after_step(
                    step, stats
                )  # references follow; some move the policy, so engines get it after this
            with clock("sync"):
                stats.merge(p.sync.publish(step))
            if p.drift.due(step, run.steps):
                with clock("annotate"):
                    stats.update(p.drift.measure(p.learners.uncut_logprobs))
            batch = batch.policy_rows()  # what is reported is about the policy's own samples
            if compare:
                stats = break_down(p, stats, batch, step)
            summarize(p, step, stats, rollouts, batch, clock)
            p.terms.update(step, stats)
            p.penalties.update(step, stats)
            after_step(p, step, stats, rollouts)
        return finish(p, step)


class Clock:
    """Seconds by stage of one step; ``engines_busy``, ``learners_busy``: what they had worked when it began."""

    def __init__(self, engines_busy: float, learners_busy: float, timeline: Timeline) -> None:
        self.start, self.stages, self.timeline = time.perf_counter(), dict[str, float](), timeline
        self.engines_busy, self.learners_busy = engines_busy, learners_busy

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        with self.timeline(stage):
            yield
        self.stages[stage] = self.stages.get(stage, 0.0) + time.perf_counter() - start


def summarize(p: Parts, step: int, stats: Stats, rollouts: Sequence[Rollout], batch: Batch, clock: Clock) -> None:
    """Everything a step measured, under ``stage/name``."""
    tokens = sum(len(r.tokens) for r in rollouts)
    rewards = batch.reward
    log_behav = batch.logp["behav"]
    values = {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std(correction=0)) if rewards.min() < rewards.max() else 0.0,
        "reward/equal_groups": equal_groups(batch),
        "entropy/sampled": float(-log_behav.mean()),  # unbiased: the expectation of -log mu under mu
        "length/mean": tokens / len(rollouts),
        "length/max": float(max(len(r.tokens) for r in rollouts)),
        "length/truncated": sum(r.finish == "length" for r in rollouts) / len(rollouts),
        "batch/sequences": float(len(rollouts)),
        "batch/tokens": float(batch.N),
    }
    for name in sorted({k for r in rollouts for k in r.parts}):
        scored = [r.parts[name] for r in rollouts if name in r.parts]
        values[f"reward/{name}"] = sum(scored) / len(scored)
    if "ref" in batch.logp:
        per_response = batch.seq_sum(batch.logp.get("old", log_behav) - batch.logp["ref"])
        values["kl/ref_sequence"] = float(per_response.mean())
        p.statistics.observe_kl(rollouts, per_response.tolist())
    if p.run.correction is not None:
        correction_stats(batch, stats)
    total = time.perf_counter() - clock.start
    values |= {f"time/{k}": v for k, v in clock.stages.items()}
    values |= {
        "time/step": total,
        "speed/tokens_per_second": tokens / total,
        "memory/driver_mib": resident(),
        "memory/engine_mib": p.engines.peak(),
    }
    stats.update({k: v for k, v in values.items() if k not in stats})
    if p.lengths is not None:
        stats.update(p.lengths.metrics())
        p.lengths.observe(step, values["entropy/sampled"])
    stats.update(
        {
            "idle/engines": max(0.0, 1 - (p.engines.busy() - clock.engines_busy) / total),
            "idle/learners": max(0.0, 1 - (p.learners.busy() - clock.learners_busy) / total),
        }
    )
    stats.update(p.collector.metrics() | p.scorer.metrics() | p.terms.metrics() | p.penalties.metrics())


def equal_groups(b: Batch) -> float:
    """The share of prompt groups (of two or more responses) whose rewards are all one number; 0 if there is no such group."""
    groups = [rewards for rewards in (b.reward[b.group == g] for g in b.group.unique()) if len(rewards) > 1]
    return sum(bool((rewards == rewards[0]).all()) for rewards in groups) / max(1, len(groups))


def break_down(p: Parts, stats: Stats, batch: Batch, step: int) -> Stats:
    """Adds where the KL and the gradients come from; ``kl_tokens.jsonl`` gets the tokens that carry most of the KL."""
    shares = gradient_shares(stats, [t.name for t in p.run.objective])
    stats = stats.without("gram/").update(shares | kl_breakdown(batch))
    if "ref" in batch.logp:
        p.log.append(
            "kl_tokens.jsonl",
            {"step": step, "tokens": kl_tokens(batch, lambda i: str(p.tokenizer.convert_ids_to_tokens(i)))},
        )
    return stats


def after_step(p: Parts, step: int, stats: Stats, rollouts: Sequence[Rollout]) -> None:
    """Log, probe, evaluate and save on their cadence."""
    run = p.run
    if run.probe.every and step % run.probe.every == 0:
        stats.merge(probe(p, step))
    values = stats.as_dict()
    values |= p.alarms.observe(step, values, p.log.say)
    p.log.metrics(step, values)
    p.log.rollouts(step, rollouts)
    p.log.progress(step, values)
    if run.eval.every and step % run.eval.every == 0 and step < run.steps:
        evaluate(p, step)
    if (run.checkpoint.every and step % run.checkpoint.every == 0) or step == run.steps:
        save(p, step)


def probe(p: Parts, version: int) -> Stats:
    tolerance = p.run.probe.tolerance
    if tolerance is None:
        tolerance = 1e-3 if p.run.model.dtype == "float32" else 0.05
    return probe_parity(p.learners, p.engines, p.train_prompts[:2], p.sampling, tolerance, version)


def evaluate(p: Parts, step: int) -> float:
    """Mean reward and pass@k on held-out prompts, written to ``eval.jsonl``; repeated steps of a resumed run are replaced."""
    section, start = p.run.eval, time.perf_counter()
    if not p.test_prompts:
        return math.nan
    temperature = p.sampling.temperature if section.temperature is None else section.temperature
    sampling = dataclasses.replace(p.sampling, temperature=temperature)

    rollouts = sample_and_score(p.engines, p.scorer, p.test_prompts, section.n, sampling)
    scored = [r.reward for r in rollouts if not math.isnan(r.reward)]
    score = sum(scored) / len(scored) if scored else math.nan
    p.new_score = None if math.isnan(score) else score
    path = p.folder / "eval.jsonl"
    earlier = (
        [row for row in map(json.loads, path.read_text().splitlines()) if row["step"] < step] if path.exists() else []
    )
    right = [
        [correctness(r, p.correct) >= 0.5 for r in rollouts[i : i + section.n]]
        for i in range(0, len(rollouts), section.n)
    ]
    by_set: dict[str, list[list[bool]]] = defaultdict(list)
    for prompt, flags in zip(p.test_prompts, right, strict=True):
        by_set[dataset_of(prompt)].append(flags)
    measured = {
        name: {
            f"pass@{k}": sum(pass_at_k(section.n, sum(f), k) for f in rows) / len(rows)
            for k in powers_of_two(section.n)
        }
        for name, rows in by_set.items()
    }
    solved = [any(f) for f in right]
    now = {
        "step": step,
        "score": score,
        "prompts": len(p.test_prompts),
        "n": section.n,
        "temperature": temperature,
        "datasets": measured,
        "truncated": sum(r.finish == "length" for r in rollouts) / len(rollouts),
        "solved": solved,
        "seconds": time.perf_counter() - start,
    }
    path.write_text("".join(json.dumps(row) + "\n" for row in [*earlier, now]))
    if p.log.tensorboard is not None:
        p.log.tensorboard.add_scalar("eval/score", score, step)
        for name, values in measured.items():
            for key, value in values.items():
                p.log.tensorboard.add_scalar(f"eval/{name}/{key}" if name else f"eval/{key}", value, step)
    most = f"pass@{powers_of_two(section.n)[-1]}"
    sets = "; ".join(
        f"{name or 'all'} {values['pass@1']:.3f}, {most} {values[most]:.3f}" for name, values in measured.items()
    )
    p.log.say(
        ("\n" if p.log.live and step else "")
        + f"held-out score at step {step}: {score:.3f} ({len(p.test_prompts)} prompts"
        + (f"; {sets})" if section.n > 1 or len(measured) > 1 else ")")
    )
    if section.alarm and section.n > 1 and earlier and "solved" in earlier[0]:
        alarm(p, earlier[0]["solved"], solved)
    return score


def alarm(p: Parts, before: Sequence[bool], after: Sequence[bool]) -> None:
    """Says when fewer prompts are solved by any of the n responses than by the start model's, by more than chance."""
    if len(before) != len(after):
        return
    gained, lost = (sum(y and not x for x, y in zip(a, b, strict=True)) for a, b in ((before, after), (after, before)))
    if lost > gained and mcnemar(gained, lost) < 0.05:
        n = p.run.eval.n
        p.log.say(
            f"warning: pass@{n} on held-out prompts is {sum(after) / len(after):.3f}; the start model's was "
            f"{sum(before) / len(before):.3f} ({lost} prompts are no longer solved, {gained} newly are). Training narrows what the "
            "model can do: a divergence that covers mass (docs/regularizers.md), a smaller learning rate or fewer steps keep more."
        )


def sample_and_score(
    engines: EngineGroup, scorer: Scorer, prompts: Sequence[Prompt], n: int, sampling: Sampling
) -> list[Rollout]:
    """``n`` scored responses to every prompt, in the order of the prompts."""

    def one(prompt: Prompt) -> list[Rollout]:
        group = engines.generate(prompt, n, sampling)
        scorer.score(group)
        return group

    with ThreadPoolExecutor(512) as pool:  # as many as keep engines full; each waits for its group
        return [r for group in pool.map(one, prompts) for r in group]


def save(p: Parts, step: int) -> None:
    driver = {
        "sampler": p.collector.sampler.state_dict(),
        "terms": p.terms.state_dict(),
        "penalties": p.penalties.state_dict(),
        "dropped": p.collector.dropped,
        "in_flight": p.collector.in_flight(),
        "groups": p.collector.finished,
        "drift": p.drift.state_dict(),
        "alarms": p.alarms.state_dict(),
        "lengths": p.lengths.state_dict() if p.lengths else None,
    }

    def write(folder: str) -> None:
        p.learners.save(folder)
        p.statistics.save(Path(folder) / STATISTICS)

    p.checkpoints.save(step, driver, write)
    p.statistics.save(p.folder / STATISTICS)


def restore(p: Parts, resume: bool) -> int:
    """The step to continue from."""
    latest = p.checkpoints.latest() if resume else None
    if latest is None:
        return 0
    step, driver = Checkpoints.read(latest)
    p.statistics.load(latest / STATISTICS)
    p.learners.load(str(latest))
    p.collector.sampler.load_state_dict(driver["sampler"])
    by_id = {prompt.id: prompt for prompt in p.train_prompts}
    p.collector.start_at(step, [by_id[i] for i in driver["in_flight"]], driver.get("groups", 0))
    p.drift.load_state_dict(driver.get("drift", []))  # these three are not in checkpoints of older rlkits
    if "alarms" in driver:
        p.alarms.load_state_dict(driver["alarms"])
    if p.lengths is not None and driver["lengths"]:
        p.lengths.load_state_dict(driver["lengths"])
    p.terms.load_state_dict(driver["terms"])
    p.penalties.load_state_dict(driver["penalties"])
    return step


def finish(p: Parts, step: int) -> Path:
    """Exports the model, evaluates it, and says what was learned and where everything lies."""
    final = p.folder / "final"
    p.learners.export(str(final))
    p.tokenizer.save_pretrained(final)
    after = evaluate(p, step)
    history = (
        [json.loads(line) for line in (p.folder / "eval.jsonl").read_text().splitlines()] if p.test_prompts else []
    )
    seconds = time.monotonic() - p.started
    summary = {
        "steps": step,
        "seconds": seconds,
        "eval_before": history[0]["score"] if history else None,
        "eval_after": None if math.isnan(after) else after,
        "final": str(final),
    }
    (p.folder / "summary.json").write_text(json.dumps(summary, indent=1))
    p.log.say(f"\nDone: {step} steps in {duration(seconds)}.")
    if history:
        p.log.say(f"  learned      held-out score {history[0]['score']:.3f} -> {after:.3f}")
    p.log.say(
        f"  model        {final} (Hugging Face format)\n"
        f"  everything   {p.folder}/: config.yaml, metrics.jsonl, rollouts.jsonl, eval.jsonl, tensorboard/, checkpoints/\n"
        f"  next         {program()} sample {final} --prompt {p.train_prompts[0].columns['question']!r}"
    )
    return p.folder


def program() -> str:
    """How this command line was called, so that what we print can be pasted."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return "python -m rlkit"
    return os.path.relpath(called) if called.name == "rlkit" and shutil.which("rlkit") is None else "rlkit"
