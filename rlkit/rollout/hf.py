"""Generation with transformers alone: for notebooks, debuggers and machines without vLLM.

A worker thread gathers the requests that are waiting into one batch. The prompt of a group is prefilled once and shared by its
samples; every row draws from its own seeded generator, so its tokens do not depend on what it was batched with.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlkit.cluster.wire import unpack
from rlkit.learner.head import CHUNK_ELEMENTS, truncate
from rlkit.learner.model import PolicyModel, evaluate_new, load_lm, load_tokenizer
from rlkit.rollout.engine import Pending, UpdateMode, check_length, request_seed
from rlkit.types import Batch, Finish, Prompt, Rollout, Sampling

MAX_ROWS = 512


@dataclass
class _Request:
    prompt: Prompt
    n: int
    sampling: Sampling
    future: Future[list[Rollout]]


class HFEngine:
    """See :class:`rlkit.rollout.engine.Engine`. Requests with different sampling settings run one after the other."""

    def __init__(self, model: str, *, dtype: str = "float32", max_model_len: int = 1024) -> None:
        self.device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        self.lm = load_lm(model, dtype=getattr(torch, dtype)).to(self.device).eval().requires_grad_(False)
        self.tokenizer = load_tokenizer(model)
        self.limit, self.version = max_model_len, 0
        self._policy: PolicyModel | None = None
        self._inbox: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._pending = Pending()
        self._lock = threading.Lock()               # held while a batch runs and during a weight update
        self._tokens, self._busy, self._started = 0, 0.0, time.perf_counter()
        self._thread = threading.Thread(target=self._loop, name="hf-engine", daemon=True)
        self._thread.start()

    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        check_length(prompt, sampling, self.limit)
        request = _Request(prompt, n, sampling, Future())
        return self._pending.wait(request.future, lambda: self._inbox.put(request))  # type: ignore[no-any-return]

    def _loop(self) -> None:
        waiting: list[_Request] = []
        while True:
            if not waiting:
                first = self._inbox.get()
                if first is None:
                    return
                waiting.append(first)
            time.sleep(0.002)                       # callers of one step arrive together
            while not self._inbox.empty():
                item = self._inbox.get()
                if item is None:
                    return
                waiting.append(item)
            batch: list[_Request] = []
            for r in waiting:
                rows = sum(x.n for x in batch)
                if r.sampling == waiting[0].sampling and (not batch or rows + r.n <= MAX_ROWS):
                    batch.append(r)
            waiting = [r for r in waiting if r not in batch]
            start = time.perf_counter()
            try:
                with self._lock, torch.no_grad():
                    results = self._run(batch)
                for r, group in zip(batch, results, strict=True):
                    r.future.set_result(group)
            except Exception as error:
                for r in batch:
                    r.future.set_exception(error)
            self._busy += time.perf_counter() - start

    # -- the token loop ---------------------------------------------------------------------------------------------

    def _run(self, batch: Sequence[_Request]) -> list[list[Rollout]]:
        sampling, version = batch[0].sampling, self.version
        owner = torch.tensor([i for i, r in enumerate(batch) for _ in range(r.n)])
        generators = [self._generator(r, k) for r in batch for k in range(r.n)]
        width = max(len(r.prompt.token_ids) for r in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        for i, r in enumerate(batch):               # padded on the left: all rows continue at the same place
            ids[i, width - len(r.prompt.token_ids):] = torch.tensor(r.prompt.token_ids)
            mask[i, width - len(r.prompt.token_ids):] = 1
        ids, mask, owner = ids.to(self.device), mask.to(self.device), owner.to(self.device)
        position = (mask.cumsum(1) - 1).clamp(min=0)
        out = self.lm(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        cache.batch_select_indices(owner)           # the prompt is computed once and shared by its samples
        logits, mask, position = out.logits[owner, -1], mask[owner], position[owner, -1:]
        rows = torch.arange(len(owner), device=self.device)
        tokens: list[list[int]] = [[] for _ in generators]
        logps: list[list[float]] = [[] for _ in generators]
        finish: list[Finish] = ["length" for _ in generators]
        for t in range(sampling.max_tokens):
            token, logp = self._sample(logits.float(), sampling, [generators[i] for i in rows.tolist()])
            going = []
            for j, (i, x, lp) in enumerate(zip(rows.tolist(), token.tolist(), logp.tolist(), strict=True)):
                tokens[i].append(x)
                logps[i].append(lp)
                if x == self.tokenizer.eos_token_id or self._stopped(tokens[i], sampling):
                    finish[i] = "stop"
                else:
                    going.append(j)
            if not going or t == sampling.max_tokens - 1:
                break
            if len(going) < len(rows):              # finished rows leave the batch
                keep = torch.tensor(going, device=self.device)
                cache.batch_select_indices(keep)
                rows, token, mask, position = rows[keep], token[keep], mask[keep], position[keep]
            position = position + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            out = self.lm(input_ids=token[:, None], attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True)
            logits = out.logits[:, -1]
        self._tokens += sum(map(len, tokens))
        results: list[list[Rollout]] = [[] for _ in batch]
        for i, k in enumerate(owner.tolist()):
            text = str(self.tokenizer.decode(tokens[i], skip_special_tokens=True))
            for stop in sampling.stop:
                text = text.split(stop, 1)[0]
            count = len(tokens[i])
            results[k].append(Rollout(batch[k].prompt, tokens[i], [True] * count, logps[i], [version] * count, finish[i], text=text))
        return results

    def _generator(self, r: _Request, k: int) -> torch.Generator | None:
        seed = request_seed(r.sampling, r.prompt, self.version)
        return None if seed is None else torch.Generator(self.device).manual_seed(seed + k)

    def _stopped(self, tokens: list[int], sampling: Sampling) -> bool:
        if not sampling.stop:
            return False
        tail = self.tokenizer.decode(tokens[-32:], skip_special_tokens=True)
        return any(s in tail for s in sampling.stop)

    @staticmethod
    def _sample(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator | None]) -> tuple[Tensor, Tensor]:
        """Draws one token a row; log-probs after temperature, top-k and top-p."""
        best = logits.argmax(-1)
        if sampling.temperature == 0:
            return best, logits.log_softmax(-1).gather(-1, best[:, None])[:, 0]
        logits = logits / sampling.temperature
        if sampling.top_k or sampling.top_p < 1:
            logits = truncate(logits, best, sampling.top_k, sampling.top_p)
        logp = logits.log_softmax(-1)
        noise = torch.stack([torch.empty_like(logp[0]).exponential_(generator=g) for g in generators])
        token = (logp.exp() / noise).argmax(-1)     # exponential race: one draw from the softmax
        return token, logp.gather(-1, token[:, None])[:, 0]

    def score(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        if self._policy is None:
            self._policy = PolicyModel(self.lm)
        b = Batch.from_rollouts(rollouts).map(lambda t: t.to(self.device))
        with self._lock, torch.no_grad():
            logp = evaluate_new(self._policy, b, Sampling(), frozenset()).logp
        return [x.tolist() for x in logp.split(torch.bincount(b.seq, minlength=b.S).tolist())]

    def self_certainty(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Mean over a response's tokens of ``KL(uniform‖pi) = logsumexp(z) - mean(z) - log V``, nats (2502.18581)."""
        if self._policy is None:
            self._policy = PolicyModel(self.lm)
        b = Batch.from_rollouts(rollouts).map(lambda t: t.to(self.device))
        assert b.ids is not None and b.length is not None and b.action is not None
        layer = self._policy.base.get_output_embeddings()
        with self._lock, torch.no_grad():
            hidden = self._policy.hidden(b.ids, b.length, b.action, b.group)[b.action - 1]
            rows = max(1, CHUNK_ELEMENTS // layer.out_features)
            each = torch.cat([z.logsumexp(-1) - z.mean(-1) for h in hidden.split(rows) for z in [layer(h).float()]])
        each = each - math.log(layer.out_features)
        return [float(x) for x in b.seq_mean(each)]

    # -- weights ----------------------------------------------------------------------------------------------------

    def begin_update(self, mode: UpdateMode) -> None:
        self._lock.acquire()                        # a running batch always finishes first

    def load(self, tensors: Mapping[str, Any]) -> None:
        named = dict(self.lm.named_parameters())
        with torch.no_grad():
            for name, value in tensors.items():
                named[name].copy_(unpack(value))

    def end_update(self, version: int) -> None:
        self.version = version
        self._lock.release()

    def ready(self) -> dict[str, Any]:
        return {"engine": "hf", "max_model_len": self.limit}

    def stats(self) -> dict[str, float]:
        return {"tokens": float(self._tokens), "busy": self._busy, "alive": time.perf_counter() - self._started}

    def close(self) -> None:
        self._inbox.put(None)
        self._thread.join(10)
        self._pending.fail(RuntimeError("the engine was closed"))
