"""Calls of tools as the families write them."""

from __future__ import annotations

import pytest

from rlkit.tools import ToolCall, parse_calls

ADD = ToolCall("add", {"a": 1, "b": "two"})


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "two"}}\n</tool_call>',
        'I shall add.\n<tool_call>{"arguments": {"a": 1, "b": "two"}, "name": "add"}</tool_call> Now wait.',
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": \\"two\\"}"}</tool_call>',
        '<think>\nOr <tool_call>{"name": "no"}</tool_call>?\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "two"}}\n</tool_call>',
        "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\ntwo\n</parameter>\n</function>\n</tool_call>",
        '{"name": "add", "parameters": {"a": 1, "b": "two"}}',
        '<|python_tag|>{"name": "add", "parameters": {"a": 1, "b": "two"}}',
        'I shall add. <|python_tag|>{"name": "add", "parameters": {"a": 1, "b": "two"}}',
        '<function=add>{"a": 1, "b": "two"}</function>',
    ],
)
def test_one_call(text: str) -> None:
    assert parse_calls(text) == (ADD,)


def test_several_calls_in_their_order() -> None:
    tagged = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>\n<tool_call>{"name": "g", "arguments": {}}</tool_call>'
    assert parse_calls(tagged) == (ToolCall("f", {"x": 1}), ToolCall("g"))
    functions = "<function=f><parameter=x>1</parameter></function>\n<function=g></function>"
    for several in (functions, f"<tool_call>{functions}</tool_call>"):
        assert parse_calls(several) == (ToolCall("f", {"x": 1}), ToolCall("g"))
    assert parse_calls('{"name": "f", "parameters": {"x": 1}}; {"name": "g", "parameters": {}}') == (
        ToolCall("f", {"x": 1}),
        ToolCall("g"),
    )


@pytest.mark.parametrize(
    "text",
    ["", "The answer is 4.", '{"answer": 4}', '{"name": "Ada"}', "<think>I could <tool_call>", '<think>{"name": "f", "parameters": {}}',
     'So {"name": "f", "parameters": {}}', '{"name": "f", "parameters": {}} is what I would call.', "{", "<tool_calls>"],
)  # fmt: skip
def test_what_is_no_call(text: str) -> None:
    assert parse_calls(text) == ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('<tool_call>{"name": "f", "arguments": {"x": 1}', "no </tool_call>"),
        ("<tool_call>{name: f}</tool_call>", "not JSON"),
        ('<tool_call>["f"]</tool_call>', 'a call is {"name"'),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', "must be an object"),
        ('<|python_tag|>{"name": ', "not JSON"),
        ("<function=f>{x}</function>", "not JSON"),
        ('<function=f>{"x": 1}', "no </function>"),
        ("<function=>1</function>", "begins with <function=NAME>"),
        ("<tool_call><function=f><parameter=x>1</parameter></tool_call>", "no </function>"),
        ("<tool_call><function=f><parameter=x>1</function></tool_call>", "a parameter is <parameter=NAME>"),
        ("<tool_call></tool_call>", "not JSON"),
        ('<tool_call>{"name": "f"} and more</tool_call>', "extra text"),
        ('<|python_tag|>search.call(query="x")', 'a call is {"name"'),
        ('<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>', "not JSON"),
        ('<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>', "not JSON"),
        ('<tool_call>{"name": "f", "arguments": {"x": "\\ud800"}}</tool_call>', "half of a surrogate pair"),
        (f"<tool_call>{'[' * 10**5}</tool_call>", "nested too deeply"),
        (f"<|python_tag|>{'{' * 3 + '[' * 10**5}", "not JSON"),
    ],
)
def test_a_call_that_cannot_be_made_says_why(text: str, told: str) -> None:
    (call,) = parse_calls(text)
    assert told in str(call.error)


@pytest.mark.parametrize(
    "part", ["<function=", "<function=f>", "<function=f><parameter=x>", "<tool_call>", "<think>", "{", '{"a":', " "]
)
def test_reading_takes_time_in_proportion_to_the_text(part: str) -> None:
    """A megabyte: whoever looks from each place to the end has looked at 10^11 characters, and is not done in a day."""
    for begin in ("", "<function=f>", "<tool_call>"):
        parse_calls(begin + part * (2**20 // len(part)))
