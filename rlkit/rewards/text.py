"""Small rewards on text."""

from __future__ import annotations

from difflib import SequenceMatcher


def exact(response: str, answer: object) -> float:
    """1 if the response is the answer, white space at the ends aside."""
    return float(response.strip() == str(answer).strip())


def similar(response: str, answer: object) -> float:
    """How much of response and answer is the same, in [0, 1]: twice the characters of their common blocks over those of both."""
    return SequenceMatcher(None, response.strip(), str(answer).strip(), autojunk=False).ratio()


def overlong(tokens: list[int], limit: int, buffer: int) -> float:
    """DAPO's soft overlong punishment: 0 up to ``limit - buffer`` tokens, then linearly down to -1 at ``limit``.

    Source: DAPO 2503.14476, eq. 13.
    """
    return min(0.0, max(-1.0, (limit - buffer - len(tokens)) / buffer))
