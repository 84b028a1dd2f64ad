"""The tokens of episodes: they grow, they are never made anew, and the learner finds the engine's log-probs in every row."""

from __future__ import annotations

import asyncio
import functools
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from rlkit.errors import ContextFull, EpisodeError
from rlkit.model import packed
from rlkit.model.load import load_lm
from rlkit.model.policy import PolicyModel, evaluate_new
from rlkit.rollout.hf import HFEngine
from rlkit.samples import Rollout, by_episode
from rlkit.tools import Tool, ToolError
from rlkit.types import Batch, Sampling
from tests.rollout.chats import FORGETS, FORGETS_LATER, STRIPS, Says, make_model, player, prompt_of
from tests.tokenizers import CHAT, ids, make


async def twice(chat: Any) -> float:
    await chat.generate()
    chat.user("again")
    await chat.generate()
    return 1.0


def play(
    engine: Says, fn: Any, template: str = CHAT, n: int = 1, sampling: Sampling | None = None, **options: Any
) -> list[Rollout]:
    engine.tokenizer.chat_template = template
    p = player(engine, engine.tokenizer, fn, **options)
    rows = p.generate(prompt_of(engine.tokenizer, level=3), n, sampling or Sampling(max_tokens=50, seed=1))
    p.score(rows)
    p.close()
    return rows


@pytest.mark.parametrize("end", ["<|im_end|>", "</s>"])
def test_a_context_grows_by_the_tokens_that_were_sampled(end: str) -> None:
    engine = Says(make(), "The answer", "yes", end=end)
    (r,) = play(engine, twice)
    seen = f"<|user|>q<|im_end|>\n<|assistant|>The answer{end}\n<|user|>again<|im_end|>\n<|assistant|>"
    assert engine.seen == seen, "the model's own ending stands in the place of the template's"
    text = engine.tokenizer.decode([*r.prompt.token_ids, *r.tokens])
    assert text == f"{seen}yes{end}"
    sampled = [t for t, flag in zip(r.tokens, r.sampled, strict=True) if flag]
    assert sampled == [*ids(engine.tokenizer, f"The answer{end}"), *ids(engine.tokenizer, f"yes{end}")]
    assert [t for t, turn in zip(r.tokens, r.turn or (), strict=True) if turn == 1] == ids(
        engine.tokenizer, f"yes{end}"
    )
    assert {v for v, turn in zip(r.version, r.turn or (), strict=True) if turn == 0} == {1} and set(r.version) == {1, 2}
    assert (r.text, r.finish, r.reward, r.parts, r.episode) == ("yes", "stop", 1.0, {"twice": 1.0}, 0)


def test_tokens_that_no_tokenizer_would_make_of_the_text_stay() -> None:
    engine = Says(make())
    apart = [*(engine.tokenizer.convert_tokens_to_ids(c) for c in "ab"), 4]  # "ab" is one token of its own

    def generate(prompt: Any, n: int, sampling: Any) -> list[Rollout]:
        engine.asked.append((prompt, sampling))
        return [Rollout(prompt, apart, [True] * 3, [-1.0] * 3, [0] * 3, "stop", text="ab")]

    engine.generate = generate  # type: ignore[method-assign]
    (r,) = play(engine, twice)
    assert r.tokens[:3] == apart and list(engine.asked[1][0].token_ids)[len(r.prompt.token_ids) :][:3] == apart
    assert ids(engine.tokenizer, "ab") != apart[:2]


def test_an_answer_that_was_cut_off_is_closed_as_the_template_does() -> None:
    engine = Says(make(), "so long...", "yes")
    rows = play(engine, twice)
    assert engine.seen.endswith("so long...<|im_end|>\n<|user|>again<|im_end|>\n<|assistant|>") and len(rows) == 1


def test_space_around_an_answer_is_no_other_history() -> None:
    engine = Says(make(), " spacious \n", "yes")
    rows = play(engine, twice, STRIPS)
    assert len(rows) == 1 and "<|assistant|> spacious \n<|im_end|>\n<|user|>" in engine.seen, (
        "as sampled, not as the template has it"
    )


