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
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rlkit.cluster.groups import EngineGroup
from rlkit.cluster.sync import probe_export, probe_parity, probe_reference
from rlkit.errors import CheckpointError, WorkerError
from rlkit.evaluation.compare import mcnemar
from rlkit.evaluation.metrics import pass_at_k, powers_of_two
from rlkit.evaluation.samples import correctness, dataset_of
from rlkit.files import read_rows, reason, replace_file, replace_folder, told
from rlkit.objective.corrections import correction_stats, weights
from rlkit.objective.diagnostics import gradient_shares, kl_breakdown, kl_tokens
from rlkit.objective.penalties import with_advantages
from rlkit.record.checkpoint import Checkpoints
from rlkit.record.log import REPEATED, Timeline, duration
from rlkit.record.memory import resident
from rlkit.rewards import Scorer
from rlkit.rollout.collector import Group, read_groups, write_groups
from rlkit.run import Run
from rlkit.session import Parts, State, build, record
from rlkit.stopping import Stopped, Stopper
from rlkit.types import Batch, Prompt, Rollout, Sampling, Stats

STATISTICS = "prompts.sqlite"
AHEAD = "ahead.jsonl"


def train(run: Run, *, resume: bool = False, quiet: bool = False) -> Path:
    """Trains as ``run`` says and returns the run folder; ``folder / "final"`` is the model.

    With ``resume`` the newest run of this name continues from its last whole checkpoint. So it does when a learner is lost, at most
    ``cluster.restarts`` times.

    Raises:
        ValueError: something is wrong with the configuration, the data, a reward or the cluster, and what to do.
        Stopped: a signal or a time limit ended the run; a checkpoint of the last finished step is there.
    """
    with Stopper(run.checkpoint.time_limit) as stop:
        left = 0 if run.cluster is None else run.cluster.restarts
        while True:
            try:
                return train_once(run, resume=resume, quiet=quiet, stop=stop)
            except WorkerError as error:
                if not left:
                    raise type(error)(
                        f"{error} `rlkit train ... --resume` continues from the last checkpoint."
                    ) from error
                if not quiet:
                    print(
                        f"warning: {error} The learners start again from the last checkpoint ({left - 1} more times if need be).",
                        flush=True,
                    )
            left, resume = left - 1, True


def train_once(run: Run, *, resume: bool, quiet: bool, stop: Stopper) -> Path:
    """:func:`train`, until something is lost that only a checkpoint brings back."""
    stop.start()
    with build(run, resume=resume, quiet=quiet, stop=stop) as p, kept_when_stopped(p):
        step = restore(p)
        p.sync.publish(step)
        probe(p, step)
        if step == 0 and run.reference is not None and run.reference.is_start and "ref" in run.passes:
            probe_reference(p.learners, sampled(p), run.probe_tolerance)
        evaluate_when_due(p, step)
        while step < run.steps and not stalled(p):
            clock = Clock(p.engines.busy(), p.learners.busy(), p.timeline)
            if p.lengths is not None:
                p.collector.sampling = dataclasses.replace(p.sampling, max_tokens=p.lengths.limit)
            with stop.interruptible():
                with clock("generate"):
                    rollouts = p.collector.next(step)
                with clock("annotate"):
                    extra = p.stored.draw(step, run.rollout.prompts) if p.stored is not None else []
                    batch = Batch.from_rollouts([*rollouts, *extra], run.columns)
                    batch = p.learners.annotate(batch, run.passes)
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
    p.state = state(p, step)
    evaluate_when_due(p, step)
    wanted = p.stop.take_save()
    if wanted or p.cadence.due(step) or (step == run.steps and p.cadence.saved != step):
        saved = save(p)
        if wanted and saved:
            p.log.say(f"SIGUSR1: a checkpoint of step {step} is written; the run goes on.")


def sampled(p: Parts) -> list[Rollout]:
    """A few responses to look at."""
    return [r for prompt in p.train_prompts[:2] for r in p.engines.generate(prompt, 2, p.sampling)]


def probe(p: Parts, version: int) -> Stats:
    return probe_parity(p.learners, p.engines, p.train_prompts[:2], p.sampling, p.run.probe_tolerance, version)


