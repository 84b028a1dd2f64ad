"""What two forms of one value make of the same leaves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def assert_same_gradients(
    got: Tensor, want: Tensor, upstream: Tensor, leaves: Sequence[Tensor], *, rtol: float, atol: float
) -> None:
    for a, b in zip(*(torch.autograd.grad((x * upstream).sum(), leaves) for x in (got, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
