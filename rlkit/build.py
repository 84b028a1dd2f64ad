"""From a configuration to the parts of a running program: the only place that knows whether a run is local or on Ray.

Checks come first, in the order of their price: the configuration by itself, rewards and data, the cluster, and only then models.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkit.cluster.groups import EngineGroup, LearnerGroup, LocalWorkers
from rlkit.cluster.sync import WeightSync, probe_parity
from rlkit.config import locate, plain, to_yaml
from rlkit.data.curriculum import ZeroVariance
from rlkit.data.prompts import load_prompts, overlap, preview
from rlkit.data.statistics import PromptStatistics
from rlkit.data.stored import StoredRows
from rlkit.errors import ConfigError, InputError
from rlkit.files import Appender, replace_file, sync_tree, told
from rlkit.learner.backend import check_deepspeed_options
from rlkit.model.endings import Endings
from rlkit.model.generation import eos_tokens, load_settings, settled
from rlkit.model.hub import require_model
from rlkit.model.load import examine, load_tokenizer, same_tokens
from rlkit.model.reference import Frozen, Served, Tempered
from rlkit.model.tiny import make_tiny, make_tokenizer
from rlkit.objective.advantages import is_group
from rlkit.objective.coefficients import Coefficients
from rlkit.objective.oracle import dishonest, examine_all, refuse_nothing
from rlkit.record.alarms import Alarms
from rlkit.record.checkpoint import Cadence, Checkpoints
from rlkit.record.drift import Drift
from rlkit.record.log import RunLog, Timeline, environment, lock_folder, new_folder, newest_folder
from rlkit.record.masking import mask_values
from rlkit.record.output import require_folder
from rlkit.resume import Changes, compare
from rlkit.rewards import RewardSpec, Scorer
from rlkit.rollout.collector import Collector, Group
from rlkit.rollout.interrupt import Interruption
from rlkit.rollout.lengths import LengthState
from rlkit.run import Run
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


def check(run: Run) -> None:
    """Impossible combinations that single sections cannot see, before anything is loaded.

    Raises:
        ConfigError: every reason with its remedy, one a line.
    """
    found = [sentence for one in CHECKS for sentence in one(run)]
    if found:
        raise ConfigError("\n".join(found))


def _stored_rows(run: Run) -> Iterator[str]:
    stored = [t for t in run.objective if t.on == "reference"]
    if stored and run.data.stored is None:
        yield (
            f"{stored[0].name} reads stored rows of the reference (on: reference), but data.stored is not set. Make them "
            "with: rlkit filter CONFIG --model MODEL --low 1 --out kept.jsonl --responses stored.jsonl, then data.stored: "
            "{path: stored.jsonl}."
        )
    strange = [n for t in stored for n in t.needs if n not in ("ref", "behav", "old", "entropy")]
    if strange:
        yield f"{stored[0].name} needs {strange[0]!r}, which stored rows do not have; they have ref, behav, old and entropy."


def _anchors(run: Run) -> Iterator[str]:
    parts: tuple[Any, ...] = (*(t for t in run.objective if t.on != "reference"), *run.reward_penalties, run.advantage)
    for anchor, spec, remedy in (
        ("ref", run.reference, "reference: {type: Frozen}"),
        ("teacher", run.teacher, "teacher: {type: Frozen, path: FOLDER_OR_HUB_NAME}"),
    ):
        users = ", ".join(type(t).__name__ for t in parts if t.needs & {anchor, f"{anchor}_full"})
        if users and spec is None:
            yield (
                f"{users} compares with anchor {anchor!r}, but {remedy.split(':')[0]} is null. Set {remedy}, or use another "
                "anchor."
            )
    if isinstance(run.teacher, Frozen) and run.teacher.path is None and run.needs & {"teacher", "teacher_full"}:
        yield "teacher has no `path`: it would be the model that training starts from, which is anchor: ref."


def _whole_distributions(run: Run) -> Iterator[str]:
    need = run.needs
    if need & {"ref_full", "teacher_full"} and (run.sampling.top_p < 1 or run.sampling.top_k):
        yield (
            "FullDivergence compares whole distributions, but sampling.top_p or sampling.top_k cuts them: where one is zero "
            "and the other is not, the divergence is infinite. Set sampling.top_p: 1.0 and sampling.top_k: 0."
        )
    for section, anchor, spec in (("reference", "ref_full", run.reference), ("teacher", "teacher_full", run.teacher)):
        if anchor in need and isinstance(spec, Served | Tempered):
            yield (
                f"FullDivergence needs the whole distributions of {section}, which type: {type(spec).__name__} does not give. "
                "Use type: Frozen, or a sampled Divergence."
            )


def _values(run: Run) -> Iterator[str]:
    need = run.needs
    if run.critic is not None and "value" not in need:
        yield "critic is set, but nothing needs values: set advantage: {type: GAE} and add {type: ValueMSE} to the objective."
    if "value" in run.advantage.needs and "returns" not in need:
        yield (
            f"advantage {type(run.advantage).__name__} needs a value function, but nothing trains it: add {{type: ValueMSE, "
            "coef: 0.5} to the objective."
        )
    if "returns" in need and "value" not in run.advantage.needs:
        yield "ValueMSE trains a value function that nothing uses: set advantage: {type: GAE}."


def _batches(run: Run) -> Iterator[str]:
    if run.learner.minibatches > run.rollout.prompts:
        yield (
            f"learner.minibatches is {run.learner.minibatches}, but a step has only {run.rollout.prompts} prompt groups "
            "(rollout.prompts), which are never split. Lower it, or raise rollout.prompts."
        )
    if is_group(run.advantage) and run.rollout.n < 2:
        yield (
            f"advantage {type(run.advantage).__name__} compares the responses of one prompt, but rollout.n is "
            f"{run.rollout.n}. Set rollout.n to 2 or more, or use advantage: Plain, ReinforcePlusPlus or GAE."
        )


def _sampling(run: Run) -> Iterator[str]:
    if run.rollout.interrupt is not None and run.rollout.lengths is not None:
        yield "rollout.interrupt and rollout.lengths both decide when a response ends: use one of them."
    if run.sampling.temperature == 0:
        yield "sampling.temperature is 0: greedy responses of one prompt are all equal and teach nothing. Use 1.0."
    if run.cluster is None and run.rollout.max_lag and run.rollout.engine == "hf":
        yield "rollout.max_lag above 0 needs an engine of its own to overlap with: set cluster: {} or rollout.engine: vllm."


def _ranks(run: Run) -> Iterator[str]:
    if run.cluster is None or run.cluster.learners == 1:
        return
    if run.deepspeed is None:
        yield (
            f"cluster.learners is {run.cluster.learners}, but deepspeed is null: several ranks need DeepSpeed. Add "
            "deepspeed: {zero_optimization: {stage: 1}}."
        )
    if any(t.whole_groups for t in run.objective):
        yield "a term compares the responses of a prompt (REBEL): it needs cluster.learners: 1."


def _precision(run: Run) -> Iterator[str]:
    if run.model.dtype == "bfloat16" and run.deepspeed is None:
        yield (
            "model.dtype: bfloat16 needs DeepSpeed, which keeps float32 master weights. Add deepspeed: "
            "{zero_optimization: {stage: 1}}, or set model.dtype: float32."
        )
    if run.deepspeed is None:
        return
    zero = run.deepspeed.get("zero_optimization", {})
    stage = zero.get("stage", 0) if isinstance(zero, dict) else None
    if stage not in (0, 1, 2, 3):
        yield f"deepspeed.zero_optimization is {zero!r:.100}; it must be a mapping with stage 0, 1, 2 or 3."
    elif run.model.dtype == "bfloat16" and not stage:
        yield (
            "model.dtype: bfloat16 needs deepspeed.zero_optimization.stage 1, 2 or 3: DeepSpeed refuses float32 gradient sums "
            "under stage 0."
        )
    try:
        check_deepspeed_options(run.deepspeed)
    except InputError as error:
        yield str(error)


def _rewards(run: Run) -> Iterator[str]:
    if run.model.warm_up is not None and run.data.task is None:
        yield "model.warm_up learns from a task's demonstrations, but data has no `task`."
    if not run.rewards and run.data.task is None:
        yield "rewards is empty. Name a reward, e.g. rewards: [math] or rewards: [my_file.py:my_reward]."
    try:
        names = [r.label for r in run.scored_by]
    except InputError as error:
        yield str(error)
        return
    for rule in run.data.drop:
        if isinstance(rule, ZeroVariance) and rule.of is not None and rule.of.split("/")[0] not in names:
            yield (
                f"data.drop: ZeroVariance looks at the reward {rule.of!r}, but the rewards are {', '.join(names)}. Name one "
                "of them in `of`, or give a reward that name (name: ...)."
            )


CHECKS = (
    _stored_rows,
    _anchors,
    _whole_distributions,
    _values,
    _batches,
    _sampling,
    _ranks,
    _precision,
    _rewards,
)


def stale(run: Run) -> str | None:
    """A warning for samples of two or more versions ago that nothing corrects: the ratio to ``old`` does not see their age."""
    section = run.rollout
    lag = section.max_lag + (math.ceil(section.over) + section.overtake if section.over else 0)
    blind = [t.name for t in run.objective if "adv" in t.needs and "behav" not in t.needs]
    if lag < 2 or run.correction is not None or not blind:
        return None
    return (
        f"warning: tokens may be {lag} steps old when they are trained on (rollout.max_lag: {section.max_lag}, over: {section.over:g}), "
        f"and {', '.join(blind)} does not see their age: it compares with the learner's own log-probs. Set correction: {{type: "
        "TruncatedIS}, a loss against the engine's log-probs (CISPO, DPPO, ISGradient), or a lag of at most 1."
    )


def without_dropout(run: Run) -> str | None:
    """A note for an adapter that asks for dropout."""
    share = (run.peft or {}).get("lora_dropout", 0)
    if not share:
        return None
    return (
        f"note: peft.lora_dropout is {share}, but rlkit trains without dropout: the log-probs before and after an update must be of one "
        "network, or every importance ratio is wrong. Leave it out."
    )


def first_of_each(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """The first ``n`` prompts of each data set."""
    seen: Counter[Any] = Counter()
    kept = []
    for p in prompts:
        seen[p.columns.get("dataset")] += 1
        if seen[p.columns.get("dataset")] <= n:
            kept.append(p)
    return kept


def prepare_model(run: Run, folder: Path, prompts: Sequence[Prompt], tokenizer: Any, context: int, log: RunLog) -> str:
    """The path of the model to start from; makes and warms it up where the configuration says so."""
    if run.model.path is not None and run.model.warm_up is None:
        return run.model.path
    path = folder / "start"
    if (path / "done").exists():
        return str(path)
    task = run.data.task
    if run.model.make is not None:
        m = run.model.make
        make_tiny(
            path,
            run.alphabet,
            family=m.family,
            hidden=m.hidden,
            layers=m.layers,
            heads=m.heads,
            kv_heads=m.kv_heads,
            max_length=max(512, context),
            seed=run.seed,
        )
    else:
        from transformers import AutoModelForCausalLM

        start = AutoModelForCausalLM.from_pretrained(str(run.model.path))
        settings = load_settings(str(run.model.path))
        start.generation_config, _ = settled(settings, eos_tokens(settings))
        start.save_pretrained(path)
        tokenizer.save_pretrained(path)
    if run.model.warm_up is not None and task is not None:
        from rlkit.learner.warm_up import warm_up

        began, total = time.monotonic(), run.model.warm_up.steps

        def report(step: int, loss: float) -> None:
            if step % max(1, total // 4) == 0:
                log.say(f"  warm-up step {step}/{total}: loss {loss:.3f} nats per token")

        log.say(f"Supervised warm-up on {len(prompts)} demonstrations:")
        warm_up(
            path,
            run.model.warm_up,
            prompts,
            lambda p, rng: task.demonstration({**p.columns, "answer": p.answer}, rng),
            tokenizer,
            run.seed,
            report,
        )
        log.say(f"  done in {time.monotonic() - began:.0f} s")
    sync_tree(path)
    (path / "done").touch()
    return str(path)


def generation_notes(path: str, tokenizer: Any, sampling: Sampling) -> list[str]:
    """What should be known of a model's generation settings before it is trained; raises ModelError for unusable ones."""
    ends = Endings.of(path, tokenizer).ids
    _, changed = settled(load_settings(path), ends)
    notes = (
        [f"note: {path}: generation settings: {'; '.join(changed)} (in the trained model's file)."] if changed else []
    )
    if not ends and not sampling.stop:
        notes.append(
            f"warning: {path} names no EOS token: nothing but sampling.max_tokens ends a response. Set eos_token in its "
            "tokenizer_config.json, or sampling.stop."
        )
    return notes


