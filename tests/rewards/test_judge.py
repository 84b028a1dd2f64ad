"""A judge behind a server that fails, is slow, and answers nonsense."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

import rlkit as rk
from rlkit.rewards import RewardSpec, Scorer
from rlkit.rewards.judge import Judge, Kept
from rlkit.samples import Prompt, Rollout
from tests.rewards.judges import judging


@pytest.fixture
def prompt(tmp_path: Path) -> str:
    path = tmp_path / "judge.txt"
    path.write_text('{question} -> {response}. Answer like {"a": 1}.')
    return str(path)


def ask(judge: Judge, *responses: str, together: bool = False) -> list[Any]:
    """Its verdicts, one after the other, or side by side; a failure as its exception."""

    async def all_of_them() -> list[Any]:
        calls = [judge(question="2+2", response=r) for r in responses]
        try:
            if together:
                return await asyncio.gather(*calls, return_exceptions=True)
            return [(await asyncio.gather(call, return_exceptions=True))[0] for call in calls]
        finally:
            await judge._asking.client.close()

    return asyncio.run(all_of_them())


@pytest.mark.slow
def test_it_is_shown_what_the_template_says_and_its_last_verdict_counts(prompt: str) -> None:
    with judging(
        lambda text, number: "Score: 2? No. <think>Score: 9</think> At first Score: 3, in the end **Score:** 7.5"
    ) as server:
        judge = Judge(
            url=server.url, prompt=prompt, options={"temperature": 0, "max_tokens": 9}, system="You judge {question}."
        )
        assert ask(judge, "four {answer}") == [7.5]
    assert server.asked == ['2+2 -> four {answer}. Answer like {"a": 1}.'], "other braces stay as they are"
    (body,) = server.bodies
    assert body["messages"][0] == {"role": "system", "content": "You judge 2+2."}
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("its-first", 0, 9)


def test_verdicts_are_numbers_words_or_parts_by_name(prompt: str) -> None:
    def judge(**more: Any) -> Judge:
        return Judge(url="http://127.0.0.1:1/v1", prompt=prompt, **more)

    assert judge(scale=[1, 5]).read("Score: 4") == 0.75 and judge(scale=[1, 5]).read("Score: 6") is None
    assert judge().read("Rating: -2") == -2 and judge().read("no idea") is None
    words = judge(verdict=r"\[\[(\w+)\]\]", values={"A": 1.0, "B": 0.0, "tie": 0.5})
    assert [words.read(f"so [[{x}]]") for x in ("A", "b", "Tie", "C")] == [1.0, 0.0, 0.5, None]
    parts = judge(verdict=r"help=(?P<help>\d+) harm=(?P<harm>\d+)")
    assert parts.read("help=3 harm=1") == {"help": 3.0, "harm": 1.0} and parts.read("help=3") is None
    listed = judge(verdict=r"\d+: (\d+)")
    assert (
        listed.read("First 9: 9. Then 1: 4\n2: 6", responses=2) == [4.0, 6.0]
        and listed.read("1: 4", responses=2) is None
    )


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"url": "localhost:8000"}, "must be like http://host:8000/v1"),
        ({"verdict": "Score: ("}, "is no pattern"),
        ({"verdict": "Score"}, "has no group"),
        ({"scale": (5, 1)}, "the first number must be below the second"),
        ({"most_cost": 1.0}, "say what a million tokens cost"),
        ({"prompt": "nowhere.txt"}, r"'nowhere.txt' cannot be read"),
        ({"key_from": "NO_SUCH_KEY"}, "NO_SUCH_KEY is not set"),
        ({"key_from": "sk-0123456789abcdefghij"}, "does not belong into a configuration"),
    ],
)
def test_what_cannot_work_is_told_before_the_start(prompt: str, keys: dict[str, Any], told: str) -> None:
    with pytest.raises(rk.ConfigError, match=told):
        Scorer([RewardSpec(Judge(**{"url": "http://127.0.0.1:1/v1", "prompt": prompt, **keys}))]).check(["question"])


def test_a_field_that_nothing_fills_is_told_before_the_start(prompt: str) -> None:
    with pytest.raises(rk.ConfigError, match="a parameter 'question' that nothing fills"):
        Scorer([RewardSpec(Judge(url="http://127.0.0.1:1/v1", prompt=prompt))]).check([])


@pytest.mark.slow
def test_a_server_that_fails_is_asked_again_and_one_that_refuses_is_not(
    prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlkit.asking.FIRST_PAUSE", 0.005)

    def fails_twice(text: str, number: int) -> Any:
        return [(500, {}), (429, {"Retry-After": "0.01"}), b"<html>", "Score: 3"][number]

    with judging(fails_twice) as server:
        judge = Judge(url=server.url, prompt=prompt)
        assert ask(judge, "a") == [3.0]
        assert judge.taken() == {"asked": 1, "read": len(server.asked[0]), "written": 8, "retries": 3}
        assert judge.taken() == {"retries": 0}
    with judging(lambda text, number: (401, {})) as server:
        (error,) = ask(Judge(url=server.url, prompt=prompt), "a")
        assert isinstance(error, rk.RunError) and "answered 401: busy" in str(error) and len(server.asked) == 1


@pytest.mark.slow
def test_a_server_that_is_away_or_too_slow_is_waited_for_no_longer_than_said(prompt: str) -> None:
    (error,) = ask(Judge(url="http://127.0.0.1:9/v1", model="m", prompt=prompt, retry_for=0.6), "a")
    assert isinstance(error, rk.WorkerTimeout) and "no answer from http://127.0.0.1:9/v1/chat/completions" in str(error)
    with judging(lambda text, number: 5.0) as server:
        (error,) = ask(Judge(url=server.url, prompt=prompt, retry_for=0.1, wait=0.2), "a")
        assert isinstance(error, rk.WorkerTimeout)


@pytest.mark.slow
def test_nonsense_is_asked_for_once_more_and_then_told(prompt: str, tmp_path: Path) -> None:
    with judging(lambda text, number: "I like it." if number % 3 else "Great!") as server:
        judge = Judge(url=server.url, prompt=prompt, tries=3, cache=str(tmp_path / "c.sqlite"))
        for error in ask(judge, "a", "a"):  # what could not be read is not kept
            assert isinstance(error, rk.RewardError)
            assert "has no verdict that `verdict` finds: it ends with 'I like it.'" in str(error)
        assert len(server.asked) == 6 and judge.taken()["unread"] == 6
    with judging(lambda text, number: b'{"text": 1}') as server:
        (error,) = ask(Judge(url=server.url, prompt=prompt), "a")
        assert "does not answer as an OpenAI-compatible server does" in str(error)


@pytest.mark.slow
def test_nothing_is_asked_twice_by_a_run_nor_by_a_later_one(prompt: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "judged.sqlite")
    with judging(lambda text, number: f"Score: {number}") as server:
        judge = Judge(url=server.url, prompt=prompt, cache=cache)
        first = ask(judge, "a", "b", "a", "a", together=True)
        assert first[0] == first[2] == first[3] and sorted(first[:2]) == [0, 1] and len(server.asked) == 2
        assert judge.taken()["cached"] == 2
        again = Judge(url=server.url, prompt=prompt, cache=cache)
        assert ask(again, "b", "a") == [first[1], first[0]] and len(server.asked) == 2
        assert ask(Judge(url=server.url, prompt=prompt, cache=cache, options={"seed": 1}), "b") == [2.0], (
            "another question"
        )
        in_memory = Judge(url=server.url, prompt=prompt)
        assert ask(in_memory, "a", "a") == [3.0, 3.0]


def test_the_cache_is_bounded_and_the_oldest_leave(tmp_path: Path) -> None:
    for kept in (Kept(str(tmp_path / "c.sqlite"), 3), Kept(None, 3)):
        for key in "abcde":
            kept.put(key, key.upper())
        assert [kept.get(key) for key in "abcde"] == [None, None, "C", "D", "E"]
        kept.drop("d")
        assert kept.get("d") is None and kept.get("e") == "E"
    (tmp_path / "text").write_text("no database, but long enough to be taken for one" * 10)
    with pytest.raises(rk.ConfigError, match="cannot be used: file is not a database"):
        Kept(str(tmp_path / "text"), 3)


def test_a_budget_that_is_used_up_is_said(prompt: str) -> None:
    judge = Judge(url="http://127.0.0.1:1/v1", prompt=prompt, prices=(1.0, 10.0), most_cost=0.002, most_tokens=1000)
    assert judge.spent({"read": 500, "written": 100}) is None
    assert "1,100 tokens were used, and most_tokens is 1,000" in (judge.spent({"read": 1000, "written": 100}) or "")
    assert "its answers cost 0.0025, and most_cost is 0.002" in (judge.spent({"read": 500, "written": 200}) or "")
    told = judge.metrics({"read": 500, "written": 200, "asked": 3, "retries": 1})
    assert told == {"asked": 3, "cached": 0, "retries": 1, "unread": 0, "tokens": 700, "cost": pytest.approx(0.0025)}


@pytest.mark.slow
def test_in_a_run_its_cost_is_counted_and_ends_it(prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its process, with a key that it finds in the environment; and on from there in a run that is resumed."""
    monkeypatch.setenv("RLKIT_TEST_JUDGE", "s3cret")

    def rows(n: int) -> list[Rollout]:
        p = Prompt("p", (1,), "2+2", answer="4", columns={"question": "2+2"})
        return [Rollout.given(p, [1], text=f"{k}") for k in range(1, n + 1)]

    with judging(lambda text, number: "Score: 1") as server:
        judge = Judge(url=server.url, prompt=prompt, key_from="RLKIT_TEST_JUDGE", most_tokens=400, prices=(2.0, 2.0))
        specs = [RewardSpec(judge, name="judge", weight=2.0, concurrency=1)]
        scorer = Scorer(specs)
        try:
            scorer.check(["question"])
            assert scorer.trial(rows(1)[0].prompt) == []
            good = rows(4)
            scorer.score(good)
            assert [r.reward for r in good] == [2.0] * 4 and server.keys == {"Bearer s3cret"}
            told, state = scorer.metrics(), scorer.state_dict()
            assert told["reward/judge/asked"] == 5 and told["reward/judge/cached"] == 1, (
                "`4` was tried before the start"
            )
            assert told["reward/judge/tokens"] == state["used/judge/read"] + state["used/judge/written"]
            assert told["reward/judge/cost"] == pytest.approx(2e-6 * told["reward/judge/tokens"])
        finally:
            scorer.close()
        resumed = Scorer(specs)
        resumed.load_state_dict(state)
        try:
            resumed.check(["question"])
            with pytest.raises(rk.RewardError, match=r"reward 'judge': its budget is used up: 4\d\d tokens were used"):
                for _ in range(20):
                    resumed.score(rows(20))
            assert len(server.asked) < 5 + 8, "soon after it was used up"
        finally:
            resumed.close()


