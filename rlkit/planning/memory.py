"""Bytes on one learner rank and on one engine device, before anything is loaded.

Parameter counts come from the model's own code on the meta device, so they are exact for every architecture. Static bytes are those that
torch and DeepSpeed keep; activations are what the Hugging Face code saves for the backward pass, tensor by tensor. Both are tested against
tensors that were counted in real steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlkit.errors import ConfigError, first_line
from rlkit.learner.learner import BUCKET_BYTES
from rlkit.model.adapter import add_adapter
from rlkit.model.head import CHUNK_ELEMENTS
from rlkit.model.hub import model_config
from rlkit.model.size import outputs, passed_over

GIB = 1 << 30
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Cached:
    """What an engine keeps of a sequence: keys and values, or what they are made of.

    Attributes:
        windows: of every layer that keeps something the tokens that it attends to; 0: all of them.
        numbers: of one token in one layer, all heads together. heads: how many devices can divide them among them, 1 for a latent vector,
            which each of them holds.
    """

    windows: tuple[int, ...]
    numbers: int
    heads: int

    def bytes(self, length: float, size: int, tensor_parallel: int = 1) -> float:
        """Of a sequence of ``length`` tokens on one device: ``ceil(heads / tp) numbers / heads size`` a token and layer, in windows at most
        as many tokens as those have; a head is never split.
        """
        tokens = sum(min(length, window or length) for window in self.windows)
        return tokens * -(-self.heads // tensor_parallel) * (self.numbers // self.heads) * size


@dataclass(frozen=True)
class Shape:
    """What memory and FLOPs of a causal language model depend on; all sizes in elements.

    Attributes:
        parameters: all of them, shared ones once. trainable: those with a gradient.
        active: parameters that multiply a token (experts that are not routed to, and a table that is only looked up, left out).
        largest: parameters of the largest layer.
        width: outputs of all linear layers of the decoder for one token.
        heads, kv_heads, head_dim: of the attention as it is computed: latent keys and values (MLA) are expanded to all heads, and
            ``head_dim`` is the mean of what a key and a value have.
        cached: what engines keep of a sequence.
    """

    parameters: int
    trainable: int
    active: int
    largest: int
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    cached: Cached
    qk_norm: bool
    lora: bool
    context: int

    @property
    def intermediate(self) -> float:
        """Width of the gated MLP that one token passes, all its experts together: ``(width / layers - q - 2 kv) / 2 - hidden``, which
        is half the width of an MLP without a gate.
        """
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return max(0.0, (self.width / self.layers - q - 2 * kv) / 2 - self.hidden)

    @property
    def head(self) -> int:
        """Parameters of the output layer."""
        return self.vocab * self.hidden

    def kv_bytes(self, size: int, tensor_parallel: int = 1, length: float = 1) -> float:
        """Bytes of the cache on one device for each token of a sequence of ``length``."""
        return self.cached.bytes(length, size, tensor_parallel) / length

    def attended(self, length: float) -> float:
        """Tokens that a token of a sequence of ``length`` ``L`` attends to, summed over layers, on average: ``L / 2``, or
        ``W - W^2 / (2 L)`` in a window ``W`` that is shorter than ``L``.
        """
        within = (min(length, window or length) for window in self.cached.windows)
        return sum(w - w * w / (2 * length) for w in within) if length else 0.0


def shape(config: Any, peft: Mapping[str, Any] | None = None, value_head: bool = False) -> Shape:
    """The shape of ``config``: a ``PretrainedConfig``, or a folder or hub name of one. ``peft`` are options of a LoRA adapter.

    Of a model of text and other inputs it is that of the language model; of quantized weights, that of what they stand for.

    Raises:
        ConfigError: not a model, or one whose configuration lacks a size that is needed.
    """
    if isinstance(config, str):
        config = model_config(config, "model.path")
    c = config.get_text_config()
    needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    missing = [n for n in needed if not isinstance(getattr(c, n, None), int)]
    if missing:
        raise ConfigError(
            f"model.path: the configuration of {type(config).__name__} has no {missing[0]}; rlkit plans decoders with attention."
        )
    lm, looked_up, width = _without_memory(c, peft)
    sizes = {n: p.numel() for n, p in lm.named_parameters()}
    extra = c.hidden_size + 1 if value_head else 0
    heads, kv_heads, head_dim = _heads(c)
    cached = _cached(c, kv_heads, head_dim)
    if not cached.windows:
        raise ConfigError(
            f"model.path: no layer of {type(config).__name__} has attention; rlkit plans decoders with attention."
        )
    return Shape(
        parameters=sum(sizes.values()) + extra,
        trainable=sum(p.numel() for p in lm.parameters() if p.requires_grad) + extra,
        active=sum(sizes.values()) + extra - looked_up - passed_over(lm),
        largest=_largest_block(sizes),
        vocab=c.vocab_size,
        hidden=c.hidden_size,
        layers=c.num_hidden_layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        width=width,
        cached=cached,
        qk_norm=any("q_norm" in n for n in sizes),
        lora=peft is not None,
        context=getattr(c, "max_position_embeddings", None) or 1 << 30,
    )


def _without_memory(config: Any, peft: Mapping[str, Any] | None) -> tuple[Any, int, int]:
    """The model that a configuration describes, on the meta device; the parameters of its tables that are not its output layer, too, and
    multiply no token; the outputs of its linear layers, without those of an adapter.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        try:
            lm = AutoModelForCausalLM.from_config(config)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"model.path: no causal language model can be made from this configuration: {first_line(error)}"
            ) from error
        output, width = lm.get_output_embeddings().weight, outputs(lm)
        tables = {m.weight for m in lm.modules() if isinstance(m, torch.nn.Embedding)} - {output}
        return lm if peft is None else add_adapter(lm, dict(peft), 0), sum(t.numel() for t in tables), width


