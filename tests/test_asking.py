"""Asking a server: its limits, and keys."""

from __future__ import annotations

import pytest

from rlkit.asking import Pace, key_of
from rlkit.errors import ConfigError


def test_a_pace_gives_turns_evenly_and_works_off_what_was_taken_too_little() -> None:
    pace = Pace(120)  # one each half second
    assert [pace.wait(now) for now in (10.0, 10.0, 10.0, 12.0)] == [0.0, 0.5, 1.0, 0.0]
    tokens = Pace(600)
    assert tokens.wait(0.0, 100) == 0 and tokens.wait(0.0, 1) == 10
    tokens.correct(50)  # the first ones took 150
    assert tokens.wait(5.0, 1) == pytest.approx(10.0 + 0.1 + 5.0 - 5.0)


def test_a_key_comes_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    assert key_of(None, "x") is None and key_of("JUDGE_KEY", "x") == "s3cret"
    with pytest.raises(ConfigError, match="variable NO_SUCH_KEY is not set"):
        key_of("NO_SUCH_KEY", "Judge.key_from")
    with pytest.raises(ConfigError, match="does not belong into a configuration") as told:
        key_of("sk-abcdefghijklmnopqrstuvwxyz", "Judge.key_from")
    assert "abcdef" not in str(told.value)
