"""Rewards on text, and what they see of a prompt's other responses."""

from __future__ import annotations

import pytest

from rlkit.rewards import RewardSpec, Scorer
from rlkit.rewards.text import varied, votes
from rlkit.types import Prompt, Rollout


def test_votes_are_the_share_of_equal_answers() -> None:
    texts = ["12", " 12", "7", "12"]
    assert [votes(t, texts) for t in texts] == [0.75, 0.75, 0.25, 0.75]
    said = [r"So \\boxed{\\frac12}".replace("\\\\", "\\"), "The answer is 0.5.", r"\boxed{3}", "I do not know"]
    assert [votes(t, said, by="math") for t in said] == [0.5, 0.5, 0.25, 0.0]


def test_the_share_of_different_n_grams() -> None:
    assert (
        varied([1, 2, 1, 2, 1], n=2) == 0.5
        and varied([1, 2, 3], n=2) == 1
        and varied([4] * 9, n=4) == pytest.approx(1 / 6)
    )
    assert varied([], n=1) == 1 and varied([1, 1, 1]) == 1  # too short for any


@pytest.mark.slow
def test_a_reward_may_ask_for_all_responses_to_its_prompt() -> None:
    scorer = Scorer([RewardSpec("rlkit.rewards.text:votes"), RewardSpec(count_others, name="others")])
    rollouts = [
        Rollout(Prompt(p, (1,), "q", columns=columns), [1], [True], [0.0], [0], "stop", text=text)
        for p, columns, text in (("a", {}, "x"), ("a", {}, "x"), ("b", {}, "x"), ("a", {}, "y"))
    ]
    try:
        scorer.check([])
        scorer.score(rollouts)
    finally:
        scorer.close()
    assert [r.parts["votes"] for r in rollouts] == pytest.approx([2 / 3, 2 / 3, 1, 1 / 3])
    assert [r.parts["others"] for r in rollouts] == [3, 3, 1, 3]


def count_others(responses: list[str]) -> float:
    return float(len(responses))


@pytest.mark.slow
def test_a_column_of_that_name_goes_first() -> None:
    scorer = Scorer([RewardSpec(count_others, name="others")])
    rollout = Rollout(
        Prompt("a", (1,), "q", columns={"responses": ["of", "the", "data", "set"]}),
        [1],
        [True],
        [0.0],
        [0],
        "stop",
        text="x",
    )
    try:
        scorer.check(["responses"])
        scorer.score([rollout])
    finally:
        scorer.close()
    assert rollout.parts["others"] == 4
