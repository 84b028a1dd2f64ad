"""Advantages around an advantage: numbers by hand, and gradients and optima by enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from rlkit.errors import ConfigError
from rlkit.objective.advantages import RLOO, GroupMean, Plain
from rlkit.objective.divergences import generator
from rlkit.objective.losses import Reinforce
from rlkit.objective.penalties import with_advantages
from rlkit.objective.shaping import Agreement, Confident, ToTarget, after_last, bleu, log_mean_exp
from rlkit.types import Batch
from tests.objective.test_divergences import CASES
from tests.objective.world import World


def rows(*responses: list[int], group: list[int], reward: list[float]) -> Batch:
    """A batch of these responses, each after a prompt of one token."""
    length = torch.tensor([len(r) + 1 for r in responses])
    start = length.cumsum(0) - length
    action = [int(s) + 1 + t for s, r in zip(start, responses, strict=True) for t in range(len(r))]
    return Batch(
        seq=torch.repeat_interleave(torch.arange(len(responses)), length - 1),
        group=torch.tensor(group),
        source=torch.zeros(len(responses), dtype=torch.long),
        reward=torch.tensor(reward),
        ids=torch.tensor([x for r in responses for x in (0, *r)]),
        length=length,
        action=torch.tensor(action),
    )


# -- GRPO-CARE --------------------------------------------------------------------------------------------------------


def test_the_answer_is_what_comes_after_the_last_tag() -> None:
    b = rows([7, 8, 1, 7, 8, 2, 3], [8, 4, 7], [7, 8], [7, 9, 8, 7, 8, 8], group=[0] * 4, reward=[0.0] * 4)
    want = [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0], [0, 0], [0, 0, 0, 0, 0, 1]]
    assert after_last(b, (7, 8)).int().tolist() == list(itertools.chain(*want))
    assert bool(after_last(b, ()).all())


def test_the_bonus_is_for_correct_responses_whose_answer_is_likely() -> None:
    """Likelihoods of the group's two correct responses are 0.5 and 0.2, of the wrong one 0.9; alone in its group, 0.99 is capped."""
    b = rows([7, 5, 5], [9, 7, 5, 5], [7, 5], [5], group=[0, 0, 0, 1], reward=[1.0, 1.2, 0.0, 1.0])
    p = torch.tensor([0.9, 0.5, 0.5, 0.9, 0.9, 0.4, 0.1, 0.9, 0.9, 0.99])
    b = b.with_logp(ref=p.log())
    given = Confident(after=(7,))
    torch.testing.assert_close(given.likelihood(b), torch.tensor([0.5, 0.2, 0.9, 0.0], dtype=torch.float64))
    torch.testing.assert_close(given.reward(b), torch.tensor([1.5, 1.2, 0.0, 1.5]))
    whole = Confident(of=Plain())
    assert float(whole.likelihood(b)[3]) == pytest.approx(0.95)
    adv = whole(b).adv
    torch.testing.assert_close(adv, whole.reward(b)[b.seq])
    assert given.group and given.needs == {"ref"}


def test_a_margin_lets_more_be_confident_and_a_low_reward_is_never_accurate() -> None:
    b = rows([5], [5], [5], group=[0, 0, 0], reward=[1.0, 1.0, 0.05]).with_logp(
        ref=torch.tensor([0.50, 0.49, 0.9]).log()
    )
    assert Confident().reward(b).tolist() == pytest.approx([1.5, 1.0, 0.05])
    assert Confident(margin=0.01).reward(b).tolist() == pytest.approx([1.5, 1.5, 0.05])
    low = rows([5], [5], group=[0, 0], reward=[0.05, 0.05]).with_logp(ref=torch.tensor([-0.1, -0.1]))
    assert Confident().reward(low).tolist() == pytest.approx([0.05, 0.05])


def test_a_format_reward_is_no_accuracy() -> None:
    """Rewards 1 + 0.5 and 0 + 0.5: the bonus is half of the first part, and the second response stays as it is."""
    b = rows([5], [5], group=[0, 0], reward=[1.5, 0.5]).with_logp(ref=torch.tensor([0.5, 0.9]).log())
    b = b.replace(cols={"part:math": torch.tensor([1.0, 0.0])})
    given = Confident(correct="math")
    assert given.reward(b).tolist() == pytest.approx([2.0, 0.5]) and given.needs == {"ref", "part:math"}


def test_a_cut_episode_has_no_ids_to_look_at() -> None:
    b = rows([7, 5], [5], group=[0, 1], reward=[1.0, 1.0]).replace(ids=None)
    for given in (
        lambda: after_last(b, (7,)),
        lambda: Agreement().reward(b.replace(cols={"question_id": torch.zeros(2)})),
    ):
        with pytest.raises(ConfigError, match="cut into several sequences"):
            given()


# -- f-DPG and GDC ----------------------------------------------------------------------------------------------------


def target(w: World, beta: float) -> Tensor:
    """The exact target ``log p [S]`` by enumeration."""
    return (w.of_sequence(w.anchor) + w.reward / beta).log_softmax(0)


def soft_value(w: World, beta: float) -> float:
    """``v_star = beta log E_ref exp(reward / beta)``."""
    return beta * float((w.of_sequence(w.anchor) + w.reward / beta).logsumexp(0))


def expected(w: World, spec: ToTarget, beta: float) -> Tensor:
    """The exact expected gradient of REINFORCE under these advantages."""
    b = w.batch()
    b = b.replace(cols={"v_star": torch.full_like(b.reward, soft_value(w, beta))})
    return w.gradient(w.expected(Reinforce(reduce="sum"), with_advantages(b, spec, (), ())))


