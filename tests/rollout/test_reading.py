"""Rows of different lengths read into one cache, against passes over each row by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlkit.errors import ModelError
from rlkit.model.load import load_lm
from rlkit.rollout.control import Companion
from rlkit.rollout.reading import Reading, load_companion, proven

pytestmark = pytest.mark.slow


def make(kind: str) -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

    size = {
        "vocab_size": 20,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    torch.manual_seed(0)
    made: Any = {
        "mistral": lambda: MistralForCausalLM(MistralConfig(**size, sliding_window=4)),  # type: ignore[arg-type]
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**size, sliding_window=4)),  # type: ignore[arg-type]
    }[kind]()
    return made.eval()


@pytest.fixture(params=["tiny", "mistral", "gemma2"])
def model(request: pytest.FixtureRequest, tiny: Path) -> Any:
    return load_lm(tiny).eval() if request.param == "tiny" else make(request.param)


def test_rows_are_read_as_if_alone(model: Any) -> None:
    """Rows that come and go, with as many new tokens as they have, candidates that leave nothing, a window or not."""
    g = torch.Generator().manual_seed(1)
    texts = [torch.randint(3, 14, (n,), generator=g) for n in (3, 9, 6)]

    def alone(*parts: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=torch.cat(parts)[None]).logits[0, -1]  # type: ignore[no-any-return]

    reading, rows = Reading(model), torch.tensor([2, 0, 1])
    for row in range(3):
        reading.open(row)
    got = reading.read_last(rows, [texts[r].tolist() for r in rows])
    candidates = torch.tensor([[4, 5], [6, 7], [8, 9]])
    after = reading.after(rows, candidates)
    for k, row in enumerate(rows.tolist()):
        torch.testing.assert_close(got[k], alone(texts[row]), atol=1e-5, rtol=1e-4)
        for j in range(2):
            torch.testing.assert_close(after[k, j], alone(texts[row], candidates[k, j : j + 1]), atol=1e-5, rtol=1e-4)
    reading.open(0)  # another text in its place
    texts[0] = texts[1][:4]
    got = reading.read_last(torch.tensor([1, 0]), [[5], texts[0].tolist()])
    torch.testing.assert_close(got[1], alone(texts[0]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got[0], alone(texts[1], torch.tensor([5])), atol=1e-5, rtol=1e-4)
    reading.select(torch.tensor([2, 2]))
    got = reading.read(torch.tensor([0, 1]), torch.tensor([[4], [7]]))[:, -1]
    for k, token in enumerate((4, 7)):
        torch.testing.assert_close(got[k], alone(texts[2], torch.tensor([token])), atol=1e-5, rtol=1e-4)


def test_what_is_hidden_is_as_if_it_had_not_been_read(tiny: Path) -> None:
    """Places stay where they are, so the row that never read it has a hole of positions there."""
    model = load_lm(tiny).eval()
    ids, only = (
        torch.randint(3, 14, (1, 9), generator=torch.Generator().manual_seed(2)),
        torch.zeros(1, dtype=torch.long),
    )
    keep = torch.tensor([0, 1, 2, 6, 7, 8])
    with torch.no_grad():
        ones = torch.ones(1, len(keep))  # or the hole would look like the end of a packed text
        want = model(input_ids=ids[:, keep], attention_mask=ones, position_ids=keep[None]).logits[0, -1]
        whole = model(input_ids=ids).logits[0, -1]
    reading = Reading(model, 1)
    reading.read(only, ids[:, :6])
    reading.hide(0, 3, 6)
    fork = reading.fork(0, 6)
    torch.testing.assert_close(reading.read(only, ids[:, 6:])[0, -1], want, atol=1e-5, rtol=1e-4)
    fork.hide(0, 3, 6, hidden=False)
    embeds = model.get_input_embeddings()(ids[:, 6:])
    torch.testing.assert_close(fork.read(only, embeds=embeds)[0, -1], whole, atol=1e-5, rtol=1e-4)


def test_a_value_model_reads_along_and_a_language_model_is_none(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification

    torch.manual_seed(3)
    made: Any = AutoModelForTokenClassification.from_pretrained(tiny, num_labels=3)
    made.save_pretrained(tmp_path / "value")
    found = load_companion(Companion(str(tmp_path / "value"), "value", values=True), torch.float32, torch.device("cpu"))
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        want = found(input_ids=ids).logits[0, -1]
    reading, only = Reading(found, 1), torch.zeros(1, dtype=torch.long)
    reading.read(only, ids[:, :3])
    torch.testing.assert_close(reading.after(only, ids[:, 3:])[0, 0], want, atol=1e-5, rtol=1e-4)
    with pytest.raises(ModelError, match=r"has no tensor.* score\."):
        load_companion(Companion(str(tiny), "value", values=True), torch.float32, torch.device("cpu"))


def test_a_model_that_cannot_read_along_is_refused() -> None:
    class Forgetful(torch.nn.Module):
        """Says something else when it is asked token by token."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.inner, self.config, self.device, self.dtype = model, model.config, model.device, model.dtype

        def forward(self, past_key_values: Any = None, **given: Any) -> Any:
            out = self.inner(past_key_values=past_key_values, **given)
            out.logits = out.logits + (past_key_values is not None)
            return out

        def get_input_embeddings(self) -> Any:
            return self.inner.get_input_embeddings()

        def get_output_embeddings(self) -> Any:
            return self.inner.get_output_embeddings()

    with pytest.raises(ModelError, match="reference: read token by token this model gives other outputs"):
        proven(Forgetful(make("mistral")), "reference")
