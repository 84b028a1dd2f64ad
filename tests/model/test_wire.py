"""Tensors that travel between processes arrive bit by bit."""

from __future__ import annotations

import pytest
import torch

from rlkit.model.wire import pack, unpack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_arrive_as_they_left(dtype: torch.dtype) -> None:
    x = torch.randn(7, 5).to(dtype)
    packed = pack(x)
    assert packed.nbytes == x.numel() * x.element_size()
    y = unpack(packed)
    assert y.dtype == dtype and torch.equal(x, y)
    assert torch.equal(unpack(x), x)
