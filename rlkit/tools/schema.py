"""What a model is told of a tool: the form of OpenAI, which chat templates read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlkit.errors import ConfigError
from rlkit.tools.using import Tool, unfit


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
        properties, required = parameters.get("properties") or {}, parameters.get("required") or []
        if parameters.get("type", "object") != "object" or not isinstance(properties, Mapping):
            raise ConfigError(
                f"the schema of the tool {inside['name']!r}: its parameters must be of type object, with properties by name."
            )
        if not isinstance(required, list | tuple) or not all(name in properties for name in required):
            raise ConfigError(
                f"the schema of the tool {inside['name']!r}: required is {required!r}; it must list names of its properties"
                f" ({', '.join(map(str, properties)) or 'none'})."
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


def whole_tool(tool: Callable[..., Any] | Tool) -> Tool:
    """A tool with its whole schema, whose parameters its function takes.

    Raises:
        ConfigError: a schema cannot be made, or the function is none, or takes other parameters than its schema names.
    """
    schema = tool_schema(tool.schema if isinstance(tool, Tool) else tool)
    call, told = tool.call if isinstance(tool, Tool) else tool, schema["function"]
    if not callable(call):
        raise ConfigError(f"the tool {told['name']!r} calls {call!r}, which is no function.")
    properties = told["parameters"].get("properties") or {}
    for named in (properties, told["parameters"].get("required") or []):
        if (wrong := unfit(call, dict.fromkeys(named))) is not None:
            raise ConfigError(
                f"the tool {told['name']!r}: a call with the parameters {', '.join(map(str, named)) or 'none'} of its schema is none of "
                f"its function's ({wrong}). Give both the same parameters."
            )
    return Tool(schema, call)
