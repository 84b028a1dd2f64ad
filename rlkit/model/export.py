"""What a model under training is to others: whole tensors under the names of the plain Hugging Face model, adapters merged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Export:
    """One exported tensor: the parameters it is made of, its type and shape, and how to compute it while those are whole."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]
    value: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def block(self) -> str:
        """The part of a layer that the tensor belongs to, e.g. ``model.layers.3.self_attn``; outside of layers, the tensor itself."""
        parts = self.name.split(".")
        layer = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
        return ".".join(parts[: layer + 2])


def wrappers(base: nn.Module) -> Iterator[tuple[str, Any]]:
    """PEFT's adapted layers, each under the name of the plain layer; of nested ones (several parameters of a module) the outermost."""
    inside = ""
    for name, module in base.named_modules():
        if inside and name.startswith(inside):
            continue
        # Their submodules tell them apart: attributes of some of PEFT's wrappers raise when they are asked for.
        if "token_adapter" in module._modules:  # trained rows of an embedding
            inside = f"{name}."
            yield name, module.token_adapter
        elif "base_layer" in module._modules:
            inside = f"{name}."
            yield name, module


def retrains(module: nn.Module) -> bool:
    """Whether it is PEFT's wrapper around a module of which a copy is trained whole."""
    return "modules_to_save" in module._modules


def in_use(wrapper: Any) -> nn.Module:
    """That copy; with the adapter switched off, the module as it was."""
    copies = wrapper.modules_to_save
    module: nn.Module = wrapper.original_module if wrapper.disable_adapters else copies[wrapper.active_adapters[0]]
    return module


def exported(base: nn.Module) -> Iterator[Export]:
    """The tensors of ``base``, in its own order. With PEFT, those of the plain model: adapters merged, retrained modules in place."""
    adapted, inside, seen = dict(wrappers(base)), "", set[int]()
    for name, found in base.named_modules():
        if inside and name.startswith(inside):
            continue
        module: Any = found
        if name in adapted:
            inside, layer = f"{name}.", adapted[name]
            for key, t in stored(layer.get_base_layer()).items():
                plain = _plain(f"{name}.{key}", t)
                if plain.parameters:
                    plain = replace(plain, parameters=tuple(layer.parameters()), value=partial(merged, layer, key))
                yield plain
            continue
        if retrains(module):
            inside, module = f"{name}.", in_use(module)
        whole = stored(module, recurse=name + "." == inside)
        own = {f"{name}.{key}" if name else key: t for key, t in whole.items() if id(t) not in seen}
        seen |= {id(t) for t in own.values()}  # a tied output layer is the embedding
        yield from (_plain(key, t) for key, t in own.items())


def stored(module: nn.Module, recurse: bool = True) -> dict[str, Tensor]:
    """What a file of ``module`` holds: parameters, each once, and the buffers that belong to them (a router's correction, ...)."""
    found: dict[str, Tensor] = dict(module.named_parameters(recurse=recurse))
    for name, part in module.named_modules() if recurse else (("", module),):
        for key, buffer in part._buffers.items():
            if buffer is not None and key not in part._non_persistent_buffers_set:
                found[f"{name}.{key}" if name else key] = buffer
    return found


def _plain(name: str, t: Tensor) -> Export:
    parameters = (t,) if isinstance(t, nn.Parameter) else ()
    return Export(name, parameters, t.dtype, tuple(getattr(t, "ds_shape", t.shape)), lambda: t.detach())


def merged(layer: Any, key: str) -> Tensor:
    """Parameter ``key`` of an adapted layer as PEFT's ``merge`` makes it (LoRA, DoRA, ...); the layer itself stays as it is, bit by bit."""
    plain = layer.get_base_layer()
    nested = [m for m in layer.modules() if "base_layer" in m._modules]  # one for each adapted parameter of a module
    own = {p: p.data for p in plain.parameters()}
    try:
        for p in own:
            p.data = p.data.clone()  # merge() writes into it
        for one in nested:
            one.merge()
        value: Tensor = layer.get_base_layer().get_parameter(key).data
        return value
    finally:
        if layer.get_base_layer() is not plain:  # some adapters merge by changing places with the layer
            layer.unmerge()
        for one in nested:
            one.merged_adapters.clear()
        for p, data in own.items():
            p.data = data


def numel(p: Tensor) -> int:
    """Elements of a parameter; ZeRO-3 leaves an empty shell of it on each rank."""
    return int(getattr(p, "ds_numel", p.numel()))


def dimensions(p: Tensor) -> int:
    """How many dimensions a parameter has; see :func:`numel`."""
    return len(getattr(p, "ds_shape", p.shape))
