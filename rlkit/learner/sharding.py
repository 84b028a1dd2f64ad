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
        for p in lm.parameters():
            # A copy, because rank 0's numbers are written into it, and a page of a mapped file that is written to stays in memory.
            p.data = p.data.to(self.device, self.dtype, copy=True)
            if self._first is None:
                import_deepspeed().zero.Init(
                    module=nn.ParameterList([p]), config_dict_or_path=self.config, dtype=self.dtype
                )
                self._first = p
            else:
                self._first.convert_to_zero_parameters([p])
        lm.to(self.device)  # buffers


def cuts(options: Mapping[str, Any]) -> bool:
    """Whether these options of DeepSpeed cut parameters. MiCS does so in groups of its own, when the engine is made."""
    zero = options.get("zero_optimization", {})
    return int(zero.get("stage", 0)) == 3 and int(zero.get("mics_shard_size", -1)) <= 0


def share_of(rank: int, world: int, size: int) -> Share:
    """The part of a rank of ``world`` in rows that ``size`` neighbours share. A collective of all ranks."""
    groups = [torch.distributed.new_group(range(first, first + size)) for first in range(0, world, size)]
    return Share(groups[rank // size], rank % size, size)
