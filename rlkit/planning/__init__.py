"""What a run needs before it starts: memory, seconds, the layout that fits, and how it grows. ``rlkit plan CONFIG``."""

from rlkit.planning.here import HerePlan, Machine, plan_here
from rlkit.planning.layout import Plan, Planner, grow, plan
from rlkit.planning.memory import Shape, Sharding, engine_memory, learner_memory, shape
from rlkit.planning.simulate import (
    Calibration,
    EngineModel,
    LearnerModel,
    LogNormal,
    Trace,
    Workload,
    calibrate,
    simulate,
)
from rlkit.planning.speed import GPUS, Assumptions, Gpu, find_gpu, local_gpus

__all__ = [
    "GPUS",
    "Assumptions",
    "Calibration",
    "EngineModel",
    "Gpu",
    "HerePlan",
    "LearnerModel",
    "LogNormal",
    "Machine",
    "Plan",
    "Planner",
    "Shape",
    "Sharding",
    "Trace",
    "Workload",
    "calibrate",
    "engine_memory",
    "find_gpu",
    "grow",
    "learner_memory",
    "local_gpus",
    "plan",
    "plan_here",
    "shape",
    "simulate",
]
