"""Who trains in bfloat16 on a processor that only imitates it hears so before the first step."""

from __future__ import annotations

from rlkit.model.precision import bfloat16_note, cpu_flags, slowdown


def test_a_processor_that_loses_by_it_is_told_apart() -> None:
    assert bfloat16_note(frozenset({"avx512_bf16"}), 0.3) is None
    lacking, slow = bfloat16_note(frozenset({"avx2"}), 12.34), bfloat16_note(frozenset({"bf16"}), 2.0)
    assert lacking is not None and "no arithmetic for it and takes 12.3 times as long" in lacking
    assert slow is not None and "no arithmetic" not in slow and "2.0 times" in slow


def test_both_are_found_out_here() -> None:
    assert 0 < slowdown() < float("inf")
    assert all(flag == flag.strip() for flag in cpu_flags())
