"""Built-in procedural tasks with verifiable answers: what runs without any download.

A task is a frozen dataclass. Rows are functions of (seed, split, index), and the training and test splits share no question.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
import string
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from rlkit.bounds import Bound, Count, Seed, Share
from rlkit.errors import ConfigError, DataError
from rlkit.plug import Plug

Split = Literal["train", "test"]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Task(Plug):
    """Base of every procedural task. A user's own overrides :meth:`question`, and what else is different.

    ``alphabet`` are the characters that a model needs which the run makes for it; ``seed`` chooses other questions.
    """

    homes: ClassVar[tuple[str, ...]] = ("rlkit.data.tasks",)
    alphabet: ClassVar[str] = string.printable

    seed: Seed = 0

    @abstractmethod
    def question(self, rng: random.Random) -> Row:
        """A row with ``prompt``, ``answer`` and further columns; all randomness comes from ``rng``."""

    def rows(self, split: Split, n: int) -> list[Row]:
        """``n`` rows with different prompts, and an ``id`` each."""
        return self.named(split, draw(self.seed, split, n, self.question))

    def named(self, split: Split, rows: Sequence[Row]) -> list[Row]:
        """The rows with an ``id``: the task, the split, and the prompt."""
        task = re.sub("(?<=[a-z])(?=[A-Z])", "-", type(self).__name__).lower()
        return [{"id": f"{task}/{split}/{row['prompt'].strip()}", **row} for row in rows]

    def demonstration(self, row: Mapping[str, Any], rng: random.Random) -> str:
        """A response for a supervised warm-up; wrong on purpose as often as the task says."""
        return str(row["answer"])

    def verify(self, response: str, row: Mapping[str, Any]) -> bool:
        """Whether the response is right."""
        return response.strip() == str(row["answer"])


def in_test(question: str) -> bool:
    """A question belongs to the test split by its own hash, so the splits are disjoint whatever is drawn."""
    return hashlib.sha256(question.encode()).digest()[0] < 52  # about one in five


def draw(seed: int, split: Split, n: int, question: Callable[[random.Random], Row]) -> list[Row]:
    """The first ``n`` rows of a split whose prompts are distinct.

    Raises:
        DataError: the task has fewer than ``n`` different questions in that split.
    """
    rng = random.Random(f"{seed}/{split}")
    out: dict[str, Row] = {}
    for attempt in itertools.count():
        if len(out) == n:
            return list(out.values())
        if attempt > 200 * (n + 50):
            raise DataError(
                f"the task has only {len(out)} different {split} questions at these levels; {n} were asked for. "
                "Lower `size` or add levels."
            )
        row = question(rng)
        if in_test(row["prompt"]) == (split == "test"):
            out.setdefault(row["prompt"], row)
    raise AssertionError


def answer_of(response: str) -> str:
    """The final answer of a worked response: what follows the last ``=``, or all of it."""
    return response.rsplit("=", 1)[-1].strip()


class _Leveled(Task):
    """A task whose rows come from ``levels``."""

    levels: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.levels:
            raise DataError(f"{type(self).__name__}.levels is empty: name at least one level.")


@dataclass(frozen=True, kw_only=True)
class Arithmetic(_Leveled):
    """Sums and differences such as ``3+5+2=``.

    Levels 1, 2, 3 add two, three, four digits; levels 4 and 5 add and subtract two and three numbers of up to two digits.

    Attributes:
        levels: which levels rows come from, in equal parts until a level has no new question left.
        mistakes: share of demonstrations with a wrong answer (off by one), so that RL has something left to learn.
    """

    alphabet: ClassVar[str] = "0123456789+-="
    levels: tuple[Count, ...] = (1, 2, 3)
    mistakes: Share = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        bad = [k for k in self.levels if k not in (1, 2, 3, 4, 5)]
        if bad:
            raise DataError(
                f"Arithmetic.levels is {list(self.levels)}; levels are 1, 2, 3 (adding two, three, four digits) and 4, 5 "
                "(adding and subtracting two and three numbers of up to two digits)."
            )

    def question(self, rng: random.Random) -> Row:
        level = rng.choice(self.levels)
        count, top, signs = {1: (2, 10, "+"), 2: (3, 10, "+"), 3: (4, 10, "+"), 4: (2, 100, "+-"), 5: (3, 100, "+-")}[
            level
        ]
        text = str(rng.randrange(top)) + "".join(rng.choice(signs) + str(rng.randrange(top)) for _ in range(count - 1))
        return {"prompt": text + "=", "answer": str(evaluate(text)), "level": level}

    def demonstration(self, row: Mapping[str, Any], rng: random.Random) -> str:
        answer = int(row["answer"])
        return str(answer + rng.choice((-1, 1)) if rng.random() < self.mistakes else answer)

    def verify(self, response: str, row: Mapping[str, Any]) -> bool:
        return answer_of(response) == str(row["answer"])


@dataclass(frozen=True, kw_only=True)
class Modular(_Leveled):
    """``ax+b=c mod m`` for a prime ``m``: the one ``x`` in ``0..m-1`` is the answer. Levels choose m = 7, 11, 23.

    Attributes:
        mistakes: share of the demonstrations that are wrong.
    """

    alphabet: ClassVar[str] = "0123456789x+=% "
    levels: tuple[Annotated[int, Bound(at_least=1, at_most=3)], ...] = (1,)
    mistakes: Share = 0.6

    def question(self, rng: random.Random) -> Row:
        level = rng.choice(self.levels)
        m = {1: 7, 2: 11, 3: 23}[level]
        a, b, x = rng.randrange(1, m), rng.randrange(m), rng.randrange(m)
        return {"prompt": f"{a}x+{b}={(a * x + b) % m}%{m} ", "answer": str(x), "level": level}

    def demonstration(self, row: Mapping[str, Any], rng: random.Random) -> str:
        m = {1: 7, 2: 11, 3: 23}[row["level"]]
        return str(rng.randrange(m)) if rng.random() < self.mistakes else str(row["answer"])


@dataclass(frozen=True, kw_only=True)
class Countdown(_Leveled):
    """Reach the target with all given numbers and ``+ - *``: ``3 5 2>13:`` has several solutions, e.g. ``3+5*2``.

    Many different responses are right, so diversity (pass@k, distinct answers) can be measured. Level k has k + 1 numbers.

    Attributes:
        top: the largest number that is given. mistakes: share of the demonstrations that are wrong.
    """

    alphabet: ClassVar[str] = "0123456789+-*() >:"
    # All solutions of more numbers are too many to list.
    levels: tuple[Annotated[int, Bound(at_least=1, at_most=5)], ...] = (2,)
    top: Count = 9
    mistakes: Share = 0.3

    def question(self, rng: random.Random) -> Row:
        level = rng.choice(self.levels)
        numbers = [rng.randint(1, self.top) for _ in range(level + 1)]
        text = self._expression(numbers, rng)
        target = evaluate(text)
        return {
            "prompt": f"{' '.join(map(str, numbers))}>{target}:",
            "answer": text,
            "level": level,
            "numbers": numbers,
            "target": int(target),
        }

    @staticmethod
    def _expression(numbers: list[int], rng: random.Random) -> str:
        order = rng.sample(numbers, len(numbers))
        return str(order[0]) + "".join(rng.choice("+-*") + str(x) for x in order[1:])

    def solutions(self, row: Mapping[str, Any]) -> list[str]:
        """All solutions without parentheses, in a fixed order."""
        found = set()
        for order in set(itertools.permutations(row["numbers"])):
            for signs in itertools.product("+-*", repeat=len(order) - 1):
                text = str(order[0]) + "".join(f"{s}{x}" for s, x in zip(signs, order[1:], strict=True))
                if evaluate(text) == row["target"]:
                    found.add(text)
        return sorted(found)

    def demonstration(self, row: Mapping[str, Any], rng: random.Random) -> str:
        if rng.random() < self.mistakes:
            return self._expression(list(row["numbers"]), rng)
        return rng.choice(self.solutions(row))

    def verify(self, response: str, row: Mapping[str, Any]) -> bool:
        text = response.strip()
        try:
            return evaluate(text) == row["target"] and sorted(numbers_of(text)) == sorted(row["numbers"])
        except ValueError:
            return False


@dataclass(frozen=True, kw_only=True)
class Sorting(_Leveled):
    """``472>`` asks for the digits in ascending order. Level k has k + 2 digits.

    Attributes:
        mistakes: share of the demonstrations that are wrong.
    """

    alphabet: ClassVar[str] = "0123456789>"
    levels: tuple[Annotated[int, Bound(at_least=1, at_most=100)], ...] = (1, 2)
    mistakes: Share = 0.6

    def question(self, rng: random.Random) -> Row:
        level = rng.choice(self.levels)
        digits = "".join(rng.choice("0123456789") for _ in range(level + 2))
        return {"prompt": digits + ">", "answer": "".join(sorted(digits)), "level": level}

    def demonstration(self, row: Mapping[str, Any], rng: random.Random) -> str:
        answer = str(row["answer"])
        return "".join(rng.sample(answer, len(answer))) if rng.random() < self.mistakes else answer


# (text, what happens to the number): {n} name, {t} thing, {a} what there is, {b} what comes or goes
GAINS = (
    "{n} has {a} {t} and gets {b} more. How many {t} does {n} have now?",
    "There are {a} {t} in a box. {n} puts {b} more into it. How many {t} are in the box now?",
    "{n} found {a} {t} in the morning and {b} in the evening. How many {t} did {n} find?",
)
LOSSES = (
    "{n} has {a} {t} and gives away {b}. How many {t} are left?",
    "There are {a} {t} in a box. {n} takes {b} out of it. How many {t} are in the box now?",
    "{n} had {a} {t} and lost {b} of them. How many {t} does {n} have now?",
)
OTHER_GAINS = (
    "A shop has {a} {t}. Then {n} brings {b} more. How many {t} does the shop have?",
    "{n} counts {a} {t} on the left and {b} on the right. How many {t} are there together?",
)
OTHER_LOSSES = (
    "A shop has {a} {t}. Then {n} buys {b} of them. How many {t} does the shop still have?",
    "{n} needs {a} {t} and already has {b}. How many {t} are missing?",
)
CHAINS = (
    "{n} has {a} {t}, gets {b} more and then gives away {c}. How many {t} does {n} have now?",
    "There are {a} {t} in a box. {n} puts {b} more into it and takes {c} out. How many {t} are in the box now?",
)
OTHER_CHAINS = ("A shop has {a} {t}. {n} brings {b} more and sells {c}. How many {t} does the shop have in the end?",)
NAMES = ("Tom", "Anna", "Ben", "Mia", "Leo", "Zoe", "Sam", "Eva", "Max", "Lily")
THINGS = ("apples", "books", "coins", "pens", "cards", "shells")


@dataclass(frozen=True, kw_only=True)
class WordProblems(_Leveled):
    """Short problems for a chat model: ``Tom has 3 apples and gets 4 more. How many apples does Tom have now?``

    Level 1: one step with numbers up to 9, in two wordings; level 2: one step up to 99, in six; level 3: two steps up to 99. The last whole
    number of a response is its answer.

    Attributes:
        levels: which levels rows come from.
        transfer: the test split is made of three sets in equal parts, told apart by the column ``dataset``: ``same`` is what is
            trained, ``wordings`` has sentences that no training row has, ``larger`` numbers up to ten times as large, which no
            training row has.
        mistakes: share of demonstrations that are off by one.
    """

    levels: tuple[Count, ...] = (1,)
    transfer: bool = False
    mistakes: Share = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if set(self.levels) - {1, 2, 3}:
            raise ConfigError(
                f"WordProblems.levels is {list(self.levels)}; levels are 1 (one step, numbers up to 9), 2 (one step, up to 99) and "
                "3 (two steps, up to 99)."
            )

    def question(self, rng: random.Random, dataset: str = "same") -> Row:
        level = rng.choice(self.levels)
        top, wordings = (9, 1) if level == 1 else (99, len(GAINS))
        low, high, other = (top + 1, 10 * top, False) if dataset == "larger" else (1, top, dataset == "wordings")
        a, b = rng.randint(low, high), rng.randint(low, high)
        c = rng.randint(1, min(high, a + b))
        if level == 3:
            text, answer = rng.choice(OTHER_CHAINS if other else CHAINS), a + b - c
        elif rng.random() < 0.5:
            text, answer = rng.choice(OTHER_GAINS if other else GAINS[:wordings]), a + b
        else:
            a, b = max(a, b) + rng.randint(0, high // 2), min(a, b)
            text, answer = rng.choice(OTHER_LOSSES if other else LOSSES[:wordings]), a - b
        prompt = text.format(n=rng.choice(NAMES), t=rng.choice(THINGS), a=a, b=b, c=c)
        return {"prompt": prompt, "answer": str(answer), "level": level}

    def rows(self, split: Split, n: int) -> list[Row]:
        if split == "train" or not self.transfer:
            return super().rows(split, n)
        sets = ("same", "wordings", "larger")
        return self.named(
            split,
            [
                {**row, "dataset": name}
                for i, name in enumerate(sets)
                for row in draw(self.seed, split, len(range(i, n, 3)), partial(self.question, dataset=name))
            ],
        )

    def demonstration(self, row: Mapping[str, Any], rng: random.Random) -> str:
        answer = int(row["answer"])
        return str(answer + rng.choice((-1, 1)) if rng.random() < self.mistakes else answer)

    def verify(self, response: str, row: Mapping[str, Any]) -> bool:
        found = numbers_of(response)
        return bool(found) and found[-1] == int(row["answer"])


def numbers_of(text: str) -> list[int]:
    return [int(x) for x in "".join(c if c.isdigit() else " " for c in text).split()]


def evaluate(text: str) -> Fraction:
    """The value of an expression of integers, ``+ - * ( )``, by recursive descent; nothing is ever passed to ``eval``.

    Raises:
        DataError: not such an expression.
    """
    if len(text) > 200:
        raise DataError("expression too long")
    tokens: list[str] = []
    for c in text.replace(" ", ""):
        if c.isdigit() and tokens and tokens[-1].isdigit():
            tokens[-1] += c
        elif c.isdigit() or c in "+-*()":
            tokens.append(c)
        else:
            raise DataError(f"unexpected {c!r}")
    at = 0

    def peek() -> str:
        return tokens[at] if at < len(tokens) else ""

    def take() -> str:
        nonlocal at
        at += 1
        return tokens[at - 1] if at <= len(tokens) else ""

    def atom() -> Fraction:
        token = take()
        if token.isdigit():
            return Fraction(int(token))
        if token == "(":
            value = total()
            if take() != ")":
                raise DataError("missing )")
            return value
        raise DataError(f"unexpected {token!r}")

    def product() -> Fraction:
        value = atom()
        while peek() == "*":
            take()
            value *= atom()
        return value

    def total() -> Fraction:
        value = product()
        while peek() in ("+", "-") and peek():
            value = value + product() if take() == "+" else value - product()
        return value

    value = total()
    if at != len(tokens):
        raise DataError(f"unexpected {peek()!r}")
    return value


@dataclass(frozen=True)
class TaskReward:
    """The task's own verifier as a reward: 1 or 0."""

    task: Task
    __name__: ClassVar[str] = "correct"

    def __call__(self, response: str, answer: Any, **columns: Any) -> float:
        return float(self.task.verify(response, {**columns, "answer": answer}))
