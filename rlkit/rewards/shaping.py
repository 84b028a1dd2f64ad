"""Rewards around a reward: calibrated against the start model, pessimistic over an ensemble, aware of what the model can know.

Each takes the reward that it is around by name, in ``args``, and hands it what it asks for::

    rewards:
      - {fn: "rlkit.rewards.shaping:calibrated", args: {of: exact}}

``of`` is a built-in name, ``package.module:function``, or ``/path/of/file.py:function``; async functions are not taken.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from rlkit.errors import ConfigError
from rlkit.rewards.functions import import_function, is_async, label_of, normalise_result, parameters


@functools.cache
def _found(of: str) -> Callable[..., Any]:
    fn = import_function(of)
    if is_async(fn):
        raise ConfigError(
            f"reward {label_of(of)!r} is async, which a reward around it cannot wait for. Make it a plain function."
        )
    return fn


def scores(of: str, inputs: Mapping[str, Any]) -> dict[str, float] | None:
    """What the reward ``of`` gives, its components by name; None where it gives no verdict."""
    fn = _found(of)
    return normalise_result(fn(**{name: inputs[name] for name in parameters(fn, sorted(inputs), label_of(of))}))


def score(of: str, inputs: Mapping[str, Any]) -> float | None:
    """The sum of its components."""
    found = scores(of, inputs)
    return None if found is None else sum(found.values())


def calibrated(
    of: str,
    base_rewards: Sequence[float],
    decoder: Literal["best_of_n", "worst_of_n", "plain"] = "best_of_n",
    t: float = 10.0,
    **inputs: Any,
) -> float | None:
    """InfAlign-CTRL: the reward's rank among ``base_rewards``, transformed for the decoder that the model is made for.

    ``c = P(r(z) < r) + P(r(z) = r) / 2`` over the rewards of the start model's responses ``z`` to the same prompt, which the column of
    that name holds (`rlkit filter --rewards`). Then ``exp(t (c - 1))`` for best-of-n, ``1 - exp(-t c)`` for the worst of n (jailbreaks),
    ``c`` itself for plain sampling. Published are ``exp(t c)`` and ``-exp(-t c)``: constant factors and shifts keep rewards in [0, 1]
    here, so that a KL coefficient means the same for every ``t``.

    Source: InfAlign 2412.19792, InfAlign-CTRL (calibration from the abstract; transforms and t = 10 from memory).
    """
    r = score(of, inputs)
    if r is None:
        return None
    if not base_rewards:
        raise ConfigError(
            "reward 'calibrated': base_rewards is empty; make the column with: rlkit filter CONFIG --model MODEL --rewards"
        )
    c = sum((z < r) + 0.5 * (z == r) for z in base_rewards) / len(base_rewards)
    return {"best_of_n": math.exp(t * (c - 1)), "worst_of_n": 1 - math.exp(-t * c), "plain": c}[decoder]


def pessimistic(of: str | Sequence[str], eta: float = 1.0, **inputs: Any) -> float | None:
    """UP-RLHF: the mean of an ensemble minus ``eta`` times its standard deviation (over all of it, not one less).

    Every number that the rewards ``of`` give is a member: one reward may return a dict of all its heads. None if one has no verdict.

    Source: UP-RLHF 2401.00243, the uncertainty-penalised reward (from the abstract; eta = 1 is assumed).
    """
    members = list[float]()
    for one in (of,) if isinstance(of, str) else of:
        found = scores(one, inputs)
        if found is None:
            return None
        members += found.values()
    mean = sum(members) / len(members)
    return mean - eta * math.sqrt(sum((x - mean) ** 2 for x in members) / len(members))


REFUSALS = ("i don't know", "i do not know", "i am not sure", "i'm not sure", "cannot answer", "can't answer")


def refusal_aware(
    of: str,
    response: str,
    pass_rate: float,
    boundary: float = 0.5,
    inside: float = -0.5,
    outside: float = 0.5,
    refusals: Sequence[str] = REFUSALS,
    **inputs: Any,
) -> float | None:
    """RLKF: 1 for a correct response, -1 for a wrong one, and between them for one that refuses to answer.

    The share ``pass_rate`` of the start model's responses that are correct (a column, `rlkit filter --rewards`) says whether the model
    knows the answer: from ``boundary`` on a refusal gets ``inside``, below it ``outside``. So a refusal is always better than a wrong
    answer and worse than a correct one, and it pays where the model does not know. The paper trains a reward model on pairs of this
    order; here the order itself is the reward. A response is correct if the reward ``of`` is above 0.5, and refuses if it holds one of
    ``refusals``, in any case of letters.

    Source: RLKF 2403.18349 (preference order from a secondary description; the numbers are ours).
    """
    r = score(of, {"response": response, "pass_rate": pass_rate, **inputs})
    if r is None or r > 0.5:
        return None if r is None else 1.0
    text = response.lower()
    if any(phrase in text for phrase in refusals):
        return inside if pass_rate >= boundary else outside
    return -1.0