def _heads(c: Any) -> tuple[int, int, int]:
    """Heads, key and value heads, and numbers of one."""
    heads = c.num_attention_heads
    if getattr(c, "kv_lora_rank", None):
        return heads, heads, (c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim) // 2
    named = (getattr(c, name, None) for name in ("num_key_value_heads", "num_kv_heads"))
    kv_heads = 1 if getattr(c, "multi_query", False) else next((n for n in named if n), heads)
    return heads, kv_heads, getattr(c, "head_dim", None) or c.hidden_size // heads


def _cached(c: Any, kv_heads: int, head_dim: int) -> Cached:
    """Windows are those of the cache that transformers makes for a model; of MLA the latent vector is kept, as vLLM does, too."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    layers = DynamicCache(config=c).layers
    kept = [layer for layer in layers if isinstance(layer, DynamicLayer)]
    windows = tuple(getattr(layer, "sliding_window", 0) for layer in kept)
    if getattr(c, "kv_lora_rank", None):
        return Cached(windows, c.kv_lora_rank + c.qk_rope_head_dim, 1)
    return Cached(windows, 2 * kv_heads * head_dim, kv_heads)


def _largest_block(sizes: Mapping[str, int]) -> int:
    """Parameters of the largest layer, or of what stands beside the layers."""
    blocks = Counter[str]()
    for name, n in sizes.items():
        _, inside, below = name.partition(".layers.")
        blocks[below.split(".")[0] if inside else name] += n
    return max(blocks.values())


@dataclass(frozen=True)
class Budget:
    """The memory of one device in bytes: what lies there in each phase by name, and what there is (``capacity``)."""

    role: str
    capacity: float
    phases: Mapping[str, Mapping[str, float]]
    host: float = 0.0  # bytes that this rank keeps in host memory instead

    @property
    def worst(self) -> str:
        """The phase with the highest peak."""
        return max(self.phases, key=lambda p: sum(self.phases[p].values()))

    @property
    def items(self) -> dict[str, float]:
        """What lies in memory at the peak."""
        return {k: v for k, v in self.phases[self.worst].items() if v}

    @property
    def peak(self) -> float:
        return sum(self.items.values())

    @property
    def over(self) -> float:
        """Bytes that are missing; 0 or less fits."""
        return self.peak - self.capacity

    def __str__(self) -> str:
        rows = "\n".join(
            f"    {name:<58}{size / GIB:9.2f} GiB" for name, size in sorted(self.items.items(), key=lambda i: -i[1])
        )
        verdict = (
            f"fits, {-self.over / GIB:.2f} GiB free" if self.over <= 0 else f"TOO LARGE by {self.over / GIB:.2f} GiB"
        )
        host = f"\n    (and {self.host / GIB:.2f} GiB in host memory)" if self.host else ""
        return f"{self.role}: {self.peak / GIB:.2f} of {self.capacity / GIB:.2f} GiB in the phase {self.worst!r}: {verdict}\n{rows}{host}"


def copies(s: Shape, sharing: int) -> int:
    """How many ranks of ``sharing`` that share a row have a copy of each key head: 1 where there is a head for each of them."""
    return -(-sharing // s.kv_heads)


def saved(s: Shape, tokens: float, size: int, longest: float, attention: str | None = None, sharing: int = 1) -> float:
    """Bytes that one decoder layer saves for its backward pass, for ``tokens`` padded tokens in rows of ``longest``.

    Per token, in elements of ``size`` bytes (norms work in float32, which is a copy of its own in bfloat16):
    two norms ``2 h (4 + 2 size)``, attention ``(2 q + 2 kv) size`` and the softmax's sums ``4 heads``, gated MLP ``4 i size``.
    Eager attention also keeps ``heads * longest`` probabilities (float32, and a copy in ``size``) and repeats keys and values.
    With ``sharing`` ranks on a row ``tokens`` are this rank's; attention has some heads of all of them, which is as much, its output is
    kept before and after it is exchanged (``q size``), and key heads that are fewer than ranks are there :func:`copies` times.
    """
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    norm = 4 + (size if s.lora else 2 * size)  # a frozen norm does not keep what its weight multiplied
    per: float = 2 * s.hidden * norm + (2 * q + 2 * kv) * size + 4 * s.heads + 4 * s.intermediate * size
    if s.qk_norm:
        per += (q + kv) * (4 + (0 if s.lora else size))
    if attention == "eager":
        per += s.heads * longest * (4 + (size if size < 4 else 0)) + 2 * (q - kv) * size
    if sharing > 1:
        per += (q + 2 * kv * (copies(s, sharing) - 1)) * size
    return per * tokens


def activations(
    s: Shape,
    tokens: float,
    actions: float,
    size: int,
    *,
    longest: float,
    checkpointing: bool = False,
    attention: str | None = None,
    sharing: int = 1,
) -> dict[str, float]:
    """What one micro-batch keeps from its forward to its backward pass, by name.

    Without checkpointing every layer keeps :func:`saved`, with it its input (``h`` elements a token).
    """
    if checkpointing:
        kept = {"layer inputs (gradient checkpointing)": float(s.layers * s.hidden * size * tokens)}
    else:
        kept = {f"activations of {s.layers} layers": s.layers * saved(s, tokens, size, longest, attention, sharing)}
    return {
        **kept,
        "final norm and hidden states of action tokens": tokens * s.hidden * (4 + size) + actions * s.hidden * size,
    }


def layer_backward(
    s: Shape,
    tokens: float,
    size: int,
    *,
    longest: float,
    checkpointing: bool = False,
    attention: str | None = None,
    sharing: int = 1,
) -> dict[str, float]:
    """What the backward pass of one layer adds: gradients (``i + 2 h``; further ones take the place of tensors that are freed), and with
    checkpointing the layer itself, computed again.
    """
    computed = saved(s, tokens, size, longest, attention, sharing)
    again = {"one layer, computed again": computed} if checkpointing else {}
    return {**again, "gradients inside a layer": float((s.intermediate + 2 * s.hidden) * size * tokens)}


def head_bytes(s: Shape, size: int, entropy: bool = False) -> dict[str, float]:
    """The output layer in its backward pass: a tile of logits, which become their gradient in place, and the gradient of its weight."""
    out = {
        "logits, probabilities, gradient (one tile)": CHUNK_ELEMENTS
        * (4.0 + (4 if entropy else 0) + (2 if size == 2 else 0))
    }
    if not s.lora:
        out["gradient of the output layer's weight"] = float(s.head * size)
    return out


@dataclass(frozen=True)
class Sharding:
    """How a learner's states are laid out. ``stage`` null: plain torch (one rank, float32)."""

    stage: int | None
    ranks: int = 1
    offload_optimizer: bool = False
    offload_params: bool = False
    bucket: float = 5e8  # elements: DeepSpeed's reduce_bucket_size
    live: float = 1e9  # elements: stage3_max_live_parameters
    prefetch: float = 5e7

    @classmethod
    def of(cls, deepspeed: Mapping[str, Any] | None, ranks: int) -> Sharding:
        """From a run's ``deepspeed:`` section."""
        if deepspeed is None:
            return cls(None, 1)
        z = deepspeed.get("zero_optimization", {})

        def number(key: str, default: float) -> float:
            v = z.get(key, default)
            return default if v == "auto" else float(v)

        def away(key: str) -> bool:
            return bool((z.get(key) or {}).get("device", "none") != "none")

        return cls(
            int(z.get("stage", 0)),
            ranks,
            away("offload_optimizer"),
            away("offload_param"),
            number("reduce_bucket_size", cls.bucket),
            number("stage3_max_live_parameters", cls.live),
            number("stage3_prefetch_bucket_size", cls.prefetch),
        )

    def options(self) -> dict[str, Any] | None:
        """The ``deepspeed:`` section that says this."""
        if self.stage is None:
            return None
        z: dict[str, Any] = {"stage": self.stage}
        z |= {"offload_optimizer": {"device": "cpu"}} if self.offload_optimizer else {}
        z |= {"offload_param": {"device": "cpu"}} if self.offload_params else {}
        return {"zero_optimization": z}


