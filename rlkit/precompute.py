"""What a reference or a teacher says of rows of data: computed once, kept in a file, and read again where model and rows are the same.

Such a run needs no second model beside the one that it trains, neither its memory nor its passes. Kept are the log-probs of the rows'
tokens and, where a term compares whole distributions, the most likely tokens at each place with one number for all others. Numbers of
whole distributions are kept in two bytes each: log-probs in float16, the tail's among them, ids in 16 bits where the vocabulary allows it
and in 32 where not. When they are read, the tail is taken as it stands and the log-probs beside it are shifted so that all add up to 1;
divergences change by 0.1 % of themselves at most (measured: 50,000 tokens of which 16 are kept, distributions from flat to almost certain).
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlkit.data.examples import Example, ExampleRows
from rlkit.errors import CheckpointError, DataError
from rlkit.files import told
from rlkit.objective.full_vocab import TopK, tail
from rlkit.record.checkpoint import read_tensors, write_tensors
from rlkit.samples import Outputs, Rollout
from rlkit.types import Batch

TOGETHER = 256  # rows that are asked for, and written, at once
Annotate = Callable[[Batch, Sequence[str]], Batch]  # a batch with log-probs and most likely tokens of these names


@dataclass(frozen=True)
class Found:
    """What a model says of examples, in their order.

    Shapes:
        length ``[E]`` tokens of each example, which sum to ``L``; logp ``[L]``; ids ``[L, k]`` and top ``[L, k + 1]`` (float16, the tail's
        log-prob behind those of the tokens), None where only log-probs of tokens were asked for.
    """

    length: Tensor
    logp: Tensor
    ids: Tensor | None = None
    top: Tensor | None = None

    @classmethod
    def of(cls, length: Tensor, logp: Tensor, whole: TopK | None = None) -> Found:
        if whole is None:
            return cls(length, logp)
        ids, top = whole.ids, torch.cat([whole.logp, tail(whole.logp)], -1)
        small = ids.numel() == 0 or int(ids.max()) < 1 << 16
        return cls(length, logp, ids.to(torch.uint16 if small else torch.int32), top.half())

    @classmethod
    def joined(cls, parts: Sequence[Found]) -> Found:
        length, logp = torch.cat([p.length for p in parts]), torch.cat([p.logp for p in parts])
        ids, top = [p.ids for p in parts if p.ids is not None], [p.top for p in parts if p.top is not None]
        if not ids:
            return cls(length, logp)
        wide = next((x.dtype for x in ids if x.dtype == torch.int32), torch.uint16)  # a part may hold small ids alone
        return cls(length, logp, torch.cat([x.to(wide) for x in ids]), torch.cat(top))

    def outputs(self) -> Iterator[Outputs]:
        """Those of each example, as its response carries them."""
        at = 0
        for n in self.length.tolist():
            rows = slice(at, at + n)
            at += n
            yield Outputs(
                self.logp[rows],
                None if self.ids is None else self.ids[rows],
                None if self.top is None else self.top[rows],
            )


def restored(ids: Tensor, top: Tensor) -> TopK:
    """The most likely tokens of which ``ids`` and ``top`` were kept (see :class:`Found`): those beside the tail share what it leaves."""
    kept, rest = top[:, :-1].float(), top[:, -1:].float()
    kept += torch.log1p(-rest.exp().clamp(max=1 - 1e-6)) - kept.logsumexp(-1, keepdim=True)
    return TopK(ids.long(), kept)


@dataclass(frozen=True)
class Kept:
    """A file of what an anchor says of rows, and what that has to be of: the model, the rows (digests), and the temperature.

    Attributes:
        section: ``reference`` or ``teacher``. k: how many most likely tokens the terms tell apart; a file of more of them serves, too.

    While it is made, the part of every ``TOGETHER`` rows stands in a folder beside it, so that what was stopped goes on.
    """

    section: str
    path: Path
    model: str
    rows: str
    temperature: float
    k: int = 0

    @classmethod
    def of(
        cls, section: str, path: str, model: str, sets: Sequence[ExampleRows], temperature: float, k: int = 0
    ) -> Kept:
        digest = hashlib.sha256("".join(rows.digest for rows in sets).encode())
        return cls(section, Path(path), model, digest.hexdigest()[:16], temperature, k)

    @property
    def anchor(self) -> str:
        return "ref" if self.section == "reference" else "teacher"

    def read(self) -> Found | None:
        """What the file holds; None if there is none yet.

        Raises:
            DataError: it is of another model, of other rows, of another temperature, of fewer tokens, or no such file, or not all of one.
        """
        return self._read(self.path) if self.path.exists() else None

    def part(self, number: int) -> Found | None:
        """What an earlier start left of the rows from ``number * TOGETHER`` on; None: nothing, or not all of it."""
        try:
            return self._read(self._part(number)) if self._part(number).exists() else None
        except DataError:
            return None

    def keep(self, number: int, found: Found) -> None:
        """Writes a part of what is to be :meth:`write`\\ n."""
        self._write(self._part(number), found)

    def write(self, found: Found) -> None:
        self._write(self.path, found)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _folder(self) -> Path:
        return self.path.with_name(f".{self.path.name}.parts")

    def _part(self, number: int) -> Path:
        return self._folder / f"{number:06}.pt"

    def _read(self, path: Path) -> Found:
        try:
            state = read_tensors(path)
            known = {name: state[name] for name in ("model", "rows", "temperature")}
            found, k = Found(state["length"], state["logp"], state.get("ids"), state.get("top")), state.get("k", 0)
            whole = all(len(x) == int(found.length.sum()) for x in (found.logp, found.ids, found.top) if x is not None)
        except (CheckpointError, AttributeError, IndexError, KeyError, TypeError):
            whole = False
        if not whole:
            raise DataError(
                f"{self.section}.precompute: {path} is no whole file of log-probs that a run has kept. Remove it, or name another file."
            )
        whose = {"model": self.model, "rows": self.rows, "temperature": self.temperature}
        other = next((f"another {x} ({known[x]}; this run's is {v})" for x, v in whose.items() if known[x] != v), None)
        if other is None and k < self.k:
            other = f"fewer tokens ({k} at each place; this run's terms tell {self.k} apart)"
        if other is not None:
            raise DataError(
                f"{self.section}.precompute: {path} holds log-probs of {other}. Remove it, or name another file."
            )
        return found

    def _write(self, path: Path, found: Found) -> None:
        state = {"model": self.model, "rows": self.rows, "temperature": self.temperature, "k": self.k}
        state |= {name: x for name, x in vars(found).items() if x is not None}
        with told(f"log-probs of the {self.section}", "Make room, or give another file."):
            path.parent.mkdir(parents=True, exist_ok=True)
            tmp = path.with_name(f".{path.name}.writing")
            write_tensors(tmp, state)
            tmp.replace(path)


def compute(annotate: Annotate, kept: Kept, sets: Sequence[ExampleRows], which: str) -> Found:
    """What the anchor says of every example, and the file of it; ``which``: the anchor's name, or ``old`` where the model that is trained
    is the reference still.
    """
    rows, parts = [row for part in sets for row in part.rows], list[Found]()
    for number, i in enumerate(range(0, len(rows), TOGETHER)):
        found = kept.part(number)
        if found is None:
            found = _asked(annotate, rows[i : i + TOGETHER], which, whole=kept.k > 0)
            kept.keep(number, found)
        parts.append(found)
    found = Found.joined(parts)
    kept.write(found)
    return found


def _asked(annotate: Annotate, rows: Sequence[Sequence[Example]], which: str, whole: bool) -> Found:
    b = Batch.from_rollouts([e.rollout(g) for g, row in enumerate(rows) for e in row])
    b = annotate(b, (which, f"{which}_full") if whole else (which,))
    found = b.whole[which] if whole else {}
    top = TopK(found["ids"], found["logp"]) if whole else None
    return Found.of(b.count(), b.logp[which], top)


def with_outputs(sets: Sequence[ExampleRows], anchor: str, found: Found) -> tuple[ExampleRows, ...]:
    """The sets, with what the anchor says of their examples."""
    each = found.outputs()
    return tuple(
        dataclasses.replace(
            rows, known={**rows.known, anchor: tuple(tuple(next(each) for _ in row) for row in rows.rows)}
        )
        for rows in sets
    )


def known(b: Batch, rollouts: Sequence[Rollout], apart: Mapping[str, int]) -> Batch:
    """The batch of ``rollouts``, with what is known of them from before.

    ``apart``: how many most likely tokens of each anchor the terms tell apart. Rows that nobody knew before have log-probs of nan, and
    most likely tokens that no term reads.
    """
    names = dict.fromkeys(name for r in rollouts for name in r.outputs)
    if not names:
        return b
    edge = b.edge().tolist()
    logp = {name: b.logp[name].clone() if name in b.logp else torch.full((b.N,), torch.nan) for name in names}
    whole = dict[str, TopK]()
    for s, r in enumerate(rollouts):
        rows = slice(edge[s], edge[s + 1])
        for name, x in r.outputs.items():
            logp[name][rows] = x.logp
            if apart.get(name):
                top = restored(x.ids, x.top)
                k = min(apart[name], top.k)  # a small vocabulary has no more
                found = whole.setdefault(name, nothing(b.N, k))
                found.ids[rows], found.logp[rows] = top.ids[:, :k], top.logp[:, :k]
    return b.with_logp(**logp).replace(
        whole={**b.whole, **{name: {"ids": x.ids, "logp": x.logp} for name, x in whole.items()}}
    )


def nothing(n: int, k: int) -> TopK:
    """Distributions of which half lies on the first ``k`` tokens: finite, whatever is compared with them."""
    return TopK(torch.arange(k).repeat(n, 1), torch.full((n, k), 1 / (2 * k)).log())
