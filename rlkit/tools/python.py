"""Python code that a model wrote, in a process that can do nothing else than compute (:mod:`rlkit.tools.sandbox` says how)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rlkit.errors import ConfigError
from rlkit.tools.using import ToolError

SANDBOX = Path(__file__).with_name("sandbox.py")
SIZE = struct.Struct("<I")  # length of the JSON that follows
START_SECONDS = 30.0


class Python:
    """A tool of an episode, with the variables of earlier calls::

        async def solve(chat, answer):
            async with rk.tools.Python(seconds=2) as sandbox:
                chat.use(sandbox.python)
                said = await chat.run(turns=6)
            return float(said.text.strip() == str(answer))

    The process starts with the first call. It reads and writes no files but those of Python itself, opens no connection, starts no
    process, signals nobody, sees no environment, and imports the standard library only.

    Attributes:
        seconds: of each call, waiting included. memory: GiB of addresses. output: characters that the model is shown.
        keep: calls share variables; else each has a new process.
    """

    def __init__(self, *, seconds: float = 5.0, memory: float = 0.5, output: int = 4_000, keep: bool = True) -> None:
        if sys.platform != "linux" or os.uname().machine != "x86_64":
            raise ConfigError(
                "rk.tools.Python closes its process off with Linux's Landlock and seccomp on x86-64; this is another machine."
            )
        self.seconds, self.memory, self.output, self.keep = seconds, memory, output, keep
        self._process: subprocess.Popen[bytes] | None = None
        self._life = -1  # our end of a pipe that closes when this process is gone, and the sandbox with it
        self._lock = threading.Lock()

    async def python(self, code: str) -> str:
        """Runs Python code and returns what it prints, or the value of its last line.

        Args:
            code: the program. Variables of earlier calls are there; only the standard library can be imported.
        """
        return await asyncio.to_thread(self.run, code)

    def run(self, code: str) -> str:
        """As :meth:`python`, for code that is not ``async``.

        Raises:
            ToolError: it took too long, or ended its process.
            ConfigError: this machine cannot close a process off.
        """
        with self._lock:
            try:
                if self._process is None:
                    self._start()
                return self._answer(code)
            finally:
                if not self.keep:
                    self._end()

    def _start(self) -> None:
        life_end, self._life = os.pipe()
        command = [sys.executable, "-I", "-S", "-B", str(SANDBOX), json.dumps([self.memory, self.output, life_end])]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                pass_fds=[life_end],
                start_new_session=True,
            )
        finally:
            os.close(life_end)
        found = self._read(time.monotonic() + START_SECONDS)
        if found is None or found["missing"]:
            self._end()
            why = "its process did not start" if found is None else found["missing"]
            raise ConfigError(
                f"rk.tools.Python cannot close a process off on this machine: {why}. It needs Linux 5.13 or newer, with Landlock."
            )

    def _answer(self, code: str) -> str:
        end = time.monotonic() + self.seconds
        data = json.dumps(code).encode()
        found = self._read(end) if self._sent(SIZE.pack(len(data)) + data, end) else None
        if found is None:
            self._end()
            raise ToolError(
                f"the code did not end within {self.seconds:g} s; its process was ended, and all variables are gone"
            )
        if not isinstance(found, dict) or not isinstance(found.get("shown"), str):
            self._end()
            raise ToolError("the code ended its process; all variables are gone")
        return str(found["shown"])[: self.output + 100]

    def _sent(self, data: bytes, end: float) -> bool:
        """Whether the process took the message in time; one that is gone takes everything, and says so when it is read."""
        assert self._process is not None and self._process.stdin is not None
        pipe, rest = self._process.stdin.fileno(), memoryview(data)
        os.set_blocking(pipe, False)
        while rest:
            if not select.select([], [pipe], [], max(0.0, end - time.monotonic()))[1]:
                return False
            try:
                rest = rest[os.write(pipe, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                return True
        return True

    def _read(self, end: float) -> Any:
        """The next message; None if there is none until ``end``, ``{}`` if the process is gone or has sent something else."""
        assert self._process is not None and self._process.stdout is not None
        pipe, data, wanted = self._process.stdout.fileno(), b"", SIZE.size
        while len(data) < wanted:
            if not select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            chunk = os.read(pipe, wanted - len(data))
            if not chunk:
                return {}
            data += chunk
            if len(data) == SIZE.size == wanted:
                wanted += SIZE.unpack(data)[0]
                if wanted > 8 * self.output + 10_000:
                    return {}
        try:
            return json.loads(data[SIZE.size :])
        except ValueError:
            return {}

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(self._life)
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self.__dict__.get("_process") is not None:
            self._end()
