"""An agent that knows nothing of rlkit asks over HTTP, and its episode has the tokens that a chat would have."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import rlkit as rk
from rlkit.errors import ConfigError, EngineError
from rlkit.rollout import server as servers
from rlkit.rollout.engine import Aborted
from rlkit.samples import Prompt, Rollout, Sampling
from tests.rollout.chats import FORGETS, Says, player, prompt_of
from tests.tokenizers import CHAT, make

openai = pytest.importorskip("openai")

SAMPLING = Sampling(max_tokens=50, seed=1)
ADD = {
    "name": "add",
    "description": "Adds.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
}
CALL = '<think>hm</think>I shall add. <tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'
ASK = [{"role": "user", "content": "q"}]


def play(engine: Says, fn: Any, template: str = CHAT, n: int = 1, **options: Any) -> list[Rollout]:
    engine.tokenizer.chat_template = template
    p = player(engine, engine.tokenizer, fn, **options)
    try:
        rows = p.generate(prompt_of(engine.tokenizer), n, SAMPLING)
        p.score(rows)
    finally:
        p.close()
    return rows


def call(endpoint: Any, path: str = "chat/completions", *, key: str | None = None, **body: Any) -> tuple[int, Any]:
    """The status and the answer, as JSON, of a call without a client."""
    data = json.dumps({"messages": ASK, **body} if path == "chat/completions" else body).encode()
    headers = {"Authorization": f"Bearer {endpoint.key if key is None else key}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{endpoint.url}/{path}", data, headers)) as found:
            return found.status, json.load(found)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["error"]


def agent(client: Any, question: str) -> str:
    """An agent of somebody else's: tools until there is an answer."""
    messages: list[Any] = [{"role": "user", "content": question}]
    tools = [{"type": "function", "function": ADD}]
    while True:
        said = client.chat.completions.create(model="gpt-4o", messages=messages, tools=tools).choices[0]
        messages.append(said.message)
        if said.finish_reason != "tool_calls":
            return str(said.message.content)
        for made in said.message.tool_calls:
            got = json.loads(made.function.arguments)
            messages.append({"role": "tool", "tool_call_id": made.id, "content": str(got["a"] + got["b"])})


@pytest.mark.parametrize(("template", "rows"), [(CHAT, 1), (FORGETS, 3)])
def test_an_agent_that_was_written_for_openai_leaves_the_rows_that_a_chat_leaves(template: str, rows: int) -> None:
    # FORGETS shows an answer without its thinking as soon as something follows, so that each turn is a row of its own.
    def served(endpoint: Any) -> float:
        with openai.OpenAI(base_url=endpoint.url, api_key=endpoint.key) as client:
            return float(agent(client, "q") == "<think>so</think> 5")

    async def chatting(chat: Any) -> float:
        chat.use(rk.tools.Tool(ADD, lambda a, b: str(a + b)))
        said = await chat.run()
        return float(said.text == "<think>so</think> 5")

    said = (CALL, CALL, "<think>so</think> 5")
    found = play(Says(make(), *said), served, template)
    wanted = play(Says(make(), *said), chatting, template)
    assert len(found) == rows and found[0].reward == 1.0
    for x, y in zip(found, wanted, strict=True):
        assert (x.prompt.token_ids, x.tokens, x.sampled, x.logp, x.version, x.turn, x.text) == (
            y.prompt.token_ids, y.tokens, y.sampled, y.logp, y.version, y.turn, y.text
        )  # fmt: skip


def test_what_the_client_is_told() -> None:
    async def asks(endpoint: Any) -> list[float]:
        async with openai.AsyncOpenAI(base_url=endpoint.url, api_key=endpoint.key) as client:
            assert [m.id async for m in await client.models.list()] == [endpoint.model]
            told = await client.chat.completions.create(
                model=endpoint.model, messages=ASK, tools=[{"type": "function", "function": ADD}], max_tokens=49,
                temperature=1.0, stop="###",
            )  # fmt: skip
            (choice,) = told.choices
            assert choice.message.content == "<think>hm</think>I shall add." and choice.finish_reason == "tool_calls"
            assert choice.message.tool_calls[0].function.arguments == '{"a": 2, "b": 3}'
            assert told.usage.completion_tokens == len(CALL) - len("<think></think>") + 2 + 1  # three special tokens
            events = [
                e
                async for e in await client.chat.completions.create(
                    model="m", messages=ASK, stream=True, stream_options={"include_usage": True}
                )
            ]
            assert "".join(e.choices[0].delta.content or "" for e in events[:-1]) == "so long..."
            assert events[-2].choices[0].finish_reason == "length" and events[-1].usage.total_tokens > 7
            return [0.0] * endpoint.turns

    engine = Says(make(), CALL, "so long...")
    rows = play(engine, asks)
    assert [r.error for r in rows] == [None, None] and [(s.stop, s.max_tokens) for _, s in engine.asked] == [
        (("###",), 49),
        ((), 50),
    ]


