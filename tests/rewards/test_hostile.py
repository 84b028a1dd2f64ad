"""What a reward's code does to its process costs that process, one call, and a sentence: never another response's score, or the run."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import rlkit as rk
from rlkit.errors import ConfigError, RewardError
from rlkit.rewards import RewardSpec, Scorer
from rlkit.types import Prompt, Rollout

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
CASES = str(HERE / "hostile.py")


def responses(n: int) -> list[Rollout]:
    return [
        Rollout(Prompt(f"p{i}", (1,), "q", answer="1"), [1], [True], [0.0], [0], "stop", text=str(i)) for i in range(n)
    ]


def score(fn: Any, n: int = 6, on_error: Any = "mask", **settings: Any) -> tuple[list[float], list[str], Scorer]:
    """The rewards of responses "0" to "n - 1", what was said, and the scorer, which is closed."""
    said: list[str] = []
    spec = RewardSpec(f"{CASES}:{fn}" if isinstance(fn, str) else fn, **settings)
    scorer = Scorer([spec], on_error=on_error, report=said.append)
    rollouts = responses(n)
    try:
        scorer.check([])
        scorer.score(rollouts)
    finally:
        scorer.close()
    scorer.errors = [r.error or "" for r in rollouts]  # type: ignore[attr-defined]
    return [r.reward for r in rollouts], said, scorer


def wait_until(condition: Any, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("fn", ["forks", "forks_async"])
def test_a_forked_child_that_returns_gives_no_answer(fn: str) -> None:
    rewards, said, _ = score(fn, 24)
    assert rewards == list(range(24)) and not said


@pytest.mark.parametrize("fn", ["closes_standard_streams", "leaves_an_alarm", "ignores_signals", "uses_processes"])
def test_what_a_reward_does_to_its_process_reaches_no_other_response(fn: str) -> None:
    rewards, said, _ = score(fn, 4)
    assert rewards == [0.0, 1.0, 2.0, 3.0] and not said


def test_the_working_directory_is_the_same_for_every_response() -> None:
    assert score("moves", 3)[0] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(("fn", "told"), [("writes_everywhere", "pipe"), ("closes_everything", "died")])
def test_a_reward_that_writes_into_our_pipes_or_closes_them_loses_its_own_score_only(fn: str, told: str) -> None:
    rewards, said, _ = score(fn, 4)
    assert math.isnan(rewards[0]) and rewards[1:] == [1.0, 2.0, 3.0] and told in said[0]


def test_every_way_out_is_an_error_of_its_response() -> None:
    rewards, said, _ = score("leaves", 6)
    assert all(math.isnan(r) for r in rewards[:5]) and rewards[5] == 5.0
    for text, told in zip(
        said, ("SystemExit: no more", "KeyboardInterrupt", "Unusual", "GeneratorExit", "exit code 0"), strict=False
    ):
        assert told in text


def test_an_async_reward_that_leaves_takes_no_other_call_with_it() -> None:
    rewards, said, scorer = score("leaves_async", 4)
    assert math.isnan(rewards[0]) and rewards[1:] == [1.0, 2.0, 3.0] and "SystemExit: no more at hostile.py" in said[0]
    assert scorer.metrics()["reward/errors"] == 1


def test_long_and_broken_texts_of_exceptions_are_bounded() -> None:
    _, said, scorer = score("long_errors", 3)
    assert "Unprintable (whose text cannot be made: TypeError)" in said[0]
    assert all(len(text) < 3000 for text in [*said, *scorer.errors])  # type: ignore[attr-defined]
    with pytest.raises(RewardError) as caught:
        score("long_errors", 3, on_error="raise")
    assert len(str(caught.value)) < 6000


def test_results_that_are_no_rewards_are_named_and_bounded() -> None:
    from tests.rewards.hostile import STRANGE

    rewards, _, scorer = score("strange", len(STRANGE))
    errors = scorer.errors  # type: ignore[attr-defined]
    assert all(math.isnan(r) for r in rewards) and all("returned" in e and len(e) < 400 for e in errors)
    for told in (
        "(list)",
        "1000000 parts",
        "1000000 characters",
        "(Strange)",
        "(str)",
        "(bytes)",
        "(complex)",
        "(int)",
        "nan for 'a'",
    ):
        assert any(told in e for e in errors), told


def test_what_rewards_print_is_kept_from_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    scorer = Scorer([RewardSpec(f"{CASES}:loud")], report=said.append)
    scorer.check([])
    scorer.output.write_to(tmp_path / "rewards.log")
    rollouts = responses(3)
    scorer.score(rollouts)
    scorer.close()
    assert [r.reward for r in rollouts] == [0.0, 1.0, 2.0] and "".join(capfd.readouterr()) == ""
    assert len(said) == 1 and "scoring 0" in said[0] and "rewards.log" in said[0] and len(said[0]) < 1000
    text = (tmp_path / "rewards.log").read_text()
    assert text.startswith("scoring 0\n") and len(text) < 1.1 * 2**20 and text.endswith("left out]\n")
    assert scorer.output.characters > 3_000_000 and scorer.output.lines >= 3 * 103  # the threads may be cut off


def test_what_rewards_print_can_be_shown(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RLKIT_REWARD_OUTPUT", "1")
    assert score("loud", 1)[1] == [] and "from a child" in capfd.readouterr().out


def test_a_process_that_leaks_is_replaced_and_that_is_said_once() -> None:
    rewards, said, scorer = score("leaks", 60, memory=0.1)  # a batch of calls, more than the memory allows
    assert rewards == list(range(60)) and scorer.counts["spent"] >= 2
    assert len(said) == 1 and "grew by more than 0.1 GiB" in said[0] and "`memory`" in said[0]


@pytest.mark.parametrize("fn", ["swallows", "swallows_async"])
def test_a_call_that_takes_memory_without_end_is_stopped(fn: str) -> None:
    rewards, said, _ = score(fn, 3, memory=0.2, timeout=60.0)
    assert math.isnan(rewards[0]) and rewards[1:] == [1.0, 2.0] and "grew by more than 0.2 GiB" in said[0]


def test_a_process_that_ran_out_of_files_is_replaced() -> None:
    rewards, said, _ = score("forgets_to_close", 12)
    failed = [i for i, r in enumerate(rewards) if math.isnan(r)]
    assert 1 <= len(failed) <= 6 and not any(i + 1 in failed for i in failed)
    assert any("ran out of something: OSError: [Errno 24]" in text for text in said)


@pytest.mark.parametrize("fn", ["hangs", "waits_for_ever"])
@pytest.mark.parametrize("on_error", ["mask", "zero"])
def test_a_reward_that_never_answers_stops_the_run(fn: str, on_error: str) -> None:
    with pytest.raises(RewardError, match=r"gave no answer in .* calls in a row .*`patience`"):
        score(fn, 200, on_error, timeout=0.2, patience=3, concurrency=4)


def test_single_time_outs_stop_nothing() -> None:
    rewards, _, scorer = score("hangs_on_even", 6, timeout=0.2, patience=2)
    assert rewards[1::2] == [1.0, 3.0, 5.0] and scorer.metrics()["reward/timeouts"] == 3


def test_what_a_reward_started_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    score("leaves_a_child", 2, args={"path": str(path)})
    pids = [int(p) for p in path.read_text().split()]
    assert len(pids) == 4 and wait_until(lambda: not any(is_running(p) for p in pids))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_nothing_outlives_a_run_that_is_killed(tmp_path: Path) -> None:
    """Though the reward holds the interpreter's lock in its process."""
    path = tmp_path / "pids"
    script = (
        "from tests.rewards.test_hostile import score\n"
        f"if __name__ == '__main__':\n    score('never_ends', 1, timeout=600.0, args={{'path': {str(path)!r}}})\n"
    )
    run = subprocess.Popen([sys.executable, "-c", script])
    assert wait_until(lambda: path.exists() and len(path.read_text().split()) == 2, 60)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    pids = [int(p) for p in path.read_text().split()]
    assert wait_until(lambda: not any(is_running(p) for p in pids))


