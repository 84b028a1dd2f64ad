"""Numbers in words."""

from __future__ import annotations

from fractions import Fraction

import pytest

from rlkit.verifier.spelled import MAX_WORDS, NUMBER_WORDS, spelled
from rlkit.verifier.verify import verify


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("zero", 0),
        ("twenty-one", 21),
        ("one hundred and five", 105),
        ("two hundred thousand three hundred and forty-two", 200_342),
        ("one million two", 1_000_002),
        ("minus three", -3),
        ("negative one half", Fraction(-1, 2)),
        ("half", Fraction(1, 2)),
        ("a third", Fraction(1, 3)),
        ("two thirds", Fraction(2, 3)),
        ("two and a half", Fraction(5, 2)),
        ("six and two fifths", Fraction(32, 5)),
        ("third", None),
        ("hundred", None),
        ("two three", None),
        ("twenty eleven", None),
        ("one hundred hundred", None),
        ("one hundred and", None),
        ("one thousand million", None),
        ("one to one", None),
        ("five apples", None),
        ("minus", None),
        ("", None),
    ],
)
def test_words_are_a_number_or_none(text: str, value: int | Fraction | None) -> None:
    assert spelled(text) == value


def test_every_number_below_a_thousand_is_read() -> None:
    names = {n: word for word, n in NUMBER_WORDS.items()}

    def name(n: int) -> str:
        if n in names:
            return names[n]
        if n < 100:
            return f"{names[n - n % 10]}-{names[n % 10]}"
        return f"{names[n // 100]} hundred" + (f" and {name(n % 100)}" if n % 100 else "")

    assert [spelled(name(n)) for n in range(1000)] == list(range(1000))


def test_words_without_end_are_none() -> None:
    assert spelled("one " * 100_000) is None and MAX_WORDS < 100


def test_an_answer_in_words_is_the_number() -> None:
    assert verify("The answer is twenty-one.", "21").correct and not verify("The answer is twenty-one.", "20").correct
    assert (
        verify(r"\boxed{\text{two thirds}}", r"\frac{2}{3}").correct and not verify("The answer is third.", "3").correct
    )
