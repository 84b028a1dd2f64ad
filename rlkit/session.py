"""A run's parts, started in the order of their price and closed whatever happens.

Checks come first: the configuration by itself, rewards and data (:mod:`rlkit.inputs`), the cluster, and only then models.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkit.checks import check_configuration, what_to_know
from rlkit.cluster.groups import EngineGroup, LearnerGroup
from rlkit.cluster.pool import Asked
from rlkit.cluster.ray import Crew, connect, show_folder
from rlkit.cluster.start import begin_beside, beside, crew_of, route
from rlkit.cluster.start import start as start_workers
from rlkit.cluster.sync import WeightSync, probe_parity
from rlkit.config import plain, to_yaml
from rlkit.data.curriculum import NoPrompts
from rlkit.data.examples import ExampleRows
from rlkit.data.render import Renderer
from rlkit.data.statistics import PromptStatistics
from rlkit.data.stored import Drawn
from rlkit.files import Appender, replace_file, told
from rlkit.inputs import Inputs, read_inputs
from rlkit.model.endings import Endings
from rlkit.objective.coefficients import Coefficients
from rlkit.objective.full_vocab import told_apart
from rlkit.precompute import compute, known, with_outputs
from rlkit.record.alarms import Alarms
from rlkit.record.checkpoint import Cadence, Checkpoints
from rlkit.record.drift import Drift
from rlkit.record.log import SAMPLED, RunLog, Timeline, environment, new_folder
from rlkit.record.log import given as given_table
from rlkit.record.masking import mask_values
from rlkit.record.results import HeldOut, RunFolder
from rlkit.resume import Found, continued
from rlkit.rewards import Scorer
from rlkit.rollout.collector import Collector, Group, Rules
from rlkit.rollout.engine import Generates, Scores
from rlkit.rollout.interrupt import Interrupted
from rlkit.rollout.lengths import LengthState
from rlkit.rollout.player import Played, Player, Stage
from rlkit.rollout.pool import Pool
from rlkit.rollout.server import Serve
from rlkit.rollout.taught import Taught
from rlkit.run import Run
from rlkit.start import start_model
from rlkit.stopping import Best, Stopper
from rlkit.types import SOURCES, Batch, Prompt, Rollout, Sampling, Stats


@dataclass
class Feed:
    """Where rollouts come from: prompts, how they are sampled, and what scores the responses; and rows that are there already.

    Attributes:
        drawn: rows that join every batch. examples: those of them that somebody else wrote. held_out: such rows that are only measured.
        known: anchors whose outputs on these rows are kept, and nothing else is compared with them.
        engine, scores: who is asked for responses and who scores them: engines and rewards, or the player of episodes for both.
    """

    tokenizer: Any
    train: list[Prompt]
    test: list[Prompt]
    scorer: Scorer
    collector: Collector
    sampling: Sampling
    drawn: tuple[Drawn, ...]
    examples: tuple[ExampleRows, ...]
    held_out: tuple[ExampleRows, ...]
    known: frozenset[str]
    engine: Generates
    scores: Scores
    player: Player | None = None
    taught: Taught | None = None  # where the teacher answers some prompts


@dataclass
class Fleet:
    """What computes: learners, engines, the sync of weights from the first to the second, and teachers in engines of their own."""

    learners: LearnerGroup
    engines: EngineGroup
    sync: WeightSync
    start: str  # the model that training starts from
    pools: dict[str, Asked] = field(default_factory=dict)  # by anchor

    def annotate(self, b: Batch, which: Sequence[str]) -> Batch:
        """The batch with log-probs (``old``, ``ref``, ``teacher``), values, and most likely tokens (``teacher_full``)."""
        for pool in self.pools.values():
            b = pool.annotate(b, which)
        rest = [name for name in which if not any(pool.answers(name) for pool in self.pools.values())]
        return self.learners.annotate(b, rest)

    def forget(self, anchor: str) -> None:
        """Lets go of a reference or teacher that nothing asks for any more."""
        self.learners.forget(anchor)
        if anchor in self.pools:
            self.pools.pop(anchor).engines.close()


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

    def batch(self, rollouts: Sequence[Rollout]) -> Batch:
        """The batch of these responses, with the log-probs that terms read before the update."""
        run, fleet = self.run, self.fleet
        passes = [name for name in run.passes if name.removesuffix("_full") not in self.feed.known]
        b = Batch.from_rollouts(rollouts, run.columns, run.parts)
        b = fleet.annotate(known(b, rollouts, {a: told_apart(run.objective, a) for a in self.feed.known}), passes)
        labelled = [r for r in rollouts if r.source == "labelled"]
        if "mismatched" in run.needs and labelled:
            others = [
                dataclasses.replace(r, prompt=p.prompt)
                for p, r in zip(labelled, labelled[1:] + labelled[:1], strict=True)
            ]
            other = fleet.annotate(Batch.from_rollouts(others), ("old", "ref"))
            found = b.reward.new_zeros(b.S)
            found[b.source == SOURCES.index("labelled")] = other.seq_sum(other.logp["old"] - other.logp["ref"])
            b = b.replace(cols={**b.cols, "mismatched": found})
        return b

    def sampled(self) -> list[Rollout]:
        """A few responses to look at; where nothing is sampled, rows of the data."""
        if not self.run.online:
            return [r for rows in self.feed.drawn for r in rows.draw(0, 0)][:4]
        return [r for p in self.feed.train[:2] for r in self.fleet.engines.generate(p, 2, self.feed.sampling)]

    def probe(self, version: int, engines: Sequence[int] | None = None) -> Stats:
        """Holds the engines' log-probs (all of them, or those named) against the learners', after the publication of ``version``."""
        if not self.fleet.engines.size:
            return Stats()
        prompts = self.feed.train[:2] or self.feed.test[:2]
        learners, tolerance = self.fleet.learners, self.run.probe_tolerance
        return probe_parity(learners, self.fleet.engines, prompts, self.feed.sampling, tolerance, version, engines)


@dataclass(frozen=True)
class State:
    """What the driver puts in a checkpoint, taken between two steps."""

    step: int
    driver: dict[str, Any]
    statistics: PromptStatistics
    in_flight: tuple[Group, ...]  # those that finish until it is written are stored with their responses


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
def rare_collections() -> Iterator[None]:
    """Inside, Python looks for cyclic garbage less often, as suits a driver whose learners are elsewhere.

    It looks at every element of every young list, and responses are lists of numbers: that took as long as to receive them.
    """
    usual = gc.get_threshold()
    gc.set_threshold(max(50_000, usual[0]), *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


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
    found, notes, crew = Found(resume), list[str](), None
    with contextlib.ExitStack() as stack:
        if resume:
            folder, found = continued(run, stack)
        # Everything that can be wrong is found before the run folder is made: a run that cannot start leaves nothing behind.
        given = read_inputs(run, stack, notes)
        if run.cluster is not None:
            stack.enter_context(rare_collections())
            pools = [
                beside(run.cluster, spec.engines, spec.tensor_parallel, spec.gpus)
                for _, _, spec in run.anchors
                if isinstance(spec, Pool) and not (spec.kept is not None and Path(spec.kept).exists())
            ]
            pools += [beside(run.cluster, 1, 1, r.share) for r in run.scored_by if r.share is not None]
            connect(run.cluster, say=notes.append, engines=None if run.engine is not None else 0, beside=pools)
            stop.install()  # Ray has set handlers of its own
            crew = crew_of(run.engine, run.cluster, run.deepspeed is not None)
            stack.callback(crew.close)
        notes += given.try_rewards()
        if not resume:
            folder, lock = new_folder(run.folder)
            stack.callback(lock.release)
            with told("the run folder"):
                write_down(run, folder, found)
        table = SAMPLED if run.online else given_table(next((t.name for t in run.objective if t.pairwise), None))
        log = RunLog(run.log, run.steps, folder, quiet, table)
        stack.callback(log.close)
        if run.cluster is not None:
            show_folder(folder, log.say)
        log.say(f"rlkit: {run.name}, {run.steps} steps, in {folder}" + (f", from step {found.step}" if resume else ""))
        given.scorer.report = log.say
        for line in (*notes, *what_to_know(run, findings), *given.shown()):
            log.say(line)
        record = _record(run, folder, log, given, found, started)
        fleet, given = _fleet(run, folder, given, crew, log, stack)
        lengths = LengthState(run.rollout.lengths) if run.rollout.lengths and run.online else None
        session = Session(
            run,
            _feed(run, given, fleet, record, stack),
            fleet,
            Controls(Coefficients(run.objective), Coefficients(run.reward_penalties), lengths, Best()),
            record,
            stop,
        )
        fleet.sync.check = lambda engine, version: session.probe(version, [engine])
        yield session


def _record(run: Run, folder: Path, log: RunLog, given: Inputs, found: Found, started: float) -> Record:
    return Record(
        RunFolder(folder),
        log,
        Checkpoints.of(run.checkpoint, folder),
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


def _fleet(
    run: Run, folder: Path, given: Inputs, crew: Crew | None, log: RunLog, stack: contextlib.ExitStack
) -> tuple[Fleet, Inputs]:
    """What computes; and the rows of data, with what reference and teacher say of them where that is kept."""
    path = start_model(run, folder, given.train, given.tokenizer, given.context, log.say)
    files = [(kept, kept.read()) for kept in given.kept(run, path)]
    # Until the first update the model that is trained is the reference, unless that is another one or an adapter is in between.
    by_policy = run.reference is not None and run.reference.is_start and run.peft is None
    needs = run.needs
    for kept, found in files:
        if found is not None or (by_policy and kept.anchor == "ref" and not kept.k):
            needs -= {kept.anchor, f"{kept.anchor}_full"}
    pools, waits = _pools(run, path, needs, given.context, log, stack)
    learners, engines = _workers(run, path, needs, given.context, folder, crew, log)
    stack.callback(learners.close)
    stack.callback(engines.close)
    for wait in waits:
        wait()
    way = route(run.engine, run.cluster)
    sync = WeightSync(learners, engines, run.rollout.pause, route=way)
    fleet = Fleet(learners, engines, sync, path, pools)
    sets = (*given.examples, *given.held_out)
    for kept, found in files:
        if found is None:
            log.say(
                f"  log-probs of the {kept.section} on {sum(len(s.rows) for s in sets)} rows are computed and kept in {kept.path}"
            )
            own = needs & {kept.anchor, f"{kept.anchor}_full"}
            found = compute(fleet.annotate, kept, sets, kept.anchor if own else "old")
            fleet.forget(kept.anchor)
        sets = with_outputs(sets, kept.anchor, found)
    n = len(given.examples)
    given = dataclasses.replace(given, examples=sets[:n], held_out=sets[n:])
    return fleet, given


def _pools(
    run: Run, path: str, needs: frozenset[str], context: int, log: RunLog, stack: contextlib.ExitStack
) -> tuple[dict[str, Asked], list[Callable[[], None]]]:
    """The engines of a reference or teacher that has some of its own, and what waits for each until it answers."""
    found, waits = dict[str, Asked](), list[Callable[[], None]]()
    for section, anchor, spec in run.anchors:
        answers = anchor == "teacher" and bool(run.rollout.by_teacher)
        if not isinstance(spec, Pool) or not (answers or needs & {anchor, f"{anchor}_full"}):
            continue
        log.say(f"  {section}: {spec.engines} {spec.kind.label} engine(s) with {spec.path} ...")
        k = None if spec.whole else min(told_apart(run.objective, anchor), spec.classes)
        own = run.engine_setup(path, context)
        engines, wait = begin_beside(
            spec.kind,
            spec.setup(own, k or 0),
            None if run.cluster is None else beside(run.cluster, spec.engines, spec.tensor_parallel, spec.gpus),
            log.say,
        )
        stack.callback(engines.close)
        found[anchor] = Asked(anchor, engines, k)
        waits.append(wait)
    return found, waits


def player_of(
    run: Run,
    played: Played,
    tokenizer: Any,
    model: str,
    engine: Generates,
    scorer: Scorer,
    limit: int,
    report: Callable[[str], None],
) -> Player:
    """Who plays a run's episodes. ``model``: the folder or name whose generation settings end an answer; ``limit``: tokens of a context."""
    assert run.rollout.episode is not None
    endings, render = Endings.of(model, tokenizer), Renderer.of(run.data, tokenizer)
    return Player(
        run.rollout.episode,
        played,
        Stage(engine=engine, tokenizer=tokenizer, endings=endings, render=render, limit=limit),
        scorer,
        required=not run.scored_by,
        on_error=run.on_reward_error,
        serve=run.rollout.serve if isinstance(run.rollout.serve, Serve) else None,
        report=report,
    )


