"""A whole run on Ray whose teacher has engines of its own: what it learns is what the same model on the learner's rank teaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rlkit as rk
from rlkit.data.tasks import Sorting
from rlkit.model.tiny import make_tiny


def test_a_teacher_in_engines_of_its_own_on_ray(
    small: dict[str, Any], tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(make_tiny(tmp_path / "other", Sorting.alphabet, hidden=64, layers=1, heads=1, kv_heads=1, seed=9))
    base = {
        **small,
        "steps": 2,
        "advantage": {"type": "Plain"},
        "objective": [{"type": "FullDivergence", "f": "forward_kl", "anchor": "teacher", "top_k": 4}],
        "reference": None,
        "eval": {"prompts": 0},
    }
    want = rk.train(rk.load({**base, "name": "alone", "teacher": {"type": "Frozen", "path": other}}), quiet=True)
    teacher = {"type": "Pool", "path": other, "engine": "hf"}
    pool = {**base, "name": "pool", "teacher": teacher, "cluster": {"cpus": 0.3, "timeout": 200.0}}
    found = rk.train(rk.load(pool))
    assert f"teacher: 1 hf engine(s) with {other}" in capsys.readouterr().out
    for a, b in zip(want.metrics(), found.metrics(), strict=True):
        for name in ("loss/forward_kl_top4(teacher)", "learner/grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-4) and a[name] != 0