def test_conversations_side_by_side_and_several_answers_are_rows_that_share_the_reward() -> None:
    more, heard = {"role": "user", "content": "more"}, list[str]()

    def several(endpoint: Any) -> dict[str, Any]:
        _, told = call(endpoint, n=3)
        first, second, third = (c["message"] for c in told["choices"])
        heard.extend(m["content"] for m in (first, second, third))
        spacious = {**third, "content": f" {third['content']}\n"}
        with ThreadPoolExecutor(2) as both:
            jobs = [both.submit(call, endpoint, messages=[*ASK, m, more]) for m in (second, spacious)]
            heard.extend(job.result()[1]["choices"][0]["message"]["content"] for job in jobs)
        call(endpoint, messages=[*ASK, {**first, "content": "changed"}, more])
        return {"each": [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]}

    engine = Says(make(), "a", "b", "c", "x", "y", "z")
    rows = play(engine, several)
    asked, between = "<|user|>q<|im_end|>\n<|assistant|>", "<|im_end|>\n<|user|>more<|im_end|>\n<|assistant|>"
    assert {engine.tokenizer.decode([*r.prompt.token_ids, *r.tokens]) for r in rows} == {
        f"{asked}{heard[0]}<|im_end|>",
        f"{asked}{heard[1]}{between}{heard[3]}<|im_end|>",
        f"{asked}{heard[2]}{between}{heard[4]}<|im_end|>",
        f"{asked}changed{between}z<|im_end|>",
    }
    assert len(rows) == 4 and sorted(heard) == ["a", "b", "c", "x", "y"]
    turns = [sorted({t for t in r.turn or () if t >= 0}) for r in rows]
    assert sorted(t for of_row in turns for t in of_row) == [0, 1, 2, 3, 4, 5], "each answer is trained once"
    assert all(r.reward == 1.0 and r.parts == {"several/each": 1.0} for r in rows)
    assert len({p.id for p, _ in engine.asked}) == 6, "each has a seed of its own"


def test_completions_grow_where_all_tokens_are_in_the_text() -> None:
    def completes(endpoint: Any) -> float:
        def said(prompt: Any) -> str:
            status, told = call(endpoint, "completions", prompt=prompt)
            assert status == 200, told
            return str(told["choices"][0]["text"])

        text = "<|user|>q<|im_end|>\n<|assistant|>"
        text += said(text) + " and"  # cut off: all its tokens are seen
        text += said(text) + " then"  # ended by a token that the text does not show
        said([text])
        return 1.0

    engine = Says(make(), "one...", "two", "three")
    rows = play(engine, completes)
    asked = "<|user|>q<|im_end|>\n<|assistant|>"
    assert [engine.tokenizer.decode([*r.prompt.token_ids, *r.tokens]) for r in rows] == [
        f"{asked}one... andtwo<|im_end|>", f"{asked}one... andtwo thenthree<|im_end|>"
    ]  # fmt: skip
    assert rows[0].prompt.token_ids == prompt_of(engine.tokenizer).token_ids


def test_an_agent_in_a_process_of_its_own() -> None:
    program = (
        "import json, os, urllib.request as u\n"
        "r = u.Request(os.environ['OPENAI_BASE_URL'] + '/chat/completions', json.dumps({'messages': [{'role': 'user', 'content': 'q'}]}).encode(),\n"
        "    {'Authorization': 'Bearer ' + os.environ['OPENAI_API_KEY']})\n"
        "print(json.load(u.urlopen(r))['choices'][0]['message']['content'])\n"
    )

    async def starts(endpoint: Any) -> float:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, env=endpoint.environment, stdout=subprocess.PIPE
        )
        out, _ = await process.communicate()
        return float(out == b"yes\n")

    assert [r.reward for r in play(Says(make(), "yes", "yes"), starts, n=2)] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({"temperature": 0.2}, "temperature", "the run samples with 1.0 (sampling.temperature), and trains on what it has sampled so"),
        ({"top_p": 0.9}, "top_p", "the run samples with 1.0 (sampling.top_p)"),
        ({"seed": 3}, "seed", "seed is not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty", "leave it out, or give 0"),
        ({"response_format": {"type": "json_object"}}, "response_format", 'or give {"type": "text"}'),
        ({"tools": [{"type": "function", "function": ADD}], "tool_choice": "required"}, "tool_choice", "nothing makes the model call"),
        ({"tools": [{"type": "function"}]}, None, "a tool's schema has a name"),
        ({"max_tokens": 0}, "max_tokens", "a whole number of at least 1"),
        ({"n": 1000}, "n", "at most 128 answers"),
        ({"stop": [""]}, "stop", "none of them empty"),
        ({"messages": []}, "messages", "must be a list of messages"),
        ({"messages": [{"role": "robot", "content": "q"}]}, None, "messages: message 0 has the role 'robot'"),
        ({"messages": [*ASK, {"role": "assistant", "content": "a"}]}, "messages", "end with one of 'assistant'"),
        ({"messages": [{"role": "user", "content": "q" * 500}]}, None, "the context is full"),
    ],
)  # fmt: skip
def test_a_call_that_cannot_be_served_is_told_why(body: dict[str, Any], param: str | None, told: str) -> None:
    heard = list[Any]()

    def wrong(endpoint: Any) -> float:
        heard.append(call(endpoint, **body))
        return float(call(endpoint)[0])  # and the next one is served

    (row,) = play(Says(make(), "yes"), wrong)
    ((status, error),) = heard
    assert (status, error["param"], row.reward) == (400, param, 200.0)
    assert told in error["message"] and error["type"] == "invalid_request_error"


