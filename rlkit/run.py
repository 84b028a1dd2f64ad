"""The run: every section of a YAML file as a frozen dataclass. A field is a YAML key, and a default lives only here."""

from __future__ import annotations

import dataclasses
import string
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from rlkit.bounds import Bound, Bounded, Count, Decay, Name, Natural, NonNegative, Positive, Seed, Share
from rlkit.data import Data
from rlkit.data.tasks import TaskReward
from rlkit.errors import ConfigError
from rlkit.model.reference import Frozen, Reference
from rlkit.objective import Term, is_marking, needs
from rlkit.objective.advantages import Advantage, GroupNorm
from rlkit.objective.corrections import Correction
from rlkit.objective.penalties import Penalty
from rlkit.rewards import RewardSpec
from rlkit.rollout.engine import UpdateMode
from rlkit.rollout.interrupt import Interrupt
from rlkit.rollout.lengths import Lengths
from rlkit.types import TOLERANCE, Sampling


@dataclass(frozen=True, kw_only=True)
class TinyModel(Bounded):
    """A small random model with a character tokenizer for the task's alphabet: what runs without any download."""

    family: Literal["qwen2", "qwen3", "llama"] = "qwen2"
    hidden: Count = 128
    layers: Count = 4
    heads: Count = 4
    kv_heads: Count = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden % self.heads or self.hidden // self.heads not in (32, 64, 96, 128) or self.heads % self.kv_heads:
            raise ConfigError(
                f"model.make: hidden {self.hidden} / heads {self.heads} must be a head size of 32, 64, 96 or 128 (vLLM's "
                f"CPU attention has no other), and kv_heads ({self.kv_heads}) must divide heads."
            )


@dataclass(frozen=True, kw_only=True)
class WarmUp(Bounded):
    """Supervised training on the task's demonstrations before RL starts. ``batch`` is in sequences."""

    steps: Natural = 200
    batch: Count = 64
    lr: NonNegative = 2e-3


@dataclass(frozen=True, kw_only=True)
class Model:
    """Where training starts: a folder or hub name (``path``), or a tiny model that the run makes (``make``)."""

    path: str | None = None
    make: TinyModel | None = None
    warm_up: WarmUp | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: str | None = None
    fp32_head: bool = False

    def __post_init__(self) -> None:
        if (self.path is None) == (self.make is None):
            raise ConfigError(
                "model needs exactly one of `path` (a folder or hub name) and `make` (a tiny model "
                "that the run makes itself)."
            )


@dataclass(frozen=True, kw_only=True)
class RolloutSection(Bounded):
    """How responses are collected.

    Attributes:
        engine: ``vllm``, or ``hf`` (transformers only; for debuggers and machines without vLLM).
        prompts: prompt groups a step. n: responses a prompt.
        max_lag: steps that generation may run ahead of training; 0 is strictly on-policy.
        pause: what a weight update does to running requests: ``wait`` for them; ``continue`` them under the new weights, which compute the
            tokens so far once more; ``keep`` them going with what the old weights have cached, which costs nothing and is less exact; or
            ``abort`` them and ask again. Each token carries the version that sampled it. ``engine: hf`` always waits.
        over: share of ``prompts`` that is started beyond them, so that a step need not wait for its longest responses: it takes the groups
            that finish first, and the others are continued for a later one (:class:`rlkit.rollout.collector.Collector` says what this
            does to the batch). overtake: steps' worth of younger groups that may go before an older one.
        seeded: every request has a seed of its own, so that its tokens depend neither on the batch nor on the number of engines, and a
            resumed run repeats them. For that, vLLM draws request by request and not with its fused samplers; false lets it use them.
        max_waste: groups that may be dropped and replaced in one step, as a multiple of ``prompts``.
        lengths: a curriculum over ``sampling.max_tokens``.
        interrupt: responses that take too long are told to answer.
    """

    engine: Literal["vllm", "hf"] = "vllm"
    prompts: Count = 32
    n: Count = 8
    max_lag: Natural = 0
    pause: UpdateMode = "wait"
    over: Share = 0.0
    overtake: Count = 1
    seeded: bool = True
    max_waste: NonNegative = 10.0
    max_model_len: Count | None = None
    lengths: Lengths | None = None
    interrupt: Interrupt | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.over and (self.pause not in ("continue", "keep") or self.engine == "hf"):
            raise ConfigError(
                f"rollout.over is {self.over}, but engine: {self.engine} with pause: {self.pause} waits for stragglers or "
                "loses them at every weight update. Set rollout.engine: vllm and rollout.pause: continue (or keep)."
            )


