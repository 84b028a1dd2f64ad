r"""The answer of a mathematical solution, checked in three tiers: text, exact values, symbols.

1. ``string``: both answers are the same after cleaning (``\dfrac`` is ``\frac``, blanks, ``$``, Unicode).
2. ``exact``: both are read to exact values (:mod:`rlkit.verifier.reader`) and compared in the field of rationals, roots, pi and variables;
   tuples, sets, intervals, matrices and equations entry by entry. Nothing is rounded.
3. ``symbolic``: values with functions (sin, log, nested roots) are compared to 50 digits at sample points.

Where the answer is looked for, and what counts as one, says :mod:`rlkit.verifier.finding`. What none of the tiers can read (prose,
a sum or an integral that was not worked out) is ``unreadable`` and wrong. Every step is bounded by the length of the text.

What is accepted, in both modes:

* any form of the same value: 0.5, 1/2, ``\frac12``, ``1\frac{3}{4}`` and 7/4, ``1.2\times10^3`` and 1200, ``\sqrt{12}`` and ``2\sqrt3``;
* a unit, a degree sign or a currency sign on one side only; two known units must be the same one;
* 50% against 50 (the sign as a unit, as references write it) and against 0.5 (its value); 0.5 against 50 is wrong;
* ``x=5`` against 5, and an interval against its inequality; the same equation multiplied by a constant;
* lists and sets in any order, tuples and matrices in theirs; (1, 2] is not [1, 2);
* 1,234 and 1 234 are one number, the first not inside brackets or where the reference is a list; ``2{,}5`` is 2.5, and so is 2,5 in
  a line that is written in a language of decimal commas ("Die Antwort ist 2,5.");
* a quantity in several units as one in its smallest, or in dollars: 3 hours and 20 minutes is 200 minutes, 5 dollars and 25 cents 5.25;
* a ratio of two whole numbers in lowest terms as a fraction, 3:4 and ``\frac{3}{4}``, and in words, "3 to 4";
* numbers in words: five, twenty-one, two thirds, minus three; a time with or without a.m. and p.m., which differ from each other;
* outside of a box, where nothing says how exact the answer is to be, nine and more digits of a value that no decimal ends:
  0.142857142857 for 1/7. ``\boxed{0.142857142857}`` is wrong.

The reference may hold what a response may not: ``204_5`` accepts 204 (the question states the base), but 204 does not accept ``204_5``. A
response with several candidates (1 or 2) is wrong where the reference has one; of several boxes the last one counts.

``mode="permissive"`` accepts in addition: the correct rounding to at least three significant digits of a reference that is no integer, and
an exact value or longer decimal that rounds to a decimal reference; another name (``y=5`` for ``x=5``); tuples for lists, column vectors
and sets and the other way round; 1:2 for 1/2 or 2:4; units of the same dimension (60 minutes, 1 hour); a decimal comma.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlkit.errors import ConfigError
from rlkit.verifier.algebra import DEGREE, MAX_TEXT, PERCENT, WORK, Unreadable
from rlkit.verifier.comparison import Comparison, Mode, Tier, assigned
from rlkit.verifier.finding import EXTRACT, MAX_RESPONSE, extract_answer, find
from rlkit.verifier.passages import boxes
from rlkit.verifier.reader import read
from rlkit.verifier.text import clean, compact, untexted, words
from rlkit.verifier.values import Equation, Items, Scalar, Text, Value

Reason = Literal["equal", "different", "no_answer", "truncated", "unreadable", "refused"]


@dataclass(frozen=True)
class Verdict:
    """What was found and why it counts or not.

    ``tier`` decided (None if there was nothing to compare). ``reason``: equal, different; no_answer; truncated (finish "length" and no
    complete answer); unreadable (no tier understands the answer, or the reference); refused (too long for an answer).
    ``way`` found the answer (one of ``KINDS``; None if none did).
    """

    correct: bool
    extracted: str | None
    gold: str
    tier: Tier | None
    reason: Reason
    way: str | None = None


@functools.lru_cache(maxsize=8192)
def _gold(text: str) -> str:
    """A bare reference from a bare one or a whole solution (GSM8K's ``#### 72``, MATH's boxed one)."""
    return (extract_answer(text, ("boxed", "hash") + (("line",) if len(text) > 40 else ())) or text).strip()


@functools.lru_cache(maxsize=8192)
def _cleaned(text: str) -> tuple[str, str] | None:
    """Compact text and its words, or None if it is too long."""
    try:
        s = clean(text)
    except Unreadable:
        return None
    return compact(s), words(s)


_INTEGER = re.compile(r"-?\d{1,30}")
_GROUPS = re.compile(r"\d,\d{3}(?!\d)")


def _readings(text: str, gold: bool) -> list[Value]:
    """The meanings of a text: 1,234 is one number; in brackets, or if the reference is a list, two."""
    if not _GROUPS.search(text):
        choices = [True]
    elif re.search(r"[(\[]|\\[{l]", text):
        choices = [False] if gold or ", " not in text else [False, True]
    elif gold:
        choices = [", " not in text]
    else:
        choices = [True, False]
    values = (read(text, thousands) for thousands in choices)
    return [v for v in values if v is not None]


def _choice(text: str) -> str | None:
    """The letter of a multiple choice: A, (A), \\textbf{(A)}, (A) 12, A. 12, or None."""
    found = re.fullmatch(r"\(?([a-j])(?:\)|[.):](?=\s|$))(.{0,200})|([a-j])", text, re.DOTALL)
    if found is None:
        return None
    if found[2] and re.search(r"^\s*(?:[,;/&]|or\b|and\b)|\([a-j]\)", found[2]):
        return None  # several letters
    return found[1] or found[3]


def _compare(found: str, gold: str, mode: Mode, boxed: bool, comma: bool) -> tuple[bool, Tier | None, Reason]:
    """Whether the answer ``found`` is the reference ``gold``; outside of a box, a long decimal may stand for a fraction.

    ``comma``: 2,5 may be a decimal; with three digits behind it, a comma is one of thousands.
    """
    if _INTEGER.fullmatch(found) and _INTEGER.fullmatch(gold):
        if found == gold:
            return True, "string", "equal"
        same = int(found) == int(gold)
        return same, "exact", "equal" if same else "different"
    one, two = _cleaned(gold), _cleaned(found)
    if one is None or two is None:
        return found == gold, "string", "equal" if found == gold else "refused"
    if not one[0]:
        raise ConfigError(f"the reference answer {gold!r} has nothing to compare; correct the data.")
    if one[0] == two[0]:
        return True, "string", "equal"
    letter = re.fullmatch(r"\(?([a-j])\)?", one[1])
    if letter and re.search(rf"{letter[1].upper()}", gold):  # a choice; lower case letters are variables
        right = _choice(two[1]) == letter[1]
        return right, "string", "equal" if right else "different"
    if "\\" in one[0] + two[0] and untexted(one[0]) == untexted(two[0]):
        return True, "string", "equal"
    words = re.search(r"\\(?:text|mbox|math[rb])|[A-Za-z]{4}", one[0]) is not None
    if (words or re.fullmatch(r"no|[a-z]{3,}", one[1])) and one[1] == two[1] and not re.search(r"\d \d", two[1]):
        return True, "string", "equal"
    label = re.fullmatch(
        r"(?:\\(?:text|mathrm|textbf|mathbf)\s?\{)?(?:\([A-J]\)|[A-J][.):])\}?(?=[\s\d\\-])(.{1,300})",
        two[0],
        re.DOTALL,
    )
    texts = [found, label[1]] if label else [found]  # (B) 12
    comparison = Comparison(mode, boxed)
    golds = _readings(gold, True)
    readings = [v for text in texts for v in _readings(text, False)]
    if (mode == "permissive" or comma) and re.fullmatch(
        r"-?\$?\d{1,9},(?:\d{1,2}|\d{4,12}|(?<=\b0,)\d{3})(?![\d,])[^,]*", two[0]
    ):
        readings += _readings(two[0].replace(",", "."), False)
    undecided = not golds or not readings
    WORK.begin()
    for g in golds:
        for v in readings:
            try:
                if comparison.same(g, v):
                    return True, comparison.tier, "equal"
            except Unreadable:
                undecided = True
    if not undecided:
        return False, comparison.tier, "different"
    return False, "symbolic" if golds and readings else "string", "unreadable"


@functools.lru_cache(maxsize=16_384)
def _decide(
    found: str, gold: str, mode: Mode, boxed: bool = True, comma: bool = False
) -> tuple[bool, Tier | None, Reason]:
    return _compare(found, gold, mode, boxed, comma)


def same_answer(answer: str, truth: str, mode: Mode = "strict") -> bool:
    """Whether a final answer means the same as the reference; equal texts always do."""
    return answer.strip() == truth.strip() or _decide(answer.strip(), truth.strip(), mode)[0]


def _golds(answer: Any) -> list[str]:
    """The references of a row: a list holds alternatives, any of which counts.

    Raises:
        ConfigError: there is none: an error of the data, not of the response.
    """
    several = answer if isinstance(answer, list | tuple) else [answer]
    golds = [_gold(str(a).strip()) for a in several if a is not None and str(a).strip()]
    if not golds:
        raise ConfigError("the row has no reference answer; fill the data's answer column or drop the row.")
    return golds


def verify(
    response: str, answer: Any, *, finish: str = "stop", mode: Mode = "strict", extract: Sequence[str] = EXTRACT
) -> Verdict:
    r"""Compares the response's final answer with the reference.

    ``answer`` may be a bare answer, a whole solution (GSM8K's ``#### 72``, MATH's boxed one), or a list of answers any of which counts.
    ``finish`` "length": the response was cut off; without a complete answer it is ``truncated``, not ``no_answer``.

    Raises:
        ConfigError: no reference answer, an unknown mode, or an unknown way to extract.
    """
    if mode not in ("strict", "permissive"):
        raise ConfigError(f"the reward `math` has no mode {mode!r}; it is strict or permissive.")
    golds = _golds(answer)
    found = find(response, extract, finish)
    if (found is None or found.way == "closing") and (alone := _alone(response, golds, mode, finish, extract)):
        return alone
    if found is None:
        return Verdict(False, None, golds[0], None, "truncated" if finish == "length" else "no_answer")
    joined = _joined(response, found.text, golds) if found.way == "boxed" else []
    first: Verdict | None = None
    for candidate, gold in ((f, g) for f in (found.text, *joined) for g in golds):
        short = len(candidate) <= 4 * MAX_TEXT
        correct, tier, reason = (
            _decide(candidate, gold, mode, found.way == "boxed", found.comma)
            if short
            else (candidate == gold, "string", "refused")
        )
        verdict = Verdict(correct, candidate, gold, tier, reason if not correct else "equal", found.way)
        if correct:
            return verdict
        first = first or verdict
    assert first is not None
    return first


def _alone(response: str, golds: Sequence[str], mode: Mode, finish: str, extract: Sequence[str]) -> Verdict | None:
    """The verdict on a response that is one of the references and nothing else ("Yes", "Paris", "n+1"): no sign tells that such words are
    an answer, but that they are the one.
    """
    said = find(response, ("whole",), finish) if "closing" in extract else None
    if said is None or len(said.text) > MAX_TEXT or "\n" in said.text:
        return None
    for gold in golds:
        if len(said.text) > 2 * len(gold) + 20:  # a sentence, which would be read in vain
            continue
        correct, tier, _ = _decide(said.text, gold, mode)
        if correct and (tier == "string" or not any(c.isdigit() for c in said.text)):
            return Verdict(True, said.text, gold, tier, "equal", "whole")
    return None


_JOIN = re.compile(
    r"[\s$.,;]*(?:\\\)|\\\]|\\[(\[])?[\s$,;]*(?:and|or|,|\\text\{\s*(?:and|or)\s*\})?[\s$]*(?:\\[(\[])?[\s$]*"
)


def _joined(response: str, found: str, golds: Sequence[str]) -> list[str]:
    r"""``\boxed{2} and \boxed{3}`` as one list, tried only where the reference has several values."""
    if response.count("boxed") < 2 or not any(isinstance(v, Items) for g in golds for v in _readings(g, True)):
        return []
    contents: list[str] = []
    left = None
    for start, end, content in boxes(response[-MAX_RESPONSE:]):
        if left is not None and not _JOIN.fullmatch(response[-MAX_RESPONSE:][end:left][:60]):
            break
        contents.insert(0, content)
        left = start
    return [", ".join(contents)] if 1 < len(contents) <= 20 and contents[-1] == found else []


def vote_key(text: str) -> str:
    """A text that different ways of writing a final answer share, to count votes (maj@k): 0.5 and ``\\frac12`` vote for the same.

    Equal keys mean equal answers; of what is only equal by value (sines, inequalities) the ways of writing may keep different keys.
    """
    cleaned = _cleaned(text.strip())
    values = _readings(text.strip(), True)
    key = _value_key(values[0]) if values else None
    return key or (cleaned[0] if cleaned else text.strip())


def _value_key(v: Any) -> str | None:
    if isinstance(v, Equation) and v.name:
        return _value_key(v.parts[-1])
    if isinstance(v, Scalar):
        expr = v.expr.without(DEGREE) or v.expr
        return (expr.without(PERCENT) or expr).key
    if isinstance(v, Text):
        return v.text
    if isinstance(v, Items):
        keys = [_value_key(x) for x in assigned(v.items)]
        if any(k is None for k in keys):
            return None
        known = [k for k in keys if k is not None]
        return v.ends[0] + ",".join(known) + v.ends[1] if v.ordered else "{" + ",".join(sorted(known)) + "}"
    return None


def gold_against_itself(
    rows: Iterable[Mapping[str, Any]], *, mode: Mode = "strict", extract: Sequence[str] = EXTRACT
) -> list[dict[str, Any]]:
    """Rows whose reference answer is not accepted as a response: each ``{"row", "id", "answer", "as", "reason"}``.

    The answer is given boxed and in every way of ``extract``; ``as`` names the one that failed. Rows need "answer"; "id" is optional.
    """
    written: dict[str, Callable[[str], str]] = {
        "boxed": lambda a: rf"The result is $\boxed{{{a}}}$.",
        "tag": lambda a: f"<think> so </think> <answer> {a} </answer>",
        "line": lambda a: f"So we are done.\nAnswer: {a}",
        "hash": lambda a: f"That is all.\n#### {a}",
        "closing": lambda a: f"Therefore, the result is\n\\[{a}\\]",
        "number": lambda a: f"This makes {a}",
        "whole": str,
    }
    bad: list[dict[str, Any]] = []
    for k, row in enumerate(rows):
        answer = row.get("answer")
        try:
            golds = _golds(answer)
        except ValueError:
            bad.append({"row": k, "id": row.get("id", k), "answer": answer, "as": "boxed", "reason": "no_reference"})
            continue
        for kind in dict.fromkeys(["boxed", *extract]):
            if kind == "number" and not re.fullmatch(r"-?[\d.,]+", golds[0]):
                continue
            verdict = verify(written[kind](" ".join(golds[0].split())), answer, mode=mode, extract=[kind])
            if not verdict.correct:
                bad.append({"row": k, "id": row.get("id", k), "answer": answer, "as": kind, "reason": verdict.reason})
                break
    return bad
