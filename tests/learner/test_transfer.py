"""The learners' side of a transfer: what is gathered when, and what becomes of one that fails."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from rlkit.errors import EngineError
from rlkit.learner import transfer
from rlkit.learner.transfer import Meeting, Sender, Source
from rlkit.model.export import Export
from rlkit.model.wire import Announced

MEETING = Meeting("gloo", ((0, 0), (1, 0)), 2, 64, 0.3)


def export(name: str, value: torch.Tensor, announced: torch.dtype = torch.float32) -> Export:
    return Export(name, (), announced, tuple(value.shape), lambda: value)


def source(events: list[str], buckets: Sequence[Sequence[Export]] | None = None) -> Source:
    @contextlib.contextmanager
    def whole(bucket: Sequence[Export]) -> Iterator[None]:
        events.append(f"gather {bucket[0].name}")
        yield
        events.append(f"give up {bucket[0].name}")

    return Source(buckets or [[export(name, torch.ones(3))] for name in "abc"], whole)


class Client:
    """Engines of which one has ``failed``, or has not answered."""

    def __init__(self, failed: str | None = None) -> None:
        self.told = failed

    def failed(self) -> str | None:
        return self.told

    def missing(self) -> str:
        return "no answer yet from engine 1"


class Trainer:
    """Sends a bucket, then waits for ``gate``; raises what it ``failure`` is."""

    def __init__(self, gate: threading.Event | None = None, failure: Exception | None = None) -> None:
        self.gate, self.failure = gate, failure
        self.source: Any = None
        self.closed = 0

    def send_weights(self) -> None:
        for _ in self.source:
            if self.failure is not None:
                raise self.failure
            if self.gate is not None:
                self.gate.wait(60)

    def shutdown(self) -> None:
        self.closed += 1


def test_a_bucket_is_gathered_whole_before_it_is_sent_and_given_up_before_the_next() -> None:
    events: list[str] = []
    found = source(events)
    assert found.metadata() == [Announced(name, torch.float32, (3,)) for name in "abc"] and not events
    for name, value in found:
        events.append(f"send {name}")
        assert torch.equal(value, torch.ones(3))
    assert events == [f"{what} {name}" for name in "abc" for what in ("gather", "send", "give up")]
    assert [name for name, _ in found] == ["a", "b", "c"]  # again, from the start


def test_what_is_not_as_announced_is_named() -> None:
    wrong = source([], [[export("a", torch.ones(2, dtype=torch.bfloat16))]])
    with pytest.raises(EngineError, match=r"a was announced .*float32 \[2\] and is torch.bfloat16 \[2\]"):
        list(wrong)


@pytest.mark.parametrize(
    ("trainer", "client", "told"),
    [
        (Trainer(threading.Event()), Client(), r"had not arrived after 0.3 s \(cluster.sync_timeout\): .* engine 1"),
        (Trainer(threading.Event()), Client("engine 0 could not take the weights: it died"), "engine 0 could not"),
        (Trainer(failure=RuntimeError("Connection closed")), Client(), r"Connection closed \(no answer yet"),
    ],
    ids=["late", "an engine failed", "the group failed"],
)
def test_a_transfer_that_fails_says_who_is_missing_and_keeps_other_ranks_going(
    trainer: Trainer, client: Client, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "trainer", lambda *args: trainer)
    events: list[str] = []
    sender = Sender(0)
    failed = sender.send(source(events), client, MEETING)  # type: ignore[arg-type]
    assert failed is not None and re.search(told, failed), failed
    assert events[-1] == "give up c", "other ranks gather all buckets, and so does this one"
    assert trainer.closed == 1
    if trainer.gate is not None:
        trainer.gate.set()


def test_a_group_is_kept_as_long_as_the_same_engines_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Trainer] = []

    def make(*args: Any) -> Trainer:
        made.append(Trainer())
        return made[-1]

    monkeypatch.setattr(transfer, "trainer", make)
    sender, events = Sender(0), list[str]()
    joined = Meeting("gloo", ((0, 0), (1, 1)), 2, 64, 60.0)
    for meeting in (MEETING, MEETING, joined, joined):
        assert sender.send(source(events), Client(), meeting) is None  # type: ignore[arg-type]
    assert [t.closed for t in made] == [1, 0] and MEETING.world == 5
    sender.close()
    assert [t.closed for t in made] == [1, 1]


def test_other_ranks_gather_and_send_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "trainer", lambda *args: pytest.fail("it met engines"))
    events: list[str] = []
    assert Sender(1).send(source(events), Client(), MEETING) is None  # type: ignore[arg-type]
    assert events[::2] == ["gather a", "gather b", "gather c"]
