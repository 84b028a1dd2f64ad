"""Tools of an MCP server: a program that says which tools it has and answers their calls over its standard input and output."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from rlkit.errors import ConfigError, first_line
from rlkit.tools.using import Tool, ToolError


class MCP:
    """A server for as long as an ``async with`` block lasts, and its tools.

    ::

        async with rk.tools.MCP("my-server", "--root", "notes") as server:
            chat.use(*server.tools)
            said = await chat.run()

    The program is started with these arguments; of the run's environment it gets what programs need to start (``PATH``, ``HOME``, ...),
    and ``environment``. A call that takes longer than ``seconds``, or of which the server says that it has failed, is told to the model.

    Raises (on entering):
        ConfigError: the package ``mcp`` is missing, or the program is no such server.
    """

    def __init__(
        self, command: str, *args: str, environment: Mapping[str, str] | None = None, seconds: float = 30.0
    ) -> None:
        self._command, self._args, self._environment, self.seconds = command, args, environment, seconds
        self._stack = AsyncExitStack()
        self._session: Any = None
        self.tools: tuple[Tool, ...] = ()

    async def __aenter__(self) -> Self:
        try:
            from mcp import ClientSession, StdioServerParameters, stdio_client
            from mcp.types import PaginatedRequestParams
        except ImportError:
            raise ConfigError("tools.MCP needs the package mcp. Install it with: pip install 'mcp>=2'") from None
        environment = None if self._environment is None else dict(self._environment)
        program = StdioServerParameters(command=self._command, args=list(self._args), env=environment)
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(self.seconds):
                    streams = await stack.enter_async_context(stdio_client(program))
                    self._session = await stack.enter_async_context(ClientSession(*streams))
                    await self._session.initialize()
                    page = await self._session.list_tools()
                    told = list(page.tools)
                    while page.next_cursor is not None:
                        page = await self._session.list_tools(params=PaginatedRequestParams(cursor=page.next_cursor))
                        told += page.tools
                self._stack = stack.pop_all()
        except Exception as error:
            raise ConfigError(
                f"tools.MCP: {' '.join((self._command, *self._args))!r} is no MCP server that can be used: {_reason(error)}."
            ) from error
        self.tools = tuple(
            Tool(t.model_dump(by_alias=True, exclude_none=True), functools.partial(self._call, t.name)) for t in told
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _call(self, tool: str, /, **arguments: Any) -> str:
        from mcp import MCPError

        try:
            async with asyncio.timeout(self.seconds):
                found = await self._session.call_tool(tool, arguments)
        except TimeoutError:
            raise ToolError(f"{tool} did not answer within {self.seconds:g} s") from None
        except MCPError as error:
            raise ToolError(f"{tool}: {first_line(error)}") from None
        text = "\n".join(part.text if part.type == "text" else f"[{part.type}]" for part in found.content)
        if found.is_error:
            raise ToolError(text or f"{tool} has failed")
        return text


def _reason(error: BaseException) -> str:
    """What the first of a group of exceptions says."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return "it did not answer in time" if isinstance(error, TimeoutError) else first_line(error)
