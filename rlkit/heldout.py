"""Held-out prompts: what the model makes of them, on their cadence, and what follows from it for the run."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from rlkit.evaluation.compare import mcnemar
from rlkit.evaluation.metrics import pass_at_k, powers_of_two, standard_error
from rlkit.evaluation.samples import correctness, dataset_of
from rlkit.files import Row
from rlkit.objective.coefficients import distinct
from rlkit.record.results import HeldOut
from rlkit.rollout.engine import Generates, Scores
from rlkit.run import Run
from rlkit.samples import last_of_episodes
from rlkit.saving import remember, save
from rlkit.session import Session
from rlkit.types import Prompt, Rollout, Sampling


def sample_and_score(
    engine: Generates, scorer: Scores, prompts: Sequence[Prompt], n: int, sampling: Sampling
) -> list[Rollout]:
    """``n`` scored responses to every prompt, in the order of the prompts; of an episode its last."""

    def one(prompt: Prompt) -> list[Rollout]:
        group = engine.generate(prompt, n, sampling)
        scorer.score(group)
        return last_of_episodes(group)

    pool = ThreadPoolExecutor(512)  # as many as keep engines full; each waits for its group
    try:
        return [r for group in pool.map(one, prompts) for r in group]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a run that is stopped does not wait for the rest


def measure(
    rollouts: Sequence[Rollout], prompts: Sequence[Prompt], n: int, *, label: str, step: int, temperature: float
) -> HeldOut:
    """Mean reward and pass@k of ``n`` responses to each of ``prompts``, in their order; ``label`` names the reward that says "right"."""
    scored = [r.reward for r in rollouts if not math.isnan(r.reward)]
    right = [[correctness(r, label) >= 0.5 for r in rollouts[i : i + n]] for i in range(0, len(rollouts), n)]
    by_set: dict[str, list[list[bool]]] = defaultdict(list)
    for prompt, flags in zip(prompts, right, strict=True):
        by_set[dataset_of(prompt)].append(flags)
    return HeldOut(
        step,
        sum(scored) / len(scored) if scored else None,
        len(prompts),
        n,
        temperature,
        {
            name: {f"pass@{k}": sum(pass_at_k(n, sum(f), k) for f in rows) / len(rows) for k in powers_of_two(n)}
            for name, rows in by_set.items()
        },
        sum(r.finish == "length" for r in rollouts) / len(rollouts),
        tuple(any(f) for f in right),
        error=standard_error([mean_reward(rollouts[i : i + n]) for i in range(0, len(rollouts), n)]),
    )


def mean_reward(rollouts: Sequence[Rollout]) -> float:
    """Of the responses that have one; nan if none has."""
    scored = [r.reward for r in rollouts if not math.isnan(r.reward)]
    return math.fsum(scored) / len(scored) if scored else math.nan


def measure_rows(s: Session) -> dict[str, float]:
    """What the terms and the log-probs say of the held-out rows, by the names of a step's metrics."""
    rollouts = list[Rollout]()
    for rows in s.feed.held_out:
        rollouts += rows.all(rollouts[-1].group + 1 if rollouts else 0)
    batch = s.batch(rollouts)
    stats = s.fleet.learners.measure(batch, s.controls.terms.values())
    return {name: value for name, value in stats.as_dict().items() if name != "loss/total"}


def score_of_rows(run: Run, measured: Mapping[str, float]) -> float | None:
    """The number by which models are compared that answer no prompts: accuracy on pairs, else the NLL of the tokens, negated."""
    accuracies = [measured[f"accuracy/{name}"] for name in distinct(run.objective) if f"accuracy/{name}" in measured]
    nll = [value for name, value in measured.items() if name.startswith("nll/")]
    return accuracies[0] if accuracies else -nll[0] if nll else None


