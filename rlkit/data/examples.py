"""From rows that somebody else wrote to what is trained on: pairs, labelled responses and demonstrations (:mod:`rlkit.data.offline`).

A row is recognised by its columns, in the layouts that people have: ``prompt`` beside responses, or a whole chat (text) in each response,
of which all but the last answer is the prompt; responses are texts or messages. A text becomes a prompt by ``data.template``, a chat by
the tokenizer's own template; the response ends with the token that ends a response of the model.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlkit.data import Data
from rlkit.data.offline import Demonstrations, Labelled, Offline, Pairs
from rlkit.data.prompts import pick, read_rows
from rlkit.data.render import Encoder, Message, Rendered, Renderer, read_messages, short
from rlkit.data.rows import Rows
from rlkit.data.stored import order
from rlkit.data.tasks import Row, Split
from rlkit.errors import DataError
from rlkit.samples import Outputs, Prompt, Rollout, Source

# The names under which people store a column, ours first.
NAMES = {
    "prompt": ("prompt", "question", "instruction", "query"),
    "chosen": ("chosen", "chosen_response", "response_chosen", "preferred", "response_j"),
    "rejected": ("rejected", "rejected_response", "response_rejected", "dispreferred", "response_k"),
    "response": ("response", "completion", "output", "answer"),
    "messages": ("messages", "conversations", "conversation"),
    "label": ("label", "score", "reward", "rating"),
    "system": ("system", "system_prompt"),
    "chosen_score": ("chosen_score", "score_chosen", "chosen_rating", "rating_chosen"),
    "rejected_score": ("rejected_score", "score_rejected", "rejected_rating", "rating_rejected"),
}
SHAREGPT = {"human": "user", "gpt": "assistant"}  # who speaks where messages have `from` and `value`
TURN = "\n\nAssistant:"  # what stands before an answer in dialogues that are one text (HH-RLHF)
YES, NO = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True, slots=True)
class Example:
    """A response that was not sampled here, as compact as a data set of millions of tokens needs it. ``reward``: its label or score."""

    prompt: Prompt
    tokens: array[int]
    text: str
    source: Source
    reward: float

    def rollout(self, group: int, outputs: Mapping[str, Outputs] | None = None) -> Rollout:
        return Rollout.given(
            self.prompt,
            self.tokens.tolist(),
            text=self.text,
            source=self.source,
            group=group,
            reward=self.reward,
            outputs=outputs or {},
        )

    @property
    def length(self) -> int:
        return len(self.prompt.token_ids) + len(self.tokens)


@dataclass(frozen=True)
class ExampleRows:
    """The examples of a section, one or two (a pair) a row; ``known``: what anchors say of them, by their names, where that is kept."""

    spec: Offline
    rows: tuple[tuple[Example, ...], ...]
    seed: int
    known: Mapping[str, tuple[tuple[Outputs, ...], ...]] = field(default_factory=dict)

    @property
    def per_step(self) -> int:
        return self.spec.per_step

    def draw(self, step: int, first_group: int) -> list[Rollout]:
        which = order(self.spec.key, self.seed, len(self.rows), step, self.per_step)
        return [r for i, k in enumerate(which) for r in self._row(k, first_group + i)]

    def all(self, first_group: int = 0) -> list[Rollout]:
        """Every row once."""
        return [r for k in range(len(self.rows)) for r in self._row(k, first_group + k)]

    def _row(self, k: int, group: int) -> list[Rollout]:
        return [
            e.rollout(group, {name: found[k][i] for name, found in self.known.items()})
            for i, e in enumerate(self.rows[k])
        ]

    def epoch(self, step: int) -> float:
        """How often every row has been trained on after ``step`` steps."""
        return step * self.per_step / len(self.rows)


def read_examples(
    data: Data,
    spec: Offline,
    split: Split,
    tokenizer: Any,
    end: int,
    context: int | None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[tuple[Example, ...], ...]:
    """The rows of ``spec.path`` (``split`` train) or ``spec.test``, each as its example or its pair; () where there is no source.

    Args:
        end: the token that ends a response. context: tokens that the model takes; None: it is made to measure.

    Raises:
        DataError: a missing file, a malformed row (file:line), a row that cannot be learned from, labels that are all of one class.
    """
    key = f"{spec.key}.{'path' if split == 'train' else 'test'}"
    source, limit = (spec.path, spec.size) if split == "train" else (spec.test, spec.test_size)
    if source is None:
        return ()
    read = _READERS[type(spec)](spec, Renderer.of(data, tokenizer), Encoder(tokenizer), tokenizer, end)
    longest = min((n for n in (spec.max_tokens, context) if n is not None), default=None)
    found: list[tuple[Example, ...]] = []
    bad: list[tuple[str, str]] = []
    for where, row in _rows(source, split, key, say):
        if limit is not None and len(found) >= limit:
            break
        made = read(row, where)
        why = made if isinstance(made, str) else _too_long(made, longest)
        if why is not None:
            bad.append((where, why))
        elif not isinstance(made, str):
            found.append(made)
    if bad:
        kinds = Counter(why for _, why in bad)
        counted = "; ".join(f"{why} ({n} rows)" for why, n in kinds.most_common(3))
        if spec.unusable == "raise":
            raise DataError(
                f"{bad[0][0]}: {bad[0][1]}. Mend or remove the row, or set data.{spec.key}.unusable: drop "
                f"({len(bad)} of {len(found) + len(bad)} rows: {counted})."
            )
        say(f"data.{key}: {len(bad)} of {len(found) + len(bad)} rows dropped: {counted}.")
    if not found:
        raise DataError(f"data.{key}: no row is left of {source}.")
    if isinstance(spec, Labelled):
        _two_classes(found, key)
    return tuple(found)


def _rows(source: Any, split: Split, key: str, say: Callable[[str], None]) -> Iterator[tuple[str, Row]]:
    if isinstance(source, Rows):
        yield from ((f"data.{key}[{i}]", row) for i, row in enumerate(source))
        return
    for name in (source,) if isinstance(source, str) else source:
        yield from read_rows(name, split, say, key)


def _too_long(row: Sequence[Example], longest: int | None) -> str | None:
    n = max(e.length for e in row)
    if longest is None or n <= longest:
        return None
    what = "a half" if len(row) > 1 else "the response"
    return f"{what} has more tokens with its prompt than max_tokens or the model's context, {longest}"


def _two_classes(rows: Sequence[tuple[Example, ...]], key: str) -> None:
    """Raises DataError for labels that say nothing."""
    values = {e.reward for row in rows for e in row}
    if len(values) == 1:
        raise DataError(
            f"data.{key}: all {len(rows)} labels are {values.pop():g}; learning from labels needs good and bad responses. Add the others, "
            f"name another column (columns: {{label: ...}}), or use data.demonstrations for responses that are all good."
        )


class _Reader(ABC):
    """What a row holds, as examples; a text says why it cannot be learned from."""

    def __init__(self, spec: Offline, render: Renderer, encode: Encoder, tokenizer: Any, end: int) -> None:
        self.spec, self.render, self.encode, self.tokenizer, self.end = spec, render, encode, tokenizer, end
        self.end_text = str(tokenizer.decode([end]))

    @abstractmethod
    def __call__(self, row: Row, where: str) -> tuple[Example, ...] | str: ...

    # -- columns ---------------------------------------------------------------------------------------------------

    def column(self, row: Row, what: str) -> str | None:
        """The name of the column that holds ``what``; None if there is none."""
        if what in self.spec.columns:
            return self.spec.columns[what]
        return next((name for name in NAMES[what] if row.get(name) is not None), None)

    def get(self, row: Row, what: str, where: str) -> Any:
        """The value of a column that need not be there."""
        name = self.column(row, what)
        return None if name is None else pick(row, name, what, where)

    def need(self, row: Row, what: str, where: str) -> Any:
        name = self.column(row, what)
        if name is None:
            raise DataError(
                f"{where}: there is no column for the {what}; columns are {', '.join(map(str, row))}. Name it: "
                f"data.{self.spec.key}.columns: {{{what}: ...}}."
            )
        return pick(row, name, what, where)

    def number(self, value: Any, what: str, where: str) -> float:
        """A label or a score: a number, or one of the words for yes and no."""
        if isinstance(value, str):
            word = value.strip().lower()
            value = 1.0 if word in YES else 0.0 if word in NO else word
        try:
            x = float(value)
        except (TypeError, ValueError):
            x = math.nan
        if not math.isfinite(x):
            raise DataError(f"{where}: the {what} is {short(value)}; it must be true, false, or a number.")
        return x

    # -- prompts and responses ---------------------------------------------------------------------------------------

    def question(self, row: Row, where: str) -> Any:
        """The prompt of a row whose responses do not repeat it; None if it has no such column.

        Alpaca's ``input`` stands below its instruction, a system message in front of the question where the tokenizer's template writes it.
        """
        value = self.get(row, "prompt", where)
        if not isinstance(value, str):
            return value
        more = row.get("input")
        if isinstance(more, str) and more.strip() and self.column(row, "prompt") == "instruction":
            value = f"{value}\n\n{more}"
        system = self.get(row, "system", where)
        if (
            isinstance(system, str)
            and system.strip()
            and self.render.template.chat
            and self.render.template.text == "{question}"
        ):
            return [{"role": "system", "content": system}, {"role": "user", "content": value}]
        return value

    def prompt(self, value: Any, row: Row, where: str) -> tuple[Prompt, Rendered]:
        """The prompt of a value, a text or messages, with the row's other columns."""
        if isinstance(value, list | tuple):
            value = messages_of(value, where)
            if value[-1]["role"] == "assistant":
                raise DataError(
                    f"{where}: the prompt ends with an answer of the assistant; the response is a column of its own, or the chat a column "
                    f"`messages`."
                )
        rendered = self.render(value, where)
        used = {name for what in NAMES for name in (self.column(row, what),) if name is not None}
        columns = {k: v for k, v in row.items() if k not in used or isinstance(v, int | float)}
        columns.setdefault("question", rendered.question)
        ids = self.encode(rendered.text, rendered.templated)
        if not ids:
            raise DataError(f"{where}: the prompt has no token; a response needs one before it.")
        identity = row.get("id", row.get("prompt_id"))
        return Prompt(
            where if identity is None else str(identity), ids, rendered.text, row.get("answer"), columns
        ), rendered

    def tokens(self, prompt: Rendered, message: Message, where: str) -> array[int]:
        """The tokens of an answer, up to the one that ends it."""
        text = self.render.answer(prompt, message, where)
        at = text.rfind(self.end_text) if prompt.templated else -1
        ids = self.tokenizer(text if at < 0 else text[:at], add_special_tokens=False)["input_ids"]
        return array("i", ids if ids and ids[-1] == self.end else [*ids, self.end])

    def answer(self, value: Any, what: str, where: str) -> Message:
        """A response as a message of the assistant: a text, a message, or a list of one."""
        if isinstance(value, str):
            return {"role": "assistant", "content": value}
        if isinstance(value, Mapping):
            value = [value]
        if not isinstance(value, list | tuple):
            raise DataError(f"{where}: the {what} is {short(value)}; it must be a text, or a message of the assistant.")
        messages = messages_of(value, where, empty=True) if len(value) else [{"role": "assistant", "content": ""}]
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise DataError(
                f"{where}: the {what} holds messages of {', '.join(m['role'] for m in messages)}; beside a prompt it is one message of the "
                "assistant."
            )
        return messages[0]


