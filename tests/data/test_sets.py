"""Named data sets, on small tables with the columns of the real ones: nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

import rlkit as rk
from rlkit.data import Data
from rlkit.data.curriculum import Shuffle
from rlkit.data.prompts import load_prompts
from rlkit.data.render import Renderer, load_template
from rlkit.data.sets import SETS, after_marks, boxed, integer, normalised, plain, read_set, several
from rlkit.data.statistics import PromptStatistics
from rlkit.model.tiny import make_tokenizer
from tests.data.tables import DAPO, TABLES, beside

Asked = list[tuple[str, str | None, str, str | None]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Replaces the one call that downloads; remembers what was asked for."""
    asked: Asked = []

    def load_dataset(name: str, config: str | None = None, *, split: str, data_files: str | None = None) -> Any:
        asked.append((name, config, split, data_files))
        rows = TABLES.get((name, config, data_files or split))
        if rows is None:
            raise FileNotFoundError(f"Couldn't find {name} {config} {data_files or split}\nand a long trace")
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


EXPECTED = {  # source -> id, beginning of the question, answer, other columns of its first training or test row
    "gsm8k": ("gsm8k-train-0", "Natalia sold clips", "72", {}),
    "math:levels=2:subjects=algebra": (
        "math-train-algebra-0",
        "What is the value of $x$",
        "\\frac{1}{2}",
        {"level": 2, "subject": "algebra"},
    ),
    "math500": (
        "math500-0",
        "Convert the point $(0,3)$",
        "\\left( 3, \\frac{\\pi}{2} \\right)",
        {"level": 2, "subject": "precalculus"},
    ),
    "aime24": ("aime24-0", "Every morning Aya", "204", {}),
    "aime25": ("aime25-0", "Find the angle", "336", {}),
    "amc23": ("amc23-0", "Cities $A$ and $B$", "27", {}),
    "hmmt25": ("hmmt25-0", "Compute the sum", "103", {}),
    "brumo25": ("brumo25-0", "One hundred", "\\frac{1}{10}", {}),
    "minerva": ("minerva-0", "Each of the two", "31e36", {}),
    "olympiadbench": ("olympiadbench-0", "Find all integers $x$", "3, -2", {"subject": "number_theory"}),
    "dapo-math-17k": ("dapo-math-17k-0", "In triangle $ABC$", "34", {}),
    "dapo-math-17k-en": ("dapo-math-17k-en-0", "In triangle $ABC$", "34", {}),
    "simplerl:tier=hard": ("simplerl-level3to5-0", "What is the smallest", "\\frac{\\pi}{2}", {}),
    "deepscaler": ("deepscaler-0", "The operation $\\otimes$", "-\\frac{2}{3}", {}),
    "polaris": ("polaris-0", "How many positive", "12", {"difficulty": "3/8"}),
}


@pytest.mark.parametrize("source", EXPECTED)
def test_every_set(source: str, hub: Asked) -> None:
    entry = SETS[source.split(":")[0]]
    where, row = read_set(source, "train" if entry.train else "test")[0]
    identity, question, answer, others = EXPECTED[source]
    assert (row["id"], row["answer"]) == (identity, answer) and row["prompt"].startswith(question)
    assert {k: v for k, v in row.items() if k not in ("id", "prompt", "answer")} == {
        "dataset": source.split(":")[0],
        **others,
    }
    assert where.startswith(entry.hub) and where.endswith("[0]") and entry.note and any(entry.size)


def test_all_sets_are_covered() -> None:
    assert {s.split(":")[0] for s in EXPECTED} == set(SETS)