def _feed(run: Run, given: Inputs, fleet: Fleet, record: Record, stack: contextlib.ExitStack) -> Feed:
    sampling, engines, player, taught = seeded(run), fleet.engines, None, None

    def answering(group: EngineGroup) -> Generates:
        return group if given.interrupt is None else Interrupted(group, given.interrupt)

    engine = answering(engines)
    if run.rollout.by_teacher:
        teacher = answering(fleet.pools["teacher"].engines)
        engine = taught = Taught(engine, teacher, run.rollout.share_of_teacher)
    scores: Scores = given.scorer
    if given.played is not None:
        player = player_of(
            run, given.played, given.tokenizer, fleet.start, engines, given.scorer, given.context, record.log.say
        )
        engine = scores = player
        stack.callback(player.close)
    collector = Collector(
        engine,
        scores,
        run.data.sampler.build(given.train, run.seed, record.statistics) if run.online else NoPrompts(),
        record.statistics,
        run.rollout,
        sampling,
        Rules(run.data.drop, run.data.refill, run.data.admit),
        timeline=record.timeline,
        witness=record.drift.see,
    )
    stack.callback(collector.close)
    return Feed(
        given.tokenizer,
        given.train,
        given.test,
        given.scorer,
        collector,
        sampling,
        given.examples if given.stored is None else (*given.examples, given.stored),
        given.examples,
        given.held_out,
        frozenset(name for rows in given.examples for name in rows.known),
        engines if player is None else player,
        scores,
        player,
        taught,
    )


def _workers(
    run: Run,
    model_path: str,
    needs: frozenset[str],
    max_model_len: int,
    folder: Path,
    crew: Crew | None,
    log: RunLog,
) -> tuple[LearnerGroup, EngineGroup]:
    start = time.monotonic()
    trainer = (
        "torch"
        if run.deepspeed is None
        else f"DeepSpeed ZeRO-{run.deepspeed.get('zero_optimization', {}).get('stage', 0)}"
    )
    kind, cluster = run.engine, run.cluster
    label = None if kind is None else f"{kind.label} engine"
    log.say(
        f"Starting in this process: {label or 'no engine'}, {trainer} learner ..."
        if cluster is None
        else f"Starting on Ray: {f'{cluster.engines} {label}(s)' if label else 'no engine'}, {cluster.learners} {trainer} learner(s) ..."
    )
    learners, engines = start_workers(
        run.learner_setup(model_path, needs),
        kind,
        run.engine_setup(model_path, max_model_len),
        cluster,
        folder,
        crew=crew,
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
