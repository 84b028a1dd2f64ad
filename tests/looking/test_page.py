"""The report: one page, whole, which asks for nothing else and shows what the files say."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import rlkit as rk
from rlkit.cli import main
from rlkit.looking import page
from rlkit.looking.runs import see
from tests.looking.made import make_run, response, rows

VOID = {"meta", "input", "br"}


class Reader(HTMLParser):
    """Whether elements are closed in their order, and what is in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        name = next((a["id"] for t, a in reversed(self.seen) if t == "script" and "id" in a), None)
        if self.open and self.open[-1] == "script":
            self.data[str(name if '"rows"' in data else "code")] = data

    def text(self, tag: str) -> int:
        return sum(t == tag for t, _ in self.seen)


def test_it_is_one_whole_page_that_asks_for_nothing(tmp_path: Path) -> None:
    path = rk.report_runs(make_run(tmp_path, "run"))
    text = path.read_text()
    read = Reader(text)
    assert path == tmp_path / "run" / "report.html" and read.text("svg") > 10
    asks = [a for _, a in read.seen for key in ("src", "href", "action") if not (a.get(key) or "#").startswith("#")]
    assert asks == [] and not re.search(r"url\(|@import|fetch\(|XMLHttp", text)
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}
    ids = [a["id"] for _, a in read.seen if "id" in a]
    assert len(ids) == len(set(ids))
    asked = set(re.findall(r"by\(\"(\w+)\"\)", (page.HERE / "page.js").read_text()))
    assert asked <= set(ids), "what the script asks for is on the page"


def test_what_people_wrote_cannot_become_part_of_the_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "run")
    evil = "</script><script>alert(1)</script><b>&"
    rows(folder / "rollouts.jsonl", [response(1, "p", 1.0, evil)])
    rows(folder / "eval_samples.jsonl", [response(s, "p", float(s), evil, sample="fixed") for s in (0, 4)])
    read = Reader(rk.report_runs(folder).read_text())
    assert read.text("script") == 2 and read.text("b") == 0
    assert json.loads(read.data["transcripts"])["rows"][0]["said"] == evil


def test_the_numbers_are_those_of_the_files(tmp_path: Path) -> None:
    text = rk.report_runs(make_run(tmp_path, "run", steps=8)).read_text()
    assert "8 of 8 steps" in text and "0.250 ± 0.100" in text and "0.750 ± 0.100" in text
    assert "1 are solved at step 8 that were not at step 0" in text and "warning (truncated, step 5)" in text
    assert '<code title="mean reward of the step&#x27;s responses">reward/mean</code>' in text
    assert "c.yaml:4" in text and "command line" in text and "rlkit train c.yaml seed=1" in text
    assert "not at its end" in rk.report_runs(make_run(tmp_path, "new", ended=False)).read_text()


def test_several_runs_are_compared_with_the_first(tmp_path: Path) -> None:
    folders = [make_run(tmp_path, "a"), make_run(tmp_path, "b", seed=0, lr=1e-4)]
    text = rk.report_runs(folders, tmp_path / "both.html").read_text()
    Reader(text)
    assert "b − a" in text and "+0.000" in text and "0.141" in text, "2 sqrt(0.05² + 0.05²)"
    assert "0 more solved, 0 no longer; p = 1" in text and "learner.lr" in text
    seeds = [make_run(tmp_path, f"c{k}", seed=k, lr=1e-2) for k in (1, 3)]
    text = rk.report_runs([folders[0], *seeds], tmp_path / "three.html").read_text()
    assert "c1 − a" in text and "+0.020" in text and "0.77 " not in text


def test_as_many_responses_as_have_room_evenly_over_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path, "run")
    rows(folder / "rollouts.jsonl", [response(s, "p", 0.0, "x" * 100) for s in range(1, 101)])
    assert len(page.transcripts([see(folder)])["rows"]) == 103
    monkeypatch.setattr(page, "ROOM", 10_000)
    kept = page.transcripts([see(folder)])
    steps = [r["step"] for r in kept["rows"] if r["kind"] == "train"]
    assert (
        kept["all"] == 103
        and steps[-1] == 100
        and 20 < len(steps) < 30
        and {b - a for a, b in itertools.pairwise(steps[1:-1])} == {4}
    )
    assert "of 103" in page.page([see(folder)])


def test_the_program_writes_it_and_shows_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path, "run")
    assert main(["report", str(folder), "--out", str(tmp_path / "r.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'r.html'}\n" and (tmp_path / "r.html").is_file()
    assert main(["watch", str(folder), "--once"]) == 0
    assert "step 4 of 4" in capsys.readouterr().out


def test_a_report_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "run")
    (folder / "report.html").mkdir()
    said: list[str] = []
    page.report_of(folder, said.append)
    assert (
        len(said) == 1
        and said[0].startswith("warning: report.html could not be written (")
        and f"rlkit report {folder}" in said[0]
    )
