"""Rewards that see all responses to a prompt at once: the majority, ranks under another reward, a tournament of pairs.

Each is called once for a group and gives a list with a reward for each response. What they give does not depend on the order of the
responses. (The wordings of a question are groups of their own: :class:`rlkit.objective.shaping.Agreement` compares over them.)
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rlkit.bounds import Count, Positive
from rlkit.errors import ConfigError, RewardError
from rlkit.place import PlacedFunction
from rlkit.rewards.functions import import_function, is_async, label_of, normalise_result, signature
from rlkit.rewards.grader import Grader
from rlkit.rewards.shaping import score
from rlkit.rewards.text import stated_answer

PAIR = ("first", "second")
ROUNDS, CLOSE = 10_000, 1e-10  # of the fit of strengths: steps, and the relative change that ends it


def majority(responses: Sequence[str], by: Literal["text", "math"] = "math") -> list[float]:
    """1 for every response that gives the answer that most give, else 0: self-consistency, without a reference answer.

    ``by``: as :func:`rlkit.rewards.text.votes` compares answers. A response that states none has 0; of answers that are given equally
    often each is the majority.

    Source: TTRL 2504.16084, majority voting reward (from memory).
    """
    answers = [stated_answer(text, by) for text in responses]
    votes = Counter(a for a in answers if a is not None)
    most = max(votes.values(), default=0)
    return [float(a is not None and votes[a] == most) for a in answers]


def ranked(of: str, responses: Sequence[str], **inputs: Any) -> list[float | None]:
    """The share of the prompt's other responses that have a smaller reward ``of``, equal ones counted half; in [0, 1].

    ``of`` is a reward of single responses, by name, as in :mod:`rlkit.rewards.shaping`. A response of which it has no verdict has none
    here, and is nobody's other. One that has no others has 0.5.
    """
    found = [score(of, {**inputs, "response": text, "responses": responses}) for text in responses]
    known = [x for x in found if x is not None]
    others = max(1, len(known) - 1)
    return [
        None if x is None else (sum((y < x) + 0.5 * (y == x) for y in known) - 0.5 + 0.5 * (len(known) == 1)) / others
        for x in found
    ]


@dataclass(frozen=True, kw_only=True)
class Tournament(Grader):
    """Every response against others to the same prompt: the share that it wins, or its strength among them.

    ``of`` compares two: a function (``async`` or not) of ``first``, ``second`` and any fields of the row that gives how far the first is
    the better one, 1, 0, or between them (0.5: as good), and None where it cannot say; or a :class:`~rlkit.rewards.judge.Judge` whose
    template shows ``{first}`` and ``{second}``.

    Attributes:
        both: each pair is shown in both orders, which halves what a judge thinks of places; else in one that follows from the texts.
        opponents: how many others each response meets, at least; null: all, ``n (n - 1) / 2`` pairs.
        score: ``wins``: the mean of what comparisons gave. ``bradley_terry``: ``s / (1 + s)``, the probability to beat an average response,
            with the strengths ``s`` that make the comparisons most likely, ``P(i beats j) = s_i / (s_i + s_j)``. It counts against whom
            one has won.
        prior: games against a response of strength 1, half of them won, which each has in ``bradley_terry``: who wins or loses all would
            have no finite strength.
        at_once: comparisons of the run that wait side by side.

    Equal texts are as good as each other without being compared. A comparison that fails is left out; a response all of whose comparisons
    failed has no reward, and if all of the group did, the first failure is told.

    Source: Bradley-Terry by Hunter 2004, Annals of Statistics 32 (the MM iteration; from memory).
    """

    usual_timeout: ClassVar[float] = 180.0

    of: PlacedFunction | Callable[..., Any] | Grader
    both: bool = True
    opponents: Count | None = None
    score: Literal["wins", "bradley_terry"] = "wins"
    prior: Positive = 1.0
    at_once: Count = 64

    @property
    def compares(self) -> Callable[..., Any]:
        """What compares."""
        return import_function(self.of) if isinstance(self.of, str) else self.of

    @functools.cached_property
    def _compares(self) -> Callable[..., Any]:
        """Found once in the process that asks it; another one finds it itself."""
        return self.compares

    @property
    def __signature__(self) -> inspect.Signature:
        """``responses``, and what ``of`` takes beside the two."""
        takes = signature(self.compares, self.label).parameters.values()
        more = [
            p.replace(kind=p.KEYWORD_ONLY) if p.kind is not p.VAR_KEYWORD else p for p in takes if p.name not in PAIR
        ]
        return inspect.Signature([inspect.Parameter("responses", inspect.Parameter.KEYWORD_ONLY), *more])

    @property
    def label(self) -> str:
        return label_of(self.of)

    def check(self) -> None:
        if isinstance(self.of, Grader):
            self.of.check()
        takes = signature(self.compares, self.label).parameters
        missing = [name for name in PAIR if name not in takes]
        if missing:
            raise ConfigError(
                f"Tournament.of: {self.label!r} compares two responses and must take `first` and `second`; it has "
                f"{', '.join(takes) or 'no parameters'}."
            )

    def start(self) -> None:
        if isinstance(self.of, Grader):
            self.of.start()

    def taken(self) -> dict[str, int]:
        return self.of.taken() if isinstance(self.of, Grader) else {}

    def metrics(self, used: Mapping[str, int]) -> dict[str, float]:
        return self.of.metrics(used) if isinstance(self.of, Grader) else {}

    def spent(self, used: Mapping[str, int]) -> str | None:
        return self.of.spent(used) if isinstance(self.of, Grader) else None

    @functools.cached_property
    def _places(self) -> asyncio.Semaphore:
        return asyncio.Semaphore(self.at_once)

    async def __call__(self, responses: Sequence[str], **row: Any) -> list[float | None]:
        """Raises the first failure where no comparison succeeded."""
        count = Counter(responses)
        texts = sorted(count, key=_order)
        games = pairs(len(texts), self.opponents)
        games += [(j, i) for i, j in games] if self.both else []
        found = await asyncio.gather(
            *(self._compare(texts[i], texts[j], row) for i, j in games), return_exceptions=True
        )
        failed = [x for x in found if isinstance(x, BaseException)]
        won: dict[tuple[int, int], list[float]] = {}
        for (i, j), x in zip(games, found, strict=True):
            if isinstance(x, float):
                won.setdefault((i, j), []).append(x)
                won.setdefault((j, i), []).append(1 - x)
        if failed and not won:
            raise failed[0]
        means = {pair: sum(given) / len(given) for pair, given in won.items()}
        give = win_rates if self.score == "wins" else functools.partial(strengths, prior=self.prior)
        rewards = dict(zip(texts, give(means, [count[t] for t in texts]), strict=True))
        return [rewards[text] for text in responses]

    async def _compare(self, first: str, second: str, row: Mapping[str, Any]) -> float | None:
        given = {**row, "first": first, "second": second}
        async with self._places:
            if is_async(self._compares):
                value = await self._compares(**given)
            else:
                value = await asyncio.to_thread(self._compares, **given)
        parts = normalise_result(value)
        if parts is None:
            return None
        x = sum(parts.values())
        if not 0 <= x <= 1:
            raise RewardError(
                f"{self.label!r} returned {x:g} for a pair; it must be in [0, 1]: how far the first is the better one"
            )
        return x


def _order(text: str) -> str:
    """An order of texts that says nothing about them."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def pairs(n: int, opponents: int | None) -> list[tuple[int, int]]:
    """Who of ``n`` meets whom: everybody each other, or on a circle the next ones, so that each has at least so many ``opponents``.

    Half of the pairs are turned round, so that nobody is always the first.
    """
    if opponents is None or opponents >= n - 1:
        met = list(itertools.combinations(range(n), 2))
    else:
        met = [(i, (i + k) % n) for k in range(1, (opponents + 1) // 2 + 1) for i in range(n)]
        met = list(dict.fromkeys((min(p), max(p)) for p in met))
    return [(i, j) if (i + j) % 2 else (j, i) for i, j in met]


def win_rates(won: Mapping[tuple[int, int], float], count: Sequence[int]) -> list[float | None]:
    """The mean of what each has won of its comparisons. One that is there ``count`` times is met so often, and is as good as its equals.

    Args:
        won: (i, j) -> how far i was the better one, for both orders of each pair that was compared.
    """
    out = list[float | None]()
    for i, own in enumerate(count):
        met = [(j, x) for (k, j), x in won.items() if k == i]
        games = sum(count[j] for j, _ in met) + own - 1
        alone = len(count) == 1
        total = sum(count[j] * x for j, x in met) + 0.5 * (own - 1)
        out.append(0.5 if alone else total / games if met else None)
    return out


def strengths(won: Mapping[tuple[int, int], float], count: Sequence[int], prior: float) -> list[float | None]:
    """``s / (1 + s)`` of the Bradley-Terry strengths ``s`` that maximise, with ``w_ij = count_i count_j won_ij``,

    ``sum_ij w_ij log(s_i / (s_i + s_j)) + prior / 2 sum_i count_i (log(s_i / (s_i + 1)) + log(1 / (s_i + 1)))``,

    by ``s_i <- (sum_j w_ij + count_i prior / 2) / (sum_j (w_ij + w_ji) / (s_i + s_j) + count_i prior / (s_i + 1))``.
    """
    n, s = len(count), [1.0] * len(count)
    met: list[list[tuple[int, float, float]]] = [
        [] for _ in count
    ]  # of each: whom, what it has won there, and how many games
    for (i, j), x in won.items():
        met[i].append((j, count[i] * count[j] * x, count[i] * count[j] * (x + won[j, i])))
    for _ in range(ROUNDS):
        before = s
        s = [
            (sum(w for _, w, _ in met[i]) + count[i] * prior / 2)
            / (sum(games / (before[i] + before[j]) for j, _, games in met[i]) + count[i] * prior / (before[i] + 1))
            for i in range(n)
        ]
        if max((abs(a / b - 1) for a, b in zip(s, before, strict=True)), default=0.0) < CLOSE:
            break
    return [x / (1 + x) if met[i] or n == 1 else None for i, x in enumerate(s)]
