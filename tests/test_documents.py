"""What the documents show works: every snippet is loaded or run, every command parsed, every link followed."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import rlkit as rk
from rlkit import cli
from rlkit.cli.commands import COMMANDS
from rlkit.cli.parser import Parser
from rlkit.reading import Loader

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
TUTORIALS = ROOT / "docs" / "tutorials"  # run as a whole: tests/test_tutorials.py
IMPORTS = "from dataclasses import dataclass\nfrom rlkit.objective import Term\n"  # what README's class stands below


@dataclass(frozen=True)
class Snippet:
    path: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line}"


def snippets(*languages: str) -> list[Snippet]:
    found = []
    for path in DOCUMENTS:
        text = path.read_text()
        for m in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            if m[1] in languages:
                found.append(Snippet(path, text[: m.start()].count("\n") + 1, m[1], m[2]))
    return found


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every whole command of a block: where it stands, and its words after `rlkit`."""
    for s in snippets("", "bash"):
        for line in s.text.replace("\\\n", " ").splitlines():
            if line.startswith("rlkit "):
                yield str(s), shlex.split(line, comments=True)[1:]


def mentions() -> Iterator[tuple[str, str, list[str]]]:
    """Every command in a line of text: the document, the command's name, and the options that it is mentioned with."""
    for path in DOCUMENTS:
        for m in re.finditer(r"`rlkit ([a-z][a-z-]*)([^`]*)`", path.read_text()):
            yield path.name, m[1], re.findall(r"--[a-z][a-z-]*", m[2])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that snippets name."""
    (readme,) = (s for s in snippets("python") if "class MyLoss" in s.text)
    (tmp_path / "my_loss.py").write_text(IMPORTS + readme.text)
    (tmp_path / "my_rewards.py").write_text("def brevity(response): ...\nasync def judge(response): ...\n")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    shutil.copytree(ROOT / "tests" / "kept" / "format5", tmp_path / "runs" / "quickstart")
    rows = tmp_path / "runs" / "quickstart" / "metrics.jsonl"
    rows.write_text(rows.read_text() * 2)  # as long as a run that one calibrates from
    monkeypatch.chdir(tmp_path)
    return tmp_path


def laid_over(base: dict[str, Any], section: dict[str, Any]) -> dict[str, Any]:
    """A small run with a snippet's sections in place of its own; a snippet on data that names none keeps the task."""
    out = {**base, **section}
    if "train" not in section.get("data", {"train": None}):
        out["data"] = {**base["data"], **section["data"]}
    return out


@pytest.mark.parametrize("snippet", snippets("yaml"), ids=str)
def test_a_configuration_is_read_as_it_stands(snippet: Snippet, small: dict[str, Any], folder: Path) -> None:
    section = yaml.load(snippet.text, Loader)  # to which `on` is a word
    run = rk.load(laid_over({**small, "rewards": ["math"]}, section))
    assert set(section) <= {f for f in dir(run) if getattr(run, f) is not None}


@pytest.mark.slow
def test_python_runs_as_it_stands(
    small: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = []

    def shortly(run: rk.Run) -> Any:
        """Trains the snippet's rewards, and a run that a snippet was given, for one step of the small run."""
        trained.append(run if run.name == "small" else rk.load({**small, "steps": 1}).replace(rewards=run.rewards))
        return train(trained[-1], quiet=True)

    train, steps = rk.train, rk.steps
    monkeypatch.setattr(rk, "train", shortly)
    short = {**small, "name": "steps", "steps": 1, "rewards": ["task"]}
    monkeypatch.setattr(rk, "steps", lambda run: steps(rk.load(short), quiet=True))
    given: dict[str, dict[str, Any]] = {
        "README.md": {},
        "k1-in-the-loss.md": {"logp": torch.zeros(3), "ref_logp": torch.ones(3), "policy_loss": 0.5, "coef": 0.1},
        "planning.md": {"run": rk.load(small)},
    }
    for s in (s for s in snippets("python") if s.path.parent != TUTORIALS):
        names = given.setdefault(s.path.name, {})
        names["__name__"] = "__main__"
        exec(compile("from __future__ import annotations\n" + IMPORTS + s.text, str(s), "exec"), names)
    (readme,) = (run for run in trained if run.model.path == small["model"]["path"])
    assert [r.fn.__name__ for r in readme.rewards] == ["correct"]
    assert "steps: found 'many', expected a whole number" in capsys.readouterr().out, "errors.md prints what is wrong"
    assert given["k1-in-the-loss.md"]["loss"] == pytest.approx(0.4)


@pytest.mark.parametrize(("where", "words"), list(commands()), ids=lambda x: x if isinstance(x, str) else x[0])
def test_a_whole_command_is_understood(where: str, words: list[str]) -> None:
    call = cli.parse(words)
    if len(words) > 1 and (ROOT / words[1]).exists():
        rk.load(ROOT / words[1], call.overrides)


def test_commands_in_text_exist_with_their_options_and_all_are_in_the_readme() -> None:
    below = Parser(prog="rlkit").add_subparsers()
    known = {c.name: c.add_to(below) for c in COMMANDS}
    for where, name, options in mentions():
        assert name in known, f"{where}: rlkit {name}"
        assert [o for o in options if o not in known[name].format_help()] == [], f"{where}: rlkit {name}"
    assert {name for where, name, _ in mentions() if where == "README.md"} == set(known)


def test_the_page_on_papers_is_what_docstrings_say_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import papers

    assert papers.PAGE.read_text() == papers.page(), "run: python scripts/papers.py"
    for wrong in ("Source: 2402.03300.", "As 2402.03300 has it.", "Source: GRPO 2402.03300, DAPO 2503.14476."):
        with pytest.raises(ValueError, match="a part: write each paper"):
            papers.sources("a part", wrong)


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        assert set(re.findall(r"(?:^|`)make ([a-z]+)", path.read_text(), re.MULTILINE)) <= targets, path.name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(path: Path) -> None:
    def anchors(text: str) -> set[str]:
        heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}

    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            found = path.parent / name if name else path
            assert found.exists(), target
            assert not anchor or anchor in anchors(found.read_text()), target
