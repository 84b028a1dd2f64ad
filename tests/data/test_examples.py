"""Rows as people store them become pairs, labelled responses and demonstrations; what cannot be learned from is one sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rlkit.data import Data
from rlkit.data.examples import ExampleRows, read_examples
from rlkit.data.offline import Demonstrations, Labelled, Offline, Pairs
from rlkit.errors import ConfigError, DataError
from tests.tokenizers import CHAT, ids, make

PLAIN, CHATS = make(), make(chat=CHAT)
EOS, CLOSE = 1, 4  # </s>, <|im_end|>


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def model(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(
    spec: Offline, tokenizer: Any = None, context: int | None = None, **data: Any
) -> list[list[tuple[str, str, str, float]]]:
    """(kind, prompt, response with what ends it, reward) of every example."""
    tokenizer = tokenizer or (PLAIN if data.get("template", "plain") == "plain" else CHATS)
    section = Data(**{spec.key: spec}, **data)
    found = read_examples(section, spec, "train", tokenizer, CLOSE if tokenizer is CHATS else EOS, context)
    return [[(e.source, e.prompt.text, tokenizer.decode(e.tokens.tolist()), e.reward) for e in row] for row in found]


TEXTS = [[("chosen", "2+2=", "4</s>", 1.0), ("rejected", "2+2=", "5</s>", 0.0)]]
ASKED = "<|user|>2+2<|im_end|>\n<|assistant|>"
CHATTED = [[("chosen", ASKED, "4<|im_end|>", 1.0), ("rejected", ASKED, "5<|im_end|>", 0.0)]]
HUMAN = "\n\nHuman: 2+2\n\nAssistant:"
TALK = [user("hi"), model("yes?"), user("2+2")]
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any], list[Any]]] = {
    "TRL, texts": ({"prompt": "2+2=", "chosen": "4", "rejected": "5"}, {}, TEXTS),
    "TRL, messages": ({"prompt": [user("2+2")], "chosen": [model("4")], "rejected": [model("5")]}, {}, CHATTED),
    "TRL, the prompt in both chats": ({"chosen": [user("2+2"), model("4")], "rejected": [user("2+2"), model("5")]}, {}, CHATTED),
    "UltraFeedback: the prompt also by itself, scores": (
        {"prompt": "2+2", "chosen": [user("2+2"), model("4")], "rejected": [user("2+2"), model("5")], "score_chosen": 9, "score_rejected": 2.5},
        {},
        [[("chosen", ASKED, "4<|im_end|>", 9.0), ("rejected", ASKED, "5<|im_end|>", 2.5)]],
    ),
    "HH-RLHF: one text": (
        {"chosen": f"{HUMAN} Four", "rejected": f"{HUMAN} Five"},
        {},
        [[("chosen", HUMAN, " Four</s>", 1.0), ("rejected", HUMAN, " Five</s>", 0.0)]],
    ),
    "texts that begin alike": (
        {"chosen": "2 and 2 make four", "rejected": "2 and 2 make five"},
        {},
        [[("chosen", "2 and 2 make", " four</s>", 1.0), ("rejected", "2 and 2 make", " five</s>", 0.0)]],
    ),
    "ShareGPT messages": (
        {"prompt": [{"from": "human", "value": "2+2"}], "chosen": {"from": "gpt", "value": "4"}, "rejected": {"role": "assistant", "content": "5"}},
        {},
        CHATTED,
    ),
    "Orca: system and question": (
        {"system": "Be brief.", "question": "2+2", "chosen": "4", "rejected": "5"},
        {"template": "chat"},
        [[(k, f"<|system|>Be brief.<|im_end|>\n{ASKED}", f"{a}<|im_end|>", r) for k, a, r in (("chosen", 4, 1.0), ("rejected", 5, 0.0))]],
    ),
    "a chat of several turns": (
        {"chosen": [*TALK, model("4")], "rejected": [*TALK, model("5")]},
        {},
        [[(k, f"<|user|>hi<|im_end|>\n<|assistant|>yes?<|im_end|>\n{ASKED}", f"{a}<|im_end|>", r) for k, a, r in (("chosen", 4, 1.0), ("rejected", 5, 0.0))]],
    ),
    "a chat template for a text": ({"instruction": "2+2", "response_j": "4", "response_k": "5"}, {"template": "chat"}, CHATTED),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_pairs_as_people_store_them(name: str) -> None:
    row, data, want = LAYOUTS[name]
    chat = data or any(isinstance(v, list | dict) for v in row.values())
    assert read(Pairs(path=[row]), CHATS if chat else PLAIN, **data) == want


@pytest.mark.parametrize(
    "given", [list, pyarrow.Table.from_pylist, lambda rows: {k: [r[k] for r in rows] for k in rows[0]}]
)
def test_rows_of_python(given: Any) -> None:
    row = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}
    data = Data(pairs=given([row]))
    assert isinstance(data.pairs, Pairs) and read(data.pairs) == TEXTS
    assert data.offline == (data.pairs,) and Data(pairs="x.jsonl").pairs == Pairs(path="x.jsonl")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv"])
def test_files(name: str, tmp_path: Path) -> None:
    rows = [{"prompt": "1+1=", "response": "2", "ok": True}, {"prompt": "1+2=", "response": "4", "ok": False}]
    path = tmp_path / name
    if name.endswith("jsonl"):
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif name.endswith("csv"):
        path.write_text("prompt,response,ok\n1+1=,2,True\n1+2=,4,False\n")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = read(Labelled(path=str(path), columns={"label": "ok"}))
    assert found == [[("labelled", "1+1=", "2</s>", 1.0)], [("labelled", "1+2=", "4</s>", 0.0)]]


def test_labels_and_scores() -> None:
    rows = [{"prompt": "a", "completion": "b", "label": x} for x in (True, "no", 0.25, "0.75", 1)]
    assert [row[0][3] for row in read(Labelled(path=rows))] == [1.0, 0.0, 0.25, 0.75, 1.0]
    assert [row[0][3] for row in read(Labelled(path=rows, threshold=0.5))] == [1.0, 0.0, 0.0, 1.0, 1.0]


DEMONSTRATIONS: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "prompt and completion": ({"prompt": "2+2=", "completion": "4"}, ("2+2=", "4</s>")),
    "Alpaca": ({"instruction": "Add.", "input": "2+2", "output": "4"}, ("Add.\n\n2+2", "4</s>")),
    "Alpaca without input": ({"instruction": "Add 2+2.", "input": "", "output": "4"}, ("Add 2+2.", "4</s>")),
    "GSM8K": ({"question": "2+2?", "answer": "4"}, ("2+2?", "4</s>")),
    "messages": ({"messages": [*TALK, model("4")]}, (f"<|user|>hi<|im_end|>\n<|assistant|>yes?<|im_end|>\n{ASKED}", "4<|im_end|>")),
    "UltraChat: also a prompt": ({"prompt": "2+2", "messages": [user("2+2"), model("4")]}, (ASKED, "4<|im_end|>")),
    "the end is written out": ({"prompt": [user("2+2")], "completion": [model("4<|im_end|>")]}, (ASKED, "4<|im_end|>")),
}  # fmt: skip


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_demonstrations_as_people_store_them(name: str) -> None:
    row, (prompt, response) = DEMONSTRATIONS[name]
    chat = any(isinstance(v, list) for v in row.values())
    assert read(Demonstrations(path=[row]), CHATS if chat else PLAIN) == [[("dataset", prompt, response, 0.0)]]


def test_a_response_is_what_the_engine_would_have_sampled() -> None:
    """Tokens of the prompt and of the response one after the other, and the end once."""
    data = Data(pairs=[{"prompt": "ab", "chosen": "The answer", "rejected": "END\n"}])
    [(better, worse)] = read_examples(data, data.pairs, "train", PLAIN, EOS, None)
    assert better.prompt is worse.prompt and better.prompt.token_ids == tuple(ids(PLAIN, "ab"))
    assert better.tokens.tolist() == [*ids(PLAIN, "The answer"), EOS] and worse.tokens.tolist() == [
        *ids(PLAIN, "END\n"),
        EOS,
    ]


def test_what_a_template_writes_in_front_of_an_answer_is_part_of_it_unless_the_prompt_has_it() -> None:
    thinks = "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}<|im_end|>\n"
    thinks += "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined %}<think></think>{% endif %}{% endif %}"
    row, tokenizer = {"prompt": [user("2+2")], "completion": [model("4")]}, make(chat=thinks)
    data = Data(demonstrations=[row])
    for options, front, answer in (
        ({}, "", "<think></think>4<|im_end|>"),
        ({"enable_thinking": False}, "<think></think>", "4<|im_end|>"),
    ):
        data = Data(demonstrations=[row], chat_template_kwargs=options)
        [(e,)] = read_examples(data, data.demonstrations, "train", tokenizer, CLOSE, None)
        assert (e.prompt.text, tokenizer.decode(e.tokens.tolist())) == (ASKED + front, answer)


GOOD = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}
HALVES = {"chosen": [user("2+2"), model("4")], "rejected": [user("2+2"), model("5")]}
WRONG: dict[str, tuple[Offline, str]] = {
    "equal halves": (Pairs(path=[GOOD, {**GOOD, "rejected": "4"}]), "data.pairs.path[1]: the halves are equal. Mend or remove the row, or set data.pairs.unusable: drop (1 of 2 rows: the halves are equal (1 rows))."),
    "an empty half": (Pairs(path=[{**GOOD, "chosen": " "}]), "data.pairs.path[0]: the chosen half is empty."),
    "an empty message": (Pairs(path=[{**HALVES, "rejected": [user("2+2"), model("")]}]), "data.pairs.path[0]: the rejected half is empty."),
    "chats of different prompts": (Pairs(path=[{**HALVES, "rejected": [user("3+3"), model("6")]}]), "data.pairs.path[0]: the halves answer different prompts: their chats differ in message 0"),
    "another prompt beside the chats": (Pairs(path=[{"prompt": "3+3", **HALVES}]), "data.pairs.path[0]: the prompt is '3+3', but the chats of both halves go on from another one"),
    "dialogues of different prompts": (Pairs(path=[{"chosen": f"{HUMAN} 4", "rejected": "\n\nHuman: 3+3\n\nAssistant: 6"}]), "the halves answer different prompts: their dialogues differ before the last turn"),
    "texts of different prompts": (Pairs(path=[{"chosen": "four", "rejected": "five"}]), "there is no column for the prompt, and the halves do not begin with the same one ('four' and 'five')"),
    "a half that is too long": (Pairs(path=[GOOD, {**GOOD, "rejected": "5" * 30}]), "data.pairs.path[1]: a half has more tokens with its prompt than max_tokens or the model's context, 20."),
    "a text beside a chat": (Pairs(path=[{"chosen": "4", "rejected": [model("5")]}]), "there is no column for the prompt, and the halves are not two chats or two texts"),
    "no rejected half": (Pairs(path=[{"prompt": "a", "chosen": "b", "worse": "c"}]), "there is no column for the rejected; columns are prompt, chosen, worse. Name it: data.pairs.columns: {rejected: ...}."),
    "a column that is not there": (Pairs(path=[GOOD], columns={"chosen": "chosne"}), "there is no column 'chosne' for the chosen; columns are prompt, chosen, rejected. Did you mean 'chosen'?"),
    "a half of two answers": (Pairs(path=[{"prompt": [user("a")], "chosen": [model("b")], "rejected": [user("c")]}]), "the rejected half holds messages of user; beside a prompt it is one message of the assistant."),
    "a chat that ends with a question": (Pairs(path=[{"chosen": [user("a"), user("b")], "rejected": [user("a"), model("c")]}]), "the chosen half ends with a message of 'user'"),
    "labels of one class": (Labelled(path=[{"prompt": "a", "response": x, "label": True} for x in "bc"]), "data.labelled.path: all 2 labels are 1; learning from labels needs good and bad responses."),
    "scores on one side of the threshold": (Labelled(path=[{"prompt": "a", "response": x, "score": float(x)} for x in "23"], threshold=9.0), "all 2 labels are 0"),
    "no label": (Labelled(path=[{"prompt": "a", "response": "b"}]), "there is no column for the label"),
    "a label that is none": (Labelled(path=[{"prompt": "a", "response": "b", "label": "maybe"}]), "data.labelled.path[0]: the label is 'maybe'; it must be true, false, or a number."),
    "a chat without an answer": (Demonstrations(path=[{"messages": [user("a")]}]), "the chat does not end with an answer of the assistant"),
    "a text alone": (Demonstrations(path=[{"text": "a b"}]), "there is no column for the prompt; columns are text."),
    "an empty response": (Demonstrations(path=[{"prompt": "a", "response": ""}]), "data.demonstrations.path[0]: the response is empty."),
    "a prompt that ends with an answer": (Demonstrations(path=[{"prompt": [user("a"), model("b")], "response": "c"}]), "the prompt ends with an answer of the assistant"),
    "a file that is not there": (Pairs(path="no.jsonl"), "data.pairs.path: there is no file 'no.jsonl'."),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_learned_from_is_said_with_its_place(name: str) -> None:
    spec, says = WRONG[name]
    with pytest.raises(DataError, match=re.escape(says)):
        read(spec, CHATS, context=20 if "long" in name else None)


def test_unusable_rows_are_dropped_and_counted_where_that_is_asked_for() -> None:
    rows, said = [GOOD, {**GOOD, "rejected": "4"}, {**GOOD, "chosen": ""}, {**GOOD, "chosen": "4" * 99}], list[str]()
    data = Data(pairs=Pairs(path=rows, unusable="drop", max_tokens=50))
    assert len(read_examples(data, data.pairs, "train", PLAIN, EOS, 1000, said.append)) == 1
    assert said == [
        "data.pairs.path: 3 of 4 rows dropped: the halves are equal (1 rows); the chosen half is empty (1 rows); a half has more tokens with "
        "its prompt than max_tokens or the model's context, 50 (1 rows)."
    ]
    with pytest.raises(DataError, match=r"data.pairs.path: no row is left of rows given in Python"):
        read(Pairs(path=rows[1:2], unusable="drop"))


def test_every_epoch_has_an_order_of_its_own_and_leaves_nothing_out() -> None:
    data = Data(pairs=Pairs(path=[{**GOOD, "prompt": f"{k}=", "chosen": str(k)} for k in range(10, 15)], per_step=3))
    rows = ExampleRows(data.pairs, read_examples(data, data.pairs, "train", PLAIN, EOS, None), seed=7)
    drawn = [rows.draw(step, first_group=4) for step in range(10)]
    assert all(
        [r.group for r in step] == [4, 4, 5, 5, 6, 6] and [r.source for r in step] == ["chosen", "rejected"] * 3
        for step in drawn
    )
    texts = [r.text for step in drawn for r in step if r.source == "chosen"]
    epochs = [texts[i : i + 5] for i in range(0, 30, 5)]
    assert all(sorted(e) == ["10", "11", "12", "13", "14"] for e in epochs) and len({tuple(e) for e in epochs}) > 3
    assert rows.epoch(5) == 3.0 and [r.text for r in rows.draw(3, 4)] == [r.text for r in drawn[3]]
    other = ExampleRows(data.pairs, rows.rows, seed=8)
    assert [r.text for step in range(5) for r in other.draw(step, 0) if r.source == "chosen"] != texts[:15]


def test_a_section_says_what_it_lacks() -> None:
    for make_it, says in (
        (lambda: Data(), "data needs exactly one of `task` (a built-in task) and `train`"),
        (lambda: Data(pairs={"path": "x.jsonl", "per_stop": 3}), "unknown key. Did you mean 'per_step'?"),
        (lambda: Data(pairs=[]), "data.pairs.path: there are no rows in it."),
        (lambda: Labelled(path="x", threshold=float("nan")), "Labelled.threshold is nan; it must be finite."),
    ):
        with pytest.raises((ConfigError, DataError), match=re.escape(says)):
            make_it()
