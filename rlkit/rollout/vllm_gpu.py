"""vLLM's own receivers of weights on GPUs, which load as all of our backends do."""

from __future__ import annotations

from typing import Any

from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from rlkit.rollout.vllm_weights import Loading


class NcclTransfer(Loading, NCCLWeightTransferEngine):
    """Broadcasts from learner rank 0 to engines that have GPUs of their own."""

    def receive(self, update_info: Any) -> None:
        NCCLWeightTransferEngine.receive_weights(self, update_info)

    def shutdown(self) -> None:
        NCCLWeightTransferEngine.shutdown(self)


class IpcTransfer(Loading, IPCWeightTransferEngine):
    """Reads a learner's buffer on the GPU that both share."""

    def receive(self, update_info: Any) -> None:
        IPCWeightTransferEngine.receive_weights(self, update_info)

    def settle(self) -> None:
        super().settle()
        self._packed_importer.close()

    def shutdown(self) -> None:
        IPCWeightTransferEngine.shutdown(self)
