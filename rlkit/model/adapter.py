"""PEFT adapters: which of them train what rlkit samples, compares with and exports.

PEFT has some thirty methods with hundreds of options. None is listed as good here: :func:`prove` moves everything that is trained and looks
whether the exported tensors make the same model, and whether the model with its adapter switched off stays the one that was loaded.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rlkit.errors import ModelError, first_line
from rlkit.model.export import Export, wrappers
from rlkit.model.policy import PolicyModel, probe_tokens
from rlkit.types import Sampling

DATA_DRIVEN = ("eva", "corda", "lora_ga")  # initialisations that want a pass over data before training
MOVED = 0.05  # nats by which an adapter may change the model before training: what is cut off a matrix in bfloat16 is rounded
SAME = 1e-4  # nats; the same weights in the same layers give the same numbers in every precision
SHARE = 0.2  # of what the adapter does to a layer may differ in the exported one: in bfloat16, rounding is a part of it


def add_adapter(lm: Any, options: Mapping[str, Any], seed: int) -> Any:
    """Wraps ``lm`` with an adapter: ``options`` go as they are to the configuration of ``peft_type``, which is LORA if it is not named.

    Raises:
        ModelError: peft is missing or refuses the options, or the method needs what rlkit's passes do not do.
    """
    try:
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING, get_peft_model
    except ImportError:
        raise ModelError("peft: is set, but peft is not installed. Install it with: pip install peft") from None
    given = dict(options)
    kind = str(given.pop("peft_type", "LORA")).upper()
    known = {str(getattr(k, "value", k)).upper(): cls for k, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in known:
        raise ModelError(f"peft.peft_type: found {kind!r}, expected one of {', '.join(sorted(known))}.")
    if kind == "ADALORA":
        raise ModelError(
            "peft.peft_type: ADALORA redistributes its ranks by calls after every step and by a loss of its own, which rlkit does "
            "not make. Use LORA."
        )
    init = options.get("init_lora_weights")
    if isinstance(init, str) and init.lower() in DATA_DRIVEN:
        raise ModelError(
            f"peft.init_lora_weights: {init} is computed from data before training, which rlkit does not do. Use true, pissa, or olora."
        )
    if isinstance(init, str) and init.lower() == "loftq":
        raise ModelError(
            "peft.init_lora_weights: loftq makes up for the rounding of a quantized model; rlkit trains none. Use true, pissa, or olora."
        )
    torch.manual_seed(seed)  # every rank must draw the same adapter
    try:
        config = known[kind](**{"task_type": "CAUSAL_LM", **given})
        if config.is_prompt_learning or config.is_adaption_prompt:
            raise ModelError(
                f"peft.peft_type: {kind} puts virtual tokens into the prompt, which no exported model and no engine has. Use a method "
                "that changes weights, such as LORA."
            )
        return get_peft_model(lm, config)
    except ModelError:
        raise
    except Exception as error:  # whatever peft makes of somebody's options
        raise ModelError(f"peft: {first_line(error)}") from error


def hints(options: Mapping[str, Any], lm: Any, lr: float) -> list[str]:
    """What a LoRA run that will hardly learn is told when it starts.

    Source: Schulman et al., "LoRA Without Regret" (2025): all linear layers, ten times the learning rate of full fine-tuning.
    """
    if str(options.get("peft_type", "LORA")).upper() != "LORA":
        return []
    found = []
    published = (
        "published runs adapt all layers (all-linear) with about ten times the rate of full fine-tuning (1e-5 to 1e-4)"
    )
    names = {name for name, _ in wrappers(lm)}
    if names and all(re.search(r"\.(self_)?(attn|attention)\.", name) for name in names):
        found.append(
            f"only attention layers have an adapter, which learns less than full fine-tuning at any rank; {published}"
        )
    if lr <= 2e-6:
        found.append(f"learner.lr is {lr:g}, a rate for full fine-tuning; {published}")
    rank, alpha = options.get("r", 8), options.get("lora_alpha", 8)
    divisor = rank**0.5 if options.get("use_rslora") else rank
    if alpha / divisor < 0.5:
        found.append(
            f"the adapter's output is multiplied by {alpha / divisor:.2g} (lora_alpha: {alpha:g}, r: {rank:g}), which shrinks every step "
            "by as much; published runs have lora_alpha: 32, or twice r"
        )
    return [f"hint: peft: {text}." for text in found]


@dataclass(frozen=True)
class Proof:
    """What :func:`prove` found.

    Attributes:
        base_kept: with the adapter off, the model is the one that was loaded.
        switched_off: it stays so whatever is trained.
    """

    base_kept: bool
    switched_off: bool


def prove(policy: PolicyModel, start: Tensor, exports: Iterable[Export]) -> Proof:
    """Moves all that is trained, looks at what comes of it, and puts it back bit by bit; leaves the model in evaluation mode.

    ``start`` are the log-probs of :func:`probe` before the adapter was there.

    Raises:
        ModelError: the adapter changes the model before any training, or some exported tensor lacks what the adapter does.
    """
    policy.eval()
    try:
        moved = float((probe(policy) - start).abs().mean())
    except Exception as error:  # whatever peft makes of somebody's options
        raise ModelError(f"peft: the model does not run with this adapter: {first_line(error)}") from error
    if not moved <= MOVED:
        raise ModelError(
            f"peft: this adapter changes the model by {moved:.2g} nats per token before anything is trained, so that training would not "
            "start from model.path. Use an initialisation that starts from the model (init_lora_weights: true)."
        )
    with policy.lm.disable_adapter():
        kept = float((probe(policy) - start).abs().mean()) <= SAME
    with _moved(policy):
        with _compared(policy, exports):
            certain = probe(policy)
        for _, wrapper in wrappers(policy.base):
            for module in wrapper.modules():
                module.train(not isinstance(module, nn.Dropout))
        if not float((probe(policy) - certain).abs().mean()) <= SAME:
            raise ModelError(
                "peft: this adapter draws random numbers while it trains, so that log-probs are not those of the model that is sampled. "
                "Use LORA."
            )
        policy.eval()
        with policy.lm.disable_adapter():
            off = float((probe(policy) - start).abs().mean()) <= SAME
    return Proof(kept, kept and off)


def probe(policy: PolicyModel) -> Tensor:
    """Log-probs of two rows of tokens, ``[22]``."""
    ids = probe_tokens(policy.base, 24)
    logp: Tensor
    with torch.no_grad():
        logp, *_ = policy(
            ids,
            ids.new_tensor([12, 12]),
            ids.new_tensor([*range(1, 12), *range(13, 24)]),
            ids.new_tensor([0, 1]),
            Sampling(),
        )
    return logp


@contextlib.contextmanager
def _moved(policy: PolicyModel) -> Iterator[None]:
    """Inside, every trained parameter is elsewhere."""
    trained = [p for p in policy.lm.parameters() if p.requires_grad]
    own, low = [p.data for p in trained], policy.output.weight.dtype != torch.float32
    noise = torch.Generator().manual_seed(0)
    try:
        for p in trained:
            size = 0.02 + 0.2 * float(p.data.float().pow(2).mean().sqrt())
            if low:  # or what it does would drown in the rounding of a layer's output
                size *= 4
            p.data = p.data + (size * torch.randn(p.shape, generator=noise)).to(p)
        yield
    finally:
        for p, data in zip(trained, own, strict=True):
            p.data = data


def output_type(output: Any) -> torch.dtype:
    """The type of a layer's numbers."""
    return next(t.dtype for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point())


