"""What a model is told of a tool."""

from __future__ import annotations

from typing import Any

import pytest

from rlkit.errors import ConfigError
from rlkit.tools import Python, calculator, tool_schema

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
