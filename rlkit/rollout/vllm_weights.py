"""The engine's side of vLLM's weight-transfer interface.

All backends load alike (:class:`Loading`); they differ in how the tensors come. ``rlkit`` takes them in the update itself, from this
process or from Ray's object store, on every device. ``rlkit_gloo`` takes part in a group with the learner, over sockets. ``rlkit_nccl`` and
``rlkit_ipc`` are vLLM's own receivers for GPUs (:mod:`rlkit.rollout.vllm_gpu`). Each of them also takes tensors in the update.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from rlkit.errors import EngineError
from rlkit.model.wire import Announced, GlooGroup

BACKENDS = {  # what `cluster.transfer` calls them -> (name that vLLM knows, module, class)
    "store": ("rlkit", __name__, "InProcessTransfer"),
    "gloo": ("rlkit_gloo", __name__, "GlooTransfer"),
    "nccl": ("rlkit_nccl", "rlkit.rollout.vllm_gpu", "NcclTransfer"),
    "ipc": ("rlkit_ipc", "rlkit.rollout.vllm_gpu", "IpcTransfer"),
}


@dataclass
class Given(WeightTransferUpdateInfo):
    """An update that holds its tensors."""

    tensors: dict[str, Any] = field(default_factory=dict)


class Loading(WeightTransferEngine[Any, Any]):
    """Loads what comes through the model's own loader, layer by layer, under the names of the model's files.

    vLLM's receivers call ``self.model.load_weights``; between the start and the end of an update that is :meth:`_load`.
    """

    _names: CheckpointNames | None = None

    def parse_update_info(self, update_dict: dict[str, Any]) -> Any:
        return Given(**update_dict) if "tensors" in update_dict else super().parse_update_info(update_dict)

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        if self._names is None:
            self._names = CheckpointNames(self.model_config.model)
        self._received: set[str] = set()
        self._kernels = _take_cpu_expert_kernels(self.model)
        initialize_layerwise_reload(self.model)
        for layer in _cpu_embeddings(self.model):
            _load_in_place(layer)
        cast(Any, self.model).load_weights = self._load

    def _load(self, tensors: Iterable[tuple[str, Any]]) -> set[str]:
        assert self._names is not None
        load = type(self.model).load_weights  # type: ignore[attr-defined]
        found: set[str] = load(self.model, list(self._names(dict(tensors)).items()))
        self._received |= found
        return found

    def receive_weights(self, update_info: Any) -> None:
        if isinstance(update_info, Given):
            self._load(update_info.tensors.items())
        else:
            self.receive(update_info)

    def receive(self, update_info: Any) -> None:
        """Takes tensors that are not in the update."""
        raise EngineError("this engine takes weights in the update itself; set cluster.transfer: store.")

    def finish_weight_update(self) -> None:
        lost = _lost(self.model, self._received)
        if lost:
            raise EngineError(
                f"vLLM's {type(self.model).__name__} cannot take new weights while it runs: its loader writes {lost[0]}"
                f"{f' and {len(lost) - 1} others' if len(lost) > 1 else ''} where nobody reads. Set rollout.engine: hf."
            )
        self.settle()

    def settle(self) -> None:
        """Puts all that has come into its place. After an update that was cut off, what came of it, so that another can begin."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        del cast(Any, self.model).load_weights
        finalize_layerwise_reload(self.model, self.model_config)
        _repack_cpu_linear(self.model, self._received)
        for method, kernel in self._kernels:
            if method.moe_kernel is None:  # its experts received nothing and stay packed as they were
                method.moe_kernel = kernel

    def shutdown(self) -> None:
        """Ends the connection with the learners."""


@dataclass
class _NoInit(WeightTransferInitInfo):
    pass


class InProcessTransfer(Loading):
    """Tensors come in the update, a bucket at a time."""

    init_info_cls = _NoInit
    update_info_cls = Given

    def init_transfer_engine(self, init_info: _NoInit) -> None:
        pass


