"""An episode: a conversation that a function of the user's own holds with the model, and its tokens as they were sampled.

::

    async def play(chat, answer, limit=5):                # `answer` is of the row, `limit` of `args`
        for turn in range(limit):
            said = await chat.generate()                  # what the policy says, one turn
            if said.text.strip() == answer:
                return {"solved": 1.0}
            chat.user("No. Try again.")
        return {"solved": 0.0}

Parameters are filled by name, as those of rewards: from a handle on the model, ``chat`` (messages, through the tokenizer's chat template),
``context`` (text and tokens, for models without one) or ``endpoint`` (:mod:`rlkit.rollout.endpoint`), from ``rng``, a seeded
``random.Random``, and from ``prompt``, ``answer``, ``id`` and every column of the row. What is returned are rewards by name: a number is
the episode's, a list has a number for each turn.

The context only grows by tokens: what the model wrote is never tokenized again. Where the chat template shows what came before in another
way than the model saw it (it drops earlier thinking), the conversation goes on in a new row that begins with the template's text. All rows
of an episode share its rewards, and each token is trained once, in the row in which it was sampled.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlkit.data.render import Message, Renderer
from rlkit.errors import ConfigError, ContextFull, EpisodeError
from rlkit.model.endings import Endings
from rlkit.samples import Finish, Prompt, Rollout, Sampling
from rlkit.tools.calls import ToolCall, parse_calls
from rlkit.tools.schema import tool_schema, whole_tool
from rlkit.tools.using import Tool, use_tool

Asks = Callable[[Prompt, Sampling], Awaitable[Rollout]]
MARK = "\u27e8the answer\u27e9"  # stands where an answer will, to see what a template writes around it
ENDED = "the episode has ended: its function has returned, and nothing is generated for it any more."


@dataclass(frozen=True)
class Said:
    """One turn of the model. ``turn`` counts the episode's from 0; ``finish`` is ``length`` where the limit cut it off."""

    text: str
    tokens: tuple[int, ...]
    finish: Finish
    turn: int

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The calls of tools in it, in the formats of Qwen, Hermes and Llama."""
        return parse_calls(self.text)


@dataclass
class _Row:
    """Tokens of one context that grew: what it began with, and what came after, as the fields of a :class:`Rollout` have them."""

    start: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    version: list[int] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    added: list[int] = field(default_factory=list)  # not from the model, and nothing of the model's follows yet
    asking: bool = False  # an answer is under way that will be a part of it

    @property
    def length(self) -> int:
        return len(self.start) + len(self.tokens) + len(self.added)

    def grow(self, r: Rollout, turn: int) -> None:
        """What was added becomes a part of the row with the tokens that it led to; it has their version, and is not trained on."""
        between = len(self.added)
        self.tokens += [*self.added, *r.tokens]
        self.sampled += [False] * between + r.sampled
        self.logp += [0.0] * between + r.logp
        self.version += r.version[:1] * between + r.version
        self.turn += [-1] * between + [turn if s else -1 for s in r.sampled]
        self.added = []


class Track:
    """All that one episode consists of: its rows, what was said, and what people read of it. Who plays the episode ends it.

    ``limit``: tokens that a context can have. ``number``: of the episode in its group.
    """

    def __init__(self, ask: Asks, prompt: Prompt, sampling: Sampling, tokenizer: Any, limit: int, number: int) -> None:
        self.prompt, self.sampling, self.tokenizer, self.limit = prompt, sampling, tokenizer, limit
        self._ask, self._number = ask, number
        self._rows = [_Row(prompt.token_ids)]
        self._said: list[Said] = []
        self._shown = [("prompt", prompt.text)]
        self._asked = 0
        self.asking = 0  # answers that are under way
        self._ended = False

    @property
    def turns(self) -> int:
        return len(self._said)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def beginning(self) -> Strand:
        """The context that is the row's prompt."""
        return Strand(self, self._rows[0])

    def begin(self, tokens: Sequence[int]) -> _Row:
        """Another row, whose context begins with these tokens."""
        self._rows.append(_Row(tuple(tokens)))
        return self._rows[-1]

    def show(self, by: str, text: str) -> None:
        """A part of the transcript."""
        self._shown.append((by, text))

    async def ask(self, row: _Row, max_tokens: int | None, stop: Sequence[str] | None) -> Said:
        """What the model says after all tokens of a row, which is a part of it from then on."""
        if self._ended:
            raise EpisodeError(ENDED)
        if row.length >= self.limit:
            raise ContextFull(
                f"the context is full: it has {row.length} tokens, and rollout.max_model_len is {self.limit}. End the "
                "episode while `left` says that there is room, or raise rollout.max_model_len."
            )
        own = self.sampling
        most = min(own.max_tokens if max_tokens is None else max_tokens, self.limit - row.length)
        sampling = replace(own, max_tokens=most, stop=own.stop if stop is None else tuple(stop))
        # The name seeds the request: each turn of an episode is drawn anew, and the same in a resumed run.
        prompt = Prompt(f"{self.prompt.id}/{self._number}/{self._asked}", (*row.start, *row.tokens, *row.added), "")
        self._asked += 1
        self.asking, row.asking = self.asking + 1, True
        try:
            r = await self._ask(prompt, sampling)
        finally:
            self.asking, row.asking = self.asking - 1, False
        if self._ended:
            raise EpisodeError(ENDED)  # its rows have been handed out
        self._said.append(Said(r.text, tuple(r.tokens), r.finish, self.turns))
        row.grow(r, self._said[-1].turn)
        self.show("model", r.text)
        return self._said[-1]

    def end(self) -> list[Rollout]:
        """The rows, without rewards; one without tokens if the model has said nothing."""
        self._ended = True
        finish: Finish = self._said[-1].finish if self._said else "abort"
        shown = "\n".join(f"[{by}] {part}" for by, part in self._shown)
        return [
            Rollout(
                self.prompt if row.start == self.prompt.token_ids else replace(self.prompt, token_ids=row.start),
                row.tokens,
                row.sampled,
                row.logp,
                row.version,
                finish,
                text=self._said[-1].text if self._said else "",
                episode=self._number,
                turn=row.turn,
                transcript=shown,
            )
            for row in [row for row in self._rows if row.tokens] or self._rows[:1]
        ]


