"""Distillation losses that are no f-divergence: what they make of a token depends on both whole next-token distributions.

``pi`` is the policy (the student), ``q`` its anchor (the teacher). Most are generators, ``{type: FullDivergence, f: {type: AKL}, anchor:
teacher}``: a function ``D`` of the two distributions whose slope is ``dD / dpi_v``, so that value and gradient are made chunk by chunk like
those of any divergence. What they weigh tokens by (gaps, entropies, the choice of tokens) is a constant to the gradient, as in the
released code of all of them.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rlkit.bounds import Bound, Count, NonNegative, Positive, Share
from rlkit.errors import ConfigError
from rlkit.objective import On
from rlkit.objective.divergences import TABLE, Formula, Generator, OfWhole
from rlkit.objective.full_vocab import EXTREME, WholeVocabulary
from rlkit.types import Batch, New, PerToken


@dataclass(frozen=True)
class Directions(OfWhole):
    """Base of ``w_f KL(q‖pi) + w_r KL(pi‖q)`` with weights of each token: override :meth:`weights`."""

    @abstractmethod
    def weights(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """``w_f`` and ``w_r``, ``[n, 1]``, of policy ``log_p`` and anchor ``log_q``, ``[n, V]``."""

    def at(self, log_p: Tensor, log_q: Tensor) -> Generator:
        w_f, w_r = self.weights(log_p, log_q)
        forward, reverse = TABLE["forward_ukl"], TABLE["reverse_ukl"]
        return Formula(
            lambda a: w_f * forward.value(a) + w_r * reverse.value(a),
            lambda a: w_f * forward.slope(a) + w_r * reverse.slope(a),
        )


@dataclass(frozen=True)
class AKL(Directions):
    """Adaptive KL: forward where the two differ among the anchor's likely tokens, reverse where they differ among the others.

    The ``head`` are the likeliest tokens of q whose mass together is at most ``mass``, and always the first. ``g_h`` and ``g_t`` are
    ``sum |q - pi|`` over it and over the rest; ``w_f = g_h / (g_h + g_t)``, ``w_r = g_t / (g_h + g_t)``. Both KLs are over all tokens.

    Source: AKL 2404.02657 (the released code; its port in ROLL sorts the other way round, STAR's counts the crossing token to the head).
    """

    mass: Share = 0.5

    @property
    def label(self) -> str:
        return f"akl{self.mass:g}"

    def weights(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        log_sorted, order = log_q.sort(dim=-1, descending=True, stable=True)
        q = log_sorted.exp_()
        gap = (log_p.gather(-1, order).exp_() - q).abs_()
        head = q.cumsum(-1) <= self.mass
        head[:, 0] = True
        g_h, both = (gap * head).sum(-1, keepdim=True), gap.sum(-1, keepdim=True)
        w_f = g_h / (both + 1e-8)
        return w_f, (both - g_h) / (both + 1e-8)


@dataclass(frozen=True)
class BDKD(Directions):
    """Balanced divergences: the forward KL counts ``delta`` times where the anchor is less certain than the policy, else the reverse one.

    ``H(q) > H(pi)``: ``w_f = delta, w_r = 1``; else ``w_f = 1, w_r = delta``. The method is of two networks that learn from each other;
    this is its half for a teacher that stays.

    Source: BD-KD 2212.12965 (weights as in ABKD's adaptation to language models, which has delta 3; the paper's comments have 2).
    """

    delta: Positive = 2.0

    @property
    def label(self) -> str:
        return f"bdkd{self.delta:g}"

    def weights(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        h_p, h_q = (-(x.exp() * x).sum(-1, keepdim=True) for x in (log_p, log_q))
        w_f = torch.where(h_q > h_p, self.delta, 1.0).to(h_p.dtype)
        return w_f, torch.where(h_q > h_p, 1.0, self.delta).to(h_p.dtype)


Order = Annotated[float, Bound(at_least=-1, at_most=2)]


@dataclass(frozen=True)
class AlphaBeta(OfWhole):
    """The alpha-beta divergence, ``-1/(a b) sum_v [q^a pi^b - a/(a+b) q^(a+b) - b/(a+b) pi^(a+b)]`` with ``a = alpha, b = beta``.

    ``alpha`` weighs tokens by how far the two are apart, ``beta`` those that the policy is sure of. KL(q‖pi) at (1, 0), KL(pi‖q) at
    (0, 1), the squared Hellinger distance (twice ours) at (0.5, 0.5); on the line ``a + b = 1`` it is an f-divergence, elsewhere it also
    depends on how likely tokens are: per token ``q^(a+b) G(u)`` with ``G(u) = [(u^(a+b) - 1)/(a+b) - (u^b - 1)/b] / a``, ``u = pi / q``,
    whose limits are those of the definition.

    Source: ABKD 2505.04560 (the released code; its published (0.2, 0.7) and (0.1, 0.8)).
    """

    # Many tokens as one are another divergence, but for a + b = 1.
    coarse: ClassVar[bool] = False

    alpha: Order = 0.2
    beta: Order = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.alpha + self.beta <= 2:
            raise ConfigError(
                f"AlphaBeta: alpha + beta is {self.alpha + self.beta:g}; it must be in [-1, 2], beyond which powers leave float32."
            )

    @property
    def label(self) -> str:
        return f"ab{self.alpha:g},{self.beta:g}"

    def at(self, log_p: Tensor, log_q: Tensor) -> Generator:
        alpha, beta, both = self.alpha, self.beta, self.alpha + self.beta
        base = (both - 1) * log_q  # per token it is q^(a+b) G(u), over pi = q u

        def g(a: Tensor) -> Tensor:
            if abs(alpha) >= NEAR:
                return (power(a, both) - power(a, beta)) / alpha
            return (a * (beta * a).exp() - power(a, beta)) / beta if abs(beta) >= NEAR else 0.5 * a**2

        # what a power of e^EXTREME may be multiplied with
        room, under = 80.0 - EXTREME * max(0.0, -beta, -both), 80.0 - EXTREME * max(0.0, -alpha)
        return Formula(
            lambda a: bounded_exp(base - a, room) * g(a),
            lambda a: bounded_exp(base + (beta - 1) * a, under) * power(a, alpha),
        )


def bounded_exp(x: Tensor, most: float = 80.0) -> Tensor:
    """``e^x``, at most ``e^most``, a float32: for what is multiplied with a probability that vanishes faster."""
    return x.clamp(max=most).exp()


NEAR = 1e-6  # a power this near to 0 is taken as its limit


def power(a: Tensor, c: float) -> Tensor:
    """``(u^c - 1) / c`` of ``a = log u``; at 0 its limit ``a``."""
    return a if abs(c) < NEAR else torch.expm1(c * a) / c


@dataclass(frozen=True)
class CKD(OfWhole):
    """Constrained distillation from the anchor's ``k`` likeliest tokens I: ``sum_I q_v (log q_v - log pi_v) + lam sum_J pi_v``.

    J are those of the policy's ``m`` likeliest tokens that are not in I: a truncated forward KL alone hardly pushes down what the
    policy likes and the anchor does not have. Probabilities are of the whole vocabulary, so that the first part may be negative.

    Source: STAR 2602.03022, CKD (the released patch).
    """

    coarse: ClassVar[bool] = False

    k: Count = 100
    m: Count = 100
    lam: NonNegative = 10.0

    @property
    def label(self) -> str:
        return f"ckd{self.k},{self.m},{self.lam:g}"

    @property
    def reads(self) -> int:
        return self.k

    def at(self, log_p: Tensor, log_q: Tensor) -> Generator:
        def likeliest(x: Tensor, count: int) -> Tensor:
            return torch.zeros_like(x).scatter_(-1, x.topk(min(count, x.shape[-1]), dim=-1).indices, 1.0)

        inside = likeliest(log_q, self.k)
        outside = likeliest(log_p, self.m) * (1 - inside) * self.lam
        return Formula(lambda a: outside - inside * a * (-a).exp(), lambda a: outside - inside * (-a).exp())


@dataclass(frozen=True)
class DPKD(OfWhole):
    """Each token as a preference: ``-log sigmoid(beta [log pi(i)/pi(j) - log q(i)/q(j)])``, i the anchor's likeliest token, j the policy's.

    Where both are the same token it is log 2, without a gradient.

    Source: DPKD 2406.19774 (the released code, which compares tokens; the paper prefers the teacher's whole responses to the student's:
    ``{type: DPO, on: pairs, anchor: teacher}``).
    """

    coarse: ClassVar[bool] = False

    beta: Positive = 0.1

    @property
    def label(self) -> str:
        return f"dpkd{self.beta:g}"

    def at(self, log_p: Tensor, log_q: Tensor) -> Generator:
        i, j = (x.argmax(-1, keepdim=True) for x in (log_q, log_p))
        q_i, p_j, none = log_q.gather(-1, i).exp(), log_p.gather(-1, j).exp(), torch.zeros_like(log_q)

        def margin(a: Tensor) -> Tensor:
            return self.beta * (a.gather(-1, i) - a.gather(-1, j))

        def p_i(a: Tensor) -> Tensor:
            return q_i * a.gather(-1, i).exp()

        def value(a: Tensor) -> Tensor:  # all of it stands at i, over pi_i
            return none.scatter(-1, i, softplus(-margin(a)) / p_i(a))

        def slope(a: Tensor) -> Tensor:
            g = self.beta * torch.sigmoid(-margin(a))
            return none.scatter(-1, i, -g / p_i(a)).scatter_add_(-1, j, g / p_j)

        return Formula(value, slope)


@dataclass(frozen=True)
class SinKD(OfWhole):
    """Transport between what the policy and what the anchor say at all tokens of a response: ``sum_ij P_ij W_ij``, the share of token i.

    ``W_ij = sum_v |pi_i(v) - q_j(v)|``, of distributions that a ``temperature`` flattens, and P is ``exp(-W / eta)``, ``rounds`` times
    divided by the sums of its rows and then of its columns. P is a constant to the gradient; the released code differentiates through
    the rounds. Its batch is a micro-batch; here it is at most ``tokens`` of one response, so that a loss does not depend on how batches are
    cut. Each block costs ``tokens^2`` times the vocabulary.

    Source: SinKD 2402.17110 (the released code's GPT-Neo loss but for these two; its factor 0.0008 belongs into ``coef``).
    """

    coarse: ClassVar[bool] = False

    temperature: Positive = 2.0
    eta: Positive = 0.1
    rounds: Count = 20
    tokens: Count = 256

    @property
    def label(self) -> str:
        return f"sinkd{self.temperature:g},{self.eta:g}"

    @property
    def joint(self) -> int:
        return self.tokens

    def at(self, log_p: Tensor, log_q: Tensor) -> Generator:
        q = (log_q / self.temperature).softmax(-1)
        plan = torch.softmax(torch.cdist((log_p / self.temperature).softmax(-1), q, p=1) / -self.eta, -1)
        plan = plan / plan.sum(0, keepdim=True)
        for _ in range(self.rounds - 1):
            plan = plan / plan.sum(1, keepdim=True)
            plan = plan / plan.sum(0, keepdim=True)
        i, log_q = log_q.argmax(-1, keepdim=True), log_q.clone()
        none, likely = torch.zeros_like(log_q), log_q.gather(-1, i)

        def flat(a: Tensor) -> Tensor:
            return ((a + log_q) / self.temperature).softmax(-1)

        def value(a: Tensor) -> Tensor:  # all of it stands at the anchor's likeliest token, over pi of that
            cost = (plan * torch.cdist(flat(a), q, p=1)).sum(-1, keepdim=True)
            return none.scatter(-1, i, cost / (likely + a.gather(-1, i)).exp())

        def slope(a: Tensor) -> Tensor:
            p, h = flat(a), torch.zeros_like(a)
            for j in range(len(q)):
                h += plan[:, j : j + 1] * (p - q[j]).sign()
            return p * (h - (p * h).sum(-1, keepdim=True)) / self.temperature * bounded_exp(-a - log_q)

        return Formula(value, slope)


@dataclass(frozen=True)
class _Others(OfWhole):
    """``KL(q'‖pi')`` of both distributions without the token that stands in the text: ``q' = q / (1 - q_y)`` over the other tokens.

    With ``b`` the KL of the two-way choice between that token and the rest, ``KL(q‖pi) = b + (1 - q_y) KL(q'‖pi')``.

    Source: Decoupled Knowledge Distillation 2203.08679 (its non-target part).
    """

    column: Tensor | None = None

    def with_token(self, column: Tensor) -> Generator:
        return _Others(column)

    def at(self, log_p: Tensor, log_q: Tensor) -> Generator:
        assert self.column is not None, "only terms on a text know which token stands there"
        kept = torch.ones_like(log_q).scatter_(-1, self.column, 0.0)
        rest_q = log_q.masked_fill(kept == 0, -torch.inf)
        left_q = rest_q.logsumexp(-1, keepdim=True)  # log(1 - q_y), from the others
        left_p = log_p.masked_fill(kept == 0, -torch.inf).logsumexp(-1, keepdim=True)

        def value(a: Tensor) -> Tensor:
            left = (rest_q + a).logsumexp(-1, keepdim=True)  # log(1 - pi_y)
            return kept * bounded_exp(-a - left_q) * (left - left_q - a)

        return Formula(value, lambda a: kept * (bounded_exp(-left_p) - bounded_exp(-a - left_q)))


def beside() -> Generator:
    """The KL among the tokens beside the one in the text; for terms that know it (``full_divergence(..., target=...)``)."""
    return _Others()


@dataclass(frozen=True, kw_only=True)
class ATKD(WholeVocabulary):
    """Adaptive teaching: all of a token's KL where the teacher is unsure, the tokens beside the text's alone where it is not.

    ``KL(q‖pi)`` has two parts: ``b`` for the text's token against all others, and ``o = KL(q'‖pi')`` among the others, which the KL
    multiplies by ``1 - q_y``. Of the ``share`` of tokens with the largest ``1 - q_y`` the cost is ``b + o``, of the easy rest ``o``; the
    loss is ``(1 - easy)`` times the mean over the first plus ``easy`` times the mean over the rest.

    Tokens are compared over the whole batch of an optimizer step.

    Source: ATKD 2402.11890 (from memory: the split, the dropped factor, share 0.5 and easy 0.2; not checked against the paper).
    """

    linear: ClassVar[bool] = False

    share: Share = 0.5
    easy: Share = 0.2
    anchor: Literal["ref", "teacher"] = "teacher"
    on: On = "dataset"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduce != "token":
            raise ConfigError(f"ATKD.reduce is {self.reduce!r}; its means are over tokens: leave it out.")

    @property
    def generator(self) -> Generator:
        return beside()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.anchor, f"{self.anchor}_full"})

    @property
    def name(self) -> str:
        return f"ATKD({self.anchor})"

    def mark(self, b: Batch, generator: torch.Generator) -> PerToken:
        """The weight of each token, negative for the easy ones."""
        order = b.logp[self.anchor].argsort(stable=True)  # least likely, so most unsure, first
        hard = int(self.share * b.N)
        weight = torch.zeros_like(b.logp[self.anchor])
        weight[order[:hard]] = (1 - self.easy) * b.N / max(1, hard)
        weight[order[hard:]] = -self.easy * b.N / max(1, b.N - hard)
        return weight

    def __call__(self, new: New, b: Batch) -> Tensor:
        weight = b.marks[self.name]
        return weight.abs() * new.full[self.name] + weight.clamp(min=0) * two_way(b.logp[self.anchor], new.logp)


def two_way(log_q_N: Tensor, log_p_N: Tensor) -> PerToken:
    """``KL`` of the choice between a token and all others, ``q_y log(q_y / pi_y) + (1 - q_y) log((1 - q_y) / (1 - pi_y))``."""

    def rest(x: Tensor) -> Tensor:
        bounded = x + (x.clamp(max=-1e-6) - x).detach()  # the value is bounded, the gradient stays
        return torch.log(-torch.expm1(bounded))

    q = log_q_N.exp()
    return q * (log_q_N - log_p_N) + (1 - q) * (rest(log_q_N) - rest(log_p_N))
