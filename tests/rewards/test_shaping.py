"""Rewards around a reward: numbers by hand, and what they hand on."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rlkit.errors import ConfigError
from rlkit.rewards import RewardSpec, Scorer
from rlkit.rewards.shaping import calibrated, pessimistic, refusal_aware
from rlkit.rewards.text import similar
from rlkit.samples import Prompt, Rollout

EXAMPLES = "tests/rewards/examples.py"


def test_a_calibrated_reward_is_its_rank_among_the_base_models() -> None:
    """``length`` of ``abc`` is 3: above two of four, equal to one."""
    given: dict[str, Any] = {"of": f"{EXAMPLES}:length", "base_rewards": [1, 2, 3, 9], "response": "abc", "answer": "x"}
    c = (2 + 0.5) / 4
    assert calibrated(decoder="plain", **given) == c
    assert calibrated(**given) == pytest.approx(math.exp(10 * (c - 1)))
    assert calibrated(decoder="worst_of_n", t=3.0, **given) == pytest.approx(1 - math.exp(-3 * c))
    with pytest.raises(ConfigError, match="base_rewards is empty"):
        calibrated(**{**given, "base_rewards": []})


def test_rewards_keep_their_order_whatever_the_decoder() -> None:
    base = [0.0, 1.0, 1.0, 2.0]
    for decoder in ("best_of_n", "worst_of_n", "plain"):
        values = [calibrated(f"{EXAMPLES}:length", base, decoder, response="a" * n) for n in range(4)]  # type: ignore[arg-type]
        assert values == sorted(values) and values[0] >= 0 and values[-1] <= 1


def test_an_ensemble_is_its_mean_minus_its_spread() -> None:
    """``correct`` gives two numbers, 1 and 0.1, ``length`` 2: mean 31/30, and the population's deviation."""
    given = {"response": "ab", "answer": "ab"}
    members = [1.0, 0.1, 2.0]
    mean = sum(members) / 3
    std = math.sqrt(sum((x - mean) ** 2 for x in members) / 3)
    of = [f"{EXAMPLES}:correct", f"{EXAMPLES}:length"]
    assert pessimistic(of, 0.5, **given) == pytest.approx(mean - 0.5 * std)
    assert pessimistic("exact", **given) == 1.0


@pytest.mark.parametrize(
    ("response", "pass_rate", "want"),
    [
        ("4", 0.9, 1.0),
        ("4", 0.0, 1.0),
        ("5", 0.9, -1.0),
        ("5", 0.0, -1.0),
        ("I don't know.", 0.9, -0.5),
        ("I don't know.", 0.5, -0.5),
        ("Sorry, I DON'T KNOW", 0.4, 0.5),
    ],
)
def test_a_refusal_is_between_right_and_wrong_and_pays_where_the_model_does_not_know(
    response: str, pass_rate: float, want: float
) -> None:
    assert refusal_aware("exact", response, pass_rate, answer="4") == want


def test_a_verdict_that_is_missing_stays_missing_and_async_is_refused() -> None:
    none = f"{EXAMPLES}:no_verdict"
    assert (
        calibrated(none, [1.0], response="a") is None and pessimistic(["exact", none], response="a", answer="a") is None
    )
    assert refusal_aware(none, "a", 0.5) is None
    with pytest.raises(ConfigError, match="is async"):
        pessimistic(f"{EXAMPLES}:slowly", response="a")


def test_through_the_scorer_columns_reach_the_reward_inside() -> None:
    spec = RewardSpec("rlkit.rewards.shaping:calibrated", args={"of": "exact", "decoder": "plain"})
    prompt = Prompt("p", (1,), "2+2=", "4", {"base_rewards": [0.0, 0.0, 1.0, 0.0]})
    scorer = Scorer([spec])
    try:
        scorer.check(["base_rewards"])
        rollouts = [Rollout.given(prompt, [1], text=text) for text in ("4", "5")]
        scorer.score(rollouts)
        assert [r.reward for r in rollouts] == [0.875, 0.375]
        with pytest.raises(ConfigError, match="'base_rewards' that nothing fills"):
            Scorer([spec]).check([])
    finally:
        scorer.close()


def test_similar_is_the_share_of_common_characters() -> None:
    assert similar("1234 ", "1234") == 1.0 and similar("", "12") == 0.0 and similar("1289", "1234") == 0.5
