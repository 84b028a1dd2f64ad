"""What every engine can do, and the helpers that engines share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from rlkit.types import Prompt, Rollout, Sampling

UpdateMode = Literal["wait", "keep", "abort"]


class Engine(Protocol):
    """Blocking and thread-safe: many collector threads call ``generate`` at once, and the engine batches them."""

    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        """``n`` responses. Log-probs are those of the distribution that was sampled from; every token has its version."""
        ...

    def score(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        """Log-probs (temperature 1) of given response tokens under the engine's weights."""
        ...

    def begin_update(self, mode: UpdateMode) -> None:
        """Pauses for new weights: ``wait`` for running requests, ``keep`` them for after the update, or ``abort`` them."""
        ...

    def load(self, tensors: Mapping[str, Any]) -> None:
        """One bucket of whole tensors by their Hugging Face names."""
        ...

    def end_update(self, version: int) -> None:
        """Every token that is sampled from now on carries ``version``; nothing cached survives."""
        ...

    def ready(self) -> dict[str, Any]: ...
    def stats(self) -> dict[str, float]: ...
    def close(self) -> None: ...


def request_seed(sampling: Sampling, prompt: Prompt, version: int) -> int | None:
    """A seed of its own for each (run seed, prompt, weight version), independent of batching and of the engine."""
    if sampling.seed is None:
        return None
    key = f"{sampling.seed}/{prompt.id}/{version}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") >> 1


def check_length(prompt: Prompt, sampling: Sampling, limit: int) -> None:
    """Raises ValueError if prompt and response cannot fit into the context."""
    if len(prompt.token_ids) + sampling.max_tokens > limit:
        raise ValueError(f"prompt {prompt.id} has {len(prompt.token_ids)} tokens; with sampling.max_tokens = "
                         f"{sampling.max_tokens} it does not fit into the context of {limit}. Lower sampling.max_tokens or "
                         "data.max_prompt_tokens, or raise rollout.max_model_len.")