@dataclass(frozen=True, kw_only=True)
class LearnerSection(Bounded):
    """The optimizer and how a batch is cut.

    Attributes:
        lr: peak learning rate. schedule: its shape after ``warmup_steps`` (linear warm-up), down to ``final_lr`` * lr.
        epochs, minibatches: optimizer steps a rollout batch = epochs * minibatches.
        max_tokens: tokens of one micro-batch on one rank, padding included; changes memory and speed, never the result. null: 16,384 on
            GPUs, and on CPUs, which are nearly as fast with few, as many of them as keep about 768 MiB for the backward pass.
        packed: micro-batches without padding, with prompts shared by their responses (:mod:`rlkit.model.packed`). null: on CPUs, where it
            was measured to be faster, if the model allows it.
        max_skipped: a gradient that is not finite skips its optimizer step; so many in a row end the run.
    """

    lr: NonNegative = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Natural = 0
    final_lr: NonNegative = 0.0
    weight_decay: NonNegative = 0.0
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: Positive = 1e-8
    max_grad_norm: NonNegative = 1.0
    epochs: Count = 1
    minibatches: Count = 1
    max_tokens: Count | None = None
    packed: bool | None = None
    gradient_checkpointing: bool = False
    max_skipped: Count = 3


@dataclass(frozen=True, kw_only=True)
class Critic(Bounded):
    """A value model of its own, for advantages that need values (GAE). Without this section, the value is a linear head on the policy.

    Attributes:
        path: where it starts; null: the same weights as the policy. lr: null: ``learner.lr``.
    """

    path: str | None = None
    lr: NonNegative | None = None


@dataclass(frozen=True, kw_only=True)
class Cluster(Bounded):
    """Runs on Ray. ``address: null`` starts a local cluster; else ``auto`` or ``host:port`` of an existing one.

    Attributes:
        engines: number of vLLM engines, each of ``tensor_parallel`` devices. learners: number of training ranks.
        cpus: logical CPUs of each actor. gpus: GPUs of each learner and of each engine device; null takes 1 where the
            cluster has GPUs, else 0.
        timeout: seconds without a sign of life after which an engine or a learner is lost, or, before the first one, the cluster has no
            room for it (a minute is granted in any case). How long an answer takes does not matter.
        stall: seconds that one may be alive without getting further with what it was asked to do (a step of an engine, a micro-batch).
        restarts: how often in a run a lost engine is started again, and how often the learners are, from the last checkpoint.
    """

    address: str | None = None
    engines: Count = 1
    tensor_parallel: Count = 1
    learners: Count = 1
    cpus: NonNegative = 1.0
    gpus: NonNegative | None = None
    timeout: Positive = 300.0
    stall: Positive = 1800.0
    restarts: Natural = 3


@dataclass(frozen=True, kw_only=True)
class Probe(Bounded):
    """The parity probe: engine and learner must agree on log-probs after a weight sync, else the run stops.

    Attributes:
        every: steps between probes; the first sync is always probed; 0 probes only that one.
        tolerance: largest mean |difference| in nats. null: 1e-3 in float32, 0.05 in bfloat16.
        final: load the exported model again at the end and compare it with the trained one; costs a load of the model.
    """

    every: Natural = 50
    tolerance: Positive | None = None
    final: bool = True


