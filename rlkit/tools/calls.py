"""Calls of tools in what a model wrote, in the formats that Qwen, Hermes and Llama were trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

TAGGED = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL)  # Qwen, Hermes
# Within the tags (Qwen3-Coder), or alone (Llama).
XML = re.compile(r"\s*<function=([^>\s]+)>(.*?)</function>\s*", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
PYTHON_TAG = "<|python_tag|>"  # Llama


@dataclass(frozen=True)
class ToolCall:
    """A call as the model wrote it; ``error`` says why it cannot be made, in words that the model can read."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


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
    if "<tool_call>" in said:
        return tuple(call for m in TAGGED.finditer(said) for call in _tagged(m[1], bool(m[2])))
    if "<function=" in said:
        return tuple(_function(m[1], m[2]) for m in XML.finditer(said))
    return tuple(_bare(said.strip()))


def before_calls(text: str) -> str:
    """What an answer with calls says before the first of them."""
    thought, end, said = text.rpartition("</think>")
    starts = [at for mark in ("<tool_call>", "<function=", PYTHON_TAG) if (at := said.find(mark)) >= 0]
    return thought + end + said[: min(starts, default=0)]


def _tagged(inside: str, closed: bool) -> Iterator[ToolCall]:
    if not closed:
        yield ToolCall("", error="the call has no </tool_call>")
        return
    found = XML.fullmatch(inside)
    if found is not None:
        yield _function(found[1], found[2])
        return
    try:
        yield _of(json.loads(inside))
    except ValueError as error:
        yield ToolCall("", error=f"the call is not JSON ({error})")


def _function(name: str, inside: str) -> ToolCall:
    """The arguments as parameters in tags, whose values are JSON where they can be and else text, or as one JSON object."""
    if not inside.lstrip().startswith("{"):
        return ToolCall(name, {key: _value(value) for key, value in PARAMETER.findall(inside)})
    try:
        return _of({"name": name, "arguments": json.loads(inside)})
    except ValueError as error:
        return ToolCall(name, error=f"the arguments are not JSON ({error})")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _bare(text: str) -> Iterator[ToolCall]:
    """Llama's: an answer that is nothing but JSON objects with a name and parameters. Other JSON is an answer."""
    tagged = text.startswith(PYTHON_TAG)
    rest, decoder, found = text.removeprefix(PYTHON_TAG).strip(), json.JSONDecoder(), list[ToolCall]()
    while rest.startswith("{"):
        try:
            value, end = decoder.raw_decode(rest)
        except ValueError as error:
            if tagged:
                yield ToolCall("", error=f"the call is not JSON ({error})")
            return
        if not tagged and not (
            isinstance(value, dict) and value.keys() >= {"name"} and {"parameters", "arguments"} & value.keys()
        ):
            return
        found.append(_of(value))
        rest = rest[end:].lstrip().removeprefix(";").lstrip()
    if not rest or tagged:
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
