"""Losses of pairs: two responses to one prompt, of which one was preferred.

Almost all of them are one formula::

    cost of a pair = link(s(chosen) - s(rejected))

``s`` is the score of a response, the reward that the policy implies; ``link`` falls while the margin grows. A method chooses the two:

==============  ===================================================  =========================================================
method          score ``s``, with ``D = sum_t log pi - log ref``      optimum where pairs are labelled by Bradley-Terry rewards r
==============  ===================================================  =========================================================
DPO             ``beta D``                                            ``ref exp(r / beta)``: max E r - beta KL(pi‖ref)
f-DPO           ``beta f'(e^D)``                                      that of max E r - beta D_f(pi‖ref)
H-DPO           ``beta (alpha log pi - log ref)``                     ``ref^(1/alpha) exp(r / (alpha beta))``
SimPO           ``beta mean_t log pi``                                no reference: whatever the labels say
ORPO            log-odds of the mean log-prob                         no reference
SamPO, RRPO     ``beta D`` over some of the tokens                    that of DPO for halves of equal length (SamPO)
TDPO, Ra-DPO    ``beta (D + sequential risk)``                        (a token-level model of its own)
==============  ===================================================  =========================================================

IPO and SPPO regress on scores, :class:`Anchored` says of each half where its reward should be. A loss of the user's own is a subclass
of :class:`Pairwise` with its ``score``, or of :class:`rlkit.objective.PairTerm`. ``rlkit check`` finds the optimum of any of them in a
small world and says which divergence it weighs the reward against.
"""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rlkit.bounds import Bound, NonNegative, Positive
from rlkit.errors import ConfigError
from rlkit.objective import PairTerm
from rlkit.objective.anchors import Anchor, anchor_log_prob, anchor_name, anchor_needs, check_geometric
from rlkit.objective.divergences import (
    COLLISION,
    TABLE,
    Generator,
    entropic_risk,
    generator,
    label,
    of_samples,
    value_at_risk,
)
from rlkit.objective.full_vocab import WholeVocabulary
from rlkit.types import Batch, New, PerPair, PerSequence, PerToken

# Nats: a slope that grows like e^-D stays at what it is for this log-ratio, 22,000 times that at 0.
STEEPEST = 10.0
LOGARITHMIC = ("reverse_kl", "reverse_ukl", "js", "generalised_js", "skew_reverse")  # f'(u) grows no faster than log u

Link = Literal["logistic", "hinge", "square", "exponential", "truncated_square", "savage", "discopop"]
LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": lambda x: softplus(-x),
    "hinge": lambda x: (1 - x).clamp(min=0),
    "square": lambda x: (1 - x) ** 2,
    "exponential": lambda x: _exp(-x),
    "truncated_square": lambda x: (1 - x).clamp(min=0) ** 2,
    "savage": lambda x: torch.sigmoid(-x) ** 2,
    "discopop": lambda x: torch.lerp(softplus(-x), _exp(-x), torch.sigmoid(x / 0.05)),
}

PROPER = ("logistic", "exponential", "savage")  # links whose minimum is at (a multiple of) the log-odds of the label


def _exp(x: Tensor) -> Tensor:
    """``e^x``, which goes on in a straight line beyond :data:`STEEPEST`."""
    inside = x.clamp(max=STEEPEST)
    return inside.exp() * (1 + x - inside)


def log_ratio(new: New, b: Batch) -> PerSequence:
    """``sum_t log pi - log ref`` of each response."""
    return b.seq_sum(new.logp - b.logp["ref"])


