"""The straight line: prompts -> rollouts -> rewards -> log-probs -> advantages -> loss -> update -> weight sync.

:class:`Steps` is the program, one finished step at a time; :func:`train` goes through all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from rlkit.cluster.sync import probe_reference
from rlkit.errors import WorkerError
from rlkit.files import Row
from rlkit.finish import finish
from rlkit.heldout import evaluate_when_due, stalled
from rlkit.objective.corrections import weights
from rlkit.objective.pairing import with_pairs
from rlkit.objective.penalties import with_advantages
from rlkit.record.results import HeldOut, RunFolder
from rlkit.report import Clock, break_down, summarize
from rlkit.run import Run
from rlkit.samples import Rollout
from rlkit.saving import kept_when_left, remember, restore, save_when_due
from rlkit.session import Session, open_session, unheard
from rlkit.stopping import Stopper
from rlkit.types import Batch, Stats


@dataclass(frozen=True)
class StepResult:
    """A finished step, with a hand on the run until the next one begins.

    Attributes:
        number: steps that the run has made, this one included. metrics: its row of ``metrics.jsonl``.
        rollouts: what it was trained on. held_out: what was measured after it, if that was due.
    """

    number: int
    metrics: Mapping[str, float]
    rollouts: Sequence[Rollout]
    held_out: HeldOut | None
    session: Session = field(repr=False)

    @property
    def folder(self) -> RunFolder:
        return self.session.record.folder

    @property
    def coefficients(self) -> dict[str, float]:
        """What the next step multiplies each term and each penalty by."""
        controls = self.session.controls
        return controls.terms.named() | controls.penalties.named()

    def set_coefficient(self, name: str, value: float) -> None:
        """Holds a coefficient at ``value`` from the next step on, whatever rule it had; a resumed run keeps it there.

        Raises:
            ConfigError: no term and no penalty has this name, or it is not a number.
        """
        controls = self.session.controls
        (controls.penalties if name in controls.penalties.named() else controls.terms).hold(name, value)
        remember(self.session, self.number)

    def stop(self) -> None:
        """The run ends here as it would after its last step: it evaluates, exports its model and says what was learned."""
        self.session.stop.finished = True


@dataclass
class Steps:
    """A run, one finished step at a time::

        for step in rk.steps(run):
            print(step.number, step.metrics["reward/mean"])
            if step.metrics["kl/ref"] > 0.1:
                step.set_coefficient("KL_k3(ref)", 0.2)

    Each ``for`` over it is one run, and :func:`train` is nothing but such a loop. Whoever leaves it (``break``, an exception) leaves a
    checkpoint of the last finished step; ``resume=True`` continues from there. After learners were lost, steps since the last checkpoint
    come again.

    Attributes:
        on_eval, on_save: hear of every held-out evaluation, and of every checkpoint's folder.
        folder: the run's folder, once the loop has come to its end.
    """

    run: Run
    _: KW_ONLY
    resume: bool = False
    quiet: bool = False
    on_eval: Callable[[HeldOut], object] = unheard
    on_save: Callable[[Path], object] = unheard
    folder: RunFolder | None = field(default=None, init=False)

    def __iter__(self) -> Generator[StepResult, None, None]:
        run, resume = self.run, self.resume
        with Stopper(run.checkpoint.time_limit) as stop:
            left = 0 if run.cluster is None else run.cluster.restarts
            while True:
                try:
                    yield from self._until_something_is_lost(resume, stop)
                    return
                except WorkerError as error:
                    if not left:
                        raise type(error)(
                            f"{error} `rlkit train ... --resume` continues from the last checkpoint."
                        ) from error
                    if not self.quiet:
                        print(
                            f"warning: {error} The learners start again from the last checkpoint ({left - 1} more times if need be).",
                            flush=True,
                        )
                left, resume = left - 1, True

    def _until_something_is_lost(self, resume: bool, stop: Stopper) -> Generator[StepResult, None, None]:
        stop.start()
        with open_session(self.run, resume=resume, quiet=self.quiet, stop=stop) as s, kept_when_left(s):
            s.on_eval, s.on_save = self.on_eval, self.on_save
            step = restore(s)
            s.fleet.sync.publish(step)
            s.probe(step)
            reference = s.run.reference
            compared = reference is not None and "ref" in s.run.passes and "ref" not in s.feed.known
            if step == 0 and reference is not None and compared and reference.is_start:
                probe_reference(s.fleet.learners, s.sampled(), s.run.probe_tolerance)
            evaluate_when_due(s, step)
            while step < s.run.steps and not stalled(s) and not stop.finished:
                made = one_step(s, step)
                step = made.number
                yield made
                save_when_due(s, step)
            self.folder = finish(s, step)


steps = Steps  # as a loop says it: ``for step in rk.steps(run)``


def train(
    run: Run,
    *,
    resume: bool = False,
    quiet: bool = False,
    on_step: Callable[[StepResult], object] = unheard,
    on_eval: Callable[[HeldOut], object] = unheard,
    on_save: Callable[[Path], object] = unheard,
) -> RunFolder:
    """Trains as ``run`` says and returns the run folder, which knows its metrics, its held-out scores and its model.

    With ``resume`` the newest run of this name continues from its last whole checkpoint. So it does when a learner is lost, at most
    ``cluster.restarts`` times. ``on_step`` hears of every finished step, ``on_eval`` of every held-out evaluation, ``on_save`` of every
    checkpoint's folder; what they raise ends the run.

    Raises:
        InputError: something is wrong with the configuration, the data, a reward or the cluster, and what to do.
        RunError: the run failed.
        Stopped: a signal or a time limit ended the run; a checkpoint of the last finished step is there.
    """
    loop = Steps(run, resume=resume, quiet=quiet, on_eval=on_eval, on_save=on_save)
    with contextlib.closing(iter(loop)) as made:
        for step in made:
            on_step(step)
    assert loop.folder is not None
    return loop.folder


def one_step(s: Session, step: int) -> StepResult:
    """What follows ``step`` steps: responses, an update, new weights in the engines, and what was measured."""
    run, feed, learners, record, clock = s.run, s.feed, s.fleet.learners, s.record, Clock(s)
    if s.controls.lengths is not None:
        feed.collector.sampling = dataclasses.replace(feed.sampling, max_tokens=s.controls.lengths.limit)
    if feed.taught is not None:
        feed.taught.step = step
    with s.stop.interruptible():
        with clock("generate"):
            rollouts = feed.collector.next(step)
        with clock("annotate"):
            batch = annotated(s, step, rollouts)
    with clock("update"):
        compare = bool(run.log.breakdown) and step % run.log.breakdown == 0
        coefs = s.controls.terms.values()
        stats = learners.update(batch, coefs, seed=run.seed + step, breakdown=compare, say=record.log.say)
        step += 1
        if s.controls.new_score is not None:
            stats.update({"eval/score": s.controls.new_score})
            s.controls.new_score = None
        learners.after_step(step, stats)  # references follow; some move the policy, so engines get it after this
    with clock("sync"):
        stats.merge(s.fleet.sync.publish(step))
    if record.drift.due(step, run.steps):
        with clock("annotate"):
            stats.update(record.drift.measure(learners.uncut_logprobs))
    own = batch.policy_rows()  # most of what is reported is about the policy's own samples
    details = list[Row]()
    if compare:
        stats, details = break_down(s, stats, own, step, rollouts)
    summarize(s, step, stats, rollouts, own, batch.N - own.N, clock)
    s.controls.terms.update(step, stats)
    s.controls.penalties.update(step, stats)
    return after_step(s, step, stats, rollouts, details)


def annotated(s: Session, step: int, rollouts: Sequence[Rollout]) -> Batch:
    """The batch of a step with all that its terms read: log-probs, advantages, weights of a correction."""
    run, learners = s.run, s.fleet.learners
    extra, first = list[Rollout](), run.rollout.prompts
    for rows in s.feed.drawn:
        extra += rows.draw(step, first)
        first = extra[-1].group + 1
    batch = s.batch([*rollouts, *extra])
    if step == 0:
        s.record.drift.begin(learners.uncut_logprobs)
    batch = with_advantages(batch, run.advantage, run.reward_penalties, s.controls.penalties.values())
    if run.correction is not None and run.online:
        batch = batch.replace(weight=weights(run.correction, batch))
    return with_pairs(batch, run.pairing, run.seed + step)


def after_step(
    s: Session, step: int, stats: Stats, rollouts: Sequence[Rollout], details: Sequence[Row] = ()
) -> StepResult:
    """Probes, writes down and evaluates, on their cadence. ``details``: more about the first rollouts."""
    record = s.record
    if s.run.probe.every and step % s.run.probe.every == 0:
        stats.merge(s.probe(step))
    values = stats.as_dict()
    values |= record.alarms.observe(step, values, record.log.say)
    record.log.metrics(step, values)
    record.log.rollouts(step, rollouts[: s.run.log.rollouts], more=details)
    record.log.progress(step, values)
    remember(s, step)
    return StepResult(step, values, rollouts, evaluate_when_due(s, step), s)