def test_answers_out_of_solutions() -> None:
    assert [after_marks(x) for x in ("5*3=15\n#### 15", "so\n#### 1,080 ", "#### -2", "no marks", None)] == [
        "15",
        "1080",
        "-2",
        "",
        "",
    ]
    assert after_marks("#### 1,234,567") == "1234567" and after_marks("#### 3,4") == "3,4"
    assert boxed(r"first \boxed{1}, then \boxed{\frac{1}{\sqrt{2}}}.") == r"\frac{1}{\sqrt{2}}"
    assert [
        boxed(x)
        for x in (r"$\boxed 5$.", r"\fbox{a{b}c}", r"\boxed{\left\{1,2\right\}}", r"cut \boxed{1", "none", None)
    ] == ["5", "a{b}c", r"\left\{1,2\right\}", "", "", ""]
    assert [
        boxed(x)
        for x in (r"$\boxed -3/4$", r"(so \boxed 5)", r"\boxed x=2, as", r"see \boxed: ", r"\boxed{1} and \boxed{cut")
    ] == ["-3/4", "5", "x=2", "", "1"]
    assert [plain(x) for x in (27.0, 0.5, 3, "$x^2$", "$1$ or $2$", None)] == [
        "27",
        "0.5",
        "3",
        "x^2",
        "$1$ or $2$",
        "",
    ]
    assert [integer(x) for x in ("033", r"336^\circ", 7, "$12$", "", None)] == ["33", "336", "7", "12", "", ""]
    assert several(["$3$", "$-2$"]) == "3, -2" and several("$2^{8}$") == "2^{8}" and several([""]) == ""


def test_math_levels_and_subjects(hub: Asked) -> None:
    everything = read_set("math", "train")
    assert (
        len(everything) == 7
        and {r["subject"] for _, r in everything} == {"algebra", "geometry", "precalculus"}
        and len(hub) == 7
    )
    assert [r["id"] for _, r in everything] == [r["id"] for _, r in read_set("math", "train")]
    assert [r["subject"] for _, r in everything] != sorted(r["subject"] for _, r in everything)  # a prefix is a mixture
    assert {r["level"] for _, r in everything} == {1, 2, 3, 5, None}
    hub.clear()
    some = read_set("math:levels=1-2+5:subjects=algebra+geometry", "train")
    assert {(r["level"], r["subject"]) for _, r in some} == {(2, "algebra"), (5, "algebra"), (1, "geometry")}
    assert [config for _, config, _, _ in hub] == ["algebra", "geometry"]
    assert {r["level"] for _, r in read_set("math500:levels=2", "test")} == {2}


def test_repeated_and_unanswered_rows_are_said(hub: Asked) -> None:
    said: list[str] = []
    rows = read_set("dapo-math-17k", "train", said.append)
    assert [r["answer"] for _, r in rows] == ["34", "5"] and said == [
        "data: dapo-math-17k repeats questions: 5 further row(s) left out, 2 kept."
    ]
    assert not any("Answer" in r["prompt"] or "step by step" in r["prompt"] for _, r in rows)
    said.clear()
    assert (
        len(read_set("simplerl", "train", said.append)) == 1
        and "simplelr_qwen_level3to5/train.parquet[1]" in said[0]
        and "1 row(s)" in said[0]
    )
    both = read_set("simplerl:tier=easy+hard", "train")
    assert [r["id"] for _, r in both] == ["simplerl-gsm8k_level1-0", "simplerl-level3to5-0"]


MISTAKES: list[tuple[str, str, str]] = [
    ("gsm8", "train", r"data\.train: there is no data set 'gsm8'\. Did you mean 'gsm8k'"),
    ("squad", "train", r"no data set 'squad'\. Named sets are gsm8k, .*owner/name"),
    ("math:level=3", "train", r"'level=3' is no option of math\. Options .*levels=1, subjects=algebra"),
    ("math:levels=6", "train", r"levels has no value '6'\. .*1, 2, 3, 4, 5"),
    ("math:subjects=geometri", "train", r"no value 'geometri'\. Did you mean 'geometry'"),
    ("gsm8k:main", "train", r"'main' is no option of gsm8k\. Options .*: none"),
    ("deepscaler", "test", r"data\.test: deepscaler has a training split only"),
    ("math:levels=4", "train", r"no row of 'math:levels=4' is left"),
    (
        "owner/absent",
        "train",
        r"data\.train: 'owner/absent' could not be loaded from the hub \(Couldn't find owner/absent None train\)",
    ),
    ("notes.txt", "train", r"no data set 'notes\.txt'.*a file ends in \.jsonl"),
]