@dataclass(frozen=True, kw_only=True)
class EvalSection(Bounded):
    """Held-out evaluation: before, every ``every`` steps (0: only before and after), and after training.

    Attributes:
        prompts: at most so many of each data set. n: responses to each. temperature: null is that of training.
        alarm: with ``n`` of at least 2, a warning when pass@n falls below the start model's by more than chance (95 %, paired by prompt).
        patience: the run ends after so many evaluations without a better score; null: it does not.
        go_back: the model that a run leaves in ``final/`` is the one with the best held-out score, not the last one.
    """

    every: Natural = 0
    prompts: Natural = 128
    n: Count = 1
    temperature: NonNegative | None = None
    alarm: bool = True
    patience: Count | None = None
    go_back: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.patience is not None or self.go_back) and not (self.every and self.prompts):
            raise ConfigError(
                f"eval.{'patience' if self.patience is not None else 'go_back'} looks at held-out scores, but eval.every is "
                f"{self.every} and eval.prompts {self.prompts}. Set both, e.g. eval.every: 20."
            )


@dataclass(frozen=True, kw_only=True)
class CheckpointSection(Bounded):
    """When checkpoints are written and which are kept. One is also written at the last step and when the run is told to stop.

    Attributes:
        every: steps between checkpoints; null: by time alone; 0: none on the way, neither by steps nor by time.
        minutes: also when the last one is so old; null: by steps alone.
        keep: the newest so many are kept; 0: all. best: that with the best held-out score is kept beside them (with ``eval.every``).
        max_gib: the most that all of them take; null: half of the room that they and the free disk are. The newest is always kept.
        time_limit: minutes after which the run ends, with a checkpoint; null: none but Slurm's.
    """

    every: Natural | None = None
    minutes: Positive | None = 15.0
    keep: Natural = 2
    best: bool = True
    max_gib: Positive | None = None
    time_limit: Positive | None = None

    @property
    def seconds(self) -> float | None:
        """Between two checkpoints; None: time does not count."""
        return None if self.minutes is None or self.every == 0 else 60 * self.minutes


@dataclass(frozen=True, kw_only=True)
class LogSection(Bounded):
    """``metrics.jsonl`` is always written.

    Attributes:
        rollouts: sampled responses kept per step, and of the same held-out prompts at every evaluation.
        breakdown: every so many steps, where KL and gradients come from (0: never).
        drift: every so many steps, how far the policy is from the start model (0: never; :mod:`rlkit.record.drift`).
        trace: write ``trace.json``, a timeline of stages and prompt groups for Chrome's trace viewer.
    """

    tensorboard: bool = True
    wandb: dict[str, Any] | None = None  # handed to wandb.init as it is
    rollouts: Natural = 8
    breakdown: Natural = 10
    drift: Natural = 10
    trace: bool = False