@dataclass(frozen=True, kw_only=True)
class Pairwise(PairTerm):
    """Base of losses of one margin: ``link(x)``, ``x = score(chosen) - score(rejected)``. A subclass says what the score is.

    ========================  ==============================  ===========================================================
    ``link``                  cost                            known as
    ========================  ==============================  ===========================================================
    logistic                  log(1 + e^-x)                   DPO: the likelihood of Bradley-Terry labels
    hinge                     max(0, 1 - x)                   SLiC
    square                    (1 - x)^2                       IPO (of sums, with beta = 2 tau)
    exponential               e^-x                            Bradley-Terry optimum at half the margin of logistic
    truncated_square          max(0, 1 - x)^2
    savage                    1 / (1 + e^x)^2                 not convex; the Bradley-Terry optimum of logistic
    discopop                  logistic and exponential        blended by sigmoid(x / 0.05)
    ========================  ==============================  ===========================================================

    Around 0 a link is ``link(0) + link'(0) x + link''(0) x^2 / 2``: the second order is what holds the policy at the reference, and
    ``link''(0) / |link'(0)|`` (1/2 for logistic and savage, 1 for square, exponential and truncated_square, 0 for hinge) how hard.

    Attributes:
        flip: the share of labels that are thought to be wrong: ``(1 - flip) link(x) + flip link(-x)`` (conservative DPO).
        unbiased: ``[(1 - flip) link(x) - flip link(-x)] / (1 - 2 flip)`` instead: over labels of which that share is wrong, its mean is
            the plain cost of the right ones (robust DPO).

    Source: DPO 2305.18290, eq. 7 (logistic); GPO 2402.05749 (the convex family; its names from memory, their expansion derived); cDPO
    (Mitchell 2023, as in TRL and HALOs); Robust DPO 2403.00409 (as in TRL); DiscoPOP 2406.08414 (as in TRL).
    """

    link: Link = "logistic"
    flip: Annotated[float, Bound(at_least=0, below=0.5)] = 0.0
    unbiased: bool = False

    @abstractmethod
    def score(self, new: New, b: Batch) -> PerSequence:
        """The reward that the policy implies for each response, with its gradient."""

    def __call__(self, new: New, b: Batch) -> PerPair:
        chosen, rejected = b.halves(self.score(new, b))
        return self.cost(chosen - rejected)

    def linked(self, margin_P: Tensor) -> PerPair:
        """The cost of a label that is right."""
        return LINKS[self.link](margin_P)

    def cost(self, margin_P: Tensor) -> PerPair:
        """The link, and what is known of wrong labels."""
        if not self.flip:
            return self.linked(margin_P)
        right, wrong = (1 - self.flip) * self.linked(margin_P), self.flip * self.linked(-margin_P)
        return (right - wrong) / (1 - 2 * self.flip) if self.unbiased else right + wrong


@dataclass(frozen=True, kw_only=True)
class DPO(Pairwise):
    """``link(beta [s(D_chosen) - s(D_rejected)])``, ``D = sum_t log pi - log anchor``; ``s(D) = D`` is DPO.

    ``f`` (f-DPO): ``s(D) = f'(e^D)`` weighs the reward against ``beta D_f(pi‖anchor)`` instead of the reverse KL. ``f`` is any divergence
    of :class:`~rlkit.objective.divergences.Divergence` whose slope falls without bound where the policy vanishes; the others (``tv``,
    ``chi2``, ``skew_forward``, ``alpha`` and ``tsallis`` above 1) may give a response probability 0, where the reward that a policy
    implies is not defined, and are refused. ``alpha`` is of the order ``a`` of our table: ``parameter: 1 - a`` in the paper's sense, ``a``
    itself in TRL's. Our ``js`` is half of the paper's: twice its beta.

    ``entropy`` (H-DPO): ``s = alpha log pi - log anchor``, which weighs the reward against ``beta`` times the cross-entropy to the
    anchor less ``alpha`` times the policy's own entropy: below 1 the policy is sharper than DPO's, above 1 flatter.

    ``anchor`` may be a geometric mixture of two policies (alpha-SPIN): its missing normaliser is that of the prompt and cancels.
    ``over: mean`` takes log-ratios per token in place of their sum (TRL's ``sigmoid_norm``), which is no longer a ratio of responses.

    Source: DPO 2305.18290, eq. 7; f-DPO 2309.16240 (the released code's scores); H-DPO 2411.07595 (the objective as in the abstract;
    its loss and optimum are derived here, and checked by enumeration); alpha-SPIN 2404.04291 (from search excerpts).
    """

    beta: Positive = 0.1
    f: str | Generator = "reverse_kl"
    parameter: float | None = None
    anchor: Anchor = "ref"
    entropy: Positive = 1.0
    over: Literal["mean", "sum"] = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        found = of_samples(self.f, self.parameter, type(self).__name__)
        slope = found.slope(torch.tensor([-20.0, -30.0], dtype=torch.float64))
        if float(slope[0] - slope[1]) < 1e-3:
            raise ConfigError(
                f"{type(self).__name__}: the slope of {label(self.f, self.parameter)!r} is bounded where the policy vanishes, so the "
                "reward that a policy implies is not defined (f-DPO, theorem 1). Use reverse_kl, forward_kl, js, jeffreys, hellinger, "
                "reverse_chi2 or alpha with a parameter below 1."
            )
        if self.entropy != 1 and not self._is_plain:
            raise ConfigError(
                f"{type(self).__name__}: entropy (H-DPO) and f (f-DPO) are two objectives; set one of them."
            )
        check_geometric(self.anchor, self._is_plain, type(self).__name__)

    @property
    def _is_plain(self) -> bool:
        return self.f in ("reverse_kl", "reverse_ukl")

    @property
    def anchors(self) -> tuple[Anchor, ...]:
        return (self.anchor,)

    @property
    def needs(self) -> frozenset[str]:
        return anchor_needs(self.anchor)

    @property
    def name(self) -> str:
        of = "" if self._is_plain else f"_{label(self.f, self.parameter)}"
        return f"{type(self).__name__}{of}" + ("" if self.anchor == "ref" else f"({anchor_name(self.anchor)})")

    def tokens(self, new: New, b: Batch) -> PerToken:
        """What is summed over a response."""
        return self.entropy * new.logp - anchor_log_prob(self.anchor, b)

    def score(self, new: New, b: Batch) -> PerSequence:
        moved = b.seq_sum(self.tokens(new, b))
        if self.over == "mean":
            moved = moved / b.seq_len()
        if self._is_plain:
            return self.beta * moved
        if self.f not in LOGARITHMIC:  # the value stays within the bound, the gradient is that at the bound
            moved = moved + (moved.clamp(-STEEPEST, STEEPEST) - moved).detach()
        return self.beta * generator(self.f, self.parameter).slope(moved)


