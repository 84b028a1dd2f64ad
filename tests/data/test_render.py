"""Chats and questions as prompts: the tokenizer's first token, its chat template, system messages, paths into lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from rlkit.cli import main
from rlkit.data import Data
from rlkit.data.prompts import load_prompts
from rlkit.data.render import Encoder, Renderer
from rlkit.data.stored import Stored, StoredRows
from rlkit.errors import DataError
from rlkit.model.load import load_tokenizer
from rlkit.types import Prompt
from tests.data.tables import beside
from tests.scripted import make_scripted
from tests.tokenizers import CHAT, ids, make

FAMILIES = {
    "llama": ({"front": "<s>"}, True),
    "gemma": ({"front": "<s>", "chat": "{{ bos_token }}" + CHAT}, True),
    "qwen": ({"chat": CHAT}, False),
    "t5": ({"end": "</s>"}, False),
    "around": ({"front": "<s>", "end": "</s>"}, True),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_token_is_the_tokenizers_own(family: str, tmp_path: Path) -> None:
    options, has = FAMILIES[family]
    tokenizer = make(**options)
    (tmp_path / "d.jsonl").write_text('{"prompt": "hi"}')
    templates = ["plain", "abel", *(["chat"] if tokenizer.chat_template else [])]
    for template in templates:
        p = load_prompts(beside(tmp_path, train="d.jsonl", template=template), "train", tokenizer)[0]
        written = "<s>" in p.text  # a chat template writes its first token itself, or there is none
        front = (2,) if (has and template != "chat") or written else ()
        rest = p.text.removeprefix("<s>")
        assert p.token_ids == (*front, *ids(tokenizer, rest)) and p.token_ids.count(2) <= 1 and 1 not in p.token_ids
    row = {"prompt": p.text, "prompt_tokens": p.token_ids, "tokens": [80], "logp": [-1.0]}
    (tmp_path / "s.jsonl").write_text(json.dumps(row))
    assert StoredRows(Stored(path=str(tmp_path / "s.jsonl")), tokenizer, 0).rows[0].prompt.token_ids == p.token_ids
    assert Encoder(tokenizer)("<s>x") == (2, *ids(tokenizer, "x"))


@pytest.mark.parametrize("kind", ["TokenizersBackend", "GemmaTokenizer", "LlamaTokenizer"])
def test_a_tokenizer_that_is_told_to_add_its_bos_does(kind: str, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for asked, front in ((False, ()), (True, (2,))):
        changed = {**settings, "tokenizer_class": kind, "add_bos_token": asked}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(changed))
        assert Encoder(load_tokenizer(tmp_path)).front == front
    load_tokenizer(tmp_path).save_pretrained(tmp_path / "out")
    assert Encoder(load_tokenizer(tmp_path / "out")).front == (2,)


def rendered(value: Any, template: str = "plain", **settings: Any) -> Any:
    return Renderer.of(Data(train="x.jsonl", template=template, **settings), make(chat=CHAT))(value, "d.jsonl:7")


def chat(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def test_chats_become_prompts() -> None:
    one = chat(("user", "2 + 2"))
    assert rendered(one).text == "<|user|>2 + 2<|im_end|>\n<|assistant|>" == rendered("2 + 2", "chat").text
    assert rendered(one, "chat:boxed").text == rendered("2 + 2", "chat:boxed").text != rendered(one).text
    asked = rendered(
        chat(("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    )
    assert asked.cut and asked.question == "c" and len(asked.messages) == 4
    assert asked.text.startswith("<|system|>Be brief.<|im_end|>\n<|user|>a") and asked.text.endswith(
        "<|im_end|>\n<|assistant|>"
    )
    again = rendered(chat(("user", "a"), ("assistant", "b"), ("user", "c")), "chat:boxed")
    assert again.text.count("boxed") == 1 and again.text.index("boxed") > again.text.index("<|user|>c")
    parts = [{"type": "text", "text": "2 "}, {"type": "text", "text": "+ 2", "image": None}]
    assert rendered(chat(("user", parts))).text == rendered(one).text
    system = rendered(one, system="S")
    assert system.text.startswith("<|system|>S<|im_end|>") and rendered("2 + 2", "chat", system="S").text == system.text
    own = rendered(chat(("system", "T"), ("user", "q")), system="S").text
    assert "<|system|>T" in own and "<|system|>S" not in own
    assert rendered(one, chat_template_kwargs={"enable_thinking": False}).text.endswith("<|assistant|><think></think>")


BAD = [
    (chat(("user", "")), "message 0 (user) has no content"),
    (chat(("user", None)), "message 0 (user) has no content"),
    (chat(("user", " \n")), "message 0 (user) has no content"),
    (chat(("bot", "x")), "message 0 has the role 'bot'; roles are system, developer, user"),
    ([{"content": "x"}], "message 0 has no role; it has content."),
    ([{"from": "human", "value": "x"}], "message 0 has no role; it has from, value. Rename `from` to role"),
    (["x"], "message 0 is 'x'; a message is a mapping"),
    (chat(("user", 5)), "message 0 has the content 5; it must be a text"),
    (
        chat(("user", [{"type": "image", "image": "x.png"}])),
        "message 0 holds a part of type 'image'; rlkit trains on texts",
    ),
    (chat(("user", [{"type": "text"}])), "message 0 holds the part {'type': 'text'}"),
    (chat(("system", "x")), "the chat ends with a message of 'system'; the model answers to a message of 'user'"),
    (chat(("assistant", "x")), "the chat is an answer alone"),
    ([], "the prompt is []; it must be a text"),
    ({"role": "user", "content": "x"}, "the prompt is {'role': 'user', 'content': 'x'}; it must be a text"),
    (7, "the prompt is 7; it must be a text"),
    ("  ", "the prompt is '  '; it must be a text"),
    (json.dumps(chat(("user", "x"))), "the prompt is a chat that was written as one text"),
    (str(chat(("user", "x"))), "the prompt is a chat that was written as one text"),
]


@pytest.mark.parametrize(("value", "says"), BAD, ids=lambda x: str(x)[:40])
def test_what_is_no_chat_is_refused_with_its_row(value: Any, says: str) -> None:
    with pytest.raises(DataError) as caught:
        rendered(value)
    assert str(caught.value).startswith(f"d.jsonl:7: {says}"), caught.value


def test_templates_that_do_not_fit() -> None:
    one = chat(("user", "x"))
    for value, template, settings, says in (
        (one, "abel", {}, r"d\.jsonl:7: the prompt is a chat, which data\.template: abel does not fit"),
        (
            "x",
            "plain",
            {"system": "S"},
            r"data\.system is for the tokenizer's chat template, but data\.template is plain",
        ),
        ("x", "plain", {"chat_template_kwargs": {"a": 1}}, r"data\.chat_template_kwargs is for the tokenizer's chat"),
        (
            "x",
            "chat",
            {"chat_template_kwargs": {"enable_thinkin": 1}},
            r"enable_thinkin: .*Did you mean 'enable_thinking'",
        ),
        ("x", "chat", {"chat_template_kwargs": {"add_generation_prompt": False}}, r"rlkit sets this itself"),
    ):
        with pytest.raises(DataError, match=says):
            rendered(value, template, **settings)
    base = make()
    for template, value in (("chat", "x"), ("chat:boxed", "x"), ("plain", one)):
        with pytest.raises(DataError, match=r"no chat template, .*put one into its folder .*qwen-boxed, r1, abel"):
            Renderer.of(Data(train="x.jsonl", template=template), base)(value, "d.jsonl:7")
    strict = make(
        chat="{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    )
    with pytest.raises(
        DataError, match=r"refuses this chat of system, user: System role not supported Leave data\.system"
    ):
        Renderer.of(Data(train="x.jsonl", system="S"), strict)(one, "d.jsonl:7")


def load(folder: Path, name: str, **settings: Any) -> tuple[list[Prompt], list[str]]:
    said: list[str] = []
    return load_prompts(beside(folder, train=name, **settings), "train", make(chat=CHAT), said.append), said


def test_files_of_chats(tmp_path: Path) -> None:
    rows = [
        {"prompt": chat(("user", "1 + 1")), "reward_model": {"ground_truth": "2"}, "extra_info": {"index": 0}},
        {"prompt": chat(("user", "1 +  1")), "reward_model": {"ground_truth": "2"}, "extra_info": {"index": 1}},
        {
            "prompt": chat(("system", "S"), ("user", "1 + 1")),
            "reward_model": {"ground_truth": "2"},
            "extra_info": {"index": 2},
        },
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "verl.parquet")
    answer = {"answer": "reward_model.ground_truth"}
    prompts, said = load(tmp_path, "verl.parquet", columns=answer)
    assert [p.columns["question"] for p in prompts] == ["1 + 1", "1 + 1"] and "1 duplicate prompts" in said[0]
    assert [p.answer for p in prompts] == ["2", "2"] and prompts[1].columns["messages"] == rows[2]["prompt"]
    texts, _ = load(tmp_path, "verl.parquet", columns={**answer, "prompt": "prompt.-1.content"}, template="abel")
    assert [p.text for p in texts] == ["Question:\n1 + 1\nAnswer:\nLet's think step by step.\n"]
    with pytest.raises(
        DataError, match=r"verl\.parquet\[0\]: prompt: there is no column '1' for the prompt; columns are -1, 0"
    ):
        load(tmp_path, "verl.parquet", columns={**answer, "prompt": "prompt.1.content"})
    sft = [{"messages": chat(("user", "1"), ("assistant", "2"))}, {"messages": chat(("user", "2"), ("assistant", "4"))}]
    (tmp_path / "sft.jsonl").write_text("\n".join(map(json.dumps, sft)))
    prompts, said = load(tmp_path, "sft.jsonl", columns={"prompt": "messages", "answer": "messages.-1.content"})
    assert [(p.columns["question"], p.answer) for p in prompts] == [("1", "2"), ("2", "4")]
    assert "2 chats of the train split end with an answer of the assistant" in said[0]
    with pytest.raises(DataError, match=r"there is no column 'prompt' for the prompt; .*Did you mean 'messages'"):
        load(tmp_path, "sft.jsonl")


def test_sample_asks_as_training_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    make_scripted(run / "final")
    (run / "environment.jsonl").touch()
    data = {"template": "chat", "system": "S", "chat_template_kwargs": {"enable_thinking": False}}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": data, "base": str(tmp_path)}))
    asked = "\n<|system|>S<|im_end|>\n<|user|>2<|im_end|>\n<|assistant|><think></think>\n"
    for model, options, prompt, note in (
        (run, [], asked, f"template: chat, with which {run} was trained"),
        (run / "final", [], asked, f"template: chat, with which {run} was trained"),
        (run, ["--template", "plain"], "\n2\n  ", ""),
        (run, ["--template", "chat"], "\n<|user|>2<|im_end|>\n<|assistant|>\n", ""),
    ):
        assert main(["sample", str(model), "--prompt", "2", "-n", "1", "--max-tokens", "3", *options]) == 0
        out, err = capsys.readouterr()
        out = f"\n{out}"
        assert prompt in out and note in err
    assert "'xy'  (3 tokens, stop" in main_output(capsys, run / "final", "plain")
    (run / "config.yaml").write_text("data: [")
    assert (
        main(["sample", str(run), "--prompt", "2"]) == 2 and "not the configuration of a run" in capsys.readouterr().err
    )
    (run / "environment.jsonl").unlink()
    assert main(["sample", str(run), "--prompt", "2", "-n", "1", "--max-tokens", "3"]) == 0
    assert "--template chat applies" in capsys.readouterr().err


def main_output(capsys: pytest.CaptureFixture[str], model: Path, template: str) -> str:
    assert (
        main(
            [
                "sample",
                str(model),
                "--prompt",
                "2",
                "-n",
                "1",
                "--temperature",
                "0",
                "--max-tokens",
                "9",
                "--template",
                template,
            ]
        )
        == 0
    )
    return capsys.readouterr().out