def states(s: Shape, sharding: Sharding, size: int) -> tuple[dict[str, float], float, float]:
    """(bytes that stay on a rank, bytes the optimizer step adds, bytes in host memory).

    ``P`` parameters, ``T`` of them trained, ``N`` ranks, bytes per element. AdamW: two float32 moments, ``8 T``.

    ========================  ==========  =========  ===========  ==========
    \\                         parameters  gradients  master copy  moments
    ========================  ==========  =========  ===========  ==========
    torch, ZeRO-0 (float32)   4 P         4 T        -            8 T
    ZeRO-1 float32            4 P         4 T        4 T/N        8 T/N
    ZeRO-1 bfloat16           2 P         4 T + 2 T  4 T/N        8 T/N
    ZeRO-2                    size P      4 T/N      4 T/N        8 T/N
    ZeRO-3                    size P/N    4 T/N      4 T/N        8 T/N
    ========================  ==========  =========  ===========  ==========

    ZeRO-2 and 3 also hold reduce buckets, ZeRO-3 the layers that are gathered. Offloading moves master copy, moments and sharded gradients
    to the host.
    """
    t, p, n, stage = float(s.trainable), float(s.parameters), sharding.ranks, sharding.stage
    if not stage:
        return {"parameters": size * p, "gradients": 4 * t, "AdamW moments": 8 * t}, 4 * t, 0.0
    out = {"parameters": size * p / (n if stage == 3 else 1)}
    away = sharding.offload_optimizer
    plain = stage == 1 and size == 2 and not away  # DeepSpeed's BF16_Optimizer; everything else is the ZeRO one
    host = 0.0
    if stage == 1:
        out["gradients"] = 4 * t + (2 * t if plain else 0)
    optimizer = {"fp32 master weights": 4 * t / n, "AdamW moments": 8 * t / n}
    optimizer |= {} if stage == 1 else {"gradients (own part)": 4 * t / n}
    if away:
        host += sum(optimizer.values())
    else:
        out |= optimizer
    if not plain:
        # Two buffers when communication overlaps (ZeRO-1 and 2); torch.empty of their full size, whatever the model needs.
        out["reduce buckets"] = sharding.bucket * size * (2 if stage < 3 else 1)
    if stage == 3:
        if sharding.offload_params:
            host += out.pop("parameters")
        gathered = min(p, max(sharding.live, s.largest) + sharding.prefetch)
        out["gathered layers"] = 0.0 if n == 1 and not sharding.offload_params else gathered * size
    step = 0.0 if away else (8 if size == 2 and stage < 3 else 12) * t / n
    return out, step, host


