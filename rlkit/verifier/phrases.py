"""The value in a phrase that states an answer, and the words around a value that say what it is."""

from __future__ import annotations

import re

from rlkit.verifier.algebra import MAX_TEXT
from rlkit.verifier.passages import EMPHASIS, INTRODUCED, Passage, formulas
from rlkit.verifier.reader import read
from rlkit.verifier.values import Items, Ratio, Scalar, Text, Value

BEFORE = 120  # characters before a value that say what it is
PROSE = re.compile(r"(?:(?<![\\A-Za-z])|\\text[a-z]{0,2}\s?\{\s?)[A-Za-z]{2,}")
COPULA = re.compile(
    r"(?i)(?:\b(?:is|are|was|were|be|equals?|to|of|get|gets|gives?|yields?|obtain|have|has|become|becomes|find|at|est|es|ist|lautet|é|è|являе\w+)\b|['’]s|\b(?:is|are)\s+(?:therefore|thus|then|hence|simply|exactly|just)\b|[:=：是为は])\s*$"
)
DENIED = re.compile(
    r"(?i)(?:\b(?:not|never|cannot|than|at\s+least|at\s+most|nearly|almost|maybe|perhaps|possibly|probably"
    r"|either|neither|nor|might|could|may|except|unless|without|instead\s+of|up\s+to|unsure)|n['’]t)\b(?:\s+[\w'’]+){0,3}[\s(]*$"
    r"|\b(?:between|under|over|above|below)\b(?:\s+(?!(?:is|are|was|were|equals?)\b)[\w'’]+){0,3}[\s(]*$"
)
CONDITION = re.compile(
    r"(?i)\b(?:for|when|where|if|since|because|whenever|assuming|provided|(?<!the )given(?!\s+by))"
    r"(?:\s+[\w'’-]+){0,3}\s*$"
)
# words that make another number of the one they stand before, behind or between
_CHANGED = re.compile(
    r"(?i)\b(?:minus|negative|half|third|quarter|twice|thrice|double|triple|squares?|cubes?|roots?|plus|times|divided|dividing|multiplied|multiply|divide"
    r"|over|out|per|in|by|choose|mod|modulo|remainder|less|more|fewer|exceeds?|none|log|raised|power|product|but|except)\b"
)
CHANGED_AFTER = re.compile(
    r"(?i)^[\s\x02]*(?:squared|cubed|dozen|factorial|times|(?:more|less|fewer)\s+than|percent\s+of|of\s+the\s*\d|\+)"
)
_IS = re.compile(
    r"(?i)(?:\b(?:is|are|was|were|be|equals?|gets?|gives?|yields?|have|has|had|makes?|means|needs?|takes?|costs?)\b|[:=,])"
)
DOUBT = re.compile(
    r"(?i)\b(?:not|maybe|perhaps|possibly|probably|unsure|sure|wrong|incorrect|either|neither|or|but|if|unless|except)\b|\?"
)
_SENTENCE = re.compile(
    r"(?i)(?<![\\A-Za-z])(?:it|is|he|she|we|they|you|there|this|that|the|so|be|must|are|was|has|have|had|gets?|gives?|needs?|equals?|comes?)"
    r"(?![A-Za-z}])(?=.*[\d\\]|\s\(?[A-J]\)?\W*$)"
)
_TEXT = re.compile(r"\\(?:text|mbox|textbf|mathrm)\s?\{([^{}$]{2,200})\}")
MONTH = re.compile(
    r"(?i)\b(?:january|february|march|april|may|june|july|august|september|october|november|december|base)\s*$"
)
HENCE = re.compile(r"(?i),?\s{1,4}(?:so|hence|therefore|thus)\b(?!\s+(?:that|far|on)\b)")  # a conclusion behind a comma
ARTICLE = re.compile(r"(?i)^(?:an?|the)\s+(?=\w{2})")
_CHOSEN = re.compile(r"(?i)(?:the\s+)?(?:option|choice|letter)\s*:?\s*\(?([A-J])\)?\W*")
_INSTEAD_OF = re.compile(r"(?<=[\d)}$]),\s(?:and\s)?not\s(?:\$[^$]{1,40}\$|-?[\d./]{1,20})\s*\.?$")  # 5, not 6
CHOICE = re.compile(r"\(?[A-J]\)?")
OPTION = re.compile(
    r"(?i)\b(?:(?:option|choice|letter|answer)(?:\s+(?:is|are|must\s+be|would\s+be|will\s+be))?|choose|chose|pick|select|go\s+with|opt\s+for)\s*:?\s*$"
)


