"""vLLM ends responses where the Hugging Face engine does, and says the same text for the same tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkit.rollout.hf import HFEngine
from rlkit.rollout.vllm import VLLMEngine
from tests.scripted import make_scripted, run_scripts


def test_both_engines_end_alike(tmp_path: Path) -> None:
    tokenizer = make_scripted(tmp_path)
    found = []
    for make in (HFEngine, VLLMEngine):
        engine = make(str(tmp_path), max_model_len=128)
        try:
            found.append(run_scripts(engine, tokenizer))
        finally:
            engine.close()
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
