"""``import rlkit as rk``: what an editor sees is what Python finds."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from mypy import api

import rlkit as rk

STUB = ast.parse(Path(rk.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
USE = """
import rlkit as rk

run = rk.load("x.yaml", ["steps=3"])
reveal_type(run)
reveal_type(run.learner.lr)
reveal_type(rk.PPOClip(eps_high=0.3).coef)
reveal_type(rk.samplers.Shuffle())
reveal_type(rk.evaluate(run, "m"))


def right(response: str, answer: str) -> float:
    return float(response == answer)


made = rk.Run(model=rk.Model(path="m"), data=rk.Data(train=[{"prompt": "a"}]), rewards=[right, "math"], objective=[rk.PPOClip()])
reveal_type(made.rewards)
reveal_type(made.replace(steps=3))
made.replace(steps=3).steps.upper()
rk.Run(model=rk.Model(path="m"), data=rk.Data(task=rk.tasks.Sorting()), objective=[rk.GroupNorm()])
"""
SEEN = (
    "rlkit.run.Run",
    "float",
    "float | rlkit.objective.coefficients.Coefficient",
    "rlkit.data.curriculum.Shuffle",
    "rlkit.evaluation.report.Report",
    "tuple[rlkit.rewards.scoring.RewardSpec, ...]",
    "rlkit.run.Run",
)


def test_every_public_name_is_there_and_listed_once() -> None:
    imported = [a.asname or a.name for n in STUB.body if isinstance(n, ast.ImportFrom) for a in n.names]
    listed = next(n for n in STUB.body if isinstance(n, ast.Assign)).value
    assert sorted(ast.literal_eval(listed)) == sorted([*imported, "__version__"]) == sorted(rk.__all__)
    for name in rk.__all__:
        assert getattr(rk, name) is not None
        assert name in dir(rk)
    with pytest.raises(AttributeError, match="no attribute 'PPOclip'"):
        _ = rk.PPOclip  # type: ignore[attr-defined]


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, rlkit; rlkit.ConfigError; print(*(m for m in ('torch', 'numpy', 'yaml', 'ray') if m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


@pytest.mark.slow(70)
def test_a_type_checker_knows_what_comes_back(tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(USE)
    said, problems, _ = api.run(
        [str(tmp_path / "use.py"), "--config-file", "pyproject.toml", "--follow-imports=silent"]
    )
    found = [line.split('"')[1] for line in said.splitlines() if "Revealed type" in line]
    assert found == list(SEEN), said + problems
    wrong = [line.rpartition("[")[2] for line in said.splitlines() if " error: " in line]
    assert wrong == ["attr-defined]", "list-item]"], said
