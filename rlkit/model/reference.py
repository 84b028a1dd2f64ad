"""Where the reference log-probs come from, and how the reference follows the policy.

A :class:`Reference` is the rule and its settings; its ``build`` makes a :class:`ReferenceState` on a learner rank, which sees of what is
trained there no more than :class:`Trained`.
"""

from __future__ import annotations

import contextlib
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from rlkit.asking import Client, Line
from rlkit.bounds import Count, Decay, Natural, NonNegative, Positive, Share
from rlkit.errors import ModelError, RunError
from rlkit.model.export import stored
from rlkit.model.hub import fingerprint
from rlkit.model.policy import PolicyModel, evaluate_new
from rlkit.objective.full_vocab import CHUNK_ELEMENTS, Head, TopK, Whole
from rlkit.place import Place
from rlkit.plug import Plug
from rlkit.types import Batch, Sampling, Stats

NOTHING: frozenset[str] = frozenset()
Dtype = Literal["float32", "bfloat16"]


class Trained(Protocol):
    """The model that is trained, as a reference on the same rank sees it. Ranks ask for whole tensors together."""

    device: torch.device

    @property
    def sampling(self) -> Sampling:
        """How responses are sampled."""
        ...

    @property
    def contains_start(self) -> bool:
        """Whether it gives the model back that training started from, without a second copy of its weights (an adapter, switched off)."""
        ...

    def start_logprobs(self, b: Batch, sampling: Sampling) -> Tensor:
        """Log-probs of that model; only where :attr:`contains_start`."""
        ...

    def start_head(self, b: Batch) -> Head:
        """The output layer of that model over its hidden states; only where :attr:`contains_start`."""
        ...

    @property
    def start(self) -> str:
        """The model that training started from, a folder or a hub name; its tokenizer is the policy's."""
        ...

    def load_frozen(self, path: str | None, dtype: Dtype | None = None, other_tokens: bool = False) -> PolicyModel:
        """Another model over the same vocabulary, frozen, in host memory; None: a copy of the one that training starts from, or the
        run's ``model.dtype``.

        ``other_tokens``: it may be of another vocabulary.

        Raises:
            ModelError: there is none, it is of another vocabulary, or its log-probs are not those of its own forward pass.
        """
        ...

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors under their Hugging Face names, adapters merged."""
        ...

    def trainable(self) -> Iterator[tuple[str, Tensor]]:
        """Whole copies in float32 of the parameters that are trained, those of a critic aside."""
        ...

    def assign(self, values: Mapping[str, Tensor]) -> None:
        """Gives parameters of these names other values, the same on every rank; the optimizer's state stays."""
        ...

    def reset_optimizer(self) -> None:
        """Forgets the optimizer's moments and restarts its schedule; weights stay."""
        ...