@pytest.mark.parametrize(("source", "split", "message"), MISTAKES, ids=lambda x: x if ":" in x or "/" in x else None)
def test_mistakes_name_place_and_remedy(source: str, split: str, message: str, hub: Asked) -> None:
    data = Data(train=source if split == "train" else "gsm8k", test=source)
    with pytest.raises(ValueError, match=message):
        load_prompts(data, split, make_tokenizer("abc"))


def test_a_set_that_has_changed_says_so(hub: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLES, ("math-ai/amc23", None, "test"), [{"id": 0, "problem": "1 + 1", "answer": "2"}])
    with pytest.raises(
        ValueError,
        match=r"amc23 \(math-ai/amc23\): there is no column 'question'; columns are id, problem, answer\..*data\.columns",
    ):
        read_set("amc23", "test")


def test_training_on_an_evaluation_set_is_said(hub: Asked) -> None:
    said: list[str] = []
    assert read_set("aime24", "train", said.append) and "evaluation set" in said[0]


def load(data: Data, split: Any = "train") -> tuple[list[Any], list[str]]:
    said: list[str] = []
    return load_prompts(data, split, make_tokenizer("".join(chr(i) for i in range(32, 127)) + "\n"), said.append), said


def test_names_in_yaml_and_on_the_command_line(hub: Asked, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "model: {make: {}}\ndata: {train: gsm8k, test: [math500, aime24], columns: {prompt: q, answer: a}}\n"
        "rewards: [math]\nobjective: [{type: PPOClip}]\n"
    )
    run = rk.load(tmp_path / "run.yaml")
    train, _ = load(run.data)
    test, _ = load(run.data, "test")
    assert [p.answer for p in train] == ["72", "1080"] and [p.columns["dataset"] for p in test] == ["math500"] * 2 + [
        "aime24"
    ]
    assert train[0].columns["question"] == train[0].text and train[0].id == "gsm8k-train-0"
    run = rk.load(tmp_path / "run.yaml", ["data.train=math:levels=1-3:subjects=algebra+geometry"])
    assert {p.columns["level"] for p in load(run.data)[0]} == {1, 2, 3}
    (tmp_path / "own.jsonl").write_text(json.dumps({"q": "How many?", "a": 3}))
    run = rk.load(tmp_path / "run.yaml", ["data.train=[own.jsonl, gsm8k]"])
    mixed, _ = load(run.data)
    assert [(p.columns["dataset"], p.answer) for p in mixed] == [("own", 3), ("gsm8k", "72"), ("gsm8k", "1080")]


def test_the_same_seed_gives_the_same_order(hub: Asked) -> None:
    def order(seed: int) -> list[str]:
        prompts, _ = load(Data(train=("math", "gsm8k")))
        state = Shuffle().build(prompts, seed, PromptStatistics(prompts))
        return [next(state).id for _ in range(12)]

    assert order(3) == order(3) != order(4)


def test_duplicates_by_question_and_contradictions(tmp_path: Path) -> None:
    rows = [
        ("What is  1 + 1?", "2"),
        ("What is 1 + 1?\n", "2"),
        ("What is 1 +\t1?", "3"),
        ("what is 1 + 1?", "2"),
        ("x² = 4", "2"),
        ("x2 = 4", "2"),
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"prompt": q, "answer": a}) for q, a in rows))
    prompts, said = load(beside(tmp_path, train="d.jsonl"))
    assert len(prompts) == 4 and said[0] == "data: 2 duplicate prompts of the train split dropped."
    assert (
        "1 duplicate(s) have another answer" in said[1]
        and "d.jsonl:3 ('3')" in said[1]
        and "d.jsonl:1 ('2')" in said[1]
    )
    assert normalised("e\u0301 \u200bx") == "é x"


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return path.name


