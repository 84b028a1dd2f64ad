"""How a configuration names graders, and what they get from their base."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

import rlkit as rk
from rlkit.config import plain, to_yaml
from rlkit.resume import code_of, is_free
from rlkit.rewards import Scorer
from rlkit.rewards.groups import Tournament
from rlkit.rewards.judge import Judge
from rlkit.samples import Prompt, Rollout

MINE = """
import functools
import os
from dataclasses import dataclass
from rlkit import Grader


@dataclass(frozen=True, kw_only=True)
class Mine(Grader):
    bonus: float = 0.0
    fails: bool = False

    @functools.cached_property
    def seen(self):
        if self.fails:
            raise OSError("no such model")
        return [os.getpid()]

    def start(self):
        self.seen

    async def __call__(self, response, answer):
        self.seen.append(response)
        return {"right": float(response == answer), "bonus": self.bonus, "process": self.seen[0], "calls": len(self.seen) - 1}

    def taken(self):
        return {"calls": 1} if self.bonus >= 0 else {"calls": "many"}

    def metrics(self, used):
        return {"calls": used.get("calls", 0)}

    def spent(self, used):
        return "enough" if used.get("calls", 0) > 20 else None
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "j.txt").write_text("{question} {response}")
    (tmp_path / "pair.txt").write_text("{first} {second}")
    return tmp_path


def read(folder: Path, small: dict[str, Any], rewards: str) -> rk.Run:
    (folder / "run.yaml").write_text(
        f"{to_yaml({k: v for k, v in small.items() if k != 'rewards'})}rewards: {rewards}\n"
    )
    return rk.load(folder / "run.yaml")


def test_keys_of_a_grader_and_of_its_reward_stand_side_by_side_or_apart(folder: Path, small: dict[str, Any]) -> None:
    """Paths are found beside the file, and what a run writes down is read back to the same."""
    beside, apart, pair = (
        "{type: Judge, url: http://h/v1, prompt: j.txt, scale: [0, 10], weight: 0.5, name: good}",
        "{fn: {type: Judge, url: http://h/v1, prompt: j.txt, scale: [0, 10]}, weight: 0.5, name: good}",
        "{type: Tournament, of: {type: Judge, url: http://h/v1, prompt: pair.txt}, score: bradley_terry, timeout: 7}",
    )
    run = read(folder, small, f"[math, {beside}, {pair}, {{type: 'mine.py:Mine', bonus: 0.5}}]")
    assert run.rewards[1] == read(folder, small, f"[math, {apart}]").rewards[1]
    judge = run.rewards[1].fn
    assert isinstance(judge, Judge) and judge.prompt == str(folder / "j.txt") and judge.scale == (0.0, 10.0)
    assert [r.timeout for r in run.rewards] == [10.0, 180.0, 7.0, 60.0], "a grader has a usual time of its own"
    assert isinstance(run.rewards[2].fn, Tournament) and isinstance(run.rewards[2].fn.of, Judge)
    assert [r.label for r in run.rewards] == ["math", "good", "Tournament", "Mine"]
    assert rk.load(plain(run)).rewards == run.rewards
    in_python = run.replace(rewards=[Judge(url="http://h/v1", prompt=str(folder / "j.txt"), scale=(0, 10)), "math"])
    assert in_python.rewards[0] == dataclasses.replace(run.rewards[1], weight=1.0, name=None)


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        ("{type: Judge, url: http://h/v1}", r"rewards.0.fn.prompt: is missing"),
        ("{type: Judge, url: http://h/v1, prompt: j.txt, wieght: 1}", "rewards.0.fn.wieght: unknown key"),
        ("{type: Jugde, url: http://h/v1, prompt: j.txt}", "there is no 'Jugde'. Did you mean 'Judge'"),
        ("{type: PPOClip}", "PPOClip is a Term; here stands a Grader"),
        ("{type: Judge, url: h, prompt: j.txt}", "must be like http://host:8000/v1"),
        (
            "{type: Judge, url: http://h/v1, prompt: j.txt, prices: [-1, 0]}",
            r"prices.0: is -1.0; it must not be negative",
        ),
        ("{type: Tournament, of: 3}", r"rewards.0.fn.of: found 3, expected"),
    ],
)
def test_mistakes_are_told_with_their_place(folder: Path, small: dict[str, Any], reward: str, told: str) -> None:
    with pytest.raises(rk.ConfigError, match=told) as error:
        read(folder, small, f"[{reward}]")
    assert "run.yaml:" in str(error.value)


def test_what_a_resumed_run_may_change() -> None:
    assert all(is_free(f"rewards.1.fn.{key}") for key in ("url", "most_cost", "cache", "key_from", "device"))
    assert not any(is_free(f"rewards.1.fn.{key}") for key in ("prompt", "path", "scale", "verdict", "type"))
    rewards = [{"fn": "mine.py:f"}, {"fn": {"type": "mine.py:Mine"}}]
    assert code_of({"rewards": rewards}) == {"rewards.1.fn.type": "mine.py:Mine"}, (
        "a class is imported when it is read; a function is not"
    )


@pytest.mark.slow
def test_a_grader_of_the_users_own_has_a_process_and_counts_what_it_uses(folder: Path, small: dict[str, Any]) -> None:
    run = read(folder, small, "[{type: 'mine.py:Mine', bonus: 0.5}]")
    rows = [Rollout.given(Prompt("p", (1,), "q", answer="a"), [1], text=text) for text in "ab"]
    scorer = Scorer(run.rewards)
    try:
        scorer.check([])
        scorer.score(rows)
        assert [(r.parts["Mine/right"], r.parts["Mine/bonus"]) for r in rows] == [(1.0, 0.5), (0.0, 0.5)]
        assert sorted(r.parts["Mine/calls"] for r in rows) == [1, 2] and rows[0].parts["Mine/process"] != os.getpid()
        assert scorer.metrics()["reward/Mine/calls"] == 2
        with pytest.raises(rk.RewardError, match="reward 'Mine': enough"):
            for _ in range(20):
                scorer.score(rows)
    finally:
        scorer.close()


@pytest.mark.slow
def test_one_that_counts_wrongly_is_told_and_nobody_waits_for_it(folder: Path, small: dict[str, Any]) -> None:
    rows = [Rollout.given(Prompt("p", (1,), "q", answer="a"), [1], text="a")]
    scorer = Scorer(read(folder, small, "[{type: 'mine.py:Mine', bonus: -1}]").rewards, report=lambda text: None)
    try:
        scorer.check([])
        scorer.score(rows)
        assert "invalid literal for int() with base 10: 'many'" in (rows[0].error or "")
    finally:
        scorer.close()


@pytest.mark.slow
def test_one_that_cannot_start_is_told_before_the_run(folder: Path, small: dict[str, Any]) -> None:
    scorer = Scorer(read(folder, small, "[{type: 'mine.py:Mine', fails: true}]").rewards)
    try:
        scorer.check([])
        with pytest.raises(rk.ConfigError, match="could not start: OSError: no such model"):
            scorer.trial(Prompt("p", (1,), "q", answer="a"))
    finally:
        scorer.close()
