r"""Where a response says its answer.

The ways, in the order in which a run tries them (``EXTRACT``); the first that finds a value decides:

1. ``boxed``: the last complete ``\boxed{...}``, also ``\boxed 5``, and of ``\boxed{\text{The answer is } 5}`` the value;
2. ``tag``: what stands in the last ``<answer>...</answer>``;
3. ``line``: what follows the last "Answer:", "answer is" (in a dozen languages), heading "Answer" or table cell "Answer"; of a sentence
   ("Final answer: the number of eggs is 12.") the value in its last words;
4. ``hash``: what follows the last ``####``;
5. ``closing``: the last formula of the text, in ``$...$``, ``\(...\)``, ``\[...\]``, ``$$...$$`` or as bare LaTeX; before that a bold value
   or, in a sentence that concludes (So, Therefore, ...) or ends the text, a number or word at its end, if it stands later.
   Names (``$x$``), conditions ("for ``$n > 0$``", "where ``$k = 2$``"), what is denied or bounded ("not 5", "at least 5"), questions and
   checks of the result are not it.

And only where the data says so: ``number``: the last formula or number of the text, whatever stands around it; ``whole``: all of the text.
A number is one only if it stands on its own: not in ``x2``, ``H2O``, ``3rd``, ``2-step``, "step 3" or "(4)" after "equation".

A response ends at its first end-of-turn token (``<|im_end|>``, ``</s>``, ...); what follows ``</think>`` (or opens the last channel) is
searched before the whole. Everything is bounded: boxes are found in one pass over the text, formulas and sentences in its last 8,000
characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rlkit.errors import ConfigError
from rlkit.verifier.algebra import MAX_TEXT
from rlkit.verifier.reader import read
from rlkit.verifier.units import LARGE, UNITS, unit_of
from rlkit.verifier.values import Items, Ratio, Scalar, Text, Value

EXTRACT = ("boxed", "tag", "line", "hash", "closing")
KINDS = ("boxed", "tag", "line", "hash", "closing", "number", "whole")
MAX_RESPONSE = 1_000_000  # characters searched, from the end
TAIL = 8_000  # characters in which formulas and sentences are looked for
MAX_RUN = 400  # characters of mathematics outside of formulas
BEFORE = 120  # characters before a value that say what it is
SENTENCES = 40  # from the end, in which the closing value may stand


@dataclass(frozen=True)
class Found:
    """An answer as written, and the way (one of ``KINDS``) that found it."""

    text: str
    way: str


# ---------------------------------------------------------------------------------------------------------------- the whole response

_END = re.compile(
    r"<[|｜](?:im_end|eot_id|eom_id|eot|end_of_text|endoftext|return|eos|END_OF_TURN_TOKEN|END_RESPONSE|end▁of▁sentence|end_of_sentence)[|｜]>"
    r"|</s>|<end_of_turn>|<turn\|>|<eos>|<pad>|<\|end\|>(?!\s*<\|start\|>)"
)
_CHANNEL = re.compile(r"<\|channel\|>final<\|message\|>")


def _parts(response: str) -> Iterator[str]:
    """What follows the thinking, then everything; both up to the end of the turn."""
    text = response[-MAX_RESPONSE:].lstrip()
    end = next((m.start() for m in _END.finditer(text) if m.start()), None)
    text = text[:end]
    thought = text.rfind("</think>")
    channel = None
    for channel in _CHANNEL.finditer(text):  # noqa: B007
        pass
    if channel is not None:
        yield text[channel.end() :]
    elif thought >= 0:
        yield text[thought + len("</think>") :]
    yield text


# ---------------------------------------------------------------------------------------------------------------------------- boxes

_BRACES = re.compile(
    r"\\(?:boxed|fbox)\s{0,3}(?:(\{)|([-+]?(?:\\[dt]?frac\s?(?:\d\d|\{[^{}$]{1,40}\}\{[^{}$]{1,40}\})|\\sqrt\s?(?:\d|\{[^{}$]{1,40}\})"
    r"|[0-9A-Za-z][^\s$.,;)\\{}]*(?:\.\d+)?|\([^()$\n]{1,60}\))))|\\[{}]|[{}]"
)


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


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{...}`` (braces may nest; of nested boxes the innermost), or None."""
    return next((content for _, _, content in boxes(text[-MAX_RESPONSE:])), None)


def _boxed(text: str) -> str | None:
    content = last_boxed(text)
    if content is None or not _PROSE.search(content):
        return content
    value = value_of(content)
    ends = value is not None and content.rstrip(" .$}").endswith(
        value.rstrip(" .$}")
    )  # words before it are dropped, none after it
    return value if ends else content


# -------------------------------------------------------------------------------------------------------- formulas, numbers and words

