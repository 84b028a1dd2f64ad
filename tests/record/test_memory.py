"""Memory by stage: each stage has its own peak, and what was used before does not count."""

from __future__ import annotations

import os

import pytest
import torch

from rlkit.record.memory import CLEAR, Peaks, resident


@pytest.mark.skipif(not os.access(CLEAR, os.W_OK), reason="this system cannot reset the peak of a process")
def test_a_stage_knows_its_own_peak() -> None:
    peaks = Peaks()
    with peaks("large"):
        torch.ones(50_000_000)  # 191 MiB, freed at once
    with peaks("small"):
        torch.ones(1_000_000)
    with peaks("small"):
        pass
    found = peaks.take()
    assert 150 < found["large"] - resident() < 400 and found["small"] < found["large"] - 100 and not peaks.take()