@dataclass(frozen=True, kw_only=True)
class SamPO(DPO):
    """DPO over equally many tokens of both halves: all of the shorter one, and as many of the longer one, drawn without replacement.

    The draw is new in every step and one for policy and reference; the released code draws one for each of them, so that it compares
    different tokens. A response that is in several pairs is cut to the shortest of its partners.

    Source: SamPO 2406.10957 (the released code, with that one change).
    """

    def mark(self, b: Batch, generator: torch.Generator) -> PerToken:
        assert b.pairs is not None
        length = b.count()
        keep = length.clone()
        for own, other in ((0, 1), (1, 0)):
            keep.scatter_reduce_(0, b.pairs[:, own], length[b.pairs[:, other]], "amin")
        drawn = torch.rand(b.N, generator=generator, dtype=torch.float64)
        order = torch.argsort(b.seq + drawn)  # within each response in random order
        place = torch.arange(b.N) - (length.cumsum(0) - length)[b.seq]
        return torch.zeros(b.N).index_put((order,), (place < keep[b.seq]).float())

    def tokens(self, new: New, b: Batch) -> PerToken:
        return super().tokens(new, b) * b.marks[self.name]


@dataclass(frozen=True, kw_only=True)
class RRPO(DPO):
    """DPO over the tokens in which the two halves differ; beside it belongs a token KL on the chosen half
    (``{type: FullDivergence, f: forward_kl, on: chosen, reduce: sum, coef: 0.01}``).

    The paper's rejected responses are the chosen ones with phrases exchanged, and its loss sums over those phrases. Here the phrases
    are found by aligning the tokens of the halves (longest common blocks); text that is only in one of them counts too.

    Source: RRPO 2504.12083 (the released code; the alignment is ours).
    """

    def mark(self, b: Batch, generator: torch.Generator) -> PerToken:
        assert b.pairs is not None and b.ids is not None and b.action is not None
        tokens, length = b.ids[b.action].tolist(), b.count()
        ends = length.cumsum(0).tolist()
        start = [end - n for end, n in zip(ends, length.tolist(), strict=True)]
        differ = torch.zeros(b.N)
        for chosen, rejected in b.pairs.tolist():
            one, other = (tokens[start[s] : ends[s]] for s in (chosen, rejected))
            for kind, i, j, k, m in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
                if kind != "equal":
                    differ[start[chosen] + i : start[chosen] + j] = 1
                    differ[start[rejected] + k : start[rejected] + m] = 1
        return differ

    def tokens(self, new: New, b: Batch) -> PerToken:
        return super().tokens(new, b) * b.marks[self.name]


ANCHORED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nca": lambda a, c: softplus(-a) + 0.5 * softplus(a) + 0.5 * softplus(c),
    "bco": lambda a, c: softplus(-a) + softplus(c),
    "apo_zero": lambda a, c: torch.sigmoid(-a) + torch.sigmoid(c),
    "apo_down": lambda a, c: torch.sigmoid(a) + torch.sigmoid(c - a),
}


