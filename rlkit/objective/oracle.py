"""What an objective really optimises, by exact enumeration: the engine behind ``rlkit check`` and ``docs/regularizers.md``.

A :class:`~rlkit.objective.world.World` is small enough that every response can be summed over with its exact probability.
:func:`examine` takes a term as the loss takes it, computes its expected gradient, and looks for the quantity whose gradient that is.
Nothing here knows how a term is implemented: a user's own class is examined in the same way. A coefficient that differs between
responses is part of it as a reduction is: what a term follows is said without it, and how far it bends that beside it. A loss of pairs
is a function of both halves and follows no such quantity: it is led to its minimum instead (:mod:`rlkit.objective.comparisons`).

An expected gradient may be zero. That is never judged by a comparison with other zeros, which are rounding errors like itself, but against
the size of one response's gradient (:class:`Expected`). Such a term is *noise only*: it adds the noise of single responses to every step
and drift to no place, as k1 in a loss does. A term that follows a quantity which is itself at its minimum here, as a KL to the sampling
policy is on-policy, is no such term; off-policy it shows what it follows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlkit.errors import ConfigError
from rlkit.objective import Reduce, Term, is_marking, loss
from rlkit.objective.anchors import anchor_name
from rlkit.objective.coefficients import Constant, as_coefficient
from rlkit.objective.comparisons import NO_REFERENCE, against, entropic, leads, pull
from rlkit.objective.divergences import KL, TABLE, Divergence, Generator, generator, label
from rlkit.objective.full_vocab import FullDivergence, WholeVocabulary
from rlkit.objective.labelled import KLDO
from rlkit.objective.losses import NLL, Entropy, ValueMSE
from rlkit.objective.penalties import DivergenceReward, KLReward, Penalty
from rlkit.objective.preference import DPO, IPO, PROPER, WPO, Pairwise, SimPO
from rlkit.objective.world import Sampled as Sampled
from rlkit.objective.world import World as World
from rlkit.objective.world import words

PG = "the policy gradient of the reward"
SUPERVISED = "supervised learning of the sampled responses"
UNLEARNING = "moving away from the sampled responses"
ZERO = 1e-6  # of one response's gradient: a mean below it is rounding (1e-15 in float64; a user's term may compute in float32)


def response_weights(w: World, part: Term | Penalty) -> Tensor | None:
    """How a coefficient weighs responses against each other, ``[S]`` of mean 1; None if it treats those of one prompt alike.

    It sees the responses of the world as the group of one prompt, each once, and the best and the worst of them as a pair.
    """
    b = w.batch()
    b = b.replace(pairs=torch.stack([b.reward.argmax(), b.reward.argmin()])[None])
    if isinstance(part, Penalty) and part.placement == "reward":  # it comes before advantages
        b = b.replace(adv=None)
    scale = as_coefficient(part.coef).per_sequence(b)
    if scale is None or bool((scale == scale[0]).all()):
        return None
    return scale / (w.whole(w.mu).exp() * scale).sum()


@dataclass(frozen=True)
class Expected:
    """An expected gradient, and the root of the mean square of one response's: what the mean is small against."""

    mean: Tensor
    single: float

    @property
    def zero(self) -> bool:
        return float(self.mean.norm()) <= ZERO * self.single

    @property
    def noise(self) -> float:
        """``sqrt(E|g|^2 - |E g|^2) / |E g|``."""
        size = float(self.mean.norm())
        return math.inf if self.zero else math.sqrt(max(0.0, self.single**2 - size**2)) / size