NO_BODIES = (
    (b"{", "the body:1: not valid JSON"),
    (b"[" * 100_000, "the body:1: not readable JSON"),
    (b'{"prompt": "a\\ud800"}', "half a surrogate pair"),
    (b'{"prompt": "a", "\\ud800": 1}', "half a surrogate pair"),
    (b'{"prompt": "a", "max_tokens": NaN}', "NaN is not JSON"),
    (b'{"prompt": "\xff"}', "the body is not UTF-8"),
)


def refused(endpoint: Any, body: bytes, method: str = "POST") -> tuple[int, Any]:
    headers = {"Authorization": f"bearer {endpoint.key}"}  # a scheme has no case
    with pytest.raises(urllib.error.HTTPError) as found:
        urllib.request.urlopen(urllib.request.Request(f"{endpoint.url}/completions", body, headers, method=method))
    with found.value as error:
        return error.code, json.load(error)["error"]


def test_keys_and_places() -> None:
    heard: dict[str, Any] = {}

    def looks(endpoint: Any) -> float:
        heard["unknown"] = call(endpoint, key="sk-mine")
        heard["nowhere"] = call(endpoint, "embeddings", input="q")
        heard["bodies"] = [refused(endpoint, body) for body, _ in NO_BODIES]
        heard["method"] = refused(endpoint, b"{}", "PUT")
        with openai.OpenAI(base_url=endpoint.url, api_key=endpoint.key) as client:
            try:
                client.chat.completions.create(model="m", messages=[{"role": "user", "content": "q" * 500}])
            except openai.BadRequestError as full:
                heard["full"] = full.code
        call(endpoint)
        heard["endpoint"] = endpoint
        return 1.0

    p = player(Says(tokenizer := make(chat=CHAT), "yes"), tokenizer, looks)
    (row,) = p.generate(prompt_of(tokenizer), 1, SAMPLING)
    ended = call(heard["endpoint"])
    p.close()
    assert row.error is None
    assert heard["unknown"][0] == 401 and "no key of an episode" in heard["unknown"][1]["message"]
    assert (
        heard["nowhere"][0] == 404
        and "there is no POST /v1/embeddings; there are POST /v1/chat" in heard["nowhere"][1]["message"]
    )
    for (_, told), (status, error) in zip(NO_BODIES, heard["bodies"], strict=True):
        assert status == 400 and told in error["message"]
    assert heard["method"][0] == 501 and "Unsupported method" in heard["method"][1]["message"]
    assert heard["full"] == "context_length_exceeded"
    assert ended[0] == 410 and ended[1]["message"].startswith("the episode has ended")


def test_an_episode_that_takes_too_long_ends_and_its_call_is_refused() -> None:
    heard = list[Any]()

    class Slow(Says):
        def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
            time.sleep(1.0)
            return super().generate(prompt, n, sampling)

    def waits(endpoint: Any) -> float:
        heard.append(call(endpoint))
        return 1.0

    tokenizer = make(chat=CHAT)
    p = player(Slow(tokenizer, "late"), tokenizer, waits, timeout=0.3, report=lambda text: None)
    (row,) = p.generate(prompt_of(tokenizer), 1, SAMPLING)
    while not heard:
        time.sleep(0.01)
    p.close()
    assert row.error == "waits: it did not end within 0.3 s" and row.tokens == []
    assert heard[0][0] == 410


