# ruff: noqa: RUF022  (the list below is in groups, for readers)
"""What ``import rlkit as rk`` offers. ``__init__.py`` reads this file, so that what editors see and what Python finds is the same."""

from rlkit import errors, rewards, tools, verifier
from rlkit.commands.audit import audit
from rlkit.commands.check import check
from rlkit.commands.configs import configs, print_config
from rlkit.commands.convert import convert
from rlkit.commands.doctor import doctor
from rlkit.commands.evaluate import evaluate
from rlkit.commands.filter import filter
from rlkit.commands.gpu_check import gpu_check
from rlkit.commands.init import init
from rlkit.commands.jobs import fetch_job, follow_job, jobs, stop_job
from rlkit.commands.merge import merge
from rlkit.commands.metrics import compare, metrics
from rlkit.commands.plan import plan
from rlkit.commands.sample import sample
from rlkit.commands.show import show
from rlkit.commands.submit import submit
from rlkit.commands.sweep import sweep
from rlkit.commands.watch import watch
from rlkit.config import to_yaml
from rlkit.data import Data, tasks
from rlkit.data import curriculum as samplers
from rlkit.data.curriculum import AdmitRule, DropRule, Sampler
from rlkit.data.offline import Demonstrations, Labelled, Pairs
from rlkit.data.tasks import Task
from rlkit.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    ContextFull,
    DataError,
    EngineError,
    EpisodeError,
    InputError,
    ModelError,
    NumericsError,
    RewardError,
    RlkitError,
    RunError,
    WorkerError,
    WorkerTimeout,
)
from rlkit.evaluation.report import Report
from rlkit.evaluation.scaling import fit_runs
from rlkit.evaluation.selection import moment_multipliers
from rlkit.looking.page import report_runs
from rlkit.model import reference as references
from rlkit.model.arithmetic import merge_weights
from rlkit.model.classifier import RewardModel
from rlkit.model.reference import Reference
from rlkit.objective import (
    PairTerm,
    Term,
    advantages,
    coefficients,
    corrections,
    divergences,
    labelled,
    losses,
    penalties,
    preference,
)
from rlkit.objective.advantages import (
    GAE,
    RLOO,
    Advantage,
    GroupMean,
    GroupNorm,
    LogMeanExp,
    Plain,
    ReinforcePlusPlus,
    TokenKL,
)
from rlkit.objective.anchors import Mixture
from rlkit.objective.coefficients import (
    AccuracyScaled,
    AdaptiveKL,
    BestOfGroup,
    Coefficient,
    Constant,
    Cosine,
    DifficultyWeighted,
    DualAscent,
    EntropyTarget,
    KLBudget,
    Linear,
    RewardGap,
    RewardMasked,
    Step,
)
from rlkit.objective.corrections import Correction
from rlkit.objective.divergences import KL, Divergence, Generator
from rlkit.objective.full_vocab import FullDivergence, Wasserstein
from rlkit.objective.labelled import KLDO, KTO, LabelTerm
from rlkit.objective.losses import (
    CISPO,
    DPPO,
    GMPO,
    GSPO,
    NLL,
    PMD,
    REBEL,
    RPG,
    SAPO,
    AStar,
    Entropy,
    ISGradient,
    PPOClip,
    Reinforce,
    ValueMSE,
)
from rlkit.objective.pairing import BestWorst, Everybody, Pairing, RejectionSampled
from rlkit.objective.penalties import DivergenceReward, KLReward, Penalty
from rlkit.objective.preference import DPO, IPO, ORPO, Pairwise, SimPO
from rlkit.objective.shaping import Agreement, Confident, ToTarget
from rlkit.objective.supervised import EKSFT, FSFT
from rlkit.objective.turns import PerTurn, TurnGAE
from rlkit.planning.probe import probe
from rlkit.record.plots import plot_run
from rlkit.record.results import HeldOut, RunFolder
from rlkit.rewards import RewardSpec
from rlkit.rewards.grader import Grader
from rlkit.rewards.groups import Tournament
from rlkit.rewards.judge import Judge
from rlkit.rollout import control as controls
from rlkit.rollout.control import Control
from rlkit.rollout.controlled import Controlled
from rlkit.rollout.endpoint import Endpoint
from rlkit.rollout.engine import Engine, EngineSetup, EngineSpec, SimpleEngine
from rlkit.rollout.episode import Chat, Context, Said
from rlkit.rollout.player import EpisodeSpec
from rlkit.rollout.server import Serve
from rlkit.run import (
    CheckpointSection,
    Cluster,
    Critic,
    EvalSection,
    LearnerSection,
    LogSection,
    Model,
    Probe,
    RolloutSection,
    Run,
    TinyModel,
    WarmUp,
    load,
)
from rlkit.samples import Prompt, Rollout, Sampling
from rlkit.trainer import StepResult, Steps, steps, train
from rlkit.types import Batch, New, Stats

