"""What every engine can do, and the helpers that engines share."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal, Protocol

from rlkit.errors import ConfigError
from rlkit.types import Prompt, Rollout, Sampling

UpdateMode = Literal["wait", "continue", "keep", "abort"]


class Aborted(RuntimeError):
    """The request was aborted by a weight update (``rollout.pause: abort``); the collector asks for the group again."""


class Engine(Protocol):
    """Blocking and thread-safe: many collector threads call ``generate`` at once, and the engine batches them."""

    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        """``n`` responses. Log-probs are those of the distribution that was sampled from; every token has its version."""
        ...

    def score(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        """Log-probs (temperature 1) of given response tokens under the engine's weights."""
        ...

    def begin_update(self, mode: UpdateMode) -> None:
        """Pauses for new weights. What running requests do:

        ``wait``: they end before the update. ``continue``: they stop, keep their tokens, and go on under the new weights, which compute
        prompt and tokens so far once more. ``keep``: they go on with what the old weights have cached of them. ``abort``: they are lost,
        and ``generate`` raises :class:`Aborted`. An engine that cannot stop may always ``wait``.
        """
        ...

    def load(self, tensors: Mapping[str, Any]) -> None:
        """One bucket of whole tensors by their Hugging Face names."""
        ...

    def end_update(self, version: int) -> None:
        """Every token that is sampled from now on carries ``version``; nothing cached survives."""
        ...

    def progress(self) -> int:
        """Grows while requests are worked on, and answers at once: one that stands still is taken for stuck."""
        ...

    def ready(self) -> dict[str, Any]: ...
    def stats(self) -> dict[str, float]: ...
    def close(self) -> None: ...


def numbered(sampling: Sampling, group: int) -> Sampling:
    """The sampling of the run's ``group``-th prompt group: a prompt that comes twice in a step is answered anew, not copied."""
    if sampling.seed is None:
        return sampling
    key = f"{sampling.seed}/group/{group}".encode()
    return dataclasses.replace(sampling, seed=int.from_bytes(hashlib.sha256(key).digest()[:4], "big"))


def request_seed(sampling: Sampling, prompt: Prompt, version: int) -> int | None:
    """A seed of its own for each (run seed, prompt, weight version), independent of batching and of the engine."""
    if sampling.seed is None:
        return None
    key = f"{sampling.seed}/{prompt.id}/{version}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") >> 1


def check_length(prompt: Prompt, sampling: Sampling, limit: int) -> None:
    """Raises ValueError if prompt and response cannot fit into the context."""
    if len(prompt.token_ids) + sampling.max_tokens > limit:
        raise ConfigError(
            f"prompt {prompt.id} has {len(prompt.token_ids)} tokens; with sampling.max_tokens = "
            f"{sampling.max_tokens} it does not fit into the context of {limit}. Lower sampling.max_tokens or "
            "data.max_prompt_tokens, or raise rollout.max_model_len."
        )


class Pending:
    """Callers that wait for an engine: when it stops, they hear why instead of waiting for ever."""

    def __init__(self) -> None:
        self._open: set[Future[Any]] = set()
        self._error: Exception | None = None
        self._lock = threading.Lock()

    def wait(self, future: Future[Any], send: Callable[[], None]) -> Any:
        """Calls ``send`` and returns the future's result; raises at once if the engine has stopped."""
        with self._lock:
            if self._error is not None:
                raise self._error
            self._open.add(future)
            send()
        try:
            return future.result()
        finally:
            with self._lock:
                self._open.discard(future)

    def fail(self, error: Exception) -> None:
        with self._lock:
            self._error = self._error or error
            for future in self._open:
                if not future.done():
                    future.set_exception(error)