@dataclass(frozen=True, kw_only=True)
class Anchored(PairTerm):
    """Losses that say of each half where its reward should be, not only which is larger; ``a = beta D(chosen)``, ``c = beta D(rejected)``.

    =========  =================================================  =======================================================
    ``kind``   cost                                               what it wants
    =========  =================================================  =======================================================
    nca        -log s(a) - [log s(-a) + log s(-c)] / 2            both likely under the reference, the better one more so
    bco        -log s(a) - log s(-c)                              the better one up, the worse one down
    apo_zero   1 - s(a) + s(c)                                    the same, with less weight on what is there already
    apo_down   s(a) + 1 - s(a - c)                                both down, the worse one further
    =========  =================================================  =======================================================

    ``s`` is the logistic function. BCO's shift of both rewards is left out, as in TRL's form for pairs.

    Source: NCA 2402.05369; BCO 2404.04656; APO 2408.06266 (all as in TRL).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"ref"})
    beta: Positive = 0.1
    kind: Literal["nca", "bco", "apo_zero", "apo_down"] = "apo_zero"

    def score(self, new: New, b: Batch) -> PerSequence:
        return self.beta * log_ratio(new, b)

    def __call__(self, new: New, b: Batch) -> PerPair:
        return ANCHORED[self.kind](*b.halves(self.score(new, b)))


@dataclass(frozen=True, kw_only=True)
class IPO(PairTerm):
    """``(h - 1 / (2 tau))^2``, ``h`` the difference of log-ratios to the reference, ``over`` tokens: their mean or their sum.

    A regression, so that labels without a doubt do not drive the policy away from the reference. With sums and both halves drawn from
    one policy ``mu`` its optimum is ``ref exp(P(y beats mu) / tau)``: the reward is the win rate.

    Source: IPO 2310.12036, eq. 17 (sums); TRL and HALOs (means, which the authors confirmed to have used).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"ref"})
    tau: Positive = 0.1
    over: Literal["mean", "sum"] = "mean"

    def score(self, new: New, b: Batch) -> PerSequence:
        moved = log_ratio(new, b)
        return moved / b.seq_len() if self.over == "mean" else moved

    def __call__(self, new: New, b: Batch) -> PerPair:
        chosen, rejected = b.halves(self.score(new, b))
        return (chosen - rejected - 1 / (2 * self.tau)) ** 2


@dataclass(frozen=True, kw_only=True)
class SimPO(Pairwise):
    """``link(beta (mean_t log pi(chosen) - mean_t log pi(rejected)) - gamma)``: no reference at all.

    With ``link: hinge, beta: 1`` and pairs of a teacher's and the student's own responses it is the ranking loss of PLaD.

    Source: SimPO 2405.14734, eq. 6; PLaD 2406.02886 (its ranking loss; reconstructed from the abstract).
    """

    beta: Positive = 2.0
    gamma: NonNegative = 1.0

    def score(self, new: New, b: Batch) -> PerSequence:
        return self.beta * b.seq_mean(new.logp)

    def linked(self, margin_P: Tensor) -> PerPair:
        return super().linked(margin_P - self.gamma)


@dataclass(frozen=True, kw_only=True)
class ORPO(Pairwise):
    """``link(log odds(chosen) - log odds(rejected))``, ``odds = p / (1 - p)``, ``p`` a response's geometric mean probability per token.

    The odds-ratio part alone: beside it belongs the NLL of the chosen half, ``{type: NLL, on: chosen, reduce: seq}``, and ``coef`` is
    the paper's lambda.

    Source: ORPO 2403.07691, eq. 6 and 7.
    """

    def score(self, new: New, b: Batch) -> PerSequence:
        mean = b.seq_mean(new.logp).clamp(max=-1e-7)  # a response of probability 1 has no odds
        return mean - torch.log(-torch.expm1(mean))


