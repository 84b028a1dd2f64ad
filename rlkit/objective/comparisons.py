"""Where a loss of pairs or of labels leads, by exact enumeration: which divergence it really weighs the reward against, and how.

All pairs of the responses of a :class:`~rlkit.objective.world.World` are drawn from its reference and labelled by a Bradley-Terry reward
``r``; a single response is good with chance ``sigmoid(r)``. At the minimum ``pi`` of a term's expected cost, ``r`` is held against what it
is where ``E r - c D(pi‖ref)`` is largest: ``r(y) = c f'(pi / ref) + const`` for every response ``y``. Nothing here knows how a term is
implemented.

That is what happens in the end, with all pairs at hand. On the way such a loss sees only its data: with labels that say nothing, its
gradient is what it regularises with, and on responses that the policy did not sample that is not the gradient of a divergence.
:func:`pull` says how near it is.

Source: GPO 2402.05749 (that offline data break the identity of squared margins and KL; derived here, checked by enumeration).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlkit.objective import Term, is_marking
from rlkit.objective.anchors import anchor_log_prob, anchor_name
from rlkit.objective.divergences import TABLE, Generator
from rlkit.objective.full_vocab import WholeVocabulary
from rlkit.objective.world import Sampled, World, words
from rlkit.types import SOURCES, Batch, New

NO_REFERENCE = "the reward per token, with no reference"
EXACT = 1e-6  # how near to 1 a correlation is that is no accident


def against(f: str, anchor: str, reward: str = "the reward") -> str:
    """An objective in words."""
    return f"{reward} against {words(f, anchor)} of responses"


def entropic(anchor: str) -> str:
    """H-DPO's objective in words."""
    return f"the reward against the cross-entropy to {anchor} and the policy's own entropy, weighed apart"


class Judged:
    """Responses of a world with verdicts, each case with its chance: :class:`Comparisons` or :class:`Labels`."""

    w: World
    batch: Batch
    reward: Tensor  # of each response, as the verdicts tell it

    def cost(self, term: Term) -> Tensor:
        """The expected cost of a case, with its gradient to the world's logits."""
        raise NotImplementedError

    def lead(self, term: Term) -> Tensor | None:
        """Log-probs of responses under the policy where the expected gradient vanishes, ``[S]``; None: it was not found."""
        w = self.w

        def gradient(x: Tensor) -> Tensor:
            w.logits = x.view_as(w.ref).requires_grad_()
            return torch.autograd.grad(self.cost(term), w.logits)[0].flatten()

        found = stationary(gradient, w.ref.flatten())
        if found is None:
            return None
        pi = w.whole(found.view_as(w.ref).log_softmax(-1))
        return pi if bool(pi.isfinite().all()) else None


class Comparisons(Judged):
    """All pairs of different responses of a world, each with its chance to be drawn twice from the sampling policy and labelled so.

    ``told``: how far labels depend on the reward (0: they say nothing); ``flipped``: the share of wrong ones.
    """

    def __init__(self, w: World, told: float = 1.0, flipped: float = 0.0) -> None:
        self.w, self.mu, self.reward = w, w.whole(w.mu), w.reward
        pairs = torch.tensor(list(itertools.permutations(range(len(w.responses)), 2)))
        better, worse = pairs.T
        right = torch.sigmoid(told * (w.reward[better] - w.reward[worse]))
        self.weight = (self.mu[better] + self.mu[worse]).exp() * ((1 - flipped) * right + flipped * (1 - right))
        self.batch = w.batch().replace(pairs=pairs, source=torch.full_like(w.length, SOURCES.index("chosen")))

    def wins(self) -> Tensor:
        """The chance of each response to beat one that the sampling policy gives."""
        return (torch.sigmoid(self.w.reward[:, None] - self.w.reward[None]) * self.mu.exp()).sum(1)

    def cost(self, term: Term) -> Tensor:
        """The expected cost of a pair, with its gradient to the world's logits."""
        b = self.batch.replace(
            cols={n[4:]: torch.zeros_like(self.w.reward) for n in term.needs if n.startswith("col:")}
        )
        if is_marking(term):  # marks choose tokens of single pairs; here all of them count
            b = b.replace(marks={term.name: torch.ones(b.N, dtype=b.reward.dtype)})
        return (self.weight * term(self.w.new([term] if isinstance(term, WholeVocabulary) else []), b)).sum()


class Labels(Judged):
    """Responses as often as the sampling policy gives them, good with chance ``sigmoid(told * r)``: a set of about 100 whole rows, because
    what such a loss compares with is a number of the whole batch. There is one prompt, so nothing is mismatched.
    """

    def __init__(self, w: World, told: float = 1.0) -> None:
        self.w, share, good = w, w.whole(w.mu).exp(), torch.sigmoid(told * w.reward)
        count = [(100 * share * part).round().long().clamp(min=1) for part in (good, 1 - good)]
        rows = torch.cat([torch.repeat_interleave(torch.arange(len(good)), n) for n in count])
        self.tokens = torch.cat([(w.seq == s).nonzero()[:, 0] for s in rows.tolist()])
        b = w.batch()
        self.batch = b.replace(
            seq=torch.repeat_interleave(torch.arange(len(rows)), w.length[rows]),
            group=torch.zeros_like(rows),
            source=torch.full_like(rows, SOURCES.index("labelled")),
            reward=torch.cat([torch.full((int(n.sum()),), 1.0 - k, dtype=b.reward.dtype) for k, n in enumerate(count)]),
            logp={name: x[self.tokens] for name, x in b.logp.items()},
            cols={"mismatched": torch.zeros(len(rows), dtype=b.reward.dtype)},
            adv=None,
        )
        self.reward = (count[0] / count[1]).log()  # as rounding leaves it

    def cost(self, term: Term) -> Tensor:
        logp = self.w.at(self.w.pi())[self.tokens]
        b = self.batch.with_logp(old=logp.detach())
        if is_marking(term):
            b = b.replace(marks={term.name: term.mark(b, torch.Generator().manual_seed(0))})
        return term(New(logp), b).mean()