def self_test(specs: Sequence[RewardSpec], prompts: Sequence[Prompt]) -> list[str]:
    """What the reward ``math`` says of reference answers that it would not accept from a model: such rows can only teach wrongly."""
    spec = next((s for s in specs if s.is_math), None)
    if spec is None:
        return []
    from rlkit.verifier.verify import gold_against_itself

    rows = [{"id": p.id, "answer": p.answer} for p in prompts if p.answer is not None]
    bad = gold_against_itself(rows, **{k: v for k, v in spec.args.items() if k in ("mode", "extract")})
    if not bad:
        return []
    found = ", ".join(f"{b['id']} ({str(b['answer'])[:40]!r}: {b['reason']})" for b in bad[:5])
    return [
        f"warning: {len({b['id'] for b in bad})} of {len(rows)} reference answers are not accepted by the reward `math` when a model "
        f"gives them: {found}{', ...' if len(bad) > 5 else ''}. Correct or remove these rows."
    ]


def model_config(path: str, where: str, remedy: str = "") -> Any:
    """The configuration of a model folder or hub name, which costs next to nothing; raises ValueError if there is none."""
    from transformers import AutoConfig

    require_model(path, where, remedy=remedy)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # whatever transformers makes of somebody's file
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if "trust_remote_code" in str(error):
            said = "it needs code of its own, which rlkit does not execute. Use a model that transformers knows."
        raise ConfigError(f"{where}: {path!r} is not a model: {said} {remedy}".rstrip()) from error


