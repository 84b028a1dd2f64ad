"""Whose tokens: which prompts the teacher answers, and that the tokens come from the mixture that the share says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import rlkit as rk
from rlkit.checks import check
from rlkit.data.tasks import Sorting
from rlkit.errors import ConfigError
from rlkit.model.load import load_lm
from rlkit.model.tiny import make_tiny
from rlkit.objective.coefficients import Linear
from rlkit.rollout.engine import numbered
from rlkit.rollout.taught import Taught
from rlkit.types import Prompt, Rollout, Sampling

STUDENT, TEACHER = (0.5, 0.3, 0.2), (0.1, 0.1, 0.8)


@dataclass
class Table:
    """One token of three, by its seed."""

    p: tuple[float, ...]

    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        g = torch.Generator().manual_seed(sampling.seed or 0)
        tokens = torch.multinomial(torch.tensor(self.p), n, replacement=True, generator=g).tolist()
        return [Rollout(prompt, [t], [True], [torch.tensor(self.p)[t].log().item()], [7], "stop") for t in tokens]


@pytest.mark.parametrize(("step", "share"), [(0, 1.0), (3, 0.7), (10, 0.0)])
def test_tokens_are_those_of_the_mixture(step: int, share: float) -> None:
    engine = Taught(Table(STUDENT), Table(TEACHER), Linear(1.0, 0.0, 10), step)
    groups = [engine.generate(Prompt(str(i % 5), (1,), ""), 2, numbered(Sampling(seed=3), i)) for i in range(3000)]
    for group in groups:  # one prompt has one answerer, whose log-probs its tokens carry
        by = {(step,): TEACHER, (7,): STUDENT}[tuple({r.version[0] for r in group})]
        assert [r.logp[0] for r in group] == pytest.approx([torch.tensor(by[r.tokens[0]]).log().item() for r in group])
    tokens = [group[0].tokens[0] for group in groups]
    for token, (q, p) in enumerate(zip(STUDENT, TEACHER, strict=True)):
        mixed = share * p + (1 - share) * q
        assert tokens.count(token) / 3000 == pytest.approx(mixed, abs=4 * (mixed * (1 - mixed) / 3000) ** 0.5)
    again = [engine.generate(Prompt(str(i % 5), (1,), ""), 2, numbered(Sampling(seed=3), i)) for i in range(50)]
    assert [g[0].tokens for g in again] == [g[0].tokens for g in groups[:50]]


@pytest.mark.slow
def test_a_student_learns_from_what_its_teacher_wrote(small: dict[str, Any], tmp_path: Path) -> None:
    other = make_tiny(tmp_path / "other", Sorting.alphabet, hidden=64, layers=1, heads=1, kv_heads=1, seed=9)
    teacher = {"type": "Pool", "path": str(other), "engine": "hf"}
    run = rk.load(
        {
            **small,
            "objective": [{"type": "NLL"}],
            "reference": None,
            "teacher": teacher,
            "rollout": {**small["rollout"], "by_teacher": {"type": "Step", "values": [1.0, 0.0], "at": [1]}},
            "probe": {"every": 0},
            "steps": 2,
        }
    )
    lm, gaps = load_lm(other).eval(), []
    for step in rk.steps(run, quiet=True):
        gap = 0.0
        for r in step.rollouts:
            ids = torch.tensor([[*r.prompt.token_ids, *r.tokens]])
            with torch.no_grad():
                q = lm(ids).logits[0, len(r.prompt.token_ids) - 1 : -1].log_softmax(-1)
            told = q.gather(-1, torch.tensor(r.tokens)[:, None])[:, 0]
            gap = max(gap, float((told - torch.tensor(r.logp)).abs().max()))
        gaps.append(gap)
    assert gaps[0] < 1e-4 < 0.05 < gaps[1]


def test_a_share_that_nobody_can_answer_is_refused(small: dict[str, Any]) -> None:
    def run(**more: Any) -> rk.Run:
        return rk.load({**small, **more, "rollout": {**small["rollout"], "by_teacher": 0.5}})

    with pytest.raises(ConfigError, match=r"needs engines of its own. Set teacher: {type: Pool"):
        check(run(teacher={"type": "Served", "url": "http://x"}))

    for wrong in (1.5, {"type": "KLBudget", "target": 0.1}):
        with pytest.raises(ConfigError, match="must be a share from 0 to 1, or a schedule"):
            rk.load({**small, "rollout": {**small["rollout"], "by_teacher": wrong}})
