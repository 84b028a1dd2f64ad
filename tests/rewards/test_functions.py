"""What may be a reward: every kind of callable, from Python and from files."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlkit.errors import ConfigError
from rlkit.rewards import RewardSpec, Scorer
from rlkit.types import Prompt, Rollout

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


def score(*fns: Any, columns: dict[str, Any] | None = None) -> dict[str, float]:
    said: list[str] = []
    scorer = Scorer([f if isinstance(f, RewardSpec) else RewardSpec(f) for f in fns], report=said.append)
    prompt = Prompt("p", (1,), "q", answer="abc", columns=columns or {})
    rollout = Rollout(prompt, [1], [True], [0.0], [0], "stop", text="abcd")
    try:
        scorer.check(list(prompt.columns))
        scorer.score([rollout])
    finally:
        scorer.close()
    assert not said, said
    return rollout.parts


def count(response: str, answer: str, scale: float = 1.0) -> float:
    return scale * (len(response) - len(answer))


@functools.cache
def cached(response: str) -> float:
    return float(len(response))


@functools.lru_cache(maxsize=3)
def cached_too(response: str) -> float:
    return cached(response) + 1


def decorated(fn: Callable[..., float]) -> Callable[..., float]:
    @functools.wraps(fn)
    def inner(*args: Any, **kwargs: Any) -> float:
        return 2 * fn(*args, **kwargs)

    return inner


@decorated
def doubled(response: str) -> float:
    return float(len(response))


class Judge:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, response: str) -> float:
        return self.scale * len(response)

    def other(self, response: str) -> float:
        return -self.scale

    @classmethod
    def kind(cls, response: str) -> float:
        return float(cls is Judge or cls.__name__ == "Judge")

    @staticmethod
    def fixed(response: str) -> float:
        return 7.0


JUDGE = Judge(0.5)
tripled = functools.partial(count, scale=3.0)


def everything(**columns: Any) -> float:
    return float(len(columns))


def test_every_kind_of_callable_is_a_reward() -> None:
    base = 10.0
    found = score(
        functools.partial(count, scale=3.0, answer=""),  # what was bound is not filled again
        cached,
        cached_too,
        RewardSpec(functools.partial(cached), name="partly cached"),
        doubled,
        Judge(0.25),
        Judge(2.0).other,
        Judge.kind,
        Judge.fixed,
        lambda response: base,
        RewardSpec(functools.partial(everything, level=1), name="rest"),
        RewardSpec(everything, args={"extra": 1}),
        columns={"level": 5},
    )
    assert found == {
        "count": 12.0,
        "cached": 4.0,
        "cached_too": 5.0,
        "partly cached": 4.0,
        "doubled": 8.0,
        "Judge": 1.0,
        "other": -2.0,
        "kind": 1.0,
        "fixed": 7.0,
        "<lambda>": 10.0,
        "rest": 7.0,
        "everything": 8.0,
    }


def test_every_kind_of_callable_is_a_reward_in_a_file() -> None:
    names = ["cached", "cached_too", "doubled", "JUDGE", "JUDGE.other", "Judge.kind", "Judge.fixed", "tripled"]
    assert score(*(f"{__file__}:{name}" for name in names)) == {
        "cached": 4.0,
        "cached_too": 5.0,
        "doubled": 8.0,
        "JUDGE": 2.0,
        "JUDGE.other": -0.5,
        "Judge.kind": 1.0,
        "Judge.fixed": 7.0,
        "tripled": 3.0,
    }


def test_functions_of_a_script_or_notebook() -> None:
    """They are in ``__main__``, which a worker process does not have."""
    script = (
        "import functools\nfrom tests.rewards.test_functions import score\n"
        "@functools.cache\ndef parse(text):\n    return len(text)\n"
        "def uses(response):\n    return parse(response) + 0.5\n"
        "class Own:\n    def __call__(self, response): return 1.0\n"
        "print(score(uses, Own(), functools.cache(lambda response: float(parse(response)))))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.stdout == "{'uses': 4.5, 'Own': 1.0, '<lambda>': 4.0}\n", done.stderr


def test_two_rewards_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"two of them are called 'count'.*name: \.\.\."):
        score(count, functools.partial(count, scale=2.0))
    assert score(count, RewardSpec(count, name="again")) == {"count": 1.0, "again": 1.0}


@pytest.mark.parametrize(
    ("fn", "told"),
    [
        (len, r"'len' takes its parameter 'obj' by position only.*Wrap it: def my_reward"),
        (max, r"Python does not know the parameters of <built-in function max>"),
        (math.gcd, "takes no parameter by name"),
        (lambda response, level: 0.0, "parameter 'level' that nothing fills"),
        (Judge, "parameter 'scale' that nothing fills"),
    ],
    ids=["len", "max", "gcd", "column", "class"],
)
def test_what_cannot_be_called_by_name_is_refused(fn: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Scorer([RewardSpec(fn)]).check([])


def test_what_cannot_travel_is_named() -> None:
    held = (x for x in "abc")
    with pytest.raises(
        ConfigError, match=r"(?s)reward '<lambda>' cannot be sent to a worker process.*generator.*inside the function"
    ):
        score(count, lambda response: len(list(held)))


@pytest.mark.parametrize(
    "change",
    [
        {"timeout": 0.0},
        {"timeout": math.nan},
        {"memory": -1.0},
        {"patience": 0},
        {"weight": math.nan},
        {"concurrency": 0},
    ],
)
def test_settings_that_mean_nothing_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        RewardSpec(count, **change)  # type: ignore[arg-type]


def test_a_process_for_rewards_is_small(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import sys\ndef heavy(response): return float(len({'torch', 'numpy', 'transformers', 'ray'} & set(sys.modules)))\n"
    )
    assert score(f"{tmp_path / 'mine.py'}:heavy") == {"heavy": 0.0}
    assert "torch" in sys.modules  # which the process that asks has
