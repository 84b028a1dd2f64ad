"""Wrong input of every kind, and the one sentence that each gets: ``bad_input.yaml`` holds input and answer.

``...`` in an answer stands for what may change without anybody's harm, such as the list of all keys of a section. An answer is all that is
said: what is computed, asked for or written before it would show here or in the folder.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

import rlkit as rk
from rlkit.checks import check as check_run
from rlkit.cli import main
from rlkit.config import build, known
from rlkit.data.prompts import load_prompts
from rlkit.errors import InputError
from rlkit.plug import is_kind
from rlkit.reading import located
from rlkit.run import Run

ANSWERS = yaml.safe_load((Path(__file__).parent / "bad_input.yaml").read_text())

GOOD = """name: bad
out: runs
model: {make: {hidden: 64, heads: 2}}
data: {task: Sorting}
objective:
  - {type: PPOClip}
  - {type: KL, estimator: k2, coef: 0.01}
"""
MINE = """from dataclasses import dataclass
from typing import TYPE_CHECKING
from rlkit import Advantage, Sampler, Term

if TYPE_CHECKING:
    from elsewhere import Unknown

@dataclass(frozen=True)
class NoTerm:
    tau: float = 1.0

class Adv(Advantage):
    def __call__(self, b):
        return b.reward[b.seq]

class Empty(Term):
    pass

class Mine(Term):
    def __call__(self, new, b):
        return new.logp

class Undecorated(Mine):
    tau: float = 1.0

class NoOrder(Sampler):
    pass

@dataclass(frozen=True, kw_only=True)
class Careless(Mine):
    def __post_init__(self):
        int("x")

@dataclass(frozen=True, kw_only=True)
class Strict(Mine):
    level: int = 1
    def __post_init__(self):
        if self.level > 2:
            raise ValueError(f"level is {self.level}; it must be 1 or 2")

@dataclass(frozen=True, kw_only=True)
class Untyped(Mine):
    what: "Unknown" = None
