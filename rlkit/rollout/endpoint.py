"""The endpoint of an episode: calls of an agent that was written for OpenAI's API are turns of the episode that their key names.

::

    async def solve(endpoint, question, answer):
        client = AsyncOpenAI(base_url=endpoint.url, api_key=endpoint.key)
        return float(await my_agent(client, question) == str(answer))

An agent that is no coroutine is called by a plain function, which runs in a thread; one that is a program of its own is started with
``endpoint.environment``.

A call says a whole conversation. Where that begins with an earlier call and the answer to it, the context goes on by tokens, as that of
:class:`rlkit.rollout.episode.Chat` does: the answer stands in it as it was sampled, whatever the agent has made of its text. Where it does
not (another conversation, a changed history, a second answer to the same messages), the call begins a row of its own. So an agent may
hold several conversations, one after another or side by side; all their rows share the episode's reward.

Source: OpenAI's reference of its HTTP interface, chat completions and completions (the shape of requests, answers and errors).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlkit.data.render import Encoder, Message, Renderer, read_messages, short
from rlkit.errors import ContextFull, EpisodeError, InputError
from rlkit.model.endings import Endings
from rlkit.rollout.episode import ENDED, Chat, Said, Strand, Track
from rlkit.samples import Sampling
from rlkit.tools.calls import before_calls
from rlkit.tools.schema import tool_schema
from rlkit.tools.using import fitted

USED = ("model", "n", "max_tokens", "max_completion_tokens", "stop", "stream", "stream_options")
# These say how tokens are drawn, which the run does.
OF_RUN = ("temperature", "top_p", "top_k")
# What would change the distribution that the learner evaluates, or ask for what is not given; with this value it does not.
NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "logprobs": False,
    "top_logprobs": 0,
    "response_format": {"type": "text"},
    "parallel_tool_calls": True,
    "modalities": ["text"],
    "echo": False,
    "best_of": 1,
    "suffix": "",
}
# What concerns OpenAI's own service and no answer.
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
MOST_ANSWERS = 128  # to one call
NAME = "policy"


@dataclass(frozen=True)
class Endpoint:
    """The handle ``endpoint``: where an agent finds the model, and the key that makes its calls turns of this episode.

    Attributes:
        url: the ``base_url`` of a client. key: its ``api_key``, which is good until the episode ends. model: a name for the model, in
            whose place any other may stand.
    """

    url: str
    key: str
    _track: Track = field(repr=False)
    model: str = NAME

    @property
    def environment(self) -> dict[str, str]:
        """The variables that tell a client in a process of its own both."""
        return {"OPENAI_BASE_URL": self.url, "OPENAI_API_KEY": self.key}

    @property
    def turns(self) -> int:
        """How often the model has answered."""
        return self._track.turns


class Refused(Exception):
    """A call that is not served, as its client is told."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


@dataclass(frozen=True)
class _Asked:
    """What a call asks for, beside that to which it wants an answer."""

    n: int
    max_tokens: int | None
    stop: tuple[str, ...] | None


@dataclass(frozen=True)
class _Answer:
    """An answer that was given: the messages before it and itself, as the client knows them, and the chat after it."""

    messages: tuple[Message, ...]
    chat: Chat


