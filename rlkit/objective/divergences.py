"""f-divergences and KL estimators as loss terms; what each one optimises stands beside its name.

Convention: ``D_f(pi‖q) = E_q[f(u)]``, ``u = pi / q``, ``f`` convex, ``f(1) = 0``; ``q`` is the anchor. One identity serves every
sampling policy ``mu``::

    grad D_f(pi‖q) = E_mu[ (pi / mu) f'(u) grad log pi ]

so the score form below is exact on-policy, off-policy, and on rows sampled from the anchor itself. It is the
token-level divergence given the visited prefixes; the sequence-level KL needs reward-to-go (``KLReward``).

Slopes are bounded, outputs are never clamped: clamping an output makes the gradient zero exactly where the policy is
farthest away. A weighted value ``w f(u) / u`` is not differentiated by autograd, although its gradient is ``w f'(u)`` times the score: that
would be the difference of two numbers of the size of ``1 / u``, of which float32 keeps nothing where ``u`` is small.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlkit.bounds import NonNegative, Positive
from rlkit.errors import ConfigError, ModelError
from rlkit.objective import Term
from rlkit.objective.anchors import Anchor, anchor_log_prob, anchor_name, anchor_needs, check_geometric
from rlkit.objective.anchors import Mixture as Mixture
from rlkit.plug import Plug
from rlkit.types import Batch, New, PerToken

BOUND = 20.0  # log-ratios are bounded here before they are exponentiated: e^40 is still a float32


@dataclass(frozen=True)
class Generator(Plug):
    """Base of a divergence of the user's own: two functions of ``a = log u``. The library's have names (``TABLE``, ``PARAMETRIC``); those
    that only whole distributions define are classes (:mod:`rlkit.objective.distillation`).
    """

    homes: ClassVar[tuple[str, ...]] = ("rlkit.objective.distillation",)
    # Single samples do not say what it is: it is made by `at` from two whole distributions.
    whole: ClassVar[bool] = False
    # It means the same where all unlikely tokens are one bucket.
    coarse: ClassVar[bool] = True

    @abstractmethod
    def value(self, a: Tensor) -> Tensor:
        """``f(u) / u``, the value under samples of pi."""

    @abstractmethod
    def slope(self, a: Tensor) -> Tensor:
        """``f'(u)``, the coefficient of the score."""

    @property
    def label(self) -> str:
        """Its name in metrics; two that differ in their fields need two names."""
        return type(self).__name__

    @property
    def reads(self) -> int | None:
        """How many of the anchor's most likely tokens it tells apart, where the others matter only together; None: all."""
        return None

    @property
    def joint(self) -> int | None:
        """It is of all distributions of a response together, of at most so many tokens that follow each other; None: of each by itself."""
        return None

    def beside(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The anchor's log-probs ``log_q`` as they stand beside the policy's tokens, ``[n, V]``: themselves, where tokens are the same."""
        return log_q

    def at(self, log_p: Tensor, log_q: Tensor) -> Generator:
        """Its form between whole distributions ``log_p`` (the policy's) and ``log_q`` (the anchor's), ``[n, V]``: itself, where that is
        the same for all of them. Both arguments are left as they are."""
        return self

    def among(self, ids: Tensor | None, table: Tensor | None) -> Generator:
        """Its form where only the tokens ``ids``, ``[n, k]``, stay apart and the rest is one bucket behind them (None: all stay apart):
        itself, where it matters only how likely tokens are. A row of ``table``, ``[V, H]``, is the anchor's output layer for a token;
        None: the anchor gives log-probs alone.
        """
        return self

    def with_token(self, column: Tensor) -> Generator:
        """Its form where ``column``, ``[n, 1]``, says which one stands in the text: itself, where that does not matter."""
        return self


@dataclass(frozen=True)
class Formula(Generator):
    """A generator from its two functions."""

    of_value: Callable[[Tensor], Tensor]
    of_slope: Callable[[Tensor], Tensor]

    def value(self, a: Tensor) -> Tensor:
        return self.of_value(a)

    def slope(self, a: Tensor) -> Tensor:
        return self.of_slope(a)


def _softplus(a: Tensor) -> Tensor:
    return torch.nn.functional.softplus(a)


def _js_value(a: Tensor) -> Tensor:  # log(2u/(1+u)) and log(2/(1+u)) without exponentials of both signs
    return 0.5 * ((math.log(2) - _softplus(-a)) + (-a).exp() * (math.log(2) - _softplus(a)))


TABLE: dict[str, Generator] = {
    # KL(pi‖q); the unnormalised form has the low-variance coefficient log u (0 at u = 1)
    "reverse_kl": Formula(lambda a: a, lambda a: a + 1),
    "reverse_ukl": Formula(lambda a: a - 1 + (-a).exp(), lambda a: a),
    # KL(q‖pi)
    "forward_kl": Formula(lambda a: -a * (-a).exp(), lambda a: -(-a).exp()),
    "forward_ukl": Formula(lambda a: 1 - (-a).exp() - a * (-a).exp(), lambda a: -torch.expm1(-a)),
    # halves of KL to the middle; DPH-RL, f-DPO and disco have twice this (docs/regularizers.md, constants)
    "js": Formula(_js_value, lambda a: 0.5 * (math.log(2) - _softplus(-a))),
    "jeffreys": Formula(lambda a: -torch.expm1(-a) * a, lambda a: a - torch.expm1(-a)),
    "chi2": Formula(lambda a: torch.expm1(a) * -torch.expm1(-a), lambda a: 2 * torch.expm1(a)),
    "reverse_chi2": Formula(lambda a: torch.expm1(-a) ** 2, lambda a: -torch.expm1(-2 * a)),
    "hellinger": Formula(lambda a: torch.expm1(-a / 2) ** 2, lambda a: -torch.expm1(-a / 2)),
    "tv": Formula(lambda a: 0.5 * torch.expm1(-a).abs(), lambda a: 0.5 * a.sign()),
}


def alpha(order: float) -> Generator:
    """Cressie-Read: ``f = (u^a - a u - (1 - a)) / (a (a - 1))``; order 1 is KL(pi‖q), order 0 is KL(q‖pi)."""
    if order in (0.0, 1.0):
        return TABLE["forward_ukl" if order == 0 else "reverse_ukl"]
    c = order * (order - 1)
    return Formula(
        lambda a: (((order - 1) * a).exp() - order - (1 - order) * (-a).exp()) / c,
        lambda a: torch.expm1((order - 1) * a) / (order - 1),
    )


def tsallis(q: float) -> Generator:
    """``f = (u^q - u) / (q - 1)``; q = 1 is KL(pi‖q), q = 2 is chi-square(pi‖q).

    Source: General Munchausen RL (2023; from memory, not checked against the paper).
    """
    if q == 1:
        return TABLE["reverse_ukl"]
    return Formula(lambda a: torch.expm1((q - 1) * a) / (q - 1), lambda a: q * torch.expm1((q - 1) * a) / (q - 1))


def generalised_js(beta: float) -> Generator:
    """``beta KL(pi‖m) + (1 - beta) KL(q‖m)``, ``m = beta pi + (1 - beta) q``.

    Source: GKD 2306.13649 (its beta is the teacher's: 1 - beta here).
    """

    def log_m(a: Tensor) -> Tensor:  # log(beta u + 1 - beta)
        return torch.logaddexp(a + math.log(beta), torch.full_like(a, math.log(1 - beta)))

    return Formula(
        lambda a: beta * (a - log_m(a)) - (1 - beta) * (-a).exp() * log_m(a), lambda a: beta * (a - log_m(a))
    )


def normalised_js(beta: float) -> Generator:
    """``generalised_js / (beta (1 - beta))``, which has limits at both ends: KL(pi‖q) at 0 and KL(q‖pi) at 1.

    ``generalised_js`` itself goes to zero there, so that a sweep of its parameter is one of the learning rate, too.

    Source: derived from GKD's definition; the limits are those that it names.
    """
    if beta in (0.0, 1.0):
        return TABLE["reverse_ukl" if beta == 0 else "forward_ukl"]

    def log_m(a: Tensor) -> Tensor:  # log(m / q), which keeps its digits where beta is small
        return torch.log1p(beta * torch.expm1(a))

    def slope(a: Tensor) -> Tensor:  # log(pi / m) / (1 - beta)
        return -torch.log1p((1 - beta) * torch.expm1(-a)) / (1 - beta)

    return Formula(lambda a: slope(a) - (-a).exp() * log_m(a) / beta, slope)


def skew_forward(lam: float) -> Generator:
    """``KL(q ‖ lam q + (1 - lam) pi)``: bounded where pi vanishes."""

    def log_m(a: Tensor) -> Tensor:
        return torch.logaddexp(a + math.log(1 - lam), torch.full_like(a, math.log(lam)))

    return Formula(lambda a: -(-a).exp() * log_m(a), lambda a: (1 - lam) * (1 - (-log_m(a)).exp()))


def skew_reverse(lam: float) -> Generator:
    """``KL(pi ‖ lam pi + (1 - lam) q)``: saturates where q vanishes."""

    def log_m(a: Tensor) -> Tensor:
        return torch.logaddexp(a + math.log(lam), torch.full_like(a, math.log(1 - lam)))

    return Formula(lambda a: a - log_m(a), lambda a: (a - log_m(a)) + (1 - lam) * (-log_m(a)).exp() - (1 - lam))


PARAMETRIC: dict[str, tuple[Callable[[float], Generator], Callable[[float], bool], str]] = {
    "alpha": (alpha, lambda order: -2 <= order <= 4, "in [-2, 4]"),  # beyond it e^(20 order) is no float32
    "tsallis": (tsallis, lambda q: 0 < q <= 4, "in (0, 4]"),
    "generalised_js": (generalised_js, lambda b: 0 < b < 1, "in (0, 1)"),
    "normalised_js": (normalised_js, lambda b: 0 <= b <= 1, "in [0, 1]"),
    "skew_forward": (skew_forward, lambda x: 0 < x < 1, "in (0, 1)"),
    "skew_reverse": (skew_reverse, lambda x: 0 < x < 1, "in (0, 1)"),
}


def _reweighted(share: Tensor, cost: Tensor | float = 0.0) -> Generator:
    """``sum_v q_v (s_v Z_v - cost_v)``, ``Z = log q - log pi``, with shares ``s`` that are constants to the gradient, ``[n, V]``."""
    return Formula(lambda a: (-a).exp() * (-a * share - cost), lambda a: -(-a).exp() * share)


class OfWhole(Generator):
    """Base of generators of whole distributions only: samples of single tokens do not say what they are. Override :meth:`at`."""

    whole: ClassVar[bool] = True

    def value(self, a: Tensor) -> Tensor:
        raise NotImplementedError

    slope = value

    @abstractmethod
    def at(self, log_p: Tensor, log_q: Tensor) -> Generator: ...


@dataclass(frozen=True)
class Between(OfWhole):
    """One from the function that makes its form between two distributions."""

    make: Callable[[Tensor, Tensor], Generator]

    def at(self, log_p: Tensor, log_q: Tensor) -> Generator:
        return self.make(log_p, log_q)


def value_at_risk(level: float) -> Generator:
    """The mean of ``Z = log q - log pi`` over the worst share ``1 - level`` of q's mass (CVaR); level 0 is KL(q‖pi).

    The token at the boundary counts with the part of it that belongs to that share.

    Source: Ra-DPO 2505.20359 (the definition of CVaR; the released code sums over a quantile of the vocabulary instead).
    """

    def make(log_p: Tensor, log_q: Tensor) -> Generator:
        q, order = log_q.exp(), (log_p - log_q).argsort(-1)
        mass = q.gather(-1, order)
        kept = torch.minimum((1 - level - (mass.cumsum(-1) - mass)).clamp(min=0), mass)
        share = torch.where(mass > 0, kept / mass, 0.0) / (1 - level)
        return _reweighted(torch.zeros_like(q).scatter(-1, order, share))

    return Between(make)


def entropic_risk(mu: float) -> Generator:
    """``(1 / mu) log E_q[e^(mu Z)]``, ``Z = log q - log pi``; towards 0 it is KL(q‖pi).

    It is the mean of Z under shares ``s ~ e^(mu Z)``, less their own KL to q over ``mu``; the shares are at their maximum, so that the
    gradient does not see them move.

    Source: Ra-DPO 2505.20359.
    """

    def make(log_p: Tensor, log_q: Tensor) -> Generator:
        z = log_q - log_p
        log_s = mu * z - (log_q + mu * z).logsumexp(-1, keepdim=True)
        s = log_s.exp()
        return _reweighted(s, s * log_s / mu)

    return Between(make)


@dataclass(frozen=True)
class _Transport(OfWhole):
    """Entropic optimal transport between next-token distributions: ``min <P, C> + eps sum P log P`` over plans P of mass pi and q.

    ``C`` is the Euclidean distance of the tokens' rows in ``table``; the bucket of all other tokens is as far from each token as the
    farthest two are from each other. The slope is the potential ``f = eps log u`` of Sinkhorn's iteration, the first variation with pi.
    """

    eps: float
    rounds: int
    cost: Tensor | None = None

    def among(self, ids: Tensor | None, table: Tensor | None) -> Generator:
        if table is None:
            raise ModelError(
                "Wasserstein measures distances of tokens in the anchor's output layer, and this anchor gives log-probs alone: use one of "
                "type: Frozen."
            )
        rows = table.float()[None] if ids is None else table[ids].float()
        cost = torch.cdist(rows, rows)
        if ids is not None:
            n, k = ids.shape
            farthest = cost.amax((1, 2))[:, None, None].expand(n, k + 1, k + 1).clone()
            farthest[:, :k, :k] = cost
            farthest[:, k, k] = 0
            cost = farthest
        return _Transport(self.eps, self.rounds, cost)

    def at(self, log_p: Tensor, log_q: Tensor) -> Generator:
        assert self.cost is not None
        near, g = self.cost.to(log_p.dtype) / -self.eps, torch.zeros_like(log_q)
        for _ in range(self.rounds):
            f = self.eps * (log_p - (near + g[:, None] / self.eps).logsumexp(-1))
            g = self.eps * (log_q - (near + f[:, :, None] / self.eps).logsumexp(1))
        return Formula(lambda a: f + (-a).exp() * g, lambda a: f)


def transport(eps: float, rounds: int) -> Generator:
    """A Wasserstein distance between next-token distributions, in the metric of the output layer's rows."""
    return _Transport(eps, rounds)


COLLISION: Generator = Between(lambda log_p, log_q: Formula(lambda a: log_p.exp(), torch.zeros_like))  # sum_v pi_v^2


def generator(f: str | Generator, parameter: float | None) -> Generator:
    """The divergence by name, or an object of its own.

    Raises:
        ConfigError: unknown name, or a parameter missing, not wanted, or outside its domain.
    """
    if not isinstance(f, str):
        return f
    if f in TABLE:
        if parameter is not None:
            raise ConfigError(f"divergence {f!r} has no parameter; found {parameter}.")
        return TABLE[f]
    if f not in PARAMETRIC:
        raise ConfigError(
            f"there is no divergence {f!r}; there are {', '.join([*TABLE, *PARAMETRIC])}, or an object with "
            "`value` and `slope`."
        )
    make, valid, domain = PARAMETRIC[f]
    if parameter is None or not valid(parameter):
        raise ConfigError(f"divergence {f!r} needs `parameter` {domain}; found {parameter}.")
    return make(parameter)


def of_samples(f: str | Generator, parameter: float | None, what: str) -> Generator:
    """The divergence, for a part that sees single tokens.

    Raises:
        ConfigError: it is one of whole distributions; as :func:`generator`.
    """
    found = generator(f, parameter)
    if found.whole:
        raise ConfigError(
            f"{what}: {label(f, parameter)} is a divergence of whole next-token distributions, of which single samples say nothing. Use "
            f"{{type: FullDivergence, f: ...}}."
        )
    return found


def label(f: str | Generator, parameter: float | None) -> str:
    """The divergence's name in metrics."""
    name = f if isinstance(f, str) else f.label
    return name if parameter is None else f"{name}{parameter:g}"


def importance(new: New, b: Batch, kind: str, cap: float | None, floor: float | None) -> PerToken:
    """``pi / mu``, without gradient: of the token, or of the sequence up to and including the token (its prefix product).

    ``cap`` truncates; with ``floor`` weights outside ``[floor, cap]`` become 0 instead.
    """
    if kind == "none":
        return torch.ones_like(new.logp)
    r = new.logp.detach() - b.logp["behav"]
    if kind == "sequence":
        r = b.seq_cumsum(r)
    w = r.clamp(-BOUND, BOUND).exp()
    if floor is not None:
        return w * ((w >= floor) & (w <= (math.inf if cap is None else cap)))
    return w if cap is None else w.clamp(max=cap)


def by_score(value: PerToken, slope: PerToken, new: New) -> PerToken:
    """A cost that shows ``value`` and whose gradient is ``slope`` times the score; both are constants to autograd."""
    return value.detach() + slope.detach() * (new.logp - new.logp.detach())


@dataclass(frozen=True)
class Divergence(Term):
    """An f-divergence ``D_f(pi‖anchor)`` whose expected gradient is exact under the sampling policy.

    ``form: score`` has the coefficient ``sg(w f'(u))`` on the score. ``form: differentiable`` is the derivative of ``w f(u) / u``, as
    RPG has it: per token the same, and with ``importance: sequence`` a token also gets the values of the later ones, whose weights it is
    part of. The logged value is ``w f(u) / u``.

    Attributes:
        f: a name of the table, or an object with ``value`` and ``slope``. The default is the reverse KL, by its quieter unnormalised form.
        parameter: of alpha, tsallis, generalised_js, skew_*.
        importance: ``token`` (default), ``none`` (exact only on-policy), or ``sequence`` (prefix product).
        cap, floor: truncate or mask the importance weight; biased, smaller variance.

    Source: f-DPG 2302.08215 (the identity); RPG 2505.17508, section 3 (the table); DPH-RL 2509.07430 (on anchor rows).
    """

    f: str | Generator = "reverse_ukl"
    anchor: Anchor = "ref"
    parameter: float | None = None
    form: Literal["score", "differentiable"] = "score"
    importance: Literal["none", "token", "sequence"] = "token"
    cap: Positive | None = None
    floor: NonNegative | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        of_samples(self.f, self.parameter, "Divergence")
        check_geometric(self.anchor, self.f in ("reverse_kl", "reverse_ukl"), f"Divergence {self.f}")

    @property
    def anchors(self) -> tuple[Anchor, ...]:
        return (self.anchor,)

    @property
    def needs(self) -> frozenset[str]:
        return anchor_needs(self.anchor) | ({"behav"} if self.importance != "none" else set())

    @property
    def name(self) -> str:
        return f"{label(self.f, self.parameter)}({anchor_name(self.anchor)})"

    def __call__(self, new: New, b: Batch) -> Tensor:
        g = generator(self.f, self.parameter)
        a = (new.logp.detach() - anchor_log_prob(self.anchor, b)).clamp(-BOUND, BOUND)
        w = importance(new, b, self.importance, self.cap, self.floor)
        value, slope = w * g.value(a), w * g.slope(a)
        if self.form == "differentiable" and self.importance == "sequence":
            slope = slope + (b.reward_to_go(value.double()) - value).to(slope.dtype)
        return by_score(value, slope, new)


@dataclass(frozen=True)
class KL(Term):
    """Schulman's estimators as people put them into losses; ``log u = log pi - log anchor``, samples from pi.
    ``estimator`` and ``importance`` are a row of the table.

    ==========  ==========  ==============================================  ===========================================
    estimator   importance  cost                                            expected gradient (on-policy)
    ==========  ==========  ==============================================  ===========================================
    k2          none        (log u)^2 / 2                                   KL(pi‖anchor)
    k2          token       sg(w) (log u)^2 / 2                             KL(pi‖anchor), off-policy too
    k3          none        1/u - 1 + log u                                 **KL(anchor‖pi)**: GRPO as published
    k3          token       w (1/u - 1 + log u), w differentiable           KL(pi‖anchor), off-policy too
    k1          token       w log u, w differentiable                       KL(pi‖anchor), off-policy too; noisier
    k1          none        refused: its expected gradient is zero
    k1+, k3+    none        value of k1, k3, gradient of k2                 KL(pi‖anchor)
    kF          none        v log v - v + 1, v = 1/u                        none that has a name: E[-v log v score]
    kF          token       w (v log v - v + 1), w differentiable           KL(anchor‖pi), off-policy too
    ==========  ==========  ==============================================  ===========================================

    kF is an unbiased value of KL(anchor‖pi) on samples of pi; differentiating it alone, as RAPO does, gives another gradient.

    Source: exact enumeration in the tests; Tang and Munos 2506.09477; Liu et al. 2510.01555;
    Comedy of Estimators 2512.21852; RAPO 2510.03865 (kF).
    """

    estimator: Literal["k1", "k2", "k3", "k1+", "k3+", "kF"] = "k3"
    anchor: Anchor = "ref"
    importance: Literal["none", "token"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator == "k1" and self.importance == "none":
            raise ConfigError(
                "KL(estimator='k1') in a loss has expected gradient zero: it would regularise nothing. Use 'k2' (gradient of "
                "KL(pi‖ref)), 'k3' (gradient of KL(ref‖pi)), importance: token, or put k1 into the reward: "
                "reward_penalties: [{type: KLReward}]."
            )
        if self.estimator in ("k1+", "k3+") and self.importance != "none":
            raise ConfigError(
                f"KL(estimator={self.estimator!r}) has no importance weight; use k2 or k3 with importance: token."
            )
        reverse = self.estimator != "kF" and (self.estimator != "k3" or self.importance == "token")
        check_geometric(self.anchor, reverse, f"KL {self.estimator}")

    @property
    def anchors(self) -> tuple[Anchor, ...]:
        return (self.anchor,)

    @property
    def needs(self) -> frozenset[str]:
        return anchor_needs(self.anchor) | ({"behav"} if self.importance != "none" else set())

    @property
    def name(self) -> str:
        return f"KL_{self.estimator}({anchor_name(self.anchor)})"

    def __call__(self, new: New, b: Batch) -> Tensor:
        a = new.logp - anchor_log_prob(self.anchor, b)
        k2 = 0.5 * a**2
        bounded = a.clamp(-BOUND, BOUND)
        k3 = torch.expm1(-bounded) + bounded
        kF = 1 - torch.exp(-bounded) * (1 + bounded)
        # Beyond the bound they go on linearly with the slope that they have there, instead of standing still.
        k3 = k3 - torch.expm1(-bounded.detach()) * (a - bounded)
        kF = kF + (bounded * torch.exp(-bounded)).detach() * (a - bounded)
        if self.importance == "none":
            straight = k2 - k2.detach()
            return {"k2": k2, "k3": k3, "k1+": straight + a.detach(), "k3+": straight + k3.detach(), "kF": kF}[
                self.estimator
            ]
        w = importance(new, b, "token", None, None)
        if self.estimator == "k2":
            return w * k2
        value, slope = {  # d/da (w value) = w slope: reverse KL, its unnormalised form, and the forward KL
            "k1": (a, a + 1),
            "k3": (k3, a),
            "kF": (kF, -torch.expm1(-bounded)),
        }[self.estimator]
        return by_score(w * value, w * slope, new)