@dataclass(frozen=True, kw_only=True)
class Run(Bounded):
    """One training run. ``rk.load("x.yaml")`` makes one; ``run.replace(...)`` changes one."""

    name: Name = "run"
    out: str = "runs"
    seed: Seed = 0
    steps: Annotated[int, Bound(at_least=0, at_most=10**9)] = 100
    model: Model
    data: Data
    rewards: tuple[RewardSpec, ...] = ()
    on_reward_error: Literal["mask", "raise", "zero"] = "mask"
    sampling: Sampling = field(default_factory=Sampling)
    rollout: RolloutSection = field(default_factory=RolloutSection)
    advantage: Advantage = field(default_factory=GroupNorm)
    objective: tuple[Term, ...] = ()
    reward_penalties: tuple[Penalty, ...] = ()
    correction: Correction | None = None
    reference: Reference | None = field(default_factory=Frozen)  # anchor: ref
    teacher: Reference | None = None  # anchor: teacher
    critic: Critic | None = None
    learner: LearnerSection = field(default_factory=LearnerSection)
    deepspeed: dict[str, Any] | None = None
    peft: dict[str, Any] | None = None
    vllm: dict[str, Any] = field(default_factory=dict)
    cluster: Cluster | None = None
    probe: Probe = field(default_factory=Probe)
    eval: EvalSection = field(default_factory=EvalSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    log: LogSection = field(default_factory=LogSection)
    base: str = "."  # the folder of the configuration: paths of rewards are relative to it

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.objective:
            raise ConfigError("objective is empty: name at least one loss term, e.g. objective: [{type: PPOClip}].")

    @property
    def probe_tolerance(self) -> float:
        """``probe.tolerance``, or what it stands for."""
        return TOLERANCE[self.model.dtype] if self.probe.tolerance is None else self.probe.tolerance

    # -- facts that follow from several sections ----------------------------------------------------------------------

    @property
    def needs(self) -> frozenset[str]:
        """What terms, advantage, penalties and correction read on rows that were not stored with their log-probs."""
        terms = [t for t in self.objective if t.on != "reference"]
        return needs([*terms, self.advantage, *self.reward_penalties, *([self.correction] if self.correction else [])])

    @property
    def passes(self) -> tuple[str, ...]:
        """Log-probs and values to compute before the update, and no others.

        With one optimizer step a batch, the learner's log-probs in that step *are* the old ones: no extra pass. Penalties, corrections and
        terms that mark tokens read them on the driver, and several steps need those from before the first.
        """
        need, several = self.needs, self.learner.epochs * self.learner.minibatches > 1
        on_driver = bool(self.reward_penalties) or self.correction is not None or any(map(is_marking, self.objective))
        old = ("old",) if on_driver or (several and "old" in need) else ()
        return (*old, *(name for name in ("ref", "teacher", "value") if name in need))

    @property
    def off_policy(self) -> bool:
        """Whether some optimizer step sees samples of older weights."""
        section = self.rollout
        return self.learner.epochs * self.learner.minibatches > 1 or section.max_lag > 0 or section.over > 0

    @property
    def columns(self) -> list[str]:
        """Numeric data columns that some term reads (``needs`` has ``col:NAME``)."""
        return sorted(n[4:] for n in self.needs if n.startswith("col:"))

    @property
    def alphabet(self) -> str:
        """The characters of a model that the run makes: those of its task, or printable ASCII."""
        return string.printable if self.data.task is None else str(self.data.task.alphabet)

    @property
    def shares_weights(self) -> bool:
        """Whether engine and learner use one copy of the weights: in one process, where the model that is trained can generate as it is.

        An adapter is merged for engines, because it would cost every token of every response.
        """
        return self.cluster is None and self.rollout.engine == "hf" and self.deepspeed is None and self.peft is None

    @property
    def scored_by(self) -> tuple[RewardSpec, ...]:
        """``rewards``, where ``task``, which is also the default, stands for the verifier of ``data.task``.

        Raises:
            ConfigError: ``task`` is a reward, but the data has none.
        """
        task = self.data.task
        if task is None:
            if any(r.fn == "task" for r in self.rewards):
                raise ConfigError(
                    "rewards: `task` is the verifier of data.task, which is not set. Name another reward, e.g. math."
                )
            return self.rewards
        return tuple(
            dataclasses.replace(r, fn=TaskReward(task)) if r.fn == "task" else r
            for r in self.rewards or (RewardSpec("task"),)
        )

    def replace(self, **changes: Any) -> Run:
        """A copy with other values; plain functions are accepted as ``rewards``."""
        if "rewards" in changes:
            changes["rewards"] = tuple(r if isinstance(r, RewardSpec) else RewardSpec(r) for r in changes["rewards"])
        if "objective" in changes:
            changes["objective"] = tuple(changes["objective"])
        return dataclasses.replace(self, **changes)
