"""From rows that somebody else wrote to what is trained on: pairs, labelled responses and demonstrations (:mod:`rlkit.data.offline`).

A row is recognised by its columns, in the layouts that people have: ``prompt`` beside responses, or a whole chat (text) in each response,
of which all but the last answer is the prompt; responses are texts or messages. A text becomes a prompt by ``data.template``, a chat by
the tokenizer's own template; the response ends with the token that ends a response of the model. Of a demonstrated chat every answer is
trained, and nothing between them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkit.data import Data
from rlkit.data.files import parse
from rlkit.data.offline import Demonstrations, Labelled, Offline, Pairs
from rlkit.data.prompts import pick, read_rows
from rlkit.data.render import Encoder, Message, Rendered, Renderer, is_written_chat, read_messages, short, written_chat
from rlkit.data.rows import Rows
from rlkit.data.stored import order
from rlkit.data.tasks import Row, Split
from rlkit.errors import DataError
from rlkit.samples import Outputs, Prompt, Rollout, Source

# The names under which people store a column, ours first.
NAMES = {
    "prompt": ("prompt", "question", "instruction", "query", "input"),
    "chosen": ("chosen", "chosen_response", "response_chosen", "preferred", "response_j"),
    "rejected": ("rejected", "rejected_response", "response_rejected", "dispreferred", "response_k"),
    "response": ("response", "completion", "output", "answer"),
    "messages": ("messages", "conversations", "conversation"),
    "label": ("label", "score", "reward", "rating"),
    "system": ("system", "system_prompt"),
    "text": ("text",),
    "chosen_score": ("chosen_score", "score_chosen", "chosen_rating", "chosen-rating", "rating_chosen"),
    "rejected_score": ("rejected_score", "score_rejected", "rejected_rating", "rejected-rating", "rating_rejected"),
}
MORE = ("input", "context")  # what stands below an `instruction` (Alpaca, Dolly)
# Who speaks where messages have `from` and `value`.
SHAREGPT = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool"}
# What stands before an answer in dialogues that are one text (HH-RLHF), and before a question.
TURN, THEIRS = "\n\nAssistant:", "\n\nHuman:"
DIFFERENT = "the halves answer different prompts"  # a pair is two answers to one
FIRST = 100  # rows that say whether responses repeat their prompt
CALLED = {"chosen": "chosen half", "rejected": "rejected half"}
YES, NO = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True, slots=True)
class Example:
    """A response that was not sampled here, as compact as a data set of millions of tokens needs it.

    Attributes:
        reward: its label or score. trained: for each token whether it is trained; empty: all are.
    """

    prompt: Prompt
    tokens: array[int]
    text: str
    source: Source
    reward: float
    trained: bytes = b""

    def rollout(self, group: int, outputs: Mapping[str, Outputs] | None = None) -> Rollout:
        made = Rollout.given(
            self.prompt,
            self.tokens.tolist(),
            text=self.text,
            source=self.source,
            group=group,
            reward=self.reward,
            outputs=outputs or {},
        )
        if self.trained:
            made.sampled = list(map(bool, self.trained))
        return made

    @property
    def length(self) -> int:
        return len(self.prompt.token_ids) + len(self.tokens)

    @property
    def identity(self) -> int:
        """The same for the same tokens of prompt and response."""
        return hash((self.prompt.token_ids, self.tokens.tobytes()))

    def pieces(self) -> Iterator[tuple[bool, list[int]]]:
        """Its tokens, cut where those that are trained begin or end."""
        flags = self.trained or bytes([1]) * len(self.tokens)
        for flag, of in itertools.groupby(zip(flags, self.tokens, strict=True), key=lambda pair: pair[0]):
            yield bool(flag), [token for _, token in of]


class Unusable(Exception):
    """A row that cannot be learned from: why, and what of it."""

    def __init__(self, why: str, more: str = "") -> None:
        self.why, self.more = why, more


@dataclass(frozen=True)
class ExampleRows:
    """The examples of a section, one or two (a pair) a row; ``known``: what anchors say of them, by their names, where that is kept."""

    spec: Offline
    rows: tuple[tuple[Example, ...], ...]
    seed: int
    known: Mapping[str, tuple[tuple[Outputs, ...], ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.spec.key

    @functools.cached_property
    def digest(self) -> str:
        """The same for the same tokens, labels and scores in the same order."""
        found = hashlib.sha256()
        for e in (e for row in self.rows for e in row):
            found.update(array("q", [len(e.prompt.token_ids), *e.prompt.token_ids, len(e.tokens)]).tobytes())
            found.update(e.tokens.tobytes() + e.trained + array("d", [e.reward]).tobytes())
        return found.hexdigest()[:16]

    @property
    def per_step(self) -> int:
        return self.spec.per_step

    def draw(self, step: int, first_group: int) -> list[Rollout]:
        which = order(self.name, self.seed, len(self.rows), step, self.per_step)
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
    bad: list[tuple[str, Unusable]] = []
    for where, row in read.looking_at(_rows(source, split, key, say)):
        if limit is not None and len(found) >= limit:
            break
        try:
            made = read(row, where)
            _require_short(made, longest)
            found += made
        except Unusable as error:
            bad.append((where, error))
    if bad:
        kinds = Counter(error.why for _, error in bad)
        counted = "; ".join(f"{why} ({n} rows)" for why, n in kinds.most_common(3))
        if spec.unusable == "raise":
            where, first = bad[0]
            raise DataError(
                f"{where}: {first.why}{first.more}. Mend or remove the row, or set data.{spec.key}.unusable: drop "
                f"({len(bad)} of {len(found) + len(bad)} rows: {counted})."
            )
        say(f"data.{key}: {len(bad)} of {len(found) + len(bad)} rows dropped: {counted}.")
    if not found:
        raise DataError(f"data.{key}: no row is left of {source}.")
    if isinstance(spec, Labelled):
        _two_classes(found, key)
    for note in (*read.notes(), *_odd(found)):
        say(f"data.{key}: {note}")
    return tuple(found)


def overlap_of_rows(train: ExampleRows, test: ExampleRows) -> str | None:
    """A warning if rows of ``test`` are in ``train``, too: the same prompt with the same responses."""
    known = {tuple(e.identity for e in row) for row in train.rows}
    both = [row[0].prompt.id for row in test.rows if tuple(e.identity for e in row) in known]
    return (
        f"data.{test.spec.key}: {len(both)} of {len(test.rows)} rows of test are also rows of path (the first: {both[0]}): what is "
        "measured on them shows what was memorized. Take them out of one of the two."
        if both
        else None
    )


def _odd(rows: Sequence[tuple[Example, ...]]) -> Iterator[str]:
    """What of rows is strange and may be meant."""
    seen = dict[tuple[int, ...], float]()
    twice = other = turned = below = 0
    for row in rows:
        key = tuple(e.identity for e in row)
        twice += key in seen
        other += seen.setdefault(key, row[0].reward) != row[0].reward and len(row) == 1
        turned += len(row) == 2 and key[::-1] in seen
        below += len(row) == 2 and row[0].reward <= row[1].reward
    for n, what in (
        (twice - other, "stand there more than once"),
        (other, "stand there before with another label"),
        (turned, "are also there the other way round, the rejected half as the chosen one"),
        (below, "have a chosen half whose score is not above that of the rejected one"),
    ):
        if n:
            yield f"{n} of {len(rows)} rows {what}."


def _rows(source: Any, split: Split, key: str, say: Callable[[str], None]) -> Iterator[tuple[str, Row]]:
    if isinstance(source, Rows):
        yield from ((f"data.{key}[{i}]", row) for i, row in enumerate(source))
        return
    for name in (source,) if isinstance(source, str) else source:
        yield from read_rows(name, split, say, key)


def _require_short(rows: Sequence[tuple[Example, ...]], longest: int | None) -> None:
    """Raises Unusable for a response that does not fit."""
    for row in rows:
        if longest is not None and max(e.length for e in row) > longest:
            what = "a half" if len(row) > 1 else "the response"
            raise Unusable(f"{what} has more tokens with its prompt than max_tokens or the model's context, {longest}")


def _two_classes(rows: Sequence[tuple[Example, ...]], key: str) -> None:
    """Raises DataError for labels that say nothing."""
    values = {e.reward for row in rows for e in row}
    if len(values) == 1:
        raise DataError(
            f"data.{key}: all {len(rows)} labels are {values.pop():g}; learning from labels needs good and bad responses. Add the others, "
            f"name another column (columns: {{label: ...}}), or use data.demonstrations for responses that are all good."
        )


class _Reader(ABC):
    """What a row holds, as examples; of those that cannot be learned from it raises Unusable."""

    def __init__(self, spec: Offline, render: Renderer, encode: Encoder, tokenizer: Any, end: int) -> None:
        self.spec, self.render, self.encode, self.tokenizer, self.end = spec, render, encode, tokenizer, end
        self.end_text = str(tokenizer.decode([end]))
        self.repeats = False  # whether responses that are texts begin with their prompt
        self.left = dict[tuple[str, str], set[str]]()  # rows with a column that is not written, and why

    @abstractmethod
    def __call__(self, row: Row, where: str) -> Sequence[tuple[Example, ...]]:
        """What is trained together (a pair, or one), often once a row."""

    @abstractmethod
    def answers(self, row: Row, where: str) -> Sequence[Any]:
        """The values of a row's responses."""

    def looking_at(self, rows: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
        """The rows, of which the first have shown whether responses repeat their prompt."""
        first = list(itertools.islice(rows, FIRST))
        texts = [(prompt, a) for where, row in first for prompt, a in self._texts(row, where)]
        self.repeats = bool(texts) and all(prompt.strip() and a.startswith(prompt) for prompt, a in texts)
        return itertools.chain(first, rows)

    def _texts(self, row: Row, where: str) -> Iterator[tuple[str, str]]:
        """A row's prompt beside each of its responses, where both are texts."""
        with contextlib.suppress(Unusable):
            prompt = self.question(row, where)
            if not isinstance(prompt, str):
                return
            yield from ((prompt, a) for a in self.answers(row, where) if isinstance(a, str))

    def notes(self) -> Iterator[str]:
        """What there is to say of the rows that were read."""
        if self.repeats:
            yield "the responses begin with their prompt, which is taken off them."
        for (column, why), rows in self.left.items():
            yield f"the column {column!r} of {len(rows)} rows is left out: {why}."

    # -- columns ---------------------------------------------------------------------------------------------------

    def column(self, row: Row, what: str) -> str | None:
        """The name of the column that holds ``what``, if it can be one that is not empty; None if there is none."""
        if what in self.spec.columns:
            return self.spec.columns[what]
        there = [name for name in NAMES[what] if name in row]
        return next((name for name in there if row[name] is not None), there[0] if there else None)

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
        value = pick(row, name, what, where)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise Unusable(f"the {CALLED.get(what, what)} is empty")
        return value

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
        """The prompt of a row whose responses do not repeat it; None if it has none.

        What stands below an instruction (Alpaca's ``input``, Dolly's ``context``) is a part of it.
        """
        name = self.column(row, "prompt")
        value = None if name is None else pick(row, name, "prompt", where)
        if isinstance(value, str | list | tuple) and not (value.strip() if isinstance(value, str) else value):
            raise Unusable("the prompt is empty")
        more = next((row[m] for m in MORE if isinstance(row.get(m), str) and row[m].strip()), None)
        return f"{value}\n\n{more}" if more and name == "instruction" and isinstance(value, str) else value

    def rendered(self, value: Any, row: Row, where: str) -> Rendered:
        """A prompt, a text or messages, as the model sees it, below the row's own system message and with its tools."""
        system, tools = self.get(row, "system", where), self.tools(row, where)
        plain = f"data.template: {self.render.name} has no place for it"
        if isinstance(system, str) and system.strip():
            if isinstance(value, str) and self.render.template.chat:
                value = [{"role": "user", "content": value}]
            if isinstance(value, str):
                self.left.setdefault(("system", plain), set()).add(where)
            elif value[0]["role"] not in ("system", "developer"):
                value = [{"role": "system", "content": system}, *value]
        render, chat = self.render, self.render.template.chat or not isinstance(value, str)
        if tools and chat and self.render.reads("tools"):
            render = dataclasses.replace(self.render, options={**self.render.options, "tools": tools})
        elif tools:
            why = "the tokenizer's chat template does not read it" if chat else plain
            self.left.setdefault(("tools", why), set()).add(where)
        return render(value, where)

    def tools(self, row: Row, where: str) -> Any:
        """The schemas in the column ``tools``, a list or JSON of one; Parquet gives each the keys of all."""
        value = row.get("tools")
        if isinstance(value, str) and value.strip():
            value = parse(value, Path(f"{where}: tools"))
        if value is None or value == "":
            return None
        if not isinstance(value, list | tuple) or not all(isinstance(t, Mapping) for t in value):
            raise DataError(f"{where}: tools is {short(value)}; it must be a list of schemas.")
        return _without_none(value)

    def prompt(self, rendered: Rendered, row: Row, where: str, ids: tuple[int, ...] = ()) -> Prompt:
        """A prompt with the row's other columns; ``ids``: its tokens, where they are known."""
        used = {name for what in NAMES for name in (self.column(row, what),) if name is not None}
        columns = {k: v for k, v in row.items() if k not in used or isinstance(v, int | float)}
        columns.setdefault("question", rendered.question)
        ids = ids or self.encode(rendered.text, rendered.templated)
        if not ids:
            raise DataError(f"{where}: the prompt has no token; a response needs one before it.")
        identity = row.get("id", row.get("prompt_id"))
        return Prompt(where if identity is None else str(identity), ids, rendered.text, row.get("answer"), columns)

    def text(self, prompt: Rendered, message: Message, where: str) -> str:
        """The text of an answer without the token that ends it, and without what a template writes behind that."""
        text = self.render.answer(prompt, message, where)
        if prompt.templated and self.end_text in text:
            text = text[: text.rindex(self.end_text)]
        while text.rstrip().endswith(self.end_text):
            text = text.rstrip().removesuffix(self.end_text)
        if not text.strip():
            raise Unusable("the chat template writes nothing of an answer", f" ({short(message)})")
        return text

    def tokens(self, text: str, what: str) -> array[int]:
        """The tokens of an answer's text, and the one that ends it.

        Raises:
            Unusable: that token stands within it, after which a model is not asked for more.
        """
        ids = array("i", self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if self.end in ids[:-1]:
            raise Unusable(f"{self.end_text!r}, which ends a response, stands inside of the {what}")
        return ids if ids and ids[-1] == self.end else ids + array("i", [self.end])

    def answer(self, value: Any, asked: Any, what: str, where: str) -> Message:
        """A response as a message of the assistant: a text, a message, or a list of one."""
        if isinstance(value, str):
            if is_written_chat(value):
                raise DataError(f"{where}: {written_chat(value, what)}")
            if self.repeats and isinstance(asked, str):
                if not value.startswith(asked):
                    raise Unusable(f"the {what} does not begin with its prompt, as those of the first rows do")
                value = value[len(asked) :]
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

    def chat(self, value: Any, where: str) -> list[Message]:
        """A prompt that is a chat.

        Raises:
            DataError: it ends with an answer.
        """
        chat = messages_of(value, where)
        if chat[-1]["role"] == "assistant":
            raise DataError(
                f"{where}: the prompt ends with an answer of the assistant; the response is a column of its own, or the chat a column "
                f"`messages`."
            )
        return chat


class _Pairs(_Reader):
    def answers(self, row: Row, where: str) -> Sequence[Any]:
        return [self.get(row, what, where) for what in ("chosen", "rejected")]

    def __call__(self, row: Row, where: str) -> Sequence[tuple[Example, ...]]:
        halves = [self.need(row, what, where) for what in ("chosen", "rejected")]
        asked = self.question(row, where)
        if all(isinstance(h, list | tuple) and len(h) > 1 for h in halves):
            asked, answers = _shared_chat([messages_of(h, where, empty=True) for h in halves], asked, where)
        elif self.column(row, "prompt") is None and all(isinstance(h, str) and not is_written_chat(h) for h in halves):
            asked, texts = _shared_text(halves, where)
            answers = [self.answer(t, None, "response", where) for t in texts]
        else:
            asked = self.get(row, "messages", where) if asked is None else asked
            if asked is None and self.column(row, "prompt") is not None:
                raise Unusable("the prompt is empty")
            if asked is None:
                raise DataError(
                    f"{where}: there is no column for the prompt, and the halves are not two chats or two texts that begin with it; "
                    f"columns are {', '.join(map(str, row))}. Name it: data.pairs.columns: {{prompt: ...}}."
                )
            answers = [
                self.answer(h, asked, f"{what} half", where)
                for h, what in zip(halves, ("chosen", "rejected"), strict=True)
            ]
        for what, message in zip(("chosen", "rejected"), answers, strict=True):
            if is_blank(message):
                raise Unusable(f"the {what} half is empty")
        rendered = self.rendered(asked if isinstance(asked, str) else self.chat(asked, where), row, where)
        prompt = self.prompt(rendered, row, where)
        better, worse = (self.tokens(self.text(rendered, m, where), "half") for m in answers)
        if better == worse:
            raise Unusable("the halves are equal")
        rewards = [1.0, 0.0]
        scores = [self.get(row, f"{what}_score", where) for what in ("chosen", "rejected")]
        if None not in scores:
            rewards = [self.number(x, "score", where) for x in scores]
        texts = [str(m["content"]) for m in answers]
        return [
            (
                Example(prompt, better, texts[0], "chosen", rewards[0]),
                Example(prompt, worse, texts[1], "rejected", rewards[1]),
            )
        ]


class _Single(_Reader):
    """A response to a prompt, or an answer of a chat."""

    def answers(self, row: Row, where: str) -> Sequence[Any]:
        return [] if self.get(row, "messages", where) is not None else [self.get(row, "response", where)]

    def __call__(self, row: Row, where: str) -> Sequence[tuple[Example, ...]]:
        value, asked = self.get(row, "messages", where), None
        if value is None:
            asked, response = self.question(row, where), self.get(row, "response", where)
            if isinstance(response, list | tuple) and len(response) > 1 and not isinstance(asked, str):
                value = [*(asked or ()), *response]
        if value is not None:
            chat = messages_of(value, where, empty=True)
            return self.of_chat(chat, len(asked or ()), row, where)
        asked = self.need(row, "prompt", where) if asked is None else asked
        message = self.answer(self.need(row, "response", where), asked, "response", where)
        rendered = self.rendered(asked if isinstance(asked, str) else self.chat(asked, where), row, where)
        return [(self.single(rendered, message, row, where),)]

    def of_chat(self, chat: list[Message], begin: int, row: Row, where: str) -> Sequence[tuple[Example, ...]]:
        """Of a chat, of which the messages before ``begin`` are a prompt: its last answer."""
        if len(chat) < 2 or chat[-1]["role"] != "assistant":
            raise Unusable("the chat does not end with an answer of the assistant to something before it")
        return [(self.single(self.rendered(self.chat(chat[:-1], where), row, where), chat[-1], row, where),)]

    def single(self, rendered: Rendered, message: Message, row: Row, where: str) -> Example:
        if is_blank(message):
            raise Unusable("the response is empty")
        tokens = self.tokens(self.text(rendered, message, where), "response")
        prompt = self.prompt(rendered, row, where)
        return Example(prompt, tokens, str(message["content"]), self.spec.sources[0], self.reward(row, where))

    def reward(self, row: Row, where: str) -> float:
        return 0.0


class _Labelled(_Single):
    def reward(self, row: Row, where: str) -> float:
        assert isinstance(self.spec, Labelled)
        x = self.number(self.need(row, "label", where), "label", where)
        return x if self.spec.threshold is None else float(x > self.spec.threshold)


class _Demonstrations(_Single):
    texts = 0  # rows that are a text

    def __call__(self, row: Row, where: str) -> Sequence[tuple[Example, ...]]:
        beside = (self.column(row, what) for what in ("messages", "prompt", "response"))
        if "text" in self.spec.columns or (self.column(row, "text") is not None and not any(beside)):
            return [(self.whole(row, where),)]
        return super().__call__(row, where)

    def whole(self, row: Row, where: str) -> Example:
        """A text: every token is trained that has one before it, and the one that ends it. Nothing is written around it."""
        text = self.need(row, "text", where)
        if not isinstance(text, str):
            raise DataError(f"{where}: the text is {short(text)}; a chat is a column `messages`.")
        if is_written_chat(text):
            raise DataError(f"{where}: {written_chat(text, 'text')}")
        ids = self.encode(text)
        ids = ids if ids[-1] == self.end else (*ids, self.end)
        self.texts += 1
        first = Rendered(str(self.tokenizer.decode([ids[0]])), "")
        return Example(self.prompt(first, row, where, ids[:1]), array("i", ids[1:]), text, self.spec.sources[0], 0.0)

    def notes(self) -> Iterator[str]:
        yield from super().notes()
        if self.texts:
            yield (
                f"of {self.texts} texts every token is trained, and no template is written around them; a chat of which only answers are "
                "trained is a column `messages`."
            )

    def of_chat(self, chat: list[Message], begin: int, row: Row, where: str) -> Sequence[tuple[Example, ...]]:
        """All answers, but those to nothing and those whose ``weight`` is 0.

        They are one example, in which what stands between them is not trained, as long as the chat template writes the chat up to an
        answer as it wrote it before; where it writes the past otherwise (it leaves out earlier thoughts), another one begins.
        """
        trained = [
            k
            for k in range(max(begin, 1), len(chat))
            if chat[k]["role"] == "assistant"
            and chat[k - 1]["role"] in ("user", "tool")
            and chat[k].get("weight") != 0
            and not is_blank(chat[k])
        ]
        if not trained:
            raise Unusable("the chat holds no answer of the assistant to something before it")
        made, now, written = list[tuple[Example, ...]](), None, ""
        for k in trained:
            rendered = self.rendered(chat[:k], row, where)
            answer, content = self.text(rendered, chat[k], where), str(chat[k]["content"])
            tokens = self.tokens(answer, "response")
            if now is not None and rendered.text.startswith(written):
                now = self._joined(now, rendered.text[len(written) :], tokens, content)
            else:
                made += [] if now is None else [(now,)]
                now = Example(self.prompt(rendered, row, where), tokens, content, self.spec.sources[0], 0.0)
            written = rendered.text + answer + self.end_text
        assert now is not None
        return [*made, (now,)]

    def _joined(self, e: Example, between: str, tokens: array[int], content: str) -> Example:
        """With another answer behind it, and what stands between the two."""
        given = array("i", self.tokenizer(between, add_special_tokens=False)["input_ids"])
        trained = (e.trained or bytes([1]) * len(e.tokens)) + bytes(len(given)) + bytes([1]) * len(tokens)
        return dataclasses.replace(e, tokens=e.tokens + given + tokens, text=f"{e.text}\n\n{content}", trained=trained)


_READERS: dict[type[Offline], type[_Reader]] = {Pairs: _Pairs, Labelled: _Labelled, Demonstrations: _Demonstrations}


def messages_of(value: Any, where: str, empty: bool = False) -> list[Message]:
    """A chat; messages with ``from`` and ``value`` (ShareGPT) are read, too. ``empty``: its last message may have no content."""
    if isinstance(value, str) and is_written_chat(value):
        raise DataError(f"{where}: {written_chat(value)}")
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: found {short(value)}, expected a list of messages.")
    given = [
        {"role": SHAREGPT.get(m["from"], m["from"]), "content": m["value"]}
        if isinstance(m, Mapping) and "role" not in m and {"from", "value"} <= set(m)
        else m
        for m in value
    ]
    read = [_with_arguments(m) for m in read_messages(given, where, empty=True)]
    if not read:
        raise Unusable("the chat is empty")
    for i, m in enumerate(read):
        if is_blank(m) and m["role"] != "tool" and not (empty and i == len(read) - 1 and m["role"] == "assistant"):
            raise Unusable("a message has no content", f" (message {i}, {m['role']})")
    return read


def is_blank(m: Message) -> bool:
    """Whether a message says nothing and calls nothing."""
    return not m["content"].strip() and not m.get("tool_calls")


def _with_arguments(m: Message) -> Message:
    """The message with the arguments of its calls as chat templates read them: a mapping, which OpenAI's files hold as a text of JSON."""
    calls = m.get("tool_calls")
    if not isinstance(calls, list | tuple):
        return m
    made = []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
            with contextlib.suppress(ValueError):  # else it stays as it is written
                call = {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
        made.append(_without_none(call))
    return {**m, "tool_calls": made}


def _without_none(value: Any) -> Any:
    """The value without keys that hold nothing: Parquet gives each mapping of a column the keys of all."""
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list | tuple) else value


def _shared_chat(halves: Sequence[list[Message]], asked: Any, where: str) -> tuple[list[Message], list[Message]]:
    """The messages before the last of two chats, which are their prompt, and the last ones.

    Raises:
        Unusable: they are not the same, or not what the prompt's own column says.
    """
    chosen, rejected = halves
    before, theirs = chosen[:-1], rejected[:-1]
    if before != theirs:
        k = next(
            (i for i, (a, b) in enumerate(zip(before, theirs, strict=False)) if a != b), min(len(before), len(theirs))
        )
        raise Unusable(DIFFERENT, f": their chats differ in message {k}, before the last answer")
    for half, chat in (("chosen", chosen), ("rejected", rejected)):
        if chat[-1]["role"] != "assistant":
            raise Unusable(
                f"the {half} half ends with a message of {chat[-1]['role']!r}, not with an answer of the assistant"
            )
    said = [m["content"].strip() for m in before]
    other = (
        asked.strip() not in said
        if isinstance(asked, str)
        else asked is not None and messages_of(asked, where) != before
    )
    if other:
        raise Unusable(
            "the prompt is another one than that of the chats of both halves",
            f" ({short(asked)}; theirs: {short(before)})",
        )
    return before, [chosen[-1], rejected[-1]]


def _shared_text(halves: Sequence[str], where: str) -> tuple[str, list[str]]:
    """The prompt with which two texts begin, and what follows it in each.

    In a dialogue the prompt ends where the assistant's last turn begins. In other texts it is what they share, up to a whole word.

    Raises:
        Unusable: dialogues that differ before the last turn, or end with the human's. DataError: texts that share nothing.
    """
    chosen, rejected = halves
    if TURN in chosen and TURN in rejected:
        prompts = [text[: text.rindex(TURN) + len(TURN)] for text in (chosen, rejected)]
        if prompts[0] != prompts[1]:
            raise Unusable(DIFFERENT, ": their dialogues differ before the last turn of the assistant")
        at = len(prompts[0])
        for text in (chosen, rejected):
            if THEIRS in text[at:]:
                raise Unusable("a half goes on after the assistant's last turn with one of the human")
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