def test_an_error_shows_the_users_lines() -> None:
    """In one line where the run goes on; as Python shows them where it stops."""
    _, said, _ = score("wrong_key", 1)
    assert "KeyError: '0' at hostile.py:" in said[0]
    with pytest.raises(RewardError) as caught:
        score("wrong_key", 1, on_error="raise")
    text = str(caught.value)
    assert 'hostile.py", line ' in text and "in wrong_key" in text and 'return {"a": 1}[value]' in text
    assert "workers.py" not in text


def trial(*fns: str, on_error: Any = "mask", answer: Any = "1", **settings: Any) -> list[str]:
    scorer = Scorer(
        [RewardSpec(f"{CASES}:{fn}", **settings) for fn in fns], on_error=on_error, report=lambda text: None
    )
    try:
        scorer.check([])
        notes = scorer.trial(Prompt("p0", (1,), "q", answer=answer))
        assert not scorer.counts  # trials are not counted as calls of the run
        return notes
    finally:
        scorer.close()


@pytest.mark.parametrize("on_error", ["mask", "raise", "zero"])
@pytest.mark.parametrize(
    ("fn", "told"),
    [
        (
            "nothing_right",
            r"(?s)'str' object has no attribute 'no_such_method' at hostile.py:\d+.*answer.no_such_method\(\)",
        ),
        ("hangs", "no answer within 0.3 s"),
        ("waits_for_ever", "no answer within 0.3 s"),
    ],
)
def test_a_reward_that_cannot_work_is_refused_before_the_start(fn: str, told: str, on_error: str) -> None:
    with pytest.raises(ConfigError, match=told):
        trial("number", fn, on_error=on_error, timeout=0.3)


