"""What a model is told of a tool."""

from __future__ import annotations

from typing import Any

import pytest

from rlkit.errors import ConfigError
from rlkit.tools import Python, Tool, calculator, tool_schema
from rlkit.tools.schema import whole_tool

OBJECT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
WANTED = {"type": "function", "function": {"name": "f", "description": "Does.", "parameters": OBJECT}}


@pytest.mark.parametrize(
    "given",
    [
        WANTED,
        {"name": "f", "description": "Does.", "parameters": OBJECT},
        {"name": "f", "description": "Does.", "inputSchema": OBJECT, "annotations": {"title": "F"}},  # MCP
    ],
)
def test_schemas_of_openai_and_mcp(given: dict[str, Any]) -> None:
    assert tool_schema(given) == WANTED


def test_of_functions() -> None:
    for tool, name, parameter in ((calculator, "calculator", "expression"), (Python().python, "python", "code")):
        told = tool_schema(tool)["function"]
        assert told["name"] == name and told["description"]
        assert (
            told["parameters"]["required"] == [parameter]
            and told["parameters"]["properties"][parameter]["type"] == "string"
        )


def test_what_no_schema_can_be_made_of() -> None:
    def bare(x):  # type: ignore[no-untyped-def]
        """Does."""

    with pytest.raises(ConfigError, match="Annotate its parameters, and describe each under Args: in its docstring"):
        tool_schema(bare)
    with pytest.raises(ConfigError, match="a tool's schema has a name, a description and parameters"):
        tool_schema({"title": "f"})


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"type": "array"}, "its parameters must be of type object, with properties by name"),
        ({"type": "object", "properties": ["x"]}, "its parameters must be of type object, with properties by name"),
        ({**OBJECT, "required": ["y"]}, r"required is \['y'\]; it must list names of its properties \(x\)"),
        ({**OBJECT, "required": True}, "required is True; it must list names"),
        (None, "a tool's schema has a name, a description and parameters"),
    ],
)
def test_a_schema_that_is_wrong(parameters: object, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        tool_schema({"name": "f", "description": "", "parameters": parameters})


def test_a_schema_and_its_function_have_the_same_parameters() -> None:
    assert whole_tool(Tool(WANTED, lambda x, y=1: x)).schema == WANTED
    assert whole_tool(Tool(WANTED, lambda **given: given)).schema == WANTED
    for function, told in (
        (lambda q: q, r"the parameters x of its schema is none of its function's \(missing a required argument: 'q'\)"),
        (lambda: 1, "got an unexpected keyword argument 'x'"),
        (lambda x, y: x, "missing a required argument: 'y'"),
        (None, "the tool 'f' calls None, which is no function"),
    ):
        with pytest.raises(ConfigError, match=told):
            whole_tool(Tool(WANTED, function))  # type: ignore[arg-type]