@dataclass(frozen=True)
class SecondModel:
    """A reference or teacher with weights of its own. ``offload``: it is in host memory between passes; ``size``: bytes of a number."""

    shape: Shape
    offload: bool
    size: float

    @property
    def bytes(self) -> float:
        return float(self.size * self.shape.parameters)


def learner_memory(
    s: Shape,
    sharding: Sharding,
    *,
    dtype: str,
    tokens: float,
    actions: float,
    longest: float,
    capacity: float,
    checkpointing: bool = False,
    attention: str | None = None,
    anchors: Mapping[str, SecondModel] | None = None,
    entropy: bool = False,
    whole_vocabulary: bool = False,
    bucket: float = BUCKET_BYTES,
    sharing: int = 1,
) -> Budget:
    """One learner rank. ``tokens``: padded tokens of its largest micro-batch, ``actions`` of them trained, in rows of ``longest``.
    ``sharing``: ranks that have a part of them each (``learner.sequence_parallel``).

    ``anchors`` are models beside the policy by name; each rank has a whole copy.
    ``bucket``: bytes of weights that are gathered at a time.
    """
    size = BYTES[dtype]
    always, optimizer_step, host = states(s, sharding, size)
    visiting = 0.0  # the largest anchor that comes to the device for its pass
    for name, a in (anchors or {}).items():
        if a.offload:
            visiting, host = max(visiting, a.bytes), host + a.bytes
        else:
            always[f"{name} (whole copy on every rank)"] = a.bytes
    tokens, actions = tokens / sharing, actions / sharing
    how: dict[str, Any] = {
        "longest": longest,
        "checkpointing": checkpointing,
        "attention": attention,
        "sharing": sharing,
    }
    kept = activations(s, tokens, actions, size, **how)
    if whole_vocabulary:  # the anchors' hidden states and output layers stay for the step
        kept["anchors' hidden states and output layers"] = sum(
            (actions * a.shape.hidden + (a.shape.head if a.offload else 0)) * a.size for a in (anchors or {}).values()
        )
    # A forward pass without gradient holds one layer's inputs and outputs at a time.
    passing = saved(s, tokens, size, longest, attention, sharing) + 2 * CHUNK_ELEMENTS * 4
    layer = layer_backward(s, tokens, size, **how)
    phases = {
        "backward through the output layer": {**kept, **head_bytes(s, size, entropy)},
        "backward through a layer": {**kept, **layer},
        "optimizer step": {"temporaries of AdamW": optimizer_step},
        "annotate": {"one layer without gradient": passing, "anchor that is offloaded": visiting},
        "weight sync": {"one bucket of whole tensors": 2.0 * max(bucket, size * s.head)},
    }
    whole = {name: {**always, **extra} for name, extra in phases.items()}
    if sharding.stage == 3 and s.lora:  # nothing else is there yet; without an adapter a rank reads its part alone
        whole["start"] = {"whole model, before ZeRO-3 splits it": float(size * s.parameters)}
    return Budget("learner rank", capacity, whole, host)


