"""A run's parts, started in the order of their price and closed whatever happens.

Checks come first: the configuration by itself, rewards and data, the cluster, and only then models.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkit.checks import (
    Findings,
    check_columns,
    check_configuration,
    check_models,
    context_length,
    generation_notes,
    self_test,
    stale,
    without_dropout,
)
from rlkit.cluster.groups import EngineGroup, LearnerGroup
from rlkit.cluster.ray import connect
from rlkit.cluster.start import start as start_workers
from rlkit.cluster.sync import WeightSync, probe_parity
from rlkit.config import plain, to_yaml
from rlkit.data.prompts import first_of_each, load_prompts, overlap, preview
from rlkit.data.statistics import PromptStatistics
from rlkit.data.stored import StoredRows
from rlkit.files import Appender, replace_file, told
from rlkit.objective.coefficients import Coefficients
from rlkit.objective.oracle import dishonest
from rlkit.record.alarms import Alarms
from rlkit.record.checkpoint import Cadence, Checkpoints
from rlkit.record.drift import Drift
from rlkit.record.log import RunLog, Timeline, environment, lock_folder, new_folder, newest_folder
from rlkit.record.masking import mask_values
from rlkit.record.results import HeldOut, RunFolder
from rlkit.resume import Changes, compare
from rlkit.rewards import Scorer
from rlkit.rollout.collector import Collector, Group, Rules
from rlkit.rollout.interrupt import Interrupted, Interruption
from rlkit.rollout.lengths import LengthState
from rlkit.run import Run
from rlkit.start import start_model, tokenizer_of
from rlkit.stopping import Best, Stopper
from rlkit.types import Prompt, Rollout, Sampling, Stats


@dataclass
class Feed:
    """Where rollouts come from: prompts, how they are sampled, and what scores the responses."""

    tokenizer: Any
    train: list[Prompt]
    test: list[Prompt]
    scorer: Scorer
    collector: Collector
    sampling: Sampling
    stored: StoredRows | None


@dataclass
class Fleet:
    """What computes: learners, engines, and the sync of weights from the first to the second."""

    learners: LearnerGroup
    engines: EngineGroup
    sync: WeightSync


@dataclass
class Controls:
    """What changes as the run goes on: coefficients, the response limit, and whether scores still improve."""

    terms: Coefficients
    penalties: Coefficients
    lengths: LengthState | None
    best: Best
    new_score: float | None = None  # the last held-out score, until a step has reported it


@dataclass
class Record:
    """What the run writes down and keeps, and what it watches itself by."""

    folder: RunFolder
    log: RunLog
    checkpoints: Checkpoints
    cadence: Cadence
    statistics: PromptStatistics
    timeline: Timeline
    drift: Drift
    alarms: Alarms
    found: Found
    started: float  # time.monotonic() when the run began
    state: State | None = None  # of the last finished step: what a checkpoint holds beside the learners' part


def unheard(news: object) -> None:
    """Hears of something where nobody listens."""


@dataclass
class Session:
    """A run and its parts. ``on_eval`` and ``on_save`` hear of every held-out evaluation and of every checkpoint."""

    run: Run
    feed: Feed
    fleet: Fleet
    controls: Controls
    record: Record
    stop: Stopper
    on_eval: Callable[[HeldOut], object] = unheard
    on_save: Callable[[Path], object] = unheard

    def sampled(self) -> list[Rollout]:
        """A few responses to look at."""
        return [r for p in self.feed.train[:2] for r in self.fleet.engines.generate(p, 2, self.feed.sampling)]

    def probe(self, version: int, engines: Sequence[int] | None = None) -> Stats:
        """Holds the engines' log-probs (all of them, or those named) against the learners', after the publication of ``version``."""
        learners, prompts, tolerance = self.fleet.learners, self.feed.train[:2], self.run.probe_tolerance
        return probe_parity(learners, self.fleet.engines, prompts, self.feed.sampling, tolerance, version, engines)


@dataclass(frozen=True)
class State:
    """What the driver puts in a checkpoint, taken between two steps."""

    step: int
    driver: dict[str, Any]
    statistics: PromptStatistics
    in_flight: tuple[Group, ...]  # those that finish until it is written are stored with their responses


@dataclass(frozen=True)
class Inputs:
    """What a run is given, read and checked before it has a folder. ``context``: the longest prompt and response, in tokens."""

    tokenizer: Any
    train: list[Prompt]
    test: list[Prompt]
    scorer: Scorer
    stored: StoredRows | None
    interrupt: Interruption | None
    context: int


@dataclass(frozen=True)
class Found:
    """What a resumed run continues from. ``checkpoint``: None if there is none yet, or if the run is new."""

    resume: bool
    checkpoint: Path | None = None
    damaged: Mapping[Path, str] = field(default_factory=dict)  # newer checkpoints, and what is wrong with them
    changes: Changes = field(default_factory=dict)  # of the configuration

    @property
    def step(self) -> int:
        return 0 if self.checkpoint is None else int(self.checkpoint.name.removeprefix("step_"))


def write_down(run: Run, folder: Path, found: Found) -> None:
    """What the run is: ``config.yaml``, and a line of ``environment.jsonl`` for every start, with origins of values and what it changed."""
    replace_file(folder / "config.yaml", to_yaml(mask_values(plain(run))))
    stamp = environment() | {"origins": run.origins}
    if found.resume:
        stamp |= {"from_step": found.step, "changed": mask_values({k: list(v) for k, v in found.changes.items()})}
    starts = Appender(folder / "environment.jsonl")
    starts.add(json.dumps(stamp) + "\n")
    if starts.error is not None:
        raise starts.error


@contextlib.contextmanager
def open_session(
    run: Run, *, resume: bool = False, quiet: bool = False, stop: Stopper | None = None
) -> Iterator[Session]:
    """All parts of a run; closes them at the end, whatever happens.

    With ``resume`` nothing on disk changes here: :func:`rlkit.saving.restore` writes when the checkpoint has been loaded.
    """
    started = time.monotonic()
    quiet_libraries()
    stop = stop or Stopper()
    findings = check_configuration(run, new=not resume)
    found, notes = Found(resume), list[str]()
    with contextlib.ExitStack() as stack:
        if resume:
            folder = newest_folder(run.folder)
            stack.callback(lock_folder(folder).release)
            changes = compare(folder, run)
            found = Found(True, *_checkpoints(run, folder).newest_whole(), changes)
        # Everything that can be wrong is found before the run folder is made: a run that cannot start leaves nothing behind.
        given = _inputs(run, stack, notes)
        if run.cluster is not None:
            connect(run.cluster, say=notes.append)
            stop.install()  # Ray has set handlers of its own
        if not resume:
            folder, lock = new_folder(run.folder)
            stack.callback(lock.release)
            with told("the run folder"):
                write_down(run, folder, found)
        log = RunLog(run.log, run.steps, folder, quiet)
        stack.callback(log.close)
        log.say(f"rlkit: {run.name}, {run.steps} steps, in {folder}" + (f", from step {found.step}" if resume else ""))
        given.scorer.report = log.say
        for finding in dishonest(findings, run.off_policy):
            notes.append(f"note: {finding.sentence} (rlkit check; acknowledge: true silences this)")
        notes += filter(None, (stale(run), without_dropout(run)))
        for line in (*notes, preview(given.train, given.tokenizer)):
            log.say(line)
        record = _record(run, folder, log, given, found, started)
        fleet = _fleet(run, folder, given, log, stack)
        lengths = LengthState(run.rollout.lengths) if run.rollout.lengths else None
        session = Session(
            run,
            _feed(run, given, fleet.engines, record, stack),
            fleet,
            Controls(Coefficients(run.objective), Coefficients(run.reward_penalties), lengths, Best()),
            record,
            stop,
        )
        fleet.sync.check = lambda engine, version: session.probe(version, [engine])
        yield session


def _inputs(run: Run, stack: contextlib.ExitStack, notes: list[str]) -> Inputs:
    specs = run.scored_by
    scorer = Scorer(specs, on_error=run.on_reward_error, workers=max(1, (os.cpu_count() or 2) // 2))
    stack.callback(scorer.close)
    tokenizer = tokenizer_of(run)
    if run.model.path is not None:
        notes += generation_notes(run.model.path, tokenizer, run.sampling)
    train = load_prompts(run.data, "train", tokenizer, notes.append)
    test = first_of_each(load_prompts(run.data, "test", tokenizer, notes.append), run.eval.prompts)
    notes += filter(None, [overlap(train, test)])
    wrong = Findings()
    with wrong:
        scorer.check(list(train[0].columns))
        notes += self_test(specs, [*train, *test])
    with wrong:
        check_columns(run, train)
    with wrong:
        check_models(run, tokenizer)
    wrong.refuse()
    stored = StoredRows(run.data.stored, tokenizer, run.seed) if run.data.stored else None
    section = run.rollout.interrupt
    interrupt = None if section is None else Interruption(section, tokenizer, run.sampling.max_tokens)
    context = context_length(run, [*train, *test], run.model.path, stored.longest if stored else 0)
    notes += scorer.trial(train[0])
    return Inputs(tokenizer, train, test, scorer, stored, interrupt, context)


def _record(run: Run, folder: Path, log: RunLog, given: Inputs, found: Found, started: float) -> Record:
    return Record(
        RunFolder(folder),
        log,
        _checkpoints(run, folder),
        Cadence(run.checkpoint.every, run.checkpoint.seconds),
        PromptStatistics(given.train),
        Timeline(folder / "trace.json" if run.log.trace else None),
        Drift(run.log.drift),
        Alarms(),
        found,
        started,
    )


def seeded(run: Run) -> Sampling:
    """``sampling`` with the seed that makes a resumed run repeat its samples, unless the run has one of its own or wants none."""
    own_seeds = run.rollout.seeded and run.sampling.seed is None
    return dataclasses.replace(run.sampling, seed=run.seed) if own_seeds else run.sampling


def _fleet(run: Run, folder: Path, given: Inputs, log: RunLog, stack: contextlib.ExitStack) -> Fleet:
    path = start_model(run, folder, given.train, given.tokenizer, given.context, log.say)
    learners, engines = _workers(run, path, given.context, folder, log)
    stack.callback(learners.close)
    stack.callback(engines.close)
    return Fleet(learners, engines, WeightSync(learners, engines, run.rollout.pause))


def _feed(run: Run, given: Inputs, engines: EngineGroup, record: Record, stack: contextlib.ExitStack) -> Feed:
    sampling = seeded(run)
    collector = Collector(
        engines if given.interrupt is None else Interrupted(engines, given.interrupt),
        given.scorer,
        run.data.sampler.build(given.train, run.seed, record.statistics),
        record.statistics,
        run.rollout,
        sampling,
        Rules(run.data.drop, run.data.refill, run.data.admit),
        timeline=record.timeline,
        witness=record.drift.see,
    )
    stack.callback(collector.close)
    return Feed(given.tokenizer, given.train, given.test, given.scorer, collector, sampling, given.stored)


def _checkpoints(run: Run, folder: Path) -> Checkpoints:
    section = run.checkpoint
    limit = None if section.max_gib is None else int(section.max_gib * 2**30)
    return Checkpoints(folder / "checkpoints", section.keep, limit)


def _workers(
    run: Run, model_path: str, max_model_len: int, folder: Path, log: RunLog
) -> tuple[LearnerGroup, EngineGroup]:
    start = time.monotonic()
    trainer = (
        "torch"
        if run.deepspeed is None
        else f"DeepSpeed ZeRO-{run.deepspeed.get('zero_optimization', {}).get('stage', 0)}"
    )
    kind, cluster = run.rollout.kind, run.cluster
    log.say(
        f"Starting in this process: {kind.label} engine, {trainer} learner ..."
        if cluster is None
        else f"Starting on Ray: {cluster.engines} {kind.label} engine(s), {cluster.learners} {trainer} learner(s) ..."
    )
    learners, engines = start_workers(
        run.learner_setup(model_path),
        kind,
        run.engine_setup(model_path, max_model_len),
        cluster,
        folder,
        shares=run.shares_weights,
        report=log.say,
    )
    log.say(f"  ready in {time.monotonic() - start:.0f} s")
    for note in learners.ready["notes"]:
        log.say(note)
    return learners, engines


def quiet_libraries() -> None:
    """No progress bars and no advice from libraries between the rows of the table."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed says so on every import
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