class _Pairs(_Reader):
    def __call__(self, row: Row, where: str) -> tuple[Example, ...] | str:
        halves = [self.need(row, what, where) for what in ("chosen", "rejected")]
        asked = self.question(row, where)
        if all(isinstance(h, list | tuple) and len(h) > 1 for h in halves):
            asked, answers = _shared_chat([messages_of(h, where, empty=True) for h in halves], asked, where)
        elif asked is None and all(isinstance(h, str) for h in halves):
            asked, texts = _shared_text(halves, where)
            answers = [self.answer(t, "response", where) for t in texts]
        elif asked is None:
            raise DataError(
                f"{where}: there is no column for the prompt, and the halves are not two chats or two texts that begin with it; columns "
                f"are {', '.join(map(str, row))}. Name it: data.pairs.columns: {{prompt: ...}}."
            )
        else:
            answers = [
                self.answer(h, f"{what} half", where) for h, what in zip(halves, ("chosen", "rejected"), strict=True)
            ]
        for what, message in zip(("chosen", "rejected"), answers, strict=True):
            if not message["content"].strip() and not message.get("tool_calls"):
                return f"the {what} half is empty"
        prompt, rendered = self.prompt(asked, row, where)
        better, worse = (self.tokens(rendered, m, where) for m in answers)
        if better == worse:
            return "the halves are equal"
        rewards = [1.0, 0.0]
        scores = [self.get(row, f"{what}_score", where) for what in ("chosen", "rejected")]
        if None not in scores:
            rewards = [self.number(x, "score", where) for x in scores]
        texts = [str(m["content"]) for m in answers]
        return (
            Example(prompt, better, texts[0], "chosen", rewards[0]),
            Example(prompt, worse, texts[1], "rejected", rewards[1]),
        )


