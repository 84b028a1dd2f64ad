"""Settings for the whole suite: quiet libraries, no network, one thread a process; a tiny model that every test may read."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlkit.data.tasks import Sorting
from rlkit.errors import ConfigError
from rlkit.model.tiny import make_tiny
from rlkit.tools import Python
from tests import shapes

shapes.switch_on()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--half", type=int, choices=(1, 2), help="one half of the files, so that two processes share them")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files first, each for the half that has less: both take about as long, and fixtures of files are made once.

    A slow test counts as 5 seconds, or those of its mark: ``slow(20)``.
    """
    half = config.getoption("--half")
    if half is None:
        return
    work, load, mine = Counter[Path](), {1: 0.0, 2: 0.0}, set[Path]()
    for item in items:
        slow = item.get_closest_marker("slow")
        work[item.path] += 20 * (slow.args[0] if slow.args else 5) if slow else 1
    for path, most in sorted(work.items(), key=lambda x: (-x[1], x[0])):
        least = min(load, key=lambda k: load[k])
        load[least] += most
        mine |= {path} if least == half else set()
    config.hook.pytest_deselected(items=[x for x in items if x.path not in mine])
    items[:] = [x for x in items if x.path in mine]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 2 layers for the alphabet of ``Sorting``."""
    return make_tiny(tmp_path_factory.mktemp("tiny"), Sorting.alphabet, hidden=64, layers=2, heads=2, kv_heads=1)


@pytest.fixture(scope="session")
def closed_off() -> None:
    """Skips a test of code in a sandbox, with the reason, on a machine whose kernel has none."""
    try:
        Python(keep=False).run("1")
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture
def small(tmp_path: Path, tiny: Path) -> dict[str, Any]:
    """A run of a few steps in one process with the Hugging Face engine, as plain data for ``rlkit.config``."""
    return settings_of_small(tmp_path, tiny)


def settings_of_small(tmp_path: Path, tiny: Path) -> dict[str, Any]:
    return {
        "name": "small",
        "out": str(tmp_path / "runs"),
        "steps": 3,
        "model": {"path": str(tiny)},
        "data": {"task": {"type": "Sorting", "levels": [1]}, "size": 40, "test_size": 4},
        "sampling": {"max_tokens": 4},
        "rollout": {"engine": "hf", "prompts": 4, "n": 4},
        "objective": [{"type": "PPOClip"}, {"type": "KL", "estimator": "k2", "coef": 0.1}],
        "rewards": ["tests/rewards/examples.py:varied"],
        "learner": {"lr": 1e-3},
        "eval": {"prompts": 4},
        "log": {"tensorboard": False, "report": False},
        "probe": {"every": 2},
    }
