"""A teacher with a tokenizer of its own: it reads the same texts in its own tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlkit.data.alignment import Piece, encode, ends, pieces
from rlkit.data.render import Encoder
from rlkit.model.endings import Endings
from rlkit.model.load import load_tokenizer
from rlkit.model.reference import Dtype, Loaded, OwnWeights, ReferenceState, Trained
from rlkit.objective.full_vocab import Ranked
from rlkit.place import Place
from rlkit.types import Batch, Sampling


@dataclass(frozen=True)
class _Row:
    """One response in the teacher's tokens, with its prompt before it; ``pieces`` are those of the response, in both tokenizations."""

    prompt: list[int]
    response: list[int]
    pieces: list[Piece]


class _State(ReferenceState):
    def __init__(self, trained: Trained, spec: Translated) -> None:
        self.teacher = OwnWeights(trained, spec.path, spec.offload, spec.dtype, other_tokens=True)
        self.model, self.device = self.teacher.model, trained.device
        own = load_tokenizer(trained.start)
        self.own, self.front = Endings.of(trained.start, own), Encoder(own).front
        self.other = Endings.of(spec.path, load_tokenizer(spec.path))
        self.encoder = Encoder(self.other.tokenizer)

    def _row(self, prompt: list[int], response: list[int]) -> _Row:
        bare = prompt[len(self.front) :] if tuple(prompt[: len(self.front)]) == self.front else prompt
        ended = response[-1] in self.own.ids
        said = response[:-1] if ended else response
        text = self.own.decode(said)
        ids, other_ends = encode(self.other.tokenizer, text)
        found = pieces(ends(self.own.decode, said), other_ends)
        if ended:  # whatever ends a response is the same thing in both
            found.append(Piece(range(len(said), len(response)), range(len(ids), len(ids) + 1)))
            ids = [*ids, self.other.last]
        return _Row(list(self.encoder(self.own.decode(bare))), ids, found)

    def _rows(self, b: Batch) -> Iterator[tuple[_Row, list[int]]]:
        """Each row of the batch in the teacher's tokens, and the numbers of its response's tokens among the batch's ``N``; -1 for none."""
        assert b.ids is not None and b.length is not None and b.action is not None
        number = torch.full((len(b.ids),), -1)
        number[b.action.cpu()] = torch.arange(b.N)
        size = b.length.tolist()
        for ids, numbers in zip(b.ids.cpu().split(size), number.split(size), strict=True):
            trained = (numbers >= 0).nonzero()
            start = int(trained[0]) if len(trained) else len(ids) - 1
            yield self._row(ids[:start].tolist(), ids[start:].tolist()), numbers[start:].tolist()

    def _read(self, rows: list[_Row]) -> tuple[Tensor, Tensor, list[int]]:
        """Tokens and lengths of the rows as a model takes them, and where in them each response begins."""
        whole = [[*row.prompt, *row.response] for row in rows]
        begin, out = 0, []
        for row, tokens in zip(rows, whole, strict=True):
            out.append(begin + len(row.prompt))
            begin += len(tokens)
        ids = torch.tensor([i for x in whole for i in x], device=self.device)
        return ids, torch.tensor([len(x) for x in whole], device=self.device), out

    def logprobs(self, b: Batch, sampling: Sampling) -> Tensor:
        found = list(self._rows(b))
        rows = [row for row, _ in found]
        ids, length, starts = self._read(rows)
        action = [start + k for row, start in zip(rows, starts, strict=True) for k in range(len(row.response))]
        with torch.no_grad(), self.teacher.on_device():
            at = torch.tensor(action, device=ids.device)
            uncut = Sampling(temperature=sampling.temperature)
            logp, *_ = self.model(ids, length, at, b.group, uncut)
        logp = logp.float().cpu()
        out, own, first = b.logp["behav"].detach().float().cpu().clone(), b.logp["behav"].float().cpu(), 0
        for row, numbers in found:
            for piece in row.pieces:
                places = [numbers[i] for i in piece.own]
                if places and min(places) >= 0:  # else a tool wrote a part of it
                    total = logp[first + piece.other.start : first + piece.other.stop].sum()
                    out[places] = own[places] + (total - own[places].sum()) / len(places)
            first += len(row.response)
        return out.to(ids.device)

    def head(self, b: Batch) -> Ranked:
        found = list(self._rows(b))
        ids, length, starts = self._read([row for row, _ in found])
        at, place = list[int](), list[int]()
        for (row, numbers), start in zip(found, starts, strict=True):
            for piece in row.pieces:
                if piece.own and piece.other and numbers[piece.own.start] >= 0:
                    at.append(start + piece.other.start)
                    place.append(numbers[piece.own.start])
        with torch.no_grad(), self.teacher.on_device():
            action = torch.tensor(at, device=ids.device)
            hidden = self.model.hidden(ids, length, action, b.group)[action - 1]
            return Ranked(self.model.output.over(hidden), torch.tensor(place, device=ids.device))


@dataclass(frozen=True, kw_only=True)
class Translated(Loaded):
    """A teacher of any tokenizer, in this process, never changed. It reads the text of each prompt and response in its own tokens.

    Texts are cut into the shortest pieces that are whole tokens of both. A piece's log-prob is the sum over the teacher's tokens in it (the
    chain rule; a text's other tokenizations are left out, as always); it is given to the policy's tokens of the piece such that each has
    the same log-ratio to what sampled it. So terms of samples (``KL``, ``Divergence``, ``TokenKL``) compare pieces, and
    :class:`rlkit.objective.full_vocab.UniversalLogit` compares the distributions with which pieces begin. A tool's tokens within a piece
    leave it out; what ends a response is a piece of its own.

    The prompt is the same text, so a chat template's marks are those of the policy's template, whatever the teacher's is: use models with
    one template, or a plain one. Top-p and top-k do not cut the teacher's distribution.

    Attributes:
        path: the model. dtype: of its weights; null: ``model.dtype``.
    """

    other_tokens: ClassVar[bool] = True
    path: Place
    dtype: Dtype | None = None

    @property
    def models(self) -> tuple[str, ...]:
        return (self.path,)

    def build(self, trained: Trained) -> ReferenceState:
        return _State(trained, self)