def stationary(gradient: Callable[[Tensor], Tensor], x: Tensor, rounds: int = 200) -> Tensor | None:
    """Where ``gradient`` vanishes, downhill from ``x``, by BFGS; None: nowhere that could be found.

    Steps are judged by gradients alone, because the value of a term in which something is detached or marked is not what its gradient is
    of: a step is too long if the slope along it has turned upwards by more than half of what it was downwards.
    """
    g = gradient(x)
    one, least = torch.eye(len(x), dtype=x.dtype), 1e-7 * float(g.norm())
    inverse = one / float(g.norm())
    for k in range(rounds):
        if float(g.norm()) <= least:
            return x
        step = -inverse @ g
        slope = float(step @ g)
        new = gradient(x + step)
        while float(step @ new) > -slope / 2:
            step, slope = step / 2, slope / 2
            if float(step.norm()) < 1e-12:
                return None
            new = gradient(x + step)
        y = new - g
        x, g, curvature = x + step, new, float(step @ y)
        if curvature > 0:
            if k == 0:
                inverse = one * (curvature / float(y @ y))
            left = one - torch.outer(step, y) / curvature
            inverse = left @ inverse @ left.T + torch.outer(step, step) / curvature
    return None


@dataclass(frozen=True)
class Lead:
    """What a term weighs at its minimum.

    Attributes:
        objective: in words; ``fit`` is the correlation of the reward with what it would be for that objective, ``strength`` the
            coefficient of the divergence.
    """

    objective: str
    fit: float
    strength: float
    free: int  # coefficients that were fitted

    @property
    def exact(self) -> bool:
        return self.fit > 1 - EXACT and self.strength > 0


def leads(
    term: Term, flipped: float = 0.0, extra: Sequence[tuple[str, Generator]] = (), labelled: bool = False
) -> list[Lead] | None:
    """Every objective that is known, the best fit first; None: the term leads to no place that could be found.

    Args:
        flipped: the share of labels that are wrong. extra: divergences beside those of the table. labelled: it judges single responses.
    """
    w = World("from the reference")
    judged = Labels(w) if labelled else Comparisons(w, flipped=flipped)
    pi, share = judged.lead(term), w.whole(w.mu).exp()
    if pi is None:
        return None
    found = [Lead(name, *_fit(target, x, share)) for name, target, x in _candidates(term, judged, pi, extra)]
    return sorted(found, key=lambda lead: (-round(lead.fit, 6), lead.free))


def _candidates(
    term: Term, judged: Judged, pi: Tensor, extra: Sequence[tuple[str, Generator]]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(objective, reward, what that is at the optimum of the objective, up to a constant and a coefficient for each column)."""
    b, reward = judged.w.batch(), judged.reward
    anchors = [anchor for anchor in term.anchors if anchor not in ("old", "behav")]
    for anchor in anchors or ["ref"]:
        name, log_q = anchor_name(anchor), b.seq_sum(anchor_log_prob(anchor, b))
        for f_name, f in [*TABLE.items(), *extra]:
            if not f_name.endswith("_ukl"):  # the same divergence of normalised policies
                yield against(f_name, name), reward, f.slope(pi - log_q)[:, None]
        if isinstance(judged, Comparisons):
            yield against("reverse_kl", name, "the win rate"), judged.wins(), (pi - log_q)[:, None]
        yield entropic(name), reward, torch.stack([pi, -log_q], 1)
    yield NO_REFERENCE, reward, (pi / judged.w.length)[:, None]


def _fit(target: Tensor, x: Tensor, share: Tensor) -> tuple[float, float, int]:
    """Correlation of ``target`` with its best affine function of the columns of ``x``, the first one's coefficient, and their number."""
    if not bool(x.isfinite().all()):  # a slope like e^-D of a response that has become e^-800 times as likely
        return 0.0, 0.0, x.shape[1]
    root = share.sqrt()[:, None]
    centred = [root * (v - (share[:, None] * v).sum(0)) for v in (x, target[:, None])]
    coefficients = torch.linalg.lstsq(*centred).solution
    left = float((centred[1] - centred[0] @ coefficients).norm() / centred[1].norm())
    return max(0.0, 1 - left**2) ** 0.5, float(coefficients[0]), x.shape[1]


def pull(term: Term, sampled: Sampled, labelled: bool = False) -> float:
    """Cosine of a term's gradient where labels say nothing to that of KL(pi‖ref) of responses, on cases that this policy sampled."""
    w = World(sampled)
    p = w.whole(w.pi())
    kl = w.gradient((p.exp() * (p - w.whole(w.ref))).sum())
    own = w.gradient((Labels(w, told=0.0) if labelled else Comparisons(w, told=0.0)).cost(term))
    return float((kl * own).sum() / (kl.norm() * own.norm()).clamp(min=1e-12))
