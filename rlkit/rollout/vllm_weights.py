"""vLLM's weight-transfer interface for tensors that are already in this process (or in Ray's object store).

vLLM's own backends (nccl, ipc) are for GPUs. This one receives the tensors in the update itself; it works on every device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

BACKEND = "rlkit"


@dataclass
class _Init(WeightTransferInitInfo):
    pass


@dataclass
class _Update(WeightTransferUpdateInfo):
    tensors: dict[str, Any] = field(default_factory=dict)


class InProcessTransfer(WeightTransferEngine[_Init, _Update]):
    """Loads each bucket through the model's own loader, layer by layer."""

    init_info_cls = _Init
    update_info_cls = _Update

    def init_transfer_engine(self, info: _Init) -> None:
        pass

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self._received: set[str] = set()
        initialize_layerwise_reload(self.model)

    def receive_weights(self, info: _Update) -> None:
        self._received |= cast(Any, self.model).load_weights(list(info.tensors.items()))

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        _repack_cpu_linear(self.model, self._received)

    def shutdown(self) -> None:
        pass


def _repack_cpu_linear(model: Any, received: set[str]) -> None:
    """On a CPU vLLM packs every 2-D weight when it is loaded; a tied ``lm_head`` receives no weight and would keep the old pack."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    named = dict(model.named_parameters(remove_duplicate=False))
    changed = {id(named[name]) for name in received if name in named}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "cpu_linear") and id(weight) in changed and f"{name}.weight" not in received:
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


def register() -> None:
    """Makes the backend known to vLLM; safe to call again."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, InProcessTransfer)
