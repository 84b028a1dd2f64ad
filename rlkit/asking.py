"""Asking a server over HTTP that may be busy, slow or away: with patience, within its limits, and with a key that only the environment has.

For one event loop; httpx keeps the connections open.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Mapping
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
    does not answer, or says that it cannot now; ``timeout``: seconds that one answer may take.
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

    async def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that the server answers, to a POST where there is a ``body``. ``again`` counts questions that were asked once more.

        Raises:
            WorkerTimeout: it gave none in all the time that there is patience for.
            RunError: it refuses the question.
        """
        import httpx

        url, until, pause = f"{self.address}/{path}", time.monotonic() + self.patience, FIRST_PAUSE
        while True:
            least = 0.0
            try:
                answer = await self._client.request("GET" if body is None else "POST", url, json=body)
                if answer.is_success:
                    return answer.json()
                told = f"{url} answered {answer.status_code}: {answer.text[:SHOWN]}"
                if not (answer.is_server_error or answer.status_code in BUSY):
                    raise RunError(told)
                least = _seconds(answer.headers.get("Retry-After"))
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                told = f"no answer from {url} ({str(error)[:SHOWN] or type(error).__name__})"
            pause = min(2 * pause, LONGEST_PAUSE)
            if time.monotonic() + max(pause, least) > until:
                raise WorkerTimeout(f"{told}; it was asked for {self.patience:g} s.")
            self.again += 1
            await asyncio.sleep(max(pause, least))

    async def close(self) -> None:
        await self._client.aclose()


def _seconds(text: str | None) -> float:
    """Of a header ``Retry-After``; 0 where it is none, or a date."""
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0
