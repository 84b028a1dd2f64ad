"""Seconds from FLOPs and bytes, on named hardware. Every number that is assumed, and not counted, is a field of :class:`Assumptions`."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace

from rlkit.errors import ConfigError
from rlkit.planning.memory import BYTES, GIB, Shape, Sharding, copies


@dataclass(frozen=True)
class Gpu:
    """One accelerator, from its data sheet.

    Attributes:
        memory: bytes. flops: dense bfloat16 FLOP/s with float32 sums. hbm: bytes/s of its memory.
        link: bytes/s in one direction to GPUs of its node. network: bytes/s of its share of the node's network. host: bytes/s to the host.
    """

    name: str
    memory: float
    flops: float
    hbm: float
    link: float
    network: float
    host: float


GPUS = {
    g.name: g
    for g in (
        Gpu("H100", 80 * GIB, 989.4e12, 3.35e12, 450e9, 50e9, 64e9),
        Gpu("H200", 140 * GIB, 989.4e12, 4.8e12, 450e9, 50e9, 64e9),
        Gpu("A100-80GB", 80 * GIB, 312e12, 2.039e12, 300e9, 25e9, 32e9),
        Gpu("A100-40GB", 40 * GIB, 312e12, 1.555e12, 300e9, 25e9, 32e9),
        Gpu("L40S", 45 * GIB, 362e12, 0.864e12, 32e9, 12.5e9, 32e9),
        Gpu("RTX4090", 24 * GIB, 165.2e12, 1.008e12, 32e9, 3.1e9, 32e9),
    )
}
ALIASES = {
    "80GB": "A100-80GB",
    "40GB": "A100-40GB",
    "24GB": "RTX4090",
    "48GB": "L40S",
    "141GB": "H200",
    "A100": "A100-80GB",
    "H100-80GB": "H100",
    "H100-SXM": "H100",
    "4090": "RTX4090",
}


def batch_sizes(gpu: Gpu) -> tuple[int, int]:
    """(sequences at once, tokens a step) that vLLM takes on this device when nothing is set (its defaults for offline use)."""
    return (1024, 16384) if gpu.memory >= 70 * GIB and "A100" not in gpu.name else (256, 8192)


def find_gpu(name: str) -> Gpu:
    """A row of :data:`GPUS` by name or by size; ``80GB`` is an A100, the slower of the two that have it.

    Raises:
        ConfigError: unknown, with the names there are.
    """
    known = {**{k.upper(): k for k in GPUS}, **{k.upper(): v for k, v in ALIASES.items()}}
    key = name.upper().replace(" ", "")
    if key not in known:
        near = difflib.get_close_matches(key, list(known), 1, cutoff=0.4)
        raise ConfigError(
            f"--gpu: {name!r} is unknown."
            + (f" Did you mean {known[near[0]]}?" if near else "")
            + f" There are {', '.join(GPUS)} and sizes like 80GB; in Python give plan(gpu=Gpu(...))."
        )
    return GPUS[known[key]]


def local_gpus() -> tuple[Gpu, int] | None:
    """This machine's GPUs and how many there are, or None. One that is not in :data:`GPUS` is taken for an L40S with its own memory."""
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    row = next((g for g in GPUS.values() if g.name.split("-")[0] in found.name.replace(" ", "").upper()), GPUS["L40S"])
    return replace(
        row, name=f"{found.name} (this machine)", memory=float(found.total_memory)
    ), torch.cuda.device_count()


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What the plan takes for granted. None of it was measured on your machines: correct it with a real run (``calibrate``).

    Attributes:
        mfu: share of peak FLOP/s in training and in prefill. hbm: share of the memory bandwidth in decoding.
        engine_step: seconds of one engine step beside the model (scheduler, sampling, launch). allreduce: seconds of latency of each of the
            two collectives a layer under tensor parallelism.
        float32: FLOP/s in float32 as a share of bfloat16's (torch does not use TF32 by default).
        host_memory: bytes/s of an offloaded optimizer step.
        store: bytes/s of Ray's object store from node to node. reserve: bytes of CUDA contexts, NCCL and libraries on a device.
        slack: share of the rest that fragmentation may take. asleep: bytes that a sleeping engine keeps of its device.
        mean_share, prompt_share: mean response and prompt as shares of ``sampling.max_tokens`` and ``data.max_prompt_tokens``, if they are
            not given. sigma: spread of log lengths.
    """

    mfu: float = 0.35
    hbm: float = 0.7
    float32: float = 1 / 16
    host_memory: float = 50e9
    engine_step: float = 3e-3
    allreduce: float = 1.5e-5
    store: float = 2e9
    reserve: float = 1.5 * GIB
    slack: float = 0.05
    asleep: float = 1.0 * GIB
    mean_share: float = 0.4
    prompt_share: float = 0.25
    sigma: float = 0.8

    def capacity(self, gpu: Gpu) -> float:
        """Bytes that tensors may take on ``gpu``."""
        return (gpu.memory - self.reserve) * (1 - self.slack)


def forward_flops(s: Shape, tokens: float, actions: float, length: float) -> float:
    """One forward pass: ``2 (active - head)`` per token, ``2 head`` per action token, attention ``4 q`` per token, layer and token that it
    attends to (:meth:`Shape.attended`, half of ``length`` without a window).

    ``length``: tokens of the sequence that an average token is in, prompt included.
    """
    attention = 4 * s.heads * s.head_dim * s.attended(length)
    return tokens * (2 * (s.active - s.head) + attention) + 2 * actions * s.head


def update_flops(s: Shape, tokens: float, actions: float, length: float, checkpointing: bool = False) -> float:
    """Forward and backward: 3 forward passes (2 with LoRA, whose frozen weights have no gradient), the logits that are computed again, and
    with gradient checkpointing the body again.
    """
    forward = forward_flops(s, tokens, actions, length)
    again = 2 * actions * s.head
    body = forward - 2 * actions * s.head if checkpointing else 0.0
    return forward * (2 if s.lora else 3) + again + body


def decode_step(
    s: Shape, gpu: Gpu, a: Assumptions, dtype: str, tensor_parallel: int, length: float = 1
) -> tuple[float, float, float]:
    """``(base, per sequence, per token of context)``: seconds of one engine step are their sum over the batch. ``length``: of a context,
    where windows bound what is read of it.

    Weights are read once, keys and values once a sequence; the FLOPs of a token come on top, so that large batches are not free.
    """
    size, tp = BYTES[dtype], tensor_parallel
    bandwidth, flops = gpu.hbm * a.hbm * tp, gpu.flops * a.mfu * tp * (a.float32 if dtype == "float32" else 1)
    latency = 2 * s.layers * a.allreduce if tp > 1 else 0.0
    context = s.kv_bytes(size, tp, length) * tp / bandwidth
    return (a.engine_step + latency + size * s.active / bandwidth, 2 * s.active / flops, context)


def prefill_seconds(s: Shape, gpu: Gpu, a: Assumptions, tensor_parallel: int, prompt: float) -> float:
    """One prompt; the other responses of its group find it in the prefix cache."""
    return forward_flops(s, prompt, 1, prompt) / (gpu.flops * a.mfu * tensor_parallel)


def learner_seconds(
    s: Shape,
    gpu: Gpu,
    a: Assumptions,
    sharding: Sharding,
    *,
    dtype: str,
    tokens: float,
    actions: float,
    length: float,
    passes: float,
    updates: int,
    epochs: int,
    micros: int,
    checkpointing: bool,
    gpus_per_node: int,
    sharing: int = 1,
) -> dict[str, float]:
    """Seconds of one step on all ranks: ``compute`` (``passes`` forward passes without gradient, ``epochs`` updates), ``communication``,
    ``optimizer``, ``exchange`` and their ``total``; communication overlaps with compute, the exchange does not.

    A ring moves ``2 (N-1)/N`` of the gradients a step (ZeRO-0, 1), or reduces them in each of the ``micros`` micro-batches of a rank
    (ZeRO-2, 3); ZeRO-3 also gathers the parameters twice a micro-batch and once a pass. ``sharing`` ranks that share rows exchange
    ``(2 q + 2 kv)`` elements of a token and layer in a pass, and twice that in an update; ``(sharing - 1) / sharing`` of them leave a rank.
    """
    n, size = sharding.ranks, BYTES[dtype]
    flops = passes * forward_flops(s, tokens, actions, length) + epochs * update_flops(
        s, tokens, actions, length, checkpointing
    )
    compute = flops / (n * gpu.flops * a.mfu * (a.float32 if dtype == "float32" else 1))
    bandwidth = gpu.link if n <= gpus_per_node else gpu.network
    ring, stage = (n - 1) / n, sharding.stage or 0
    moved = updates * 2 * ring * 4 * s.trainable if stage < 2 else updates * micros * ring * size * s.trainable
    if stage == 3:
        moved += (2 * updates * micros + passes * micros) * ring * size * s.parameters
    elif stage:
        moved += updates * ring * size * s.trainable
    communication = moved / bandwidth
    # AdamW reads and writes master copy, moments and gradient; an optimizer in host memory crosses the bus both ways instead.
    optimizer = updates * 28 * s.trainable / (n if stage else 1) / (gpu.hbm * a.hbm)
    if sharding.offload_optimizer:
        optimizer = updates * s.trainable / n * (4 + size) / gpu.host + updates * 28 * s.trainable / n / a.host_memory
    if sharding.offload_params:
        communication += (3 * updates + passes) * micros * size * s.parameters / n / gpu.host
    heads = 2 * s.head_dim * (s.heads + s.kv_heads * copies(s, sharing))
    rounds = passes + epochs * (3 if checkpointing else 2)
    leaving = rounds * tokens / n * s.layers * heads * size * (sharing - 1) / sharing
    exchange = leaving / (gpu.link if sharing <= gpus_per_node else gpu.network)
    return {
        "compute": compute,
        "communication": communication,
        "optimizer": optimizer,
        "exchange": exchange,
        "total": max(compute, communication) + exchange + optimizer,
    }


def turn_seconds(s: Shape, gpu: Gpu, ranks: int, dtype: str) -> float:
    """A device goes from learner to engine and back: the optimizer's float32 state (master weights, two moments) to the host and back, and
    with LoRA the engine's frozen weights, too; then the weights within the device, read and written twice.
    """
    moved = 12.0 * s.trainable / ranks + (BYTES[dtype] * s.parameters if s.lora else 0)
    return 2 * moved / gpu.host + 4 * BYTES[dtype] * s.parameters / gpu.hbm


def sync_seconds(s: Shape, gpu: Gpu, a: Assumptions, engine_nodes: int, dtype: str) -> float:
    """Weights of rank 0 to every engine: to the host, through the object store, and to the devices.

    Whole tensors travel in the run's own type, of a merged adapter too; a second node with engines costs the network, further ones pull
    from those that have them (a doubling each round).
    """
    nbytes = BYTES[dtype] * s.parameters
    rounds = math.ceil(math.log2(engine_nodes)) + 1 if engine_nodes > 1 else 0
    return nbytes / gpu.host * 2 + nbytes * rounds / a.store