def check_columns(run: Run, prompts: Sequence[Prompt]) -> None:
    """Raises ValueError for a prompt without a number in a column that some term reads."""

    def is_number(x: Any) -> bool:
        try:
            return math.isfinite(float(x))
        except (TypeError, ValueError):
            return False

    for name in run.columns:
        bad = [p for p in prompts if not is_number(p.columns.get(name))]
        if bad:
            parts: tuple[Any, ...] = (*run.objective, run.advantage, *run.reward_penalties)
            users = ", ".join(type(t).__name__ for t in parts if f"col:{name}" in t.needs)
            make = (
                "Make it with: rlkit filter CONFIG --model MODEL --soft-value 0.5 --out rows.jsonl, then data.train: rows.jsonl."
                if name == "v_star"
                else "Add it to the data."
            )
            raise ConfigError(
                f"{users} reads the column {name!r}, but {len(bad)} of {len(prompts)} prompts have no number there (the "
                f"first: {bad[0].id}). {make}"
            )


def context_length(run: Run, prompts: Sequence[Prompt], model: str | None, at_least: int = 0) -> int:
    """Room for the longest prompt and its response (``at_least`` tokens); ``model`` must offer that much (None: it is made to measure).

    Raises:
        ValueError: the longest prompt and its response do not fit.
    """
    longest = max(prompts, key=lambda p: len(p.token_ids))
    response = run.sampling.max_tokens if run.rollout.lengths is None else run.rollout.lengths.limits[-1]
    needed = len(longest.token_ids) + response
    asked = run.rollout.max_model_len
    limits = {} if asked is None else {"rollout.max_model_len": asked}
    if model is not None:
        config = model_config(model, "model.path")
        limits["the model's context"] = getattr(config, "max_position_embeddings", None) or needed
    for what, limit in limits.items():
        if needed > limit:
            raise ConfigError(
                f"prompt {longest.id} has {len(longest.token_ids)} tokens; with sampling.max_tokens = "
                f"{response} that makes {needed}, and {what} is {limit}. Lower sampling.max_tokens or "
                "data.max_prompt_tokens."
            )
    needed = max(needed, at_least)
    return asked or min(needed + 8, limits.get("the model's context", needed + 8))


