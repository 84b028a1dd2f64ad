"""Generation with transformers alone: for notebooks, debuggers and machines without vLLM.

A worker thread gathers the requests that are waiting into batches of prompts of similar length. The prompt of a group is prefilled once
and shared by its samples, and rows that have finished leave the batch. Every row draws from its own seeded generator, so its tokens do
not depend on what it was batched with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlkit.model import packed
from rlkit.model.endings import Endings
from rlkit.model.export import stored
from rlkit.model.head import CHUNK_ELEMENTS, LMHead
from rlkit.model.load import load_for, load_tokenizer
from rlkit.model.policy import PolicyModel, evaluate_new
from rlkit.objective.full_vocab import TopK
from rlkit.record.memory import release
from rlkit.rollout.cache import argument, left_padded, make_cache, prove_cache
from rlkit.rollout.draw import sample
from rlkit.rollout.engine import Engine, EngineSetup, EngineSpec, Pending, UpdateMode, check_length, request_seed
from rlkit.types import Batch, Finish, Prompt, Rollout, Sampling

MAX_ROWS = 512  # rows of one batch
COMPANY = 0.02  # a batch waits for further requests, for at most this share of the time that the last one took
LEAVE = 0.85  # finished rows leave a batch once at most this share of its rows still generates


@dataclass
class _Request:
    prompt: Prompt
    n: int
    sampling: Sampling
    future: Future[list[Rollout]]


class _Update:
    """A weight update that waits in the inbox: requests before it are answered by the old weights, those after it by the new ones."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()


def _batches(requests: Sequence[_Request]) -> list[list[_Request]]:
    """Cuts requests into batches of equal sampling settings and similar prompt lengths (padding costs), of at most MAX_ROWS rows each.

    Seeds may differ: every row has its own.
    """
    out: list[list[_Request]] = []
    rows = 0
    alike = [dataclasses.replace(r.sampling, seed=None) for r in requests]
    order = {sampling: i for i, sampling in enumerate(dict.fromkeys(alike))}
    kinds = [order[sampling] for sampling in alike]
    last = -1
    for kind, r in sorted(zip(kinds, requests, strict=True), key=lambda x: (x[0], len(x[1].prompt.token_ids))):
        if kind != last or rows + r.n > MAX_ROWS:
            out.append([])
            rows = 0
        out[-1].append(r)
        rows, last = rows + r.n, kind
    return out


