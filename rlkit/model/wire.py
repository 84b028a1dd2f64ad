"""Tensors on their way between processes: numpy arrays, which Ray's object store shares without copying."""

from __future__ import annotations

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
