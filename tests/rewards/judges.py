"""A server that judges, for tests: OpenAI-compatible, and as unreliable as it is told to be."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Say = Callable[[str, int], Any]


class Server:
    """What it was asked, and how it answers: ``say(text, number)`` gives a text, a status with headers, bytes, or seconds to wait first."""

    def __init__(self, say: Say, usage: bool = True) -> None:
        self.say, self.usage, self.asked, self.bodies = say, usage, list[str](), list[dict[str, Any]]()
        self.keys, self.at_once, self.most, self.lock = set[str | None](), 0, 0, threading.Lock()
        self.url = ""


@contextmanager
def judging(say: Say, usage: bool = True) -> Iterator[Server]:
    server = Server(say, usage)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None: ...

        def do_GET(self) -> None:
            self.give(200, json.dumps({"data": [{"id": "its-first"}]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][-1]["content"]
            with server.lock:
                number = len(server.asked)
                server.asked.append(text)
                server.bodies.append(body)
                server.keys.add(self.headers.get("Authorization"))
                server.at_once += 1
                server.most = max(server.most, server.at_once)
            try:
                found = server.say(text, number)
                if isinstance(found, float):
                    time.sleep(found)
                    found = "Score: 1"
                if isinstance(found, tuple):
                    self.give(found[0], b"busy", found[1])
                elif isinstance(found, bytes):
                    self.give(200, found)
                else:
                    answer: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": found}}]}
                    if server.usage:
                        answer["usage"] = {"prompt_tokens": len(text), "completion_tokens": len(found)}
                    self.give(200, json.dumps(answer).encode())
            finally:
                with server.lock:
                    server.at_once -= 1

        def give(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            try:
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # who asked has given up
                self.close_connection = True

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    with Quiet(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        try:
            yield server
        finally:
            http.shutdown()