class Strand:
    """A context of an episode: a place in one of its rows, after which it goes on.

    A copy (:meth:`fork`) stands at the same place. The one that goes on first grows the row; another then begins a row of its own with the
    same tokens.
    """

    def __init__(self, track: Track, row: _Row) -> None:
        self.track = track
        self._row, self._length, self._asking = row, row.length, False

    @property
    def tokens(self) -> tuple[int, ...]:
        return (*self._row.start, *self._row.tokens, *self._row.added)[: self._length]

    @property
    def left(self) -> int:
        return self.track.limit - self._length

    def fork(self) -> Strand:
        other = copy.copy(self)
        other._asking = False
        return other

    def append(self, tokens: Sequence[int], by: str) -> None:
        """Tokens that the model has not written; ``by`` is what the transcript calls them."""
        if tokens:
            self._grows().added += tokens
            self._length += len(tokens)
            self.track.show(by, str(self.track.tokenizer.decode(list(tokens), skip_special_tokens=False)))

    def restart(self, tokens: Sequence[int], text: str) -> None:
        """Goes on from these tokens, which are a text's, in a row of their own."""
        self._row, self._length = self.track.begin(tokens), len(tokens)
        self.track.show("prompt, written anew", text)

    async def ask(self, max_tokens: int | None, stop: Sequence[str] | None) -> Said:
        """What the model says next, which is a part of this context from then on."""
        if self._asking:
            raise EpisodeError(
                "two answers were asked for at the same time in one episode: await the first before the second."
            )
        row, self._asking = self._grows(), True
        try:
            return await self.track.ask(row, max_tokens, stop)
        finally:
            self._length, self._asking = row.length, False

    def _grows(self) -> _Row:
        """The row, which nothing but this context has grown or is about to grow."""
        if self._row.asking or self._row.length != self._length:
            self._row = self.track.begin(self.tokens)
        return self._row


