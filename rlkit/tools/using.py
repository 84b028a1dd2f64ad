"""How a call of a model's becomes a call of a function."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from rlkit.tools.calls import ToolCall


class ToolError(Exception):
    """What a tool raises for a call that it cannot answer; the model is told, and may try again."""


async def use_tool(tools: Mapping[str, Callable[..., Any]], call: ToolCall) -> str:
    """What the model is told: the result, as text or JSON, or what is wrong with its call.

    A function that is not ``async`` runs in a thread, so that other episodes get on. Exceptions other than :class:`ToolError` are the
    tool's own mistakes and are raised.
    """
    if call.error is not None:
        return f"error: {call.error}"
    tool = tools.get(call.name)
    if tool is None:
        return f"error: there is no tool {call.name!r}; there are {', '.join(tools) or 'none'}"
    try:
        inspect.signature(tool).bind(**call.arguments)
    except TypeError as error:
        return f"error: {call.name}: {error}"
    try:
        if inspect.iscoroutinefunction(tool):
            found = await tool(**call.arguments)
        else:
            found = await asyncio.to_thread(tool, **call.arguments)
    except ToolError as error:
        return f"error: {error}"
    return found if isinstance(found, str) else json.dumps(found, default=str, ensure_ascii=False)