class _Single(_Reader):
    """A response to a prompt, or the last answer of a chat."""

    def __call__(self, row: Row, where: str) -> tuple[Example, ...] | str:
        asked, value = self.question(row, where), self.get(row, "messages", where)
        response = None if value is not None else self.get(row, "response", where)
        if value is None and isinstance(response, list | tuple) and len(response) > 1 and asked is None:
            value = response
        if value is not None:
            chat = messages_of(value, where, empty=True)
            if len(chat) < 2 or chat[-1]["role"] != "assistant":
                raise DataError(
                    f"{where}: the chat does not end with an answer of the assistant to something before it."
                )
            asked, message = chat[:-1], chat[-1]
        else:
            asked = self.need(row, "prompt", where) if asked is None else asked
            message = self.answer(self.need(row, "response", where), "response", where)
        if not message["content"].strip() and not message.get("tool_calls"):
            return "the response is empty"
        prompt, rendered = self.prompt(asked, row, where)
        reward = self.reward(row, where)
        return (
            Example(
                prompt, self.tokens(rendered, message, where), str(message["content"]), self.spec.sources[0], reward
            ),
        )

    def reward(self, row: Row, where: str) -> float:
        return 0.0


class _Labelled(_Single):
    def reward(self, row: Row, where: str) -> float:
        assert isinstance(self.spec, Labelled)
        x = self.number(self.need(row, "label", where), "label", where)
        return x if self.spec.threshold is None else float(x > self.spec.threshold)


