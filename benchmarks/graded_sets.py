r"""Four further sets of graded answers, each written before the verifier had seen one of its kind; what a first run missed was mended after it.

| set | first run | wrong ones accepted |
|---|---|---|
| 1 | 97.4 % | 1 of 2,303 |
| 2 | 96.4 % | 2 of 2,524 |
| 3 | 97.0 % | 6 of 1,976 |
| 4 | 99.4 % | 1 of 1,862 |

Sets 1 and 2 were run before anything was mended, 3 after what 1 and 2 had shown, 4 after 3: the last row is what to expect of an answer in a
style that nobody thought of. (Sets 3 and 4 held references of MATH, too.)

``graded_sets/`` holds the data, one JSON value a line: ``answers`` (a reference, right and wrong ways to write it in LaTeX and in plain text),
``styles`` (how a model ends, with ``<latex>`` or ``<plain>`` for the answer, ``<work>`` for lines of working and ``<number>`` for
another number; ``only`` and ``never`` name kinds of answers), ``work`` (such lines) and ``texts`` (whole responses with their grades). A wrong answer
comes twice for each right one, and often behind the right one among the working.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from graded import Case, references

DATA = Path(__file__).with_suffix("")
SETS = (1, 2, 3, 4)


def _lines(name: str) -> list[Any]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def cases(
    seed: int = 0, each: int = 12, files: Iterable[str | Path] = (), sets: Iterable[int] = SETS
) -> Iterator[Case]:
    """``each`` right and twice as many wrong answers in every style of the sets, and their whole texts; the same for the same seed."""
    r = random.Random(seed)
    answers, works, styles, texts = (_lines(name) for name in ("answers", "work", "styles", "texts"))
    kinds: dict[str, list[dict[str, Any]]] = {}
    for a in answers:
        kinds.setdefault(a["kind"], []).append(a)
    for a in references(files, 150, r):
        row = {"kind": a.kind, "gold": a.gold, "latex": a.right, "wrong latex": a.wrong, "plain": (), "wrong plain": ()}
        kinds.setdefault(a.kind, []).append(row)
    for number in sets:
        for style in (s for s in styles if s["set"] == number):
            slot = "latex" if "<latex>" in style["text"] else "plain"
            fit = [k for k in kinds if k in style.get("only", kinds) and k not in style.get("never", ())]
            fit = [k for k in fit if kinds[k][0][slot] and (k != "letter1" or "only" in style)]
            r.shuffle(fit)
            for k in range(each):
                a = r.choice(kinds[fit[k % len(fit)]])
                for right in (True, False, False):
                    written = r.choice(a[slot] if right else a[f"wrong {slot}"])
                    hidden = r.choice([*a["latex"], *a["plain"]]) if not right and r.random() < 0.4 else None
                    text = _filled(style["text"], works, hidden, r).replace(f"<{slot}>", written)
                    yield Case(a["kind"], style["style"], f"set {number}", a["gold"], text, right)
        for t in (t for t in texts if t["set"] == number):
            yield Case("whole texts", "whole texts", f"set {number}", t["gold"], t["text"], t["right"])


def _filled(style: str, works: list[str], hidden: str | None, r: random.Random) -> str:
    """A style with working in it, of which one line may hold the right answer; the place of the answer stays."""

    def work(_: re.Match[str]) -> str:
        lines = r.sample(works, r.randint(1, 3))
        for letter, low, high in (("a", 2, 40), ("b", 41, 99), ("c", 100, 400)):
            lines = [line.replace(f"<{letter}>", str(r.randint(low, high))) for line in lines]
        if hidden is not None:
            tried = f"One could try ${hidden}$ first." if "$" not in hidden else "One could try that first."
            lines.insert(r.randint(0, len(lines) - 1), tried)
        return " ".join(lines)

    return re.sub("<number>", lambda _: str(r.randint(1003, 1997)), re.sub("<work>", work, style))
