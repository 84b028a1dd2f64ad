"""The answer of a mathematical solution, checked by ``math-verify`` (LaTeX, fractions, sets, intervals, units)."""

from __future__ import annotations

import functools
import re
from typing import Any


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{...}`` (braces may nest), or None."""
    for start in reversed([m.end() for m in re.finditer(r"\\(?:f?boxed)\s*\{", text)]):
        depth = 1
        for i in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                return text[start:i].strip()
    return None


def final_answer(response: str) -> str | None:
    r"""What the response commits to: the last ``\boxed{}``, else what follows ``####`` or the last "answer is"/"Answer:"."""
    boxed = last_boxed(response)
    if boxed is not None:
        return boxed
    for pattern in (r"####\s*(.+?)\s*$", r"(?i)answer(?:\s+is)?\s*:?\s*\$?([^\n$]+?)\$?\s*\.?\s*$"):
        found = re.findall(pattern, response.strip(), flags=re.MULTILINE)
        if found:
            return str(found[-1]).strip()
    return None


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    try:
        from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse
    except ImportError:
        raise ValueError("the reward `math` needs math-verify. Install it with: pip install 'math-verify[antlr4-13-2]'") from None
    return parse(f"${text}$", extraction_config=[LatexExtractionConfig(), ExprExtractionConfig()], parsing_timeout=5)


def same_answer(answer: str, truth: str) -> bool:
    """Whether two final answers mean the same; equal texts always do."""
    def plain(x: str) -> str:
        return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", x.strip().strip("$").rstrip("."))

    if plain(answer) == plain(truth):
        return True
    from math_verify import verify

    gold, found = _parsed(truth.strip().strip("$")), _parsed(answer.strip().strip("$"))
    return bool(gold and found and verify(gold, found, timeout_seconds=5))


def reward(response: str, answer: Any) -> float:
    """1.0 if the response's final answer equals the reference answer, else 0.0; a response without one gets 0.0.

    ``answer`` may be a bare answer or a whole solution (GSM8K's ``#### 72``, MATH's boxed one).

    Raises:
        ValueError: there is no reference answer: that is an error of the data, not of the response.
    """
    truth = str(answer if answer is not None else "").strip()
    truth = final_answer(truth) or truth
    if not truth:
        raise ValueError("the row has no reference answer")
    found = final_answer(response)
    return 0.0 if found is None else float(same_answer(found, truth))
