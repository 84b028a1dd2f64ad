"""What a model under training is to others: whole tensors under the names of the plain Hugging Face model, adapters merged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Export:
    """One exported tensor: the parameters it is made of, its size, and how to compute it while those are whole."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    nbytes: int
    value: Callable[[], Tensor]

    @property
    def block(self) -> str:
        """The part of a layer that the tensor belongs to, e.g. ``model.layers.3.self_attn``; outside of layers, the tensor itself."""
        parts = self.name.split(".")
        layer = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
        return ".".join(parts[: layer + 2])


def exported(base: nn.Module) -> Iterator[Export]:
    """The tensors of ``base``, in its own order. With PEFT, those of the plain model: adapters merged, retrained modules in place."""
    inside, seen = "", set[int]()
    for name, found in base.named_modules():
        if inside and name.startswith(inside):
            continue
        module: Any = found
        if hasattr(module, "modules_to_save"):  # PEFT's wrapper around a module that is trained whole
            inside, module = f"{name}.", module.modules_to_save[module.active_adapters[0]]
            yield from (_plain(f"{name}.{key}", p) for key, p in module.named_parameters())
        elif hasattr(module, "base_layer"):  # an adapter around a layer
            inside, biased = f"{name}.", any(getattr(module, "lora_bias", {}).values())
            for key, p in module.get_base_layer().named_parameters():
                whole = _plain(f"{name}.{key}", p)
                if key == "weight" or biased:
                    whole = replace(whole, parameters=tuple(module.parameters()), value=partial(merged, module, key))
                yield whole
        else:
            own = {
                f"{name}.{key}" if name else key: p
                for key, p in module.named_parameters(recurse=False)
                if id(p) not in seen
            }
            seen |= {id(p) for p in own.values()}  # a tied output layer is the embedding
            yield from (_plain(key, p) for key, p in own.items())


def _plain(name: str, p: nn.Parameter) -> Export:
    return Export(name, (p,), numel(p) * p.element_size(), lambda: p.detach())


def merged(layer: Any, key: str) -> Tensor:
    """Parameter ``key`` of an adapted layer as PEFT's ``merge`` makes it (LoRA, DoRA, ...); the layer itself stays as it is, bit by bit."""
    own = {p: p.data for p in layer.get_base_layer().parameters()}
    try:
        for p in own:
            p.data = p.data.clone()  # merge() writes into it
        layer.merge()
        value: Tensor = layer.get_base_layer().get_parameter(key).data
        return value
    finally:
        layer.merged_adapters.clear()
        for p, data in own.items():
            p.data = data


def numel(p: Tensor) -> int:
    """Elements of a parameter; ZeRO-3 leaves an empty shell of it on each rank."""
    return int(getattr(p, "ds_numel", p.numel()))
