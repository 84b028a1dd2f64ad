"""Tutorials run as they stand, from an empty folder, with fewer steps and smaller models: files are written, commands and Python run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import rlkit as rk
from rlkit.checks import check
from rlkit.cli import main
from rlkit.reading import Loader
from tests.rollout.chats import make_model
from tests.tokenizers import CHAT

PAGES = sorted((Path(__file__).resolve().parent.parent / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """(language, file, text) of every block of a page; ``file`` is empty where it is none."""
    for m in BLOCK.finditer(page.read_text()):
        yield m[1], m[2] or "", m[3]


def shorter(text: str, model: Path) -> str:
    """A configuration that trains for a moment. What it extends is short already."""
    given: dict[str, Any] = yaml.load(text, Loader)
    if "extends" in given:
        return text
    given |= {"steps": 1, "eval": {"prompts": 4}, "log": {"tensorboard": False, "report": False}}
    given["data"] |= {"size": 12, "test_size": 4, "drop": []}
    given["rollout"] |= {"prompts": 4, "n": 2}
    if given["model"].get("path") == HUB:
        given["model"]["path"] = str(model)
    if "warm_up" in given["model"]:
        given["model"]["warm_up"]["steps"] = 2
    return yaml.safe_dump(given)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if p.stem != "cluster"], ids=lambda p: p.stem)
def test_a_tutorial_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    model, said, names = tmp_path / "model", "", dict[str, Any](__name__="__main__")
    tokenizer = make_model(model)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(model)
    for language, file, text in blocks(page):
        if file:
            Path(file).write_text(shorter(text, model) if language == "yaml" else text)
        elif language == "python":
            exec(compile(text, page.name, "exec"), names)
        elif language == "text":
            assert [line for line in text.splitlines() if line not in said] == []
        elif language == "bash":
            for line in text.splitlines():
                code = re.search(r"# exit code (\d)", line)
                words = shlex.split(line, comments=True)
                assert words[0] == "rlkit" and main(words[1:]) == int(code[1] if code else 0), line
                if words[1] == "init":
                    written = Path(words[2]) / "train.yaml"
                    written.write_text(shorter(written.read_text(), model))
                said += capsys.readouterr().out


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem == "cluster"], ids=lambda p: p.stem)
def test_configurations_of_the_cluster_are_right(page: Path, tmp_path: Path) -> None:
    """Its runs are those of tests/stack."""
    found = [(file, text) for language, file, text in blocks(page) if language == "yaml"]
    for file, text in found:
        (tmp_path / file).write_text(text)
        check(rk.load(tmp_path / file))
    assert len(found) == 2


def test_pages_of_the_list_are_there() -> None:
    assert {p.stem for p in PAGES} == {"first-reward", "first-loss", "lora-chat", "distillation", "cluster"}
