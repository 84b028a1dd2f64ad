"""Prompts, how they are sampled, and the responses: the data that flows, as far as it needs no torch (:mod:`rlkit.types` has the rest)."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from rlkit.bounds import Bound, Bounded, Count, Natural, NonNegative, Seed
from rlkit.errors import ConfigError

Source = Literal["policy", "reference", "dataset", "chosen", "rejected", "labelled"]
Finish = Literal["stop", "length", "abort"]
SOURCES: tuple[Source, ...] = ("policy", "reference", "dataset", "chosen", "rejected", "labelled")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of a prompt data set, rendered and tokenized.

    ``id`` is stable over runs: the curriculum and every error message use it. ``columns`` holds every other
    column of the row; rewards read them by name. ``chat`` holds the messages of which the tokenizer's chat template wrote ``text``, and is
    empty where no chat template did. ``where`` is its place for messages, e.g. file and line; empty where nobody knows.
    """

    id: str
    token_ids: tuple[int, ...]
    text: str
    answer: Any = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    chat: tuple[Mapping[str, Any], ...] = ()
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Sampling(Bounded):
    """How responses are drawn.

    Attributes:
        temperature: of the distribution that is sampled and trained; 0 is greedy.
        top_p: the smallest set of tokens with so much probability is kept. top_k: so many tokens are kept; 0: all.
        max_tokens: the longest response. stop: texts that end a response wherever they appear.
        seed: makes a request reproducible; runs set it themselves.
    """

    temperature: NonNegative = 1.0
    top_p: Annotated[float, Bound(above=0, at_most=1)] = 1.0
    top_k: Natural = 0
    max_tokens: Count = 256
    stop: tuple[str, ...] = ()
    seed: Seed | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(self.stop):
            raise ConfigError("sampling.stop has an empty text, which every response contains; leave it out.")


@dataclass(frozen=True, slots=True)
class Outputs:
    """What an anchor says of a response of ``T`` tokens, known from before (:mod:`rlkit.precompute`): their log-probs, a tensor ``[T]``,
    and of whole distributions the ids of the most likely tokens, ``[T, k]``, with their log-probs and the tail's, ``[T, k + 1]``.
    """

    logp: Any
    ids: Any = None
    top: Any = None


@dataclass(slots=True)
class Rollout:
    """One sampled response: plain data, picklable, one line of ``rollouts.jsonl``. ``T`` is its length in tokens.

    An episode (:mod:`rlkit.rollout.episode`) is one of these, or several where its history was rewritten: those of a group that have the
    same number ``episode`` stand one after another and share one reward. Without a number a response is an episode by itself.

    A record that is filled in as the response travels: the engine writes its tokens, then the scorer its reward, then the collector its
    group. Each has one owner at a time, and once a :class:`rlkit.types.Batch` was made of it nothing is written any more.
    """

    prompt: Prompt
    tokens: list[int]  # [T] response tokens, tool tokens included
    sampled: list[bool]  # [T] True where the policy produced the token; only these are trained
    logp: list[float]  # [T] log mu(token), nats
    version: list[int]  # [T] weight version that sampled it
    finish: Finish
    text: str = ""
    source: Source = "policy"
    group: int = 0
    reward: float = math.nan
    parts: dict[str, float] = field(default_factory=dict)  # named reward components
    error: str | None = None  # why there is no reward (a verifier that raised or timed out)
    ref_logp: list[float] | None = None  # [T] stored reference log-probs
    episode: int | None = None  # which of its group's episodes it is a part of
    turn: list[int] | None = None  # [T] the generation that sampled the token, -1 for none; None: all of one
    earned: list[float] | None = None  # [T] the part of the reward that single tokens earned: a turn's, at its last
    transcript: str = ""  # the episode as people read it
    outputs: Mapping[str, Outputs] = field(default_factory=dict)  # by anchor, of rows of data alone

    def __getstate__(self) -> dict[str, Any]:
        """Lists of one number a token travel as arrays, and as one number where all are equal: smaller, and read in half the time."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return found | {name: _packed(found[name]) for name in LISTS}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, _unpacked(value) if name in LISTS else value)

    @classmethod
    def given(cls, prompt: Prompt, tokens: list[int], finish: Finish = "stop", **more: Any) -> Rollout:
        """A response that was not sampled here, as far as only its tokens matter: it has log-probs of 0 and the version 0."""
        n = len(tokens)
        return cls(prompt, tokens, [True] * n, [0.0] * n, [0] * n, finish, **more)


LISTS = {"tokens", "sampled", "logp", "version", "ref_logp", "turn", "earned"}  # of a rollout, [T] each


@dataclass(frozen=True, slots=True)
class _Equal:
    value: Any
    count: int


def _packed(values: Any) -> Any:
    """A list of numbers of one type as an array, or as what it is where there is no such array."""
    if type(values) is not list or not values:
        return values
    first = values[0]
    if values.count(first) == len(values):
        return _Equal(first, len(values))
    try:
        return array("b" if isinstance(first, bool) else "d" if isinstance(first, float) else "i", values)
    except (TypeError, OverflowError):
        return values


def _unpacked(x: Any) -> Any:
    """The list again."""
    if isinstance(x, _Equal):
        return [x.value] * x.count
    if isinstance(x, array):
        return list(map(bool, x)) if x.typecode == "b" else x.tolist()
    return x


def by_episode(rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
    """The rows of each episode, in their order; a response without a number is an episode by itself."""
    out: list[list[Rollout]] = []
    before = None
    for r in rollouts:
        key = (r.group, r.prompt.id, r.episode)
        if r.episode is None or key != before:
            out.append([])
        out[-1].append(r)
        before = key
    return out


def last_of_episodes(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """One row of each episode: the last, whose text is the episode's answer."""
    return [rows[-1] for rows in by_episode(rollouts)]
