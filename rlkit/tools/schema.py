"""What a model is told of a tool: the form of OpenAI, which chat templates read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlkit.errors import ConfigError


@dataclass(frozen=True)
class Tool:
    """A tool whose schema is not made of its function: ``call`` gets what the model wrote for the parameters, by name."""

    schema: Mapping[str, Any]
    call: Callable[..., Any]


def tool_schema(tool: Callable[..., Any] | Mapping[str, Any]) -> dict[str, Any]:
    """``{"type": "function", "function": {"name", "description", "parameters"}}`` of a function, or of a schema as OpenAI's and MCP's are.

    Of a function the annotations are the types, and its docstring, with ``Args:``, describes it and its parameters.

    Raises:
        ConfigError: a parameter without annotation or description, or a mapping that is no schema.
    """
    if isinstance(tool, Mapping):
        inside = tool["function"] if isinstance(tool.get("function"), Mapping) else tool
        parameters = inside.get("parameters", inside.get("inputSchema", {"type": "object", "properties": {}}))
        if not isinstance(inside.get("name"), str) or not isinstance(parameters, Mapping):
            raise ConfigError(
                "a tool's schema has a name, a description and parameters (inputSchema in MCP); found "
                f"{', '.join(map(str, inside)) or 'none'}."
            )
        told = {"name": inside["name"], "description": inside.get("description", ""), "parameters": dict(parameters)}
        return {"type": "function", "function": told}
    from transformers.utils.chat_template_utils import (
        DocstringParsingException,
        TypeHintParsingException,
        get_json_schema,
    )

    try:
        schema: dict[str, Any] = get_json_schema(tool)
    except (DocstringParsingException, TypeHintParsingException, TypeError, ValueError) as error:
        raise ConfigError(
            f"no schema can be made of the tool {tool!r}: {error} Annotate its parameters, and describe each under Args: in its docstring."
        ) from error
    return schema
