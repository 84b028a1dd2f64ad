"""Arbitrary files and mutated configurations: reading one gives a run or a ConfigError, checking it an InputError, and nothing else."""

from __future__ import annotations

import contextlib
import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rlkit as rk
from rlkit.checks import check
from rlkit.errors import ConfigError, InputError
from rlkit.reading import read

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
CONFIGS = [
    read(ROOT / path).plain()
    for path in (
        "configs/quickstart.yaml",
        "configs/algorithms/ppo.yaml",
        "configs/algorithms/kdrl.yaml",
        "configs/algorithms/prorl.yaml",
        "configs/math/qwen2.5-7b-dapo.yaml",
    )
]
FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 1, 2, 2**31, 2**63, 10**24])
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        ["", "KL", "GAE", "a/b", "..", "1e400", "null", "Frozen", "nowhere.py:X", "x:y", ":", "..x:y", "task"]
    )
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
words = st.sampled_from(
    [
        "&a ",
        "*a",
        "[",
        "]",
        "{",
        "}",
        ": ",
        "- ",
        "\n",
        " ",
        "  ",
        ",",
        "!!python/object:os.system ",
        "!!int ",
        "!!float ",
        "!!set ",
        "!!bool ",
        "| ",
        "> ",
        "'",
        '"',
        "%YAML 1.1\n",
        "--- ",
        "...",
        "? ",
        "<<",
        "\\u",
        "\\UFFFFFFFF",
        "\\ud800",
        "\t",
        "#",
        "@",
        "`",
        "model",
        "steps",
        "objective",
        "type",
        "coef",
        "extends",
        "1",
        "-1e9",
        ".inf",
        "0x",
        "0o9",
        "~",
        "=",
        "\0",
        "\x85",
        "é",
        "\ufeff",
    ]
)


def outcome(path: Path) -> None:
    try:
        run = rk.load(path)
    except ConfigError as error:
        assert all(line and line.isprintable() for line in str(error).split("\n"))
        return
    try:
        check(run)
    except InputError as error:
        assert str(error)


@settings(FUZZ, max_examples=300)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda s: s.encode("utf-8", "surrogatepass")))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "c.yaml").write_bytes(data)
    outcome(tmp_path / "c.yaml")


@settings(FUZZ, max_examples=400)
@given(st.lists(words, max_size=40))
def test_any_words_of_yaml(tmp_path: Path, parts: list[str]) -> None:
    text = "".join(parts)
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    outcome(tmp_path / "c.yaml")
    # As the value of an override, where it must not be valid: no step count looks like this.
    with pytest.raises(ConfigError):
        rk.load(ROOT / "configs/quickstart.yaml", [f"steps=[{text}"])


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a nested value."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in inside for place in ((tree, key), *places(value))]


def mutate(tree: dict[str, Any], rng: random.Random, value: Any) -> None:
    """One change: another value, a missing key, a key of another name, or a value that stands somewhere else too."""
    container, key = rng.choice(places(tree) or [(tree, "steps")])
    kind = rng.randrange(5)
    if kind == 0 and isinstance(container, dict):
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[f"{key}{rng.choice('sx_ ')}"] = container.pop(key)
    elif kind == 2:
        other, name = rng.choice(places(tree))
        container[key] = copy.deepcopy(other[name])
    else:
        container[key] = value


@settings(FUZZ, max_examples=500)
@given(st.sampled_from(CONFIGS), st.lists(trees, min_size=1, max_size=4), st.integers(0, 2**32))
def test_mutated_configurations(tmp_path: Path, config: dict[str, Any], values: list[Any], seed: int) -> None:
    tree, rng = copy.deepcopy(config), random.Random(seed)
    for value in values:
        mutate(tree, rng, value)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8", errors="surrogatepass")
    outcome(tmp_path / "c.yaml")
    with contextlib.suppress(ConfigError):
        rk.load(tree)