class HFEngine(Engine):
    """See :class:`rlkit.rollout.engine.Engine`. Requests with different sampling settings run one after the other.

    ``lm``: the model of a learner in this process, on this device. The engine then has no weights of its own: a weight update only gives
    them their version, and nobody may train while a request runs.
    """

    def __init__(self, model: str, *, dtype: str = "float32", max_model_len: int = 1024, lm: Any = None) -> None:
        super().__init__()
        self.device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        self.shared = lm is not None
        self.lm = lm if self.shared else self._load(model, getattr(torch, dtype))
        self.tokenizer = load_tokenizer(model)
        self.endings = Endings.of(model, self.tokenizer)
        self.limit = max_model_len
        self._inbox: queue.SimpleQueue[_Request | _Update | None] = queue.SimpleQueue()
        self._update = _Update()
        self._pending = Pending()
        self._lock = threading.Lock()  # held while a batch runs or is scored, and during a weight update
        with self._running():
            prove_cache(self.lm)
        self._thread = threading.Thread(target=self._loop, name="hf-engine", daemon=True)
        self._thread.start()

    def _load(self, model: str, dtype: torch.dtype) -> Any:
        """The model for inference; on CPUs, where it is faster, with rlkit's attention, if the model allows it."""
        packed.register()
        lm, _ = load_for(model, dtype, packed.NAME if self.device.type == "cpu" else None)
        lm.set_output_embeddings(LMHead.adopt(lm.get_output_embeddings()))
        return lm.to(self.device).eval().requires_grad_(False)

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Inside, weights stay as they are, and the model, which somebody else may train, infers."""
        with self._lock, torch.no_grad():
            training = self.lm.training
            self.lm.eval()
            try:
                yield
            finally:
                self.lm.train(training)

    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        check_length(prompt, sampling, self.limit)
        request = _Request(prompt, n, sampling, Future())
        return self._pending.wait(request.future, lambda: self._inbox.put(request))  # type: ignore[no-any-return]

    def _loop(self) -> None:
        took = 0.0
        while True:
            waiting, last = list[_Request](), self._inbox.get()
            patience = max(0.002, COMPANY * took)
            while isinstance(last, _Request):  # callers of one step arrive together
                waiting.append(last)
                try:
                    last = self._inbox.get(timeout=patience if len(waiting) < MAX_ROWS else 0)
                except queue.Empty:
                    break
            took = 0.0
            for batch in _batches(waiting):
                start = time.perf_counter()
                try:
                    with self._running():
                        results = self._run(batch)
                    for r, group in zip(batch, results, strict=True):
                        r.future.set_result(group)
                except Exception as error:
                    for r in batch:
                        r.future.set_exception(error)
                spent = time.perf_counter() - start
                took += spent
                self.work.busy += spent
            release()  # the cache was this thread's; what trains next allocates in another one
            if last is None:
                return
            if isinstance(last, _Update):
                last.begun.set()
                last.ended.wait()

    # -- the token loop ---------------------------------------------------------------------------------------------

    def _run(self, batch: Sequence[_Request]) -> list[list[Rollout]]:
        sampling, version, device = batch[0].sampling, self.version, self.device
        owner = torch.tensor([i for i, r in enumerate(batch) for _ in range(r.n)], device=device)
        chance = self._chances(batch).to(device)  # [R, max_tokens]
        ids, mask = (x.to(device) for x in left_padded([r.prompt.token_ids for r in batch]))
        position = (mask.cumsum(1) - 1).clamp(min=0)
        cache = self._cache(len(batch))
        kept = {argument(self.lm): cache}
        out = self.lm(
            input_ids=ids, attention_mask=mask, position_ids=position, use_cache=True, logits_to_keep=1, **kept
        )
        cache.batch_select_indices(owner)  # the prompt is computed once and shared by its samples
        logits, mask, position = out.logits[owner, -1], mask[owner], position[owner, -1:]
        rows = torch.arange(len(owner), device=device)
        tokens = torch.zeros(len(owner), sampling.max_tokens, dtype=torch.long, device=device)
        logps = torch.zeros(len(owner), sampling.max_tokens, device=device)
        length = torch.full((len(owner),), sampling.max_tokens, device=device)
        stopped = torch.zeros(len(owner), dtype=torch.bool, device=device)
        ending = torch.tensor(sorted(self.endings.ids), dtype=torch.long, device=device)
        for t in range(sampling.max_tokens):
            tokens[rows, t], logps[rows, t] = sample(logits, sampling, chance[rows, t])
            ends = torch.isin(tokens[rows, t], ending)
            if sampling.stop:
                newest = tokens[rows, max(0, t + 1 - self.endings.reach(sampling.stop)) : t + 1].tolist()
                ends |= torch.tensor([self.endings.stopped(x, sampling.stop) for x in newest], device=device)
            ends &= ~stopped[rows]
            length[rows[ends]], stopped[rows[ends]] = t + 1, True
            going = ~stopped[rows]
            left = int(going.sum())
            if not left or t == sampling.max_tokens - 1:
                break
            if left <= LEAVE * len(rows):  # finished rows leave the batch, several at a time: the cache is copied
                keep = going.nonzero()[:, 0]
                cache.batch_select_indices(keep)
                rows, mask, position = rows[keep], mask[keep], position[keep]
            position = position + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            token = tokens[rows, t, None]
            out = self.lm(input_ids=token, attention_mask=mask, position_ids=position, use_cache=True, **kept)
            logits = out.logits[:, -1]
            self.work.steps += 1
        self.work.tokens += int(length.sum())
        results: list[list[Rollout]] = [[] for _ in batch]
        found = zip(owner.tolist(), tokens.tolist(), logps.tolist(), length.tolist(), stopped.tolist(), strict=True)
        texts = dict[tuple[int, ...], str]()  # many short answers are the same
        for k, x, logp, count, stop in found:
            shown = tuple(x[:count])
            text = texts.get(shown)
            if text is None:
                text = texts[shown] = self.endings.text(x[:count], sampling.stop)
            finish: Finish = "stop" if stop else "length"
            results[k].append(
                Rollout(batch[k].prompt, x[:count], [True] * count, logp[:count], [version] * count, finish, text=text)
            )
        return results

    def _cache(self, rows: int) -> Any:
        """What is read of so many prompts."""
        return make_cache(self.lm.config)

    def _chances(self, batch: Sequence[_Request]) -> Tensor:
        """Numbers in [0, 1) for every row and token, from each row's own generator where the sampling has a seed."""
        seeds = [request_seed(r.sampling, r.prompt, self.version) for r in batch]
        generators = [
            None if seed is None else torch.Generator().manual_seed(seed + k)
            for r, seed in zip(batch, seeds, strict=True)
            for k in range(r.n)
        ]
        return torch.stack(
            [torch.rand(batch[0].sampling.max_tokens, generator=g, dtype=torch.float64) for g in generators]
        )

    @functools.cached_property
    def _policy(self) -> PolicyModel:
        """The model as learners evaluate it; an engine that only generates never makes it."""
        return PolicyModel(self.lm)

    def _batch(self, rollouts: Sequence[Rollout]) -> Batch:
        return Batch.from_rollouts(rollouts).map(lambda t: t.to(self.device))

    def score(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        b = self._batch(rollouts)
        with self._running():
            logp = evaluate_new(self._policy, b, Sampling(), frozenset()).logp
        return [x.tolist() for x in logp.split(b.count().tolist())]

    def _states(self, rows: Sequence[Sequence[int]]) -> tuple[Batch, Tensor]:
        """Rows of given tokens, all but the first of each predicted, and the hidden states that predict them."""
        b = self._batch([Rollout.given(Prompt("", (row[0],), ""), list(row[1:])) for row in rows])
        assert b.ids is not None and b.length is not None and b.action is not None
        return b, self._policy.hidden(b.ids, b.length, b.action, b.group)[b.action - 1]

    def hidden(self, rows: Sequence[Sequence[int]]) -> Tensor:
        with self._running():
            b, hidden = self._states(rows)
        assert b.ids is not None and b.action is not None
        return hidden.new_zeros(len(b.ids), hidden.shape[1]).index_copy_(0, b.action, hidden).cpu()

    def likely(self, rows: Sequence[Sequence[int]], k: int) -> tuple[Tensor, Tensor, Tensor]:
        with self._running():
            b, hidden = self._states(rows)
            assert b.ids is not None and b.action is not None
            whole = self._policy.output.over(hidden)
            found, _, _ = self._policy.output(hidden, target=b.ids[b.action])
            top = TopK.of(whole, b.N, k, whole.classes)
        logp, ids, likely = (
            torch.zeros(len(b.ids)),
            torch.zeros(len(b.ids), k, dtype=torch.long),
            torch.zeros(len(b.ids), k),
        )
        at = b.action.cpu()
        logp[at], ids[at], likely[at] = found.cpu(), top.ids.cpu(), top.logp.cpu()
        return logp, ids, likely

    def self_certainty(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Mean over a response's tokens of ``KL(uniform‖pi) = logsumexp(z) - mean(z) - log V``, nats.

        Source: Self-Certainty 2502.18581.
        """
        b = self._batch(rollouts)
        assert b.ids is not None and b.length is not None and b.action is not None
        with self._running():
            hidden = self._policy.hidden(b.ids, b.length, b.action, b.group)[b.action - 1]
            head = self._policy.output.over(hidden)
            size = max(1, CHUNK_ELEMENTS // head.classes)
            parts = [head.logits(slice(i, i + size), 1.0, False) for i in range(0, len(hidden), size)]
            each = torch.cat([z.logsumexp(-1) - z.mean(-1) for z in parts])
        each = each - math.log(head.classes)
        return [float(x) for x in b.seq_mean(each)]

    # -- weights ----------------------------------------------------------------------------------------------------

    def begin_update(self, mode: UpdateMode) -> None:
        self._update = _Update()
        self._inbox.put(self._update)
        self._update.begun.wait()  # it cannot stop: what was asked before is answered first, whatever the mode
        self._lock.acquire()

    def assign(self, tensors: Mapping[str, Tensor]) -> None:
        if self.shared:
            return  # it is what is trained
        named = stored(self.lm)
        with torch.no_grad():
            for name, value in tensors.items():
                named[name].copy_(value)

    def end_update(self, version: int) -> None:
        self.version = version
        self._lock.release()
        self._update.ended.set()

    def ready(self) -> dict[str, Any]:
        return {"engine": "hf", "max_model_len": self.limit}

    def close(self) -> None:
        self._inbox.put(None)
        self._update.ended.set()
        self._thread.join(10)
        self._pending.fail(RuntimeError("the engine was closed"))


@dataclass(frozen=True)
class HF(EngineSpec):
    """``rollout.engine: hf``."""

    shares = True
    label = "hf"

    def prepare(self) -> None:
        from transformers import AutoModelForCausalLM  # noqa: F401

    def start(self, setup: EngineSetup) -> HFEngine:
        return HFEngine(setup.path, dtype=setup.dtype, max_model_len=setup.max_model_len, lm=setup.lm)