__version__: str

__all__ = [
    # commands, each with a result that has a type
    "load",
    "configs",
    "print_config",
    "init",
    "show",
    "check",
    "plan",
    "probe",
    "doctor",
    "gpu_check",
    "train",
    "sweep",
    "steps",
    "evaluate",
    "metrics",
    "compare",
    "filter",
    "sample",
    "merge",
    "merge_weights",
    "audit",
    "fit_runs",
    "moment_multipliers",
    "report_runs",
    "watch",
    "plot_run",
    "convert",
    "submit",
    "jobs",
    "follow_job",
    "stop_job",
    "fetch_job",
    "to_yaml",
    # what a run gives back
    "Steps",
    "StepResult",
    "RunFolder",
    "HeldOut",
    # a run, and the sections of a configuration
    "Run",
    "Model",
    "TinyModel",
    "WarmUp",
    "Data",
    "Pairs",
    "Labelled",
    "Demonstrations",
    "RewardSpec",
    "Sampling",
    "RolloutSection",
    "Controlled",
    "EpisodeSpec",
    "Serve",
    "LearnerSection",
    "Critic",
    "Cluster",
    "Probe",
    "EvalSection",
    "CheckpointSection",
    "LogSection",
    # the data that flows
    "Batch",
    "New",
    "Prompt",
    "Rollout",
    "Stats",
    "Report",
    # what a function of an episode gets and hears
    "Chat",
    "Context",
    "Endpoint",
    "Said",
    # what a class of your own is a subclass of
    "Term",
    "PairTerm",
    "Pairwise",
    "LabelTerm",
    "Pairing",
    "Advantage",
    "Penalty",
    "Coefficient",
    "Correction",
    "Generator",
    "Sampler",
    "DropRule",
    "AdmitRule",
    "Task",
    "Reference",
    "Grader",
    "EngineSpec",
    "Engine",
    "EngineSetup",
    "SimpleEngine",
    "Control",
    # rewards that are models
    "RewardModel",
    "Judge",
    "Tournament",
    # loss terms
    "PPOClip",
    "ISGradient",
    "Reinforce",
    "CISPO",
    "GSPO",
    "SAPO",
    "GMPO",
    "DPPO",
    "RPG",
    "PMD",
    "AStar",
    "REBEL",
    "NLL",
    "Entropy",
    "ValueMSE",
    "DPO",
    "IPO",
    "SimPO",
    "ORPO",
    "KTO",
    "KLDO",
    "KL",
    "Divergence",
    "FullDivergence",
    "FSFT",
    "EKSFT",
    "Wasserstein",
    "Mixture",
    # pairs of a step's own responses
    "BestWorst",
    "Everybody",
    "RejectionSampled",
    # advantages
    "Plain",
    "GroupMean",
    "GroupNorm",
    "RLOO",
    "ReinforcePlusPlus",
    "LogMeanExp",
    "GAE",
    "TokenKL",
    "Confident",
    "ToTarget",
    "Agreement",
    "PerTurn",
    "TurnGAE",
    # coefficients
    "Constant",
    "Linear",
    "Cosine",
    "Step",
    "AdaptiveKL",
    "KLBudget",
    "DualAscent",
    "EntropyTarget",
    "AccuracyScaled",
    "DifficultyWeighted",
    "RewardMasked",
    "BestOfGroup",
    "RewardGap",
    # penalties in the reward
    "KLReward",
    "DivergenceReward",
    # everything else by where it belongs: rk.losses.ClipCov, rk.samplers.Pools, rk.references.EMA
    "losses",
    "divergences",
    "advantages",
    "coefficients",
    "corrections",
    "penalties",
    "preference",
    "labelled",
    "references",
    "controls",
    "samplers",
    "tasks",
    "rewards",
    "tools",
    "verifier",
    # what is raised
    "errors",
    "RlkitError",
    "InputError",
    "ConfigError",
    "DataError",
    "ModelError",
    "CheckpointError",
    "ClusterError",
    "RunError",
    "NumericsError",
    "RewardError",
    "EpisodeError",
    "ContextFull",
    "EngineError",
    "WorkerError",
    "WorkerTimeout",
    "__version__",
]
