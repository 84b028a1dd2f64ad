"""The learner's side of weights over gloo: vLLM's NCCL trainer, call for call, with sockets in the place of NCCL.

What differs between a CPU and a GPU is the last call alone, so that all before it is tested on machines without GPUs.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

from vllm.distributed.weight_transfer.base import TrainerInitInfo, TrainerWeightTransferEngine
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from rlkit.model.wire import Announced, GlooGroup


@dataclass
class GlooTrainerInit(TrainerInitInfo):
    """As vLLM's ``NCCLTrainerInitInfo``; ``bucket``: bytes of one broadcast, ``timeout``: seconds of each wait."""

    backend: ClassVar[str] = "rlkit_gloo"

    master_address: str
    master_port: int
    world_size: int
    bucket: int
    timeout: float


class GlooTrainer(TrainerWeightTransferEngine[GlooTrainerInit]):
    """Rank 0 of the learners in a group with all devices of the engines."""

    init_info_cls = GlooTrainerInit
    _group: GlooGroup | None = None
    _bucket: int

    @classmethod
    def trainer_init(cls, init_info: GlooTrainerInit, *, client: Any, source: Any = None) -> GlooTrainer:
        found, i = cls(client=client, source=source, is_sender=True), init_info
        told = {
            "master_address": i.master_address,
            "master_port": i.master_port,
            "rank_offset": 1,
            "world_size": i.world_size,
            "bucket": i.bucket,
            "timeout": i.timeout,
        }
        threads = ThreadPoolExecutor(1)
        try:
            joined = threads.submit(client.init_weight_transfer_engine, told)  # engines and rank 0 wait for each other
            found._group = GlooGroup(i.master_address, i.master_port, 0, i.world_size, i.timeout)
            joined.result()
        finally:
            threads.shutdown(wait=False)
        found._bucket = i.bucket
        return found

    def send_weights(self) -> None:
        assert self.source is not None and self._group is not None
        told = [Announced(x.name, x.dtype, tuple(x.shape)) for x in self.source.metadata()]
        announcement = {
            "names": [x.name for x in told],
            "dtype_names": [str(x.dtype).removeprefix("torch.") for x in told],
            "shapes": [list(x.shape) for x in told],
        }
        self.client.start_weight_update()
        threads = ThreadPoolExecutor(1)
        try:
            loaded = threads.submit(self.client.update_weights, announcement)
            tensors = iter(self.source)
            self._group.send(told, (x for _, x in tensors), self._bucket)
            next(tensors, None)  # ends it: what was gathered last is given up
            loaded.result()
        finally:
            threads.shutdown(wait=False)  # an engine that never answers is waited for nowhere else
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None


WeightTransferTrainerFactory.register_engine(GlooTrainerInit.backend, GlooTrainer)
