"""A text with its formulas, words and numbers told apart, and the values in it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlkit.verifier.algebra import MAX_TEXT
from rlkit.verifier.units import LARGE, UNITS, continues, unit_of

MAX_RUN = 400  # characters of mathematics outside of formulas
_BRACES = re.compile(
    r"\\(?:boxed|fbox)\s{0,3}(?:(\{)|([-+\u2212\u2013]?(?:\\[dt]?frac\s?(?:\d\d|\{[^{}$]{1,40}\}\{[^{}$]{1,40}\})|\\sqrt\s?(?:\d|\{[^{}$]{1,40}\})"
    r"|[0-9A-Za-z][^\s$.,;)\\{}]*(?:\.\d+)?|\([^()$\n]{1,60}\))))|\\[{}]|[{}]"
)
_OPENING = re.compile(r"\$\$|(?<!\\)\\[\[(]|(?<!\\)\$")
_INLINE = re.compile(r"\$(?:(?=\S)((?:\\.|[^$\\\n]){1,600}?)(?<!\s)|[ \t]((?:\\.|[^$\\\n]){1,600}?)[ \t])\$(?!\d)")
_CLOSED_BY = {"$$": "$$", "\\[": "\\]", "\\(": "\\)"}
_SIGNS = "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⁰¹²³⁴-⁹ⁿ₀-₉πθαβγλφω"  # letters and digits to Unicode, but no words
_ENVIRONMENT = r"\\begin\{(?P<env>[A-Za-z]{1,12})\*?\}.{0,600}?\\end\{(?P=env)\*?\}"
_KEEP = rf"(?P<keep>{_ENVIRONMENT}|\\(?:text|mathrm|mathbf|textbf|mathbb|mbox|operatorname)\s?\{{[^{{}}]{{0,80}}\}}|\\[A-Za-z]+|\\.)"
_LABEL = (
    r"(?:steps?|figures?|fig|footnotes?|equations?|eq|questions?|problems?|exercises?|cases?|parts?|pages?|sections?|chapters?|tables?|theorems?"
    r"|lemmas?|examples?|methods?|lines?|rows?|columns?|grades?|version)"
)
_MEASURES = "|".join(sorted((name for name in (*UNITS, "units", "unit") if len(name) > 1), key=len, reverse=True))
_POWER = r"(?:\^(?:[23]|\{[23]\})|[\u00b2\u00b3])"
_WORDS = re.compile(
    _KEEP
    + rf"|(?P<label>(?<![\w\\]){_LABEL}\.?\s+\(?\d[\d.]*\)?(?!\w))"
    + rf"|(?P<power>(?<![A-Za-z\\])(?:(?<=\d )m|{_MEASURES}){_POWER}(?![\w^]))"
    + r"|(?P<cjk>[\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]+)"
    + rf"|(?P<digits>\d(?:[\d,]*\d)?(?:\.\d+)?)(?P<after>(?:(?![{_SIGNS}])\w)*(?:-[^\W\d_]\w*)*)(?:{_POWER})?"
    + rf"|(?P<letters>(?![{_SIGNS}])"
    + rf"[^\W\d_](?:(?![{_SIGNS}])[^\W_]|['’](?=[^\W\d_]))*"
    + r"(?:-(?=[^\W\d_][^\W\d_])[^\W_]+|_(?=[^\W\d_]{2})\w+)*)",
    re.DOTALL | re.IGNORECASE,
)
_NAMES = frozenset("sin cos tan cot sec csc log ln exp sqrt pi arcsin arccos arctan mod gcd lcm".split())
_ORDINALS = ("st", "nd", "rd", "th")
_RUN = re.compile(
    rf"(?:{_ENVIRONMENT}|\\(?:text|mathrm|mathbf|textbf|mathbb|mbox|operatorname)\s?\{{[^{{}}]{{0,80}}\}}|\\[A-Za-z]+|\\."
    r"|\$?\d[\d,]*(?:\.\d+)?|[A-Za-z]+|[-+*/=<>^_(){}\[\]|!,;:.%$&~'′°√π∞≤≥≠±×·⋅÷∪∩∈θα∅−–≈€£]"
    rf"|[{_SIGNS}⁻]|[ \t\u00a0\u202f\u2009]+(?=[^\s\x00\x01]))+",
    re.DOTALL,
)
_UNIT_WORDS = re.compile(
    r"[\s\x02]*((?:[A-Za-z]+\.?(?:\s?\^\s?\{?[23]\}?|²|³)?)(?:[ ]?(?:/|[ ])[ ]?[A-Za-z]+(?:\^\{?[23]\}?|²|³)?){0,3})"
)
_FIRST_UNIT = re.compile(r"\s?([A-Za-z]{1,12})\.?\s{0,2}(,|,?\s?and\b|&)?\s?")
_SECOND_UNIT = re.compile(r"[\s\x02]{0,4}([A-Za-z]{1,12})\b")
_END_OF_SENTENCE = re.compile(
    r"\n|\\end\{(?:align|equation|gather|multline|aligned|eqnarray)\*?\}(?=\s+[A-Z])|[.!?](?=[\s\"'”’)\x02]|$)|[。！？]"
)
_NEXT = re.compile(r"[ \t]+(?=[A-Z])")  # after a displayed formula
INTRODUCED = re.compile(
    r"(?i)^\s*\\(?:text|mbox|textbf|mathrm)\s?\{[^{}]{0,80}?(?:\b(?:is|are|was|were|equals|has|have|had|gets?|makes?|needs?|takes?|costs?|pays?|earns?)|[:=])"
    r"\s*\}\s*(?=\S)"
)
# two stars or underlines that are no power and no part of a word
EMPHASIS = re.compile(r"(?<![\w)}*])\*{2,3}|\*{2,3}(?![\w({\\*])|(?<!\w)__|__(?!\w)|`")
# a dash before a number that follows nothing it could be taken from is a minus; "5 \u2013 7" and "5\u20137" are a range
DASH = re.compile(r"(?<![\w)}\]])(?<![\d)}\]$][ ])[\u2013\u2014](?=\d|\.\d|\\[dt]?frac)")
_ROW = re.compile(r"^[ \t]*\|.*\|[ \t]*$", re.MULTILINE)  # of a table
# a parenthesis with words is beside the point
_ASIDE = re.compile(
    r"(?<=\S)[ ]\([^()\n\x01$\\]{0,200}?(?<![A-Za-z])(?!sqrt|sin|cos|tan|log|base)[A-Za-z]{3,30}(?:[^()\n]|\([^()\n]{0,40}\)){0,200}\)"
    r"|(?<=[\d\x01)}]),[ ]or[ ](?:about|approximately|roughly)[ ][\d.,]{1,20}(?:[ ]?%)?(?![\w.]*\d)"
    r"|(?<=\d)[ ]\((?:[≈~=]\s?)?-?[\d.,]+\s?%\)"
)
_JOINS = re.compile(r"\s*(?:,|;|,?\s*(?:and|or|und|et|y|oder|ou|o|和|或))\s*")
_RANGES = re.compile(r"\s*(?:to|through|–|-)\s*")
_NO_SINGLE = {"in", "a", "I", "m", "s", "g", "h", "l", "day", "days", "min"}


def formulas(text: str) -> list[tuple[int, int, str]]:
    r"""``(start, end, content)`` of what stands in ``$...$``, ``$$...$$``, ``\(...\)`` and ``\[...\]``; $5 is no formula."""
    out: list[tuple[int, int, str]] = []
    open_ended: set[str] = set()  # that do not close any more
    at = 0
    while (m := _OPENING.search(text, at)) is not None:
        at = m.end()
        mark = m[0]
        if mark == "$":
            inline = _INLINE.match(text, m.start())
            if inline is not None:
                out.append((m.start(), inline.end(), inline[inline.lastindex or 0].strip()))
                at = inline.end()
        elif mark not in open_ended:
            end = text.find(_CLOSED_BY[mark], at)
            if end < 0:
                open_ended.add(mark)
            elif text[at:end].strip():
                out.append((m.start(), end + 2, text[at:end].strip()))
                at = end + 2
    return out


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""``(start, end, content)`` of all complete boxes, by start, the last first; ``\boxed -5`` is one, too. One pass over the text."""
    starts = [k for k in (text.find("\\boxed"), text.find("\\fbox")) if k >= 0]
    if not starts:
        return []
    out: list[tuple[int, int, str]] = []
    open_braces: list[tuple[int, int] | None] = []  # start and content of a box, None for another brace
    for m in _BRACES.finditer(text, min(starts)):
        if m[1]:
            open_braces.append((m.start(), m.end()))
        elif m[2]:
            out.append((m.start(), m.end(), m[2][: 8 * MAX_TEXT]))
        elif m[0] == "{":
            open_braces.append(None)
        elif m[0] == "}" and open_braces and (box := open_braces.pop()) is not None:
            out.append((box[0], m.end(), text[box[1] : m.start()].strip()[: 8 * MAX_TEXT]))
    return sorted(out, reverse=True)


