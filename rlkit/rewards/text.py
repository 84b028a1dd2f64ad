"""Small rewards on text."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Literal

from rlkit.verifier.finding import extract_answer
from rlkit.verifier.verify import vote_key


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


def varied(tokens: list[int], n: int = 4) -> float:
    """The share of a response's n-grams of tokens that are different ones, in (0, 1]: 1 minus seq-rep-n; 1 where it is too short for any.

    Source: Implicit Unlikelihood Training 2101.04229, the reward of its policy gradient (the released code).
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def votes(response: str, responses: Sequence[str], by: Literal["text", "math"] = "text") -> float:
    """The share of the prompt's responses that give the same answer as this one, in (0, 1]: a reward without a reference answer.

    ``by``: whole texts are compared, white space at the ends aside; ``math`` compares the final answers that they state by value, and a
    response that states none has 0.

    Source: ScPO 2411.04109 (from search excerpts).
    """
    own = stated_answer(response, by)
    if own is None:
        return 0.0
    return sum(stated_answer(other, by) == own for other in responses) / len(responses)


def stated_answer(text: str, by: str) -> str | None:
    """What a response is compared by: its whole text, or the final answer that it states; None if it states none."""
    if by == "text":
        return text.strip()
    found = extract_answer(text)
    return None if found is None else vote_key(found)
