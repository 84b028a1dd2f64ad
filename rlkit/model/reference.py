"""Where the reference log-probs come from, and how the reference follows the policy.

A config object names the rule; :meth:`build` makes the state on a learner rank.
"""

from __future__ import annotations

import contextlib
import json
import os
import urllib.error
import urllib.request
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from rlkit.bounds import Count, Decay, Natural, NonNegative, Positive, Share
from rlkit.config import locate
from rlkit.errors import ModelError
from rlkit.model.export import stored
from rlkit.model.load import load_for, load_lm
from rlkit.model.policy import PolicyModel, evaluate_new, prove_logprobs
from rlkit.objective.full_vocab import CHUNK_ELEMENTS, Head
from rlkit.plug import Plug
from rlkit.types import TOLERANCE, Batch, Sampling, Stats

if TYPE_CHECKING:
    from rlkit.learner.learner import Learner
    from rlkit.run import Run

NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Reference(Plug):
    """Base of every reference. A user's own overrides :meth:`build`."""

    homes: ClassVar[tuple[str, ...]] = ("rlkit.model.reference",)

    @abstractmethod
    def build(self, learner: Learner) -> ReferenceState:
        """The reference on a learner rank, before the first step."""


class ReferenceState(Protocol):
    """A reference on a learner rank."""

    def logprobs(self, b: Batch, sampling: Sampling) -> Tensor:
        """Log-probs ``[N]`` of the batch's action tokens, without gradient."""
        ...

    def head(self, b: Batch) -> Head:
        """The output layer over the hidden states of the batch's action tokens, for whole-vocabulary divergences."""
        ...

    def after_step(self, step: int, stats: Stats) -> None:
        """Called on every rank after each training step."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class _Unchanging:
    """A reference that does not follow the policy and has nothing to save."""

    def after_step(self, step: int, stats: Stats) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class AdapterOff(_Unchanging):
    """The policy with its LoRA adapter switched off: the base model, with no second copy of it."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def logprobs(self, b: Batch, sampling: Sampling) -> Tensor:
        with torch.no_grad(), self.learner.policy.lm.disable_adapter():
            return evaluate_new(self.learner.backend, b, sampling, NOTHING).logp

    def head(self, b: Batch) -> Head:
        assert b.ids is not None and b.length is not None and b.action is not None
        policy = self.learner.policy
        trained = policy.output
        with torch.no_grad(), policy.lm.disable_adapter():
            hidden = policy.hidden(b.ids, b.length, b.action, b.group)[b.action - 1]
            return Head(hidden, None) if policy.output is trained else policy.output.over(hidden)


class OwnWeights(_Unchanging):
    """A second model of the same shape.

    ``offload`` keeps it in (pinned) host memory and moves it to the device for each pass.
    """

    def __init__(self, learner: Learner, path: str | None, offload: bool = False) -> None:
        self.learner, self.offload = learner, offload and learner.device.type == "cuda"
        run = learner.run
        where = learner.model_path if path is None else str(locate(path, run.base))
        name = "model.path" if path is None else "reference.path or teacher.path"
        dtype = getattr(torch, run.model.dtype)
        lm, _ = load_for(where, dtype, learner.attention, name)
        sizes = (lm.get_output_embeddings().out_features, learner.policy.output.out_features)
        if sizes[0] != sizes[1]:
            raise ModelError(
                f"reference or teacher: {where} has a vocabulary of {sizes[0]}, the policy one of {sizes[1]}. Log-probs are "
                "compared token by token: use a model with the same tokenizer."
            )
        self.model = PolicyModel(lm, fp32_head=run.model.fp32_head).requires_grad_(False).eval()
        prove_logprobs(self.model, name, TOLERANCE[run.model.dtype])
        if self.offload:
            for p in self.model.parameters():
                p.data = p.data.pin_memory()
        else:
            self.model.to(learner.device)

    @contextlib.contextmanager
    def on_device(self) -> Any:
        if not self.offload:
            yield
            return
        host = {n: p.data for n, p in self.model.named_parameters()}
        for p in self.model.parameters():
            p.data = p.data.to(self.learner.device, non_blocking=True)
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
            for name, tensor in self.learner.full_weights():
                own[name].lerp_(tensor.to(own[name]), weight)


@dataclass(frozen=True, kw_only=True)
class Frozen(Reference):
    """The model that training started from (``path: null``) or another checkpoint, never changed.

    With LoRA and no ``path``, the adapter is switched off instead of loading a second model, wherever that gives the start model back.
    """

    path: str | None = None
    offload: bool = False

    def build(self, learner: Learner) -> ReferenceState:
        if learner.proof is not None and learner.proof.switched_off and self.path is None:
            return AdapterOff(learner)
        return OwnWeights(learner, self.path, self.offload)


