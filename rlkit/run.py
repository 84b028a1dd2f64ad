"""The run: every section of a YAML file as a frozen dataclass. A field is a YAML key, and a default stands with its field.

A section lives in the room that reads it; here they are added up.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from rlkit.bounds import Bound, Bounded, Name, Seed
from rlkit.cluster.section import Cluster, Probe
from rlkit.config import build
from rlkit.data import Data
from rlkit.data.tasks import TaskReward
from rlkit.errors import ConfigError
from rlkit.evaluation.section import EvalSection
from rlkit.learner.section import Critic, LearnerSection
from rlkit.learner.setup import LearnerSetup, Start
from rlkit.model.reference import Frozen, Reference
from rlkit.model.section import Model, TinyModel, WarmUp
from rlkit.objective import Term, is_marking, needs
from rlkit.objective.advantages import Advantage, GroupNorm
from rlkit.objective.corrections import Correction
from rlkit.objective.pairing import Pairing
from rlkit.objective.penalties import Penalty
from rlkit.reading import Located, configuration, located, override, read, shown
from rlkit.record.section import CheckpointSection, LogSection
from rlkit.rewards import RewardSpec
from rlkit.rollout.engine import EngineSetup, EngineSpec
from rlkit.rollout.hf import HF
from rlkit.rollout.section import RolloutSection
from rlkit.types import TOLERANCE, Sampling
from rlkit.values import Given, changed, otherwise

__all__ = [
    "CheckpointSection",
    "Cluster",
    "Critic",
    "EvalSection",
    "LearnerSection",
    "LogSection",
    "Model",
    "Probe",
    "RolloutSection",
    "Run",
    "TinyModel",
    "WarmUp",
]


@dataclass(frozen=True, kw_only=True)
class Run(Bounded):
    """One training run. ``rk.load("x.yaml")`` makes one, and so does Python; ``run.replace(...)`` changes one.

    ::

        rk.Run(model=rk.Model(path="m"), data=rk.Data(train=rows), rewards=[my_reward], objective=[rk.PPOClip(), rk.KL(coef=0.01)])

    Attributes:
        name: its folder below ``out``; a new run beside an old one gets the next free number. out: where runs are written.
        seed: of everything random: data order, samples, initialisations. steps: of training; 0: only what comes before and after.
        model: where training starts. data: prompts, and rows that somebody else wrote.
        rewards: what responses are worth; a bare name or function is short for ``fn``. Empty: the verifier of ``data.task``.
        on_reward_error: a reward that fails leaves its response out (``mask``), stops the run (``raise``), or counts 0 (``zero``).
        sampling: how responses are drawn. rollout: how many, by which engine, and how old they may be.
        pairing: which responses of a step are pairs, for terms on pairs with ``on: policy``.
        advantage: what rewards become for policy-gradient terms. objective: the terms whose sum is the loss.
        reward_penalties: what is subtracted from token rewards before advantages.
        correction: weights of policy-gradient terms for the mismatch between engine and learner.
        reference: the policy behind ``anchor: ref``; null: none. teacher: that behind ``anchor: teacher``.
        critic: a value model of its own; null: a head on the policy, where values are needed.
        learner: the optimizer and how a batch is cut.
        deepspeed: DeepSpeed's configuration, handed on as it is; null: plain torch.
        peft: the configuration of an adapter, handed to PEFT as it is; null: all weights are trained.
        vllm: options of vLLM's engine, handed on as they are.
        cluster: Ray, engines and learners; null: everything in this process.
        probe: engine and learner must agree. eval: held-out prompts. checkpoint: what a run continues from. log: what it writes down.
    """

    name: Name = "run"
    out: str = "runs"
    seed: Seed = 0
    steps: Annotated[int, Bound(at_least=0, at_most=10**9)] = 100
    model: Model
    data: Data
    rewards: Given[tuple[RewardSpec, ...], Iterable[RewardSpec | str | Callable[..., Any]]] = otherwise(())
    on_reward_error: Literal["mask", "raise", "zero"] = "mask"
    sampling: Sampling = field(default_factory=Sampling)
    rollout: RolloutSection = field(default_factory=RolloutSection)
    pairing: Pairing | None = None
    advantage: Advantage = field(default_factory=GroupNorm)
    objective: Given[tuple[Term, ...], Iterable[Term]] = otherwise(())
    reward_penalties: Given[tuple[Penalty, ...], Iterable[Penalty]] = otherwise(())
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
    # Where values were read; no key.
    origins: dict[str, str] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.objective:
            raise ConfigError("objective is empty: name at least one loss term, e.g. objective: [{type: PPOClip}].")
        if self.data.task is None and self.data.train is None and self.rollout.prompts:
            if self.rollout != RolloutSection():
                raise ConfigError(
                    "rollout is set, but data has no prompts to sample (task or train): a run on rows that are there already starts no "
                    "engine. Leave rollout out, or add prompts."
                )
            object.__setattr__(self, "rollout", dataclasses.replace(self.rollout, prompts=0))

    @property
    def folder(self) -> Path:
        """Where the run writes; where one of its name has been, that with the next free number."""
        return Path(self.out) / self.name

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
    def anchors(self) -> Iterator[tuple[str, str, Reference]]:
        """(section, name, what it is) of the reference and the teacher, as far as something reads them, or the teacher answers prompts."""
        for section, name, spec in (("reference", "ref", self.reference), ("teacher", "teacher", self.teacher)):
            answers = name == "teacher" and bool(self.rollout.by_teacher)
            if spec is not None and (answers or self.needs & {name, f"{name}_full"}):
                yield section, name, spec

    @property
    def passes(self) -> tuple[str, ...]:
        """Log-probs and values to compute before the update, and no others.

        With one optimizer step a batch, the learner's log-probs in that step *are* the old ones: no extra pass. Penalties, corrections and
        terms that mark tokens read them on the driver, and several steps need those from before the first.
        """
        need, several = self.needs, self.learner.epochs * self.learner.minibatches > 1
        on_driver = bool(self.reward_penalties) or self.correction is not None or any(map(is_marking, self.objective))
        old = ("old",) if on_driver or (several and "old" in need) else ()
        asked = (
            f"{name}_full" for _, name, spec in self.anchors if (spec.asked or spec.pooled) and f"{name}_full" in need
        )
        return (*old, *(name for name in ("ref", "teacher", "value") if name in need), *asked)

    @property
    def online(self) -> bool:
        """Whether responses are sampled to train on."""
        return self.rollout.prompts > 0

    @property
    def asks(self) -> bool:
        """Whether the model answers held-out prompts."""
        return self.eval.prompts > 0 and (self.data.task is not None or self.data.test is not None)

    @property
    def engine(self) -> EngineSpec | None:
        """What samples; None: nothing does. A run in one process that trains on rows only answers held-out prompts by its own model."""
        if not self.online and not self.asks:
            return None
        return self.rollout.kind if self.online or self.cluster is not None else HF()

    @property
    def off_policy(self) -> bool:
        """Whether some optimizer step sees samples of older weights, or of a teacher."""
        section = self.rollout
        ahead = section.max_lag > 0 or section.over > 0
        return self.learner.epochs * self.learner.minibatches > 1 or ahead or bool(section.by_teacher)

    @property
    def columns(self) -> list[str]:
        """Numeric data columns that some term reads (``needs`` has ``col:NAME``)."""
        return sorted(n[4:] for n in self.needs if n.startswith("col:"))

    @property
    def parts(self) -> list[str]:
        """Rewards that something reads on their own, beside their sum (``needs`` has ``part:NAME``)."""
        return sorted(n[5:] for n in self.needs if n.startswith("part:"))

    @property
    def alphabet(self) -> str:
        """The characters of a model that the run makes: those of its task, or printable ASCII."""
        return string.printable if self.data.task is None else str(self.data.task.alphabet)

    @property
    def shares_weights(self) -> bool:
        """Whether engine and learner use one copy of the weights: in one process, where the model that is trained can generate as it is.

        An adapter is merged for engines, because it would cost every token of every response.
        """
        shares = self.engine is not None and self.engine.shares
        return shares and self.cluster is None and self.deepspeed is None and self.peft is None

    @property
    def right(self) -> str:
        """What says of a response whether it is right: the first reward, or where there is none the episode."""
        episode = self.rollout.episode
        return self.scored_by[0].label if self.scored_by or episode is None else episode.label

    @property
    def scored_by(self) -> tuple[RewardSpec, ...]:
        """``rewards``, where ``task``, which is also the default, stands for the verifier of ``data.task``. With an episode, which gives
        rewards itself, there is no default.

        Raises:
            ConfigError: ``task`` is a reward, but the data has none.
        """
        task = self.data.task
        if task is None or (self.rollout.episode is not None and not self.rewards):
            if any(r.fn == "task" for r in self.rewards):
                raise ConfigError(
                    "rewards: `task` is the verifier of data.task, which is not set. Name another reward, e.g. math."
                )
            return self.rewards
        return tuple(
            dataclasses.replace(r, fn=TaskReward(task)) if r.fn == "task" else r
            for r in self.rewards or (RewardSpec("task"),)
        )

    def learner_setup(self, path: str, needs: frozenset[str] | None = None) -> LearnerSetup:
        """What its learners need to know. ``path``: the model that training starts from; ``needs``: other than :attr:`needs`."""
        model = self.model
        return LearnerSetup(
            start=Start(path=path, dtype=model.dtype, attention=model.attention, fp32_head=model.fp32_head),
            objective=self.objective,
            needs=self.needs if needs is None else needs,
            sampling=self.sampling,
            learner=self.learner,
            steps=self.steps * self.learner.epochs * self.learner.minibatches,
            seed=self.seed,
            critic=self.critic,
            reference=self.reference,
            teacher=self.teacher,
            deepspeed=self.deepspeed,
            peft=self.peft,
            bucket=(self.cluster or Cluster()).bucket_bytes,
            shared=self.shares_weights,
        )

    def engine_setup(self, path: str, max_model_len: int) -> EngineSetup:
        """What its engines need to know. ``path``: the model whose weights they begin with."""
        return EngineSetup(
            path=path,
            seed=self.seed,
            dtype=self.model.dtype,
            max_model_len=max_model_len,
            tensor_parallel=1 if self.cluster is None else self.cluster.tensor_parallel,
            options=self.vllm,
        )

    def replace(self, changes: Mapping[str, Any] | None = None, /, **more: Any) -> Run:
        """A copy with other values, by key or by path: ``run.replace({"objective.1.coef": 0.02}, steps=200, learner={"lr": 1e-5})``.

        A mapping changes keys of a section and leaves its others; a section that is given as an object takes the place of the old one.

        Raises:
            ConfigError: no such key, or a value that cannot stand there.
        """
        return changed(self, {**(changes or {}), **more})


def load(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Run:
    """The :class:`Run` of a YAML file, of a configuration that comes with the library (``"quickstart"``), or of the same keys as a mapping.

    ``overrides`` are like ``["steps=200", "learner.lr=1e-5"]``.

    Raises:
        ConfigError: every mistake found, one a line, each with its place.
    """
    return load_with_origins(source, overrides)[0]


def load_with_origins(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> tuple[Run, Located]:
    if isinstance(source, Mapping):
        tree, base = located(source), Path(".")
    else:
        path = configuration(source)
        tree, base = read(path), path.parent
    for text in overrides:
        override(tree, text)
    # Run folders of earlier versions have relative paths, and the folder that these are in.
    remembered = tree.value.pop("base", None)
    if remembered is not None:
        if not isinstance(remembered.value, str):
            raise ConfigError(f"{remembered.origin}: base: found {shown(remembered.plain())}, expected a text.")
        base = Path(remembered.value)
    run: Run = build(Run, tree, base)
    run.origins.update({path: leaf.origin for path, leaf in tree.leaves()})
    return run, tree
