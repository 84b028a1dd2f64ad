"""The run's engines over HTTP, for the agents of episodes: a server of this process that hands each call to the episode its key names."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import socketserver
import sys
import threading
from collections import deque
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

from rlkit.bounds import Bound, Bounded
from rlkit.data.files import parse
from rlkit.errors import ConfigError, DataError, first_line
from rlkit.rollout.endpoint import NAME, Calls, Refused, streamed
from rlkit.rollout.episode import ENDED

WHAT = "POST /v1/chat/completions, POST /v1/completions and GET /v1/models"
LARGEST = 32 << 20  # bytes of a body
IDLE_SECONDS = 600.0  # that a connection may be silent
BLOCKED_SECONDS = 10.0  # after which the event loop of episodes is taken for blocked by one of them
OLD_KEYS = 4096  # of episodes that have ended, which are told so


@dataclass(frozen=True, kw_only=True)
class Serve(Bounded):
    """Where the endpoint of episodes listens (``rollout.serve``): ``host``, by default an address that only this machine's processes reach,
    and ``port``, of which 0 is any that is free. With ``0.0.0.0`` or ``::``, every address of this machine, ``endpoint.url`` has the one
    at which others find it.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Bound(at_least=0, at_most=65535)] = 0


def reached(host: str) -> str:
    """The address at which others find a server that listens at ``host``: where that is every address of this machine, the one that it has
    towards other machines, or its loopback where it has none.
    """
    if host not in ("", "0.0.0.0", "::"):
        return host
    six = host == "::"
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(
                ("2001:db8::1" if six else "192.0.2.1", 9)
            )  # of documentation (RFC 3849, 5737); nothing is sent
            return str(asking.getsockname()[0])
        except OSError:
            return "::1" if six else "127.0.0.1"


class Server:
    """Answers calls from its own threads, one a connection, for as long as the run plays episodes."""

    def __init__(self, settings: Serve) -> None:
        """Raises ConfigError if it cannot listen there."""
        self._episodes: dict[str, tuple[Calls, asyncio.AbstractEventLoop]] = {}
        self._old: deque[str] = deque(maxlen=OLD_KEYS)
        try:
            self._http = _Listener((settings.host, settings.port), self)
        except OSError as error:
            raise ConfigError(
                f"rollout.serve: nothing can listen at {settings.host}:{settings.port} ({first_line(error)}). Name another port, or 0, "
                "which is any that is free."
            ) from None
        host = reached(settings.host)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._http.server_address[1]}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.1,), name="endpoint", daemon=True).start()

    def open(self, calls: Calls) -> str:
        """A key of its own for an episode, whose event loop this is called on."""
        key = f"sk-{secrets.token_urlsafe(24)}"
        self._episodes[key] = calls, asyncio.get_running_loop()
        return key

    def shut(self, key: str) -> None:
        """The episode has ended: calls with its key are refused from now on, those under way too."""
        calls, _ = self._episodes.pop(key)
        self._old.append(key)
        calls.end()

    def answer(self, key: str, path: str, body: Any) -> dict[str, Any]:
        """The answer to a call; waits for it.

        Raises:
            Refused: it is not served.
        """
        found = self._episodes.get(key)
        if found is None and key in self._old:
            raise Refused(ENDED, status=410, code="episode_ended")
        if found is None:
            raise Refused(
                "this is no key of an episode: give the client the `key` of the handle `endpoint` as api_key",
                status=401,
                code="invalid_api_key",
            )
        if path == "/v1/models":
            model = {"id": NAME, "object": "model", "created": 0, "owned_by": "rlkit"}
            return {"object": "list", "data": [model]}
        calls, loop = found
        begun = threading.Event()

        async def work() -> dict[str, Any]:
            begun.set()
            return await calls.answer(path, body)

        future: Future[dict[str, Any]] = asyncio.run_coroutine_threadsafe(work(), loop)
        if not begun.wait(BLOCKED_SECONDS):
            future.cancel()
            raise Refused(
                "the function of the episode does not await: an agent that is no coroutine keeps all episodes from getting on. Write "
                "`def` in place of `async def`, or `await asyncio.to_thread(agent, ...)`",
                status=503,
                code="event_loop_blocked",
            )
        try:
            return future.result()
        except CancelledError:
            raise Refused(ENDED, status=410, code="episode_ended") from None

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024  # all episodes of a step may call at once

    def __init__(self, address: tuple[str, int], server: Server) -> None:
        self.episodes = server
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Connection)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # that of the base class looks the machine's name up

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that is gone
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    error_content_type = "application/json"
    # Of the base class's own refusals, as of other methods.
    error_message_format = json.dumps(Refused("%(message)s").body)
    server: _Listener

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a call is a line of its episode's transcript."""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        try:
            body = self._body()
            path = self.path.split("?")[0].rstrip("/")
            wanted = ("/v1/models",) if self.command == "GET" else ("/v1/chat/completions", "/v1/completions")
            if path not in wanted:
                raise Refused(f"there is no {self.command} {path}; there are {WHAT}", status=404)
            scheme, _, key = self.headers.get("Authorization", "").partition(" ")
            answer = self.server.episodes.answer(key.strip() if scheme.lower() == "bearer" else "", path, body)
        except Refused as refused:
            self._say(refused.status, refused.body)
        except Exception as error:  # of an engine, which ends the run
            self._say(500, Refused(f"{type(error).__name__}: {first_line(error)}").body)
        else:
            if isinstance(body, dict) and body.get("stream"):
                options = body.get("stream_options") or {}
                self._stream(streamed(answer, bool(options.get("include_usage"))))
            else:
                self._say(200, answer)

    def _body(self) -> Any:
        if self.command == "GET":
            return None
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST:
            self.close_connection = True  # what follows is not read
            raise Refused(
                f"a call needs a Content-Length of at most {LARGEST} bytes; it has {length or 'none'}", status=413
            )
        try:
            return parse(self.rfile.read(int(length)).decode(), Path("the body"))
        except UnicodeDecodeError as error:
            raise Refused(f"the body is not UTF-8 ({first_line(error)})") from None
        except DataError as error:
            raise Refused(str(error)) from None

    def _say(self, status: int, body: Any) -> None:
        text = json.dumps(body, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if status != 200:
            self.send_header("x-should-retry", "false")  # asking again would change nothing
        self.end_headers()
        self.wfile.write(text)

    def _stream(self, events: list[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        lines = [*(json.dumps(e, ensure_ascii=False) for e in events), "[DONE]"]
        self.wfile.write("".join(f"data: {line}\n\n" for line in lines).encode())
