"""An engine of two models: samples and scores of their mixture, and its ends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rlkit.data.tasks import Sorting
from rlkit.model.tiny import make_tiny
from rlkit.rollout.dera import DeRaEngine, dera_logits
from rlkit.rollout.hf import HFEngine
from rlkit.types import Prompt, Rollout, Sampling


@pytest.fixture(scope="module")
def models(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A reference and a model that is far from it; their caches have different shapes."""
    return str(tiny), str(
        make_tiny(
            tmp_path_factory.mktemp("aligned"), Sorting.alphabet, hidden=32, layers=3, heads=4, kv_heads=2, seed=5
        )
    )


@pytest.fixture(scope="module")
def engines(models: tuple[str, str]) -> Iterator[tuple[HFEngine, HFEngine, DeRaEngine]]:
    ref, aligned = models
    found = HFEngine(ref), HFEngine(aligned), DeRaEngine(aligned, ref, 0.5)
    yield found
    for e in found:
        e.close()


PROMPTS = (Prompt("p", (3, 4, 5), "abc"), Prompt("q", (6,), "d"))


def logits_of(e: HFEngine, r: Rollout) -> torch.Tensor:
    return e.lm(torch.tensor([[*r.prompt.token_ids, *r.tokens]])).logits[0, len(r.prompt.token_ids) - 1 : -1].double()


def test_the_engine_samples_from_the_mixture(engines: tuple[HFEngine, HFEngine, DeRaEngine]) -> None:
    ref, aligned, dera = engines
    for lam, sampling in itertools.product(
        (0.5, 2.0), (Sampling(max_tokens=8, seed=3), Sampling(max_tokens=8, seed=3, temperature=0.7, top_k=5))
    ):
        dera.lam = lam
        for r in [r for p in PROMPTS for r in dera.generate(p, 6, sampling)]:
            mixed = lam * logits_of(aligned, r) + (1 - lam) * logits_of(ref, r)
            apart = (mixed.log_softmax(-1) - logits_of(ref, r).log_softmax(-1)).abs().max()
            assert apart > 0.05  # so that 1e-4 tells them apart
            token = torch.tensor(r.tokens)[:, None]
            assert dera.score([r])[0] == pytest.approx(mixed.log_softmax(-1).gather(-1, token)[:, 0].tolist(), abs=1e-4)
            mixed = mixed / sampling.temperature
            if sampling.top_k:
                mixed = mixed.masked_fill(mixed < mixed.topk(sampling.top_k).values[:, -1:], -torch.inf)
            assert r.logp == pytest.approx(mixed.log_softmax(-1).gather(-1, token)[:, 0].tolist(), abs=1e-4)
            assert r.sampled == [True] * len(r.tokens) and r.finish in ("stop", "length")


def test_its_ends_are_the_two_models(engines: tuple[HFEngine, HFEngine, DeRaEngine]) -> None:
    ref, aligned, dera = engines
    sampling = Sampling(max_tokens=8, seed=1)
    for lam, model in ((0.0, ref), (1.0, aligned)):
        dera.lam = lam
        got, want = dera.generate(PROMPTS[0], 16, sampling), model.generate(PROMPTS[0], 16, sampling)
        assert [r.tokens for r in got] == [r.tokens for r in want] and got[0].logp == pytest.approx(
            want[0].logp, abs=1e-4
        )
        assert dera.score(got[:3])[1] == pytest.approx(model.score(got[:3])[1], abs=1e-4)


def test_token_frequencies_are_those_of_the_mixture(engines: tuple[HFEngine, HFEngine, DeRaEngine]) -> None:
    ref, aligned, dera = engines
    dera.lam = 1.5
    drawn = [r for k in range(8) for r in dera.generate(PROMPTS[0], 500, Sampling(max_tokens=1, seed=k))]
    ids = torch.tensor([PROMPTS[0].token_ids])
    p = dera_logits(aligned.lm(ids).logits[0, -1], ref.lm(ids).logits[0, -1], 1.5).softmax(-1)
    counts = torch.bincount(torch.tensor([r.tokens[0] for r in drawn]), minlength=len(p))
    chi2 = float(((counts - 4000 * p) ** 2 / (4000 * p)).sum())
    assert chi2 < len(p) + 5 * math.sqrt(2 * len(p))


def test_updates_go_to_the_aligned_model(models: tuple[str, str]) -> None:
    dera = DeRaEngine(models[1], models[0], 1.0)
    try:
        before = [p.clone() for p in dera.ref.parameters()]
        name, value = next(iter(dera.aligned.named_parameters()))
        dera.begin_update("wait")
        dera.load({name: torch.zeros_like(value)})
        dera.end_update(4)
        assert not bool(dict(dera.aligned.named_parameters())[name].any()) and all(
            map(torch.equal, before, dera.ref.parameters())
        )
        assert dera.generate(PROMPTS[0], 1, Sampling(max_tokens=2))[0].version == [4, 4]
    finally:
        dera.close()


def test_models_that_do_not_belong_together(models: tuple[str, str], tmp_path: Path) -> None:
    foreign = make_tiny(tmp_path / "foreign", "abc", hidden=64, layers=1, heads=1, kv_heads=1)
    with pytest.raises(ValueError, match="gives other ids than the policy's"):
        DeRaEngine(models[1], str(foreign), 0.5)
