"""The search finds what an independent reading of BM25 finds, and says where it stands."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from rlkit.errors import ConfigError, DataError
from rlkit.tools import Search, ToolError


def test_scores_are_those_of_the_formula_written_out(tmp_path: Path) -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices("a b c d e f".split(), [6, 5, 4, 3, 2, 1], k=rng.randint(1, 30))) for _ in range(20)]
    for i, text in enumerate(texts):
        (tmp_path / f"{i:02}.txt").write_text(text)
    search = Search(tmp_path, words=100)
    assert [p.text for p in search.passages] == texts
    mean = sum(len(t.split()) for t in texts) / 20
    for query in ("a", "f e", "c c d unknown"):
        for i, text in enumerate(texts):
            wanted = 0.0
            for word in query.split():
                n = sum(word in t.split() for t in texts)
                f = text.split().count(word)
                idf = math.log((20 + 1) / (n + 0.5))
                wanted += idf * f * 2.5 / (f + 1.5 * (0.25 + 0.75 * len(text.split()) / mean))
            assert search.scores(query).get(i, 0.0) == pytest.approx(wanted), (query, text)


def test_the_best_passages_are_shown_with_their_places(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    long = " ".join(f"word{i}" for i in range(70))
    (tmp_path / "deep" / "notes.md").write_text(f"# Owls\n\nOwls hunt at night.\n\n\n{long}\nAn OWL is a bird.\n")
    (tmp_path / "other.txt").write_text("Nothing of the kind.")
    (tmp_path / "picture.png").write_bytes(b"\x89\xff")
    search = Search(tmp_path, words=50, results=2)
    assert [(p.place, len(p.text.split())) for p in search.passages] == [
        ("deep/notes.md:1", 6), ("deep/notes.md:6", 50), ("deep/notes.md:6", 25), ("other.txt:1", 4),
    ]  # fmt: skip
    assert search.search("owls") == "deep/notes.md:1\n# Owls\n\nOwls hunt at night."
    assert (
        search.search("bird word3 nothing").count("\n\n") == 1
        and search.search("zebra") == "no passage has any of these words"
    )
    with pytest.raises(ToolError, match="the query has no words"):
        search.search("?!")


def test_what_cannot_be_searched(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        Search(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"has no text in files named \*\.txt, \*\.md"):
        Search(tmp_path)
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8 text"):
        Search(tmp_path)
