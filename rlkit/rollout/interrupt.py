"""Responses that run out of time are told so, and answer with what they have."""

from __future__ import annotations

import dataclasses
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rlkit.bounds import Count
from rlkit.errors import ConfigError
from rlkit.rollout.engine import Generates
from rlkit.types import Prompt, Rollout, Sampling


@dataclass(frozen=True, kw_only=True)
class Interrupt:
    """A response that is still going after a random number of tokens in [``low``, ``high``] is continued after ``text``.

    The tokens of ``text`` are not trained on. What is left of ``sampling.max_tokens`` is room for the answer. The number is drawn for each
    group. ``until``: responses that contain this text by then (``</think>``) are simply continued.

    Source: ScaleRL 2510.13786, forced interruptions.
    """

    low: Count
    high: Count
    text: str = "Okay, time is up. Let me stop thinking and formulate an answer now. </think>"
    until: str | None = "</think>"

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high or not self.text:
            raise ConfigError(
                f"rollout.interrupt: low is {self.low} and high is {self.high}; 1 <= low <= high is needed, and a text."
            )


class Interruption:
    """An :class:`Interrupt` with its tokens."""

    def __init__(self, spec: Interrupt, tokenizer: Any, max_tokens: int) -> None:
        """Raises ConfigError where no room for an answer is left."""
        self.spec, self.ids = spec, [int(t) for t in tokenizer(spec.text, add_special_tokens=False)["input_ids"]]
        if spec.high + len(self.ids) >= max_tokens:
            raise ConfigError(
                f"rollout.interrupt: high ({spec.high}) and the {len(self.ids)} tokens of its text leave no room for an "
                f"answer in sampling.max_tokens ({max_tokens})."
            )

    def generate(self, engine: Generates, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        """As the engine's ``generate``; the parts of a response are joined."""
        after = random.Random(f"interrupt/{sampling.seed}/{prompt.id}").randint(self.spec.low, self.spec.high)
        group = engine.generate(prompt, n, dataclasses.replace(sampling, max_tokens=after))
        going = [k for k, r in enumerate(group) if r.finish == "length"]
        if not going:
            return list(group)

        def go_on(k: int) -> Rollout:
            first: Rollout = group[k]
            told = [] if self.spec.until is not None and self.spec.until in first.text else self.ids
            so_far = (*prompt.token_ids, *first.tokens, *told)
            more = Prompt(f"{prompt.id}/{k}", so_far, prompt.text + first.text + (self.spec.text if told else ""))
            left = sampling.max_tokens - len(first.tokens) - len(told)
            rest: Rollout = engine.generate(more, 1, dataclasses.replace(sampling, max_tokens=left))[0]
            return dataclasses.replace(
                first,
                tokens=first.tokens + told + rest.tokens,
                sampled=first.sampled + [False] * len(told) + rest.sampled,
                logp=first.logp + [0.0] * len(told) + rest.logp,
                version=first.version + [rest.version[0]] * len(told) + rest.version,
                finish=rest.finish,
                text=first.text + (self.spec.text if told else "") + rest.text,
            )

        with ThreadPoolExecutor(len(going)) as pool:  # side by side: the engine batches them
            for k, joined in zip(going, pool.map(go_on, going), strict=True):
                group[k] = joined
        return list(group)


@dataclass(frozen=True)
class Interrupted:
    """An engine whose responses are interrupted."""

    engine: Generates
    by: Interruption

    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        return self.by.generate(self.engine, prompt, n, sampling)
