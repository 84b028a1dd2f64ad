"""Weights that go from the learners to the engines themselves, through vLLM's interface for trainers.

Every rank gathers the same buckets in the same order (:class:`Source`); rank 0 sends them. Both are vLLM's: what is sent, when engines are
told, and the group in which it happens (``WeightTransferTrainerFactory``), with NCCL between GPUs, with a buffer that processes on one GPU
share (``ipc``), and over sockets (``gloo``, which is ours).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rlkit.errors import EngineError, WorkerTimeout, first_line
from rlkit.learner.backend import free_port
from rlkit.model.export import Export
from rlkit.model.wire import Announced

DRAIN_SECONDS = 60.0


@dataclass(frozen=True)
class Meeting:
    """Who takes part in a transfer, and how; another one is another group of processes.

    Attributes:
        backend: ``gloo``, ``nccl``, ``ipc``. members: (engine, which life of it). devices: of each engine.
        bucket: bytes that are gathered and sent at a time. timeout: seconds until all of the weights must have arrived.
    """

    backend: str
    members: tuple[tuple[int, int], ...]
    devices: int
    bucket: int
    timeout: float

    @property
    def world(self) -> int:
        """Learner rank 0, and the devices of the engines after it."""
        return 1 + len(self.members) * self.devices


class Client(Protocol):
    """vLLM's ``VLLMWeightSyncClient``, and what it knows when a transfer fails."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Any) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...

    def failed(self) -> str | None:
        """Which engine has failed, and how."""
        ...

    def missing(self) -> str:
        """Which engines have not answered yet."""
        ...


class Source:
    """vLLM's ``WeightSource``: what learners export, without gathering (``metadata``) and whole (iteration, a collective of all ranks).

    A bucket is gathered on all ranks before any of it is handed out, and handed out before the next one is gathered: a collective of the
    learners never runs beside one with the engines, which on GPUs can wait for each other.

    Args:
        buckets: the exports in the order in which they travel. whole: inside, what they are made of is whole.
    """

    def __init__(
        self,
        buckets: Sequence[Sequence[Export]],
        whole: Callable[[Sequence[Export]], contextlib.AbstractContextManager[Any]],
    ) -> None:
        self.buckets, self.whole = buckets, whole
        self._under_way = self._gathered()
        # Two threads take from it when a transfer fails: the one that sends, and who drains.
        self._taking = threading.Lock()

    def metadata(self) -> list[Announced]:
        return [Announced(e.name, e.dtype, e.shape) for bucket in self.buckets for e in bucket]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        made = self._under_way = self._gathered()
        while True:
            with self._taking:
                found = next(made, None)
            if found is None:
                return
            yield found

    def _gathered(self) -> Iterator[tuple[str, Tensor]]:
        for bucket in self.buckets:
            with self.whole(bucket):
                for e in bucket:
                    with torch.no_grad():
                        value = e.value().detach()
                    if value.dtype != e.dtype or tuple(value.shape) != e.shape:
                        raise EngineError(
                            f"{e.name} was announced to the engines as {e.dtype} {list(e.shape)} and is {value.dtype} {list(value.shape)}. "
                            "Set cluster.transfer: store, which announces nothing."
                        )
                    yield e.name, value

    def drain(self) -> None:
        """Gathers what was not handed out, because other ranks do: they wait for this one.

        Raises:
            WorkerTimeout: the thread that sends is in the middle of a bucket, and does not come out of it.
        """
        more = True
        while more:
            if not self._taking.acquire(timeout=DRAIN_SECONDS):
                raise WorkerTimeout("learner rank 0 still waits for weights of the other ranks.")
            try:
                more = next(self._under_way, None) is not None
            finally:
                self._taking.release()