def term_gradient(w: World, term: Term, reduce: Reduce | None = None, scale_S: Tensor | None = None) -> Expected:
    """The term's expected gradient; ``scale_S`` is what its coefficient makes of each response."""
    b, term = w.batch(), dataclasses.replace(term, reduce=reduce or term.reduce, on="policy")
    b = b.replace(cols={name[4:]: torch.zeros_like(b.reward) for name in term.needs if name.startswith("col:")})
    if is_marking(term):  # marks are of whole batches; here no token has one
        b = b.replace(marks={term.name: torch.zeros(b.N, dtype=b.reward.dtype)})
    p, weight = w.whole(w.mu).exp(), w.weights(term.reduce, term.const) * (1.0 if scale_S is None else scale_S)
    new = w.new([term] if isinstance(term, WholeVocabulary) else [])
    grads = []
    for s in range(len(w.responses)):
        one = b.replace(norm=torch.where(torch.arange(len(p)) == s, weight / p, 0.0)[None])
        value, _ = loss((term,), new, one, (1.0,))
        grads.append(torch.autograd.grad(value, w.logits, retain_graph=True)[0])
    return _expected(torch.stack(grads), p)


def penalty_gradient(w: World, penalty: Penalty, scale_S: Tensor | None = None) -> Expected:
    """The same for a penalty, through ``-A log pi`` with no other reward."""
    b = w.batch()
    cost = penalty(b) * (1.0 if scale_S is None else scale_S[b.seq])
    # The gradient of an on-policy loss: off-policy a policy-gradient loss brings its own importance weight, here the exact one.
    adv = (
        -(b.reward_to_go(cost) if penalty.placement == "reward" else cost) * (w.at(w.pi()) - w.at(w.mu)).exp().detach()
    )
    p = w.whole(w.mu).exp()
    logp, grads = w.at(w.pi()), []
    for s in range(len(p)):
        here = w.seq == s
        grads.append(torch.autograd.grad((-adv[here] * logp[here]).sum(), w.logits, retain_graph=True)[0])
    return _expected(torch.stack(grads), p)


def _expected(grads: Tensor, p: Tensor) -> Expected:
    return Expected(torch.einsum("s,sij->ij", p, grads), math.sqrt(float((p * grads.pow(2).sum((1, 2))).sum())))


@dataclass(frozen=True)
class Quantity:
    """Something a term may follow: its name, its exact gradient, and in words."""

    key: str
    gradient: Tensor


def quantities(
    w: World, anchors: Iterable[Any], weight: Tensor, extra: Sequence[tuple[str, Generator]] = ()
) -> list[Quantity]:
    """Everything that is known, with tokens weighed as the term's reduction does.

    ``D per token`` freezes prefixes, ``D of responses`` is the KL of whole responses, ``D summed over tokens`` is ``E[sum_t D_t]``.
    """
    pi, mu = w.pi(), w.mu
    reached = w.whole(pi).exp() * (weight / w.whole(mu).exp())
    visited, advantage = reached.detach(), w.reward - (w.whole(mu).exp() * w.reward).sum()
    token_weight = (w.at(pi) - w.at(mu)).exp()
    found = [
        Quantity(PG, w.gradient(-(visited * advantage * w.whole(pi)).sum())),
        Quantity(f"{PG}, tokens weighed one by one", w.gradient(-((weight * advantage)[w.seq] * token_weight).sum())),
        Quantity("the entropy, upwards", w.gradient((weight[w.seq] * (pi.exp() * pi).sum(-1)[w.rows]).sum())),
        Quantity(SUPERVISED, w.gradient(-(weight[w.seq] * w.at(pi)).sum())),
        Quantity(UNLEARNING, w.gradient((weight[w.seq] * w.at(pi)).sum())),
    ]
    for anchor in anchors:
        name = anchor_name(anchor)
        for f_name, f in [*TABLE.items(), *extra]:
            if f_name in ("reverse_ukl", "forward_ukl"):  # the same divergence of normalised policies
                continue
            d = w.per_prefix(f, anchor)
            found.append(Quantity(f"{words(f_name, name)} per token", w.gradient((weight[w.seq] * d[w.rows]).sum())))
            found.append(
                Quantity(
                    f"{words(f_name, name)} per token, prefixes as the policy visits them",
                    w.gradient((visited[w.seq] * d[w.rows]).sum()),
                )
            )
            total = "of responses" if f_name == "reverse_kl" else "summed over tokens, with credit to earlier ones"
            found.append(Quantity(f"{words(f_name, name)} {total}", w.gradient((reached[w.seq] * d[w.rows]).sum())))
    return found


