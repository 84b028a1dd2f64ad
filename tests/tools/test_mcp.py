"""A server of MCP that is written down here, message by message, and what a model hears of its tools."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from rlkit.errors import ConfigError
from rlkit.tools import MCP, ToolCall, tool_schema
from rlkit.tools.using import Tool, use_tool

pytest.importorskip("mcp")

SERVER = """
import json, sys
OBJECT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
def answer(method, params):
    if method == "initialize":
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"}}
    if method == "tools/list":
        name = "double" if params and params.get("cursor") else "slow"
        return {"tools": [{"name": name, "description": "Does.", "inputSchema": OBJECT}], **({} if name == "double" else {"nextCursor": "1"})}
    if method == "tools/call" and params["name"] == "double":
        x = params["arguments"]["x"]
        text = str(2 * x) if x < 100 else "that is too large"
        return {"content": [{"type": "text", "text": text}], "isError": x >= 100}
for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:
        found = answer(asked["method"], asked.get("params"))
        if found is not None:
            print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": found}), flush=True)
"""


def test_tools_are_told_called_and_their_failures_told(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)

    async def uses() -> tuple[list[Any], list[str]]:
        async with MCP(sys.executable, str(tmp_path / "server.py"), seconds=60.0) as server:
            tools = {t.schema["name"]: Tool(tool_schema(t.schema), t.call) for t in server.tools}
            calls = [ToolCall("double", {"x": 4}), ToolCall("double", {"x": 100})]
            heard = [await use_tool(tools, c) for c in calls]
            server.seconds = 0.2
            return [tool_schema(t.schema) for t in server.tools], [
                *heard,
                await use_tool(tools, ToolCall("slow", {"x": 1})),
            ]

    schemas, heard = asyncio.run(uses())
    assert [s["function"]["name"] for s in schemas] == ["slow", "double"], "all pages"
    assert schemas[1]["function"]["parameters"]["required"] == ["x"]
    assert heard == ["8", "error: that is too large", "error: slow did not answer within 0.2 s"]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("no-such-program",), "'no-such-program' is no MCP server that can be used"),
        ((sys.executable, "-c", "pass"), "is no MCP server that can be used"),
    ],
)
def test_a_program_that_is_no_server(command: tuple[str, ...], told: str) -> None:
    async def starts() -> None:
        async with MCP(*command, seconds=60.0):
            pass

    with pytest.raises(ConfigError, match=told):
        asyncio.run(starts())
