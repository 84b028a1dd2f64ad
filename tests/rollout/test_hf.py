"""The Hugging Face engine's own attention against the library's: the same tokens, and the same log-probs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import rlkit as rk
from rlkit.model import packed
from rlkit.objective.penalties import with_advantages
from rlkit.rollout.hf import HFEngine
from rlkit.session import open_session
from rlkit.types import Batch, Prompt, Rollout, Sampling

pytestmark = pytest.mark.slow

PROMPTS = [Prompt(str(i), tuple(range(3, 4 + size)), "") for i, size in enumerate((0, 1, 9, 5))]  # padded by 0 to 9


def responses(engine: HFEngine, sampling: Sampling) -> list[Rollout]:
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return [r for group in pool.map(lambda p: engine.generate(p, 3, sampling), PROMPTS) for r in group]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generates_what_the_librarys_attention_generates(tiny: Path, temperature: float) -> None:
    engine, plain = HFEngine(str(tiny)), HFEngine(str(tiny))
    assert engine.lm.config._attn_implementation == packed.NAME
    plain.lm.set_attn_implementation("eager")
    sampling = Sampling(temperature=temperature, max_tokens=12, seed=3)
    try:
        for one, two in zip(responses(engine, sampling), responses(plain, sampling), strict=True):
            assert one.tokens == two.tokens
            torch.testing.assert_close(one.logp, two.logp, rtol=0, atol=2e-6)
    finally:
        engine.close()
        plain.close()


def test_a_learner_and_an_engine_share_one_model(small: dict[str, Any]) -> None:
    run = rk.load({**small, "learner": {"lr": 1e-2, "gradient_checkpointing": True}})
    with open_session(run, quiet=True) as s:
        engines, learners = s.fleet.engines, s.fleet.learners
        engine, learner = engines.workers.worker, learners.workers.worker
        assert engine.lm is learner.policy.lm
        s.fleet.sync.publish(0)
        for version in (1, 2):  # generates, trains, and generates with what was trained
            rollouts = s.feed.collector.next(version - 1)
            assert learner.policy.lm.training and {v for r in rollouts for v in r.version} == {version - 1}
            for mine, its in zip(rollouts, learners.logprobs(rollouts), strict=True):
                assert mine.logp == pytest.approx(its, abs=1e-5)
            batch = learners.annotate(Batch.from_rollouts(rollouts), run.passes)
            batch = with_advantages(batch, run.advantage, run.reward_penalties, s.controls.penalties.values())
            before = learner.policy.base.get_input_embeddings().weight.detach().clone()
            learners.update(batch, s.controls.terms.values(), seed=version)
            assert not torch.equal(before, learner.policy.base.get_input_embeddings().weight)
            s.fleet.sync.publish(version)


@pytest.mark.parametrize(
    "other", [{"peft": {"r": 2, "target_modules": "all-linear"}}, {"cluster": {}}, {"deepspeed": {}}]
)
def test_an_engine_has_weights_of_its_own_elsewhere(small: dict[str, Any], other: dict[str, Any]) -> None:
    assert rk.load(small).shares_weights and not rk.load({**small, **other}).shares_weights


def test_a_token_attends_to_what_its_row_holds_and_to_no_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, tokens, 8, generator=generator) for heads, tokens in ((6, 1), (2, 5), (2, 5))
    )
    real = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    bias = packed.mask(1, 5, 4, real)
    assert bias is not None
    found = packed.attention(None, query, key, value, bias, scaling=0.5)[0]
    for row, start in ((0, 0), (1, 2)):
        for head in range(6):
            k, v = key[row, head // 3, start:], value[row, head // 3, start:]
            wanted = (0.5 * query[row, head] @ k.T).softmax(-1) @ v
            torch.testing.assert_close(found[row, :, head], wanted)


def test_the_mask_of_a_prompt_is_causal_and_no_row_of_it_is_empty() -> None:
    found = packed.mask(3, 3, 0, torch.tensor([[0, 1, 1]]))
    assert found is not None
    assert found[0, 0].tolist() == [[True, False, False], [False, True, False], [False, True, True]]
    assert packed.mask(3, 3, 0) is None  # padding on the right: plain causal attention