def test_where_the_template_rewrites_what_was_said_the_episode_goes_on_in_a_row_of_its_own() -> None:
    engine = Says(make(), "<think>hm</think>first", "<think>so</think>second", "third")

    async def thrice(chat: Any) -> dict[str, Any]:
        await chat.generate()
        chat.user("again")
        await chat.generate()
        chat.user("more")
        await chat.generate()
        return {"each": [0.5, 0.0, 1.0], "all": 2}

    rows = play(engine, thrice, FORGETS)
    assert [r.episode for r in rows] == [0, 0, 0] and [r.reward for r in rows] == [3.5] * 3
    assert rows[0].parts == {"thrice/each": 1.5, "thrice/all": 2.0}
    shown = [engine.tokenizer.decode(r.prompt.token_ids) for r in rows]
    assert shown[0] == "<|user|>q<|im_end|>\n<|assistant|>"
    assert shown[1] == "<|user|>q<|im_end|>\n<|assistant|>first<|im_end|>\n<|user|>again<|im_end|>\n<|assistant|>"
    assert "hm" not in shown[2] and "so" not in shown[2] and "second" in shown[2]
    said = [engine.tokenizer.decode(r.tokens) for r in rows]
    assert said == ["<think>hm</think>first<|im_end|>", "<think>so</think>second<|im_end|>", "third<|im_end|>"]
    assert all(all(r.sampled) for r in rows), "each sampled token is trained once"
    assert [(r.earned or [0])[-1] for r in rows] == [0.5, 0.0, 1.0]
    assert {r.prompt.id for r in rows} == {"p"} and "first" in rows[0].transcript and "again" in rows[0].transcript


def test_thinking_between_calls_of_tools_stays_in_one_row_until_the_user_speaks_again() -> None:
    def add(a: int, b: int) -> int:
        """Adds.

        Args:
            a: a number.
            b: another.
        """
        return a + b

    async def works(chat: Any) -> float:
        chat.use(add)
        await chat.run()
        chat.user("and now?")
        await chat.run()
        return 1.0

    call = '<think>hm</think><tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'
    engine = Says(make(), call, "<think>so</think>5", "<think>oh</think>6")
    rows = play(engine, works, FORGETS_LATER)
    first, second = (engine.tokenizer.decode([*r.prompt.token_ids, *r.tokens]) for r in rows)
    assert (
        "<think>hm</think>" in first
        and "<|tool|>5<|im_end|>" in first
        and first.endswith("<think>so</think>5<|im_end|>")
    )
    assert (
        "hm" not in second
        and "so" not in second
        and "<tool_call>" in second
        and second.endswith("<think>oh</think>6<|im_end|>")
    )
    assert [sorted({t for t in r.turn or () if t >= 0}) for r in rows] == [[0, 1], [2]]


def test_messages_that_are_taken_out_are_not_seen_any_more() -> None:
    engine = Says(make(), "one", "two")

    async def forgets(chat: Any) -> float:
        await chat.generate()
        del chat.messages[:]
        chat.user("what did you say?")
        await chat.generate()
        return 0.0

    rows = play(engine, forgets)
    assert len(rows) == 2 and engine.seen == "<|user|>what did you say?<|im_end|>\n<|assistant|>"


def test_a_context_of_plain_text() -> None:
    engine = Says(make(), "4", "5")

    async def adds(context: Any, level: int, rng: Any) -> float:
        said = await context.generate(stop=["x"], max_tokens=7)
        context.add(f"[{said.text}{level}]")
        before = context.left
        await context.generate()
        return before + rng.random()

    rows = play(engine, adds)
    assert engine.seen == "<|user|>q<|im_end|>\n<|assistant|>4<|im_end|>[43]"
    assert [(s.stop, s.max_tokens) for _, s in engine.asked] == [(("x",), 7), ((), 50)]
    assert [p.id for p, _ in engine.asked] == ["p/0/0", "p/0/1"], "every turn has a seed of its own"
    assert int(rows[0].reward) == 400 - len(engine.asked[1][0].token_ids)
    assert rows[0].reward == play(Says(engine.tokenizer, "4", "5"), adds)[0].reward, "rng is seeded"