def claim(part: Term | Penalty) -> str | None:
    """What a part's name says that it is; None for parts whose name says nothing (a user's own loss)."""
    if isinstance(part, KL):
        return f"{words('forward_kl' if part.estimator == 'kF' else 'reverse_kl', anchor_name(part.anchor))} per token"
    if isinstance(part, KLReward):
        how = "per token" if part.credit == "token" else "of responses"
        return f"{words('reverse_kl', anchor_name(part.anchor))} {how}"
    if isinstance(part, FullDivergence) and type(part).__call__ is not FullDivergence.__call__:
        return None  # it reads whole distributions for a cost of its own
    if isinstance(part, Divergence | DivergenceReward | FullDivergence):
        name, anchor = label(part.f, part.parameter), anchor_name(part.anchor)
        sequence = (isinstance(part, DivergenceReward) and part.credit == "sequence") or (
            isinstance(part, FullDivergence) and part.level == "sequence"
        )
        kl = name in ("reverse_kl", "reverse_ukl")
        how = ("of responses" if kl else "summed over tokens, with credit to earlier ones") if sequence else "per token"
        return f"{words(name, anchor)} {how}"
    if isinstance(part, Entropy):
        return "the entropy, upwards"
    if isinstance(part, NLL):
        return SUPERVISED
    return PG if "adv" in part.needs else None


@dataclass(frozen=True)
class Finding:
    """What enumeration says about one part under one kind of sampling.

    Attributes:
        claims: what its name says. follows: the quantity whose gradient it follows (under ``reduce: sum`` or its own), or None.
        cosine, norm: its expected gradient against the exact one of ``claims`` (or ``follows``), both under the part's own reduction.
        noise: the standard deviation of one response's gradient over the norm of the mean.
        reduction: cosine between its gradient under its own reduction and under ``reduce: sum``.
        coefficient: what weighs the responses of a prompt differently, if its coefficient does. bend: cosine between its gradient with that
            coefficient and with a constant one.
        in_reward: it is a penalty: inside a policy gradient, not beside it.
        zero: its expected gradient is zero.
        nothing: why that makes it noise or nothing at all; None where it is at a minimum, as a KL to the policy that samples is on-policy.
        measured_only: its coefficient is 0: it is logged and changes nothing.
        problem: why it was not examined.
        pull: of a loss of pairs or labels, cosines of what labels that say nothing leave of its gradient to that of KL(pi‖ref) of
            responses, on the policy's own responses and on those of another one. ``follows`` is then what its minimum weighs, ``cosine``
            the correlation of the reward with that, ``norm`` the divergence's coefficient; ``nearest`` is what comes nearest where
            nothing fits.
    """

    part: str
    sampled: Sampled
    claims: str | None = None
    follows: str | None = None
    cosine: float = math.nan
    norm: float = math.nan
    noise: float = math.nan
    reduction: float = 1.0
    coefficient: str | None = None
    bend: float = 1.0
    acknowledged: bool = False
    in_reward: bool = False
    zero: bool = False
    nothing: str | None = None
    measured_only: bool = False
    problem: str | None = None
    pull: tuple[float, float] | None = None
    nearest: str | None = None

    @property
    def honest(self) -> bool:
        """Whether it does what its name says. A policy gradient (or a penalty in one) is exact on-policy, near it elsewhere: its trade."""
        return self.nothing is None and (
            self.claims is None
            or self.follows == self.claims
            or ((self.claims == PG or self.in_reward) and self.sampled != "on-policy")
        )

    @property
    def heading(self) -> str:
        """In a few words."""
        if self.pull is not None:
            return self.follows or ("-" if self.nearest is None else f"none (near {self.nearest})")
        return self.follows or ("-" if self.nothing is None else self.nothing.partition(":")[0])

    @property
    def sentence(self) -> str:
        """In plain words."""
        head = f"{self.part}, {self.sampled}: "
        if self.problem is not None:
            return head + self.problem
        if self.pull is not None:
            return head + self._of_verdicts(*self.pull)
        if self.nothing is not None:
            return head + self.nothing + (" Its coefficient is 0: it is only measured." if self.measured_only else "")
        numbers = f"cosine {self.cosine:.3f}, norm {self.norm:.2f}"
        if self.zero:
            text = f"its expected gradient is zero, as that of {self.follows or 'a distance to the policy that samples'} is here"
        elif self.follows is None:
            near = self.claims or "anything that has a name"
            text = f"its expected gradient is not that of {near} ({numbers})"
        elif self.claims is None or self.follows == self.claims:
            text = f"its expected gradient is that of {self.follows}"
        else:
            text = f"its name says {self.claims}; its expected gradient is that of {self.follows} ({numbers} to what the name says)"
        if self.follows is not None and self.reduction < 1 - 1e-6:
            text += (
                f". Its reduction bends it: a token's weight depends on the length of the response (cosine {self.reduction:.3f} to "
                "reduce: sum)"
            )
        if self.coefficient is not None:
            text += f". That is with a constant coefficient: {self.coefficient} weighs responses differently (cosine {self.bend:.3f} to it)"
        return head + text + "."

    def _of_verdicts(self, own: float, foreign: float) -> str:
        if self.follows is not None:
            other = "" if self.claims in (None, self.follows) else f"its name says {self.claims}; "
            text = f"{other}Bradley-Terry labels lead it to the optimum of {self.follows}, with a coefficient of {self.norm:.3g}"
        elif self.claims is not None:
            text = f"its name says {self.claims}; that is not where Bradley-Terry labels lead it (correlation {self.cosine:.3f})"
        elif self.nearest is None:
            text = "it leads to no policy that could be found: noisy labels drive it on without end, or its gradient has no zero"
        else:
            text = f"it leads to the optimum of nothing that has a name; nearest is {self.nearest} (correlation {self.cosine:.4f})"
        return (
            f"{text}. Where labels say nothing, what is left of its gradient has a cosine of {own:.3f} to that of KL(pi‖ref) of responses "
            f"on the policy's own responses, and of {foreign:.3f} on those of another policy, as rows of a file are."
        )


