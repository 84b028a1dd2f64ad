"""Numbers in English words: twenty-one, one hundred and five, two thirds, two and a half, minus three."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from rlkit.verifier.units import LARGE

NUMBER_WORDS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
        "nineteen".split()
    )
} | {word: 10 * k for k, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)}
_PARTS = {
    word: k
    for k, names in enumerate(
        (
            "half halves",
            "third thirds",
            "quarter quarters fourth fourths",
            "fifth fifths",
            "sixth sixths",
            "seventh sevenths",
            "eighth eighths",
            "ninth ninths",
            "tenth tenths",
        ),
        start=2,
    )
    for word in names.split()
}
MAX_WORDS = 16


def spelled(text: str) -> Fraction | None:
    """The number that words in lower case say, and nothing else; None if they say something else ("third" is a place, not a part)."""
    found = re.split(r"[\s-]+", text.strip(), maxsplit=MAX_WORDS)
    negative = found[0] in ("minus", "negative")
    value = _value(found[1:] if negative else found)
    return -value if negative and value is not None else value


def _value(found: Sequence[str]) -> Fraction | None:
    if not found or found[-1] not in _PARTS:
        return _whole(found)
    if found == ["half"]:
        return Fraction(1, 2)
    count, part = found[:-1], Fraction(1, _PARTS[found[-1]])
    whole = Fraction(0)
    if "and" in count:  # two and a half
        at = len(count) - 1 - count[::-1].index("and")
        before = _whole(count[:at])
        if before is None:
            return None
        whole, count = before, count[at + 1 :]
    times = Fraction(1) if count in (["a"], ["an"]) else _whole(count)
    return None if times is None else whole + times * part


def _whole(found: Sequence[str]) -> Fraction | None:
    """Zero and above: hundreds, tens and ones by the names of large numbers, from large to small."""
    total, group, largest, room = 0, 0, 10**15, 1000
    for k, word in enumerate(found):
        if word == "and" and 0 < k < len(found) - 1 and found[k - 1] in LARGE:
            continue
        if word in NUMBER_WORDS:
            n = NUMBER_WORDS[word]
            if n >= room:  # two three, twenty eleven
                return None
            group, room = group + n, (10 if n >= 20 else 1)
        elif word == "hundred" and 0 < group < 10:
            group, room = group * 100, 100
        elif word in LARGE and word != "hundred" and group and LARGE[word] < largest:
            largest = LARGE[word]
            total, group, room = total + group * largest, 0, 1000
        else:
            return None
    return Fraction(total + group) if found else None