class _TemperedState(OwnWeights):
    def __init__(self, learner: Learner, spec: Tempered) -> None:
        super().__init__(learner, spec.path, spec.offload)
        self.spec = spec

    def logprobs(self, b: Batch, sampling: Sampling) -> Tensor:
        assert b.ids is not None and b.action is not None
        head, target = self.head(b), b.ids[b.action]
        power = (self.spec.floor + (1 - self.spec.floor) * b.reward.clamp(0, 1))[b.seq, None] / (
            sampling.temperature or 1.0
        )
        out, rows = torch.empty(b.N, device=self.learner.device), max(1, CHUNK_ELEMENTS // head.classes)
        for i in range(0, b.N, rows):
            at = slice(i, min(b.N, i + rows))
            z = head.logits(at, 1.0, self.model.fp32_head) * power[at]
            out[at] = z.gather(-1, target[at, None])[:, 0] - z.logsumexp(-1)
        return out


class _ServedState(_Unchanging):
    """A model behind an OpenAI-compatible server that knows ``prompt_logprobs`` (``vllm serve``)."""

    def __init__(self, spec: Served) -> None:
        self.spec = spec
        models = [m["id"] for m in self._call("models")["data"]]
        self.model = spec.model or models[0]
        if self.model not in models:
            raise ModelError(
                f"teacher: the server at {spec.url} has no model {self.model!r}; it has {', '.join(models)}."
            )

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        url = f"{self.spec.url.rstrip('/')}/v1/{path}"
        data = None if body is None else json.dumps(body).encode()
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {os.environ.get('RLKIT_TEACHER_KEY', '-')}",
        }
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, data, headers), timeout=self.spec.timeout
            ) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise ModelError(
                f"teacher: {url} answered {error.code}: {error.read()[:300].decode(errors='replace')}"
            ) from error
        except (OSError, ValueError) as error:
            raise ModelError(
                f"teacher: no answer from {url} ({error}). Start one with `vllm serve MODEL`, or correct the url."
            ) from error

    def logprobs(self, b: Batch, sampling: Sampling) -> Tensor:
        assert b.ids is not None and b.length is not None and b.action is not None
        rows = [x.tolist() for x in b.ids.cpu().split(b.length.tolist())]
        with ThreadPoolExecutor(self.spec.parallel) as pool:
            found = [x for row in pool.map(self._score, rows) for x in row]
        return torch.tensor(found, device=b.ids.device)[b.action]

    def _score(self, ids: list[int]) -> list[float]:
        body = {
            "model": self.model,
            "prompt": ids,
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": 0,
            "add_special_tokens": False,
        }
        given = self._call("completions", body)["choices"][0]["prompt_logprobs"]
        if given is None or len(given) != len(ids):
            raise ModelError(
                f"teacher: {self.spec.url} gave no prompt_logprobs for {len(ids)} tokens; it must be a vLLM server."
            )
        return [
            0.0 if entry is None else float(entry[str(token)]["logprob"])
            for token, entry in zip(ids, given, strict=True)
        ]

    def head(self, b: Batch) -> Head:
        raise ModelError(
            "a served teacher gives log-probs of single tokens: FullDivergence needs teacher: {type: Frozen, path: ...}."
        )


@dataclass(frozen=True, kw_only=True)
class Served(Reference):
    """Log-probs from a vLLM server: ``url`` like http://host:8000, ``model`` null for its first. The tokenizer must be the policy's.

    Servers answer at temperature 1 without truncation, so ``sampling.temperature`` must be 1 and top-p, top-k off. A key is read from the
    environment, ``RLKIT_TEACHER_KEY``.
    """

    url: str
    model: str | None = None
    parallel: Count = 16
    timeout: Positive = 120.0

    def build(self, learner: Learner) -> ReferenceState:
        s = learner.run.sampling
        if s.temperature != 1 or s.top_p < 1 or s.top_k:
            raise ModelError(
                "a served teacher or reference gives log-probs at temperature 1: set sampling.temperature: 1.0, top_p: 1.0, "
                "top_k: 0, or use type: Frozen."
            )
        return _ServedState(self)


@dataclass(frozen=True, kw_only=True)
class Tempered(Reference):
    """A frozen model, flattened where the reward is low: ``ref^phi / Z`` per token, ``phi = floor + (1 - floor) clip(reward, 0, 1)``.

    With ``floor: 0`` a wrong response is compared with the uniform distribution.

    Source: RAPO 2510.03865, reward-aware reference; the form of phi is a reconstruction [abstract].
    """

    floor: Share = 0.0
    path: str | None = None
    offload: bool = False

    def build(self, learner: Learner) -> ReferenceState:
        return _TemperedState(learner, self)