def evaluate_when_due(p: Parts, step: int) -> None:
    """Held-out scores on their cadence and before the first step; the best one so far gets a checkpoint."""
    section = p.run.eval
    if not p.test_prompts or (step and (not section.every or step % section.every or step >= p.run.steps)):
        return
    with p.stop.interruptible():
        p.new_score = evaluate(p, step)["score"]
    observe(p, step, p.new_score)


def observe(p: Parts, step: int, score: float | None) -> None:
    """Keeps a checkpoint of the best held-out score. The start model needs none, unless the run may go back to it."""
    better = p.best.observe(step, score)
    p.state = state(p, step)
    if better and p.run.checkpoint.best and p.run.eval.every and (step or p.run.eval.go_back):
        save(p)


def stalled(p: Parts) -> bool:
    """Whether the run ends because held-out scores no longer improve."""
    patience = p.run.eval.patience
    if patience is None or p.best.stalled < patience:
        return False
    p.log.say(
        f"\nThe held-out score has not improved in {p.best.stalled} evaluations (eval.patience): the run ends here."
    )
    return True


def evaluate(p: Parts, step: int) -> dict[str, Any]:
    """Mean reward and pass@k on held-out prompts, a row of ``eval.jsonl``; one that is there is not measured again."""
    section, start = p.run.eval, time.perf_counter()
    temperature = p.sampling.temperature if section.temperature is None else section.temperature
    sampling = dataclasses.replace(p.sampling, temperature=temperature)
    asked = {"prompts": len(p.test_prompts), "n": section.n, "temperature": temperature}
    earlier = scores(p.folder)
    known = earlier.get(step)
    if known is not None and all(known.get(k) == v for k, v in asked.items()):
        return known

    rollouts = sample_and_score(p.engines, p.scorer, p.test_prompts, section.n, sampling)
    scored = [r.reward for r in rollouts if not math.isnan(r.reward)]
    score = sum(scored) / len(scored) if scored else None
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
        **asked,
        "datasets": measured,
        "truncated": sum(r.finish == "length" for r in rollouts) / len(rollouts),
        "solved": solved,
        "seconds": time.perf_counter() - start,
    }
    p.log.append("eval.jsonl", now)
    p.log.rollouts(step, rollouts[:: section.n], "eval_samples.jsonl")  # of the same prompts every time
    if p.log.tensorboard is not None:
        p.log.tensorboard.add_scalar("eval/score", math.nan if score is None else score, step)
        for name, values in measured.items():
            for key, value in values.items():
                p.log.tensorboard.add_scalar(f"eval/{name}/{key}" if name else f"eval/{key}", value, step)
    most = f"pass@{powers_of_two(section.n)[-1]}"
    sets = "; ".join(
        f"{name or 'all'} {values['pass@1']:.3f}, {most} {values[most]:.3f}" for name, values in measured.items()
    )
    p.log.say(
        ("\n" if p.log.live and step else "")
        + f"held-out score at step {step}: {_three(score)} ({len(p.test_prompts)} prompts"
        + (f"; {sets})" if section.n > 1 or len(measured) > 1 else ")")
    )
    first = next(iter(earlier.values()), None)
    if section.alarm and section.n > 1 and first is not None and "solved" in first:
        alarm(p, first["solved"], solved)
    return now


def scores(folder: Path) -> dict[int, dict[str, Any]]:
    """The rows of ``eval.jsonl`` by step, in order; the last one of a step counts."""
    rows = [row for row in read_rows(folder / "eval.jsonl") if isinstance(row.get("step"), int)]
    return dict(sorted({row["step"]: row for row in rows}.items()))


def _three(score: float | None) -> str:
    return "none" if score is None else f"{score:.3f}"


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

    pool = ThreadPoolExecutor(512)  # as many as keep engines full; each waits for its group
    try:
        return [r for group in pool.map(one, prompts) for r in group]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a run that is stopped does not wait for the rest


# -- checkpoints ------------------------------------------------------------------------------------------------------


