"""The Hugging Face engine under controls: every log-prob is that of the distribution that a prefix has by plain passes of all models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.data.tasks import Sorting
from rlkit.errors import ConfigError
from rlkit.model.load import load_lm, load_tokenizer
from rlkit.model.tiny import make_tiny
from rlkit.rollout.control import IDLE, LogitsFusion, QSharp, Steering
from rlkit.rollout.controlled import Controlled
from rlkit.rollout.engine import EngineSetup
from rlkit.rollout.steered import SteeredEngine
from rlkit.types import Prompt, Sampling

pytestmark = pytest.mark.slow
PROMPTS = (Prompt("p", (3, 4, 5), "abc"), Prompt("q", (6,), "d"))


@pytest.fixture(scope="module")
def models(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Models of one tokenizer, one of which has room for more tokens, and a value model of two outputs."""
    from transformers import AutoModelForTokenClassification

    folder = tmp_path_factory.mktemp("models")
    found = {"model": str(tiny)}
    for seed, name in enumerate(("base", "expert"), 1):
        made = make_tiny(folder / name, Sorting.alphabet, hidden=32, layers=1, heads=2, kv_heads=1, seed=seed)
        found[name] = str(made)
    wide: Any = load_lm(found["expert"])
    wide.resize_token_embeddings(40, mean_resizing=False)
    wide.save_pretrained(found["expert"])
    torch.manual_seed(4)
    value: Any = AutoModelForTokenClassification.from_pretrained(found["base"], num_labels=2)
    torch.nn.init.normal_(value.score.weight, std=2.0)
    value.save_pretrained(folder / "value")
    load_tokenizer(tiny).save_pretrained(folder / "value")
    return {**found, "value": str(folder / "value")}


@dataclass
class Plain:
    """What companions say of one prefix, by passes over the whole of it."""

    prefix: Tensor
    models: list[Any]
    classes: int

    def logits(self, i: int) -> Tensor:
        return self.models[i](input_ids=self.prefix[None]).logits[:, -1, : self.classes]  # type: ignore[no-any-return]

    def after(self, i: int, ids: Tensor) -> Tensor:
        rows = torch.cat([self.prefix.expand(ids.shape[1], -1), ids.T], 1)
        return self.models[i](input_ids=rows).logits[None, :, -1]  # type: ignore[no-any-return]


CONTROLS = {
    "fusion": lambda m: LogitsFusion(base=m["base"], experts=(m["expert"],)),
    "banned": lambda m: IDLE(pattern="[1-5]"),
    "led": lambda m: QSharp(value=m["value"], eta=0.5, top_k=6),
}


@pytest.fixture(params=CONTROLS)
def engine(request: pytest.FixtureRequest, models: dict[str, str]) -> Iterator[SteeredEngine]:
    spec = Controlled(engine="hf", control=CONTROLS[request.param](models))
    made = spec.start(EngineSetup(path=models["model"], max_model_len=64))
    assert isinstance(made, SteeredEngine)
    yield made
    made.close()


def test_samples_and_scores_are_those_of_the_control(engine: SteeredEngine, models: dict[str, str]) -> None:
    own, size, furthest = load_lm(models["model"]).eval(), len(engine.tokenizer), 0.0
    for sampling in (Sampling(max_tokens=6, seed=3), Sampling(max_tokens=6, seed=3, temperature=0.7, top_k=4)):
        for r in [r for p in PROMPTS for r in engine.generate(p, 3, sampling)]:
            want, scored, ids = [], [], torch.tensor([*r.prompt.token_ids, *r.tokens])
            for t, token in enumerate(r.tokens):
                prefix = ids[: len(r.prompt.token_ids) + t]
                with torch.no_grad():
                    plain = own(input_ids=prefix[None]).logits[:, -1]
                    z = engine.control.steer(plain, Plain(prefix, engine.companions, size))[0]
                scored.append(float(z.log_softmax(-1)[token]))
                furthest = max(furthest, abs(scored[-1] - float(plain[0].log_softmax(-1)[token])))
                z = z / sampling.temperature
                if sampling.top_k:
                    z = z.masked_fill(z < z.topk(sampling.top_k).values[-1:], -torch.inf)
                want.append(float(z.log_softmax(-1)[token]))
            assert r.logp == pytest.approx(want, abs=1e-4)
            assert engine.score([r])[0] == pytest.approx(scored, abs=1e-4)
    assert furthest > 0.05  # from the model itself, so that 1e-4 tells them apart


def test_banned_tokens_never_come(models: dict[str, str]) -> None:
    engine = SteeredEngine(models["model"], IDLE(pattern="[1-5]"))
    try:
        banned = [engine.tokenizer.convert_tokens_to_ids(c) for c in "12345"]
        drawn = engine.generate(PROMPTS[0], 200, Sampling(max_tokens=4, seed=0))
        assert not {t for r in drawn for t in r.tokens} & set(banned)
        with pytest.raises(ConfigError, match="keeps the models that its control reads"):
            engine.control = LogitsFusion(base=models["base"], experts=(models["expert"],))
        engine.control = IDLE(pattern="[6-9]")
        drawn = engine.generate(PROMPTS[0], 200, Sampling(max_tokens=4, seed=0))
        assert {t for r in drawn for t in r.tokens} & set(banned)
    finally:
        engine.close()


def test_a_companion_without_logits_for_some_tokens_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    small: Any = load_lm(models["base"])
    small.resize_token_embeddings(7)
    small.save_pretrained(tmp_path / "small")
    load_tokenizer(models["base"]).save_pretrained(tmp_path / "small")
    with pytest.raises(ConfigError, match=r"base: .* has 7 logits, but its tokenizer has"):
        SteeredEngine(models["model"], LogitsFusion(base=str(tmp_path / "small"), experts=(models["base"],)))


def test_a_users_own_control(models: dict[str, str]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Flat(Steering):
        """Uniform over all tokens."""

        def steer(self, logits: Tensor, seen: Any) -> Tensor:
            return torch.zeros_like(logits)

    engine = SteeredEngine(models["model"], Flat())
    try:
        r = engine.generate(PROMPTS[0], 1, Sampling(max_tokens=3, seed=0))[0]
        assert r.logp == pytest.approx([-float(torch.tensor(float(len(engine.tokenizer))).log())] * len(r.tokens))
    finally:
        engine.close()