def examine(part: Term | Penalty, sampled: Sampled, seed: int = 0) -> Finding:
    """Compares a term's or penalty's expected gradient with everything that is known; a loss of pairs or labels is led to its minimum."""
    if isinstance(part, Term) and judges(part):
        return _of_judge(part)
    if isinstance(part, Term) and part.whole_groups:
        return Finding(
            part.name,
            sampled,
            problem="it compares the responses of a prompt with each other and is not a sum over responses.",
        )
    if isinstance(part, FullDivergence) and part.generator.joint is not None:
        return Finding(
            part.name,
            sampled,
            problem="it compares the tokens of a response with each other and is not a sum over prefixes.",
        )
    w = World(sampled, seed)
    extra = []
    if isinstance(part, Divergence | DivergenceReward | FullDivergence) and label(part.f, part.parameter) not in TABLE:
        extra = [(label(part.f, part.parameter), generator(part.f, part.parameter))]
    try:
        scale_S = response_weights(w, part)
        if isinstance(part, Penalty):
            own = plain = penalty_gradient(w, part)
            scaled = own if scale_S is None else penalty_gradient(w, part, scale_S)
            weight = w.weights("sum")
        else:
            plain, own = term_gradient(w, part, "sum"), term_gradient(w, part)
            scaled = own if scale_S is None else term_gradient(w, part, scale_S=scale_S)
            weight = w.weights(part.reduce, part.const)
    except Exception as error:  # a user's own term may want what this small world does not have
        return Finding(part.name, sampled, problem=f"it could not be examined here ({type(error).__name__}: {error}).")
    known = {q.key: q.gradient for q in quantities(w, part.anchors, weight, extra)}
    least = ZERO * term_gradient(w, NLL(), "sum").single
    found = Finding(
        part.name,
        sampled,
        claim(part),
        noise=own.noise,
        coefficient=None if scale_S is None else type(part.coef).__name__,
        bend=_cosine(scaled.mean, own.mean),
        acknowledged=part.acknowledge,
        in_reward=isinstance(part, Penalty),
        measured_only=as_coefficient(part.coef) == Constant(0.0),
    )
    if plain.zero or own.zero or (sampled == "on-policy" and _by_length(w, own.mean)):
        minimum = {
            key for key, exact in known.items() if float(exact.norm()) <= least and key not in (SUPERVISED, UNLEARNING)
        }
        return _of_zero(part, found, minimum, plain, own, scaled, seed)
    unreduced = {q.key: q.gradient for q in quantities(w, part.anchors, w.weights("sum"), extra)}
    # Reductions by length bend every sampled form; what a term is shows without them, or, for a cost of whole responses, with its own.
    same = [
        key
        for expected, table in ((plain, unreduced), (own, known))
        for key, exact in table.items()
        if float((expected.mean - exact).norm()) <= 1e-6 * float(exact.norm()) and float(exact.norm()) > least
    ]
    follows = found.claims if found.claims in same else next(iter(same), None)
    target = known.get(found.claims or follows or "")
    if target is None:
        target = max(known.values(), key=lambda g: abs(_cosine(own.mean, g)))
    return dataclasses.replace(
        found,
        follows=follows,
        cosine=_cosine(own.mean, target),
        norm=float(own.mean.norm() / target.norm()),
        reduction=_cosine(own.mean, plain.mean),
    )


