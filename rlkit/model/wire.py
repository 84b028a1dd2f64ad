"""Tensors on their way between processes: numpy arrays, which Ray's object store shares without copying, or broadcasts of many at once."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor


def pack(tensor: Tensor) -> Any:
    """A numpy array; bfloat16, which numpy does not know, as its bits."""
    x = tensor.detach().cpu()
    return x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


def unpack(value: Any) -> Tensor:
    """The tensor again; 16-bit integers, which no weight is, are bfloat16's bits."""
    x = torch.as_tensor(value)
    return x.view(torch.bfloat16) if x.dtype == torch.int16 else x


@dataclass(frozen=True)
class Announced:
    """What is known of a tensor before it arrives."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def together(tensors: Iterable[Announced], limit: int) -> Iterator[list[Announced]]:
    """Cuts what was announced into runs that travel as one flat tensor each: of one type, of about ``limit`` bytes, in order.

    Both sides cut alike, because both have only what was announced to go by.
    """
    run: list[Announced] = []
    nbytes = 0
    for x in tensors:
        own = x.numel * x.dtype.itemsize
        if run and (nbytes + own > limit or x.dtype != run[0].dtype):
            yield run
            run, nbytes = [], 0
        run.append(x)
        nbytes += own
    if run:
        yield run


class GlooGroup:
    """Processes on their own, beside whatever groups they belong to, of which rank 0 sends tensors to all others.

    It is for sockets what vLLM's ``PyNcclCommunicator`` is for NCCL. Rank 0 listens at ``address`` and nowhere else. Every wait ends after
    ``timeout`` seconds with a RuntimeError.
    """

    def __init__(self, address: str, port: int, rank: int, world: int, timeout: float) -> None:
        limit, listening = timedelta(seconds=timeout), None
        if rank == 0:
            listening = socket.create_server((address, port)).detach()  # torch's own would listen everywhere
        store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
            address, port, world, rank == 0, limit, wait_for_workers=False, master_listen_fd=listening
        )
        self._group: Any = torch.distributed.ProcessGroupGloo(store, rank, world, limit)

    def send(self, announced: Iterable[Announced], tensors: Iterator[Tensor], limit: int) -> None:
        """Rank 0: ``tensors``, which were ``announced``, to all others, about ``limit`` bytes at a time."""
        for run in together(announced, limit):
            self._broadcast(torch.cat([next(tensors).reshape(-1) for _ in run]).cpu()).wait()

    def receive(self, announced: Iterable[Announced], limit: int) -> Iterator[list[tuple[str, Tensor]]]:
        """The others: the tensors by name, as they come; what comes next is on its way while the caller works on the last."""
        runs = list(together(announced, limit))
        arriving = map(self._ask, runs)
        ahead = next(arriving, None)
        for run in runs:
            assert ahead is not None
            (flat, arrival), ahead = ahead, next(arriving, None)
            arrival.wait()
            parts = flat.split([x.numel for x in run])
            yield [(x.name, part.view(x.shape)) for x, part in zip(run, parts, strict=True)]

    def _ask(self, run: Sequence[Announced]) -> tuple[Tensor, Any]:
        flat = torch.empty(sum(x.numel for x in run), dtype=run[0].dtype)
        return flat, self._broadcast(flat)

    def _broadcast(self, flat: Tensor) -> Any:
        options = torch.distributed.BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        return self._group.broadcast([flat], options)

    def close(self) -> None:
        """Ends the connections: whoever still waits for the others hears of it."""
        self._group = None
