"""Asking a server over HTTP that may be busy, slow or away: with patience, within its limits, and with a key that only the environment has.

A :class:`Client` is of one event loop, a :class:`Line` of code that has none; httpx keeps the connections open.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlkit.errors import ConfigError, RunError, WorkerTimeout

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0  # seconds; a pause is twice the one before
SHOWN = 300  # characters of an answer in a message
BUSY = frozenset({408, 409, 425, 429})  # and all from 500 on: what is answered now may be answered otherwise later


def key_of(variable: str | None, where: str) -> str | None:
    """The key in an environment variable; None where no variable is named.

    Raises:
        ConfigError: what is named is no variable's name (perhaps the key itself), or is not set.
    """
    if variable is None:
        return None
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", variable):
        raise ConfigError(
            f"{where} names the environment variable that holds the key, e.g. OPENAI_API_KEY; what stands there is no such name. A key "
            "itself does not belong into a configuration, which every run writes down."
        )
    found = os.environ.get(variable)
    if not found:
        raise ConfigError(f"{where}: the environment variable {variable} is not set. Set it to the server's key.")
    return found


@dataclass
class Pace:
    """At most so much of something a minute, evenly: each amount has its turn when those before it are worked off.

    ``free``: when the next one may begin, in seconds of the clock that callers use.
    """

    a_minute: float
    free: float = 0.0

    def wait(self, now: float, amount: float = 1.0) -> float:
        """Takes an amount; seconds until its turn."""
        turn = max(now, self.free)
        self.free = turn + 60.0 * amount / self.a_minute
        return turn - now

    def correct(self, more: float) -> None:
        """What was taken turned out to be so much more (or less)."""
        self.free += 60.0 * more / self.a_minute


class Client:
    """Asks one server. ``address``: its first part of every URL; ``patience``: seconds for which a question is asked again while the server
    does not answer, or says that it cannot now; ``timeout``: seconds that one answer may take; ``parallel``: questions at once.
    """

    def __init__(
        self, address: str, *, key: str | None = None, patience: float, timeout: float, parallel: int = 64
    ) -> None:
        try:
            import httpx
        except ImportError:
            raise ConfigError("a server is asked through httpx: pip install httpx.") from None
        self.address, self.patience, self.again = address.rstrip("/"), patience, 0
        self._client = httpx.AsyncClient(
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=timeout,
            limits=httpx.Limits(max_connections=parallel, max_keepalive_connections=parallel),
        )
        # httpx would count the wait for a connection as part of an answer's time.
        self._turns = asyncio.Semaphore(parallel)

    async def ask(self, path: str, body: Mapping[str, Any] | None = None, patience: float | None = None) -> Any:
        """The JSON that the server answers, to a POST where there is a ``body``. ``again`` counts questions that were asked once more.

        ``patience``: null is the client's; 0 asks once. It counts from the first try, not from when a turn is waited for.

        Raises:
            WorkerTimeout: it gave none in all the time that there is patience for.
            RunError: it refuses the question.
        """
        import httpx

        url, pause, until = f"{self.address}/{path}", FIRST_PAUSE, -1.0
        patience = self.patience if patience is None else patience
        while True:
            least = 0.0
            async with self._turns:
                until = time.monotonic() + patience if until < 0 else until
                try:
                    answer = await self._client.request("GET" if body is None else "POST", url, json=body)
                except (httpx.HTTPError, httpx.InvalidURL) as error:
                    told = f"no answer from {url} ({str(error)[:SHOWN] or type(error).__name__})"
                else:
                    told = f"{url} answered {answer.status_code}: {answer.text[:SHOWN]}"
                    if answer.is_success:
                        try:
                            return answer.json()
                        except ValueError:
                            told = f"{url} answered what is no JSON: {answer.text[:SHOWN]!r}"
                    elif not (answer.is_server_error or answer.status_code in BUSY):
                        raise RunError(told)
                    least = _seconds(answer.headers.get("Retry-After"))
            left = until - time.monotonic()
            if left <= least:
                raise WorkerTimeout(told + (f"; it was asked for {patience:g} s" if patience else ""))
            self.again += 1
            await asyncio.sleep(min(max(pause, least), left))  # the last time is at the end of all patience
            pause = min(2 * pause, LONGEST_PAUSE)

    async def close(self) -> None:
        await self._client.aclose()


class Line:
    """A :class:`Client` for code without an event loop: one runs in a thread of its own, as long as this object lives."""

    def __init__(self, client: Client) -> None:
        self._client, self._loop = client, asyncio.new_event_loop()
        threading.Thread(target=_run, args=(self._loop, client), name="rlkit-asking", daemon=True).start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def ask(
        self, path: str, bodies: Sequence[Mapping[str, Any] | None] = (None,), patience: float | None = None
    ) -> list[Any]:
        """What :meth:`Client.ask` gives for each of ``bodies``, in their order. The first that fails ends all."""
        answers = asyncio.run_coroutine_threadsafe(_together(self._client, path, bodies, patience), self._loop)
        try:
            return answers.result()
        finally:
            answers.cancel()  # where the caller was interrupted, nobody waits for what is under way


def _run(loop: asyncio.AbstractEventLoop, client: Client) -> None:
    loop.run_forever()
    loop.run_until_complete(client.close())
    loop.close()


async def _together(
    client: Client, path: str, bodies: Sequence[Mapping[str, Any] | None], patience: float | None
) -> list[Any]:
    tasks = [asyncio.ensure_future(client.ask(path, body, patience)) for body in bodies]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _seconds(text: str | None) -> float:
    """Of a header ``Retry-After``; 0 where it is none, or a date."""
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0
