"""Asking a server: its limits, and keys."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import ClassVar

import pytest

from rlkit.asking import Client, Line, Pace, key_of
from rlkit.errors import ConfigError, RunError, WorkerTimeout


def test_a_pace_gives_turns_evenly_and_works_off_what_was_taken_too_little() -> None:
    pace = Pace(120)  # one each half second
    assert [pace.wait(now) for now in (10.0, 10.0, 10.0, 12.0)] == [0.0, 0.5, 1.0, 0.0]
    tokens = Pace(600)
    assert tokens.wait(0.0, 100) == 0 and tokens.wait(0.0, 1) == 10
    tokens.correct(50)  # the first ones took 150
    assert tokens.wait(5.0, 1) == pytest.approx(10.0 + 0.1 + 5.0 - 5.0)


def test_a_key_comes_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    assert key_of(None, "x") is None and key_of("JUDGE_KEY", "x") == "s3cret"
    with pytest.raises(ConfigError, match="variable NO_SUCH_KEY is not set"):
        key_of("NO_SUCH_KEY", "Judge.key_from")
    with pytest.raises(ConfigError, match="does not belong into a configuration") as told:
        key_of("sk-abcdefghijklmnopqrstuvwxyz", "Judge.key_from")
    assert "abcdef" not in str(told.value)


class Server(BaseHTTPRequestHandler):
    """Says the number that it was asked, as late as it is small; or what ``plan`` has: a status and a text."""

    protocol_version = "HTTP/1.1"
    plan: ClassVar[list[tuple[int, str]]] = []
    asked: ClassVar[list[str]] = []
    at_once: ClassVar[list[int]] = [0, 0]  # now, and at most
    lock: ClassVar[threading.Lock] = threading.Lock()

    def do_POST(self) -> None:
        with self.lock:
            self.at_once[0] += 1
            self.at_once[1] = max(self.at_once)
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        status, said = self.plan.pop(0) if self.plan else (200, text)
        time.sleep(0.01 if text.endswith("0") else 0.0)
        with self.lock:
            self.at_once[0] -= 1
        self.asked.append(text)
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said.encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("rlkit.asking.FIRST_PAUSE", 0.005)
    Server.plan, Server.asked, Server.at_once = [], [], [0, 0]
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as serving:
        serving.daemon_threads = True
        threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_code_without_an_event_loop_gets_its_answers_in_order_and_no_more_are_under_way_than_said(address: str) -> None:
    line = Line(Client(address, patience=5.0, timeout=5.0, parallel=3))
    bodies = [{"n": n} for n in range(40)]
    assert line.ask("x", bodies) == bodies and line.ask("x", []) == []
    assert 1 < Server.at_once[1] <= 3
    Server.plan = [(503, "busy"), (429, "busy"), (409, "busy"), (200, "<html>")]
    assert line.ask("x", bodies[:2]) == bodies[:2] and len(Server.asked) == 40 + 2 + 4
    [thread] = [t for t in threading.enumerate() if t.name == "rlkit-asking"]
    del line
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_an_answer_that_is_none_ends_all_and_says_what_came(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("rlkit.asking.time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    line = Line(Client(address, patience=5.0, timeout=5.0, parallel=1))
    for plan, patience, error, told, asked in (
        ([(200, "<html>")], 0.0, WorkerTimeout, r"/x answered what is no JSON: '<html>'$", 1),
        ([(503, "busy")] * 50, None, WorkerTimeout, r"/x answered 503: busy; it was asked for 5 s$", 5),
        ([(404, "no")], None, RunError, r"/x answered 404: no$", 1),
    ):
        Server.plan, Server.asked = list(plan), []
        with pytest.raises(error, match=told):
            line.ask("x", [{"n": 1}], patience)
        assert len(Server.asked) == asked
    Server.plan = [(404, "no")]
    with pytest.raises(RunError, match="answered 404"):
        line.ask("x", [{"n": n} for n in range(20)])
    assert line.ask("x", [{"n": 7}]) == [{"n": 7}]
