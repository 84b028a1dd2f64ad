"""The pages that the documentation site makes from the code say something of everything. `make site` builds it and checks every link."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import rlkit as rk
from rlkit.config import known
from rlkit.plug import Plug

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        import reference
    return {Path(path).stem: text for path, text in reference.pages().items()}


def rows(page: str) -> list[list[str]]:
    """The cells of every row of a page's tables of keys."""
    lines = re.findall(r"^\| (`\w+` \|.*) \|$", page, re.MULTILINE)
    return [re.split(r"(?<!\\) \| ?", line) for line in lines]


def test_every_key_has_type_default_and_meaning(pages: dict[str, str]) -> None:
    found = [(name, row) for name, page in pages.items() if name not in ("metrics", "python") for row in rows(page)]
    assert len(found) > 350
    assert [(name, row[0]) for name, row in found if len(row) != 5 or not (row[1] and row[2] and row[4].strip())] == []
    keys = {row[0].strip("`"): row for row in rows(pages["keys"])}
    assert keys["max_lag"][1:3] == ["whole number", "`0`"] and "strictly on-policy" in keys["max_lag"][4]
    assert keys["lr"][3] == "not be negative" and keys["schedule"][1] == "`constant`, `linear`, `cosine`"


def test_every_class_that_a_type_may_name_is_described(pages: dict[str, str]) -> None:
    text = "\n".join(pages.values())
    heads = set(re.findall(r"^## (\w+)$", text, re.MULTILINE))
    kinds = [kind for kind in Plug.__subclasses__() if kind.__module__.startswith("rlkit.")]
    assert {name for kind in kinds for name in known(kind)} <= heads
    assert {kind.__name__ for kind in kinds} <= set(re.findall(r"^## (\w+), a base$", text, re.MULTILINE))
    assert "-min(w A, clip(w, 1 - eps_low, 1 + eps_high) A)" in pages["terms"], "formulas stand as they are written"
    assert "**Source:** PPO [1707.06347](https://arxiv.org/abs/1707.06347), eq. 7" in pages["terms"]


def test_every_name_of_the_face_is_described(pages: dict[str, str]) -> None:
    described = set(re.findall(r"^(?:## |- `rk\.)(\w+)", pages["python"], re.MULTILINE))
    assert set(rk.__all__) - {"__version__"} <= described


def test_metrics_have_their_alarms(pages: dict[str, str]) -> None:
    (line,) = re.findall(r"^\| `entropy/sampled` .*$", pages["metrics"], re.MULTILINE)
    assert "nats per token" in line and "[entropy_collapse](#entropy_collapse)" in line
    assert "Level: `share` = 0.05, from step 10 on." in pages["metrics"]


def test_every_document_has_a_place_and_is_named_once() -> None:
    """Pages that nobody placed stand under `How to`; those of the list are there."""
    named = re.findall(r"^ +- ([\w./-]+\.md)", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    made = {name for name in named if name.startswith("docs/reference/")}
    assert len(named) == len(set(named))
    assert [name for name in named if name not in made and not (ROOT / name).exists()] == []
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "docs" in extras, "what `make site` needs is installed with the rest"