@pytest.mark.parametrize("key", CASES, ids=str)
def test_f_dpg_follows_the_divergence_to_the_target(key: tuple[str, float | None]) -> None:
    w, beta, f = World(3), 0.7, generator(*key)
    spec = ToTarget(of=Plain(), f=key[0], parameter=key[1], beta=beta, z="v_star")
    pi, p = w.of_sequence(w.pi()), target(w, beta)
    want = w.gradient((pi.exp() * f.value(pi - p)).sum())  # D_f = E_p[f(u)] = E_pi[f(u) / u]
    torch.testing.assert_close(expected(w, spec, beta), want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("f", "rate"), [("forward_kl", 2.0), ("js", 8.0)])
def test_f_dpg_ends_at_the_target(f: str, rate: float) -> None:
    """Plain gradient descent on the expected loss: the policy's responses are distributed as the enumerated target."""
    w, beta = World(5), 1.0
    spec = ToTarget(of=Plain(), f=f, beta=beta, z="v_star")
    for _ in range(100):
        w.mu = w.pi().detach()
        w.logits.data -= rate * expected(w, spec, beta)
    assert 0.5 * float((w.of_sequence(w.pi()).exp() - target(w, beta).exp()).abs().sum()) < 1e-2


def test_gdc_ends_where_the_feature_has_the_wanted_mean() -> None:
    """The multiplier of a binary feature in closed form: ``lambda = logit 0.8 - logit m`` lifts its mean from m to 0.8."""
    w = World(6)
    feature = torch.tensor([float(s[1] == 0) for s in w.sequences], dtype=torch.float64)
    m = float((w.of_sequence(w.anchor).exp() * feature).sum())
    w.reward = (math.log(4) - math.log(m / (1 - m))) * feature
    assert float((target(w, 1.0).exp() * feature).sum()) == pytest.approx(0.8)
    for _ in range(100):
        w.mu = w.pi().detach()
        w.logits.data -= 2.0 * expected(w, ToTarget(of=Plain(), f="forward_kl", z="v_star"), 1.0)
    assert float((w.of_sequence(w.pi()).exp() * feature).sum()) == pytest.approx(0.8, abs=1e-2)


def test_z_of_a_group_and_a_baseline_by_hand() -> None:
    """Two responses: log P = (log 0.2 + 1, log 0.3), q = (0.5, 0.25): weights P/q are 0.4 e and 1.2, and Z is their mean."""
    b = rows([1], [2], group=[0, 0], reward=[0.5, 0.0])
    b = b.with_logp(ref=torch.tensor([0.2, 0.3]).log(), behav=torch.tensor([0.5, 0.25]).log())
    weight = torch.tensor([0.4 * math.e, 1.2], dtype=torch.float64)
    want = weight / weight.mean()  # -f'(t) = 1 / t
    given = ToTarget(of=GroupMean(), f="forward_kl", beta=0.5)
    torch.testing.assert_close(given.reward(b), want, rtol=1e-6, atol=0)
    torch.testing.assert_close(given(b).adv, (want - want.mean()).float())
    torch.testing.assert_close(ToTarget(of=RLOO(), beta=0.5)(b).adv, (want - want.flip(0)).float())
    assert given.group and given.needs == {"ref", "behav"}
    assert ToTarget(z="v_star", of=Plain()).needs == {"ref", "behav", "col:v_star"}


def test_the_mean_of_exponentials_is_by_group_and_does_not_overflow() -> None:
    b = rows([1], [1], [1], group=[0, 1, 1], reward=[0.0] * 3)
    x = torch.tensor([2000.0, -1000.0, -1001.0], dtype=torch.float64)
    low = -1000 + math.log((1 + math.exp(-1)) / 2)
    assert log_mean_exp(b, x).tolist() == pytest.approx([2000.0, low, low])


# -- PS-GRPO ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidate", "reference", "want"),
    [
        ([1, 2, 3], [1, 2, 3], 1.0),
        ([1, 2, 3], [1, 2, 4], math.sqrt(2 / 3 * 1 / 2)),
        ([1, 1, 1], [1, 2, 3], 0.0),  # one of three single tokens, no pair
        ([1, 2], [1, 2, 3, 4], math.exp(1 - 2)),  # too short
        ([1], [1, 2], math.exp(1 - 2)),  # single tokens only
        ([], [1], 0.0),
    ],
)
def test_bleu_by_hand(candidate: list[int], reference: list[int], want: float) -> None:
    assert bleu(candidate, reference) == pytest.approx(want)


def test_agreement_is_with_other_wordings_of_the_same_question() -> None:
    """Question 5 has two wordings (groups 0 and 1), question 6 one: its responses have nobody to agree with."""
    b = rows([1, 2], [3, 4], [1, 2], [1, 3], [1, 2], group=[0, 0, 1, 1, 2], reward=[1.0, 0.0, 0.0, 0.0, 1.0])
    b = b.replace(cols={"question_id": torch.tensor([5.0, 5.0, 5.0, 5.0, 6.0])})
    given = Agreement(of=Plain())
    assert given.reward(b).tolist() == pytest.approx([1 + 0.5, 0.0, 0.5, 0.0, 1.0])
    assert Agreement(share=2.0, weight=0.0).reward(b).tolist() == pytest.approx([1.0, 0.0, 1.0, 0.0, 0.0])
    centred = Agreement(of=GroupMean())(b).adv.view(-1, 2)[:, 0].tolist()
    assert centred == pytest.approx([0.75, -0.75, 0.25, -0.25, 0.0])
