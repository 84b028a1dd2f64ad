"""The user's own files: executed once, each under a name of its own, with the files beside it."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rlkit as rk
from rlkit.errors import ConfigError
from rlkit.place import load_user_file, snapshot, user_file
from rlkit.rewards import RewardSpec, Scorer
from rlkit.types import Prompt, Rollout

pytestmark = pytest.mark.slow

BOTH = """
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from helper import note, value
from rlkit import Term

note("executed")


@dataclass(frozen=True)
class L(Term):
    needs: ClassVar[frozenset[str]] = frozenset({"adv"})
    scale: float = 1.0

    def __call__(self, new, b):
        return -b.adv * new.logp * value()


def reward(response):
    import helper  # at the time of the call

    return helper.value()
"""
HELPER = """
import os


def note(text):
    with open(os.path.join(os.path.dirname(__file__), f"log.{os.getpid()}"), "a") as f:
        f.write(text + "\\n")


def value():
    return VALUE
"""


def folder(path: Path, value: float) -> Path:
    path.mkdir()
    (path / "rewards.py").write_text(BOTH)
    (path / "helper.py").write_text(HELPER.replace("VALUE", str(value)))
    return path


def score(*specs: RewardSpec) -> tuple[dict[str, float], Any]:
    said: list[str] = []
    scorer = Scorer(specs, report=said.append)
    rollout = Rollout(Prompt("0", (1,), "q", answer="a"), [1], [True], [0.0], [0], "stop", text="a")
    try:
        scorer.check([])
        scorer.score([rollout])
    finally:
        scorer.close()
    assert not said, said
    return rollout.parts, scorer


def test_a_file_with_a_loss_and_a_reward_is_executed_once(tmp_path: Path, small: dict[str, Any]) -> None:
    here = folder(tmp_path / "a", 1.0)
    file = here / "rewards.py"
    run = rk.load({**small, "objective": [{"type": f"{file}:L"}], "rewards": [f"{file}:reward"]})
    score(*run.rewards)
    assert type(run.objective[0]) is load_user_file(file).L
    assert (here / f"log.{os.getpid()}").read_text() == "executed\n"
    assert all(p.read_text() == "executed\n" for p in here.glob("log.*")) and len(list(here.glob("log.*"))) == 2
    assert (
        rk.load({**small, "objective": [{"type": f"{user_file(type(run.objective[0]).__module__)}:L"}]}).objective
        == run.objective
    )


def test_files_of_one_name_and_neighbours_of_one_name_do_not_mix(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", 1.0), folder(tmp_path / "b", 2.0)
    specs = [RewardSpec(f"{p}/rewards.py:reward", name=p.name) for p in (a, b)]
    assert score(*specs)[0] == {"a": 1.0, "b": 2.0}
    one, two = (load_user_file(p / "rewards.py") for p in (a, b))
    assert (one.reward(""), two.reward("")) == (1.0, 2.0) and one.L is not two.L
    assert "helper" not in sys.modules


@pytest.mark.parametrize("pickler", ["cloudpickle", "ray.cloudpickle"])
def test_what_a_file_defines_travels_without_the_file(pickler: str, tmp_path: Path) -> None:
    """As to a Ray worker on another machine; with its neighbour."""
    from rlkit.config import load_module

    here = folder(tmp_path / "a", 3.0)
    module = load_module("rewards.py", [here])
    data = pytest.importorskip(pickler).dumps((module.L(scale=2.0), module.value))
    for file in here.iterdir():
        file.unlink()
    code = "import pickle, sys; loss, value = pickle.load(sys.stdin.buffer); print(type(loss).__name__, loss.scale, value())"
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, timeout=100)
    assert done.stdout.decode() == "L 2.0 3.0\n", done.stderr.decode()


def test_another_process_that_has_the_file_finds_the_module_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "my-own.rewards.py"
    file.write_text("def f():\n    return 5\n")
    module = load_user_file(file)
    code = "import rlkit.place, pickle, sys; print(pickle.load(sys.stdin.buffer)())"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(module.f), capture_output=True, timeout=100)
    assert done.stdout.decode() == "5\n", done.stderr.decode()


def test_packages_beside_a_file(tmp_path: Path) -> None:
    (tmp_path / "parts" / "deep").mkdir(parents=True)
    (tmp_path / "parts" / "__init__.py").write_text("")
    (tmp_path / "parts" / "deep" / "one.py").write_text("import shared\nfrom . import two\nx = shared.x + two.y\n")
    (tmp_path / "parts" / "deep" / "two.py").write_text("y = 10\n")
    (tmp_path / "shared.py").write_text("x = 1\n")
    (tmp_path / "random.py").write_text("seed = None\n")  # the standard library's name is not taken from here
    (tmp_path / "f.py").write_text(
        "import os.path, parts.deep.one, shared as s\nimport parts.deep.two as t\nimport random\nfrom parts.deep.one import x\n"
        "total = parts.deep.one.x + s.x + t.y + x\nnumber = random.random()\n"
    )
    assert load_user_file(tmp_path / "f.py").total == 33


def test_a_file_that_python_has_imported_is_not_executed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imported_before.py").write_text("x = object()\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("imported_before")
    assert load_user_file(tmp_path / "imported_before.py") is module


def test_an_edit_reaches_the_next_run_and_not_the_one_under_way(tmp_path: Path) -> None:
    """Also an edit that keeps size and second, with which Python would take its cached bytecode."""
    here = folder(tmp_path / "a", 1.0)
    file, helper = here / "rewards.py", here / "helper.py"
    before = load_user_file(file)
    scorer = Scorer([RewardSpec(f"{file}:reward")])
    scorer.check([])
    stamp = os.stat(helper).st_mtime_ns
    helper.write_text(HELPER.replace("VALUE", "2.0"))
    os.utime(helper, ns=(stamp, stamp))
    rollout = Rollout(Prompt("0", (1,), "q"), [1], [True], [0.0], [0], "stop", text="a")
    scorer.score([rollout])  # its process starts after the edit
    scorer.close()
    assert rollout.reward == 1.0
    after = load_user_file(file)
    assert after is not before and after.value() == 2.0 and before.value() == 1.0
    assert load_user_file(file) is after and score(RewardSpec(f"{file}:reward"))[0] == {"reward": 2.0}
    assert snapshot()[str(helper)] == helper.read_bytes()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\nraise ValueError('why\\nnot')\n", r"mine.py:2: ValueError: why$"),
        ("def f(:\n", r"mine.py:1: SyntaxError"),
        ("import json\n\njson.loads('{')\n", r"mine.py:3: JSONDecodeError"),
        ("import sys\nsys.exit('no')\n", r"mine.py:2: SystemExit: no"),
        ("import beside\n", r"beside.py:2: ZeroDivisionError"),
        ("import not_there_at_all\n", r"mine.py:1: ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("raise Exception('x' * 5_000_000)\n", r"mine.py:1: Exception: x{500}$"),
    ],
)
def test_an_error_in_a_file_names_the_users_line(text: str, told: str, tmp_path: Path, small: dict[str, Any]) -> None:
    (tmp_path / "mine.py").write_text(text)
    (tmp_path / "beside.py").write_text("\n1 / 0\n")
    with pytest.raises(ConfigError, match=told):
        load_user_file(tmp_path / "mine.py")
    with pytest.raises(ConfigError, match=told.rstrip("$")):
        Scorer([RewardSpec(f"{tmp_path}/mine.py:f")]).check([])
    with pytest.raises(ConfigError, match=told.rstrip("$")):
        rk.load({**small, "objective": [{"type": f"{tmp_path}/mine.py:L"}]})


def test_paths_are_found_when_the_configuration_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the file that is read, then beside the one that it extends; what is nowhere is a name, or relative to the current folder."""
    for name in (
        "here/rows.jsonl",
        "here/mine.py",
        "here/models/a/config.json",
        "below/t.txt",
        "below/both.jsonl",
        "here/both.jsonl",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("def f(): ...")
    (tmp_path / "below" / "c.yaml").write_text(
        "model: {path: owner/name}\ndata: {train: [rows.jsonl, gsm8k, both.jsonl], template: 'chat:./t.txt', stored: {path: no.jsonl}}\n"
        "critic: {path: models/a}\nreference: {type: Soup, paths: [models/a, owner/other]}\nobjective: [PPOClip]\nrewards: [mine.py:f, math]\n"
    )
    (tmp_path / "here" / "c.yaml").write_text("extends: ../below/c.yaml\n")
    monkeypatch.chdir(tmp_path / "below")
    run, here = rk.load("../here/c.yaml"), tmp_path / "here"
    assert run.data.train == (f"{here}/rows.jsonl", "gsm8k", f"{here}/both.jsonl")
    assert run.data.template == f"chat:{tmp_path}/below/./t.txt".replace("/./", "/")
    assert run.data.stored is not None and run.data.stored.path == "no.jsonl"
    assert run.critic is not None and run.critic.path == f"{here}/models/a" and run.model.path == "owner/name"
    assert isinstance(run.reference, rk.references.Soup) and run.reference.paths == (f"{here}/models/a", "owner/other")
    assert [r.fn for r in run.rewards] == [f"{here}/mine.py:f", "math"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resolved.yaml").write_text(rk.to_yaml(run))
    assert rk.load("resolved.yaml") == run
    old = (tmp_path / "below" / "c.yaml").read_text() + f"base: {here}\n"  # as run folders of earlier versions have it
    (tmp_path / "old.yaml").write_text(old)
    assert rk.load("old.yaml").rewards == run.rewards