class ReferenceState:
    """A reference on a learner rank. One that never changes has ``logprobs`` alone."""

    def logprobs(self, b: Batch, sampling: Sampling) -> Tensor:
        """Log-probs ``[N]`` of the batch's action tokens, without gradient."""
        raise NotImplementedError

    def head(self, b: Batch) -> Whole:
        """The distributions from which the batch's action tokens were drawn, for whole-vocabulary divergences: mostly an output layer over
        hidden states."""
        raise ModelError("this reference gives log-probs of single tokens: FullDivergence needs one of type: Frozen.")

    def likely(self, b: Batch, k: int) -> tuple[Tensor, TopK]:
        """:meth:`logprobs`, and the ``k`` most likely tokens at each place: of a reference that is asked for both (``asked``)."""
        raise NotImplementedError

    def require(self, k: int, last: int, classes: int) -> None:
        """Asked once, before the first step, of a reference that is ``asked``. ``last`` is the last token of the policy's tokenizer,
        ``classes`` the number of its logits.

        Raises:
            ModelError: it does not give the ``k`` most likely tokens, does not know the last one, or knows others.
        """

    def after_step(self, step: int, stats: Stats) -> None:
        """Called on every rank after each training step, with what it measured."""

    def state_dict(self) -> dict[str, Any]:
        """Its part of a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Reference(Plug):
    """Base of every reference. A user's own overrides :meth:`build`.

    ``whole``: its states have :meth:`ReferenceState.head`, which ``FullDivergence`` reads. ``asked``: they have
    :meth:`ReferenceState.likely` instead, which is asked once for each batch, and serves one with ``top_k``. ``other_tokens``: it may have
    a tokenizer of its own, and what it says of whole distributions is :class:`rlkit.objective.full_vocab.Ranked`.
    """

    homes: ClassVar[tuple[str, ...]] = (
        *("rlkit.model.reference", "rlkit.model.teachers", "rlkit.model.translated"),
        "rlkit.rollout.pool",
    )
    other_tokens: ClassVar[bool] = False

    @property
    def whole(self) -> bool:
        return False

    @property
    def asked(self) -> bool:
        return False

    @property
    def pooled(self) -> bool:
        """Whether engines answer for it, which the driver asks. If it is also ``asked``, nothing of it is built on ranks."""
        return False

    @property
    def held(self) -> tuple[Loaded, ...]:
        """Those with weights of their own of which each rank has a copy: itself, or those that it is made of."""
        return ()

    @property
    def models(self) -> tuple[str, ...]:
        """Folders and hub names of the models that it loads."""
        return ()

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the prompt sets that it treats in a way of their own."""
        return ()

    @property
    def is_start(self) -> bool:
        """Whether it is, in a run's first step, the model that training starts from."""
        return False

    @property
    def kept(self) -> str | None:
        """The file in which its outputs on rows of data are kept; None: they are computed in every step."""
        return None

    def identity(self, start: str) -> str:
        """What changes when its model does; ``start`` is the one that training starts from."""
        return fingerprint(next(iter(self.models), start))

    @abstractmethod
    def build(self, trained: Trained) -> ReferenceState:
        """The reference on a rank, before the first step."""


@dataclass(frozen=True, kw_only=True)
class Loaded(Reference):
    """Base of references that have weights of their own. ``offload`` keeps them in host memory between passes."""

    offload: bool = False

    @property
    def whole(self) -> bool:
        return True

    @property
    def held(self) -> tuple[Loaded, ...]:
        return (self,)


@dataclass(frozen=True, kw_only=True)
class _OnePath(Loaded):
    """A second model: that of ``path``, or the one that training starts from."""

    path: Place | None = None

    @property
    def models(self) -> tuple[str, ...]:
        return () if self.path is None else (self.path,)

    @property
    def is_start(self) -> bool:
        return self.path is None


class AdapterOff(ReferenceState):
    """The policy with its adapter switched off: the base model, with no second copy of it."""

    def __init__(self, trained: Trained) -> None:
        self.trained = trained

    def logprobs(self, b: Batch, sampling: Sampling) -> Tensor:
        return self.trained.start_logprobs(b, sampling)

    def head(self, b: Batch) -> Head:
        return self.trained.start_head(b)


class OwnWeights(ReferenceState):
    """A second model of the same vocabulary.

    ``offload`` keeps it in (pinned) host memory and moves it to the device for each pass. A head that it gave keeps what it needs there.
    """

    def __init__(
        self,
        trained: Trained,
        path: str | None,
        offload: bool = False,
        dtype: Dtype | None = None,
        other_tokens: bool = False,
    ) -> None:
        self.trained, self.offload = trained, offload and trained.device.type == "cuda"
        self.model = trained.load_frozen(path, dtype, other_tokens)
        if self.offload:
            for p in self.model.parameters():
                p.data = p.data.cpu().pin_memory()

    @contextlib.contextmanager
    def on_device(self) -> Iterator[None]:
        if not self.offload:
            yield
            return
        host = {n: p.data for n, p in self.model.named_parameters()}
        for p in self.model.parameters():
            p.data = p.data.to(self.trained.device, non_blocking=True, copy=True)
        try:
            yield
        finally:
            for n, p in self.model.named_parameters():
                p.data = host[n]

    def logprobs(self, b: Batch, sampling: Sampling) -> Tensor:
        with torch.no_grad(), self.on_device():
            return evaluate_new(self.model, b, sampling, NOTHING).logp

    def head(self, b: Batch) -> Head:
        assert b.ids is not None and b.length is not None and b.action is not None
        with torch.no_grad(), self.on_device():
            return self.model.output.over(self.model.hidden(b.ids, b.length, b.action, b.group)[b.action - 1])

    def blend(self, weight: float) -> None:
        """``ref <- (1 - weight) * ref + weight * policy``, one parameter at a time."""
        own = stored(self.model.base)
        with torch.no_grad():
            for name, tensor in self.trained.full_weights():
                own[name].lerp_(tensor.to(own[name]), weight)