class _Following(OwnWeights):
    """A reference whose weights follow the policy; they are part of the checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.model.base.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.base.load_state_dict(state["weights"])


class _EMAState(_Following):
    def __init__(self, learner: Learner, spec: EMA) -> None:
        super().__init__(learner, spec.path, spec.offload)
        self.spec = spec

    def after_step(self, step: int, stats: Stats) -> None:
        if step % self.spec.every == 0:
            self.blend(1 - self.spec.decay)


@dataclass(frozen=True, kw_only=True)
class EMA(Reference):
    """``ref <- decay * ref + (1 - decay) * policy`` every ``every`` steps (WARP 2406.16768, GRPO-CARE 2506.16141)."""

    decay: Decay = 0.99  # 1 would never follow the policy
    every: Count = 1
    path: str | None = None
    offload: bool = False

    def build(self, learner: Learner) -> ReferenceState:
        return _EMAState(learner, self)


class _ResetState(_Following):
    def __init__(self, learner: Learner, spec: HardReset) -> None:
        super().__init__(learner, spec.path, spec.offload)
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
            self.learner.reset_optimizer()

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
class HardReset(Reference):
    """``ref <- policy`` every ``every`` steps, or when a moving average of the KL (nats per token) passes ``kl_above``,
    or when ``patience`` evaluations bring no better score (ProRL 2505.24864); optionally with a fresh optimizer.
    """

    every: Natural = 0
    kl_above: NonNegative | None = None
    patience: Count | None = None
    reset_optimizer: bool = False
    path: str | None = None
    offload: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.every and self.kl_above is None and self.patience is None:
            raise ModelError(
                "reference HardReset never resets: set `every` (steps), `kl_above` (nats per token) or "
                "`patience` (evaluations). For a reference that never changes use type: Frozen."
            )

    def build(self, learner: Learner) -> ReferenceState:
        return _ResetState(learner, self)


class _ElasticState:
    """Elastic Reset: a frozen reference, and a policy that goes back to its own average."""

    def __init__(self, learner: Learner, spec: ElasticReset) -> None:
        self.learner, self.spec, self.resets = learner, spec, 0
        self.frozen = Frozen(path=spec.path, offload=spec.offload).build(learner)
        self.start = {name: p.cpu() for name, _, p in self._policy()}  # read at resets only: host memory is enough
        self.average = {name: p for name, _, p in self._policy()}

    def _policy(self) -> Any:
        """(name, parameter, whole copy in float32) of what is trained, the critic's parameters aside."""
        for name, p in self.learner.policy.lm.named_parameters():
            if p.requires_grad:
                with torch.no_grad(), self.learner.backend.whole([p]):
                    copy = p.detach().float().clone()
                yield name, p, copy

    def logprobs(self, b: Batch, sampling: Sampling) -> Tensor:
        return self.frozen.logprobs(b, sampling)

    def head(self, b: Batch) -> Head:
        return self.frozen.head(b)

    def after_step(self, step: int, stats: Stats) -> None:
        for name, _, value in self._policy():
            self.average[name].lerp_(value, 1 - self.spec.decay)
        if step % self.spec.every == 0:
            for name, p in self.learner.policy.lm.named_parameters():
                if p.requires_grad:
                    self.learner.backend.assign(p, self.average[name])
                    self.average[name].copy_(self.start[name])
            self.resets += 1

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "start": self.start, "resets": self.resets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.resets = state["resets"]
        for name, value in self.average.items():
            value.copy_(state["average"][name])
            self.start[name].copy_(state["start"][name])


@dataclass(frozen=True, kw_only=True)
class ElasticReset(Reference):
    """The start model as the reference, and every ``every`` steps the policy becomes its own moving average, which restarts at the start.

    ``average <- decay * average + (1 - decay) * policy`` each step; at a reset ``policy <- average``, ``average <- start``. The optimizer's
    state and the value function stay. Costs a copy of the trained parameters on the device and one in host memory.

    Source: Elastic Reset (NeurIPS 2023), released code.
    """

    every: Count = 260
    decay: Decay = 0.995
    path: str | None = None
    offload: bool = False

    def build(self, learner: Learner) -> ReferenceState:
        return _ElasticState(learner, self)


@dataclass(frozen=True, kw_only=True)
class Soup(Reference):
    """The (weighted) average of several checkpoints of one architecture (SALSA; the weights are [memory])."""

    paths: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    offload: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.paths) < 2:
            raise ModelError(f"reference Soup needs at least two `paths`; found {len(self.paths)}.")
        if self.weights is not None and len(self.weights) != len(self.paths):
            raise ModelError(f"reference Soup has {len(self.paths)} paths but {len(self.weights)} weights.")

    def build(self, learner: Learner) -> ReferenceState:
        state = OwnWeights(learner, self.paths[0], self.offload)
        weights = self.weights or (1 / len(self.paths),) * len(self.paths)
        own = dict(state.model.base.named_parameters())
        with torch.no_grad():
            for p in own.values():
                p.mul_(weights[0])
            for path, weight in zip(self.paths[1:], weights[1:], strict=True):
                where = locate(path, learner.run.base)
                other = dict(
                    load_lm(where, getattr(torch, learner.run.model.dtype), where="reference.paths").named_parameters()
                )
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


def starts_at_reference(run: Run) -> bool:
    """Whether the reference of a run's first step is the model that training starts from."""
    return isinstance(run.reference, Frozen | EMA | HardReset | ElasticReset) and run.reference.path is None