@dataclass(frozen=True)
class Group:
    """A value in a text: neighbouring formulas or numbers joined; ``formula``: more than digits."""

    start: int
    end: int
    text: str
    formula: bool


class Passage:
    """A text with its formulas, words and numbers told apart; all strings have its length, so that positions agree."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.formulas = [(a, b, re.sub(r"(?<!\\)[.,;:\s]+$", "", INTRODUCED.sub("", c))) for a, b, c in formulas(text)]
        shadow = list(text)
        for start, end, _ in self.formulas:
            shadow[start:end] = "\x01" * (end - start)
        hidden = "".join(shadow)
        self.plain = EMPHASIS.sub(lambda m: "\x02" * len(m[0]), hidden)
        self.plain = _ROW.sub(lambda m: m[0].replace("|", "\x00"), self.plain)
        self.masked = _WORDS.sub(_mask, _ASIDE.sub(lambda m: "\x00" * len(m[0]), self.plain))

    def sentences(self) -> list[tuple[int, int]]:
        """Spans of sentences and lines, in order."""
        out, start = [], 0
        displays = [
            m
            for _, b, _ in self.formulas
            if self.text[b - 2 : b] in ("$$", r"\]") and (m := _NEXT.match(self.plain, b))
        ]
        for m in sorted([*_END_OF_SENTENCE.finditer(self.plain), *displays], key=lambda m: m.start()):
            if m[0] == "." and re.search(r"(?:^|\n)[\s\x02]*\d{1,2}$", self.plain[max(0, m.start() - 12) : m.start()]):
                continue  # the number of a list's line
            if self.plain[start : m.end()].strip(" \t\n.\x02"):
                out.append((start, m.end()))
            start = m.end()
        if self.plain[start:].strip(" \t\n.\x02"):
            out.append((start, len(self.text)))
        return out

    def groups(self, start: int, end: int) -> list[Group]:
        """The values between two positions, in order."""
        begin = start
        marker = re.match(
            r"[\s\x02]*(?:#{1,6}\s|[-*•]\s|>\s|\(?\d{1,2}[.)]\s+(?=\S)|\(?[a-z]\)\s|A:\s)+", self.plain[start:end]
        )
        if marker and marker.end() < end - start:
            begin = start + marker.end()
        found = [Group(a, b, c, _says(c)) for a, b, c in self.formulas if begin <= a and b <= end]
        for m in _RUN.finditer(self.masked, begin, end):
            shout = m.end() == end and m[0].rstrip().endswith("!") and begin < m.start()
            found += _trimmed(m[0].rstrip(" !") if shout else m[0], m.start())  # "we get 12!" is no factorial
        found.sort(key=lambda g: g.start)
        out: list[Group] = []
        for g in found:
            if out and (goes_on := self._goes_on(out[-1], g, end)):
                last = out.pop()
                g = Group(last.start, g.end, goes_on, last.formula or g.formula)
            elif out and _JOINS.fullmatch(self.plain[out[-1].end : g.start].replace("\x02", " ")):
                last = out.pop()
                g = Group(last.start, g.end, f"{last.text}, {g.text}", last.formula or g.formula)
            elif out and _RANGES.fullmatch(self.plain[out[-1].end : g.start].replace("\x02", " ")):
                last = out.pop()
                g = Group(last.start, g.end, f"{last.text} to {g.text}", last.formula or g.formula)
            out.append(g)
        return out

    def _goes_on(self, one: Group, two: Group, end: int) -> str:
        """The text of two values that are one quantity, without its last unit (3 hours and 20), or nothing."""
        count = re.sub(r"[\sA-Za-z]+$", "", one.text)  # of a unit of one letter: 2 m
        between = f"{one.text[len(count) :]}{self.plain[one.end : two.start]}".replace("\x02", " ")
        large = _FIRST_UNIT.fullmatch(between)
        small = _SECOND_UNIT.match(self.plain, two.end, end)
        if large is None or small is None or not re.fullmatch(r"\d[\d,]*(?:\.\d+)?", two.text):
            return ""
        return f"{count}{between}{two.text}" if continues(large[1], small[1], two.text, large[2] == ",") else ""

    def titled(self, start: int, at: int) -> bool:
        """Whether a position stands in a heading that begins at ``start``."""
        return re.match(r"\s*#{1,6}\s", self.plain[start:at]) is not None

    def with_unit(self, g: Group, end: int) -> str:
        """A value with the unit that follows it as a word."""
        after = _UNIT_WORDS.match(self.plain, g.end, end)
        if after is None:
            return g.text
        words = after[1].split()
        for n in range(min(3, len(words)), 0, -1):
            unit = " ".join(words[:n]).rstrip(".")
            if (
                unit in ("percent", "degrees", "degree")
                or unit in LARGE
                or (
                    unit_of(unit.replace("²", "^2").replace("³", "^3")) is not None
                    and not (unit in _NO_SINGLE and n < len(words))
                )
            ):
                return f"{g.text} {unit}"
        return g.text

    def unit_mask(self, g: Group, end: int) -> str:
        """How the unit after a value looks among the masked words; empty if there is none."""
        unit = self.with_unit(g, end).removeprefix(g.text).strip()
        at = self.text.find(unit, g.end, end) if unit else -1
        return self.masked[g.end : at + len(unit)] if at >= 0 else ""

    def bold(self, start: int, end: int) -> str | None:
        """The last emphasised words between two positions."""
        found = None
        for found in re.finditer(r"\x02\x02([^\x02\n]{1,80})\x02\x02", self.plain[start:end]):  # noqa: B007
            pass
        return self.text[start + found.start(1) : start + found.end(1)].strip() if found else None


def _mask(m: re.Match[str]) -> str:
    """Words as NUL characters, so that values end at them; letters and names of functions stay."""
    whole = m[0]
    if m["keep"]:
        return whole
    if m["digits"]:
        after = m["after"]
        if not after:
            return whole
        if re.fullmatch(r"[eE]-?\d+", after):
            return whole
        if (
            "-" in after
            or any(c.isdigit() or c == "_" for c in after[1:])
            or after.lower() in _ORDINALS
            or after[0].isdigit()
        ):
            return "\x00" * len(whole)
        if (len(after) <= 2 and after.isascii() and after.lower() not in UNITS) or after in _NAMES:
            return whole  # 3x, 2ab, 5sqrt
        if after.lower() in UNITS or not after.isascii():
            return m["digits"] + "\x00" * (len(whole) - len(m["digits"]))  # 5cm: the unit is read from the text
        return "\x00" * len(whole)
    letters = m["letters"]
    if letters == "I" and re.match(r"\s+[a-z]{2}", m.string[m.end() : m.end() + 8]):
        return "\x00"  # I got 5
    if letters and ((len(letters) == 1 and letters.isascii()) or letters.lower() in _NAMES):
        return whole
    return "\x00" * len(whole)


def _says(content: str) -> bool:
    """Whether a formula says more than a name."""
    bare = re.sub(r"_\{?\w+\}?|\\(?:left|right|displaystyle|,|;|!|quad)|[\s{}]", "", content)
    return bool(
        re.search(r"\d|\\(?:frac|sqrt|pi|infty|emptyset|varnothing|text|math|begin|pm)|[=<>]|\\[lg]e|[-+/^]|∞|π", bare)
    )


def _trimmed(run: str, at: int) -> list[Group]:
    """The value in a run of mathematics, or nothing: without the punctuation, brackets and articles that belong to the sentence."""
    start, end = 0, len(run)
    if end > MAX_RUN or re.match(r"[:\s]*[<>]\s?[\d.]", run):
        return []
    while True:
        before = start, end
        while (
            start < end
            and run[start] in " \t\u00a0\u202f\u2009=:,;.!'*%~&_^)]}|≈–>"
            and not (run[start] == "." and run[start + 1 : start + 2].isdigit())
            and not (run[start] == "]" and "[" in run[start:end])
        ):
            start += 1
        while (
            start < end
            and run[end - 1] in " \t\u00a0\u202f\u2009=:,;.?*~&([{<>+/^_'≈–|-"
            and run[end - 2 : end] not in (r"\,", r"\;")
        ):
            end -= 1
        article = re.match(r"(?:[aAI]|\\[ ,;])\s+(?=[\d\\(])", run[start:end])
        if article:
            start += article.end()
        tail = re.search(r"(?<=[\d)}\s])\s+(?:[aAI]|,)$", run[start:end])
        if tail:
            end = start + tail.start()
        for opening, closing in ("([", ")]"), ("{", "}"):  # half-open intervals close with the other bracket
            text = run[start:end]
            surplus = sum(text.count(c) for c in opening) - sum(text.count(c) for c in closing)
            if surplus > 0 and text[:1] in opening:
                start += 1
            elif surplus < 0 and text[-1:] in closing:
                end -= 2 if text[-2:-1] == "\\" else 1
        if (start, end) == before:
            break
    text = run[start:end]
    pieces = list(re.finditer(r"(?<=\d)[ \t\u00a0\u202f\u2009]+(?=\d)", text))
    if pieces and not re.search(r"\d{1,3}(?:[ \u00a0\u202f\u2009]\d{3})+(?!\d)|\d \d+/\d+", text):
        start += pieces[-1].end()
        text = run[start:end]
    if text.startswith("(") and text.endswith(")") and re.fullmatch(r"\(\d{1,2}\)", text):
        text, start, end = text[1:-1], start + 1, end - 1
    if not re.search(r"\d|\\[A-Za-z]|[∞π√∅½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]", re.sub(r"_\{?\w+\}?", "", text)) and not re.fullmatch(
        r"\(?[A-J]\)?|[A-Za-z]\s?=\s?.+", text
    ):
        return []
    formula = bool(
        re.search(
            r"\\(?:[dt]?frac|sqrt|pi|infty|begin|cdot|times|binom|pm|cup|left|circ)|[A-Za-z]\s?=|[∞π√½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]",
            text,
        )
    )
    return [Group(at + start, at + end, text, formula)]
