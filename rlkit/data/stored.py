"""Stored responses that terms with ``on: reference`` read: sampled once from the reference, with its log-probs, and replayed.

One JSON object a line: ``prompt`` (as the model sees it), ``tokens``, ``logp`` (log-probs of the policy that sampled them, nats), and
optionally ``id`` and ``prompt_tokens``; without those the text is tokenized, with what the tokenizer puts in front of a text.
``rlkit filter ... --responses stored.jsonl`` writes such a file. The ``rollouts.jsonl`` of a run with ``log.tokens: true`` is one, too,
with the rewards; its log-probs are those of the policy that sampled.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rlkit.bounds import Bounded, Count
from rlkit.data.files import parse, read_lines
from rlkit.data.render import Encoder
from rlkit.errors import DataError
from rlkit.files import replace_file, told
from rlkit.place import Place
from rlkit.samples import Prompt, Rollout


@dataclass(frozen=True, kw_only=True)
class Stored(Bounded):
    """``per_step`` responses of the file ``path`` join every batch, in shuffled order, again and again."""

    path: Place
    per_step: Count = 32


class Drawn(Protocol):
    """Rows that were not sampled in this step and join its batch.

    ``name``: of their key in ``data``. ``digest``: the same for the same rows in the same order.
    """

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    def draw(self, step: int, first_group: int) -> list[Rollout]:
        """Those of a step (from 0), in groups from ``first_group`` on; they depend on the step alone: a resumed run sees the same ones."""
        ...


def order(name: str, seed: int, rows: int, step: int, per_step: int) -> Iterator[int]:
    """Which of ``rows`` rows are those of a step: each epoch has an order of its own, in which none is left out."""
    for k in range(step * per_step, (step + 1) * per_step):
        epoch, place = divmod(k, rows)
        yield _shuffled(name, seed, epoch, rows)[place]


@functools.lru_cache(maxsize=8)
def _shuffled(name: str, seed: int, epoch: int, rows: int) -> list[int]:
    return random.Random(f"{name}/{seed}/{epoch}").sample(range(rows), rows)


def write_stored(path: str | Path, rollouts: Sequence[Rollout]) -> None:
    rows = (
        {
            "id": r.prompt.id,
            "prompt": r.prompt.text,
            "prompt_tokens": r.prompt.token_ids,
            "tokens": r.tokens,
            "logp": r.logp,
        }
        for r in rollouts
    )
    with told("stored responses", "Make room, or give another file."):
        replace_file(Path(path), "".join(json.dumps(row) + "\n" for row in rows))


class StoredRows:
    """The rows of a file; ``draw(step, n)`` depends on the step alone, so a resumed run sees the same ones."""

    name = "stored"

    def __init__(self, spec: Stored, tokenizer: Any, seed: int) -> None:
        """Raises DataError for a missing file, and for a malformed row with its line."""

        self.spec, self.seed, self.rows = spec, seed, list[Rollout]()
        path = Path(spec.path)
        if not path.is_file():
            raise DataError(
                f"data.stored: there is no file {spec.path!r}. Make it with: rlkit filter CONFIG --model MODEL --low 1 --out "
                f"kept.jsonl --responses {spec.path}"
            )
        size, encode, digest = len(tokenizer), Encoder(tokenizer), hashlib.sha256()
        for number, line in read_lines(path):
            digest.update(line.encode())
            where, row = f"{path}:{number}", parse(line, path, number)
            if isinstance(row, dict) and isinstance(row.get("tokens"), int) and "token_ids" not in row:
                raise DataError(
                    f"{where}: a line of rollouts.jsonl without its tokens; a run writes them with log.tokens: true."
                )
            try:
                tokens = [int(t) for t in row["token_ids" if "token_ids" in row else "tokens"]]
                logp = [float(x) for x in row["logp"]]
                sampled = [bool(x) for x in row.get("sampled", [True] * len(tokens))]
                text, reward = str(row["prompt"]), float(row.get("reward") or 0.0)
                ids = tuple(int(t) for t in row.get("prompt_tokens", ())) or encode(text)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{where}: a stored row needs prompt, tokens and logp ({type(error).__name__}: {error})."
                ) from None
            if (
                not tokens
                or not len(tokens) == len(logp) == len(sampled)
                or not all(math.isfinite(x) and x <= 1e-6 for x in logp)
                or not all(0 <= t < size for t in (*ids, *tokens))
            ):
                raise DataError(
                    f"{where}: {len(tokens)} tokens and {len(logp)} log-probs; there must be equally many, log-probs finite "
                    f"and not positive, and token ids from 0 to {size - 1}."
                )
            prompt = Prompt(str(row.get("id", row.get("prompt_id", where))), ids, text)
            self.rows.append(
                Rollout(
                    prompt,
                    tokens,
                    sampled,
                    logp,
                    [-1] * len(tokens),
                    "stop",
                    source="reference",
                    reward=reward,
                    ref_logp=logp,
                )
            )
        if not self.rows:
            raise DataError(f"data.stored: {path} is empty.")
        self.digest = digest.hexdigest()[:16]

    @property
    def longest(self) -> int:
        return max(len(r.prompt.token_ids) + len(r.tokens) for r in self.rows)

    def draw(self, step: int, first_group: int) -> list[Rollout]:
        """The rows of a step, each a group of its own from ``first_group`` on."""
        which = order(self.name, self.seed, len(self.rows), step, self.spec.per_step)
        return [dataclasses.replace(self.rows[k], group=first_group + i) for i, k in enumerate(which)]