def test_empty_answers(tmp_path: Path) -> None:
    name = write(
        tmp_path / "some.jsonl",
        {"prompt": "1", "answer": "1"},
        {"prompt": "2", "answer": " "},
        {"prompt": "3", "answer": 0},
        {"prompt": "4"},
    )
    with pytest.raises(
        ValueError, match=r"some\.jsonl:2: the answer is empty \(2 of 4 prompts of data\.train\)\. Fill it in"
    ):
        load(beside(tmp_path, train=name))
    name = write(tmp_path / "none.jsonl", {"prompt": "1", "solution": "1"}, {"prompt": "2", "solution": ""})
    _, said = load(beside(tmp_path, train=name))
    assert (
        "no prompt of the train split has an answer (other columns: solution)" in said[0] and "data.columns" in said[0]
    )
    with pytest.raises(ValueError, match=r"none\.jsonl:2: the answer is empty \(1 of 2"):
        load(beside(tmp_path, train=name, columns={"answer": "solution"}))
    with pytest.raises(
        ValueError, match=r"none\.jsonl:1: there is no column 'solutoin' for the answer.*Did you mean 'solution'"
    ):
        load(beside(tmp_path, train=name, columns={"answer": "solutoin"}))


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_files_with_a_column_map(suffix: str, tmp_path: Path) -> None:
    rows = [{"question": "1 + 1", "gold": "2"}, {"question": "2 + 2", "gold": "4"}]
    table = datasets.Dataset.from_list(rows)
    path = str(tmp_path / f"d.{suffix}")
    _: Any = {
        "jsonl": lambda: table.to_json(path),
        "json": lambda: Path(path).write_text(json.dumps(rows)),
        "csv": lambda: table.to_csv(path, index=False),
        "parquet": lambda: table.to_parquet(path),
    }[suffix]()
    prompts, _ = load(beside(tmp_path, train=f"d.{suffix}", columns={"prompt": "question", "answer": "gold"}))
    assert [(p.text, p.answer) for p in prompts] == [("1 + 1", "2"), ("2 + 2", "4")]


def test_columns_inside_columns(tmp_path: Path) -> None:
    name = write(tmp_path / "verl.jsonl", {"extra_info": {"question": "1 + 1"}, "reward_model": {"ground_truth": "2"}})
    columns = {"prompt": "extra_info.question", "answer": "reward_model.ground_truth"}
    assert [(p.text, p.answer) for p in load(beside(tmp_path, train=name, columns=columns))[0]] == [("1 + 1", "2")]
    with pytest.raises(
        ValueError,
        match=r"verl\.jsonl:1: reward_model: there is no column 'truth' for the answer; columns are ground_truth",
    ):
        load(beside(tmp_path, train=name, columns={**columns, "answer": "reward_model.truth"}))


def test_templates() -> None:
    tokenizer = make_tokenizer("abc")
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    show: Callable[[str], str] = lambda name: Renderer(tokenizer, name, load_template(name))("Q {1}", "here").text  # noqa: E731
    assert show("plain") == "Q {1}" and show("chat") == "[user]Q {1}[assistant]"
    assert (
        show("chat:boxed")
        == "[user]Q {1}\nPlease reason step by step, and put your final answer within \\boxed{}.[assistant]"
    )
    assert show("abel") == "Question:\nQ {1}\nAnswer:\nLet's think step by step.\n"
    assert show("gsm8k").endswith('Q {1} Let\'s think step by step and output the final answer after "####".')
    assert show("chat:dapo") == f"[user]{DAPO.format('Q {1}')}[assistant]" and show("dapo") == DAPO.format("Q {1}")
    assert show("simplerl").startswith("<|im_start|>system\nYou are a helpful") and show("simplerl").endswith(
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    for name in ("chat:boxd", "boxd"):
        with pytest.raises(
            ValueError, match=r"no template 'boxd'\. Did you mean 'boxed'\? There are abel, boxed, .*chat:NAME"
        ):
            load_template(name)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        show("chat:boxed")