class Context:
    """The handle ``context``: the tokens that the model goes on from, which are the row's prompt and what was said and added since."""

    def __init__(self, strand: Strand) -> None:
        self._strand = strand

    @property
    def turns(self) -> int:
        """How often the model has answered."""
        return self._strand.track.turns

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens that the model sees next."""
        return self._strand.tokens

    @property
    def left(self) -> int:
        """How many more tokens fit into the context (``rollout.max_model_len``)."""
        return self._strand.left

    def add(self, what: str | Sequence[int]) -> None:
        """Appends a text, or tokens, that the model has not written; it is not trained on them."""
        self._strand.append(self._strand.track.encode(what) if isinstance(what, str) else list(what), "added")

    async def generate(self, *, max_tokens: int | None = None, stop: Sequence[str] | None = None) -> Said:
        """The model goes on. ``max_tokens`` and ``stop`` take the place of those of the section ``sampling``; fewer tokens are asked for
        where fewer fit into the context.

        Raises:
            ContextFull: no token fits.
            EpisodeError: the episode has ended, or another answer is under way.
        """
        return await self._strand.ask(max_tokens, stop)


class Chat:
    """The handle ``chat``: a conversation in messages, as the tokenizer's chat template shows them to the model.

    Attributes:
        messages: all of them, with the model's answers. Whatever is changed here is what the model sees next; where that is not what came
            before with something after it, the episode goes on in a new row.
    """

    def __init__(self, strand: Strand, render: Renderer, endings: Endings) -> None:
        self.messages: list[Message] = [dict(m) for m in strand.track.prompt.chat]
        self._strand, self._render, self._endings = strand, render, endings
        self._tools: dict[str, Tool] = {}
        self._schemas: list[dict[str, Any]] = []
        self._seen = strand.track.prompt.text  # what the template wrote when the model was asked last
        self._answer: tuple[int, Message, Said] | None = None  # the model's last: place, message, and what it was

    @property
    def turns(self) -> int:
        """How often the model has answered."""
        return self._strand.track.turns

    @property
    def left(self) -> int:
        """How many more tokens fit into the context; messages that were added since the last answer do not count yet."""
        return self._strand.left

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens up to the end of the model's last answer."""
        return self._strand.tokens

    def fork(self, messages: Sequence[Message], schemas: Sequence[dict[str, Any]]) -> Chat:
        """A chat of the same episode that shows these messages and these tools, and goes on from this one's tokens as far as it can: where
        the messages begin with this one's, the very objects, and the template shows them as it did.
        """
        other = copy.copy(self)
        other.messages, other._schemas, other._tools = list(messages), list(schemas), {}
        other._strand = self._strand.fork()
        return other

    def add(self, role: str, content: str, **more: Any) -> None:
        """Appends a message; ``more`` are further keys that the chat template reads."""
        self.messages.append({"role": role, "content": content, **more})

    def user(self, content: str) -> None:
        self.add("user", content)

    def tool(self, content: str, name: str | None = None) -> None:
        """The result of a tool."""
        self.add("tool", content, **({} if name is None else {"name": name}))

    def use(self, *tools: Callable[..., Any] | Mapping[str, Any] | Tool) -> None:
        """Shows tools to the model through the chat template: functions with annotations and a docstring, or a :class:`rlkit.tools.Tool`
        each, both of which :meth:`run` calls; or schemas alone in the form of OpenAI or MCP.

        Raises:
            ConfigError: a schema cannot be made of one, or is not that of its function, or two have one name.
        """
        for tool in tools:
            made = tool if isinstance(tool, Mapping) else whole_tool(tool)
            schema = tool_schema(made.schema if isinstance(made, Tool) else made)
            name = schema["function"]["name"]
            if any(name == other["function"]["name"] for other in self._schemas):
                raise ConfigError(
                    f"chat.use: there is a tool {name!r} already, and a call names nothing else. Rename one."
                )
            self._schemas.append(schema)
            if isinstance(made, Tool):
                self._tools[name] = made

    async def generate(self, *, max_tokens: int | None = None, stop: Sequence[str] | None = None) -> Said:
        """The model answers to the messages, and its answer is one of them; the arguments are those of :meth:`Context.generate`."""
        self._bring_up()
        said = await self._strand.ask(max_tokens, stop)
        message = {"role": "assistant", "content": said.text}
        self._answer = (len(self.messages), message, said)
        self.messages.append(message)
        return said

    async def run(self, turns: int = 8) -> Said:
        """Answers and tools in turns, until an answer calls no tool, or ``turns`` answers were given; returns the last one.

        What a tool returns, and what is wrong with a call, is told to the model. An exception of a tool other than
        :class:`rlkit.tools.ToolError` fails the episode.
        """
        said = await self.generate()
        for _ in range(turns - 1):
            if not said.calls:
                break
            for call in said.calls:
                self.tool(await use_tool(self._tools, call), call.name)
            said = await self.generate()
        return said

    def _bring_up(self) -> None:
        """Brings the context to what the messages say now, by appending to it where that is possible."""
        where = f"episode of prompt {self._strand.track.prompt.id}"
        more = {"tools": self._schemas} if self._schemas else {}
        now = self._render.chat(self.messages, where, more)
        after = None if self._answer is None else self._written_after(self._answer, now, where, more)
        if after is not None:
            tokens = self._strand.track.encode(after)
            said = self._answer[2].tokens if self._answer is not None else ()
            # The model has written the token that ends its answer, where it has; the template would write it once more.
            twice = tokens[:1] and tokens[0] in self._endings.ids and said[-1] in self._endings.ids
            self._strand.append(tokens[1:] if twice else tokens, "chat")
        elif now != self._seen or self._answer is not None:
            self._strand.restart(self._strand.track.encode(now), now)
        self._seen = now

    def _written_after(
        self, answer: tuple[int, Message, Said], now: str, where: str, more: Mapping[str, Any]
    ) -> str | None:
        """What the template writes after the model's last answer; None where it shows the answer, or what came before, in another way.

        Space around an answer, which many templates strip, is no such difference.
        """
        place, message, said = answer
        if place >= len(self.messages) or self.messages[place] is not message:
            return None
        marked = [*self.messages[:place], {**message, "content": MARK}, *self.messages[place + 1 :]]
        before, _, after = self._render.chat(marked, where, more).partition(MARK)
        if before != self._seen or not now.startswith(before) or not now.endswith(after):
            return None
        written = now[len(before) : len(now) - len(after)]
        return after if written.strip() == said.text.strip() else None
