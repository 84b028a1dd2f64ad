"""Rows as people store them become pairs, labelled responses and demonstrations; what cannot be learned from is one sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

import rlkit as rk
from rlkit.data import Data
from rlkit.data.examples import ExampleRows, overlap_of_rows, read_examples
from rlkit.data.offline import Demonstrations, Labelled, Offline, Pairs
from rlkit.data.render import Encoder
from rlkit.errors import ConfigError, DataError
from rlkit.types import Batch
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
    "a system message above a chat": (
        {"system": "Be brief.", **{k: [user("2+2"), model(a)] for k, a in (("chosen", "4"), ("rejected", "5"))}},
        {},
        [[(k, f"<|system|>Be brief.<|im_end|>\n{ASKED}", f"{a}<|im_end|>", r) for k, a, r in (("chosen", 4, 1.0), ("rejected", 5, 0.0))]],
    ),
    "LLaMA-Factory: the prompt in conversations": (
        {"conversations": [{"from": "human", "value": "2+2"}], "chosen": {"from": "gpt", "value": "4"}, "rejected": {"from": "gpt", "value": "5"}},
        {},
        CHATTED,
    ),
    "texts that repeat their prompt": ({"prompt": "2+2=", "chosen": "2+2=4", "rejected": "2+2=5"}, {}, TEXTS),
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


HI = "<|user|>hi<|im_end|>\n<|assistant|>"
CALLS = make(
    chat=CHAT.replace("{% for m", "{% if tools %}<|tools|>{{ tools }}\n{% endif %}{% for m", 1).replace(
        "{{ m.content }}",
        "{{ m.content }}{% for c in m.tool_calls %}({{ c.function.name }} {{ c.function.arguments }}){% endfor %}",
    )
)
DEMONSTRATIONS: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "prompt and completion": ({"prompt": "2+2=", "completion": "4"}, ("2+2=", "4</s>")),
    "Alpaca": ({"instruction": "Add.", "input": "2+2", "output": "4"}, ("Add.\n\n2+2", "4</s>")),
    "Alpaca without input": ({"instruction": "Add 2+2.", "input": "", "output": "4"}, ("Add 2+2.", "4</s>")),
    "GSM8K": ({"question": "2+2?", "answer": "4"}, ("2+2?", "4</s>")),
    "messages": ({"messages": [*TALK, model("4")]}, (HI, f"yes?<|im_end|>[\n{ASKED}]4<|im_end|>")),
    "ShareGPT, which ends with a question": (
        {"conversations": [{"from": who, "value": text} for who, text in (("system", "S"), ("human", "hi"), ("gpt", "yes?"), ("human", "why"))]},
        (f"<|system|>S<|im_end|>\n{HI}", "yes?<|im_end|>"),
    ),
    "a chat that the model began": ({"messages": [model("hello"), user("2+2"), model("4")]}, (f"<|assistant|>hello<|im_end|>\n{ASKED}", "4<|im_end|>")),
    "TRL, a completion of several turns": ({"prompt": [*TALK], "completion": [model("4"), user("hi"), model("!")]}, (f"{HI}yes?<|im_end|>\n{ASKED}", f"4<|im_end|>[\n{HI}]!<|im_end|>")),
    "OpenAI: answers with a weight": ({"messages": [user("hi"), {**model("yes?"), "weight": 0}, user("2+2"), {**model("4"), "weight": 1}]}, (f"{HI}yes?<|im_end|>\n{ASKED}", "4<|im_end|>")),
    "a tool that answers nothing": (
        {"messages": [user("hi"), {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]}, {"role": "tool", "content": ""}, model("4")]},
        (HI, "(f {'x': 1})<|im_end|>[\n<|tool|><|im_end|>\n<|assistant|>]4<|im_end|>"),
    ),
    "tools that the template tells": ({"messages": [user("hi"), model("!")], "tools": [{"name": "f", "parameters": None}]}, (f"<|tools|>[{{'name': 'f'}}]\n{HI}", "!<|im_end|>")),
    "Dolly": ({"instruction": "Add.", "context": "2+2", "response": "4"}, ("Add.\n\n2+2", "4</s>")),
    "texts that repeat their prompt": ({"prompt": "2+2=", "completion": "2+2= 4"}, ("2+2=", " 4</s>")),
    "the end is written out, and a line break": ({"prompt": "2+2=", "completion": "4</s>\n"}, ("2+2=", "4</s>")),
    "UltraChat: also a prompt": ({"prompt": "2+2", "messages": [user("2+2"), model("4")]}, (ASKED, "4<|im_end|>")),
    "the end is written out": ({"prompt": [user("2+2")], "completion": [model("4<|im_end|>")]}, (ASKED, "4<|im_end|>")),
}  # fmt: skip


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_demonstrations_as_people_store_them(name: str) -> None:
    row, (prompt, response) = DEMONSTRATIONS[name]
    chat = any(isinstance(v, list) for v in row.values())
    tokenizer, data = CALLS if chat else PLAIN, Data(demonstrations=[row])
    [(e,)] = read_examples(data, data.demonstrations, "train", tokenizer, CLOSE if chat else EOS, None)
    parts = [(trained, tokenizer.decode(tokens)) for trained, tokens in e.pieces()]
    assert (e.prompt.text, "".join(text if trained else f"[{text}]" for trained, text in parts)) == (prompt, response)
    b = Batch.from_rollouts([e.rollout(0)])
    assert b.ids is not None and b.ids[b.action].tolist() == [
        x for trained, part in e.pieces() if trained for x in part
    ]


def test_of_a_text_alone_every_token_is_trained_that_has_one_before_it() -> None:
    """As language models are trained, and as TRL does: nothing is masked, and the text ends with the token that ends a response."""
    said: list[str] = []
    rows = [{"text": "a b c"}, {"text": "b<|im_end|>a<|im_end|>"}, {"text": "c"}]
    for tokenizer, end in ((PLAIN, EOS), (CHATS, CLOSE)):
        data = Data(demonstrations=rows)
        found = read_examples(data, data.demonstrations, "train", tokenizer, end, None, said.append)
        for row, (e,) in zip(rows, found, strict=True):
            whole = Encoder(tokenizer)(row["text"])
            assert (*e.prompt.token_ids, *e.tokens) == (whole if whole[-1] == end else (*whole, end))
            assert len(e.prompt.token_ids) == 1 and not e.trained and e.text == row["text"]
    assert "data.demonstrations.path: of 3 texts every token is trained" in said[0]
    data = Data(demonstrations={"path": [{"prompt": "a", "body": "a b"}], "columns": {"text": "body"}})
    assert data.demonstrations is not None
    [(e,)] = read_examples(data, data.demonstrations, "train", PLAIN, EOS, None)
    assert PLAIN.decode(e.tokens.tolist()) == PLAIN.decode([*Encoder(PLAIN)("a b")[1:], EOS])


def test_a_chat_whose_past_the_template_writes_otherwise_becomes_several_rows() -> None:
    """As Qwen's templates do, which leave out the thoughts of earlier answers."""
    forgets = "{% for m in messages %}<|{{ m.role }}|>{{ m.content if loop.last else m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    forgets += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    chat = [user("a"), model("b"), user("c"), model("<think>x</think>d"), user("e"), model("f")]
    data = Data(demonstrations=[{"messages": chat}])
    first, second = read_examples(data, data.demonstrations, "train", make(chat=forgets), CLOSE, None)
    past = "<|user|>a<|im_end|>\n<|assistant|>b<|im_end|>\n<|user|>c<|im_end|>\n<|assistant|>"
    assert first[0].prompt.text == "<|user|>a<|im_end|>\n<|assistant|>"
    assert [CHATS.decode(tokens) for trained, tokens in first[0].pieces() if trained] == [
        "b<|im_end|>",
        "<think>x</think>d<|im_end|>",
    ]
    assert second[0].prompt.text == f"{past}d<|im_end|>\n<|user|>e<|im_end|>\n<|assistant|>"
    assert [CHATS.decode(tokens) for _, tokens in second[0].pieces()] == ["f<|im_end|>"]


