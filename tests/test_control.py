"""Inference-time control against exact enumeration on small policies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rlkit.data.tasks import Sorting
from rlkit.evaluation.selection import (
    acceptance,
    best_of_n,
    best_of_n_kl,
    best_of_n_kl_bound,
    frontier,
    rejection_sample,
    tilt_weights,
)
from rlkit.model.tiny import make_tiny
from rlkit.rollout.dera import DeRaEngine, dera_logits
from rlkit.rollout.hf import HFEngine
from rlkit.types import Prompt, Rollout, Sampling
from tests.objective.world import World

REF, ALIGNED = torch.tensor([2.0, 1, 0, -1]), torch.tensor([1.0, 1.5, -0.5, 0.25])


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))


def best_of_n_distribution(p: np.ndarray, reward: np.ndarray, n: int) -> np.ndarray:
    """``pi_n(y) = F(y)^n - F^-(y)^n``: how often each of finitely many responses is chosen, ``[Y]``.

    ``F`` is the CDF of the reward under ``p``. Ties are broken by a fixed order: of equal rewards the earlier entry wins.
    """
    order = np.lexsort((-np.arange(len(p)), reward))  # worst first; of equal ones the later entry is the worse
    upto = p[order].cumsum() / p.sum()
    out = np.empty_like(p)
    out[order] = upto**n - np.r_[0.0, upto[:-1]] ** n
    return out


# -- DeRa -----------------------------------------------------------------------------------------------------------


def test_dera_mixes_logits() -> None:
    assert dera_logits(ALIGNED, REF, 0.5).softmax(-1).tolist() == pytest.approx(
        [0.474850, 0.369813, 0.082516, 0.072821], abs=1e-6
    )
    assert dera_logits(ALIGNED, REF, 2).softmax(-1).tolist() == pytest.approx(
        [0.075537, 0.558144, 0.027788, 0.338531], abs=1e-6
    )
    for lam in (0.0, 0.3, 1.0, 5.0):
        p, q = REF.double().softmax(-1), ALIGNED.double().softmax(-1)
        want = p * (q / p) ** lam
        torch.testing.assert_close(
            dera_logits(ALIGNED.double() + 7, REF.double() - 3, lam).softmax(-1), want / want.sum(), atol=1e-15, rtol=0
        )
    with pytest.raises(ValueError, match="4 logits and the reference 3"):
        dera_logits(REF, REF[:3], 1)


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
        before = [p.clone() for p in dera.lm.ref.parameters()]
        name, value = next(iter(dera.aligned.named_parameters()))
        dera.begin_update("wait")
        dera.load({name: torch.zeros_like(value)})
        dera.end_update(4)
        assert not bool(dict(dera.lm.aligned.named_parameters())[name].any()) and all(
            map(torch.equal, before, dera.lm.ref.parameters())
        )
        assert dera.generate(PROMPTS[0], 1, Sampling(max_tokens=2))[0].version == [4, 4]
    finally:
        dera.close()


def test_models_that_do_not_belong_together(models: tuple[str, str], tmp_path: Path) -> None:
    foreign = make_tiny(tmp_path / "foreign", "abc", hidden=64, layers=1, heads=1, kv_heads=1)
    with pytest.raises(ValueError, match="tokens differ between the tokenizers"):
        DeRaEngine(models[1], str(foreign), 0.5)


# -- best of n ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("L", "exact", "estimate"),
    [
        (10, (0.6288, 1.7331, 2.2935, 2.3026), (0.6349, 1.7561, 2.2946, 2.3026)),
        (100, (0.6362, 1.8340, 3.1576, 4.3137), (0.6363, 1.8349, 3.1667, 4.3320)),
    ],
)
def test_best_of_n_kl_of_uniform_outcomes(L: int, exact: tuple[float, ...], estimate: tuple[float, ...]) -> None:
    p = np.full(L, 1 / L)
    for n, true, guess, bound in zip((4, 16, 64, 256), exact, estimate, (0.6363, 1.8351, 3.1745, 4.5491), strict=True):
        assert kl(best_of_n_distribution(p, np.arange(L), n), p) == pytest.approx(true, abs=5e-5)
        assert float(best_of_n_kl(-math.log(L), n)) == pytest.approx(guess, abs=5e-5) and best_of_n_kl_bound(
            n
        ) == pytest.approx(bound, abs=5e-5)


def test_best_of_n_estimator_at_its_ends() -> None:
    assert best_of_n_kl(np.log([0.05, 0.3]), 4) == pytest.approx([0.636112, 0.602116], abs=5e-7)
    assert best_of_n_kl([-2000.0, -40.0], 16) == pytest.approx(best_of_n_kl_bound(16)) and best_of_n_kl(
        [0.0, -1e-12], 16
    ) == pytest.approx(0, abs=1e-10)
    assert best_of_n_kl([-3.0, 0.0], 1) == pytest.approx(0, abs=1e-15) and best_of_n_kl_bound(1) == 0
    with pytest.raises(ValueError, match="at most 0"):
        best_of_n_kl([0.5], 4)
    with pytest.raises(ValueError, match="n is 0"):
        best_of_n_kl_bound(0)


def test_the_chosen_distribution_by_enumeration() -> None:
    rng = np.random.default_rng(0)
    p, reward, n = rng.dirichlet(np.ones(4)), np.array([0.5, 1.0, 0.5, -1.0]), 3
    want = np.zeros(4)
    for draw in itertools.product(range(4), repeat=n):
        rollouts = [
            Rollout(PROMPTS[0], [i], [True], [0.0], [0], "stop", reward=reward[i], group=i) for i in sorted(draw)
        ]  # of equal rewards the lower index is first
        want[best_of_n(rollouts)[0].group] += p[list(draw)].prod()
    got = best_of_n_distribution(p, reward, n)
    assert (
        got == pytest.approx(want)
        and kl(got, p) <= best_of_n_kl_bound(n) <= kl(got, p) + 2 * n * (n - 1) * (p**2).sum()
    )


def test_one_response_for_each_prompt() -> None:
    def r(prompt: int, reward: float) -> Rollout:
        return Rollout(PROMPTS[prompt], [1], [True], [0.0], [0], "stop", reward=reward)

    rollouts = [r(1, 0.1), r(0, math.nan), r(0, -3), r(1, 0.2), r(1, 0.2), r(0, -5)]
    assert best_of_n(rollouts) == [rollouts[3], rollouts[2]] and best_of_n(rollouts)[0] is rollouts[3]
    assert (
        best_of_n(rollouts, [5, 0, 0, 0, 0, 1])[0] is rollouts[0]
        and best_of_n(rollouts, lambda x: -x.reward)[1] is rollouts[5]
    )
    with pytest.raises(ValueError, match="prompt p has no response with a reward"):
        best_of_n([r(1, 1), r(0, math.nan)])
    with pytest.raises(ValueError, match="6 rollouts and 1 rewards"):
        best_of_n(rollouts, [1])


# -- tilting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.05, 0.5, 3.0])
def test_accepted_samples_follow_the_tilted_policy(beta: float) -> None:
    w = World(1)
    p, r = w.of_sequence(w.anchor).exp().numpy(), w.reward.numpy()
    optimum = p * np.exp((r - r.max()) / beta)
    z, optimum = optimum.sum(), optimum / optimum.sum()
    accepted = p * acceptance(r, beta, r_max=float(r.max()) + 0.3)
    assert accepted / accepted.sum() == pytest.approx(optimum) and accepted.sum() == pytest.approx(
        z * math.exp(-0.3 / beta)
    )
    assert tilt_weights(r, beta) * p / (tilt_weights(r, beta) * p).sum() == pytest.approx(optimum)


def test_rejection_draws_as_it_says() -> None:
    reward = np.array([0.0, 1.0, 2.0] * 20_000)
    chance = np.exp([-1.0, -0.5, 0.0])
    kept = rejection_sample(reward, 2.0, r_max=2.0)
    share = np.bincount(reward[kept].astype(int)) / len(kept)
    assert share == pytest.approx(chance / chance.sum(), abs=0.01)
    assert len(rejection_sample(reward, 2.0)) == pytest.approx(20_000 * chance.sum(), rel=0.02)
    with pytest.raises(ValueError, match=r"a reward is 2.0, above r_max = 1.5"):
        acceptance(reward, 1.0, 1.5)
    for beta in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="beta is"):
            tilt_weights([1.0], beta)
    with pytest.raises(ValueError, match="rewards must be finite"):
        acceptance([math.nan], 1.0)


def test_the_frontier() -> None:
    one, four = frontier([0, 0.5, 1, 1], [1.0, 0.25])
    assert (one.reward, one.kl, four.reward, four.kl) == pytest.approx(
        (0.774360, 0.070609, 0.960076, 0.459432), abs=1e-6
    )
    assert one.valid == 0 and one.ess == pytest.approx(3.534301, abs=1e-6)
    p, r = np.array([1, 2, 4, 3]) / 10, np.array([3.0, -1.0, 0.5, 100.0])
    samples = np.repeat(r, (p * 1000).astype(int))
    for beta in (0.1, 1.0, 50.0):
        best = p * np.exp((r - r.max()) / beta)
        best /= best.sum()
        f = frontier(samples, [beta])[0]
        assert (f.reward, f.kl) == pytest.approx((best @ r, kl(best, p)), rel=1e-9, abs=1e-12) and f.valid == 1
        for other in (
            (p, np.full(4, 0.25), best_of_n_distribution(p, r, 4)) if (best > 0).all() else ()
        ):  # best underflows for a small beta
            assert other @ r - beta * kl(other, p) == pytest.approx(
                beta * f.log_z - beta * kl(other, best), rel=1e-9
            )  # how far any policy is below
    both = frontier([samples, -samples], [1.0])[0]
    parts = [frontier(s, [1.0])[0] for s in (samples, -samples)]
    assert both.kl == pytest.approx((parts[0].kl + parts[1].kl) / 2) and both.ess == min(x.ess for x in parts)
    sharp = frontier(np.arange(64.0), [0.01])[0]
    assert sharp.valid == 0 and sharp.kl == pytest.approx(math.log(64)) and sharp.reward == pytest.approx(63)