def engine_memory(
    s: Shape,
    *,
    dtype: str,
    capacity: float,
    device: float,
    utilization: float,
    tensor_parallel: int,
    max_seqs: int,
    batched_tokens: int,
    mean: float,
    longest: float,
    kv_dtype_bytes: int | None = None,
    beside: bool = False,
) -> tuple[Budget, dict[str, float]]:
    """One vLLM device, and what its KV cache holds: ``tokens``, sequences at the ``mean`` and at the ``longest`` total length.

    vLLM takes ``utilization`` of the device; what weights and one step's work leave of it is KV cache. At least one longest sequence
    must fit. ``beside`` something that keeps its part of the device, all that it takes must: ``capacity`` is what is left.
    """
    size, tp = BYTES[dtype], tensor_parallel
    number = kv_dtype_bytes or size
    one, usual = s.cached.bytes(longest, number, tp), s.cached.bytes(mean, number, tp)
    work = batched_tokens * (4 * s.hidden + 3 * s.intermediate / tp) * size
    # Logits of every running sequence in float32, their log-probs, and the sampler's sorted copy.
    always = {
        "weights": size * s.parameters / tp,
        "one step's activations": work,
        "logits and log-probs of running sequences": 3 * 4.0 * max_seqs * s.vocab,
    }
    room = utilization * device - sum(always.values())
    always["KV cache for one longest sequence"] = one
    if beside:
        always["the rest of the KV cache"] = max(0.0, room - one)
    most = capacity if beside else min(capacity, utilization * device)
    budget = Budget(f"engine device (tensor_parallel {tp})", most, {"generate": always})
    room = max(0.0, room)
    fit = {
        "bytes a token": usual / mean,
        "tokens": room / usual * mean,
        "room at the mean length": room / usual,
        "sequences at the mean length": min(max_seqs, room / usual),
        "sequences at the longest length": min(max_seqs, room / one),
    }
    return budget, fit
