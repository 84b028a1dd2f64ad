"""Continuing a run with other settings: a key either takes effect and is recorded, or it is refused by name.

What makes the run the experiment that it is, stays: model, data, rewards, objective, sampling, the batch, the seed. What says how long, how
fast, where, and how it is watched, may change, and so may the optimizer's numbers, which people tune while a run goes on.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from rlkit.config import is_own, plain
from rlkit.errors import CheckpointError, ConfigError
from rlkit.reading import read
from rlkit.record.checkpoint import Checkpoints
from rlkit.record.log import lock_folder, newest_folder
from rlkit.record.masking import MASK
from rlkit.run import Run, load

FREE = (  # each with all below it; * is any one key
    *("name", "out", "steps", "on_reward_error", "checkpoint", "eval", "log", "probe", "vllm", "cluster"),
    *(f"learner.{k}" for k in ("lr", "schedule", "warmup_steps", "final_lr", "weight_decay", "betas", "eps")),
    *(f"learner.{k}" for k in ("max_grad_norm", "max_tokens", "packed")),
    *(f"learner.{k}" for k in ("gradient_checkpointing", "sequence_parallel")),
    *(f"rollout.{k}" for k in ("engine", "max_lag", "pause", "over", "overtake", "seeded", "max_waste")),
    *("rollout.max_model_len", "rollout.episode.timeout", "rollout.serve", "critic.lr"),
    *(
        f"{anchor}.{k}"
        for anchor in ("reference", "teacher")
        for k in ("offload", "precompute", "url", "parallel", "timeout", "patience")
    ),
    *(f"rewards.*.{k}" for k in ("timeout", "concurrency", "patience", "memory")),
    *(f"rewards.*.fn.{k}" for k in ("url", "key_from", "retry_for", "requests_a_minute", "tokens_a_minute", "at_once")),
    *(
        f"rewards.*.fn.{k}"
        for k in ("cache", "kept", "prices", "most_tokens", "most_cost", "device", "threads", "batch")
    ),
)
Changes = dict[str, tuple[Any, Any]]


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


def continued(run: Run, stack: contextlib.ExitStack) -> tuple[Path, Found]:
    """The newest folder of this name, which is this process's own until ``stack`` ends, and what is found there.

    Raises:
        ConfigError: there is none.
        CheckpointError: another process has it, it is of another experiment, or no checkpoint of it is whole.
    """
    folder = newest_folder(run.folder)
    stack.callback(lock_folder(folder).release)
    changes = compare(folder, run)
    return folder, Found(True, *Checkpoints.of(run.checkpoint, folder).newest_whole(), changes)


def leaves(x: Any, path: str = "") -> dict[str, Any]:
    """Values of plain data by their dotted path; an empty mapping or list is a value."""
    children = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()
    out: dict[str, Any] = {}
    for key, value in children:
        out |= leaves(value, f"{path}.{key}" if path else str(key))
    return out or {path: x}


def difference(old: Any, new: Any) -> Changes:
    """(old, new) of every leaf that differs; what one of them does not have is None. Values that were masked are not compared."""
    a, b = leaves(old), leaves(new)
    found = {k: (a.get(k), b.get(k)) for k in {**a, **b} if a.get(k) != b.get(k)}
    return {k: v for k, v in found.items() if v[0] != MASK and {*map(repr, v)} - {"None", "{}", "[]"}}


def is_free(path: str) -> bool:
    """Whether the value at a dotted path may change: it, or a section that it is in, is named in ``FREE``."""
    return any(_names(free.split("."), path.split(".")) for free in FREE)


def _names(free: Sequence[str], keys: Sequence[str]) -> bool:
    return len(free) <= len(keys) and all(f in ("*", key) for f, key in zip(free, keys, strict=False))


def compare(folder: Path, run: Run) -> Changes:
    """What ``run`` changes of the run in ``folder``.

    Raises:
        CheckpointError: its configuration cannot be read, or something that cannot change within a run did, by name.
    """
    path, new = folder / "config.yaml", plain(run)
    try:
        written = read(path).plain()
        foreign = {k: v for k, v in code_of(written).items() if v not in code_of(new).values()}
        held = {k: (v, leaves(new).get(k)) for k, v in foreign.items() if not is_free(k)}
        if held:
            _refuse(held, folder)
        parts = [k.removesuffix(".type") for k in foreign]  # those that may change are not made again to be compared
        old: Run = load(path, [f"{part}={json.dumps(_at(new, part))}" for part in parts])
    except (ConfigError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(
            f"--resume: {path}, with which the run was started, cannot be read: {error} Repair it; nothing was changed."
        ) from None
    changes = difference(plain(old), new) | difference(_below(written, parts), _below(new, parts))
    refused = {k: v for k, v in changes.items() if not is_free(k)}
    if (old.cluster.learners if old.cluster else 1) != (run.cluster.learners if run.cluster else 1) and sharded(run):
        refused["cluster.learners"] = changes.get("cluster.learners", (1, run.cluster.learners if run.cluster else 1))
    if refused:
        _refuse(refused, folder)
    return changes


def code_of(x: Any) -> dict[str, str]:
    """What plain data names that may be a class of the user's own. Those of a folder are not imported unless the given configuration
    names them. Reward functions are left out: reading a configuration imports none.
    """

    def is_function(key: str) -> bool:
        return key.startswith("rewards.") and not key.endswith(".type")

    return {k: v for k, v in leaves(x).items() if isinstance(v, str) and is_own(v) and not is_function(k)}


def _at(x: Any, path: str) -> Any:
    """The value of plain data at a dotted path; None where there is none."""
    for key in path.split("."):
        x = x.get(key) if isinstance(x, dict) else x[int(key)] if isinstance(x, list) and int(key) < len(x) else None
    return x


def _below(x: Any, paths: Sequence[str]) -> dict[str, Any]:
    """The leaves of plain data at some paths and below them."""
    return {k: v for k, v in leaves(x).items() if any(f"{k}.".startswith(f"{path}.") for path in paths)}


def _refuse(refused: Changes, folder: Path) -> NoReturn:
    shown = [f"{k} was {_short(a)} and is now {_short(b)}" for k, (a, b) in list(refused.items())[:5]]
    more = f"; and {len(refused) - 5} more" if len(refused) > 5 else ""
    raise CheckpointError(
        f"--resume: {'; '.join(shown)}{more}. This cannot change within the run in {folder}. Give the old values, or start a new "
        f"run under another name (model.path={folder / 'final'} would go on from its weights)."
    )


def sharded(run: Run) -> bool:
    """Whether each learner rank keeps a part of the optimizer's state of its own."""
    return run.deepspeed is not None and bool(run.deepspeed.get("zero_optimization", {}).get("stage", 0))


def _short(x: Any) -> str:
    text = "not set" if x is None else repr(x)
    return text if len(text) <= 60 else f"{text[:20]}...{text[-37:]}"