class Calls:
    """All calls of one episode. Its methods run on the event loop of the episode."""

    def __init__(self, track: Track, render: Renderer, endings: Endings) -> None:
        self._track = track
        self._beginning = Chat(track.beginning(), render, endings)
        self._answers: list[_Answer] = []
        # Of completions, each with its text where that shows all tokens.
        self._contexts: list[tuple[str | None, Strand]] = []
        self._encode = Encoder(track.tokenizer)
        self._open: set[asyncio.Task[Any]] = set()
        self._ended = False

    def end(self) -> None:
        """Calls that are under way are refused, and the engine's answers to them are lost."""
        self._ended = True
        for task in self._open:
            task.cancel()

    async def answer(self, path: str, body: Any) -> dict[str, Any]:
        """What a call is answered with.

        Raises:
            Refused: it cannot be served.
        """
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            if not isinstance(body, dict):
                raise Refused(f"the body is {short(body)}; it must be a JSON object")
            return await (self._chat(body) if path == "/v1/chat/completions" else self._complete(body))
        except asyncio.CancelledError:
            if not self._ended:
                raise
            raise Refused(ENDED, status=410, code="episode_ended") from None
        except ContextFull as error:
            raise Refused(str(error), code="context_length_exceeded") from None
        except EpisodeError as error:
            raise Refused(str(error), status=410, code="episode_ended") from None
        except InputError as error:
            raise Refused(str(error)) from None
        finally:
            self._open.discard(task)

    # -- messages ---------------------------------------------------------------------------------------------------

    async def _chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        asked = read(body, self._track.sampling, ("messages", "tools", "tool_choice"))
        messages = _messages(body.get("messages"))
        schemas = _tools(body)
        before = max(
            (x for x in self._answers if _begins(messages, x.messages)), key=lambda x: len(x.messages), default=None
        )
        if before is None:
            chat = self._beginning.fork(messages, schemas)
        else:
            chat = before.chat.fork([*before.chat.messages, *messages[len(before.messages) :]], schemas)
        chats = [chat.fork(chat.messages, schemas) for _ in range(asked.n)]
        said = await asyncio.gather(*(c.generate(max_tokens=asked.max_tokens, stop=asked.stop) for c in chats))
        choices = []
        for k, (c, s) in enumerate(zip(chats, said, strict=True)):
            reply = _reply(s, schemas)
            self._answers.append(_Answer((*messages, *_messages([reply], answered=True)), c))
            finish = "tool_calls" if "tool_calls" in reply else s.finish
            choices.append({"index": k, "message": reply, "finish_reason": finish, "logprobs": None})
        return _response("chat.completion", choices, said, len(chats[0].tokens))

    # -- texts ------------------------------------------------------------------------------------------------------

    async def _complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        asked = read(body, self._track.sampling, ("prompt",))
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
            prompt = prompt[0]
        if isinstance(prompt, str) and prompt:
            tokens = self._tokens(prompt)
        elif isinstance(prompt, list) and prompt and all(self._is_token(x) for x in prompt):
            tokens = tuple(prompt)
        else:
            raise Refused(
                f"prompt is {short(prompt)}; it must be a text that is not empty, or the tokens of one, and one prompt a call",
                param="prompt",
            )
        strand = self._context(tokens)
        strands = [strand.fork() for _ in range(asked.n)]
        said = await asyncio.gather(*(x.ask(asked.max_tokens, asked.stop) for x in strands))
        choices = []
        for k, (x, s) in enumerate(zip(strands, said, strict=True)):
            whole = self._track.tokenizer.decode(list(s.tokens), skip_special_tokens=False) == s.text
            self._contexts.append((prompt + s.text if isinstance(prompt, str) and whole else None, x))
            choices.append({"index": k, "text": s.text, "finish_reason": s.finish, "logprobs": None})
        return _response("text_completion", choices, said, len(strands[0].tokens))

    def _is_token(self, x: Any) -> bool:
        return isinstance(x, int) and not isinstance(x, bool) and 0 <= x < len(self._track.tokenizer)

    def _tokens(self, text: str) -> tuple[int, ...]:
        """A text's tokens: those of the longest earlier text that it begins with, as they were sampled, and what follows."""
        known = [(t, x) for t, x in self._contexts if t is not None and text.startswith(t)]
        if not known:
            return self._encode(text)
        begins, strand = max(known, key=lambda x: len(x[0]))
        return (*strand.tokens, *self._track.encode(text[len(begins) :]))

    def _context(self, tokens: tuple[int, ...]) -> Strand:
        """The context with these tokens: the longest that was there before, grown, or another."""
        known = [self._track.beginning().fork(), *(x for _, x in self._contexts)]
        fits = [(len(x.tokens), x) for x in known if tokens[: len(x.tokens)] == x.tokens]
        if fits:
            length, found = max(fits, key=lambda x: x[0])
            found = found.fork()
            found.append(tokens[length:], "added")
            return found
        found = self._track.beginning()
        found.restart(tokens, str(self._track.tokenizer.decode(list(tokens), skip_special_tokens=False)))
        return found


def read(body: Mapping[str, Any], own: Sampling, more: Sequence[str]) -> _Asked:
    """The parameters of a call; ``own`` is how the run samples, ``more`` are parameters that are read elsewhere.

    Raises:
        Refused: one that is not supported, or has a value that it cannot have.
    """
    for name, value in body.items():
        if value is None or name in USED or name in more or name in IGNORED:
            continue
        if name in OF_RUN:
            if value != (of_run := getattr(own, name)):
                raise Refused(
                    f"{name} is {short(value)}, but the run samples with {of_run} (sampling.{name}), and trains on what it has sampled "
                    "so: leave it out",
                    param=name,
                )
        elif name not in NEUTRAL:
            raise Refused(
                f"{name} is not supported; supported are {', '.join((*more, *USED))}: leave it out", param=name
            )
        elif value != NEUTRAL[name]:
            raise Refused(
                f"{name} is {short(value)}, which is not supported: leave it out, or give {json.dumps(NEUTRAL[name])}",
                param=name,
            )
    if not isinstance(body.get("stream_options") or {}, Mapping):
        raise Refused(
            f"stream_options is {short(body['stream_options'])}; it must be an object", param="stream_options"
        )
    stop = body.get("stop")
    stop = (stop,) if isinstance(stop, str) else stop
    if stop is not None and not (isinstance(stop, list | tuple) and all(isinstance(s, str) and s for s in stop)):
        raise Refused(f"stop is {short(stop)}; it must be a text or a list of texts, none of them empty", param="stop")
    n, limits = _count(body, "n"), [_count(body, name) for name in ("max_completion_tokens", "max_tokens")]
    if (n or 1) > MOST_ANSWERS:
        raise Refused(f"n is {n}; one call has at most {MOST_ANSWERS} answers", param="n")
    return _Asked(n or 1, limits[0] or limits[1], None if stop is None else tuple(stop))


