"""What ranks divide among them: parameters, which ZeRO-3 cuts as they are read, and the tokens of a row.

A rank maps the model's files and takes one parameter at a time: a copy on its device, in the type that is trained, of which it keeps its
part. DeepSpeed would do the same when its engine is made, but to a model that is whole on every rank by then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rlkit.learner.backend import import_deepspeed
from rlkit.model.sharing import Share


class Cutter:
    """Leaves of every parameter of a model this rank's part, where DeepSpeed's engine of this ``config`` will look for it.

    The group of ranks exists (:func:`rlkit.learner.backend.join`). A collective: all ranks cut the same models in the same order, and take
    rank 0's numbers.
    """

    def __init__(self, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.device, self.dtype = dict(config), device, dtype
        self._first: Any = None

    def __call__(self, lm: nn.Module) -> None:
        # Copies, because rank 0's numbers are written into them, and a page of a mapped file that is written to stays in memory. All in one
        # place, or the parts that are made between them would lie apart, with holes in which no other copy fits.
        largest = max(p.numel() for p in lm.parameters())
        place = torch.empty(largest, dtype=self.dtype, device=self.device)
        for p in lm.parameters():
            p.data = place[: p.numel()].view(p.shape).copy_(p.data)
            if self._first is None:
                import_deepspeed().zero.Init(
                    module=nn.ParameterList([p]), config_dict_or_path=self.config, dtype=self.dtype
                )
                self._first = p
            else:
                self._first.convert_to_zero_parameters([p])
        lm.to(self.device)  # buffers


def cuts(options: Mapping[str, Any]) -> bool:
    """Whether a model is cut as it is read with these options of DeepSpeed: under stage 3, where a part is a part on a device.

    Parts on a disk, quantized ones, and MiCS, which has groups of its own, are left to DeepSpeed's engine.
    """
    zero = options.get("zero_optimization", {})
    away = (zero.get("offload_param") or {}).get("device") == "nvme"
    other = int(zero.get("mics_shard_size", -1)) > 0 or bool(zero.get("zero_quantized_weights"))
    return int(zero.get("stage", 0)) == 3 and not away and not other


def share_of(rank: int, world: int, size: int) -> Share:
    """The part of a rank of ``world`` in rows that ``size`` neighbours share. A collective of all ranks."""
    groups = [torch.distributed.new_group(range(first, first + size)) for first in range(0, world, size)]
    return Share(groups[rank // size], rank % size, size)
