"""How many numbers a model multiplies a token with, and makes of it: counted on its modules, which may be on the meta device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from rlkit.model.export import numel
from rlkit.model.policy import decoder_of

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
ROUTED = ("num_experts_per_tok", "top_k_experts", "moe_top_k", "moe_topk", "num_experts_per_token")


def outputs(lm: Any) -> int:
    """Numbers that the linear layers of the decoder make of one token: of experts, those that it is routed to."""
    config, decoder = lm.config.get_text_config(), decoder_of(lm)
    experts, routed = routing(config)
    total = 0.0
    for name, module in decoder.named_modules():
        total += _outputs(module) * (routed / experts if ".experts." in f".{name}" else 1)
    for name, p in _stacked(decoder):
        total += routed * (config.hidden_size if "down" in name else numel(p) // (experts * config.hidden_size))
    return round(total)


def passed_over(lm: Any) -> int:
    """Parameters of the experts that a token is not routed to."""
    experts, routed = routing(lm.config.get_text_config())
    held = sum(numel(p) for name, p in lm.named_parameters() if ".experts." in name)
    return held * (experts - routed) // experts


def routing(config: Any) -> tuple[int, int]:
    """(experts of a layer, experts that a token is routed to); (1, 1) without experts."""
    experts = next((n for key in EXPERTS if isinstance(n := getattr(config, key, None), int) and n), 1)
    routed = next((n for key in ROUTED if isinstance(n := getattr(config, key, None), int) and n), 1)
    return experts, min(routed, experts)


def _outputs(module: nn.Module) -> int:
    """Of one linear layer, in GPT-2's form too; 0 for other modules."""
    from transformers.pytorch_utils import Conv1D

    return int(module.nf) if isinstance(module, Conv1D) else module.out_features if isinstance(module, nn.Linear) else 0


def _stacked(decoder: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights that hold one matrix of every expert."""
    for name, p in decoder.named_parameters():
        if ".experts." in f".{name}" and len(getattr(p, "ds_shape", p.shape)) == 3:
            yield name.rpartition(".")[2], p