"""
LAUGHS = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(ord("b"), ord("k"))
)
FILES: dict[str, bytes] = {
    "empty": b"",
    "only comments": b"# nothing\n\n# here\n",
    "only null": b"~\n",
    "a list": b"- a\n- b\n",
    "a word": b"steps\n",
    "a number": b"5\n",
    "a byte order mark and nothing": b"\xef\xbb\xbf",
    "UTF-16": "steps: 5\n".encode("utf-16"),
    "UTF-32": "steps: 5\n".encode("utf-32-be"),
    "Latin-1": b"name: a\nout: \xe9\n",
    "binary": bytes(range(256)),
    "zeros": b"\0" * 64,
    "a NUL": b"name: a\x00b\n",
    "a bell": b"name: a\nout: b\x07c\n",
    "gzip": b"\x1f\x8b\x08\x00abc",
    "a PNG": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "one long line": b"name: " + b"x" * (30 * 2**20),
    "many values": b"name: [" + b"1," * 30000 + b"]",
    "deep": b"name: " + b"[" * 100 + b"]" * 100,
    "deep block": b"".join(b" " * i + b"a:\n" for i in range(100)),
    "laughs": LAUGHS,
    "a cycle": b"name: &a [*a]\n",
    "a cycle of mappings": b"model: &m {make: {warm: *m}}\n",
    "an unknown alias": b"name: *nobody\n",
    "two documents": b"steps: 1\n---\nsteps: 2\n",
    "tab": b"model:\n\tmake: {}\n",
    "unclosed": b"model: {make: {}\n",
    "unclosed quote": b"name: 'a\n",
    "bad indent": b"model:\n  make: {}\n path: x\n",
    "colon": b"name: a: b\n",
    "at sign": b"name: @home\n",
    "percent": b"%TAG !\nname: x\n",
    "escape": b'name: "\\q"\n',
    "huge escape": b'name: "\\UFFFFFFFF"\n',
    "surrogate": b'name: "\\ud800"\n',
    "surrogate key": b'"\\udfff": 1\n',
    "twice": b"steps: 1\nname: a\nsteps: 2\n",
    "twice deep": b"model:\n  make: {hidden: 64, hidden: 32}\n",
    "merge": b"x: &x {steps: 1}\n<<: *x\n",
    "list key": b"? [a, b]\n: 1\n",
    "mapping key": b"{a: 1}: 2\n",
    "python": b"name: !!python/object/apply:os.system [ls]\n",
    "python name": b"objective: [!!python/name:os.system ]\n",
    "own tag": b"name: !secret x\n",
    "binary tag": b"name: !!binary aGVsbG8=\n",
    "timestamp": b"steps: !!timestamp 2026-01-01\n",
    "omap": b"model: !!omap [a: 1]\n",
    "bool tag": b"name: !!bool maybe\n",
    "float tag": b"steps: !!float x\n",
    "digits": b"steps: " + b"9" * 5000 + b"\n",
    "hex": b"steps: 0x" + b"f" * 400 + b"\n",
    "sexagesimal": b"steps: 190:20:30\n",
    "JSON with a comma": b'{"steps": 1,, "name": "a"}\n',
    "python dict": b"{'steps': None}\n",
    "toml": b"[model]\npath = 'x'\n",
    "key without value": b"steps:\nmodel: {make: {}}\ndata: {task: Sorting}\nobjective: [PPOClip]\n",
    "every mistake": b"stepz: 1\nseed: x\nmodel: {make: {hidden: a}}\ndata: {task: Sorting}\nobjective: [{type: PPOClip, coef: }]\n",
    "missing": b"steps: 1\n",
    "key a number": b"1: 2\n",
    "empty key": b"'': 1\n",
    "carriage returns": b"steps: 1\rsteps: 2\r",
    "extends itself": b"extends: x.yaml\n",
    "extends a folder": b"extends: folder\n",
    "extends nothing": b"steps: 1\nextends: qickstart.cfg\n",
    "extends a list": b"extends: [a.yaml]\n",
    "extends null": b"extends:\n",
    "extends a cycle": b"extends: cycle.yaml\n",
    "extends a broken one": b"extends: broken.yaml\n",
    "extends binary": b"extends: binary.yaml\n",
    "extends a NUL": b'extends: "a\\0"\n',
    "extends a long name": b"extends: " + b"x" * 300 + b"\n",
    "extends a chain": b"extends: chain0.yaml\n",
    "extends a list file": b"extends: list.yaml\n",
}
ROWS: dict[str, bytes] = {
    "cut off": b'{"prompt": "12>"',
    "empty line": b"",
    "no prompt": b'{"question": "12>"}',
    "empty prompt": b'{"prompt": ""}',
    "a list": b"[1]",
    "a number": b"5",
    "null": b"null",
    "prompt a number": b'{"prompt": 5}',
    "prompt null": b'{"prompt": null}',
    "NaN": b'{"prompt": NaN}',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("bad"))


def lay_out(here: Path) -> Path:
    """A folder with one good configuration ``c.yaml`` and with much that is not good."""
    (here / "folder").mkdir()
    texts = {
        "c.yaml": GOOD,
        "mine.py": MINE,
        "broken.py": "import no_such_library\n",
        "cycle.yaml": "extends: cycle2.yaml\n",
        "cycle2.yaml": "extends: cycle.yaml\n",
        "broken.yaml": "name: a\nsteps: [1\n",
        "list.yaml": "- 1\n",
        "ok.jsonl": '{"response": "1", "answer": "1"}\n',
        "code/config.json": '{"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}',
        "code/own.py": "raise SystemExit('code of the model was run')\n",
        "own_tokens/config.json": '{"model_type": "qwen2"}',
        "own_tokens/tokenizer_config.json": '{"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", null]}}',
        "own_tokens/own.py": "raise SystemExit('code of the tokenizer was run')\n",
        "junk/config.json": "{{{",
        "empty/config.json": "",
        "list/config.json": "[1]",
        "unknown/config.json": '{"model_type": "gpt17"}',
        **{f"chain{k}.yaml": f"extends: chain{k + 1}.yaml\n" for k in range(40)},
    }
    for name, text in texts.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(text)
    (here / "binary.yaml").write_bytes(bytes(range(256)))
    (here / "zeros").write_bytes(b"\0" * 64)
    os.mkfifo(here / "pipe.yaml")
    return here


def agree(said: str, answer: str) -> bool:
    return re.fullmatch(re.escape(answer).replace(re.escape("..."), ".*"), said) is not None


def assert_answer(said: str, answer: str, here: Path) -> None:
    said = said.replace(f"{here}/", "")
    assert agree(said, answer), f"\n{said}\nis not\n{answer}"
    assert all(len(line) < 900 and line.isprintable() for line in said.split("\n")), said
    assert not (here / "runs").exists()


def expand(text: str) -> str:
    return text.replace("LONG", "x" * 300)


@pytest.mark.parametrize("text", ANSWERS["overrides"])
def test_settings(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes of a good configuration, as on the command line."""
    monkeypatch.chdir(folder)
    with pytest.raises(InputError) as error:
        check_run(rk.load("c.yaml", expand(text).split(" ;; ")))
    assert_answer(str(error.value), ANSWERS["overrides"][text], folder)


