"""Tokens are drawn from exactly the distribution whose log-probs are reported."""

from __future__ import annotations

import pytest
import torch

from rlkit.rollout.cache import GrowingLayer, make_cache
from rlkit.rollout.draw import quantile, sample
from rlkit.types import Sampling


@pytest.mark.parametrize("size", [1, 3, 128, 129, 5000])
def test_quantile_inverts_the_cumulative_distribution(size: int) -> None:
    g = torch.Generator().manual_seed(size)
    p = (3 * torch.randn(200, size, generator=g)).softmax(-1)
    p[torch.rand(p.shape, generator=g) < 0.5] = 0
    p[:, size // 2] += 1e-3
    u = torch.rand(200, generator=g, dtype=torch.float64)
    u[0], u[1] = 0.0, 1 - 2**-53
    sums = p.double().cumsum(-1)
    expected = torch.searchsorted(sums, (u * sums[:, -1])[:, None], right=True)[:, 0]
    found = quantile(p, u)
    assert torch.equal(found, expected) and bool((p[torch.arange(200), found] > 0).all())


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [(Sampling(), 300), (Sampling(temperature=0.5), 300), (Sampling(top_k=5), 5), (Sampling(top_p=0.3), None)],
)
def test_frequencies_are_the_probabilities_that_are_reported(sampling: Sampling, kept: int | None) -> None:
    n = 40_000
    logits = 2 * torch.randn(300, generator=torch.Generator().manual_seed(0))
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n  # every part of the distribution, equally often
    tokens, logp = sample(logits.expand(n, -1), sampling, u)
    share = torch.bincount(tokens, minlength=300) / n
    reported = torch.zeros(300).index_put((tokens,), logp.exp())
    assert torch.allclose(share, reported, atol=1.5 / n)
    assert float(reported.sum()) == pytest.approx(1, abs=2e-3)
    z = logits / sampling.temperature
    if kept == 300:
        assert torch.allclose(reported[share > 0], z.softmax(-1)[share > 0], rtol=1e-5)
    else:
        best = z.softmax(-1).sort(descending=True)
        count = kept or int((best.values.cumsum(-1) < sampling.top_p).sum()) + 1
        assert set(tokens.tolist()) == set(best.indices[:count].tolist())


def test_greedy_takes_the_best_token_and_reports_the_model_s_own_log_prob() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    token, logp = sample(logits, Sampling(temperature=0.0), torch.tensor([0.99], dtype=torch.float64))
    assert token.tolist() == [1] and torch.equal(logp, logits.log_softmax(-1)[:, 1])


def test_the_growing_cache_computes_what_a_whole_pass_does() -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    lm = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=30,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    ).eval()
    ids = torch.randint(0, 30, (3, 90))
    keep, cache = torch.tensor([2, 0]), make_cache(lm.config)
    with torch.no_grad():
        whole = lm(input_ids=ids).logits
        parts = [lm(input_ids=ids[:, :5], past_key_values=cache, use_cache=True).logits[keep]]
        cache.batch_select_indices(keep)
        parts += [lm(input_ids=ids[keep, t, None], past_key_values=cache, use_cache=True).logits for t in range(5, 90)]
    assert isinstance(cache.layers[0], GrowingLayer)
    assert torch.allclose(torch.cat(parts, 1), whole[keep], atol=1e-5)