def test_tools_are_shown_called_and_answered() -> None:
    def double(number: int) -> int:
        """Doubles.

        Args:
            number: what is doubled.
        """
        if number > 99:
            raise ToolError("that is too large")
        return 2 * number

    async def solve(chat: Any) -> float:
        chat.use(double)
        said = await chat.run(turns=5)
        return float(said.text == "46")

    template = "{% for t in tools or [] %}{{ t.function.name }};{% endfor %}" + CHAT
    calls = [
        f'<tool_call>{{"name": "{f}", "arguments": {{"number": {x}}}}}</tool_call>'
        for f, x in (("double", 23), ("double", 100), ("half", 1))
    ]
    engine = Says(make(), *calls, "46")
    rows = play(engine, solve, template)
    assert len(rows) == 1 and rows[0].reward == 1
    assert engine.tokenizer.decode(rows[0].prompt.token_ids).startswith("double;<|user|>q")
    told = [part.split("<|im_end|>")[0] for part in engine.seen.split("<|tool|>")[1:]]
    assert told == ["46", "error: that is too large", "error: there is no tool 'half'; there are double"]


async def silent(chat: Any) -> float:
    return 1.0


async def mute(chat: Any) -> None:
    await chat.generate()


async def breaks(chat: Any) -> float:
    for turn in range(3):
        await chat.generate()
        chat.user("again")
        if turn == 1:
            {}["missing"]
    return 1.0


async def leaves(chat: Any) -> float:
    await chat.generate()
    sys.exit(3)


async def endless(chat: Any) -> float:
    while True:
        await chat.generate()
        chat.user("again")


async def wordy(chat: Any) -> Any:
    await chat.generate()
    return "good"


async def short(chat: Any) -> Any:
    await chat.generate()
    return {"each": [1.0, 2.0]}


async def both(context: Any) -> Any:
    await asyncio.gather(context.generate(), context.generate())


async def hurried(context: Any) -> float:
    hurried.left = asyncio.ensure_future(context.generate())  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    return 1.0


async def not_a_number(context: Any) -> Any:
    await context.generate()
    return {"each": [float("nan")]}


async def empty(context: Any) -> Any:
    await context.generate()
    return {}


async def enormous(context: Any) -> Any:
    await context.generate()
    return {"a": 1e308, "b": 1e308}


async def cancelled(context: Any) -> float:
    await context.generate()
    task = asyncio.ensure_future(asyncio.sleep(60))
    task.cancel()
    await task
    return 1.0


async def together(context: Any) -> float:
    await context.generate()
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.to_thread(int, "x"))
    return 1.0


async def stops(context: Any) -> float:
    await context.generate()
    await asyncio.to_thread(next, iter(()))
    return 1.0


def wanted(text: str) -> str:
    """Takes a text.

    Args:
        text: a text.
    """
    return text


async def uses_one_twice(chat: Any) -> float:
    chat.use(wanted)
    chat.use({"name": "wanted", "description": "", "parameters": {"type": "object"}})
    await chat.generate()
    return 1.0


async def another_schema(chat: Any) -> float:
    told = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
    chat.use(Tool({"name": "wanted", "parameters": told}, wanted))
    await chat.generate()
    return 1.0


