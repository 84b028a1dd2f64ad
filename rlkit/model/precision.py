"""What a processor can multiply."""

from __future__ import annotations

import time
from pathlib import Path

# What processors with bfloat16 arithmetic say of themselves (x86, Arm).
BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
WIDTH, REPEATS, SLOW = 256, 5, 1.5


def cpu_flags() -> frozenset[str]:
    """What Linux says that the processor can do; empty where nobody says."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    found = next((x for x in lines if x.lower().startswith(("flags", "features"))), "")
    return frozenset(found.partition(":")[2].split())


def slowdown() -> float:
    """How many times as long a product of matrices takes on this processor in bfloat16 as in float32; the least of a few."""
    import torch

    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        a, best = torch.ones(WIDTH, WIDTH, dtype=dtype), float("inf")
        a @ a  # what the first one prepares
        for _ in range(REPEATS):
            start = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - start)
        seconds.append(best)
    return seconds[1] / seconds[0]


def bfloat16_note(flags: frozenset[str], factor: float) -> str | None:
    """What someone who is about to train in bfloat16 on a processor should know first; None: nothing is lost by it.

    ``flags``: :func:`cpu_flags`. ``factor``: :func:`slowdown`.
    """
    if factor <= SLOW:
        return None
    lacks = "" if flags & BFLOAT16 else " has no arithmetic for it and"
    return (
        f"note: model.dtype is bfloat16, and this processor{lacks} takes {factor:.1f} times as long for a product of matrices as in "
        "float32. Set model.dtype: float32 here."
    )