def test_a_reward_that_fails_on_one_of_two_responses_is_noted() -> None:
    notes = trial("number", "only_with_an_answer", "forgot_to_return")
    assert len(notes) == 3 and "could not convert string to float: ''" in notes[0]
    assert "ZeroDivisionError" in notes[1] and "an empty response" in notes[1] and "hostile.py:" in notes[1]


class OnlyHere:
    """Another process cannot make it."""

    def __call__(self, response: str) -> float:
        return 1.0

    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_a_process_that_cannot_start_says_why() -> None:
    scorer = Scorer([RewardSpec(OnlyHere())])
    scorer.check([])
    with pytest.raises(ConfigError, match="could not start: ValueError: invalid literal for int"):
        scorer.trial(Prompt("p0", (1,), "q", answer="1"))
    scorer.close()


def test_a_run_whose_reward_cannot_work_leaves_nothing_behind(small: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ZeroDivisionError: division by zero at examples.py:\d+"):
        rk.train(rk.load({**small, "rewards": ["tests/rewards/examples.py:broken"]}))
    assert not (tmp_path / "runs").exists()


def test_a_run_ends_when_its_reward_stops_answering(small: dict[str, Any]) -> None:
    rewards = [{"fn": f"{CASES}:stops_answering", "timeout": 0.2, "patience": 2}]
    with pytest.raises(RewardError, match="'stops_answering' gave no answer"):
        rk.train(rk.load({**small, "rewards": rewards, "eval": {"prompts": 0}}), quiet=True)


def test_a_run_keeps_what_rewards_print(small: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    folder = rk.train(rk.load({**small, "rewards": [f"{CASES}:says"], "steps": 1}))
    out = capfd.readouterr().out
    assert out.count("note: rewards print") == 1 and "so it says of" in out and str(folder / "rewards.log") in out
    assert (folder / "rewards.log").read_text().count("so it says of") > 16
