"""How a call of a model's becomes a call of a function."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlkit.tools.calls import ToolCall

TYPES: dict[str, tuple[type, ...]] = {  # of JSON Schema
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


@dataclass(frozen=True)
class Tool:
    """A tool whose schema is not made of its function: ``call`` gets what the model wrote for the parameters, by name."""

    schema: Mapping[str, Any]
    call: Callable[..., Any]


class ToolError(Exception):
    """What a tool raises for a call that it cannot answer; the model is told, and may try again."""


async def use_tool(tools: Mapping[str, Tool], call: ToolCall) -> str:
    """What the model is told: the result, as text or JSON, or what is wrong with its call.

    A function that is not ``async`` runs in a thread, so that other episodes get on. Exceptions other than :class:`ToolError` are the
    tool's own mistakes and are raised.
    """
    if call.error is None and call.name not in tools:
        return f"error: there is no tool {call.name!r}; there are {', '.join(tools) or 'none'}"
    call = call if call.error is not None else fitted(call, tools[call.name].schema)
    if call.error is not None:
        return f"error: {call.error}"
    tool = tools[call.name].call
    if (wrong := unfit(tool, call.arguments)) is not None:
        return f"error: {call.name}: {wrong}"
    try:
        if inspect.iscoroutinefunction(tool):
            found = await tool(**call.arguments)
        else:
            found = await asyncio.to_thread(tool, **call.arguments)
            if inspect.isawaitable(found):  # of an object that is called like a function
                found = await found
    except ToolError as error:
        found = f"error: {error}"
    text = found if isinstance(found, str) else json.dumps(found, default=str, ensure_ascii=False)
    return text.encode(errors="replace").decode()  # no tokenizer takes half of a surrogate pair


def fitted(call: ToolCall, schema: Mapping[str, Any]) -> ToolCall:
    """The call with arguments of the types that its tool's schema names, or with the ``error`` that one of them has another.

    What stood between tags is the text that it was for a parameter that is a text, and a whole number of JSON may be written ``2.0``.
    """
    told = schema["function"]["parameters"].get("properties") or {}
    arguments = dict(call.arguments)
    for name, value in call.arguments.items():
        rule = told.get(name)
        rule = rule if isinstance(rule, Mapping) else {}
        wanted = rule.get("type")
        kinds: list[Any] = wanted if isinstance(wanted, list) else [wanted]
        if not all(isinstance(kind, str) and kind in TYPES for kind in kinds):
            continue  # nothing is said, or in a way that is the tool's to check
        if "string" in kinds and name in call.texts:
            arguments[name] = call.texts[name]
        elif "integer" in kinds and isinstance(value, float) and value.is_integer():
            arguments[name] = int(value)
        elif not (value is None and rule.get("nullable")) and not any(_is(value, kind) for kind in kinds):
            return replace(call, error=f"{call.name}: {name!r} must be of type {' or '.join(kinds)}")
    return replace(call, arguments=arguments)


def unfit(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str | None:
    """Why a function cannot be called with these arguments; None if it can, or does not say."""
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        return str(error)
    except ValueError:  # some of Python's own have no signature
        return None
    return None


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