def make_engine(
    model_path: str,
    *,
    kind: str,
    seed: int,
    dtype: str,
    max_model_len: int,
    options: dict[str, Any],
    tensor_parallel: int,
    lm: Any = None,
) -> Any:
    """``lm``: a learner's model in this process, which a Hugging Face engine generates with."""
    if kind == "hf":
        from rlkit.rollout.hf import HFEngine

        return HFEngine(model_path, dtype=dtype, max_model_len=max_model_len, lm=lm)
    from rlkit.rollout.vllm import VLLMEngine

    return VLLMEngine(
        model_path,
        seed=seed,
        dtype=dtype,
        max_model_len=max_model_len,
        options=options,
        tensor_parallel=tensor_parallel,
    )


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
        require_model(run.model.path, "model.path", run.base)
        run = run.replace(model=dataclasses.replace(run.model, path=str(locate(run.model.path, run.base))))
        model_config(str(run.model.path), "model.path")
    findings = examine_all(run.objective, run.reward_penalties)
    refuse_nothing(findings, run.off_policy)
    need = run.needs
    found = Found(resume)
    if not resume:
        require_folder(Path(run.out) / run.name, "out")
    with contextlib.ExitStack() as stack:
        if resume:
            folder = newest_folder(run)
            stack.callback(lock_folder(folder).release)
            changes = compare(folder, run)
            found = Found(True, *_checkpoints(run, folder).newest_whole(), changes)
        specs = run.scored_by
        scorer = Scorer(
            specs, on_error=run.on_reward_error, workers=max(1, (os.cpu_count() or 2) // 2), base=Path(run.base)
        )
        stack.callback(scorer.close)
        # Everything that can be wrong is found before the run folder is made: a run that cannot start leaves nothing behind.
        tokenizer = make_tokenizer(run.alphabet) if run.model.make is not None else load_tokenizer(str(run.model.path))
        notes = [] if run.model.path is None else generation_notes(run.model.path, tokenizer, run.sampling)
        train_prompts = load_prompts(run.data, "train", tokenizer, notes.append, run.base)
        test_prompts = first_of_each(
            load_prompts(run.data, "test", tokenizer, notes.append, run.base), run.eval.prompts
        )
        notes += filter(None, [overlap(train_prompts, test_prompts)])
        scorer.check(list(train_prompts[0].columns))
        notes += self_test(specs, [*train_prompts, *test_prompts])
        check_columns(run, train_prompts)
        rows = StoredRows(run.data.stored, tokenizer, run.seed, run.base) if run.data.stored else None
        interrupt = (
            Interruption(run.rollout.interrupt, tokenizer, run.sampling.max_tokens) if run.rollout.interrupt else None
        )
        for anchor, where, spec in (("ref", "reference", run.reference), ("teacher", "teacher", run.teacher)):
            if need & {anchor, f"{anchor}_full"}:
                for path in filter(None, getattr(spec, "paths", (getattr(spec, "path", None),))):
                    require_model(path, f"{where}.path", run.base, FIRST_TRAIN)
                    model_config(
                        str(locate(path, run.base)),
                        f"{where}.path",
                        FIRST_TRAIN,
                    )
                    examine(str(locate(path, run.base)), f"{where}.path")
                    same_tokens(str(locate(path, run.base)), f"{where}.path", tokenizer)
        if run.critic is not None and run.critic.path is not None:
            examine(str(locate(run.critic.path, run.base)), "critic.path")
            same_tokens(str(locate(run.critic.path, run.base)), "critic.path", tokenizer)
        if run.model.path is not None:
            examine(run.model.path)
        context = context_length(run, [*train_prompts, *test_prompts], run.model.path, rows.longest if rows else 0)
        notes += scorer.trial(train_prompts[0])
        if run.cluster is not None:
            from rlkit.cluster.ray import connect

            connect(run.cluster, say=notes.append)
            stop.install()  # Ray has set handlers of its own
        if not resume:
            folder, lock = new_folder(run)
            stack.callback(lock.release)
            with told("the run folder"):
                record(run, folder, found)
        log = RunLog(run, folder, quiet)
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
        model_path = prepare_model(run, folder, train_prompts, tokenizer, context, log)
        own_seeds = run.rollout.seeded and run.sampling.seed is None
        sampling = dataclasses.replace(run.sampling, seed=run.seed) if own_seeds else run.sampling
        learners, engines = _workers(run, model_path, need, context, folder, log)
        stack.callback(learners.close)
        stack.callback(engines.close)
        statistics = PromptStatistics(train_prompts)
        timeline = Timeline(folder / "trace.json" if run.log.trace else None)
        sampler = run.data.sampler.build(train_prompts, run.seed, statistics)
        drift = Drift(run.log.drift)
        collector = Collector(
            engines,
            scorer,
            sampler,
            prompts=run.rollout.prompts,
            n=run.rollout.n,
            sampling=sampling,
            max_lag=run.rollout.max_lag,
            over=run.rollout.over,
            overtake=run.rollout.overtake,
            drop=run.data.drop,
            refill=run.data.refill,
            admit=run.data.admit,
            max_waste=run.rollout.max_waste,
            interrupt=interrupt,
            statistics=statistics,
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
    run: Run, model_path: str, need: frozenset[str], max_model_len: int, folder: Path, log: RunLog
) -> tuple[LearnerGroup, EngineGroup]:
    options: dict[str, Any] = {
        "kind": run.rollout.engine,
        "seed": run.seed,
        "dtype": run.model.dtype,
        "max_model_len": max_model_len,
        "options": run.vllm,
        "tensor_parallel": run.cluster.tensor_parallel if run.cluster else 1,
    }
    start = time.monotonic()
    trainer = (
        "torch"
        if run.deepspeed is None
        else f"DeepSpeed ZeRO-{run.deepspeed.get('zero_optimization', {}).get('stage', 0)}"
    )
    if run.cluster is None:
        from rlkit.learner.learner import Learner

        log.say(f"Starting in this process: {run.rollout.engine} engine, {trainer} learner ...")
        learner = Learner(run, model_path, need)
        lm = learner.policy.base if run.shares_weights else None
        engine = make_engine(model_path, **options, lm=lm)
        groups = LearnerGroup(LocalWorkers(learner), run, need), EngineGroup(LocalWorkers(engine))
    else:
        from rlkit.cluster.ray import check_shared
        from rlkit.cluster.ray import start as start_on_ray
        from rlkit.rollout.vllm import environment as vllm_environment

        log.say(
            f"Starting on Ray: {run.cluster.engines} {run.rollout.engine} engine(s), {run.cluster.learners} {trainer} learner(s) ..."
        )
        env = vllm_environment() if run.rollout.engine == "vllm" else {}
        learner_actors, engine_actors = start_on_ray(run, model_path, need, make_engine, env, options)
        groups = LearnerGroup(learner_actors, run, need), EngineGroup(engine_actors, run.cluster.restarts, log.say)
        check_shared(learner_actors, folder)
    log.say(f"  ready in {time.monotonic() - start:.0f} s")
    for note in groups[0].ready["notes"]:
        log.say(note)
    return groups


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
