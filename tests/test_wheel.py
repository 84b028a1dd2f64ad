"""What `pip install` gives: a wheel with configurations and examples in it, in an environment that has what it asks for and no more."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from rlkit.distribution import NAME, VERSION

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("pyproject.toml", "README.md", "LICENSE", "rlkit", "configs", "examples")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, tree / name)
    out = tree / "out"
    subprocess.run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(tree)], check=True)
    (made,) = out.glob("*.whl")
    return made


def closure(names: list[str]) -> set[str]:
    """The installed distributions that these need, without extras."""
    found, todo = set[str](), list(names)
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or ():
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                todo.append(wanted.name)
    return found


def show(distribution: str, site: Path) -> None:
    """Links an installed distribution into another environment."""
    for file in importlib.metadata.files(distribution) or ():
        top = file.parts[0]
        if top not in ("..", "__pycache__") and not (site / top).exists():
            (site / top).symlink_to(
                Path(str(file.locate())).parents[len(file.parts) - 2] if len(file.parts) > 1 else file.locate()
            )


def test_it_holds_every_configuration_and_example(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    here = {
        f"rlkit/shipped/{path.relative_to(ROOT).as_posix()}"
        for folder, kinds in (("configs", {".yaml"}), ("examples", {".yaml", ".py", ".jsonl", ".sh"}))
        for path in (ROOT / folder).rglob("*")
        if path.suffix in kinds
    }
    assert here <= inside and len(here) > 80
    code = {p.relative_to(ROOT).as_posix() for p in (ROOT / "rlkit").rglob("*.py")}
    assert code == {name for name in inside if name.endswith(".py") and "shipped/examples" not in name}
    assert {"rlkit/py.typed", "rlkit/__init__.pyi", "rlkit/data/templates/r1.txt"} <= inside


@pytest.mark.slow
def test_what_it_asks_for_is_enough_to_start_a_project_and_train_it(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as z:
        (record,) = (name for name in z.namelist() if name.endswith("/METADATA"))
        lines = z.read(record).decode().splitlines()
    wanted = [Requirement(x.removeprefix("Requires-Dist: ")) for x in lines if x.startswith("Requires-Dist: ")]
    for name in closure([r.name for r in wanted if r.marker is None]):
        show(name, site)
    subprocess.run([*PIP, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)

    def rlkit(*words: str) -> str:
        """The program of that environment, in a folder that has nothing of ours."""
        done = subprocess.run(
            [str(tmp_path / "env" / "bin" / "rlkit"), *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert rlkit("--version") == f"rlkit {VERSION}\n"
    assert "algorithms/grpo" in rlkit("configs")
    rlkit("init", "mine")
    small = ("steps=2", "model.warm_up.steps=5", "rollout.prompts=4", "data.size=20", "data.test_size=4")
    assert "held-out score" in rlkit("train", "mine/train.yaml", *small)
    summary = json.loads((tmp_path / "runs" / "mine" / "summary.json").read_text())
    assert summary["steps"] == 2
    start = json.loads((tmp_path / "runs" / "mine" / "environment.jsonl").read_text().splitlines()[0])
    assert start["packages"]["rlkit"] == VERSION and "ray" not in start["packages"]


def test_its_name_is_said_wherever_it_is_installed() -> None:
    """Nobody is told to install the other package of our import's name."""
    texts = [
        path for pattern in ("*.md", "docs/*.md", "benchmarks/*.py", "rlkit/**/*.py") for path in ROOT.glob(pattern)
    ]
    told = [p.name for p in texts for line in p.read_text().splitlines() if "rlkit[" in line]
    assert told == [] and NAME != "rlkit"
