"""A call of a model's becomes a call of a function, or a sentence that the model can read."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

from rlkit.tools import Tool, ToolCall, ToolError, calculator, parse_calls
from rlkit.tools.schema import whole_tool
from rlkit.tools.using import use_tool


def told(tool: Any, **arguments: Any) -> str:
    made = whole_tool(tool)
    name = made.schema["function"]["name"]
    return asyncio.run(use_tool({name: made}, ToolCall(name, arguments)))


def kinds(
    text: str = "", whole: int = 0, number: float = 0.0, yes: bool = False, several: list[int] | None = None
) -> str:
    """Says what it got.

    Args:
        text: a text.
        whole: a whole number.
        number: a number.
        yes: whether.
        several: numbers.
    """
    return repr((text, whole, number, yes, several))


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ({"text": "a", "whole": 2, "number": 1, "yes": True, "several": [1]}, "('a', 2, 1, True, [1])"),
        ({"whole": 2.0}, "('', 2, 0.0, False, None)"),
        ({"several": None}, "('', 0, 0.0, False, None)"),
        ({"text": 5}, "error: kinds: 'text' must be of type string"),
        ({"whole": "2"}, "error: kinds: 'whole' must be of type integer"),
        ({"whole": True}, "error: kinds: 'whole' must be of type integer"),
        ({"whole": 2.5}, "error: kinds: 'whole' must be of type integer"),
        ({"number": "x"}, "error: kinds: 'number' must be of type number"),
        ({"yes": 1}, "error: kinds: 'yes' must be of type boolean"),
        ({"several": {}}, "error: kinds: 'several' must be of type array"),
        ({"other": 1}, "error: kinds: got an unexpected keyword argument 'other'"),
    ],
)
def test_what_has_another_type_than_the_schema_says_is_told(arguments: dict[str, Any], answer: str) -> None:
    assert told(kinds, **arguments) == answer


def test_what_stands_between_tags_is_a_text_where_a_text_is_wanted() -> None:
    (call,) = parse_calls("<function=kinds><parameter=text>1.50</parameter><parameter=whole>7</parameter></function>")
    assert asyncio.run(use_tool({"kinds": whole_tool(kinds)}, call)) == "('1.50', 7, 0.0, False, None)"
    (call,) = parse_calls("<function=calculator><parameter=expression>012</parameter></function>")
    assert asyncio.run(use_tool({"calculator": whole_tool(calculator)}, call)).startswith(
        "error: '012' is no arithmetic"
    )


NOTHING: dict[str, Any] = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}


class Later:
    async def __call__(self) -> str:
        return "at last"


async def soon(text: str) -> str:
    return text


def fails() -> str:
    raise ToolError("not today")


@pytest.mark.parametrize(
    ("function", "answer"),
    [
        (lambda: 3, "3"),
        (lambda: None, "null"),
        (lambda: {"\u00e4": [1.5]}, '{"\u00e4": [1.5]}'),
        (lambda: {1, 2}, '"{1, 2}"'),
        (lambda: "half \ud800", "half ?"),
        (fails, "error: not today"),
        (Later(), "at last"),
        (functools.partial(soon, "partly"), "partly"),
        (lambda: soon("a coroutine"), "a coroutine"),
    ],
)
def test_what_a_tool_returns_is_told_as_a_text(function: Any, answer: str) -> None:
    assert told(Tool(NOTHING, function)) == answer


def test_a_function_without_a_signature_is_called() -> None:
    schema = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    assert told(Tool(schema, dict)) == "{}"
