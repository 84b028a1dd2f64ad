"""Drafts and thoughts of CopT against plain passes over the whole of each text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.model.load import load_lm
from rlkit.rollout.control import CopT
from rlkit.rollout.controlled import Controlled
from rlkit.rollout.engine import EngineSetup
from rlkit.types import Prompt, Rollout, Sampling

pytestmark = pytest.mark.slow
PROMPT, SAMPLING, N = Prompt("p", (3, 4, 5), "abc"), Sampling(max_tokens=40, seed=1), 24
MARKS = {"think": "12", "answer": "3"}


def responses(path: Path, **settings: Any) -> tuple[list[Rollout], tuple[list[int], list[int]]]:
    control = CopT(**MARKS, **settings)
    engine: Any = Controlled(engine="hf", control=control).start(EngineSetup(path=str(path), max_model_len=64))
    try:
        return engine.generate(PROMPT, N, SAMPLING), control.marks(engine.tokenizer)
    finally:
        engine.close()


@dataclass
class Text:
    """Tokens with the places of a hidden draft: query ``t`` sees them where ``shown[t]``. No cache: one pass over all of it."""

    lm: Any
    ids: list[int]
    hole: tuple[int, int] = (0, 0)
    shown: tuple[bool, ...] = ()

    def logits(self, soft: dict[int, Tensor] | None = None, shown: tuple[bool, ...] | None = None) -> Tensor:
        """``[L, V]``; ``soft`` are embeddings in the place of some tokens."""
        n, shown = len(self.ids), shown or self.shown
        seen = torch.ones(n, n, dtype=torch.bool).tril()
        for t in range(self.hole[1], n if shown else 0):
            seen[t, self.hole[0] : self.hole[1]] = shown[t]
        embeds = self.lm.get_input_embeddings()(torch.tensor(self.ids)).clone()
        for at, x in (soft or {}).items():
            embeds[at] = x
        mask = torch.zeros(1, 1, n, n).masked_fill(~seen, torch.finfo(torch.float32).min)
        return self.lm(inputs_embeds=embeds[None], attention_mask=mask).logits[0]  # type: ignore[no-any-return]

    def doubts(self, z: Tensor, at: range) -> dict[int, Tensor]:
        return {t: z[t - 1].softmax(-1) @ self.lm.get_input_embeddings().weight for t in at}

    def score(self, z: Tensor, soft: range, scored: range, shown: tuple[bool, ...] | None = None) -> float:
        other = self.logits(self.doubts(z, soft), shown)
        each = [z[t - 1].log_softmax(-1)[self.ids[t]] - other[t - 1].log_softmax(-1)[self.ids[t]] for t in scored]
        return float(torch.stack(each).mean())


@torch.no_grad()
def test_drafts_are_kept_by_their_score_and_thoughts_see_them_by_theirs(tiny: Path) -> None:
    lm, start = load_lm(tiny).eval(), len(PROMPT.token_ids)
    drafts, (think, answer) = responses(tiny, accept=1e9)
    first, scores = start + len(answer), []
    ended = [r for r in drafts if r.finish == "stop"]
    assert len(ended) > 8 and any(r.finish == "length" for r in drafts)
    for r in drafts:
        assert r.tokens[: len(answer)] == answer and r.sampled == [False] * len(answer) + [True] * (
            len(r.tokens) - len(answer)
        )
        text = Text(lm, [*PROMPT.token_ids, *r.tokens])
        z, last = text.logits(), len(text.ids) - (r.finish == "stop")
        want = [float(z[t - 1].log_softmax(-1)[text.ids[t]]) for t in range(first, len(text.ids))]
        assert r.logp[len(answer) :] == pytest.approx(want, abs=1e-4)
        scores.append(text.score(z, range(first, last - 1), range(first + 1, last)) if last - first > 1 else -1e9)
    ordered = sorted(max(0.0, s) for s, r in zip(scores, drafts, strict=True) if r.finish == "stop")
    bound = sum(ordered[len(ended) // 2 :][:2]) / 2
    assert 0 < bound < ordered[-1]
    for show in (0.0, 1e9):
        seen_twice = 0
        found, _ = responses(tiny, accept=bound, show=show)
        for r, draft, score in zip(found, drafts, scores, strict=True):
            if draft.finish == "length" or score <= bound:
                assert r.tokens == draft.tokens and r.logp == pytest.approx(draft.logp, abs=1e-5)
                continue
            assert r.tokens[: len(think)] == think
            end = start + len(draft.tokens) - 1
            ids = [*PROMPT.token_ids, *draft.tokens[:-1], *r.tokens]
            begin, size = end + len(think), max(1, (end - start) // 4)
            # What the tokens up to each quarter see decides what those after it see.
            shown = [False] * len(ids)
            for quarter in range(begin, len(ids) - size + 1, size):
                text = Text(lm, ids[: quarter + size], (start, end), tuple(shown))
                z = text.logits()
                # The newest quarter is scored as the row stands: what it gives in the place of its tokens sees what they saw.
                soft = range(max(quarter - 1, begin), quarter + size - 1)
                at_once = tuple(shown[: quarter - 1]) + (shown[quarter],) * (len(ids) - quarter + 1)
                value = text.score(z, soft, range(quarter, quarter + size), at_once)
                ends_here = quarter + size == len(ids) and r.finish == "stop"
                if not ends_here:
                    for t in range(quarter + size - 1, len(ids)):
                        shown[t] = value < show
                seen_twice += value < show
            z = Text(lm, ids, (start, end), tuple(shown)).logits()
            want = [float(z[t - 1].log_softmax(-1)[ids[t]]) for t in range(begin, len(ids))]
            assert r.logp[len(think) :] == pytest.approx(want, abs=1e-4)
        assert seen_twice > 0 or show == 0.0


@torch.no_grad()
def test_a_draft_that_does_not_end_is_not_kept(tiny: Path) -> None:
    found, (think, answer) = responses(tiny, accept=1e9, draft_tokens=3)
    assert {tuple(r.tokens[:1]) for r in found} >= {tuple(think[:1])}
    for r in found:
        assert r.tokens[: len(think)] == think or (
            r.tokens[: len(answer)] == answer and len(r.tokens) <= 3 + len(answer)
        )