@dataclass(frozen=True, kw_only=True)
class Frozen(_OnePath):
    """The model that training started from (``path: null``) or another checkpoint, never changed.

    With LoRA and no ``path``, the adapter is switched off instead of loading a second model, wherever that gives the start model back.

    Attributes:
        dtype: of its weights; null: ``model.dtype``. bfloat16 halves a large teacher's memory, beside a student in float32.
        precompute: a file in which its outputs on rows of data are kept: log-probs and, for terms that compare whole distributions with a
            ``top_k``, its most likely tokens. They are computed when a run starts and there is no such file (a run that is stopped
            meanwhile goes on from there), and no second model is held while it trains. A file of another model or of other rows is refused.
    """

    dtype: Dtype | None = None
    precompute: Place | None = None

    @property
    def kept(self) -> str | None:
        return self.precompute

    def build(self, trained: Trained) -> ReferenceState:
        if self.path is None and trained.contains_start and self.dtype is None:
            return AdapterOff(trained)
        return OwnWeights(trained, self.path, self.offload, self.dtype)


class _TemperedState(OwnWeights):
    def __init__(self, trained: Trained, spec: Tempered) -> None:
        super().__init__(trained, spec.path, spec.offload)
        self.spec = spec

    def logprobs(self, b: Batch, sampling: Sampling) -> Tensor:
        assert b.ids is not None and b.action is not None
        head, target = self.head(b), b.ids[b.action]
        power = (self.spec.floor + (1 - self.spec.floor) * b.reward.clamp(0, 1))[b.seq, None] / (
            sampling.temperature or 1.0
        )
        out, rows = torch.empty(b.N, device=self.trained.device), max(1, CHUNK_ELEMENTS // head.classes)
        for i in range(0, b.N, rows):
            at = slice(i, min(b.N, i + rows))
            z = head.logits(at, 1.0, self.model.fp32_head) * power[at]
            out[at] = z.gather(-1, target[at, None])[:, 0] - z.logsumexp(-1)
        return out


# What is told of a place in a row: the token there, and log-probs of it and of the most likely ones; None before the first token.
Told = tuple[int, dict[int, float]] | None


def gathered(rows: Sequence[Sequence[Told]], k: int) -> tuple[Tensor, TopK]:
    """Log-probs ``[L]`` of the tokens of all rows, one after the other, and the ``k`` most likely ones at each place; zeros where nothing
    is told.

    Raises:
        ModelError: a place has fewer than ``k``.
    """
    logp, ids, top = list[float](), list[list[int]](), list[list[float]]()
    for told in (x for row in rows for x in row):
        token, known = told or (0, {0: 0.0})  # before the first token there is no prefix
        best = [0] * k if told is None else sorted(known, key=lambda i: -known[i])[:k]
        if len(best) < k:
            raise ModelError(
                f"teacher: {len(best)} log-probs were given where the {k} most likely tokens were asked for: lower the terms' top_k."
            )
        logp.append(known[token])
        ids.append(best)
        top.append([known[i] for i in best])
    shape = (len(logp), k)
    return torch.tensor(logp), TopK(torch.tensor(ids).reshape(shape), torch.tensor(top).reshape(shape))


class _ServedState(ReferenceState):
    """A model behind an OpenAI-compatible server that knows ``prompt_logprobs`` (``vllm serve``). Its connections stay open."""

    def __init__(self, spec: Served) -> None:
        self.spec = spec
        self.line = Line(
            Client(
                f"{spec.url.rstrip('/').removesuffix('/v1')}/v1",
                key=os.environ.get("RLKIT_TEACHER_KEY"),
                patience=spec.patience,
                timeout=spec.timeout,
                parallel=spec.parallel,
            )
        )
        [found] = self._at_the_start("models", None, "Start one with `vllm serve MODEL`, or correct the url.")
        with self._read():
            models = [str(m["id"]) for m in found["data"]]
            self.model = spec.model or models[0]
        if self.model not in models:
            raise ModelError(
                f"teacher: the server at {spec.url} has no model {self.model!r}; it has {', '.join(models)}."
            )

    def _at_the_start(self, path: str, body: dict[str, Any] | None, remedy: str) -> list[Any]:
        """What the server answers; it is asked once."""
        try:
            return self.line.ask(path, [body], patience=0)
        except RunError as told:
            raise ModelError(f"teacher: {told}. {remedy}") from None

    @contextlib.contextmanager
    def _read(self) -> Iterator[None]:
        """What the server answered is read within."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise ModelError(
                f"teacher: {self.spec.url} does not answer as a vLLM server does: start one with `vllm serve MODEL`, or correct the url."
            ) from None

    def logprobs(self, b: Batch, sampling: Sampling) -> Tensor:
        return self.likely(b, 0)[0]

    def likely(self, b: Batch, k: int) -> tuple[Tensor, TopK]:
        assert b.ids is not None and b.length is not None and b.action is not None
        rows = [x.tolist() for x in b.ids.cpu().split(b.length.tolist())]
        try:
            answers = self.line.ask("completions", [self._body(ids, k) for ids in rows])
        except RunError as told:
            raise RunError(
                f"teacher: {told}. See to the server; `--resume` continues from the last checkpoint."
            ) from None
        logp, top = gathered([self._told(ids, x) for ids, x in zip(rows, answers, strict=True)], k)
        return logp.to(b.ids.device)[b.action], TopK(
            top.ids.to(b.ids.device)[b.action], top.logp.to(b.ids.device)[b.action]
        )

    def require(self, k: int, last: int, classes: int) -> None:
        remedy = (
            f"It has to give {k} log-probs of a token: start it with --max-logprobs {k}, or lower the terms' top_k. And it has to know the "
            f"policy's tokens up to {last}."
        )
        [answer] = self._at_the_start("completions", self._body([last, last], k), remedy)
        with self._read():
            known = (answer["choices"][0]["prompt_logprobs"] or [None])[-1] or {}
        strange = [i for i in known if int(i) >= classes]
        if strange:
            raise ModelError(
                f"teacher: {self.model} at {self.spec.url} gives log-probs of token {strange[0]}, and the policy's tokens end at "
                f"{classes - 1}: use a model with the same tokenizer."
            )

    def _body(self, ids: list[int], k: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": ids,
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": k,
            "add_special_tokens": False,
        }

    def _told(self, ids: list[int], answer: Any) -> list[Told]:
        with self._read():
            given = answer["choices"][0]["prompt_logprobs"]
        if given is None or len(given) != len(ids):
            raise ModelError(
                f"teacher: {self.spec.url} gave no prompt_logprobs for {len(ids)} tokens; it must be a vLLM server."
            )
        with self._read():
            return [
                None if entry is None else (token, {int(i): float(x["logprob"]) for i, x in entry.items()})
                for token, entry in zip(ids, given, strict=True)
            ]


@dataclass(frozen=True, kw_only=True)
class Served(Reference):
    """Log-probs from a vLLM server: ``url`` like http://host:8000 (with or without /v1), ``model`` null for its first. The tokenizer must
    be the policy's.

    Attributes:
        parallel: requests at once. timeout: seconds that an answer may take. patience: seconds for which a server that does not answer, or
            is busy, is asked again in the course of a run; at its start it is asked once.

    ``precompute`` is that of :class:`Frozen`; a file is known by the name of the served model.

    ``FullDivergence`` with ``top_k: K`` reads its K most likely tokens and the rest as one; a server gives up to 20, or as many as it was
    started with (``--max-logprobs``). Servers answer at temperature 1 without truncation, so ``sampling.temperature`` must be 1 and top-p,
    top-k off. A key is read from the environment, ``RLKIT_TEACHER_KEY``.
    """

    url: str
    model: str | None = None
    parallel: Count = 16
    timeout: Positive = 120.0
    patience: NonNegative = 300.0
    precompute: Place | None = None

    @property
    def asked(self) -> bool:
        return True

    @property
    def kept(self) -> str | None:
        return self.precompute

    def identity(self, start: str) -> str:
        return f"served: {self.model or 'the first model'}"

    def build(self, trained: Trained) -> ReferenceState:
        told = asked_at(trained.sampling)
        if told is not None:
            raise ModelError(told)
        return _ServedState(self)


def asked_at(sampling: Sampling) -> str | None:
    """Why a reference that is asked, and not computed here, does not suit how responses are sampled; None: it does."""
    if sampling.temperature == 1 and sampling.top_p == 1 and not sampling.top_k:
        return None
    return (
        "a served teacher or reference gives log-probs at temperature 1: set sampling.temperature: 1.0, top_p: 1.0, top_k: 0, or use type: "
        "Frozen."
    )


@dataclass(frozen=True, kw_only=True)
class Tempered(_OnePath):
    """A frozen model, flattened where the reward is low: ``ref^phi / Z`` per token, ``phi = floor + (1 - floor) clip(reward, 0, 1)``.

    With ``floor: 0`` a wrong response is compared with the uniform distribution.

    Source: RAPO 2510.03865, reward-aware reference (the form of phi is reconstructed from the abstract).
    """

    floor: Share = 0.0

    @property
    def whole(self) -> bool:
        return False

    @property
    def is_start(self) -> bool:
        return False

    def build(self, trained: Trained) -> ReferenceState:
        return _TemperedState(trained, self)


class _Following(OwnWeights):
    """A reference whose weights follow the policy; they are part of the checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.model.base.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.base.load_state_dict(state["weights"])


class _EMAState(_Following):
    def __init__(self, trained: Trained, spec: EMA) -> None:
        super().__init__(trained, spec.path, spec.offload)
        self.spec = spec

    def after_step(self, step: int, stats: Stats) -> None:
        if step % self.spec.every == 0:
            self.blend(1 - self.spec.decay)


@dataclass(frozen=True, kw_only=True)
class EMA(_OnePath):
    """``ref <- decay * ref + (1 - decay) * policy`` every ``every`` steps.

    Source: WARP 2406.16768; GRPO-CARE 2506.16141.
    """

    decay: Decay = 0.99  # 1 would never follow the policy
    every: Count = 1

    def build(self, trained: Trained) -> ReferenceState:
        return _EMAState(trained, self)


class _ResetState(_Following):
    def __init__(self, trained: Trained, spec: HardReset) -> None:
        super().__init__(trained, spec.path, spec.offload)
        self.spec, self.average, self.best, self.stalled, self.resets = spec, 0.0, -float("inf"), 0, 0

    def _due(self, step: int, stats: Stats) -> bool:
        spec = self.spec
        due = bool(spec.every) and step % spec.every == 0
        if spec.kl_above is not None and "kl/ref" in stats:
            self.average = 0.9 * self.average + 0.1 * stats["kl/ref"]
            due |= self.average > spec.kl_above
        if spec.patience is not None and "eval/score" in stats:
            improved = stats["eval/score"] > self.best
            self.best, self.stalled = max(self.best, stats["eval/score"]), 0 if improved else self.stalled + 1
            due |= self.stalled >= spec.patience
        return due

    def after_step(self, step: int, stats: Stats) -> None:
        if not self._due(step, stats):
            return
        self.blend(1.0)
        self.average, self.stalled, self.resets = 0.0, 0, self.resets + 1
        if self.spec.reset_optimizer:
            self.trained.reset_optimizer()

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "average": self.average,
            "best": self.best,
            "stalled": self.stalled,
            "resets": self.resets,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.average, self.best = state["average"], state["best"]
        self.stalled, self.resets = state["stalled"], state["resets"]


@dataclass(frozen=True, kw_only=True)
class HardReset(_OnePath):
    """``ref <- policy`` every ``every`` steps, or when a moving average of the KL (nats per token) passes ``kl_above``,
    or when ``patience`` evaluations bring no better score; with a fresh optimizer under ``reset_optimizer: true``.

    Source: ProRL 2505.24864.
    """

    every: Natural = 0
    kl_above: NonNegative | None = None
    patience: Count | None = None
    reset_optimizer: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.every and self.kl_above is None and self.patience is None:
            raise ModelError(
                "reference HardReset never resets: set `every` (steps), `kl_above` (nats per token) or "
                "`patience` (evaluations). For a reference that never changes use type: Frozen."
            )

    def build(self, trained: Trained) -> ReferenceState:
        return _ResetState(trained, self)


class _ElasticState(ReferenceState):
    """Elastic Reset: a frozen reference, and a policy that goes back to its own average."""

    def __init__(self, trained: Trained, spec: ElasticReset) -> None:
        self.trained, self.spec, self.resets = trained, spec, 0
        self.frozen = Frozen(path=spec.path, offload=spec.offload).build(trained)
        self.start = {name: p.cpu() for name, p in trained.trainable()}  # read at resets only: host memory is enough
        self.average = dict(trained.trainable())

    def logprobs(self, b: Batch, sampling: Sampling) -> Tensor:
        return self.frozen.logprobs(b, sampling)

    def head(self, b: Batch) -> Whole:
        return self.frozen.head(b)

    def after_step(self, step: int, stats: Stats) -> None:
        for name, value in self.trained.trainable():
            self.average[name].lerp_(value, 1 - self.spec.decay)
        if step % self.spec.every == 0:
            self.trained.assign(self.average)
            for name, value in self.average.items():
                value.copy_(self.start[name])
            self.resets += 1

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "start": self.start, "resets": self.resets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.resets = state["resets"]
        for name, value in self.average.items():
            value.copy_(state["average"][name])
            self.start[name].copy_(state["start"][name])


@dataclass(frozen=True, kw_only=True)
class ElasticReset(_OnePath):
    """The start model as the reference, and every ``every`` steps the policy becomes its own moving average, which restarts at the start.

    ``average <- decay * average + (1 - decay) * policy`` each step; at a reset ``policy <- average``, ``average <- start``. The optimizer's
    state and the value function stay. Costs a copy of the trained parameters on the device and one in host memory.

    Source: Elastic Reset (NeurIPS 2023), the released code.
    """

    every: Count = 260
    decay: Decay = 0.995

    def build(self, trained: Trained) -> ReferenceState:
        return _ElasticState(trained, self)


@dataclass(frozen=True, kw_only=True)
class Soup(Loaded):
    """The average of several checkpoints of one architecture, ``paths``, with ``weights`` (null: equal).

    Source: SALSA (its weights from memory, not checked against the paper).
    """

    paths: tuple[Place, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.paths) < 2:
            raise ModelError(f"reference Soup needs at least two `paths`; found {len(self.paths)}.")
        if self.weights is not None and len(self.weights) != len(self.paths):
            raise ModelError(f"reference Soup has {len(self.paths)} paths but {len(self.weights)} weights.")

    @property
    def models(self) -> tuple[str, ...]:
        return self.paths

    def build(self, trained: Trained) -> ReferenceState:
        state = OwnWeights(trained, self.paths[0], self.offload)
        weights = self.weights or (1 / len(self.paths),) * len(self.paths)
        own = dict(state.model.base.named_parameters())
        with torch.no_grad():
            for p in own.values():
                p.mul_(weights[0])
            for path, weight in zip(self.paths[1:], weights[1:], strict=True):
                other = dict(trained.load_frozen(path).base.named_parameters())
                strange = sorted(
                    name
                    for name in own.keys() | other.keys()
                    if name not in own or name not in other or own[name].shape != other[name].shape
                )
                if strange:
                    raise ModelError(
                        f"reference.paths: tensor {strange[0]} is not of one size in {self.paths[0]} and {path}: only models of one "
                        "architecture can be averaged."
                    )
                for name, p in other.items():
                    own[name].add_(p.to(own[name]), alpha=weight)
        return state
