r"""Mathematical data sets by name: ``gsm8k``, ``math:levels=1-4``, ``simplerl:tier=hard``.

An entry says where a set is on the hub, which columns hold question and answer, and how the answer is read out of a solution where there
is no column for it. Options follow the name after a colon, ``name:key=value:key=value``; values are lists joined by ``+`` or, for
numbers, ranges: ``math:levels=1-3+5:subjects=algebra+geometry``. Nothing in that needs quotes in YAML or in a shell.

Rows have ``id`` (``gsm8k-train-17``), ``prompt``, ``answer``, ``dataset`` and what the entry keeps (``level``, ``subject``, ...), in an
order that never changes. The terms of use of each set are those of its page on the hub.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlkit.data.files import is_file_of_rows
from rlkit.data.tasks import Row, Split
from rlkit.errors import DataError, first_line
from rlkit.verifier.finding import last_boxed


def plain(x: Any) -> str:
    """A bare answer: numbers without ``.0``, texts without the dollar signs around them; nothing gives the empty text."""
    if x is None:
        return ""
    text = re.sub(r"^(-?\d+)\.0$", r"\1", str(x).strip())
    inner = re.fullmatch(r"\$\$?([^$]*)\$\$?", text)
    return inner[1].strip() if inner else text


def after_marks(solution: Any) -> str:
    """What follows the last ``####``, without thousands separators (GSM8K)."""
    _, marks, tail = str(solution or "").rpartition("####")
    return re.sub(r"(?<=\d),(?=\d{3})", "", tail.strip()) if marks else ""


def boxed(solution: Any) -> str:
    """The content of the last box of a solution, found as the reward ``math`` finds it in a response; nothing gives the empty text."""
    return last_boxed(str(solution or "")) or ""


def integer(x: Any) -> str:
    r"""The integer of an AIME answer: one hub set writes ``336^\circ``, others ``033``."""
    found = re.match(r"\$?\s*(\d+)", str(x if x is not None else "").strip())
    return str(int(found[1])) if found else ""


def several(x: Any) -> str:
    """All answers of a question, joined by a comma (OlympiadBench keeps a list)."""
    return ", ".join(filter(None, map(plain, x if isinstance(x, list | tuple) else [x])))


def level(x: Any) -> int | None:
    """``Level 3`` or 3 as 3; a few rows of MATH are of ``Level ?``: none."""
    found = re.search(r"\d", str(x))
    return int(found[0]) if found else None


def slug(x: Any) -> str:
    """``Counting & Probability`` as ``counting_and_probability``."""
    return re.sub(r"\W+", "_", str(x).lower().replace("&", "and")).strip("_")


DAPO_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: $Answer "
    "(without quotes) where $Answer is the answer to the problem."
)
DAPO_AFTER = 'Remember to put your answer on its own line after "Answer:".'


def dapo_question(messages: Any) -> str:
    """The question inside DAPO's chat message: its instructions are the template ``dapo`` here."""
    text = str(messages[0]["content"] if isinstance(messages, list) else messages).strip()
    return text.removeprefix(DAPO_BEFORE).removesuffix(DAPO_AFTER).strip()


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """One data set of the hub.

    Attributes:
        hub: its name there. configs: its configurations, one after the other. files: a file inside it, with ``{option}`` filled in.
        train, test: the hub's split for each of ours; where only one is given, it serves both.
        question, answer: columns, ``a.b`` for a column inside another. read_question, read_answer: how they become texts.
        keep: further columns, as ``ours: (theirs, how it is read)``.
        options: what may follow the name: the values that exist. ``levels`` and ``subjects`` select rows, others fill ``files``; the
            value at ``default`` is taken where none is given. aliases: shorter words for values.
        size: published numbers of rows (train, test), None where there is no such split. note: what one should know before using it.
    """

    hub: str
    configs: tuple[str | None, ...] = (None,)
    files: str | None = None
    train: str | None = None
    test: str | None = None
    question: str = "problem"
    answer: str = "answer"
    read_question: Callable[[Any], str] = str
    read_answer: Callable[[Any], str] = plain
    keep: Mapping[str, tuple[str, Callable[[Any], Any]]] = field(default_factory=dict)
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    default: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    size: tuple[int | None, int | None]
    note: str


SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
BY_LEVEL = {"levels": ("1", "2", "3", "4", "5"), "subjects": SUBJECTS}
MAA = "Problems are copyrighted by the MAA; answers are integers from 0 to 999."

# Hub names and columns are those that public code reads with `load_dataset`; sizes are those of the papers or of the sets' pages.
SETS: dict[str, NamedSet] = {
    "gsm8k": NamedSet(
        hub="openai/gsm8k",
        configs=("main",),
        train="train",
        test="test",
        question="question",
        read_answer=after_marks,
        size=(7473, 1319),
        note="2110.14168, MIT. The answer stands after #### in the solution.",
    ),
    "math": NamedSet(
        hub="EleutherAI/hendrycks_math",
        configs=SUBJECTS,
        train="train",
        test="test",
        answer="solution",
        read_answer=boxed,
        keep={"level": ("level", level), "subject": ("type", slug)},
        options=BY_LEVEL,
        size=(7500, 5000),
        note="2103.03874, MIT. The answer is the last box of the solution. The test split contains MATH-500.",
    ),
    "math500": NamedSet(
        hub="HuggingFaceH4/MATH-500",
        test="test",
        keep={"level": ("level", level), "subject": ("subject", slug)},
        options=BY_LEVEL,
        size=(None, 500),
        note="PRM800K's subset of MATH's test split (2305.20050). Qwen2.5 has probably seen it (2507.10532).",
    ),
    "aime24": NamedSet(
        hub="HuggingFaceH4/aime_2024",
        test="train",
        read_answer=integer,
        size=(None, 30),
        note=f"AIME 2024 I and II. {MAA}",
    ),
    "aime25": NamedSet(
        hub="math-ai/aime25", test="test", read_answer=integer, size=(None, 30), note=f"AIME 2025 I and II. {MAA}"
    ),
    "amc23": NamedSet(
        hub="math-ai/amc23",
        test="test",
        question="question",
        size=(None, 40),
        note="AMC 12 of 2023 with numbers as answers, copyrighted by the MAA. Some papers' AMC has 83 problems (2022 and 2023).",
    ),
    "hmmt25": NamedSet(
        hub="MathArena/hmmt_feb_2025",
        test="train",
        size=(None, 30),
        note="HMMT February 2025; newer than the data of most models.",
    ),
    "brumo25": NamedSet(
        hub="MathArena/brumo_2025",
        test="train",
        size=(None, 30),
        note="BRUMO 2025; newer than the data of most models.",
    ),
    "minerva": NamedSet(
        hub="math-ai/minervamath",
        test="test",
        question="question",
        size=(None, 272),
        note="2206.14858: university science with units and free forms; scores differ by 9 points between verifiers.",
    ),
    "olympiadbench": NamedSet(
        hub="math-ai/olympiadbench",
        test="test",
        question="question",
        answer="final_answer",
        read_answer=several,
        keep={"subject": ("subfield", slug)},
        size=(None, 674),
        note="2402.14008, the English open-ended text-only mathematics; several answers are joined by a comma.",
    ),
    "dapo-math-17k": NamedSet(
        hub="BytedTsinghua-SIA/DAPO-Math-17k",
        train="train",
        question="prompt",
        answer="reward_model.ground_truth",
        read_question=dapo_question,
        size=(17398, None),
        note="2503.14476, Apache-2.0; answers are integers. The hub's file repeats each prompt about 100 times (1.79 million rows).",
    ),
    "dapo-math-17k-en": NamedSet(
        hub="open-r1/DAPO-Math-17k-Processed",
        configs=("en",),
        train="train",
        question="prompt",
        answer="solution",
        size=(14116, None),
        note="The English part of DAPO-Math-17k, deduplicated. RPG (2505.17508) trains on 13.9k of it.",
    ),
    "simplerl": NamedSet(
        hub="hkust-nlp/SimpleRL-Zoo-Data",
        files="simplelr_qwen_{tier}/train.parquet",
        train="train",
        question="extra_info.question",
        answer="reward_model.ground_truth",
        options={"tier": ("gsm8k_level1", "level1to4", "level3to5")},
        aliases={"easy": "gsm8k_level1", "medium": "level1to4", "hard": "level3to5"},
        default={"tier": "level3to5"},
        size=(8523, None),
        note="2503.18892: easy is GSM8K and MATH level 1 (8388 rows), medium MATH 1-4 (8139), hard MATH 3-5 (two rows have no answer).",
    ),
    "deepscaler": NamedSet(
        hub="agentica-org/DeepScaleR-Preview-Dataset",
        train="train",
        size=(40315, None),
        note="MIT. AIME up to 2023, AMC, Omni-MATH and STILL.",
    ),
    "polaris": NamedSet(
        hub="POLARIS-Project/Polaris-Dataset-53K",
        train="train",
        keep={"difficulty": ("difficulty", str)},
        size=(53291, None),  # from memory, not checked
        note="Apache-2.0. `difficulty` is the pass rate of DeepSeek-R1-Distill-Qwen-7B, e.g. 3/8.",
    ),
}


