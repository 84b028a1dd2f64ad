"""The Hugging Face engine under :class:`rlkit.rollout.control.CopT`: drafts, their scores, and thinking where a draft is not kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlkit.model.load import load_for
from rlkit.rollout.control import CopT
from rlkit.rollout.draw import sample
from rlkit.rollout.hf import HFEngine, _Request
from rlkit.rollout.reading import Reading, proven
from rlkit.types import Finish, Rollout

PIECE = 128  # tokens whose logits exist at once when a text is scored


@dataclass
class _Row:
    """One response while it grows: first a draft, then, if that is not kept, a thought.

    ``tokens``, ``logp`` and ``sampled`` are those of the response; ``own`` are the log-probs at temperature 1 of the sampled ones, and
    ``doubts`` the embeddings of the distributions that they were sampled from. ``place``: where the first of them stands in the cache.
    """

    tokens: list[int]
    logp: list[float]
    sampled: list[bool]
    place: int
    own: list[float] = field(default_factory=list)
    doubts: list[Tensor] = field(default_factory=list)  # [H] each
    draft: tuple[int, int] | None = None  # the places of a draft that was not kept
    judged: int = 0  # sampled tokens of the thought that were scored
    finish: Finish | None = None

    def forced(self, ids: Sequence[int]) -> None:
        self.tokens, self.logp, self.sampled = list(ids), [0.0] * len(ids), [False] * len(ids)
        self.own, self.doubts = [], []

    def takes(self, token: int, logp: float, own: float, doubt: Tensor) -> None:
        self.tokens.append(token)
        self.logp.append(logp)
        self.sampled.append(True)
        self.own.append(own)
        self.doubts.append(doubt)


class CopTEngine(HFEngine):
    """See :class:`rlkit.rollout.engine.Engine`. Requests run one after the other, the responses of each side by side."""

    def __init__(self, model: str, control: CopT, *, dtype: str = "float32", max_model_len: int = 1024) -> None:
        super().__init__(model, dtype=dtype, max_model_len=max_model_len)
        self.control = control
        self.think, self.answer = control.marks(self.tokenizer)

    def _load(self, model: str, dtype: torch.dtype) -> Any:
        lm, _ = load_for(model, dtype, None)  # rlkit's own attention knows of no places that are hidden
        return proven(lm.to(self.device).eval().requires_grad_(False), "CopT")

    def _run(self, batch: Sequence[_Request]) -> list[list[Rollout]]:
        return [self._respond(request) for request in batch]

    def _respond(self, request: _Request) -> list[Rollout]:
        sampling, start = request.sampling, len(request.prompt.token_ids)
        reading = Reading(self.lm, 1)
        ids = torch.tensor([[*request.prompt.token_ids, *self.answer]], device=self.device)
        logits = reading.read(torch.arange(1, device=self.device), ids)[:, -1].expand(request.n, -1)
        reading.select(torch.zeros(request.n, dtype=torch.long, device=self.device))
        rows = [_Row([], [], [], start + len(self.answer)) for _ in range(request.n)]
        for row in rows:
            row.forced(self.answer)
        chance, embedding = self._chances([request]).to(self.device), self.lm.get_input_embeddings().weight
        going = torch.arange(request.n, device=self.device)
        for t in range(sampling.max_tokens):
            tokens, logps = sample(logits, sampling, chance[going, t])
            own = logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
            doubts = logits.float().softmax(-1).to(embedding.dtype) @ embedding
            fresh: list[list[int]] = []
            for i, *taken in zip(going.tolist(), tokens.tolist(), logps.tolist(), own.tolist(), doubts, strict=True):
                rows[i].takes(*taken)
                fresh.append(self._next(rows[i], i, reading, request))
            self.work.tokens += len(fresh)
            kept = [k for k, new in enumerate(fresh) if new]
            if not kept or t == sampling.max_tokens - 1:
                break
            going = going[kept]
            logits = reading.read_last(going, [fresh[k] for k in kept])
            self.work.steps += 1
        return [self._rollout(row, request) for row in rows]

    def _next(self, row: _Row, i: int, reading: Reading, request: _Request) -> list[int]:
        """What row ``i`` reads now, after it took a token: that token, the mark of thinking, or nothing more."""
        stop = request.sampling.stop
        ended = row.tokens[-1] in self.endings.ids
        closed = ended or (bool(stop) and self.endings.stopped(row.tokens[-self.endings.reach(stop) :], stop))
        if row.draft is None and (closed or len(row.own) >= self.control.draft_tokens):
            length = len(row.own) - ended  # what ends a response is no part of its text
            if closed and (length < 2 or self._score(reading, i, row, 0, length) <= self.control.accept):
                row.finish = "stop"
                return []
            end = int(reading.length[i])  # the newest token is not read yet, and never will be
            row.draft = (row.place - len(self.answer), end)
            reading.hide(i, *row.draft)
            row.place = end + len(self.think)
            row.forced(self.think)
            return self.think
        if row.draft is not None and not closed:
            self._judge(row, i, reading)
        if closed:
            row.finish = "stop"
            return []
        return [row.tokens[-1]]

    def _judge(self, row: _Row, i: int, reading: Reading) -> None:
        """After every quarter of a draft's length of thought, whether the draft is seen from now on."""
        assert row.draft is not None
        size = max(1, (row.draft[1] - row.draft[0]) // 4)
        if len(row.own) - row.judged < size:
            return
        score = self._score(reading, i, row, row.judged, row.judged + size)
        row.judged += size
        reading.hide(i, *row.draft, hidden=not score < self.control.show)

    @torch.no_grad()
    def _score(self, reading: Reading, i: int, row: _Row, first: int, last: int) -> float:
        """``mean_t (log pi(y_t | tokens) - log pi(y_t | doubts))`` of sampled tokens ``first`` to ``last``; of a draft without its first.

        What stands before them is taken as it was read, but for the token right before them: if it was sampled, its doubts are given, too.
        """
        begin, forced = first if first or row.draft is not None else 1, len(row.tokens) - len(row.own)
        if begin:
            doubts = row.doubts[begin - 1 : last - 1]
        else:
            before = self.lm.get_input_embeddings()(torch.tensor(row.tokens[forced - 1], device=self.device))
            doubts = [before, *row.doubts[: last - 1]]
        ids = torch.tensor(row.tokens[forced + begin : forced + last], device=self.device)
        fork, at = reading.fork(i, row.place + begin - 1), torch.zeros(1, dtype=torch.long, device=self.device)
        found = []
        for given, want in zip(torch.stack(doubts).split(PIECE), ids.split(PIECE), strict=True):
            z = fork.read(at, embeds=given[None], keep=len(given))[0].float()
            found.append(z.log_softmax(-1).gather(-1, want[:, None])[:, 0])
        own = torch.tensor(row.own[begin:last], device=self.device)
        return float((own - torch.cat(found)).mean())

    def _rollout(self, row: _Row, request: _Request) -> Rollout:
        text = self.endings.text(row.tokens, request.sampling.stop)
        version = [self.version] * len(row.tokens)
        return Rollout(request.prompt, row.tokens, row.sampled, row.logp, version, row.finish or "length", text=text)