def state(p: Parts, step: int) -> State:
    """What the driver knows after ``step`` steps, as values that later work does not change."""
    driver = {
        "collector": p.collector.state_dict(),
        "rewards": p.scorer.state_dict(),
        "skipped": p.learners.skipped,
        "sampler": p.collector.sampler.state_dict(),
        "terms": p.terms.state_dict(),
        "penalties": p.penalties.state_dict(),
        "drift": p.drift.state_dict(),
        "alarms": p.alarms.state_dict(),
        "lengths": p.lengths.state_dict() if p.lengths else None,
        "best": p.best.state_dict(),
    }
    return State(step, json.loads(json.dumps(driver)), p.statistics.copy(), p.collector.in_flight())


def save(p: Parts, *, complete: bool = True) -> bool:
    """A checkpoint of the last finished step; whether it is on disk. One that cannot be written is reported, and tried again later.

    It holds the groups that were made ahead. Under ``pause: wait`` their responses are there, and ``complete`` waits for the rewards that
    are not, so that a resumed run asks none of them again.
    """
    assert p.state is not None
    now, start = p.state, time.monotonic()

    def write(folder: str) -> None:
        p.learners.save(folder)
        now.statistics.save(Path(folder) / STATISTICS)
        write_groups(Path(folder) / AHEAD, now.in_flight)

    if complete and now.in_flight and p.run.rollout.pause == "wait":
        with p.stop.interruptible():
            p.collector.finish_ahead()
    best = p.best.step if p.run.checkpoint.best else -1
    problem = p.log.on_disk()  # rows first: a run that continues from a checkpoint does not make earlier rows again
    if problem is None:
        try:
            p.checkpoints.save(now.step, now.driver, write, protect={best})
            if best == now.step and p.best.score is not None:
                p.checkpoints.mark_best(best, p.best.score)
            now.statistics.save(p.folder / STATISTICS)
        except OSError as error:
            problem = error
    if problem is None:
        p.cadence.wrote(now.step)
        return True
    p.cadence.failed(time.monotonic() - start)
    p.log.say(
        f"warning: the checkpoint of step {now.step} could not be written ({reason(problem)}). It is tried again; make room, or the "
        f"run can only be continued from step {max(0, p.cadence.saved)}."
    )
    return False


@contextlib.contextmanager
def kept_when_stopped(p: Parts) -> Iterator[None]:
    """A run that is told to stop leaves a checkpoint of its last finished step."""
    try:
        yield
    except Stopped as stopped:
        if p.state is not None and p.state.step and p.state.step != p.cadence.saved:
            save(p, complete=False)
        if p.cadence.saved >= 0:
            stopped.kept = f"`--resume` continues from step {p.cadence.saved}"
        elif p.state is not None and p.state.step:
            stopped.kept = "no checkpoint could be written"
        raise


def restore(p: Parts) -> int:
    """The step to start from. A resumed run changes nothing on disk before its checkpoint is loaded."""
    found = p.found
    if found.checkpoint is not None:
        step, driver = Checkpoints.read(found.checkpoint)
        p.statistics.load(found.checkpoint / STATISTICS)
        p.learners.load(str(found.checkpoint))
        p.collector.sampler.load_state_dict(driver["sampler"])
        by_id = {prompt.id: prompt for prompt in p.train_prompts}
        if "collector" in driver:
            p.collector.load_state_dict(driver["collector"], read_groups(found.checkpoint / AHEAD, by_id))
            p.scorer.load_state_dict(driver["rewards"])
            p.learners.skipped = driver["skipped"]
        else:  # formats 3 and 4 know which prompts were in flight only
            taken = driver.get("groups", 0)
            in_flight = [Group(taken + k, by_id[i], Future()) for k, i in enumerate(driver["in_flight"])]
            counts = {"taken": taken, "dropped": driver["dropped"], "reasons": driver.get("reasons", {}), "aborted": 0}
            p.collector.load_state_dict(counts, in_flight)
        # Checkpoints of format 3 have no "drift", "alarms" and "best".
        p.drift.load_state_dict(driver.get("drift", []))
        if "alarms" in driver:
            p.alarms.load_state_dict(driver["alarms"])
        if p.lengths is not None and driver["lengths"]:
            p.lengths.load_state_dict(driver["lengths"])
        p.terms.load_state_dict(driver["terms"])
        p.penalties.load_state_dict(driver["penalties"])
        if "best" in driver:
            p.best.load_state_dict(driver["best"])
        p.cadence.wrote(step)
    p.stop.begin()
    with told("the run folder"):
        moved = p.log.begin(found.step)
        if found.resume:
            aside = p.checkpoints.set_aside(found.damaged)
            record(p.run, p.folder, found)
            say_resumed(p, moved, aside)
    p.scorer.output.write_to(p.folder / "rewards.log")
    p.state = state(p, found.step)
    return found.step