def _count(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise Refused(f"{name} is {short(value)}; it must be a whole number of at least 1", param=name)
    return value


def _messages(given: Any, *, answered: bool = False) -> list[Message]:
    """Messages as chat templates read them. ``answered``: they may end with an answer."""
    if not isinstance(given, list) or not given:
        raise Refused(f"messages is {short(given)}; it must be a list of messages", param="messages")
    messages = [_with_calls(m) for m in read_messages(given, "messages", empty=True)]
    if messages[-1]["role"] == "assistant" and not answered:
        raise Refused(
            "messages end with one of 'assistant'; the model answers to a message of 'user' or 'tool'", param="messages"
        )
    return messages


def _with_calls(message: Message) -> Message:
    """Calls with their arguments as a mapping, as chat templates want them; OpenAI writes them as a text."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or "name" not in function:
            raise Refused(
                f"messages: tool_calls has {short(call)}; a call has a function with name and arguments",
                param="messages",
            )
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            with contextlib.suppress(ValueError):  # else it stays as the client wrote it
                arguments = json.loads(arguments)
        calls.append({**call, "function": {**function, "arguments": arguments}})
    return {**message, "tool_calls": calls}


def _tools(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    tools, choice = body.get("tools") or [], body.get("tool_choice") or "auto"
    if choice not in ("auto", "none"):
        raise Refused(
            f"tool_choice is {short(choice)}, but nothing makes the model call a tool: leave it out",
            param="tool_choice",
        )
    if not isinstance(tools, list) or not all(isinstance(t, Mapping) for t in tools):
        raise Refused(f"tools is {short(tools)}; it must be a list of schemas", param="tools")
    return [tool_schema(t) for t in tools] if choice == "auto" else []


def _begins(messages: Sequence[Message], earlier: Sequence[Message]) -> bool:
    return len(messages) > len(earlier) and all(_alike(x, y) for x, y in zip(messages, earlier, strict=False))


def _alike(x: Message, y: Message) -> bool:
    """Whether two messages say the same; of an answer clients keep its text, or that without the space around it, and its calls."""
    if x["role"] != "assistant" or y["role"] != "assistant":
        return x == y
    return x["content"].strip() == y["content"].strip() and _called(x) == _called(y)


def _called(message: Message) -> list[tuple[Any, Any]]:
    return [(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls") or ()]


def _reply(said: Said, schemas: Sequence[Mapping[str, Any]]) -> Message:
    """An answer as OpenAI's API has it. A call that cannot be read stays a part of the text; whether one suits its tool is the client's to
    say, which gets the types of the schema where what was written has them.
    """
    calls = said.calls if schemas else ()
    if not calls or any(c.error for c in calls):
        return {"role": "assistant", "content": said.text}
    known = {schema["function"]["name"]: schema for schema in schemas}
    suited = [fitted(c, known[c.name]) if c.name in known else c for c in calls]
    return {
        "role": "assistant",
        "content": before_calls(said.text).strip() or None,
        "tool_calls": [
            {
                "id": f"call_{said.turn}_{i}",
                "type": "function",
                "function": {"name": c.name, "arguments": json.dumps(c.arguments, ensure_ascii=False)},
            }
            for i, c in enumerate(suited)
        ],
    }


def _response(kind: str, choices: list[dict[str, Any]], said: Sequence[Said], first: int) -> dict[str, Any]:
    """``first``: tokens of the first answer's context, with that answer."""
    prompt, answers = first - len(said[0].tokens), sum(len(s.tokens) for s in said)
    return {
        "id": f"turn-{said[0].turn}",
        "object": kind,
        "created": int(time.time()),
        "model": NAME,
        "choices": choices,
        "usage": {"prompt_tokens": prompt, "completion_tokens": answers, "total_tokens": prompt + answers},
    }


def streamed(response: Mapping[str, Any], usage: bool) -> list[dict[str, Any]]:
    """The events of a stream that say a whole response: an answer each, then why it ended, then ``usage``."""
    chat = response["object"] == "chat.completion"
    head = {k: response[k] for k in ("id", "created", "model")}
    head["object"] = "chat.completion.chunk" if chat else "text_completion"
    events = []
    for choice in response["choices"]:
        if chat:
            calls = choice["message"].get("tool_calls")
            numbered = {} if calls is None else {"tool_calls": [{"index": i, **c} for i, c in enumerate(calls)]}
            said: dict[str, Any] = {"delta": {**choice["message"], **numbered}}
            nothing: dict[str, Any] = {"delta": {}}
        else:
            said, nothing = {"text": choice["text"]}, {"text": ""}
        events.append({"index": choice["index"], **said, "finish_reason": None})
        events.append({"index": choice["index"], **nothing, "finish_reason": choice["finish_reason"]})
    told = [{**head, "choices": [e]} for e in events]
    return [*told, {**head, "choices": [], "usage": response["usage"]}] if usage else told