def test_an_agent_that_blocks_the_event_loop_is_told_so_where_it_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "BLOCKED_SECONDS", 0.2)

    async def blocks(endpoint: Any) -> float:
        with openai.OpenAI(base_url=endpoint.url, api_key=endpoint.key) as client:
            client.chat.completions.create(model="m", messages=ASK)
        return 1.0

    (row,) = play(Says(make(), "yes"), blocks, report=lambda text: None)
    assert "the function of the episode does not await" in str(row.error) and "`def` in place of `async def`" in str(
        row.error
    )


async def never(endpoint: Any) -> float:
    return 1.0


def fails(endpoint: Any) -> float:
    call(endpoint)
    raise KeyError("missing")


@pytest.mark.parametrize(
    ("fn", "told"),
    [
        (
            never,
            "it never asked the model: there is nothing to train on. Let the agent's client have the endpoint's url and key",
        ),
        (fails, "KeyError: 'missing' at "),
    ],
)
def test_what_is_wrong_with_an_episode(fn: Any, told: str) -> None:
    (row,) = play(Says(make(), "yes"), fn, report=lambda text: None)
    assert told in str(row.error)


def test_a_weight_update_and_the_loss_of_an_engine() -> None:
    class Updated(Says):
        def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
            if self.texts[0] == "aborted":
                self.texts.pop(0)
                raise Aborted("by an update")
            if self.texts[0] == "lost":
                raise EngineError("the engine is lost")
            return super().generate(prompt, n, sampling)

    heard = list[Any]()

    def asks(endpoint: Any) -> float:
        heard.append(call(endpoint))
        return 1.0

    assert play(Updated(make(), "aborted", "yes"), asks)[0].text == "yes" and heard[0][0] == 200
    with pytest.raises(EngineError, match="the engine is lost"):
        play(Updated(make(), "lost"), asks)
    assert heard[1][0] == 500 and "the engine is lost" in heard[1][1]["message"]


def test_what_does_not_fit_together_is_refused_before_anything_starts(small: dict[str, Any]) -> None:
    async def chats(chat: Any) -> float:
        return 1.0

    def told(**rollout: Any) -> str:
        run = rk.load({**small, "rewards": [], "rollout": {**small["rollout"], "max_model_len": 40, **rollout}})
        with pytest.raises(ConfigError) as refused:
            rk.train(run, quiet=True)
        return str(refused.value)

    assert "takes an `endpoint`, which opens a port" in told(episode=never)
    assert "takes a `chat` and not an `endpoint`" in told(episode=chats, serve=True)
    assert "rollout.serve is set, but rollout.episode is not" in told(serve=True)


def test_a_port_that_is_taken() -> None:
    first = servers.Server(servers.Serve())
    port = int(first.url.rsplit(":", 1)[1].split("/")[0])
    with pytest.raises(ConfigError, match=rf"rollout\.serve: nothing can listen at 127\.0\.0\.1:{port}"):
        servers.Server(servers.Serve(port=port))
    first.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "::1", "127.0.0.1"])
def test_the_url_is_one_that_a_client_can_call(host: str) -> None:
    try:
        server = servers.Server(servers.Serve(host=host))
    except ConfigError:
        if ":" in host:
            pytest.skip("this machine has no IPv6")
        raise
    try:
        assert urllib.parse.urlsplit(server.url).hostname not in (None, "0.0.0.0", "::")
        with pytest.raises(urllib.error.HTTPError, match="401"):  # it answers: nobody has that key
            urllib.request.urlopen(
                urllib.request.Request(f"{server.url}/models", headers={"Authorization": "Bearer x"})
            )
    finally:
        server.close()


def test_a_machine_without_others_is_found_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Alone(socket.socket):
        def connect(self, address: Any) -> None:
            raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "socket", Alone)
    assert servers.reached("0.0.0.0") == "127.0.0.1" and servers.reached("10.1.2.3") == "10.1.2.3"


@pytest.mark.slow
def test_a_run_trains_on_what_an_agent_asked(small: dict[str, Any], tmp_path: Path) -> None:
    def asks(endpoint: Any, question: str, answer: str) -> dict[str, float]:
        messages = [{"role": "user", "content": question}]
        for _ in range(2):
            status, told = call(endpoint, messages=messages, max_tokens=4)
            assert status == 200, told
            messages += [told["choices"][0]["message"], {"role": "user", "content": ">"}]
        return {"length": float(len(messages[-2]["content"]))}

    run = rk.load(
        {**small, "rewards": [], "data": {**small["data"], "template": "chat"}, "rollout": {**small["rollout"], "max_model_len": 40, "episode": asks, "serve": {"port": 0}}}
    )  # fmt: skip
    folder = rk.train(run, quiet=True)
    for row in folder.metrics():
        assert row["episode/turns"] == 2 and row["episode/rows"] == 1 and row["episode/failed"] == 0
        assert row["mismatch/max"] < 1e-4