_OPENING = re.compile(r"\$\$|(?<!\\)\\[\[(]|(?<!\\)\$")
_INLINE = re.compile(r"\$(?:(?=\S)((?:\\.|[^$\\\n]){1,600}?)(?<!\s)|[ \t]((?:\\.|[^$\\\n]){1,600}?)[ \t])\$(?!\d)")
_CLOSED_BY = {"$$": "$$", "\\[": "\\]", "\\(": "\\)"}


def _formulas(text: str) -> list[tuple[int, int, str]]:
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


def _without_formulas(text: str) -> str:
    """The same length, with formulas covered."""
    shadow = text
    for start, end, _ in _formulas(text):
        shadow = shadow[:start] + "\x01" * (end - start) + shadow[end:]
    return shadow


_SIGNS = "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⁰¹²³⁴-⁹ⁿ₀-₉πθαβγλφω"  # letters and digits to Unicode, but no words
_ENVIRONMENT = r"\\begin\{(?P<env>[A-Za-z]{1,12})\*?\}.{0,600}?\\end\{(?P=env)\*?\}"
_KEEP = rf"(?P<keep>{_ENVIRONMENT}|\\(?:text|mathrm|mathbf|textbf|mathbb|mbox|operatorname)\s?\{{[^{{}}]{{0,80}}\}}|\\[A-Za-z]+|\\.)"
_LABEL = (
    r"(?:steps?|figures?|fig|equations?|eq|questions?|problems?|exercises?|cases?|parts?|pages?|sections?|chapters?|tables?|theorems?"
    r"|lemmas?|examples?|methods?|lines?|rows?|columns?|grades?|version)"
)
_WORDS = re.compile(
    _KEEP
    + rf"|(?P<label>(?<![\w\\]){_LABEL}\.?\s+\(?\d[\d.]*\)?(?!\w))"
    + r"|(?P<cjk>[\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]+)"
    + rf"|(?P<digits>\d(?:[\d,]*\d)?(?:\.\d+)?)(?P<after>(?:(?![{_SIGNS}])\w)*(?:-[^\W\d_]\w*)*)"
    + rf"|(?P<letters>(?![{_SIGNS}])"
    + r"[^\W\d_](?:[^\W_]|['’](?=[^\W\d_]))*(?:-(?=[^\W\d_][^\W\d_])[^\W_]+|_(?=[^\W\d_]{2})\w+)*)",
    re.DOTALL | re.IGNORECASE,
)
_NAMES = frozenset(
    (
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "log",
        "ln",
        "exp",
        "sqrt",
        "pi",
        "arcsin",
        "arccos",
        "arctan",
        "mod",
        "gcd",
        "lcm",
    )
)
_ORDINALS = ("st", "nd", "rd", "th")
_RUN = re.compile(
    rf"(?:{_ENVIRONMENT}|\\(?:text|mathrm|mathbf|textbf|mathbb|mbox|operatorname)\s?\{{[^{{}}]{{0,80}}\}}|\\[A-Za-z]+|\\."
    r"|\$?\d[\d,]*(?:\.\d+)?|[A-Za-z]+|[-+*/=<>^_(){}\[\]|!,;:.%$&~'′°√π∞≤≥≠±×·⋅÷∪∩∈θα∅−–≈€£]"
    rf"|[{_SIGNS}⁻]|[ \t\u00a0\u202f\u2009]+(?=[^\s\x00\x01]))+",
    re.DOTALL,
)
_PROSE = re.compile(r"(?:(?<![\\A-Za-z])|\\text[a-z]{0,2}\s?\{\s?)[A-Za-z]{2,}")
_COPULA = re.compile(
    r"(?i)(?:\b(?:is|are|was|were|be|equals?|to|of|get|gets|gives?|yields?|obtain|have|has|become|becomes|find|at|est|es|ist|lautet|é|è|являе\w+)\b|[:=：是为は])\s*$"
)
_DENIED = re.compile(
    r"(?i)(?:\b(?:not|never|cannot|than|at\s+least|at\s+most|between|under|over|above|below|nearly|almost|maybe|perhaps|possibly|probably"
    r"|either|neither|nor|might|could|may|except|unless|without|instead\s+of|up\s+to|unsure)|n['’]t)\b(?:\s+[\w'’]+){0,3}[\s(]*$"
)
_CONDITION = re.compile(
    r"(?i)\b(?:for|when|where|if|since|because|whenever|assuming|provided|given(?!\s+by))"
    r"(?:\s+[\w'’-]+){0,3}\s*$"
)
# words that make another number of the one they stand before, behind or between
_CHANGED = re.compile(
    r"(?i)\b(?:minus|negative|half|third|quarter|twice|thrice|double|triple|squares?|cubes?|roots?|plus|times|divided|dividing|multiplied|multiply|divide"
    r"|over|out|per|in|by|choose|mod|modulo|remainder|less|more|fewer|exceeds?|none|log|raised|power|product|but|except)\b"
)
_MODIFIED = re.compile(
    r"(?i)\b(?:minus|negative|half|third|quarter|twice|thrice|double|triple|squares?|cubes?|roots?|plus|times|none|exceeds?|but)\b"
    r"(?:\s+(?:of|the|than))*\s*$"
)
_CHANGED_AFTER = re.compile(
    r"(?i)^[\s\x02]*(?:squared|cubed|dozen|factorial|times|more|less|fewer|percent\s+of|of\s+the\s*\d|\+)"
)
_IS = re.compile(
    r"(?i)(?:\b(?:is|are|was|were|be|equals?|gets?|gives?|yields?|have|has|had|makes?|means|needs?|takes?|costs?)\b|[:=,])"
)
_BY = re.compile(
    r"(?i)(?<!given)(?<!\bis)\s\bby\s*$|\bfrom\s*$|(?<!up )(?<!left )(?<!conclude )(?<!end )(?<!ends )(?<!\bus )\bwith\s*$"
    r"|(?:\b(?:factor|multiple|divisor|half|third|quarter|percent|square|root|power)|%)\s+of\s*$|\b(?:which|that)\s+(?:is|are)\s+(?:about|approximately|roughly)\s*$"
)
_PLACE = re.compile(r"(?i)\b(?:at|in|using|from|with|by)\s*$")  # "at x = 2" is a condition, "we arrive at 2" none
_DOUBT = re.compile(
    r"(?i)\b(?:not|maybe|perhaps|possibly|probably|unsure|sure|wrong|incorrect|either|neither|or|but|if|unless|except)\b|\?"
)
_CONCLUDES = re.compile(
    r"(?i)^[\s\W]*(?:so|thus|therefore|hence|consequently|finally|accordingly|overall|ultimately|in\s+(?:conclusion|summary|total|the\s+end|all)"
    r"|as\s+a\s+(?:result|consequence)|(?:and\s+)?that(?:['’]s|\s+is)\s+(?:how|why)|altogether|we\s+(?:conclude|get|find|obtain|have)|this\s+(?:means|gives|leaves|makes|yields)|that\s+(?:means|gives|leaves|makes)|it\s+follows"
    r"|final\s+(?:result|value)|the\s+(?:final\s+)?(?:result|solution|total)|result|conclusion|total|solution"
    r"|donc|ainsi|also|daher|folglich|por\s+lo\s+tanto|portanto|quindi|итак|следовательно|因此|所以|故|よって|따라서)\b"
    r"|^\s*[∴⇒→]|^\W*(?:因此|所以|故|よって|したがって|따라서)"
)
_CHECKS = re.compile(
    r"(?i)^[\s\W]*(?:check(?:ing)?|verif(?:y|ying|ication)|to\s+(?:check|verify|double-check|confirm)|let(?:['’]s|\s+us|\s+me)\s+(?:check|verify|double-check|confirm)"
    r"|(?:we|you|i)\s+(?:can|could)\s+(?:also\s+)?(?:check|verify|confirm)|double-check|sanity\s+check|indeed|note\b|remark|notice|recall|explanation|reasoning|justification|for\s+example)"
)
_UNIT_WORDS = re.compile(
    r"[\s\x02]*((?:[A-Za-z]+\.?(?:\s?\^\s?\{?[23]\}?|²|³)?)(?:[ ]?(?:/|[ ])[ ]?[A-Za-z]+(?:\^\{?[23]\}?|²|³)?){0,3})"
)
_END_OF_SENTENCE = re.compile(r"\n|[.!?](?=[\s\"'”’)\x02]|$)|[。！？]")