def is_named(source: str) -> bool:
    """Whether ``source`` has the form of a named set: neither a file of rows nor ``owner/name`` of the hub."""
    return "/" not in source and not is_file_of_rows(source)


def find_set(source: str, where: str) -> tuple[str, NamedSet, dict[str, tuple[str, ...]]]:
    """``(name, entry, options)`` of e.g. ``math:levels=1-4``.

    Raises:
        DataError: no such set, option or value, with the closest ones.
    """
    name, *given = source.split(":")
    if name not in SETS:
        near = difflib.get_close_matches(name, list(SETS), 2, cutoff=0.5)
        raise DataError(
            f"{where}: there is no data set {name!r}."
            + (f" Did you mean {' or '.join(map(repr, near))}?" if near else "")
            + f" Named sets are {', '.join(SETS)}; a set of the hub is owner/name or owner/name:config, a file ends in "
            ".jsonl, .json, .csv or .parquet."
        )
    entry = SETS[name]
    options: dict[str, tuple[str, ...]] = {k: (v,) for k, v in entry.default.items()}
    for part in given:
        key, eq, raw = part.partition("=")
        if not eq or key not in entry.options:
            known = ", ".join(f"{k}={v[0]}" for k, v in entry.options.items()) or "none"
            raise DataError(
                f"{where}: {source!r}: {part!r} is no option of {name}. Options (key=value after a colon): {known}."
            )
        options[key] = tuple(dict.fromkeys(v for value in raw.split("+") for v in _values(value, entry.aliases)))
        for value in options[key]:
            if value not in entry.options[key]:
                near = difflib.get_close_matches(value, entry.options[key], 1)
                raise DataError(
                    f"{where}: {source!r}: {key} has no value {value!r}."
                    + (f" Did you mean {near[0]!r}?" if near else "")
                    + f" Values are {', '.join((*entry.options[key], *entry.aliases))}, joined by +."
                )
    return name, entry, options


def _values(text: str, aliases: Mapping[str, str]) -> list[str]:
    bounds = re.fullmatch(r"(\d)-(\d)", text)
    return [str(i) for i in range(int(bounds[1]), int(bounds[2]) + 1)] if bounds else [aliases.get(text, text)]


