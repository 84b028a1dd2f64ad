"""Calls of tools in what a model wrote, in the formats that Qwen, Hermes and Llama were trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlkit.errors import DataError

TAG, FUNCTION, PARAMETER = "tool_call", "function", "parameter"
PYTHON_TAG = "<|python_tag|>"  # Llama


@dataclass(frozen=True)
class ToolCall:
    """A call as the model wrote it; ``error`` says why it cannot be made, in words that the model can read.

    ``texts`` are arguments that stood between tags, as they were written: there a text and a number look alike, and only the tool's
    schema knows which is meant (:func:`rlkit.tools.using.fitted`).
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    texts: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)


def parse_calls(text: str) -> tuple[ToolCall, ...]:
    """The calls in an answer, in their order; none within its thinking (``<think>...</think>``).

    =====================================================================================  ===================================
    ``<tool_call>{"name": "f", "arguments": {...}}</tool_call>``                           Hermes, Qwen2.5, Qwen3
    ``<tool_call><function=f><parameter=x>1</parameter></function></tool_call>``           Qwen3-Coder
    ``{"name": "f", "parameters": {...}}``, the whole answer, several divided by ``;``     Llama 3.1 and later
    ``<function=f>{"x": 1}</function>``                                                    Llama 3.1, tools in the system prompt
    =====================================================================================  ===================================
    """
    said = text.rpartition("</think>")[2]
    if "<think>" in said:  # it thinks still
        return ()
    if f"<{TAG}>" in said:
        return tuple(call for inside, closed in _between(said, f"<{TAG}>", TAG) for call in _tagged(inside, closed))
    if f"<{FUNCTION}=" in said:
        return tuple(_functions(said))
    if PYTHON_TAG in said:
        return tuple(_bare(said.partition(PYTHON_TAG)[2].strip(), marked=True))
    return tuple(_bare(said.strip()))


def before_calls(text: str) -> str:
    """What an answer with calls says before the first of them."""
    thought, end, said = text.rpartition("</think>")
    starts = [at for mark in (f"<{TAG}>", f"<{FUNCTION}=", PYTHON_TAG) if (at := said.find(mark)) >= 0]
    return thought + end + said[: min(starts, default=0)]


def _between(text: str, begin: str, tag: str) -> Iterator[tuple[str, bool]]:
    """What stands between each ``begin`` and the next end of ``tag``, and whether that end is there. Takes linear time."""
    end, at = f"</{tag}>", text.find(begin)
    while at >= 0:
        start = at + len(begin)
        stop = text.find(end, start)
        yield (text[start:], False) if stop < 0 else (text[start:stop], True)
        at = text.find(begin, stop) if stop >= 0 else -1


def _tagged(inside: str, closed: bool) -> Iterator[ToolCall]:
    if not closed:
        yield ToolCall("", error=f"the call has no </{TAG}>")
    elif inside.lstrip().startswith(f"<{FUNCTION}="):
        yield from _functions(inside)
    else:
        try:
            yield _of(_json(inside))
        except ValueError as error:
            yield ToolCall("", error=f"the call is not JSON ({error})")


def _functions(text: str) -> Iterator[ToolCall]:
    for inside, closed in _between(text, f"<{FUNCTION}=", FUNCTION):
        name, mark, rest = inside.partition(">")
        if not closed:
            yield ToolCall("", error=f"the call has no </{FUNCTION}>")
        elif not mark or not name or name.split() != [name]:
            yield ToolCall("", error=f"a call begins with <{FUNCTION}=NAME>")
        else:
            yield _function(name, rest)


def _function(name: str, inside: str) -> ToolCall:
    """The arguments as parameters in tags, whose values are JSON where they can be and else text, or as one JSON object."""
    if inside.lstrip().startswith("{"):
        try:
            return _of({"name": name, "arguments": _json(inside)})
        except ValueError as error:
            return ToolCall(name, error=f"the arguments are not JSON ({error})")
    texts = dict[str, str]()
    for given, closed in _between(inside, f"<{PARAMETER}=", PARAMETER):
        key, mark, value = given.partition(">")
        if not closed or not mark:
            return ToolCall(name, error=f"a parameter is <{PARAMETER}=NAME>VALUE</{PARAMETER}>")
        texts[key] = value.removeprefix("\n").removesuffix("\n")
    return ToolCall(name, {key: _value(value) for key, value in texts.items()}, texts=texts)


def _value(text: str) -> Any:
    try:
        return _json(text)
    except ValueError:
        return text


def _bare(text: str, marked: bool = False) -> Iterator[ToolCall]:
    """Llama's: an answer that is nothing but JSON objects with a name and parameters. Other JSON is an answer, if it is not ``marked``
    as a call.
    """
    rest, found = text, list[ToolCall]()
    while rest.startswith("{"):
        try:
            value, end = _first(rest)
        except ValueError as error:
            if marked:
                yield ToolCall("", error=f"the call is not JSON ({error})")
            return
        if not marked and not (
            isinstance(value, dict) and value.keys() >= {"name"} and {"parameters", "arguments"} & value.keys()
        ):
            return
        found.append(_of(value))
        rest = rest[end:].lstrip().removeprefix(";").lstrip()
    if marked and not found:
        yield ToolCall("", error='a call is {"name": ..., "parameters": {...}}')
    elif marked or not rest:
        yield from found


def _of(value: Any) -> ToolCall:
    """A call of its JSON. Arguments may be written as a text that holds JSON, as OpenAI's are."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return ToolCall("", error='a call is {"name": ..., "arguments": {...}}')
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _value(arguments)
    if not isinstance(arguments, dict):
        return ToolCall(value["name"], error="the arguments must be an object with a value for each parameter")
    return ToolCall(value["name"], arguments)


def _json(text: str) -> Any:
    """A value of JSON.

    Raises:
        DataError: it is none (or the ValueError of ``json``), which NaN and halves of surrogate pairs are not either: no tokenizer takes
            these, and no client those.
    """
    value, end = _first(text.strip())
    if end < len(text.strip()):
        raise DataError(f"extra text after column {end}")
    return value


def _first(text: str) -> tuple[Any, int]:
    """The value with which a text begins, and where it ends."""
    try:
        value, end = json.JSONDecoder().raw_decode(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise DataError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise DataError("it has half of a surrogate pair") from None
    return value, end