def numbers(output: Any) -> Tensor:
    """What a layer returns, be it several tensors (a router: weights, choices), as one vector."""
    return torch.cat([t.float().flatten() for t in tree_leaves(output) if isinstance(t, Tensor)])


@contextlib.contextmanager
def _compared(policy: PolicyModel, exports: Iterable[Export]) -> Iterator[None]:
    """Inside, every adapted layer's output is compared with what its plain layer gives with the exported tensors."""
    by_name = {e.name: e for e in exports}

    def compare(name: str, wrapper: Any, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if wrapper.disable_adapters:
            return
        plain = wrapper.get_base_layer()
        try:
            values = {key: by_name[f"{name}.{key}"].value() for key, _ in plain.named_parameters()}
        except (RuntimeError, ValueError, NotImplementedError, AttributeError) as error:
            raise ModelError(
                f"peft: what {type(wrapper).__name__} trains cannot be merged into the weights of {name}, and engines know no adapters: "
                f"{first_line(error)}"
            ) from error
        now, own = numbers(output), numbers(plain(*args, **kwargs))
        merged = numbers(torch.func.functional_call(plain, values, args, kwargs))
        does, lacks = float((now - own).norm()), float((now - merged).norm())
        rounding = 1e-6 if output_type(output) == torch.float32 else torch.finfo(output_type(output)).eps
        if not lacks <= SHARE * does + rounding * float(own.norm()):
            raise ModelError(
                f"peft: the weights that would be exported for {name} ({type(wrapper).__name__}) lack {lacks / max(does, 1e-30):.0%} of "
                "what the adapter does there: engines would sample another model. Leave this layer out of the adapter."
            )

    with contextlib.ExitStack() as stack:
        for name, wrapper in wrappers(policy.base):
            hook = wrapper.register_forward_hook(partial(compare, name, wrapper), with_kwargs=True)
            stack.callback(hook.remove)
        yield