def load_table(hub: str, config: str | None, split: str, file: str | None = None) -> Any:
    """A table of the hub; the only place that downloads data.

    Raises:
        DataError: `datasets` is not installed, or the table could not be loaded.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(
            f"{hub!r} is a data set of the hub; reading it needs `datasets`. Install it with: pip install datasets"
        ) from None
    try:
        return load_dataset(hub, config, data_files=file, split="train" if file else split)
    except Exception as error:  # the hub client raises many kinds; all mean that the set is not there
        raise DataError(
            f"{hub!r} could not be loaded from the hub ({first_line(error)}). Check the name and the network, or put the rows into a "
            ".jsonl, .csv or .parquet file."
        ) from error


def read_set(source: str, split: Split, say: Callable[[str], None] = lambda text: None) -> list[tuple[str, Row]]:
    """``(place, row)`` of a named set; ``say`` hears what was left out, and a warning about training on an evaluation set.

    Raises:
        DataError: no such set or option, a set without that split, a column that is not there, or no row left.
    """
    where = f"data.{split}"
    name, entry, options = find_set(source, where)
    theirs = entry.train if split == "train" else entry.test
    if theirs is None and split == "test":
        raise DataError(
            f"{where}: {name} has a training split only ({entry.note}). Evaluate on another set, e.g. math500."
        )
    if theirs is None:
        theirs = entry.test
        say(f"data: {name} is an evaluation set; scores on it mean nothing after this run.")
    assert theirs is not None
    wanted = {"level": options.get("levels"), "subject": options.get("subjects")}
    configs = [c for c in entry.configs if len(entry.configs) == 1 or not wanted["subject"] or c in wanted["subject"]]
    both = entry.train is not None and entry.test is not None
    rows: list[tuple[str, Row]] = []
    empty: list[str] = []
    seen: set[str] = set()
    repeated = 0
    for config, tier in [(c, t) for c in configs for t in options.get("tier", ("",))]:
        file = entry.files.format(tier=tier) if entry.files else None
        try:
            table = load_table(entry.hub, config, theirs, file)
        except ValueError as error:
            raise DataError(f"{where}: {name}: {error}") from error
        label = "-".join(
            filter(None, (name, theirs if both else "", (config if len(entry.configs) > 1 else "") or "", tier))
        )
        place = ":".join(filter(None, (entry.hub, config, file)))
        for i, raw in _columns(table, entry, f"{where}: {name} ({place})"):
            kept = {ours: read(raw[ours]) for ours, (_, read) in entry.keep.items()}
            if any(keep and str(kept[column]) not in keep for column, keep in wanted.items()):
                continue
            question, answer = entry.read_question(raw["question"] or "").strip(), entry.read_answer(raw["answer"])
            if not question or not answer:
                empty.append(f"{place}[{i}]")
                continue
            key = normalised(question)
            if key in seen:
                repeated += 1
                continue
            seen.add(key)
            rows.append(
                (f"{place}[{i}]", {"id": f"{label}-{i}", "prompt": question, "answer": answer, "dataset": name, **kept})
            )
    if empty:
        say(f"data: {len(empty)} row(s) of {name} have no question or no answer: {', '.join(empty[:3])}; dropped.")
    if repeated:
        say(f"data: {name} repeats questions: {repeated} further row(s) left out, {len(rows)} kept.")
    if not rows:
        raise DataError(f"{where}: no row of {source!r} is left. Widen its options.")
    if len(entry.configs) > 1:  # a prefix (data.size) then has all subjects
        rows.sort(key=lambda pair: hashlib.sha256(str(pair[1]["id"]).encode()).digest())
    return rows


def _columns(table: Any, entry: NamedSet, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The columns of an entry, read in large batches of those columns alone: DAPO's file has 1.79 million rows."""
    paths = {
        "question": entry.question,
        "answer": entry.answer,
        **{ours: theirs for ours, (theirs, _) in entry.keep.items()},
    }
    tops = list(dict.fromkeys(p.split(".")[0] for p in paths.values()))
    missing = [c for c in tops if c not in table.column_names]
    if missing:
        raise DataError(
            f"{where}: there is no column {missing[0]!r}; columns are {', '.join(table.column_names)}. The set has changed on "
            f"the hub: name it yourself, data.train: {entry.hub}, with data.columns: {{prompt: ..., answer: ...}}."
        )
    start = 0
    for batch in table.select_columns(tops).iter(batch_size=8192):
        n = len(batch[tops[0]])
        for i in range(n):
            out = {}
            for ours, path in paths.items():
                value: Any = batch
                for depth, part in enumerate(path.split(".")):
                    value = value[part][i] if depth == 0 else (value or {}).get(part)
                out[ours] = value
            yield start + i, out
        start += n


def normalised(question: str) -> str:
    """What two copies of one question have in common: composed Unicode, every run of white space one blank.

    Letters keep their case and superscripts their height: `Let A` and `Let a`, `x²` and `x2` are different questions.
    """
    return " ".join(unicodedata.normalize("NFC", question).replace("\u200b", "").split())


__all__ = ["SETS", "NamedSet", "find_set", "is_named", "load_table", "normalised", "read_set"]
