"""vLLM's weight-transfer interface for tensors that are already in this process (or in Ray's object store).

vLLM's own backends (nccl, ipc) are for GPUs. This one receives the tensors in the update itself; it works on every device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from rlkit.errors import EngineError

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
        self._kernels = _take_cpu_expert_kernels(cast(Any, self.model))
        initialize_layerwise_reload(self.model)

    def receive_weights(self, info: _Update) -> None:
        self._received |= cast(Any, self.model).load_weights(list(info.tensors.items()))

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        lost = _lost(self.model, self._received)
        if lost:
            raise EngineError(
                f"vLLM's {type(self.model).__name__} cannot take new weights while it runs: its loader writes {lost[0]}"
                f"{f' and {len(lost) - 1} others' if len(lost) > 1 else ''} where nobody reads. Set rollout.engine: hf."
            )
        finalize_layerwise_reload(self.model, self.model_config)
        _repack_cpu_linear(self.model, self._received)
        for method, kernel in self._kernels:
            if method.moe_kernel is None:  # its experts received nothing and stay packed as they were
                method.moe_kernel = kernel

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


def _lost(model: Any, received: set[str]) -> list[str]:
    """Parameters that a model's loader wrote itself and not through vLLM's loaders, which alone know where updated weights belong."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    named = dict(model.named_parameters(remove_duplicate=False))
    found = []
    for name in sorted(received & named.keys()):
        layer, _, key = name.rpartition(".")
        loaded = {k for k, _ in get_layerwise_info(model.get_submodule(layer)).loaded_weights}
        if named[name].is_meta and key not in loaded:
            found.append(name)
    return found


def _take_cpu_expert_kernels(model: Any) -> list[tuple[Any, Any]]:
    """Mixture-of-experts kernels, taken from where vLLM keeps them. On a CPU it packs experts when it makes a kernel and not again when
    weights are updated: whoever finds none makes a new one, and packs."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return []
    methods: list[Any] = [getattr(layer, "quant_method", None) for layer in model.modules()]
    found = [(m, m.moe_kernel) for m in dict.fromkeys(methods) if getattr(m, "moe_kernel", None) is not None]
    for method, _ in found:
        method.moe_kernel = None
    return found


class CheckpointNames:
    """Tensors under the names and in the pieces of the model's files, which vLLM reads; transformers fuses and renames some in memory."""

    def __init__(self, model: str) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        with torch.device("meta"):
            self.lm = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))

    def __call__(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        from transformers.core_model_loading import revert_weight_conversion

        return dict(revert_weight_conversion(self.lm, dict(tensors)))


def decoder_class(model: str) -> type:
    """transformers' own decoder of a model."""
    from transformers import AutoConfig, AutoModel

    cls: Any = AutoModel._model_mapping[type(AutoConfig.from_pretrained(model))]
    return cast(type, cls)


@contextlib.contextmanager
def classes_unchanged(cls: type) -> Iterator[None]:
    """Inside, vLLM may take transformers' ``cls`` as its own model. It prepares the class itself for compilation, and every other model of
    this process, the learner's, would no longer run."""
    init = cls.__init__  # type: ignore[misc]
    yield
    if cls.__init__ is not init:  # type: ignore[misc]
        cls.__init__ = init  # type: ignore[misc]
        cls.do_not_compile = True  # type: ignore[attr-defined]  # vLLM's own models have the attribute themselves


def register() -> None:
    """Makes the backend known to vLLM; safe to call again."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, InProcessTransfer)