def say_resumed(p: Parts, moved: int, aside: Sequence[Path]) -> None:
    found = p.found
    for why, path in zip(found.damaged.values(), aside, strict=True):
        p.log.say(f"warning: {why} It is kept as {path.name}; the run continues from the one before it.")
    if found.checkpoint is None:
        p.log.say("note: there is no checkpoint yet: the run starts again from its first step.")
    if p.collector.again:
        p.log.say(
            f"note: {len(p.collector.again)} prompt groups had no rewards yet at the checkpoint: they are asked again, by its weights."
        )
    if moved:
        p.log.say(f"note: {moved} rows of later steps, which are made again, are kept in {p.folder / REPEATED}/.")
    for key, (old, new) in found.changes.items():
        p.log.say(f"note: {key} was {old!r} and is {new!r} from here on.")


# -- the end ----------------------------------------------------------------------------------------------------------


def finish(p: Parts, step: int) -> Path:
    """Evaluates and exports the model, and says what was learned and where everything lies."""
    score = None
    if p.test_prompts:
        with p.stop.interruptible():
            score = evaluate(p, step)["score"]
        observe(p, step, score)
    if step and p.cadence.saved != step:
        save(p)
    kept, score = go_back(p, step, score)
    final = p.folder / "final"
    with told("the model of the last step"):
        export(p, final)
    gap = None
    if p.run.probe.final:
        gap = probe_export(p.learners, str(final), sampled(p), p.run.probe_tolerance)
    history = scores(p.folder)
    before = next(iter(history.values()))["score"] if history else None
    seconds = time.monotonic() - p.started
    summary = {
        "steps": step,
        "seconds": seconds,
        "eval_before": before,
        "eval_after": score,
        "best_step": p.best.step if p.best.step >= 0 else None,
        "best_score": p.best.score,
        "final_step": kept,
        "final": str(final),
        "export_gap": gap,
    }
    with told("the summary"):
        replace_file(p.folder / "summary.json", json.dumps(summary, indent=1))
    p.log.say(f"\nDone: {step} steps in {duration(seconds)}.")
    if history:
        p.log.say(f"  learned      held-out score {_three(before)} -> {_three(score)}")
    again = "" if gap is None else f"; loaded again, it is the trained model within {gap:.1g} nats"
    p.log.say(
        f"  model        {final} (Hugging Face format{f', of step {kept}' if kept != step else ''}{again})\n"
        f"  everything   {p.folder}/: config.yaml, metrics.jsonl, rollouts.jsonl, eval.jsonl, eval_samples.jsonl, "
        "tensorboard/, checkpoints/\n"
        f"  next         {program()} sample {final} --prompt {p.train_prompts[0].columns['question']!r}"
    )
    return p.folder


def go_back(p: Parts, step: int, score: float | None) -> tuple[int, float | None]:
    """With ``eval.go_back``, loads the weights with the best held-out score; the step they are of, and their score."""
    if not p.run.eval.go_back or p.best.step in (-1, step):
        return step, score
    path = p.checkpoints.path(p.best.step)
    try:
        Checkpoints.read(path)
    except CheckpointError as error:
        p.log.say(f"warning: eval.go_back: {error} The model of step {step} is left in its place.")
        return step, score
    p.learners.load(str(path))
    p.log.say(f"eval.go_back: the model of step {p.best.step} had the best held-out score, {_three(p.best.score)}.")
    return p.best.step, p.best.score


def export(p: Parts, final: Path) -> None:
    """The model in Hugging Face format, whole or not at all."""
    tmp = final.with_name(f".{final.name}.writing")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir()
    try:
        p.learners.export(str(tmp))
        p.tokenizer.save_pretrained(tmp)
        replace_folder(tmp, final)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise


def program() -> str:
    """How this command line was called, so that what we print can be pasted."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return "python -m rlkit"
    return os.path.relpath(called) if called.name == "rlkit" and shutil.which("rlkit") is None else "rlkit"