@pytest.mark.slow
def test_a_server_without_counts_keeps_no_budget(prompt: str) -> None:
    with judging(lambda text, number: "Score: 1", usage=False) as server:
        assert ask(Judge(url=server.url, prompt=prompt), "a") == [1.0]
        (error,) = ask(Judge(url=server.url, prompt=prompt, most_tokens=5), "a")
        assert "no budget can be kept" in str(error)


@pytest.mark.slow
def test_a_list_of_responses_is_judged_at_once(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("{question}\n{responses}\nGive a line N: SCORE for each.")
    with judging(
        lambda text, number: "\n".join(f"{k}: {len(part)}" for k, part in enumerate(text.split("]\n")[1:], 1))
    ) as server:
        scorer = Scorer(
            [RewardSpec(Judge(url=server.url, prompt=str(tmp_path / "list.txt"), verdict=r"(?m)^\d+: (\d+)$"))]
        )
        p = Prompt("p", (1,), "q", columns={"question": "q"})
        rollouts = [Rollout.given(p, [1], text=text) for text in ("x", "xxxxxxxxxxxx")]
        try:
            scorer.check(["question"])
            scorer.score(rollouts)
        finally:
            scorer.close()
    assert server.asked[0].startswith("q\n[1]\nx\n\n[2]\nxxxxxxxxxxxx\n") and len(server.asked) == 1
    assert rollouts[0].reward < rollouts[1].reward and not math.isnan(rollouts[0].reward)
