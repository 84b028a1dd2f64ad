"""Tools that a model can call in an episode, how its calls are read, and a process in which code of a model may run."""

from __future__ import annotations

from rlkit.tools.calculator import calculator as calculator
from rlkit.tools.calls import ToolCall as ToolCall
from rlkit.tools.calls import parse_calls as parse_calls
from rlkit.tools.mcp import MCP as MCP
from rlkit.tools.python import Python as Python
from rlkit.tools.schema import tool_schema as tool_schema
from rlkit.tools.search import Search as Search
from rlkit.tools.using import Tool as Tool
from rlkit.tools.using import ToolError as ToolError