@dataclass
class GlooInit(WeightTransferInitInfo):
    """As vLLM's ``NCCLWeightTransferInitInfo``: this engine's devices have the ranks from ``rank_offset`` on in a group of ``world_size``.

    ``bucket``: bytes of one broadcast. ``timeout``: seconds of each wait.
    """

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    bucket: int
    timeout: float


@dataclass
class Announcement(WeightTransferUpdateInfo):
    """As vLLM's ``NCCLWeightTransferUpdateInfo``: what will come, in order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooTransfer(Loading):
    """vLLM's NCCL receiver, over gloo: the same meeting, the same announcement, and broadcasts of many tensors at once."""

    init_info_cls = GlooInit
    update_info_cls = Announcement
    _group: GlooGroup | None = None

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        self.shutdown()
        parallel, i = self.parallel_config, init_info
        rank = i.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        self._bucket = i.bucket
        self._group = GlooGroup(i.master_address, i.master_port, rank, i.world_size, i.timeout)

    def receive(self, update_info: Announcement) -> None:
        assert self._group is not None
        told = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        announced = (Announced(n, getattr(torch, d), tuple(s)) for n, d, s in told)
        for tensors in self._group.receive(announced, self._bucket):
            self._load(tensors)

    def shutdown(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None


class Extension:
    """What vLLM's workers have besides. Its module registers the backends wherever a worker runs, in processes of vLLM's own, too."""

    def abandon_weight_update(self) -> None:
        """Gives up an update that was cut off; the next one must send again all that this one should have."""
        from vllm.config import set_current_vllm_config

        worker: Any = self
        with set_current_vllm_config(worker.vllm_config):
            worker.weight_transfer_engine.settle()
        worker._weight_update_active = False


def _cpu_embeddings(model: Any) -> list[Any]:
    """On a CPU, the embeddings and output layers of a model whose weights are stored as they come; else none."""
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return []
    kinds: Iterable[Any] = (m for m in model.modules() if isinstance(m, VocabParallelEmbedding))
    return [m for m in kinds if isinstance(m.quant_method, UnquantizedEmbeddingMethod)]


def _load_in_place(layer: Any) -> None:
    """Lets new weights go straight to where the old ones lie. vLLM would load them elsewhere, pack that, and copy it back."""
    from vllm.model_executor.model_loader.reload.layerwise import _place_kernel_tensors, get_layerwise_info

    info = get_layerwise_info(layer)
    _place_kernel_tensors(layer, info)
    info.reset()


class Packed:
    """What a layer's ``cpu_linear`` is: its matrix in the order in which oneDNN multiplies, made by vLLM when it is first asked for.

    vLLM packs every embedding, and one that is no output layer is never multiplied with.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = weakref.ref(layer)
        self.linear: Callable[..., torch.Tensor] | None = None

    def __call__(self, *args: Any) -> torch.Tensor:
        if self.linear is None:
            self.pack()
        assert self.linear is not None
        return self.linear(*args)

    def pack(self) -> None:
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        layer: Any = self.layer()
        self.linear = None  # the old one goes first
        dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
        self.linear, layer.cpu_linear = layer.cpu_linear, self


def _repack_cpu_linear(model: Any, received: set[str]) -> None:
    """On a CPU vLLM packs every 2-D weight when it is loaded. Not those that are loaded in place, nor those that share a weight of another
    name, as a tied ``lm_head`` does, which would keep the old pack."""
    named = dict(model.named_parameters(remove_duplicate=False))
    changed = {id(named[name]) for name in received if name in named}
    in_place = set(_cpu_embeddings(model))
    for name, module in model.named_modules():
        packed = getattr(module, "cpu_linear", None)
        if packed is None or id(getattr(module, "weight", None)) not in changed:
            continue
        if module in in_place or f"{name}.weight" not in received:
            if not isinstance(packed, Packed):
                module.cpu_linear = Packed(module)
            elif packed.linear is not None:
                packed.pack()


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
    """Makes the backends known to vLLM; safe to call again."""
    for name, module, cls in BACKENDS.values():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, module, cls)


register()