def judges(term: Term) -> bool:
    """Whether a term learns from verdicts: on pairs, or on single responses."""
    return term.pairwise or term.on == "labelled"


def _of_judge(term: Term) -> Finding:
    """Where a loss of pairs or labels leads, on responses of the reference."""
    found = Finding(term.name, "from the reference", _claim_of_judge(term), acknowledged=term.acknowledge)
    labelled = not term.pairwise
    own, flipped = list[tuple[str, Generator]](), 0.0
    if isinstance(term, DPO) and label(term.f, term.parameter) not in TABLE:
        own.append((label(term.f, term.parameter), generator(term.f, term.parameter)))
    if isinstance(term, Pairwise) and term.unbiased:
        flipped = term.flip
    try:
        found = dataclasses.replace(found, pull=(pull(term, "on-policy", labelled), pull(term, "off-policy", labelled)))
        if isinstance(term, WPO):  # weights of pairs do not move what suits each of them
            term = DPO(**{f.name: getattr(term, f.name) for f in dataclasses.fields(DPO)})
        known = leads(term, flipped, own, labelled)
    except Exception as error:
        return dataclasses.replace(found, problem=f"it could not be examined here ({type(error).__name__}: {error}).")
    if known is None:
        return dataclasses.replace(found, claims=None)
    best = next((x for x in known if x.exact and x.objective == found.claims), known[0])
    if best.exact:
        return dataclasses.replace(found, follows=best.objective, cosine=best.fit, norm=best.strength)
    best = next(x for x in known if x.free == 1)
    meant = next((x for x in known if x.objective == found.claims), best)
    return dataclasses.replace(found, nearest=best.objective, cosine=meant.fit, norm=meant.strength)


def _claim_of_judge(term: Term) -> str | None:
    """The objective that a loss of pairs or labels is known for; None where there is none on Bradley-Terry labels."""
    if isinstance(term, KLDO):
        return against("reverse_kl", "ref")
    if isinstance(term, IPO):
        return against("reverse_kl", "ref", "the win rate") if term.over == "sum" else None
    if isinstance(term, SimPO) and term.link in PROPER and not term.gamma and not term.flip:
        return NO_REFERENCE
    if not isinstance(term, DPO) or term.over == "mean" or (term.flip and not term.unbiased):
        return None
    anchor = anchor_name(term.anchor)
    if term.link in PROPER:
        return against(label(term.f, term.parameter), anchor) if term.entropy == 1 else entropic(anchor)
    win_rate = term.link == "square" and term.entropy == 1 and not term.flip and term.f in ("reverse_kl", "reverse_ukl")
    return against("reverse_kl", anchor, "the win rate") if win_rate else None


