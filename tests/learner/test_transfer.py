"""The learners' side of a transfer: what is gathered when, and what becomes of one that fails."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from rlkit.errors import EngineError
from rlkit.learner import transfer
from rlkit.learner.backend import free_port
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


class Together:
    """As vLLM's trainer for CUDA IPC: in every piece ranks meet before rank 0 tells the engines of it, and after."""

    def __init__(self, rank: int) -> None:
        self.rank, self.source, self.client = rank, None, Engines()
        self.pieces = list[str]()

    def send_weights(self) -> None:
        assert self.source is not None
        for name, _ in self.source:
            found: list[Any] = [None, None]
            torch.distributed.all_gather_object(found, name)
            if not self.rank:
                self.client.update_weights(found)
            torch.distributed.barrier()
            self.pieces += found

    def shutdown(self) -> None:
        pass


class Engines(Client):
    """One dies when it is given the second piece of the weights."""

    asked = 0

    def update_weights(self, update_info: Any) -> None:
        self.asked += 1
        if self.asked == 2:
            self.told = "engine 0 could not take the weights: it died"
            raise EngineError(self.told)


def two_ranks(rank: int, port: int, told: Any) -> None:
    """One of two learner ranks whose engine dies, and what both do next."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    made = Together(rank)
    transfer.trainer = lambda *args: made  # type: ignore[assignment]
    client = Engines()
    # Nobody waits for so long: the failure is known to rank 0 alone, and the other one is not kept waiting for it.
    meeting = Meeting("ipc", ((0, 0),), 1, 64, 1e6)
    failed = Sender(rank).send(source([]), client, meeting)  # type: ignore[arg-type]
    after = torch.ones(1)
    torch.distributed.all_reduce(after)
    told.put((rank, failed, made.pieces, client.asked, after.item()))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_that_meet_in_every_piece_all_come_to_the_end_when_an_engine_fails() -> None:
    start = multiprocessing.get_context("spawn")
    told, port = start.Queue(), free_port()
    ranks = [start.Process(target=two_ranks, args=(rank, port, told), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    try:
        found = sorted(told.get(timeout=300) for _ in ranks)
    finally:
        for process in ranks:
            process.kill()
    every = [name for name in "abc" for _ in range(2)]
    assert found == [
        (0, "engine 0 could not take the weights: it died", every, 2, 2.0),
        (1, None, every, 0, 2.0),
    ]


def test_engines_that_are_late_are_asked_for_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    class Alone(Together):
        def send_weights(self) -> None:
            for piece in self.source or ():
                self.client.update_weights(piece)

    monkeypatch.setattr(transfer, "trainer", lambda *args: Alone(0))
    client, late = Engines(), Meeting("ipc", ((0, 0),), 1, 64, -1.0)
    failed = Sender(0).send(source([]), client, late)  # type: ignore[arg-type]
    assert failed is not None and "had not arrived" in failed and client.asked == 0


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
