"""What ``rlkit check`` says of losses of pairs and labels: known cases, a user's own, and those that lead nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from rlkit.objective.comparisons import NO_REFERENCE, pull, stationary
from rlkit.objective.labelled import KLDO, KTO
from rlkit.objective.oracle import dishonest, examine, examine_all
from rlkit.objective.preference import DPO, IPO, ORPO, RRPO, WPO, Pairwise, SamPO, SimPO
from rlkit.types import Batch, New

KL, WINS = "the reward against KL(pi‖ref) of responses", "the win rate against KL(pi‖ref) of responses"


@pytest.mark.parametrize(
    ("term", "follows", "strength"),
    [
        (DPO(beta=0.3), KL, 0.3),
        (DPO(beta=0.3, link="exponential"), KL, 0.6),
        (DPO(beta=0.3, link="savage"), KL, 0.3),
        (DPO(beta=0.3, flip=0.1, unbiased=True), KL, 0.3),
        (DPO(f="js"), "the reward against js(pi‖ref) of responses", 0.1),
        (DPO(f="forward_kl"), "the reward against KL(ref‖pi) of responses", 0.1),
        (DPO(f="alpha", parameter=0.4), "the reward against alpha0.4(pi‖ref) of responses", 0.1),
        (
            DPO(entropy=0.8),
            "the reward against the cross-entropy to ref and the policy's own entropy, weighed apart",
            0.08,
        ),
        (DPO(link="square", beta=0.3), WINS, 0.15),
        (IPO(over="sum", tau=0.2), WINS, 0.2),
        (SimPO(gamma=0), NO_REFERENCE, 2.0),
        (SamPO(), KL, 0.1),
        (RRPO(), KL, 0.1),
        (WPO(), KL, 0.1),
        (KLDO(beta=1.0), KL, 1.0),
    ],
    ids=str,
)
def test_what_known_losses_weigh_the_reward_against(term: Any, follows: str, strength: float) -> None:
    (found,) = examine_all([term], [])
    assert found.follows == found.claims == follows and found.honest, found.sentence
    assert found.norm == pytest.approx(strength, rel=1e-3) and found.heading == follows
    assert f"with a coefficient of {strength:.3g}" in found.sentence


@pytest.mark.parametrize("term", [DPO(flip=0.1), IPO(), SimPO(), ORPO(), KTO(beta=1.0), DPO(over="mean")], ids=str)
def test_what_has_no_known_optimum_claims_none(term: Any) -> None:
    found = examine(term, "on-policy")
    assert found.honest and found.follows is None and found.claims is None and found.nearest is not None
    assert "leads to the optimum of nothing that has a name" in found.sentence and found.heading.startswith(
        "none (near the "
    )


@pytest.mark.parametrize("term", [DPO(link="hinge")], ids=str)
def test_what_leads_nowhere_is_said(term: Any) -> None:
    found = examine(term, "on-policy")
    assert found.honest and found.follows is None and "leads to no policy that could be found" in found.sentence


@pytest.mark.parametrize("term", [DPO(beta=0.01), DPO(beta=0.01, entropy=0.9)], ids=str)
def test_a_policy_that_goes_hundreds_of_nats_away_is_still_examined(term: Any) -> None:
    assert examine(term, "on-policy").honest and examine(term, "on-policy").problem is None


def test_on_pairs_of_other_policies_no_divergence_is_followed() -> None:
    """GPO's point: with labels that say nothing, a squared margin has the gradient of the KL on the policy's own pairs only."""
    square = IPO(over="sum")
    assert pull(square, "on-policy") == pytest.approx(1, abs=1e-9) and pull(square, "off-policy") < 0.999
    assert pull(DPO(f="forward_kl"), "on-policy") < 0.9 and pull(SimPO(), "on-policy") < 0
    assert "has a cosine of 1.000 to that of KL(pi‖ref)" in examine(square, "on-policy").sentence


@dataclass(frozen=True, kw_only=True)
class Reversed(Pairwise):
    """A user's loss that prefers the worse response."""

    needs: ClassVar[frozenset[str]] = frozenset({"ref"})

    def score(self, new: New, b: Batch) -> Tensor:
        return b.seq_sum(b.logp["ref"] - new.logp)


@dataclass(frozen=True, kw_only=True)
class Broken(Pairwise):
    def score(self, new: New, b: Batch) -> Tensor:
        return b.seq_sum(b.logp["no_such_policy"])


def test_a_users_own_loss_is_examined_as_any_other() -> None:
    found = examine(Reversed(), "on-policy")
    assert found.follows is None and found.norm < 0  # the right divergence, with the wrong sign
    assert "could not be examined here (KeyError" in examine(Broken(), "on-policy").sentence


def test_a_name_that_lies_is_found() -> None:
    class Lying(DPO):
        def score(self, new: New, b: Batch) -> Tensor:
            return self.beta * b.seq_mean(new.logp)

    found = examine(Lying(beta=1.0), "on-policy")
    assert dishonest([found], off_policy=False) == [found]
    assert f"its name says {KL}; Bradley-Terry labels lead it to the optimum of {NO_REFERENCE}" in found.sentence


def test_the_search_for_where_a_gradient_vanishes() -> None:
    curvature = torch.tensor([1.0, 30.0, 0.5], dtype=torch.float64)
    centre, start = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    found = stationary(lambda x: curvature * ((x - centre) ** 3 + (x - centre)), start)
    assert found is not None
    torch.testing.assert_close(found, centre, rtol=1e-5, atol=1e-5)
    assert stationary(lambda x: -torch.ones_like(x), start, rounds=20) is None