def _by_length(w: World, mean: Tensor) -> bool:
    """Whether it is the mean score of the policy's own samples, which is zero, or what dividing by a response's length leaves of it."""
    left = w.gradient((w.weights("seq")[w.seq] * w.at(w.pi())).sum())
    return abs(_cosine(mean, left)) > 1 - 1e-9


def _of_zero(
    part: Term | Penalty, found: Finding, minimum: set[str], plain: Expected, own: Expected, scaled: Expected, seed: int
) -> Finding:
    """What a part whose expected gradient is zero is: at its minimum, chosen by its coefficient, or nothing.

    ``minimum``: the quantities whose exact gradient is zero here too.
    """
    if found.claims in minimum:
        return dataclasses.replace(found, zero=True, follows=found.claims)
    if found.claims == SUPERVISED and found.coefficient is not None and not scaled.zero:
        # It follows them on the responses that its coefficient chooses.
        return dataclasses.replace(found, follows=found.claims, cosine=0.0, norm=0.0)
    silent = plain.single == 0 and own.single == 0
    if silent and isinstance(part, Term) and is_marking(part):
        return dataclasses.replace(
            found, problem="it has a gradient on tokens that it marks alone, and nothing is marked in this small world."
        )
    if found.sampled == "on-policy" and found.claims is None:
        away = examine(part, "off-policy", seed)
        if away.follows in minimum or (silent and not away.zero):
            return dataclasses.replace(found, zero=True, follows=away.follows)
    if silent and found.in_reward:  # of the learner's own log-probs against the samples', which are the same here
        return dataclasses.replace(found, zero=True)
    if silent:
        text = (
            "it has no gradient: nothing in it depends on the policy, or everything is detached. It changes nothing; to measure it "
            "only, set coef: 0."
        )
    else:
        text = (
            "noise only: its expected gradient is zero. It draws the policy nowhere and adds the noise of single responses to every step, "
            "as k1 in a loss does (docs/k1-in-the-loss.md). For a KL use {type: KL, estimator: k2} in the objective or {type: KLReward} in "
            "reward_penalties."
        )
        if not (plain.zero and own.zero):
            text += " What dividing by a response's length leaves of it depends on lengths alone."
        if found.coefficient is not None and not scaled.zero:
            text += f" What is left of it is made by {found.coefficient}."
    return dataclasses.replace(found, zero=True, nothing=text, cosine=0.0, norm=0.0)


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12)) if float(a.norm()) > 1e-12 else 0.0


def examine_all(objective: Sequence[Term], penalties: Sequence[Penalty]) -> list[Finding]:
    """Every part that shapes the policy, on-policy and off-policy; terms on reference rows under samples of the reference."""
    found = []
    parts: list[Term | Penalty] = [*objective, *penalties]
    for part in parts:
        source = part.on if isinstance(part, Term) else "policy"
        kinds: tuple[Sampled, ...] = ("on-policy", "off-policy")
        if source == "reference" or (isinstance(part, Term) and judges(part)):
            kinds = ("from the reference",)
        elif isinstance(part, ValueMSE) or source != "policy":
            continue
        found += [examine(part, sampled) for sampled in kinds]
    return found


def dishonest(findings: Iterable[Finding], off_policy: bool) -> list[Finding]:
    """Findings that contradict a name in a run that is (also) off-policy or not, and that no ``acknowledge`` accepts."""
    return [
        f
        for f in findings
        if not (f.honest or f.acknowledged or f.measured_only)
        and f.problem is None
        and (off_policy or f.sampled != "off-policy")
    ]


def refuse_nothing(findings: Iterable[Finding], off_policy: bool) -> None:
    """A run does not train on a term that is noise only.

    Raises:
        ConfigError: with the term, what it does, and what to do.
    """
    for f in dishonest(findings, off_policy):
        if f.nothing is not None:
            raise ConfigError(f"objective: {f.sentence} Or keep it with acknowledge: true.")
