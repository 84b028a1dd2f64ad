"""Tensors that travel between processes arrive bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from rlkit.learner.backend import free_port
from rlkit.model.wire import Announced, GlooGroup, pack, together, unpack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_arrive_as_they_left(dtype: torch.dtype) -> None:
    x = torch.randn(7, 5).to(dtype)
    packed = pack(x)
    assert packed.nbytes == x.numel() * x.element_size()
    y = unpack(packed)
    assert y.dtype == dtype and torch.equal(x, y)
    assert torch.equal(unpack(x), x)


TENSORS = {
    "a": torch.randn(3, 4),
    "b": torch.randn(5).bfloat16(),
    "c": torch.randn(7, 2),
    "scalar": torch.tensor(2.0),
    "d": torch.randn(100),
}
ANNOUNCED = [Announced(n, t.dtype, tuple(t.shape)) for n, t in TENSORS.items()]


def test_what_travels_together_is_of_one_type_and_about_as_large_as_a_bucket() -> None:
    assert [[x.name for x in run] for run in together(ANNOUNCED, 64)] == [["a"], ["b"], ["c", "scalar"], ["d"]]
    assert [x for run in together(ANNOUNCED, 1 << 20) for x in run] == ANNOUNCED


@contextmanager
def group(members: int, timeout: float) -> Iterator[tuple[GlooGroup, list[Future[GlooGroup]], ThreadPoolExecutor]]:
    """Rank 0, and the others as they come."""
    port = free_port()
    with ThreadPoolExecutor(members) as threads:
        others = [threads.submit(GlooGroup, "127.0.0.1", port, k, members, timeout) for k in range(1, members)]
        yield GlooGroup("127.0.0.1", port, 0, members, timeout), others, threads


def test_a_group_sends_to_all_of_its_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with group(3, 30.0) as (first, others, threads):
        found = [threads.submit(lambda g: list(g.receive(ANNOUNCED, 64)), o.result()) for o in others]
        first.send(ANNOUNCED, iter(TENSORS.values()), 64)
        for one in found:
            arrived = [pair for run in one.result(30) for pair in run]
            assert [name for name, _ in arrived] == list(TENSORS)
            assert all(x.dtype == TENSORS[n].dtype and torch.equal(x, TENSORS[n]) for n, x in arrived)


def test_whoever_waits_for_a_member_that_is_gone_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with group(3, 30.0) as (first, others, threads):
        gone, stays = (o.result() for o in others)
        gone.close()
        waiting = threads.submit(lambda: list(stays.receive(ANNOUNCED, 64)))
        with pytest.raises(RuntimeError, match="onnection"):
            for _ in range(10):  # the system may take the first ones
                first.send(ANNOUNCED, iter(TENSORS.values()), 64)
        first.close()
        with pytest.raises(RuntimeError, match="onnection"):
            waiting.result(30)
    with pytest.raises(RuntimeError, match="timeout"):  # and of one that never comes
        GlooGroup("127.0.0.1", free_port(), 0, 2, 0.2)
