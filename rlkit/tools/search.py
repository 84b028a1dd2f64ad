"""A search over local files: the passages that say most of what was asked."""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlkit.errors import ConfigError, DataError
from rlkit.tools.using import ToolError

K1, B = 1.5, 0.75  # how soon a word that is repeated says nothing more; how much a long passage counts less


@dataclass(frozen=True)
class Passage:
    """``place`` is its file, within the folder, and the line at which it begins."""

    place: str
    text: str


class Search:
    """Files of a folder, read once, and the tool :meth:`search` on them, which all episodes may share.

    A passage's score is ``sum_t idf(t) f (k1 + 1) / (f + k1 (1 - b + b length / mean length))`` over the words ``t`` of the query, of which
    the passage has ``f``; ``idf(t) = log(1 + (N - n + 1/2) / (n + 1/2))`` for ``n`` of ``N`` passages that have the word, and is never
    negative. Words are compared without case, and as they are written (no stems).

    Attributes:
        folder: with all folders below it. files: which of its files, as patterns of names. words: of a passage, which is some paragraphs,
            or a part of a long one. results: passages that a search shows.

    Raises:
        ConfigError: there is no such folder, or no such file in it.
        DataError: a file that is not UTF-8 text.

    Source: BM25, Robertson and Zaragoza, The Probabilistic Relevance Framework (from memory), with Lucene's idf.
    """

    def __init__(
        self, folder: str | Path, *, files: Sequence[str] = ("*.txt", "*.md"), words: int = 120, results: int = 3
    ) -> None:
        folder = Path(folder)
        if not folder.is_dir():
            raise ConfigError(f"tools.Search: there is no folder {str(folder)!r}.")
        found = sorted({path for pattern in files for path in folder.rglob(pattern) if path.is_file()})
        self.passages = [p for path in found for p in _passages(path, path.relative_to(folder).as_posix(), words)]
        if not self.passages:
            raise ConfigError(
                f"tools.Search: {str(folder)!r} has no text in files named {', '.join(files)}. Say which: files=('*.rst',)."
            )
        self.results = results
        self._having = defaultdict[str, list[tuple[int, int]]](list)  # word -> (number of a passage, how often)
        lengths = []
        for i, passage in enumerate(self.passages):
            counts = Counter(_words(passage.text))
            lengths.append(counts.total())
            for word, n in counts.items():
                self._having[word].append((i, n))
        mean = sum(lengths) / len(lengths)
        self._longer = [K1 * (1 - B + B * n / max(mean, 1.0)) for n in lengths]

    def scores(self, query: str) -> dict[int, float]:
        """The score of each passage that has a word of the query, by its number."""
        scores, count = defaultdict[int, float](float), len(self.passages)
        for word in _words(query):
            having = self._having.get(word, [])
            rare = math.log(1 + (count - len(having) + 0.5) / (len(having) + 0.5))
            for i, n in having:
                scores[i] += rare * n * (K1 + 1) / (n + self._longer[i])
        return scores

    def search(self, query: str) -> str:
        """Searches a collection of texts, and shows the passages that fit best with the file and line of each.

        Args:
            query: the words to look for.
        """
        if not _words(query):
            raise ToolError("the query has no words")
        scores = self.scores(query)
        best = heapq.nsmallest(self.results, scores, key=lambda i: (-scores[i], i))
        shown = "\n\n".join(f"{self.passages[i].place}\n{self.passages[i].text}" for i in best)
        return shown or "no passage has any of these words"


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _passages(path: Path, name: str, words: int) -> Iterator[Passage]:
    """A file in parts of at most so many words; paragraphs stay whole where they can."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(
            f"tools.Search: {path} is not UTF-8 text. Save it as UTF-8, or leave it out (`files`)."
        ) from None
    held, line, size = list[str](), 0, 0
    for paragraph in re.finditer(r"\S(?:.|\n(?!\s*\n))*", text):
        for part in re.finditer(rf"(?:\S+\s*){{1,{words}}}", paragraph[0]):
            n = len(part[0].split())
            if held and size + n > words:
                yield Passage(f"{name}:{line}", "\n\n".join(held))
                held, size = [], 0
            if not held:
                line = 1 + text.count("\n", 0, paragraph.start() + part.start())
            held.append(part[0].strip())
            size += n
    if held:
        yield Passage(f"{name}:{line}", "\n\n".join(held))