@pytest.mark.parametrize(
    ("fn", "told"),
    [
        (not_a_number, "it returned nan; a reward must be finite"),
        (empty, "it returned nothing. Return a number, or numbers by name"),
        (enormous, "the sum of its rewards is not finite"),
        (cancelled, "CancelledError: .* at .*test_episode.py:"),
        (together, "ValueError: invalid literal for int"),
        (stops, "RuntimeError: StopIteration"),
        (uses_one_twice, "ConfigError: chat.use: there is a tool 'wanted' already"),
        (
            another_schema,
            "ConfigError: the tool 'wanted': a call with the parameters word of its schema is none of its function's",
        ),
        (silent, "it never asked the model: there is nothing to train on"),
        (mute, "it returned nothing. Return a number, or numbers by name"),
        (breaks, "KeyError: 'missing' at .*test_episode.py:"),
        (leaves, "SystemExit: 3 at .*test_episode.py:"),
        (endless, "the context is full: it has .* tokens, and rollout.max_model_len is 100"),
        (wordy, "it returned 'good' .str.; a reward is a number"),
        (short, "it returned 2 rewards for 'each', and the model had 1 turns"),
        (both, "two answers were asked for at the same time in one episode"),
        (hurried, "it returned while an answer of the model was still under way"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_what_is_wrong_with_an_episode_is_one_sentence_and_only_that_episode_is_masked(fn: Any, told: str) -> None:
    notes = list[str]()
    rows = play(Says(make(), *["yes"] * 30), fn, limit=100, report=notes.append)
    assert all(r.reward != r.reward for r in rows), "no reward"
    assert (
        len(notes) == 1
        and "episode failed on prompt p" in notes[0]
        and "The episode until then:\n[prompt] <|user|>q" in notes[0]
    )
    assert re.search(f"{fn.__name__}: {told}", rows[0].error or ""), rows[0].error
    with pytest.raises(EpisodeError, match=told):
        play(Says(make(), *["yes"] * 30), fn, limit=100, on_error="raise")


def test_an_answer_that_is_asked_for_after_the_end() -> None:
    kept: list[Any] = []

    async def leaks(context: Any) -> float:
        await context.generate()
        kept.append(context)
        return 1.0

    assert play(Says(make(), "yes"), leaks)[0].reward == 1
    with pytest.raises(EpisodeError, match="the episode has ended"):
        asyncio.run(kept[0].generate())


def test_a_full_context_can_be_caught() -> None:
    async def careful(chat: Any) -> dict[str, Any]:
        try:
            while True:
                await chat.generate()
                chat.user("again")
        except ContextFull:
            return {"turns": [1.0] * chat.turns}

    rows = play(Says(make(), *["yes"] * 30), careful, limit=100)
    assert rows[0].error is None and rows[0].reward == sum(rows[0].earned or ()) > 1


@pytest.mark.slow
@pytest.mark.parametrize(("template", "rows_each"), [(CHAT, 1), (FORGETS, None)])
def test_the_learner_finds_the_engines_log_probs_of_every_sampled_token(
    template: str, rows_each: int | None, tmp_path: Path
) -> None:
    tokenizer = make_model(tmp_path)
    tokenizer.chat_template = template.replace("'</think>'", "'e'")  # what a random model writes now and then
    sampling = Sampling(max_tokens=24, seed=3, temperature=0.9)

    async def thrice(chat: Any, rng: Any) -> dict[str, Any]:
        for _ in range(3):
            await chat.generate()
            chat.user(rng.choice(["again", "more", "stop here"]))
        return {"each": [rng.random() for _ in range(3)], "all": 1.0}

    engine = HFEngine(str(tmp_path), max_model_len=400)
    p = player(engine, tokenizer, thrice)
    rollouts = []
    for g in range(2):
        rows = p.generate(prompt_of(tokenizer, "abc" * (g + 1)), 3, sampling)
        p.score(rows)
        for r in rows:
            r.group = g
        rollouts += rows
    p.close()
    engine.close()
    assert len(by_episode(rollouts)) == 6 and all(r.error is None for r in rollouts)
    assert len(rollouts) == 6 if rows_each else len(rollouts) > 6
    packed.register()
    b = Batch.from_rollouts(rollouts)
    assert len(rollouts) == b.S and sum(sum(r.sampled) for r in rollouts) == b.N
    for attention in (None, packed.NAME):
        new = evaluate_new(PolicyModel(load_lm(tmp_path, attention=attention)), b, sampling, frozenset())
        assert float((new.logp - b.logp["behav"]).abs().max()) < 1e-4


def test_partials_are_functions_too() -> None:
    async def counts(chat: Any, times: int) -> float:
        for _ in range(times):
            await chat.generate()
            chat.user("again")
        return float(chat.turns)

    assert play(Says(make(), *["yes"] * 5), functools.partial(counts, times=2))[0].reward == 2
    assert play(Says(make(), *["yes"] * 5), counts, args={"times": 3})[0].reward == 3