def evaluate(s: Session, step: int) -> HeldOut:
    """The model of now on held-out prompts and rows, written down and said; what is in ``eval.jsonl`` is not measured again."""
    section, start, prompts = s.run.eval, time.perf_counter(), s.feed.test
    rows = sum(len(x.rows) for x in s.feed.held_out)
    temperature = s.feed.sampling.temperature if section.temperature is None else section.temperature
    earlier = s.record.folder.held_out()
    for known in earlier:
        if known.step == step and known.asked == (len(prompts), section.n, temperature, rows):
            return known
    sampling = dataclasses.replace(s.feed.sampling, temperature=temperature)
    found, rollouts = HeldOut(step, None, n=section.n, temperature=temperature), list[Rollout]()
    if prompts:
        rollouts = sample_and_score(s.feed.engine, s.feed.scores, prompts, section.n, sampling)
        found = measure(rollouts, prompts, section.n, label=s.run.right, step=step, temperature=temperature)
    if rows:
        measured = measure_rows(s)
        score = found.score if prompts else score_of_rows(s.run, measured)
        found = dataclasses.replace(found, score=score, rows=rows, measured=measured)
    found = dataclasses.replace(found, seconds=time.perf_counter() - start)
    s.record.log.held_out(found)
    keep_samples(s, step, rollouts[:: section.n])
    if section.alarm and section.n > 1 and earlier:
        warn_of_loss(s, earlier[0].solved, found.solved)
    s.on_eval(found)
    return found


def keep_samples(s: Session, step: int, firsts: Sequence[Rollout]) -> None:
    """One response each to the first ``log.rollouts`` prompts, the same every time, and to as many others, which are drawn anew."""
    count = s.run.log.rollouts
    others = random.Random(f"{s.run.seed} {step}").sample(firsts[count:], min(count, len(firsts[count:])))
    kinds: list[Row] = [{"sample": "fixed"}] * len(firsts[:count]) + [{"sample": "random"}] * len(others)
    s.record.log.rollouts(step, [*firsts[:count], *others], "eval_samples.jsonl", kinds)


def warn_of_loss(s: Session, before: Sequence[bool], after: Sequence[bool]) -> None:
    """Says when fewer prompts are solved by any of the n responses than by the start model's, by more than chance."""
    if len(before) != len(after):
        return
    gained, lost = (sum(y and not x for x, y in zip(a, b, strict=True)) for a, b in ((before, after), (after, before)))
    if lost > gained and mcnemar(gained, lost) < 0.05:
        s.record.log.say(
            f"warning: pass@{s.run.eval.n} on held-out prompts is {sum(after) / len(after):.3f}; the start model's was "
            f"{sum(before) / len(before):.3f} ({lost} prompts are no longer solved, {gained} newly are). Training narrows what the "
            "model can do: a divergence that covers mass (docs/regularizers.md), a smaller learning rate or fewer steps keep more."
        )


def held_out(s: Session) -> bool:
    """Whether there is something to measure."""
    return bool(s.feed.test or s.feed.held_out)


def evaluate_when_due(s: Session, step: int) -> HeldOut | None:
    """On their cadence and before the first step; the best score so far gets a checkpoint."""
    section = s.run.eval
    if not held_out(s) or (step and (not section.every or step % section.every or step >= s.run.steps)):
        return None
    with s.stop.interruptible():
        found = evaluate(s, step)
    s.controls.new_score = found.score
    _observe(s, found)
    return found


def evaluate_at_the_end(s: Session, step: int) -> HeldOut | None:
    if not held_out(s):
        return None
    with s.stop.interruptible():
        found = evaluate(s, step)
    _observe(s, found)
    return found


def _observe(s: Session, found: HeldOut) -> None:
    """Keeps a checkpoint of the best held-out score. The start model needs none, unless the run may go back to it."""
    better = s.controls.best.observe(found.step, found.score)
    remember(s, found.step)
    if better and s.run.checkpoint.best and s.run.eval.every and (found.step or s.run.eval.go_back):
        save(s)


def stalled(s: Session) -> bool:
    """Whether the run ends because held-out scores no longer improve."""
    patience, best = s.run.eval.patience, s.controls.best
    if patience is None or best.stalled < patience:
        return False
    s.record.log.say(
        f"\nThe held-out score has not improved in {best.stalled} evaluations (eval.patience): the run ends here."
    )
    return True
