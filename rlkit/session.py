"""A run's parts, started in the order of their price and closed whatever happens.

Checks come first: the configuration by itself, rewards and data, the cluster, and only then models.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkit.checks import check, check_columns, context_length, generation_notes, self_test, stale, without_dropout
from rlkit.cluster.groups import EngineGroup, LearnerGroup
from rlkit.cluster.ray import connect
from rlkit.cluster.start import start as start_workers
from rlkit.cluster.sync import WeightSync, probe_parity
from rlkit.config import plain, to_yaml
from rlkit.data.prompts import first_of_each, load_prompts, overlap, preview
from rlkit.data.statistics import PromptStatistics
from rlkit.data.stored import StoredRows
from rlkit.files import Appender, replace_file, told
from rlkit.model.hub import model_config, require_model
from rlkit.model.load import examine, same_tokens
from rlkit.objective.coefficients import Coefficients
from rlkit.objective.oracle import dishonest, examine_all, refuse_nothing
from rlkit.record.alarms import Alarms
from rlkit.record.checkpoint import Cadence, Checkpoints
from rlkit.record.drift import Drift
from rlkit.record.log import RunLog, Timeline, environment, lock_folder, new_folder, newest_folder
from rlkit.record.masking import mask_values
from rlkit.record.output import require_folder
from rlkit.resume import Changes, compare
from rlkit.rewards import Scorer
from rlkit.rollout.collector import Collector, Group, Rules
from rlkit.rollout.interrupt import Interrupted, Interruption
from rlkit.rollout.lengths import LengthState
from rlkit.run import Run
from rlkit.start import start_model, tokenizer_of
from rlkit.stopping import Best, Stopper
from rlkit.types import Prompt, Sampling

FIRST_TRAIN = (
    "Give a model folder or a hub name, or train one first, e.g. rlkit train configs/algorithms/grpo.yaml, which leaves "
    "runs/grpo/final."
)


@dataclass
class Parts:
    """Everything that :func:`rlkit.trainer.train` drives."""

    run: Run
    folder: Path
    log: RunLog
    tokenizer: Any
    train_prompts: list[Prompt]
    test_prompts: list[Prompt]
    scorer: Scorer
    learners: LearnerGroup
    engines: EngineGroup
    sync: WeightSync
    collector: Collector
    statistics: PromptStatistics
    terms: Coefficients
    penalties: Coefficients
    checkpoints: Checkpoints
    found: Found
    stop: Stopper
    sampling: Sampling
    started: float  # time.monotonic() when the run began
    lengths: LengthState | None
    stored: StoredRows | None
    correct: str  # the reward that says whether a response is right: the first one
    timeline: Timeline
    drift: Drift
    alarms: Alarms
    cadence: Cadence
    best: Best
    new_score: float | None = None  # the last held-out score, until a step has reported it
    state: State | None = None  # of the last finished step: what a checkpoint holds beside the learners' part


@dataclass(frozen=True)
class State:
    """What the driver puts in a checkpoint, taken between two steps."""

    step: int
    driver: dict[str, Any]
    statistics: PromptStatistics
    in_flight: tuple[Group, ...]  # those that finish until it is written are stored with their responses


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


def record(run: Run, folder: Path, found: Found) -> None:
    """Writes down what the run is: ``config.yaml``, and a line of ``environment.jsonl`` for every start, with what it changed."""
    replace_file(folder / "config.yaml", to_yaml(mask_values(plain(run))))
    stamp = environment()
    if found.resume:
        stamp |= {"from_step": found.step, "changed": mask_values({k: list(v) for k, v in found.changes.items()})}
    starts = Appender(folder / "environment.jsonl")
    starts.add(json.dumps(stamp) + "\n")
    if starts.error is not None:
        raise starts.error


@contextlib.contextmanager
def build(run: Run, *, resume: bool = False, quiet: bool = False, stop: Stopper | None = None) -> Iterator[Parts]:
    """All parts of a run; closes them at the end, whatever happens.

    With ``resume`` nothing on disk changes here: :func:`rlkit.trainer.restore` writes when the checkpoint has been loaded.
    """
    started = time.monotonic()
    quiet_libraries()
    stop = stop or Stopper()
    check(run)
    if run.model.path is not None:
        require_model(run.model.path, "model.path")
        model_config(str(run.model.path), "model.path")
    findings = examine_all(run.objective, run.reward_penalties)
    refuse_nothing(findings, run.off_policy)
    need = run.needs
    found = Found(resume)
    if not resume:
        require_folder(Path(run.out) / run.name, "out")
    with contextlib.ExitStack() as stack:
        if resume:
            folder = newest_folder(run.folder)
            stack.callback(lock_folder(folder).release)
            changes = compare(folder, run)
            found = Found(True, *_checkpoints(run, folder).newest_whole(), changes)
        specs = run.scored_by
        scorer = Scorer(specs, on_error=run.on_reward_error, workers=max(1, (os.cpu_count() or 2) // 2))
        stack.callback(scorer.close)
        # Everything that can be wrong is found before the run folder is made: a run that cannot start leaves nothing behind.
        tokenizer = tokenizer_of(run)
        notes = [] if run.model.path is None else generation_notes(run.model.path, tokenizer, run.sampling)
        train_prompts = load_prompts(run.data, "train", tokenizer, notes.append)
        test_prompts = first_of_each(load_prompts(run.data, "test", tokenizer, notes.append), run.eval.prompts)
        notes += filter(None, [overlap(train_prompts, test_prompts)])
        scorer.check(list(train_prompts[0].columns))
        notes += self_test(specs, [*train_prompts, *test_prompts])
        check_columns(run, train_prompts)
        rows = StoredRows(run.data.stored, tokenizer, run.seed) if run.data.stored else None
        interrupt = (
            Interruption(run.rollout.interrupt, tokenizer, run.sampling.max_tokens) if run.rollout.interrupt else None
        )
        for anchor, where, spec in (("ref", "reference", run.reference), ("teacher", "teacher", run.teacher)):
            if need & {anchor, f"{anchor}_full"}:
                for path in () if spec is None else spec.models:
                    require_model(path, f"{where}.path", FIRST_TRAIN)
                    model_config(path, f"{where}.path", FIRST_TRAIN)
                    examine(path, f"{where}.path")
                    same_tokens(path, f"{where}.path", tokenizer)
        if run.critic is not None and run.critic.path is not None:
            examine(run.critic.path, "critic.path")
            same_tokens(run.critic.path, "critic.path", tokenizer)
        if run.model.path is not None:
            examine(run.model.path)
        context = context_length(run, [*train_prompts, *test_prompts], run.model.path, rows.longest if rows else 0)
        notes += scorer.trial(train_prompts[0])
        if run.cluster is not None:
            connect(run.cluster, say=notes.append)
            stop.install()  # Ray has set handlers of its own
        if not resume:
            folder, lock = new_folder(run.folder)
            stack.callback(lock.release)
            with told("the run folder"):
                record(run, folder, found)
        log = RunLog(run.log, run.steps, folder, quiet)
        stack.callback(log.close)
        log.say(f"rlkit: {run.name}, {run.steps} steps, in {folder}" + (f", from step {found.step}" if resume else ""))
        scorer.report = log.say
        for finding in dishonest(findings, run.off_policy):
            notes.append(f"note: {finding.sentence} (rlkit check; acknowledge: true silences this)")
        for warning in (stale(run), without_dropout(run)):
            if warning is not None:
                notes.append(warning)
        for line in (*notes, preview(train_prompts, tokenizer)):
            log.say(line)
        model_path = start_model(run, folder, train_prompts, tokenizer, context, log.say)
        own_seeds = run.rollout.seeded and run.sampling.seed is None
        sampling = dataclasses.replace(run.sampling, seed=run.seed) if own_seeds else run.sampling
        learners, engines = _workers(run, model_path, context, folder, log)
        stack.callback(learners.close)
        stack.callback(engines.close)
        statistics = PromptStatistics(train_prompts)
        timeline = Timeline(folder / "trace.json" if run.log.trace else None)
        sampler = run.data.sampler.build(train_prompts, run.seed, statistics)
        drift = Drift(run.log.drift)
        collector = Collector(
            engines if interrupt is None else Interrupted(engines, interrupt),
            scorer,
            sampler,
            statistics,
            run.rollout,
            sampling,
            Rules(run.data.drop, run.data.refill, run.data.admit),
            timeline=timeline,
            witness=drift.see,
        )
        stack.callback(collector.close)
        yield Parts(
            run,
            folder,
            log,
            tokenizer,
            train_prompts,
            test_prompts,
            scorer,
            learners,
            engines,
            WeightSync(
                learners,
                engines,
                run.rollout.pause,
                lambda engine, version: probe_parity(
                    learners, engines, train_prompts[:2], sampling, run.probe_tolerance, version, [engine]
                ),
            ),
            collector,
            statistics,
            Coefficients(run.objective),
            Coefficients(run.reward_penalties),
            _checkpoints(run, folder),
            found,
            stop,
            sampling,
            started,
            LengthState(run.rollout.lengths) if run.rollout.lengths else None,
            rows,
            specs[0].label,
            timeline,
            drift,
            Alarms(),
            Cadence(run.checkpoint.every, run.checkpoint.seconds),
            Best(),
        )


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
