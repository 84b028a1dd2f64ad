"""What an engine is, how one is started, and the helpers that engines share.

An :class:`EngineSpec` is the settings of a kind of engine, which travel; its ``start`` makes an :class:`Engine` where it shall run, in the
run's own process or in one of Ray's. An engine of one's own is a subclass of each: of :class:`SimpleEngine` where requests are answered one
by one, as ``examples/custom_engine.py`` does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from rlkit.errors import ConfigError, EngineError
from rlkit.model.wire import unpack
from rlkit.plug import Plug
from rlkit.record.memory import peak
from rlkit.types import Prompt, Rollout, Sampling

UpdateMode = Literal["wait", "continue", "keep", "abort"]
Transfer = Literal["store", "gloo", "nccl", "ipc"]


class Aborted(RuntimeError):
    """The request was aborted, by a weight update (``rollout.pause: abort``) or because the run stops; the collector asks for it again."""


@dataclass(frozen=True, kw_only=True)
class EngineSetup:
    """What an engine needs to know of a run, whatever kind it is of.

    Attributes:
        path: the model, a folder or a hub name. max_model_len: tokens of a prompt and its response together, at most.
        tensor_parallel: devices of one engine. options: the section ``vllm``.
        lm: the learner's own model, where it is in this process and the engine ``shares`` it; else None.
        transfer: how weights will come (``cluster.transfer``); only an engine that ``meets`` learners gets another than ``store``.
        sleeps: whether it shares its devices with a learner and ``rests`` in the learner's turns.
    """

    path: str
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_model_len: int = 1024
    tensor_parallel: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    lm: Any = None
    transfer: Transfer = "store"
    sleeps: bool = False


class Generates(Protocol):
    """An engine, or many, to whoever asks for responses."""

    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]: ...


class Scores(Protocol):
    """What gives responses their rewards."""

    def score(self, rollouts: Sequence[Rollout]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class EngineSpec(Plug):
    """Base of every kind of engine. A user's own overrides :meth:`start`; its fields are keys of ``rollout.engine``.

    ``shares``: in the run's own process it generates with the learner's model where that is possible, so never while it is trained.
    ``lasting``: requests can go on through a weight update (``rollout.pause: continue``). ``meets``: it has vLLM's two methods ``meet``
    and ``receive``, by which weights come from the learners themselves. ``rests``: it has ``sleep``, ``wake`` and ``abort``, with which
    it leaves its devices to a learner.
    """

    homes: ClassVar[tuple[str, ...]] = ("rlkit.rollout.controlled",)
    shares: ClassVar[bool] = False
    lasting: ClassVar[bool] = False
    meets: ClassVar[bool] = False
    rests: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """What it is called on the screen."""
        return type(self).__name__

    @abstractmethod
    def start(self, setup: EngineSetup) -> Engine:
        """Called where the engine runs."""

    def prepare(self) -> None:
        """Imports what :meth:`start` will need. Called where the engine will run, before there is a model, with :meth:`environment` set."""

    def environment(self) -> dict[str, str]:
        """Variables that a process of its own has from the start."""
        return {}


@dataclass
class Work:
    """What an engine has done: ``tokens`` sampled in ``steps``, ``busy`` seconds of those since it ``started``."""

    tokens: int = 0
    steps: int = 0
    busy: float = 0.0
    started: float = field(default_factory=time.perf_counter)


class Engine(ABC):
    """A model that answers. Blocking and thread-safe: many collector threads call ``generate`` at once, and the engine batches them."""

    def __init__(self) -> None:
        self.version = 0  # of the weights
        self.work = Work()

    @abstractmethod
    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        """``n`` responses. Log-probs are those of the distribution that was sampled from; every token has its version."""

    @abstractmethod
    def begin_update(self, mode: UpdateMode) -> None:
        """Pauses for new weights. What running requests do:

        ``wait``: they end before the update. ``continue``: they stop, keep their tokens, and go on under the new weights, which compute
        prompt and tokens so far once more. ``keep``: they go on with what the old weights have cached of them. ``abort``: they are lost,
        and ``generate`` raises :class:`Aborted`. An engine that cannot stop may always ``wait``. Called once more before
        :meth:`end_update`, the update begins anew: the first one was cut off.
        """

    def load(self, packed: Mapping[str, Any]) -> None:
        """One bucket of whole tensors by their Hugging Face names, as they travel."""
        self.assign({name: unpack(x) for name, x in packed.items()})

    @abstractmethod
    def assign(self, tensors: Mapping[str, Tensor]) -> None:
        """Gives weights of these Hugging Face names other values."""

    @abstractmethod
    def end_update(self, version: int) -> None:
        """Every token that is sampled from now on carries ``version``; nothing cached survives."""

    def likely(self, rows: Sequence[Sequence[int]], k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of rows of tokens, one after the other: the log-probs of the tokens ``[L]``, and ids and log-probs of the ``k`` most likely ones
        in each place, ``[L, k]``; zeros for the first of a row. At temperature 1, without truncation.
        """
        raise EngineError(f"{type(self).__name__} samples responses, but does not say how likely given tokens are.")

    def hidden(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """The last hidden state from which each token of rows is predicted, ``[L, H]`` in the type of the weights; zeros for the first of a
        row.
        """
        raise EngineError(f"{type(self).__name__} samples responses, but does not give hidden states.")

    def progress(self) -> int:
        """Grows while requests are worked on, and answers at once: one that stands still is taken for stuck."""
        return self.work.steps

    def ready(self) -> dict[str, Any]:
        """Asked once, when it has started."""
        return {}

    def stats(self) -> dict[str, float]:
        """What it has done, and its memory."""
        return {
            "tokens": float(self.work.tokens),
            "busy": self.work.busy,
            "alive": time.perf_counter() - self.work.started,
            "peak_mib": peak(),
        }

    def close(self) -> None:  # noqa: B027 (most hold nothing)
        """Nothing is asked of it any more."""


class SimpleEngine(Engine):
    """Base of an engine of one's own that answers each request in the thread that asks; weights wait for the last answer, and requests
    for the last weights. A subclass has ``answer`` and ``assign``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._turn = threading.Condition()
        self._running, self._updating = 0, False

    @abstractmethod
    def answer(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        """``n`` responses; ``self.version`` is that of their tokens. Side by side in several threads."""

    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        with self._turn:
            self._turn.wait_for(lambda: not self._updating)
            self._running += 1
        start, group = time.perf_counter(), list[Rollout]()
        try:
            group = self.answer(prompt, n, sampling)
            return group
        finally:
            with self._turn:
                self.work.steps += 1
                self.work.tokens += sum(len(r.tokens) for r in group)
                self.work.busy += time.perf_counter() - start
                self._running -= 1
                self._turn.notify_all()

    def begin_update(self, mode: UpdateMode) -> None:
        with self._turn:
            self._updating = True
            self._turn.wait_for(lambda: not self._running)

    def end_update(self, version: int) -> None:
        with self._turn:
            self.version, self._updating = version, False
            self._turn.notify_all()


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
    """Raises ConfigError if prompt and response cannot fit into the context."""
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
