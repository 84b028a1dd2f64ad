"""The reward ``math``, and the verifier behind it under the name that scripts know; :mod:`rlkit.verifier.verify` says what it accepts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlkit.verifier.comparison import Mode
from rlkit.verifier.finding import EXTRACT, KINDS, extract_answer, last_boxed
from rlkit.verifier.verify import Verdict, gold_against_itself, same_answer, verify, vote_key

__all__ = [
    "EXTRACT",
    "KINDS",
    "Verdict",
    "explained",
    "extract_answer",
    "gold_against_itself",
    "last_boxed",
    "reward",
    "same_answer",
    "verify",
    "vote_key",
]


def reward(
    response: str, answer: Any, finish: str = "stop", mode: Mode = "strict", extract: Sequence[str] = EXTRACT
) -> float:
    """1.0 if the response's final answer equals the reference answer, else 0.0: what runs use as ``rewards: [math]``.

    ``{fn: math, args: {mode: permissive, extract: [boxed, line, hash, number]}}`` sets the parameters of :func:`verify`.

    Raises:
        ConfigError: no reference answer.
    """
    return float(verify(response, answer, finish=finish, mode=mode, extract=extract).correct)


def explained(
    response: str, answer: Any, finish: str = "stop", mode: Mode = "strict", extract: Sequence[str] = EXTRACT
) -> dict[str, float]:
    """:func:`reward` as ``correct``, with the reason, the tier and the way as names of parts that are worth 0 (for an audit)."""
    verdict = verify(response, answer, finish=finish, mode=mode, extract=extract)
    return {
        "correct": float(verdict.correct),
        f"reason/{verdict.reason}": 0.0,
        f"tier/{verdict.tier or 'none'}": 0.0,
        f"way/{verdict.way or 'none'}": 0.0,
    }