class _Going:
    """A client whose engines may fail: from then on it does nothing, so that the rank which asks it goes on as the others do."""

    def __init__(self, client: Client, seconds: float) -> None:
        self.client, self.seconds, self.end = client, seconds, time.monotonic() + seconds
        self.failure: str | None = None

    def _ask(self, call: Callable[..., object], *args: Any) -> None:
        if self.failure is None and time.monotonic() > self.end:
            self.failure = _late(self.seconds, self.client)
        if self.failure is None:
            try:
                call(*args)
            except Exception as error:  # whatever an engine makes of its weights, as a sentence
                self.failure = self.client.failed() or f"{first_line(error)} ({self.client.missing()})"

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._ask(self.client.init_weight_transfer_engine, init_info)

    def start_weight_update(self) -> None:
        self._ask(self.client.start_weight_update)

    def update_weights(self, update_info: Any) -> None:
        self._ask(self.client.update_weights, update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._ask(self.client.finish_weight_update, weight_version)

    def failed(self) -> str | None:
        return self.failure

    def missing(self) -> str:
        return self.client.missing()


class Sender:
    """One rank's part in transfers. The group of a :class:`Meeting` is kept as long as the meeting is the same."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._meeting: Meeting | None = None
        self._trainer: Any = None

    def send(self, source: Source, client: Client, meeting: Meeting) -> str | None:
        """Sends all of ``source`` to the engines of the meeting, which wait for an update; what failed, if something did.

        It is not raised: this rank and its weights are as good as before.
        """
        if self.rank and meeting.backend != "ipc":  # vLLM's trainers ask no more of it
            for _ in source:
                pass
            return None
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # what sends has streams of its own, which do not wait for the update before
        if meeting.backend == "ipc":
            return self._send_together(source, client, meeting)
        done: Future[None] = Future()

        def work() -> None:
            try:
                self._send(source, client, meeting)
                done.set_result(None)
            except BaseException as error:  # as a sentence for whoever waits
                done.set_exception(error)

        # A thread, because NCCL waits for ever for a device that is gone.
        threading.Thread(target=work, name="send-weights", daemon=True).start()
        end = time.monotonic() + meeting.timeout
        while not done.done() and client.failed() is None and time.monotonic() < end:
            wait([done], timeout=0.5)
        if done.done() and done.exception() is None:
            return None
        told = client.failed()
        if told is None and done.done():
            told = f"{first_line(done.exception() or EngineError())} ({client.missing()})"
        self.close()
        source.drain()
        return told or _late(meeting.timeout, client)

    def _send_together(self, source: Source, client: Client, meeting: Meeting) -> str | None:
        """All ranks meet in every piece of the weights, and none of them may leave before the last: what fails is told after it.

        So ranks have no time-out of their own here. They wait for each other as in every collective, and for engines rank 0's client does.
        """
        going = _Going(client, meeting.timeout)
        self._send(source, going, meeting)
        if going.failure is not None:
            self.close()
        return going.failure

    def _send(self, source: Source, client: Client, meeting: Meeting) -> None:
        if meeting != self._meeting:
            self.close()
            self._trainer = trainer(source, client, meeting, self.rank)
            self._meeting = meeting
        self._trainer.client, self._trainer.source = client, source
        self._trainer.send_weights()

    def close(self) -> None:
        """Leaves the group; engines that wait in it hear of that."""
        left, self._trainer, self._meeting = self._trainer, None, None
        if left is not None:
            left.shutdown()


def _late(seconds: float, client: Client) -> str:
    return f"the weights had not arrived after {seconds:g} s (cluster.sync_timeout): {client.missing()}"


def trainer(source: Source, client: Client, meeting: Meeting, rank: int) -> Any:
    """vLLM's ``TrainerWeightTransferEngine`` of the meeting's backend, which the engines have joined."""
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    largest = max(x.numel * x.dtype.itemsize for x in source.metadata())
    # Ranks are told by Ray where rank 0 listens for them; engines find it in the same place.
    where: dict[str, Any] = {
        "master_address": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "master_port": free_port(),
        "world_size": meeting.world,
    }
    info: Any
    if meeting.backend == "nccl":
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        # One buffer: with two, the next bucket would be gathered while the last one is being sent.
        info = NCCLTrainerInitInfo(
            **where, packed=True, packed_buffer_size_bytes=meeting.bucket, packed_num_buffers=1, rank=rank
        )
    elif meeting.backend == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        info = IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=max(meeting.bucket, largest), rank=rank)
    else:
        from rlkit.learner.gloo import GlooTrainerInit

        info = GlooTrainerInit(**where, bucket=meeting.bucket, timeout=meeting.timeout, rank=rank)
    return WeightTransferTrainerFactory.trainer_init(init_info=info, client=client, source=source)  # type: ignore[arg-type]