@pytest.mark.parametrize("name", ANSWERS["files"])
def test_files(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole configurations."""
    monkeypatch.chdir(folder)
    (folder / "x.yaml").write_bytes(FILES[name])
    with pytest.raises(InputError) as error:
        rk.load("x.yaml")
    assert_answer(str(error.value), ANSWERS["files"][name], folder)


@pytest.mark.parametrize("line", ANSWERS["commands"])
def test_commands(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    code = main(shlex.split(expand(line)))
    out, said = capsys.readouterr()
    assert (code, out) == (2, "") and said.startswith("error: ") and said.endswith("\n")
    assert_answer(said.removeprefix("error: ").removesuffix("\n"), ANSWERS["commands"][line], folder)


@pytest.mark.parametrize("name", ANSWERS["rows"])
def test_rows(name: str, folder: Path) -> None:
    """The second of three rows of a file."""
    path = folder / "rows.jsonl"
    path.write_bytes(b'{"prompt": "31>"}\n' + ROWS[name] + b'\n{"prompt": "21>"}\n')
    run = rk.load(yaml.safe_load(GOOD) | {"data": {"train": str(path)}, "rewards": ["math"]})
    with pytest.raises(InputError) as error:
        load_prompts(run.data, "train", lambda text, **_: {"input_ids": list(range(len(text)))})
    assert_answer(str(error.value), ANSWERS["rows"][name], folder)


def test_there_are_two_hundred_and_all_have_an_input() -> None:
    assert set(FILES) == set(ANSWERS["files"]) and set(ROWS) == set(ANSWERS["rows"])
    assert sum(map(len, ANSWERS.values())) >= 200


def cyclic() -> dict[str, Any]:
    tree: dict[str, Any] = {"steps": 1}
    tree["model"] = tree
    return tree


@pytest.mark.parametrize(
    ("tree", "answer"),
    [
        ({1.5: 2, (1,): 3}, "mapping: the keys: a key must be a word; found (1,)."),
        (
            {"name": "a\ud800"},
            "mapping: name: the text 'a\\ud800' holds half of a character (U+D800), which no file can hold.",
        ),
        ({"name": "a\0"}, "mapping: name: the text 'a\\x00' holds a NUL character."),
        (
            {"steps": 10**5000},
            "mapping: steps: is a whole number of 16610 bits; it must be finite and below 2^63.\n...",
        ),
        (cyclic(), "mapping: model.model...: mappings and lists are nested more than 64 deep. Does it hold itself?"),
        ({"objective": object()}, "mapping: objective: found <object object at ...>, expected a list.\n..."),
    ],
    ids=("a tuple as key", "a surrogate", "a NUL", "a huge number", "a cycle", "an object"),
)
def test_mappings_of_python(tree: dict[Any, Any], answer: str) -> None:
    with pytest.raises(rk.ConfigError) as error:
        rk.load(tree)
    assert re.fullmatch(re.escape(answer).replace(re.escape("..."), "(?s:.*)"), str(error.value)), error.value


def test_python_is_held_to_the_same_bounds() -> None:
    run = rk.load(yaml.safe_load(GOOD))
    for change, told in (({"steps": -1}, "steps"), ({"name": "../x"}, "folder"), ({"seed": 2**32}, "seed")):
        with pytest.raises(rk.ConfigError, match=told):
            run.replace(**change)
    for sampling in ({"temperature": float("nan")}, {"top_p": 0.0}, {"max_tokens": 0}):
        with pytest.raises(rk.ConfigError, match=next(iter(sampling))):
            rk.Sampling(**sampling)


def test_check_tells_everything_at_once() -> None:
    wrong = {"rollout": {"n": 1}, "learner": {"minibatches": 64}, "sampling": {"temperature": 0}, "critic": {}}
    with pytest.raises(rk.ConfigError) as error:
        check_run(rk.load(yaml.safe_load(GOOD) | wrong))
    told = str(error.value).split("\n")
    assert [key for key in ("critic", "minibatches", "rollout.n", "temperature") for line in told if key in line] == [
        "critic",
        "minibatches",
        "rollout.n",
        "temperature",
    ]


def test_names_that_are_patterns_are_found_again(tmp_path: Path) -> None:
    from rlkit.record.log import new_folder, newest_folder

    run = rk.load(yaml.safe_load(GOOD) | {"name": "a[1]*", "out": str(tmp_path)})
    (tmp_path / "a[1]*").mkdir()
    (tmp_path / "a[1]*" / "config.yaml").touch()
    assert newest_folder(run.folder) == tmp_path / "a[1]*"
    assert new_folder(run.folder)[0] == tmp_path / "a[1]*-2"


def test_a_bug_of_the_users_own_keeps_its_traceback(tmp_path: Path) -> None:
    """Anything but a ValueError in a ``__post_init__`` is no finding about the input."""
    (tmp_path / "mine.py").write_text(
        MINE + "\n@dataclass(frozen=True)\nclass Bug(Mine):\n    def __post_init__(self):\n        1 / 0\n"
    )
    (tmp_path / "c.yaml").write_text(GOOD)
    with pytest.raises(ZeroDivisionError):
        rk.load(tmp_path / "c.yaml", ["objective.0={type: mine.py:Bug}"])


@pytest.mark.slow
def test_the_hub_is_asked_once(tmp_path: Path) -> None:
    """Its client asks six times, for half a minute, where nobody answers."""
    (tmp_path / "c.yaml").write_text(GOOD)
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                asked.append(connection.recv(4096).split(b"\r\n")[0])
                connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}"}
        done = subprocess.run(
            [sys.executable, "-m", "rlkit", "train", str(tmp_path / "c.yaml"), "model={path: nobody/nothing}"],
            env={**environment, "HF_HOME": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        server.shutdown(socket.SHUT_RDWR)
    assert done.returncode == 2 and done.stderr.startswith("error: model.path: 'nobody/nothing' is no folder"), (
        done.stderr
    )
    assert done.stderr.count("\n") == 1 and sum(b"nobody/nothing" in line for line in asked) == 1, (done.stderr, asked)


def keys() -> list[tuple[type, str, Any]]:
    """Every key of a configuration: (class, field, annotation), those of all components included."""

    def arms(hint: Any) -> list[Any]:
        inside = () if typing.get_origin(hint) is typing.Literal else typing.get_args(hint)
        return [hint, *(arm for x in inside for arm in arms(x))]

    found, classes = [], [Run]
    for cls in classes:
        for f in dataclasses.fields(cls):
            hint = typing.get_type_hints(cls, include_extras=True)[f.name]
            found.append((cls, f.name, hint))
            for arm in arms(hint):
                new = list(known(arm).values()) if is_kind(arm) else [arm]
                classes += [c for c in new if dataclasses.is_dataclass(c) and c not in classes]
    return found


def test_no_key_takes_what_is_no_number() -> None:
    for cls, name, hint in keys():
        assert hint is not Any, f"{cls.__name__}.{name}: the reader cannot check a key without a type"
        for x in (float("nan"), float("inf"), -float("inf"), 10**30, -(10**30)):
            for value in (x, [x], {"a": x}):
                with pytest.raises(rk.ConfigError, match=r"finite|expected|unknown key|entries"):
                    build(hint, located(value))


BUGGY = """from dataclasses import dataclass
from rlkit import Sampler, Term

@dataclass(frozen=True, kw_only=True)
class Loss(Term):
    def __call__(self, new, b):
        return new.logp * int("of the user")

@dataclass(frozen=True, kw_only=True)
class Order(Sampler):
    def build(self, prompts, seed, statistics):
        return int("of the user")
"""


@pytest.mark.parametrize(
    "change", [{"objective": [{"type": "buggy.py:Loss"}]}, {"sampler": {"type": "buggy.py:Order"}}]
)
def test_a_value_error_of_the_users_code_is_no_mistake_in_the_input(
    small: dict[str, Any], tmp_path: Path, change: dict[str, Any]
) -> None:
    """It ends the run with its traceback, which one line and exit code 2 would hide."""
    (tmp_path / "buggy.py").write_text(BUGGY)
    small["rewards"] = [str(Path("tests/rewards/examples.py").absolute()) + ":often"]
    small["data"] |= {key: value for key, value in change.items() if key == "sampler"}
    small |= {key: value for key, value in change.items() if key == "objective"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(small))
    with pytest.raises(ValueError, match="of the user") as error:
        main(["train", str(tmp_path / "c.yaml")])
    assert not isinstance(error.value, InputError) and error.traceback[-1].path.name == "buggy.py"
