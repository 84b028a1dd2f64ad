"""Rewards run in processes of their own; what goes wrong is reported and never becomes a silent zero."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlkit.config import build, plain
from rlkit.reading import located
from rlkit.rewards import RewardError, RewardSpec, Scorer
from rlkit.rewards.math import extract_answer, reward
from rlkit.types import Prompt, Rollout

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


def responses(n: int = 3) -> list[Rollout]:
    return [
        Rollout(Prompt(f"p{i}", (1,), "q", answer="a"), [1], [True], [0.0], [0], "stop", text="a" if i == 0 else "bbbb")
        for i in range(n)
    ]


def here(spec: RewardSpec) -> RewardSpec:
    """As a configuration beside the tests names it."""
    return build(RewardSpec, located(plain(spec)), HERE) if isinstance(spec.fn, str) else spec


def score(
    spec: RewardSpec | list[RewardSpec], on_error: str = "mask"
) -> tuple[list[Rollout], dict[str, float], list[str]]:
    said: list[str] = []
    scorer = Scorer([here(s) for s in (spec if isinstance(spec, list) else [spec])], on_error=on_error, workers=1)
    scorer.report = said.append
    try:
        scorer.check([])
        rollouts = responses()
        scorer.score(rollouts)
        return rollouts, scorer.metrics(), said
    finally:
        scorer.close()


def test_floats_dicts_coroutines_and_weights() -> None:
    rollouts, _, _ = score([RewardSpec("examples.py:correct"), RewardSpec("examples.py:slowly", weight=2.0)])
    assert [r.reward for r in rollouts] == pytest.approx([3.1, 2.0, 2.0])
    assert rollouts[0].parts["correct/correct"] == 1.0


def test_a_reward_file_may_define_dataclasses(tmp_path: Path) -> None:
    """With postponed annotations, ``dataclass`` looks the module up by its name: in the run's process and in the worker's."""
    (tmp_path / "shaped.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import ClassVar\n\n"
        "@dataclass\nclass Shape:\n    best: ClassVar[int] = 4\n\n\ndef reward(response):\n    return float(len(response) == Shape.best)\n"
    )
    rollouts, _, said = score(RewardSpec(f"{tmp_path}/shaped.py:reward"))
    assert [r.reward for r in rollouts] == [0.0, 1.0, 1.0] and not said


@pytest.mark.parametrize(("fn", "told"), [("broken", "ZeroDivisionError"), ("not_a_number", "nan")])
def test_a_reward_that_fails_is_masked_counted_and_reported_with_its_prompt(fn: str, told: str) -> None:
    rollouts, metrics, said = score(RewardSpec(f"examples.py:{fn}"))
    assert all(math.isnan(r.reward) and told in (r.error or "") for r in rollouts)
    assert metrics["reward/errors"] == 3 and "p0" in said[0] and told in said[0]


def test_a_reward_that_hangs_is_killed() -> None:
    start = time.monotonic()
    rollouts, metrics, _ = score(RewardSpec("examples.py:hangs", timeout=0.5))
    assert (
        metrics["reward/timeouts"] == 3
        and all(math.isnan(r.reward) for r in rollouts)
        and time.monotonic() - start < 50
    )


def test_the_other_choices() -> None:
    assert [r.reward for r in score(RewardSpec("examples.py:broken"), "zero")[0]] == [0.0] * 3
    with pytest.raises(RewardError, match="p0"):
        score(RewardSpec("examples.py:broken"), "raise")


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("no_file.py:f", "no_file.py"),
        ("examples.py:lenght", "length"),
        ("nothing", "math"),
        ("rlkit.no_module:f", "no_module"),
    ],
)
def test_a_reward_that_cannot_be_imported_is_refused_at_once(where: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        score(RewardSpec(where))


def test_a_parameter_that_no_column_fills_is_refused() -> None:
    scorer = Scorer([RewardSpec(f"{HERE}/examples.py:unknown_column")], on_error="mask", workers=1)
    with pytest.raises(ValueError, match="no_such_column"):
        scorer.check(["level"])
    scorer.close()


def test_calls_of_an_async_reward_wait_side_by_side() -> None:
    """``meets`` returns only when all three of its calls have begun, and ``most_at_once`` how many have not ended."""
    rollouts, _, _ = score(
        [RewardSpec("examples.py:meets", args={"calls": 3}), RewardSpec("examples.py:correct", weight=0.0)]
    )
    assert [r.reward for r in rollouts] == [1.0] * 3 and rollouts[0].parts["correct/correct"] == 1.0
    assert max(r.reward for r in score(RewardSpec("examples.py:most_at_once", concurrency=2))[0]) == 2
    with pytest.raises(ValueError, match="concurrency is 0"):
        score(RewardSpec("examples.py:most_at_once", concurrency=0))


def test_plain_rewards_run_while_async_ones_wait(tmp_path: Path) -> None:
    """The async reward comes first and waits for what the plain one leaves behind."""
    args = {"path": str(tmp_path / "done")}
    rollouts, _, said = score(
        [RewardSpec("examples.py:waits_for", args=args, timeout=20), RewardSpec("examples.py:leaves", args=args)]
    )
    assert [r.reward for r in rollouts] == [2.0] * 3 and not said


def test_an_async_reward_that_hangs_costs_only_its_own_call() -> None:
    rollouts, metrics, said = score(RewardSpec("examples.py:first_hangs", timeout=0.5))
    assert (
        [math.isnan(r.reward) for r in rollouts] == [True, False, False]
        and metrics["reward/timeouts"] == 1
        and "p0" in said[0]
    )


@pytest.mark.parametrize(
    ("fn", "told"), [("first_kills", "died (exit code 3)"), ("first_blocks", "should be a plain function")]
)
def test_an_async_reward_that_ends_or_blocks_its_process_is_reported(
    fn: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlkit.rewards.workers.GRACE_SECONDS", 1.5)
    rollouts, _, said = score(RewardSpec(f"examples.py:{fn}", timeout=0.5))
    assert math.isnan(rollouts[0].reward) and told in (rollouts[0].error or "") and told in said[0]


def test_async_rewards_of_many_threads() -> None:
    scorer = Scorer([RewardSpec(f"{HERE}/examples.py:meets", args={"calls": 60})], workers=1)
    scorer.check([])
    groups = [responses(6) for _ in range(10)]
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(scorer.score, groups))
    scorer.close()
    assert all(r.reward == 1.0 for g in groups for r in g)


@pytest.mark.parametrize(
    ("response", "answer", "want"),
    [
        (r"so \boxed{\frac{1}{2}}", "0.5", 1),
        (r"\boxed{\dfrac{3}{4}}", r"\frac34", 1),
        ("The answer is 72.", "9*8 = 72 #### 72", 1),
        ("#### 1,000", "1000", 1),
        (r"\boxed{3}", "4", 0),
        ("no answer at all", "5", 0),
        (r"\boxed{(1,2)}", "(12)", 0),
        (r"\boxed{2\sqrt{3}}", r"\sqrt{12}", 1),
        (r"\boxed{1} or \boxed{2}", "2", 1),
        (r"\boxed{\text{(B)}}", "B", 1),
        (r"\boxed{12}", r"We get $x=\boxed{12}$.", 1),
    ],
)
def test_math(response: str, answer: str, want: float) -> None:
    assert reward(response, answer) == want


def test_math_needs_a_reference_answer() -> None:
    with pytest.raises(ValueError, match="reference answer"):
        reward(r"\boxed{1}", None)
    assert extract_answer(r"\boxed{\frac{a}{b}} and \boxed{unfinished") == r"\frac{a}{b}"


def test_parameters_with_a_fixed_value() -> None:
    scorer = Scorer([RewardSpec("rlkit.rewards.text:overlong", args={"limit": 10, "buffer": 4})])
    scorer.check([])
    rollouts = [Rollout(Prompt("0", (1,), ""), [1] * n, [True] * n, [0.0] * n, [0] * n, "stop") for n in (6, 8, 12)]
    scorer.score(rollouts)
    scorer.close()
    assert [r.reward for r in rollouts] == [0.0, -0.5, -1.0]
    with pytest.raises(ValueError, match="no parameter 'size'"):
        Scorer([RewardSpec("rlkit.rewards.text:overlong", args={"size": 1})]).check([])
