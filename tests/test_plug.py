"""Kinds of parts: what a class of the user's own gets from its base, and what is refused."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest

import rlkit as rk
import rlkit.run  # which knows all kinds
from rlkit.config import find, known
from rlkit.plug import Plug, kind_of

KINDS = [kind for kind in Plug.__subclasses__() if kind.__module__.startswith("rlkit.")]
# What looks for attributes of other libraries' objects, which have them or not. Our own have them on their bases.
FOREIGN = {
    *("checks", "config", "place"),  # a model's configuration; functions; modules
    *("cli", "commands.doctor", "data.rows"),  # argparse; frames and arrays
    *(
        "learner.backend",
        "model.adapter",
        "model.classifier",
        "model.export",
        "model.generation",
        "model.load",
        "model.packed",
        "model.policy",
        "model.sharing",
    ),
    *("model.size", "planning.memory", "planning.probe", "rollout.cache", "rollout.vllm_weights"),
    *("rewards.functions", "rewards.workers"),  # a user's functions
}


def test_every_kind_is_a_public_name_with_defaults() -> None:
    assert len(KINDS) >= 12
    for kind in KINDS:
        assert getattr(rk, kind.__name__) is kind and dataclasses.is_dataclass(kind) and kind_of(kind) is kind
        body: dict[str, Any] = {name: lambda self, *args: None for name in kind.__abstractmethods__} or {"choose": None}
        mine: Any = type("Mine", (kind,), body)
        assert kind_of(mine) is kind and isinstance(mine(), kind)


def test_the_librarys_own_are_frozen_and_of_one_kind() -> None:
    for kind in KINDS:
        for name, cls in known(kind).items():
            assert cls.__dataclass_params__.frozen and kind_of(cls) is kind, name
            assert not inspect.isabstract(cls) and find(name, kind) is cls
    assert {"Penalty", "Schedule", "Controller"}.isdisjoint(known(rk.Coefficient) | known(rk.Penalty))


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("PPOClip", rk.Advantage, "PPOClip is a Term; here stands an Advantage. There are Agreement"),
        ("GroupNorm", rk.Term, "GroupNorm is an Advantage; here stands a Term."),
        ("Overlong", rk.AdmitRule, "Overlong is a DropRule; here stands an AdmitRule. There are GreedyUnsolved"),
        (
            "rlkit.objective.losses:PPOClip",
            rk.Penalty,
            "rlkit.objective.losses:PPOClip is a Term; here stands a Penalty.",
        ),
        ("pathlib:Path", rk.Task, "pathlib:Path is no Task: make it a subclass"),
        (
            "rlkit.objective.coefficients:Schedule",
            rk.Coefficient,
            "does not define __call__, which a Coefficient must.",
        ),
    ],
)
def test_what_is_of_another_kind_is_refused_by_what_it_is(name: str, kind: type[Plug], told: str) -> None:
    with pytest.raises(rk.ConfigError) as error:
        find(name, kind)
    assert told in str(error.value)


def test_only_attributes_of_foreign_objects_are_looked_for() -> None:
    package, found = Path(rlkit.__file__).parent, set[str]()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if name == "hasattr" or (name == "getattr" and isinstance(node, ast.Call) and len(node.args) == 3):
                found.add(".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__"))
    assert found == FOREIGN