def outcome(text: str) -> str:
    """Of 3 + 4 = 7, or x = 3 + 4 = 7, what it comes to: the working of an answer that no box holds is not graded."""
    parts = re.split(r"(?<![<>!:=\\])=(?!=)", text)
    if len(parts) == 1 or "\\begin" in text or re.search(r"(?:[,;]|\b(?:and|or)\b\s*\}?)\s*[A-Za-z]\w?\s*=", text):
        return text
    left = parts[0].strip(" {}")
    if len(parts) == 2 and re.search(
        r"[A-Za-z]",
        re.sub(
            r"\\(?:d?frac|times|cdot|div|sqrt|left|right|,|;|%|pi)|(?<=\d)\s*x\s*(?=\d)|\\text\s?\{[^{}]*\}", "", left
        ),
    ):
        return text  # a name, or an equation
    last = parts[-1].strip()
    return last if last and all(last.count(a) == last.count(b) for a, b in ("{}", "()")) else text


def stripped(phrase: str) -> str:
    """A phrase without emphasis and the marks around formulas."""
    rest = EMPHASIS.sub(" ", phrase)
    at, out = 0, []
    for start, end, content in formulas(rest):
        out += [rest[at:start], content]
        at = end
    rest = " ".join([*out, rest[at:]])
    return " ".join(rest.split()).strip(" \t:")


def wordy(v: Value | None, text: str) -> bool:
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
    introduced = INTRODUCED.match(phrase)
    if introduced and not DOUBT.search(introduced[0]):
        phrase = phrase[introduced.end() :]
    instead = re.match(r"(?i)not\s.{1,60}?\bbut\s+(?:rather\s+|actually\s+|instead\s+)?(?=\S)", phrase)
    if instead:
        phrase = phrase[instead.end() :]
    phrase = _INSTEAD_OF.sub("", phrase)
    aside = re.search(r"(?<=\S)\s+\([^()$\\]*[A-Za-z]{3}[^()$\\]*\)\s*$", phrase)
    if aside and not DOUBT.search(aside[0]):
        phrase = phrase[: aside.start()]
    bare = stripped(phrase)
    if re.match(r"[<>]\s*[-\d.]+$|[\d.,]+\s*\+$", bare):
        return None  # more than 5
    chosen = _CHOSEN.fullmatch(bare)
    if chosen:
        return chosen[1].upper()
    value = read(bare, True)
    if value is not None and not wordy(value, bare):
        return bare
    if len(phrase) > MAX_TEXT:
        return None
    unwrapped = phrase
    if not formulas(phrase):  # as in a box
        unwrapped = _TEXT.sub(lambda m: f" {m[1]} " if PROSE.search(m[1]) else m[0], phrase)
    reading = Passage(unwrapped)
    end = len(unwrapped)
    groups = reading.groups(0, end)
    for g in reversed(groups):
        before = reading.plain[max(0, g.start - BEFORE) : g.start].replace("\x02", " ")
        after = reading.plain[g.end :].replace("\x02", " ")
        if DENIED.search(before) or MONTH.search(before) or DOUBT.search(after) or CHANGED_AFTER.search(after):
            return None
        if _CHANGED.search(_IS.split(before)[-1]):
            return None
        if not (
            g.formula
            or any(c.isdigit() for c in g.text)
            or COPULA.search(before)
            or OPTION.search(before)
            or not before.strip()
            or (CHOICE.fullmatch(g.text) and not after.strip(" .!"))
        ):
            continue
        if CONDITION.search(before) and not COPULA.search(before) and g is not groups[0]:
            continue
        if re.search(r"\d|\x01", after):
            continue
        if re.search(r"\\[A-Za-z]+$", g.text) and re.match(r"\s*\w", after):
            return None  # a command whose argument is a word
        return outcome(reading.with_unit(g, end))
    words = [w for w in re.split(r"(?i)\b(?:is|are|was|be|equals?|gets?|gives?|obtain)\b|:", bare) if w.strip()]
    last = words[-1].strip(" .,;:!*\"'") if words else ""
    if len(words) > 1 and 0 < len(last.split()) <= 4 and not re.search(r"\d", last) and not DOUBT.search(bare):
        return ARTICLE.sub("", re.sub(r"(?i)^(?:option|choice)\s+", "", last))
    return bare if value is not None and len(bare.split()) <= 6 and not DOUBT.search(bare) else None
