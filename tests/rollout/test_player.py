"""Episodes side by side: none waits for another, one that fails costs nothing else, and a resumed run plays the same ones."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import rlkit as rk
from rlkit.data.curriculum import Shuffle
from rlkit.data.statistics import PromptStatistics
from rlkit.errors import ConfigError, EngineError, EpisodeError
from rlkit.rollout import hf
from rlkit.rollout import player as players
from rlkit.rollout.collector import Collector, Group, read_groups, write_groups
from rlkit.rollout.engine import Aborted
from rlkit.rollout.player import EpisodeSpec
from rlkit.rollout.section import RolloutSection
from rlkit.samples import Prompt, Rollout
from rlkit.types import Sampling
from tests.rollout.chats import FORGETS, Says, player, prompt_of
from tests.test_exact_resume import same
from tests.tokenizers import CHAT, make

SAMPLING = Sampling(max_tokens=20, seed=1)


@pytest.fixture
def tokenizer() -> Any:
    return make(chat=CHAT)


def test_all_episodes_of_all_groups_wait_side_by_side(tokenizer: Any) -> None:
    everybody = asyncio.Barrier(12)

    async def meets(chat: Any) -> float:
        await chat.generate()
        await everybody.wait()  # would wait for ever if one of them had to end first
        chat.user("all here")
        await chat.generate()
        return 1.0

    p = player(Says(tokenizer, *["yes"] * 24), tokenizer, meets)
    with ThreadPoolExecutor(3) as groups:
        found = list(groups.map(lambda _: p.generate(prompt_of(tokenizer), 4, SAMPLING), range(3)))
    p.close()
    assert [[r.episode for r in rows] for rows in found] == [[0, 1, 2, 3]] * 3 and all(
        r.error is None for rows in found for r in rows
    )


def test_one_that_takes_too_long_is_masked_and_the_others_are_not(tokenizer: Any) -> None:
    async def slow(chat: Any, rng: Any, id: str) -> float:
        said = await chat.generate()
        if said.text == "slow":
            await asyncio.sleep(60)
        return 1.0

    p = player(Says(tokenizer, "quick", "slow", "quick"), tokenizer, slow, timeout=0.5, report=lambda text: None)
    rows = p.generate(prompt_of(tokenizer), 3, SAMPLING)
    p.score(rows)
    p.close()
    failed = [r for r in rows if r.error]
    assert len(failed) == 1 and failed[0].text == "slow" and failed[0].tokens
    assert re.fullmatch(r"slow: it did not end within 0\.5 s at .*test_player\.py:\d+", failed[0].error or "")
    assert [r.reward for r in rows if not r.error] == [1.0, 1.0] and p.metrics() == {"episode/failed": 1.0}


def test_what_the_engine_raises_ends_the_run_even_if_the_episode_catches_it(tokenizer: Any) -> None:
    class Lost(Says):
        def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
            raise EngineError("the engine is lost")

    async def stubborn(chat: Any) -> float:
        try:
            await chat.generate()
        except Exception:
            return 1.0
        return 0.0

    p = player(Lost(tokenizer), tokenizer, stubborn)
    with pytest.raises(EngineError, match="the engine is lost"):
        p.generate(prompt_of(tokenizer), 2, SAMPLING)
    p.close()


def test_a_turn_that_a_weight_update_has_aborted_is_asked_again_and_the_episode_keeps_the_others(
    tokenizer: Any,
) -> None:
    class Updated(Says):
        def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
            if len(self.asked) == 1 and self.texts[0] == "lost":
                self.texts.pop(0)
                raise Aborted("by an update")
            return super().generate(prompt, n, sampling)

    async def twice(chat: Any) -> float:
        await chat.generate()
        chat.user("again")
        await chat.generate()
        return 1.0

    engine = Updated(tokenizer, "one", "lost", "two")
    p = player(engine, tokenizer, twice)
    rows = p.generate(prompt_of(tokenizer), 1, SAMPLING)
    p.close()
    assert [prompt.id for prompt, _ in engine.asked] == ["p/0/0", "p/0/1"] and rows[0].text == "two"


def test_a_slow_episode_is_overtaken_and_knows_which_weights_made_which_turn(tokenizer: Any, tmp_path: Path) -> None:
    class Versioned:
        version = 0

        def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
            return [Rollout(prompt, [9], [True], [-1.0], [self.version], "stop", text="x")]

    rows = [Prompt(str(i), (3,), "") for i in range(20)]
    statistics = PromptStatistics(rows)
    order = Shuffle().build(rows, 0, PromptStatistics(rows))
    first, go, engine = next(order).id, threading.Event(), Versioned()

    async def waits(context: Any, id: str) -> list[float]:
        await context.generate()
        context.add([5, 6])
        while id == first and not go.is_set():
            await asyncio.sleep(0.01)
        await context.generate()
        return [0.0, 1.0]

    p = player(engine, tokenizer, waits)
    section = RolloutSection(prompts=2, n=2, pause="continue", over=0.5, overtake=2)
    c = Collector(p, p, Shuffle().build(rows, 0, statistics), statistics, section, Sampling())
    for version in range(2):
        engine.version = version
        assert first not in {r.prompt.id for r in c.next(version)}
    write_groups(tmp_path / "ahead.jsonl", c.in_flight())
    assert not read_groups(tmp_path / "ahead.jsonl", {r.id: r for r in rows})[0].finished
    engine.version = 2
    go.set()
    late = [r for r in c.next(2) if r.prompt.id == first]
    assert [r.version for r in late] == [[0, 2, 2, 2]] * 2 and [r.sampled for r in late] == [
        [True, False, False, True]
    ] * 2
    assert c.metrics()["rollout/lag_max"] == 2 and c.metrics()["rollout/continued"] == 2
    assert [r.earned for r in late] == [[0.0, 0.0, 0.0, 1.0]] * 2
    c.close()
    p.close()


def test_an_episode_that_ran_ahead_keeps_its_rows_in_a_checkpoint(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = FORGETS

    async def twice(chat: Any) -> list[float]:
        await chat.generate()
        chat.user("again")
        await chat.generate()
        return [1.0, 0.5]

    p = player(Says(tokenizer, "<think>hm</think>one", "two"), tokenizer, twice)
    prompt = prompt_of(tokenizer)
    rollouts = p.generate(prompt, 1, SAMPLING)
    p.close()
    group = Group(0, prompt, Future())
    group.result.set_result((rollouts, None))
    write_groups(tmp_path / "ahead.jsonl", [group])
    assert read_groups(tmp_path / "ahead.jsonl", {"p": prompt})[0].result.result() == (rollouts, None)
    assert rollouts[1].prompt.token_ids != prompt.token_ids


def test_a_function_that_does_not_await_is_named_with_its_line(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(players, "STILL_SECONDS", 0.6)

    async def blocks(chat: Any) -> float:
        await chat.generate()
        time.sleep(4)
        return 1.0

    p = player(Says(tokenizer, "yes"), tokenizer, blocks, timeout=0.1)
    with pytest.raises(
        EpisodeError, match=r"'blocks' has not awaited for \d+ s \(at .*test_player\.py:\d+\).*asyncio\.to_thread"
    ):
        p.generate(prompt_of(tokenizer), 1, SAMPLING)
    p.close()


def test_a_tool_that_hangs_keeps_neither_other_tools_nor_the_end_of_the_process_waiting(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(players, "TOOLS", 2)  # at a time
    end, hanging = threading.Event(), list[threading.Thread]()

    def tool(text: str) -> float:
        if text == "slow":
            hanging.append(threading.current_thread())
            end.wait()
        return 1.0

    async def solve(chat: Any) -> float:
        return await asyncio.to_thread(tool, (await chat.generate()).text)

    p = player(Says(tokenizer, *["slow"] * 3, "quick"), tokenizer, solve, timeout=0.5, report=lambda text: None)
    assert all("did not end" in (r.error or "") for r in p.generate(prompt_of(tokenizer), 3, SAMPLING))
    assert [r.reward for r in p.generate(prompt_of(tokenizer), 1, SAMPLING)] == [1.0]
    p.close()
    assert len(hanging) >= 2 and all(thread.is_alive() and thread.daemon for thread in hanging)
    end.set()


def not_async(chat: Any) -> float:
    return 1.0


async def no_handle(answer: str) -> float:
    return 1.0


async def two_handles(chat: Any, context: Any) -> float:
    return 1.0


async def more(chat: Any, colour: str) -> float:
    return 1.0


async def fine(chat: Any, level: int = 1) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"fn": not_async}, r"episode 'not_async' is not an async function. Write: async def not_async(chat): ..."),
        ({"fn": no_handle}, r"episode 'no_handle' takes no handle on the model; it needs one of `chat`"),
        ({"fn": two_handles}, r"episode 'two_handles' takes chat and context; it needs one of"),
        (
            {"fn": more},
            r"episode 'more' has a parameter 'colour' that nothing fills; there are answer, chat, context, endpoint, id, level",
        ),
        ({"fn": fine, "args": {"size": 3}}, r"episode 'fine' has no parameter 'size' (args); it has chat, level."),
        ({"fn": "nowhere.py:f"}, r"rollout.episode: there is no file 'nowhere.py'"),
        ({"fn": "math"}, r"rollout.episode: 'math' names no function"),
    ],
)
def test_what_cannot_be_an_episode_is_refused_before_anything_starts(spec: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        EpisodeSpec(**spec).found(["level"])


def test_a_chat_needs_a_chat_template() -> None:
    with pytest.raises(
        ConfigError,
        match=r"takes a `chat`, but the tokenizer's chat template has not written prompt q\. Set data\.template",
    ):
        EpisodeSpec(fine).found([]).check("fine", [Prompt("q", (3,), "")], False)


def run_of(small: dict[str, Any], fn: Any, **changes: Any) -> rk.Run:
    settings = {
        **small,
        "rewards": [],
        "probe": {"every": 0, "final": False},
        "eval": {"prompts": 2, "every": 2},
        **changes,
    }
    settings["rollout"] = {**small["rollout"], "episode": fn, "max_model_len": 40}
    return rk.load(settings)


async def guess(context: Any, rng: Any, answer: str) -> dict[str, Any]:
    each = []
    for _ in range(2):
        said = await context.generate(max_tokens=3)
        each.append(float(said.text[:1] == answer[:1]))
        context.add("012"[rng.randrange(3)])
    return {"each": each, "odd": len(said.text) % 2}


def test_an_episode_says_how_long_a_conversation_may_be(small: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"rollout\.max_model_len is not: say how many tokens a whole conversation may have"
    ):
        rk.train(run_of(small, guess).replace({"rollout.max_model_len": None}), quiet=True)
    with pytest.raises(ConfigError, match="AStar compares whole responses"):
        rk.train(run_of(small, guess).replace(objective=[rk.AStar()]), quiet=True)


@pytest.mark.slow
def test_a_run_of_episodes_continues_as_if_it_had_not_stopped(
    small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf, "MAX_ROWS", 1)  # each request is a batch: what is computed does not depend on others
    run = run_of(small, guess, advantage={"type": "PerTurn", "of": {"type": "GroupNorm"}}, steps=3)
    whole = rk.train(run.replace(name="whole"), quiet=True)
    for step in rk.steps(run, quiet=True):
        if step.number == 1:
            break
    same(whole, rk.train(run, resume=True, quiet=True))
    row = whole.metrics()[-1]
    assert row["episode/turns"] == 2 and row["reward/mean"] == pytest.approx(
        row["reward/guess/each"] + row["reward/guess/odd"]
    )
    assert row["mismatch/max"] < 1e-4
    assert row["mismatch/expected"] == 1e-3  # float32
    transcripts = (whole / "transcripts.txt").read_text()
    assert (
        transcripts.count("===== held-out step 0, prompt sorting/test/") == 2
        and "\n[model] " in transcripts
        and "\n[added] " in transcripts
    )


@pytest.mark.slow
def test_rewards_of_the_last_answer_are_added_to_those_of_the_episode(small: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "async def play(context):\n    await context.generate(max_tokens=2)\n    context.add('0')\n    await context.generate(max_tokens=3)\n"
        "    return 10.0\n\ndef last(response):\n    return {'length': len(response)}\n"
    )
    run = run_of(small, str(tmp_path / "mine.py:play"), rewards=[str(tmp_path / "mine.py:last")], steps=1)
    (step,) = rk.steps(run, quiet=True)
    for r in step.rollouts:
        assert r.parts == {"play": 10.0, "last/length": float(len(r.text))} and r.reward == 10 + len(r.text)
    assert step.held_out is None and step.folder.held_out()[0].score is not None