@dataclass(frozen=True, kw_only=True)
class TDPO(Pairwise, WholeVocabulary):
    """DPO that also compares how far the policy has left the reference along both halves.

    ``x = beta [h - (R_rejected - R_chosen)]`` (version 1) or ``beta [h - alpha (R_rejected - sg(R_chosen))]`` (version 2), ``h`` DPO's
    difference of log-ratios, ``R = sum_t risk(ref_t, pi_t)`` over the whole vocabulary at every prefix of a half.

    Attributes:
        risk: of ``Z = log ref - log pi`` under the reference. ``mean`` is KL(ref‖pi): TDPO. Ra-DPO: ``cvar``, the mean over the worst
            share ``1 - level`` of the reference's mass, or ``entropic``, ``log E[e^(level Z)] / level``.

    Source: TDPO 2404.11999 (as in Ra-DPO's released code); Ra-DPO 2505.20359 (its risk functionals as defined; the
    released code's CVaR is another one).
    """

    linear: ClassVar[bool] = False
    beta: Positive = 0.1
    version: Literal[1, 2] = 2
    alpha: NonNegative = 0.5
    risk: Literal["mean", "cvar", "entropic"] = "mean"
    level: NonNegative = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.risk == "cvar" and self.level >= 1) or (self.risk == "entropic" and self.level == 0):
            raise ConfigError(f"TDPO.level is {self.level:g}; it must be below 1 for cvar and positive for entropic.")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.anchor, f"{self.anchor}_full"})

    @property
    def generator(self) -> Generator:
        if self.risk == "mean":
            return TABLE["forward_kl"]
        return value_at_risk(self.level) if self.risk == "cvar" else entropic_risk(self.level)

    def score(self, new: New, b: Batch) -> PerSequence:
        return self.beta * b.seq_sum(new.logp - b.logp[self.anchor])

    def __call__(self, new: New, b: Batch) -> PerPair:
        chosen, rejected = b.halves(self.score(new, b))
        risk_w, risk_l = b.halves(b.seq_sum(new.full[self.name]))
        apart = risk_l - risk_w if self.version == 1 else self.alpha * (risk_l - risk_w.detach())
        return self.cost(chosen - rejected - self.beta * apart)


@dataclass(frozen=True, kw_only=True)
class WPO(DPO, WholeVocabulary):
    """DPO in which a pair counts as much as the policy could have sampled it: times ``min(1, w(chosen) w(rejected))``.

    ``w(y) = exp(mean_t [log pi_t(y_t) - log sum_v pi_t(v)^2])``, without gradient: 1 for a response that is as likely as the policy's own
    samples are on average. ``sum_v pi^2`` is of whole distributions, so that WPO needs a reference that has them.

    Source: WPO 2406.11827 (as in TRL's use_weighting).
    """

    linear: ClassVar[bool] = False
    anchor: Literal["ref", "teacher"] = "ref"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.anchor, f"{self.anchor}_full"})

    @property
    def generator(self) -> Generator:
        return COLLISION

    def __call__(self, new: New, b: Batch) -> PerPair:
        likely = new.logp.detach() - new.full[self.name].detach().log()
        chosen, rejected = b.halves(b.seq_mean(likely))
        return super().__call__(new, b) * (chosen + rejected).clamp(max=0.0).exp()


@dataclass(frozen=True, kw_only=True)
class SPPO(PairTerm):
    """``[(D_chosen - eta (P_chosen - 1/2))^2 + (D_rejected - eta (P_rejected - 1/2))^2] / 2``, ``D = sum_t log pi - log ref``.

    ``P`` is the probability that a response beats one of the policy's own, and the reference is the iterate that sampled the pairs
    (``reference: {type: HardReset, every: ...}``).

    Attributes:
        wins: where P comes from. ``hard``: 1 and 0. ``order``: the share of the responses to the prompt, itself included, that have a
            lower reward, ties for half. ``sigmoid``: the mean of ``sigmoid(reward - other reward)`` over them, as for scores of a
            preference model.

    Source: SPPO 2405.00675 (the released code; ``hard`` is TRL's).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"ref"})
    eta: Positive = 1000.0
    wins: Literal["hard", "order", "sigmoid"] = "hard"

    def win_rate(self, b: Batch) -> PerSequence:
        """The probability that each response beats another one to its prompt."""
        found = torch.empty_like(b.reward)
        for rows in b.groups():
            apart = b.reward[rows, None] - b.reward[None, rows]
            found[rows] = (apart.sigmoid() if self.wins == "sigmoid" else (apart.sign() + 1) / 2).mean(1)
        return found

    def __call__(self, new: New, b: Batch) -> PerPair:
        moved_w, moved_l = b.halves(log_ratio(new, b))
        if self.wins == "hard":
            win_w, win_l = torch.ones_like(moved_w), torch.zeros_like(moved_l)
        else:
            win_w, win_l = b.halves(self.win_rate(b).to(moved_w.dtype))
        return ((moved_w - self.eta * (win_w - 0.5)) ** 2 + (moved_l - self.eta * (win_l - 0.5)) ** 2) / 2