_READERS: dict[type[Offline], type[_Reader]] = {Pairs: _Pairs, Labelled: _Labelled, Demonstrations: _Single}


def messages_of(value: Any, where: str, empty: bool = False) -> list[Message]:
    """A chat; messages with ``from`` and ``value`` (ShareGPT) are read, too. ``empty``: its last message may have no content."""
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: found {short(value)}, expected a list of messages.")
    given = [
        {"role": SHAREGPT.get(m["from"], m["from"]), "content": m["value"]}
        if isinstance(m, Mapping) and "role" not in m and {"from", "value"} <= set(m)
        else m
        for m in value
    ]
    last = given[-1] if given else None
    blank = (
        empty
        and isinstance(last, Mapping)
        and last.get("role") == "assistant"
        and not str(last.get("content") or "").strip()
    )
    read = read_messages(given[:-1] if blank else given, where)
    return [*read, {"role": "assistant", "content": ""}] if blank and not (last or {}).get("tool_calls") else read


def _shared_chat(halves: Sequence[list[Message]], asked: Any, where: str) -> tuple[list[Message], list[Message]]:
    """The messages before the last of two chats, which are their prompt, and the last ones.

    Raises:
        DataError: they are not the same, or not what the prompt's own column says.
    """
    chosen, rejected = halves
    before, theirs = chosen[:-1], rejected[:-1]
    if before != theirs:
        k = next(
            (i for i, (a, b) in enumerate(zip(before, theirs, strict=False)) if a != b), min(len(before), len(theirs))
        )
        raise DataError(
            f"{where}: the halves answer different prompts: their chats differ in message {k}, before the last answer. A pair is two "
            "answers to one prompt."
        )
    for half, chat in (("chosen", chosen), ("rejected", rejected)):
        if chat[-1]["role"] != "assistant":
            raise DataError(
                f"{where}: the {half} half ends with a message of {chat[-1]['role']!r}, not with an answer of the assistant."
            )
    said = [m["content"].strip() for m in before]
    other = (
        asked.strip() not in said
        if isinstance(asked, str)
        else asked is not None and messages_of(asked, where) != before
    )
    if other:
        raise DataError(
            f"{where}: the prompt is {short(asked)}, but the chats of both halves go on from another one, {short(before)}. A half is one "
            "answer, or the prompt and one answer."
        )
    return before, [chosen[-1], rejected[-1]]


def _shared_text(halves: Sequence[str], where: str) -> tuple[str, list[str]]:
    """The prompt with which two texts begin, and what follows it in each.

    In a dialogue the prompt ends where the assistant's last turn begins. In other texts it is what they share, up to a whole word.

    Raises:
        DataError: they share nothing, or the dialogues differ before the last turn.
    """
    chosen, rejected = halves
    if TURN in chosen and TURN in rejected:
        prompts = [text[: text.rindex(TURN) + len(TURN)] for text in (chosen, rejected)]
        if prompts[0] != prompts[1]:
            raise DataError(
                f"{where}: the halves answer different prompts: their dialogues differ before the last turn of the assistant. A pair is "
                "two answers to one prompt."
            )
        at = len(prompts[0])
    else:
        shared = next(
            (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
            min(len(chosen), len(rejected)),
        )
        at = max((i for i in range(shared) if chosen[i].isspace()), default=0)
        if not chosen[:at].strip():
            raise DataError(
                f"{where}: there is no column for the prompt, and the halves do not begin with the same one ({short(chosen)} and "
                f"{short(rejected)}). Name it: data.pairs.columns: {{prompt: ...}}."
            )
    return chosen[:at], [chosen[at:], rejected[at:]]