def test_a_thought_that_the_template_has_begun_is_not_begun_twice() -> None:
    """As DeepSeek's templates do: they ask with ``<think>``, and leave thoughts out of what they write of an answer."""
    asks = "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    asks += "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
    row = {"prompt": [user("2+2")], "completion": [model("<think>\nx</think>4")]}
    data = Data(demonstrations=[row, {**row, "completion": [model("x</think>4")]}])
    for (e,) in read_examples(data, data.demonstrations, "train", make(chat=asks), CLOSE, None):
        assert e.prompt.text == f"{ASKED}<think>\n" and CHATS.decode(e.tokens.tolist()) == "x</think>4<|im_end|>"
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    with pytest.raises(DataError, match="an answer calls a tool, but the tokenizer's chat template writes what stands"):
        read(Demonstrations(path=[{"messages": [user("a"), call]}]), make(chat=asks))


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
    "another prompt beside the chats": (Pairs(path=[{"prompt": "3+3", **HALVES}]), "data.pairs.path[0]: the prompt is another one than that of the chats of both halves ('3+3'; theirs: [{"),
    "a half that is null": (Pairs(path=[{**GOOD, "chosen": None}]), "data.pairs.path[0]: the chosen half is empty."),
    "an empty prompt": (Pairs(path=[{**GOOD, "prompt": " "}]), "data.pairs.path[0]: the prompt is empty."),
    "a prompt that is null": (Pairs(path=[{**GOOD, "prompt": None}]), "data.pairs.path[0]: the prompt is empty."),
    "a prompt of no messages": (Pairs(path=[{"prompt": [], "chosen": [model("a")], "rejected": [model("b")]}]), "data.pairs.path[0]: the prompt is empty."),
    "an empty message before others": (Demonstrations(path=[{"messages": [user(""), model("a")]}]), "data.demonstrations.path[0]: a message has no content (message 0, user)."),
    "a dialogue that the human ends": (Pairs(path=[{"chosen": f"{HUMAN} 4\n\nHuman: why", "rejected": f"{HUMAN} 5"}]), "a half goes on after the assistant's last turn with one of the human."),
    "what ends a response, in its middle": (Pairs(path=[{**GOOD, "chosen": "4<|im_end|> and 5"}]), "data.pairs.path[0]: '<|im_end|>', which ends a response, stands inside of the half."),
    "a chat as one text": (Pairs(path=[{**GOOD, "chosen": str([model("4")])}]), "data.pairs.path[0]: the chosen half is a chat that was written as one text"),
    "a chat as one text, demonstrated": (Demonstrations(path=[{"messages": json.dumps([user("a"), model("b")])}]), "data.demonstrations.path[0]: the prompt is a chat that was written as one text"),
    "a response that does not repeat its prompt as others do": (Demonstrations(path=[{"prompt": "ab", "response": "abc"}] * 100 + [{"prompt": "ab", "response": "c"}]), "path[100]: the response does not begin with its prompt, as those of the first rows do."),
    "calls that the template does not write": (Demonstrations(path=[{"messages": [user("a"), {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]}]), "the chat template writes nothing of an answer"),
    "a label that is null": (Labelled(path=[{"prompt": "a", "response": "b", "label": None}]), "data.labelled.path[0]: the label is empty."),
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
    "a chat without an answer": (Demonstrations(path=[{"messages": [user("a")]}]), "the chat holds no answer of the assistant to something before it"),
    "a labelled chat that ends with a question": (Labelled(path=[{"messages": [user("a"), model("b"), user("c")], "label": 1}]), "the chat does not end with an answer of the assistant"),
    "a text alone where a response is judged": (Labelled(path=[{"text": "a b", "label": 1}]), "there is no column for the prompt; columns are text, label."),
    "a text beside a prompt": (Demonstrations(path=[{"prompt": "a", "text": "a b"}]), "there is no column for the response; columns are prompt, text."),
    "an empty text": (Demonstrations(path=[{"text": " "}]), "data.demonstrations.path[0]: the text is empty."),
    "a text that is none": (Demonstrations(path=[{"text": [user("a"), model("b")]}]), "the text is [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]; a chat is a column `messages`."),
    "a text that is a written chat": (Demonstrations(path=[{"text": str([user("a"), model("b")])}]), "data.demonstrations.path[0]: the text is a chat that was written as one text"),
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


def test_what_is_strange_about_rows_and_may_be_meant_is_said() -> None:
    def notes(spec: Offline, tokenizer: Any = PLAIN, **data: Any) -> list[str]:
        said, section = list[str](), Data(**{spec.key: spec}, **data)
        end = CLOSE if tokenizer is CHATS else EOS
        read_examples(section, spec, "train", tokenizer, end, None, said.append)
        return said

    turned, scored = {**GOOD, "chosen": "5", "rejected": "4"}, {"score_chosen": 2.0, "score_rejected": 3.0}
    assert notes(Pairs(path=[GOOD, GOOD, turned, {**GOOD, "prompt": "3", **scored}])) == [
        "data.pairs.path: 1 of 4 rows stand there more than once.",
        "data.pairs.path: 1 of 4 rows are also there the other way round, the rejected half as the chosen one.",
        "data.pairs.path: 1 of 4 rows have a chosen half whose score is not above that of the rejected one.",
    ]
    labels = [{"prompt": "a", "response": "b", "label": x} for x in (1, 0)]
    assert notes(Labelled(path=labels)) == ["data.labelled.path: 1 of 2 rows stand there before with another label."]
    system, tools = {"system": "Be brief."}, {"tools": [{"name": "f"}]}
    assert notes(Pairs(path=[{**GOOD, **system}])) == [
        "data.pairs.path: the column 'system' of 1 rows is left out: data.template: plain has no place for it."
    ]
    chats = {"chosen": [user("q"), model("a")], "rejected": [user("q"), model("b")]}
    assert notes(Pairs(path=[{**chats, **tools}, {**chats, **system}]), CHATS) == [  # a chat has a place for the system
        "data.pairs.path: the column 'tools' of 1 rows is left out: the tokenizer's chat template does not read it."
    ]
    assert notes(Demonstrations(path=[{"prompt": "ab", "response": "ab c"}])) == [
        "data.demonstrations.path: the responses begin with their prompt, which is taken off them."
    ]


def test_rows_of_the_held_out_set_that_are_trained_on_are_said() -> None:
    data = Data(pairs=Pairs(path=[GOOD, {**GOOD, "prompt": "3"}], test=[GOOD, {**GOOD, "prompt": "4"}]))
    sets = [
        ExampleRows(data.pairs, read_examples(data, data.pairs, split, PLAIN, EOS, None), 0)
        for split in ("train", "test")
    ]
    assert str(overlap_of_rows(*sets)).startswith(
        "data.pairs: 1 of 2 rows of test are also rows of path (the first: data.pairs"
    )
    assert overlap_of_rows(sets[0], ExampleRows(data.pairs, sets[1].rows[1:], 0)) is None


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


def test_rows_and_lists_of_files_stand_for_a_section(tmp_path: Path) -> None:
    rest = {"name": "x", "model": {"path": "m"}, "objective": [{"type": "DPO"}]}
    for given in ([GOOD], pyarrow.Table.from_pylist([GOOD])):
        run = rk.load({**rest, "data": {"pairs": given}})
        assert run.data.pairs == Pairs(path=[GOOD])
    (tmp_path / "run.yaml").write_text(json.dumps({**rest, "data": {"pairs": ["a.jsonl", "b.jsonl"]}}))
    assert rk.load(str(tmp_path / "run.yaml")).data.pairs == Pairs(path=["a.jsonl", "b.jsonl"])


def test_a_section_is_one_data_set() -> None:
    datasets = pytest.importorskip("datasets")
    sets = datasets.DatasetDict({name: datasets.Dataset.from_list([GOOD]) for name in ("train", "test")})
    rest = {"name": "x", "model": {"path": "m"}, "objective": [{"type": "DPO"}]}
    says = "data.pairs: found several data sets (train, test); give each by name, as in {path: sets['train']}."
    with pytest.raises(ConfigError, match=re.escape(says)):
        rk.load({**rest, "data": {"pairs": sets}})
    split = {"path": sets["train"], "test": sets["test"]}
    assert rk.load({**rest, "data": {"pairs": split}}).data.pairs == Pairs(path=[GOOD], test=[GOOD])


def test_a_section_says_what_it_lacks() -> None:
    for make_it, says in (
        (lambda: Data(), "data needs exactly one of `task` (a built-in task) and `train`"),
        (lambda: Data(pairs={"path": "x.jsonl", "per_stop": 3}), "unknown key. Did you mean 'per_step'?"),
        (lambda: Data(pairs=[]), "data.pairs.path: there are no rows in it."),
        (
            lambda: Pairs(path="x", columns={"choosen": "a"}),
            "data.pairs.columns: nothing is called 'choosen' here. Did you mean 'chosen'?",
        ),
        (lambda: Labelled(path="x", threshold=float("nan")), "Labelled.threshold is nan; it must be finite."),
    ):
        with pytest.raises((ConfigError, DataError), match=re.escape(says)):
            make_it()
