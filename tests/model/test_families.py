"""The table of models, as far as it is measured quickly: most families with the Hugging Face engine, and a few with vLLM."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from rlkit.session import quiet_libraries
from tests.model.families import FAMILIES, Family, make
from tests.model.table import BOUND, COLUMNS, PAGE, RESULTS, Training, cell, label, measure, read, rows

pytestmark = pytest.mark.slow

BY_NAME = {f.name: f for f in FAMILIES}
SLOW = ("vllm", "LoRA vllm", "bfloat16 hf", "bfloat16 vllm")


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.tested], ids=lambda f: f.name)
def test_what_is_sampled_referenced_and_exported_is_what_is_trained(family: Family, tmp_path: Path) -> None:
    found: dict[str, Any] = {}
    for part in measure(make(family, tmp_path / "model"), ["hf"], family.lora, dict.fromkeys(SLOW, "")):
        found |= part
    assert found.keys() == COLUMNS.keys() - set(SLOW)
    layout = found.pop("packed")
    assert isinstance(layout, str) is (family.name in ("Mistral", "Gemma 2", "Gemma 3", "GPT-OSS", "Cohere 2"))
    assert {k: v for k, v in found.items() if not isinstance(v, float) or v > BOUND["float32"]} == {}
    assert isinstance(layout, str) or layout < BOUND["float32"]


@pytest.mark.filterwarnings("default")  # vLLM and what it imports warn as they like
@pytest.mark.parametrize("name", ["Qwen3-MoE", "Gemma 2", "OLMo 2"])
def test_vllm_samples_what_is_trained(name: str, tmp_path: Path) -> None:
    """Experts, which vLLM packs for CPUs; caps and windows; a model that vLLM takes from transformers, as the learner of this process does."""
    quiet_libraries()
    assert max(Training(make(BY_NAME[name], tmp_path / "model"), "vllm", None).gaps) < BOUND["float32"]


@pytest.mark.filterwarnings("default")  # vLLM and what it imports warn as they like
def test_vllm_says_that_it_cannot_take_the_weights_of_a_model(tmp_path: Path) -> None:
    """Its GPT-OSS writes experts past vLLM's own loaders: old ones would go on sampling."""
    with pytest.raises(RuntimeError, match=r"GptOss.* cannot take new weights while it runs.*Set rollout.engine: hf"):
        Training(make(BY_NAME["GPT-OSS"], tmp_path / "model"), "vllm", None)


def test_the_page_shows_what_the_program_measures() -> None:
    text = PAGE.read_text()
    lines = [line for line in text.splitlines() if re.match(r"\| .*, (un)?tied \|", line)]
    assert [line.split("|")[1].strip() for line in lines] == [label(f, tie) for f, tie in rows()]
    assert f"| model | {' | '.join(COLUMNS)} |" in text
    results, notes = read(RESULTS), list[str]()
    for line in lines:
        name, *cells = (x.strip() for x in line.strip("|").split("|"))
        assert cells == [cell(results[name].get(c, ""), c, notes) for c in COLUMNS]
    assert all(f"{i}. {note}" in text for i, note in enumerate(notes, 1))