_INTRODUCED = re.compile(
    r"(?i)^\s*\\(?:text|mbox|textbf|mathrm)\s?\{[^{}]{0,80}?(?:\b(?:is|are|equals)|[:=])\s*\}\s*(?=\S)"
)
# two stars or underlines that are no power and no part of a word
_EMPHASIS = re.compile(r"(?<![\w)}*])\*{2,3}|\*{2,3}(?![\w({\\*])|(?<!\w)__|__(?!\w)|`")


@dataclass(frozen=True)
class _Group:
    """A value in a text: neighbouring formulas or numbers joined; ``formula``: more than digits."""

    start: int
    end: int
    text: str
    formula: bool


class _Reading:
    """A text with its formulas, words and numbers told apart; all strings have its length, so that positions agree."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.formulas = [
            (a, b, re.sub(r"(?<!\\)[.,;:\s]+$", "", _INTRODUCED.sub("", c))) for a, b, c in _formulas(text)
        ]
        shadow = list(text)
        for start, end, _ in self.formulas:
            shadow[start:end] = "\x01" * (end - start)
        hidden = "".join(shadow)
        self.plain = _EMPHASIS.sub(lambda m: "\x02" * len(m[0]), hidden)
        self.masked = _WORDS.sub(_mask, self.plain)

    def sentences(self) -> list[tuple[int, int]]:
        """Spans of sentences and lines, in order."""
        out, start = [], 0
        for m in _END_OF_SENTENCE.finditer(self.plain):
            if m[0] == "." and re.search(r"(?:^|\n)[\s\x02]*\d{1,2}$", self.plain[max(0, m.start() - 12) : m.start()]):
                continue  # the number of a list's line
            if self.plain[start : m.end()].strip(" \t\n.\x02"):
                out.append((start, m.end()))
            start = m.end()
        if self.plain[start:].strip(" \t\n.\x02"):
            out.append((start, len(self.text)))
        return out

    def groups(self, start: int, end: int) -> list[_Group]:
        """The values between two positions, in order."""
        begin = start
        marker = re.match(
            r"[\s\x02]*(?:#{1,6}\s|[-*•]\s|>\s|\(?\d{1,2}[.)]\s+(?=\S)|\(?[a-z]\)\s)+", self.plain[start:end]
        )
        if marker and marker.end() < end - start:
            begin = start + marker.end()
        found = [_Group(a, b, c, _says(c)) for a, b, c in self.formulas if begin <= a and b <= end]
        for m in _RUN.finditer(self.masked, begin, end):
            shout = m.end() == end and m[0].rstrip().endswith("!") and begin < m.start()
            found += _trimmed(m[0].rstrip(" !") if shout else m[0], m.start())  # "we get 12!" is no factorial
        found.sort(key=lambda g: g.start)
        out: list[_Group] = []
        for g in found:
            if out and _JOINS.fullmatch(self.plain[out[-1].end : g.start].replace("\x02", " ")):
                last = out.pop()
                g = _Group(last.start, g.end, f"{last.text}, {g.text}", last.formula or g.formula)
            elif out and _RANGES.fullmatch(self.plain[out[-1].end : g.start].replace("\x02", " ")):
                last = out.pop()
                g = _Group(last.start, g.end, f"{last.text} to {g.text}", last.formula or g.formula)
            out.append(g)
        return out

    def with_unit(self, g: _Group, end: int) -> str:
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

    def unit_mask(self, g: _Group, end: int) -> str:
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


_JOINS = re.compile(r"\s*(?:,|;|,?\s*(?:and|or|und|et|y|oder|ou|o|和|或))\s*")
_RANGES = re.compile(r"\s*(?:to|through|–|-)\s*")
_NO_SINGLE = {"in", "a", "I", "m", "s", "g", "h", "l", "day", "days", "min"}


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
        if len(after) <= 2 and after.isascii() and after.lower() not in UNITS:
            return whole  # 3x, 2ab
        if after.lower() in UNITS or not after.isascii():
            return m["digits"] + "\x00" * len(after)  # 5cm: the unit is read from the text
        return "\x00" * len(whole)
    letters = m["letters"]
    if letters and ((len(letters) == 1 and letters.isascii()) or letters.lower() in _NAMES):
        return whole
    return "\x00" * len(whole)


def _says(content: str) -> bool:
    """Whether a formula says more than a name."""
    bare = re.sub(r"_\{?\w+\}?|\\(?:left|right|displaystyle|,|;|!|quad)|[\s{}]", "", content)
    return bool(
        re.search(r"\d|\\(?:frac|sqrt|pi|infty|emptyset|varnothing|text|math|begin|pm)|[=<>]|\\[lg]e|[-+/^]|∞|π", bare)
    )


def _trimmed(run: str, at: int) -> list[_Group]:
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
    return [_Group(at + start, at + end, text, formula)]


def _side(text: str) -> str:
    """Of 3 + 4 = 7, or x = 3 + 4 = 7, what it comes to: the working of an answer that no box holds is not graded."""
    parts = re.split(r"(?<![<>!:=\\])=(?!=)", text)
    if len(parts) == 1 or "\\begin" in text or re.search(r"[,;]\s*[A-Za-z]\w?\s*=", text):
        return text
    left = parts[0].strip(" {}")
    if len(parts) == 2 and re.search(
        r"[A-Za-z]", re.sub(r"\\(?:d?frac|times|cdot|div|sqrt|left|right|,|;|%|pi)|\\text\s?\{[^{}]*\}", "", left)
    ):
        return text  # a name, or an equation
    last = parts[-1].strip()
    return last if last and all(last.count(a) == last.count(b) for a, b in ("{}", "()")) else text


# -------------------------------------------------------------------------------------------------------------- the value of a phrase


def _bare(phrase: str) -> str:
    """A phrase without emphasis and the marks around formulas."""
    rest = _EMPHASIS.sub(" ", phrase)
    at, out = 0, []
    for start, end, content in _formulas(rest):
        out += [rest[at:start], content]
        at = end
    rest = " ".join([*out, rest[at:]])
    return " ".join(rest.split()).strip(" \t:")


_SENTENCE = re.compile(
    r"(?i)(?<![\\A-Za-z])(?:it|is|he|she|we|they|you|there|this|that|the|so|be|must|are|was|has|have|had|gets?|gives?|needs?|equals?|comes?)"
    r"(?![A-Za-z}])(?=.*[\d\\]|\s\(?[A-J]\)?\W*$)"
)


def _wordy(v: Value | None, text: str) -> bool:
    """Whether a text was read as words that say more than a name: "the answer is c"."""
    if v is None or _SENTENCE.search(text):
        return True  # "It is 5" is no product of letters
    if isinstance(v, Ratio):
        return re.match(r"[A-Za-z]{2}", text) is not None  # Answer: 5
    if not isinstance(v, Text) and not (isinstance(v, Items) and all(isinstance(x, Text) for x in v.items)):
        return isinstance(v, Scalar) and bool(v.unit) and re.match(r"[A-Za-z]{2,}\s", text) is not None
    return len(text.split()) > 3 or re.search(r"(?i)\b(?:is|are|was|equals?)\b|[A-Za-z]\s*:", text) is not None


def value_of(phrase: str) -> str | None:
    """The value in a phrase that states an answer: itself if it can be read, else what its last words say; None if that is not clear."""
    phrase = phrase.strip()
    if re.fullmatch(r"-?\d{1,30}", phrase):
        return phrase
    introduced = _INTRODUCED.match(phrase)
    if introduced and not _DOUBT.search(introduced[0]):
        phrase = phrase[introduced.end() :]
    aside = re.search(r"(?<=\S)\s+\([^()$\\]*[A-Za-z]{3}[^()$\\]*\)\s*$", phrase)
    if aside and not _DOUBT.search(aside[0]):
        phrase = phrase[: aside.start()]
    bare = _bare(phrase)
    if re.match(r"[<>]\s*[-\d.]+$|[\d.,]+\s*\+$", bare):
        return None  # more than 5
    value = read(bare, True)
    if value is not None and not _wordy(value, bare):
        return bare
    if len(phrase) > MAX_TEXT:
        return None
    unwrapped = phrase
    if not _formulas(phrase):  # as in a box
        unwrapped = _TEXT.sub(lambda m: f" {m[1]} " if _PROSE.search(m[1]) else m[0], phrase)
    reading = _Reading(unwrapped)
    end = len(unwrapped)
    groups = reading.groups(0, end)
    for g in reversed(groups):
        before = reading.plain[max(0, g.start - BEFORE) : g.start].replace("\x02", " ")
        after = reading.plain[g.end :].replace("\x02", " ")
        if _DENIED.search(before) or _MONTH.search(before) or _DOUBT.search(after) or _CHANGED_AFTER.search(after):
            return None
        if _CHANGED.search(_IS.split(before)[-1]):
            return None
        if not (
            g.formula
            or any(c.isdigit() for c in g.text)
            or _COPULA.search(before)
            or _OPTION.search(before)
            or not before.strip()
            or (_CHOICE.fullmatch(g.text) and not after.strip(" .!"))
        ):
            continue
        if _CONDITION.search(before) and not _COPULA.search(before) and g is not groups[0]:
            continue
        if re.search(r"\d|\x01", after):
            continue
        if re.search(r"\\[A-Za-z]+$", g.text) and re.match(r"\s*\w", after):
            return None  # a command whose argument is a word
        return _side(reading.with_unit(g, end))
    words = [w for w in re.split(r"(?i)\b(?:is|are|was|be|equals?|gets?|gives?|obtain)\b|:", bare) if w.strip()]
    last = words[-1].strip(" .,;:!*\"'") if words else ""
    if len(words) > 1 and 0 < len(last.split()) <= 4 and not re.search(r"\d", last) and not _DOUBT.search(bare):
        return re.sub(r"(?i)^(?:option|choice|the)\s+", "", last)
    return bare if value is not None and len(bare.split()) <= 6 and not _DOUBT.search(bare) else None


_TEXT = re.compile(r"\\(?:text|mbox|textbf|mathrm)\s?\{([^{}$]{2,200})\}")
_MONTH = re.compile(
    r"(?i)\b(?:january|february|march|april|may|june|july|august|september|october|november|december|base)\s*$"
)
_CHOICE = re.compile(r"\(?[A-J]\)?")
_OPTION = re.compile(r"(?i)\b(?:option|choice|letter|answer)\s*:?\s*$")


# ----------------------------------------------------------------------------------------------------------------------------- ways

_GAP = r"(?:[*_]{1,2}|\s){0,4}"
# what the word for an answer has to be followed by so that an answer follows, by word
_STATES: dict[str, re.Pattern[str]] = {
    word: re.compile(rest, re.IGNORECASE)
    for words, rest in (
        (
            "answer",
            r"(?:s?(?:[*_]{1,2}|[\s,]|\b(?:should|must|would|will|to|turns?|comes?|out|therefore|thus|then|here|choice|option|value)\b){0,8}"
            r"(?:(?:is|are|be|equals)\b|[=:：→])(?:\s*[:：])?|[*_ \t]{0,6}\|)",
        ),
        ("option choice", rf"{_GAP}(?:is\b|:)"),
        ("réponse reponse", rf"(?:\s+finale)?{_GAP}(?:est\b|:)"),
        ("respuesta resposta risposta", rf"(?:\s+finale?)?{_GAP}(?:(?:es|é|è)(?!\w)|:)"),
        ("antwort ergebnis", rf"{_GAP}(?:(?:ist|lautet)\b|:)(?:\s*:)?"),
        ("ответ", rf"{_GAP}(?:[:—–-]|равен\b)"),
        ("odpowiedź", rf"{_GAP}(?:to\b|:)"),
        ("cevap", rf"{_GAP}:"),
        ("答案 答え 正解", rf"{_GAP}(?:是|为|為|は|[:：])+"),
        ("정답 답", rf"{_GAP}(?:은|:|：)"),
        ("उत्तर", rf"{_GAP}(?:है|:)"),
        ("الإجابة", rf"{_GAP}(?:هي|:)"),
    )
    for word in words.split()
}
_BEFORE_CHOICE = re.compile(r"(?i)\b(?:correct|right)\s+$")
_HEADING = re.compile(r"(?i)(?:^|\n)[ \t>]*(?:#{1,6}[ \t]*|\*\*|__)(?:the\s+)?(?:(?:final|correct)\s+)?$")
_HEADED = re.compile(r"[ \t]*(?:\*\*|__)?[ \t]*(?=\n)")


def _statements(text: str) -> list[int]:
    """Where statements of an answer begin: after "Answer:", "the answer is" and the like; the last ones, in order."""
    lowered = text.lower()
    if len(lowered) != len(text):  # a letter that gets longer
        lowered = "".join(c if len(c.lower()) > 1 else c.lower() for c in text)
    found: set[int] = set()
    for word, states in _STATES.items():
        at = len(lowered)
        for _ in range(_TRIES):
            at = lowered.rfind(word, 0, at)
            if at < 0:
                break
            if word in ("option", "choice") and not _BEFORE_CHOICE.search(text, max(0, at - 12), at):
                continue
            end = at + len(word)
            m = states.match(text, end)
            if m is None and word == "answer" and _HEADING.search(text[max(0, at - 40) : at]):
                m = _HEADED.match(text, end)
            if m is not None:
                found.add(m.end())
    return sorted(found)[-_TRIES:]


_STOP = re.compile(
    r"\.(?=\s+[^\sa-z\d])|\.\s*$|[。！]|(?<=[a-z][a-z])!(?=\s|$)|(?i:,?\s+(?:because|since|which|where|as|when)\b)|\n|[✅✓✔🎉]|(?<=\s)\|"
)
_HENCE = re.compile(r"(?i),?\s+(?:so|hence|therefore|thus)\b(?!\s+(?:that|far|on)\b)")
_NO_ANSWERS = re.compile(
    r"(?i)^(?:helpful|correct|right|wrong|clear|useful|verified|consistent|reasonable|obtained|found|given|as follows|below|above|unique|in"
    r"|an?(?=\s)|just|simply)\b"
)
_TRIES = 20  # statements of an answer that are looked at, from the end


def _tag(text: str, complete: bool) -> str | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end if end >= 0 else None)
    if start < 0 or (end < 0 and not complete):
        return None
    inner = text[start + len("<answer>") : end if end >= 0 else None].strip()
    if not inner:
        return None
    return _boxed(inner) or _line(inner, True) or value_of(inner[: 2 * MAX_TEXT]) or inner


def _statement(text: str, at: int, complete: bool) -> str | None:
    """What follows "Answer:", to the end of its sentence; None if it was cut off."""
    rest = text[at : at + 2 * MAX_TEXT].lstrip(" \t*_:：")
    display = re.match(r"\s*(?:\\\[|\$\$)\s*", rest)
    if display:
        end = rest.find(r"\]" if r"\[" in display[0] else "$$", display.end())
        return rest[display.end() : end].strip(" \t\n.,") or None if end >= 0 else None
    rest = rest.lstrip().lstrip("|").lstrip()
    found = _STOP.search(_without_formulas(rest))
    if found is None and not complete:
        return None  # cut off inside the answer: 12 of 123
    if found is not None and not complete and found.end() >= len(rest) and not found[0].startswith("\n"):
        return None
    return rest[: found.start() if found else None].strip(" \t:|") or None


def _line(text: str, complete: bool) -> str | None:
    """The value that the last "Answer:" or "answer is" states; a statement that holds no value counts only if there is no other."""
    for at in reversed(_statements(text)):
        statement = _statement(text, at, complete)
        if statement is None:
            if not complete:
                return None
            continue
        if _NO_ANSWERS.match(statement) and not re.search(r"\d", statement[:40]):
            continue
        value = _concluded(statement)
        if value is not None:
            return value
        if re.search(r"\d|\\", statement) and (_DOUBT.search(statement) or _DENIED.search(statement)):
            return _bare(statement)  # stated, but not as one value: nothing else in the text is more of an answer
    return None


def _concluded(statement: str) -> str | None:
    """The value of a statement: of "12, so she is right" what stands before "so", of "5 boxes of 3, so 15 apples" what stands after it."""
    parts = [p for p in _HENCE.split(statement) if p.strip()]
    if len(parts) > 1:
        first = _bare(parts[0])
        if read(first, True) is not None and re.search(r"\d|\\", first) and not _wordy(read(first, True), first):
            unit = read(first, True)
            if not isinstance(unit, Scalar) or len(unit.unit.split()) < 3:
                return first
        for part in reversed(parts):
            value = value_of(part)
            if value is not None:
                return value
        return None
    return value_of(statement)


def _raw_line(text: str, complete: bool) -> str | None:
    """The last statement of an answer as it stands, where no way finds a value."""
    starts = _statements(text)
    statement = _statement(text, starts[-1], complete) if starts else None
    return _bare(statement) or None if statement else None


def _hash(text: str, complete: bool) -> str | None:
    at = text.rfind("####")
    if at < 0:
        return None
    line, newline, _ = text[at + 4 : at + 4 + MAX_TEXT].lstrip("# ").partition("\n")
    line = line.strip()
    if not line or not (newline or complete):
        return None
    return _line(line, True) or value_of(line) or line


def _tails(text: str) -> Iterator[str]:
    """The last characters, few and then more, from the start of a line so that no formula is cut; of one long line only the longer end."""
    if len(text) > TAIL // 8:
        short = text[-(TAIL // 8) :]
        line = short.find("\n", 0, len(short) // 2)
        if line >= 0:
            yield short[line + 1 :]
    long = text[-TAIL:]
    yield long if len(text) <= TAIL else long[long.find("\n") + 1 :]


_MARKS = re.compile(r"\\(?:boxed|fbox)(?=\s*\{)|\\(?:blacksquare|square|Box|qed|checkmark|therefore)(?![A-Za-z])")


def _unmarked(text: str) -> str:
    """Without boxes around formulas and signs that end a proof."""
    return _MARKS.sub(" ", text)


def _closing(text: str, complete: bool) -> str | None:
    if not complete:
        return None
    for tail in _tails(text):
        if re.search(r"\\(?:boxed|fbox)\s*\{", tail) and not boxes(tail):
            return None  # a box that does not close is an answer that was not finished
        value = _last_value(_unmarked(tail), every_number=False)
        if value is not None:
            return value
    return None


def _number(text: str, complete: bool) -> str | None:
    for tail in _tails(text):
        if not complete:  # cut off inside a number
            tail = re.sub(r"[\w.,/\\{}$^%-]{0,400}$", "", tail.rstrip()[-TAIL:])
        value = _last_value(_unmarked(tail), every_number=True)
        if value is not None:
            return value
    return None


def _last_value(text: str, every_number: bool) -> str | None:
    """The value of the last sentence that has one; of plain numbers only those of a conclusion, unless ``every_number``."""
    reading = _Reading(text)
    spans = reading.sentences()
    for k in range(len(spans) - 1, max(-1, len(spans) - 1 - SENTENCES), -1):
        start, end = spans[k]
        sentence = reading.plain[start:end].replace("\x02", " ")
        if sentence.rstrip().endswith("?") or _in_check(reading, spans, k):
            continue
        concludes = _CONCLUDES.search(sentence) is not None
        value = _value_in(
            reading,
            start,
            end,
            concludes,
            every_number,
            all(_FAREWELL.search(reading.plain[a:b].replace("\x02", " ")) for a, b in spans[k + 1 :]),
        )
        if value is not None:
            return value
    return None


# what models say after the answer
_FAREWELL = re.compile(
    r"(?i)\b(?:hope|let\s+me\s+know|feel\s+free|happy\s+to|glad\s+to|thanks?|done|qed|q\.e\.d|that['’]s\s+it|good\s+luck|great|would\s+you|do\s+you)\b"
    r"|^[^\w\x00\x01]*$"
)
_SUBJECT = re.compile(
    r"(?i)\b(?:result|value|answer|outcome|solution|quantity|total|choice|option)\b[^.:]{0,60}(?:\b(?:is|are|be)\b|:)\s+\S+(?:\s\S+){0,2}[.!\s\x02]*$"
)


def _in_check(reading: _Reading, spans: Sequence[tuple[int, int]], k: int) -> bool:
    """Whether a sentence belongs to a check of the result: one that says so, and what follows it in its paragraph up to a conclusion."""
    for j in range(k, max(-1, k - 8), -1):
        start, end = spans[j]
        if j < k and "\n\n" in reading.text[start : spans[j + 1][0]]:
            return False
        sentence = reading.plain[start:end].replace("\x02", " ")
        if _CHECKS.search(sentence):
            return True
        if _CONCLUDES.search(sentence):
            return False
    return False


def _value_in(reading: _Reading, start: int, end: int, concludes: bool, every_number: bool, last: bool) -> str | None:
    groups = reading.groups(start, end)
    bold = reading.bold(start, end)
    for k in range(len(groups) - 1, -1, -1):
        g = groups[k]
        left = groups[k - 1].end if k else start
        before = reading.plain[max(left, g.start - BEFORE) : g.start].replace("\x02", " ")
        if _DENIED.search(before):
            continue
        stated = _COPULA.search(before) is not None or not re.search(r"\w", before)
        if _CONDITION.search(before) and not re.search(r"(?i)\b(?:is|are|be|equals?)\s*$|[:=]\s*$", before):
            continue
        if ("=" in g.text and k and _PLACE.search(before)) or _BY.search(before):
            continue
        marked = reading.plain[start : g.start].count("\x02\x02") % 2 == 1
        delimited = reading.plain[g.start : g.start + 1] == "\x01"
        alone = not reading.plain[start : g.start].strip(" \t\n\x02") and not reading.plain[g.end : end].strip(
            " \t\n.,\x02"
        )
        if g.formula or (delimited and (alone or any(c.isdigit() for c in g.text) or (stated and concludes))):
            return _side(reading.with_unit(g, end))
        ends = (
            last
            and before.strip()
            and "\x00" not in reading.masked[g.end : end].removeprefix(reading.unit_mask(g, end))
        )
        if _CHANGED_AFTER.search(reading.plain[g.end : end]):
            return None
        # of several plain numbers that follow one another, it is not clear which is meant
        clear = k == 0 or re.search(
            r"(?i)\b(?:is|are|be|equals?|gets?)(?:\s+(?:about|only|just))?\s*\$?$|[=:]\s*$", before
        )
        if any(c.isdigit() for c in g.text) and (every_number or concludes or marked or ends):
            modified = _MODIFIED.search(before) is not None
            return _side(reading.with_unit(g, end)) if every_number or (clear and not modified) else None
        chosen = concludes or stated or _OPTION.search(before) or re.search(r"\b(?:with|by)\s*$", before)
        if (
            chosen
            and (
                marked
                or concludes
                or (last and (delimited or (_COPULA.search(before) and "\x00" not in reading.masked[g.end : end])))
            )
            and _CHOICE.fullmatch(g.text)
        ):
            return g.text
    if bold is not None and _WORDS_ONLY.fullmatch(bold):
        before = reading.plain[start : reading.plain.rfind("\x02\x02" + bold, start, end)].replace("\x02", " ")
        if not re.search(r"\w", before) or (_COPULA.search(before) and not _DENIED.search(before)):
            return bold if not bold.endswith(":") else None
    named = last and _SUBJECT.search(reading.plain[start:end]) is not None
    if (concludes or named) and not groups:
        sentence = reading.text[start:end].strip().rstrip(".!")
        said = re.split(r"(?i)\b(?:is|are|be|get|equals)\b|:\s", sentence)
        words = said[-1].strip(" .,;:!*_\"'")
        if len(said) > 1 and 0 < len(words.split()) <= 3 and not _DOUBT.search(sentence):
            return words
    return None


_WORDS_ONLY = re.compile(r"[A-Za-z][A-Za-z'’-]*(?: [A-Za-z'’-]+){0,3}\.?")


_WAYS: dict[str, Callable[[str, bool], str | None]] = {
    "boxed": lambda text, complete: _boxed(text),
    "tag": _tag,
    "line": _line,
    "hash": _hash,
    "closing": _closing,
    "number": _number,
    "whole": lambda text, complete: text.strip() or None if complete else None,
}


def find(response: str, extract: Sequence[str] = EXTRACT, finish: str = "stop") -> Found | None:
    """What the response commits to and how it was found (the module's docstring has the order), or None.

    If ``finish`` is "length", an answer that ends with the text is not complete.

    Raises:
        ValueError: an unknown way.
    """
    unknown = [kind for kind in extract if kind not in _WAYS]
    if unknown:
        raise ConfigError(f"the reward `math` has no extract {unknown[0]!r}; there are {', '.join(KINDS)}.")
    complete = finish != "length"
    parts = list(_parts(response))
    for part in parts:
        for kind in extract:
            text = _WAYS[kind](part, complete)
            if text is not None and text.strip():
                return Found(text.strip(), kind)
    for part in parts if "line" in extract else []:
        raw = _raw_line(part, complete)
        if raw is not None:
            return Found(raw, "line")
    return None


def extract_answer(response: str, extract: Sequence[str] = EXTRACT, finish: str = "stop") -> str | None:
    """The text that :func:`find` finds."""
    found = find(response, extract, finish)
    return found.text if found is not None else None
