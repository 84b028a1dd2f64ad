"""The value with which a text closes, where nothing in it names an answer: its last formula, a bold value, the end of a conclusion.

A value counts by what stands around it. Sentences are looked at from the last one back; one that asks, assumes, checks, remarks or denies
gives none, and of plain numbers only those that a sentence states: it concludes, marks them, calls them the answer, or is the last one and
tells what was worked out rather than what was given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rlkit.verifier.algebra import MAX_TEXT
from rlkit.verifier.passages import Group, Passage, boxes
from rlkit.verifier.phrases import (
    ARTICLE,
    BEFORE,
    CHANGED_AFTER,
    CHOICE,
    CONDITION,
    COPULA,
    DENIED,
    DOUBT,
    HENCE,
    MONTH,
    OPTION,
    outcome,
    stripped,
    value_of,
    wordy,
)
from rlkit.verifier.reader import read
from rlkit.verifier.spelled import spelled
from rlkit.verifier.units import NO_UNIT
from rlkit.verifier.values import Scalar

TAIL = 8_000  # characters in which formulas and sentences are looked for
SENTENCES = 40  # from the end, in which the closing value may stand
_MODIFIED = re.compile(
    r"(?i)\b(?:minus|negative|half|third|quarter|twice|thrice|double|triple|squares?|cubes?|roots?|plus|times|none|exceeds?|but)\b"
    r"(?:\s+(?:of|the|than))*\s*$"
)
_BY = re.compile(
    r"(?i)(?<!given)(?<!\bis)\s\bby\s*$|\bfrom\s*$|(?<!up )(?<!left )(?<!conclude )(?<!end )(?<!ends )(?<!\bus )\bwith\s*$"
    r"|(?:\b(?:factor|multiple|divisor|half|third|quarter|percent|square|root|power)|%)\s+of\s*$|\b(?:which|that)\s+(?:is|are)\s+(?:about|approximately|roughly)\s*$"
)
_PLACE = re.compile(r"(?i)\b(?:at|in|using|from|with|by)\s*$")  # "at x = 2" is a condition, "we arrive at 2" none
_CONCLUDES = re.compile(
    r"(?i)^[\s\W]*(?:so|thus|therefore|hence|consequently|finally|accordingly|overall|ultimately|in\s+(?:conclusion|summary|total|the\s+end|all)"
    r"|as\s+a\s+(?:result|consequence)|(?:and\s+)?that(?:['’]s|\s+is)\s+(?:how|why)|altogether|we\s+(?:conclude|get|find|obtain|have)|this\s+(?:means|gives|leaves|makes|yields|simplifies|reduces|leads)|that\s+(?:means|gives|leaves|makes)|it\s+follows"
    r"|final\s+(?:result|value)|the\s+(?:final\s+)?(?:result|solution|total)|result|conclusion|total|solution"
    r"|donc|ainsi|par\s+conséquent|also|daher|folglich|somit|damit|demnach|por\s+(?:lo\s+)?tanto|entonces|así|portanto|logo|quindi|dunque|pertanto"
    r"|итак|значит|следовательно|поэтому|таким\s+образом|因此|所以|故|于是|综上|よって|따라서)\b"
    r"|^\s*[∴⇒→]|^\W*(?:因此|所以|故|よって|したがって|따라서)"
)
_CHECKS = re.compile(
    r"(?i)^[\s\W]*(?:check(?:ing)?|verif(?:y|ying|ication)|to\s+(?:check|verify|double-check|confirm)|let(?:['’]s|\s+us|\s+me)\s+(?:check|verify|double-check|confirm)"
    r"|(?:we|you|i)\s+(?:can|could)\s+(?:also\s+)?(?:check|verify|confirm)|double-check|sanity\s+check|explanation|reasoning|justification)"
)
_REMARKS = re.compile(r"(?i)^[\s\W]*(?:indeed|note\b|remark|notice|recall|for\s+example)")
_MARKS = re.compile(r"\\(?:boxed|fbox)(?=\s*\{)|\\(?:blacksquare|square|Box|qed|checkmark|therefore)(?![A-Za-z])")
_DENIED_AFTER = re.compile(
    r"(?i)^[\s\x02]*(?:(?:is|are|was|were|does|do|can|could|would|should)(?:n['’]t|\s+not)|cannot)\b"
)
_IS_IT = re.compile(
    r"(?i)^[\s\x02.)]*(?:is|are|will\s+be|would\s+be|must\s+be)\s+(?:the|our|my|your)\s+"
    r"(?:(?:final|correct|right|required|requested|desired|wanted|only|best)\s+){0,2}(?:answer|result|solution|value|number|choice|option|one)\b"
    r"|^[\s\x02.)]*(?:is|must\s+be)\s+(?:correct|right|true)\b"
    r"|^\s*(?:[A-Za-z/^²³]+\s+){0,3}as\s+(?:the|our|my)\s+(?:final\s+)?(?:answer|result|solution)\b"
)
# a last sentence of these kinds tells what was given, or why
_GIVEN = re.compile(
    r"(?i)^[\s\W]*(?:if|suppose|assume|let|consider|given|because|since|as|for|when|while|although|though|recall|remember|first|next|now|then|step"
    r"|we\s+know|we\s+(?:can|could|need|have\s+to|must|should)|to\s|in\s+order|where|here|i\b|this\s+is\s+(?:because|since|due)|the\s+(?:reason|problem|question))\b"
)
# what a sentence of these asks for or assumes is none of its values; "Simplify 6/8 to get 3/4" and "Compute 2 + 2 = 4" say what it comes to
_TASKS = (
    r"[\s\W\d]*(?:please\s+|then\s+|now\s+)?(?:simplify|compute|evaluate|factor|expand|find|write|express|convert|solve|determine|calculate"
    r"|prove|show|give|rationalize|reduce|enter|state|what|which|how|who)\b"
)
_TASK = re.compile(rf"(?i)^{_TASKS}")
_ASKED = re.compile(rf"(?i)(?:^|\n){_TASKS}[^.?!\n]*\n\s*$")  # the line before, which ends with no point
_ASSUMES = re.compile(r"(?i)^[\s\W\d]*(?:let|suppose|assume|define|consider|denote|if|given)\b(?!['’]s)")
_WORKED = re.compile(r"(?i)=|\b(?:so|thus|hence|therefore|equals|result|answer|solution|conclu\w+)\b|[∴⇒]")
_STATED = re.compile(
    r"(?i)^[^.:：]{0,40}[:：]|\b(?:total|altogether|in\s+all|overall|left|remain\w*|sum|value|quantity|we\s+(?:see|find|get))\b"
    r"|\b(?:résultat|resultado|risultato)\b"
)
_COMES = re.compile(r"(?i)(?:\b(?:to|gets?|obtain|gives?|yields?|is|are|equals?)|=)\s*$")
_PARAGRAPH = re.compile(r"(?:^|\n[ \t]*\n|:[ \t]*\n)[ \t\x02>]*$")
_REASON = re.compile(r"(?i)[,;]?\s+(?:because|since|as|which|where|when|while)\b.*$", re.DOTALL)
_ANSWERS = re.compile(r"(?i)\b(?:answers?|results?|values?|solutions?)[\s*_]*\|?\s*$")  # the last of a table's heads
# a text that begins with a line for its result
_OPENS = re.compile(
    r"(?i)(?:\*\*|__)(?:(?:final\s+)?(?:result|solution|value|total)\s*)?(?::\s*(?:\*\*|__))?\s*([^*_\n:]{1,80}?)(?:\*\*|__)?"
    r"[ \t.]*\n[ \t]*\n"
)
# ", so the fastest is Evelyn", not ", so we are done"
_IDENTIFIED = re.compile(r"(?i)(?<!there )\bis\s+\S+(?:\s\S+)?\W*$")
_CLEAR = re.compile(r"(?i)\b(?:is|are|be|equals?|gets?)(?:\s+(?:about|only|just))?\s*\$?$|[=:]\s*$")
_COUNTED = re.compile(
    r"(?i)\b(?:is|are|be|equals?|gets?|makes?|needs?|takes?|leaves?|has|have)\s+([a-z]+(?:[ -][a-z]+){0,9})$"
)
# what models say after the answer
_FAREWELL = re.compile(
    r"(?i)\b(?:hope|let\s+me\s+know|feel\s+free|happy\s+to|glad\s+to|thanks?|done|qed|q\.e\.d|that['’]s\s+it|good\s+luck|great|would\s+you|do\s+you)\b"
    r"|^[^\w\x00\x01]*$"
)
_LATER = re.compile(
    r"(?i)\b(?:so|thus|therefore|hence|total|result|answer|finally|conclu\w+|equals?|wait|actually)\b|\*\*[^*\n]*\d[^*\n]*\*\*|∴"
)
_SUBJECT = re.compile(
    r"(?i)\b(?:result|value|answer|outcome|solution|quantity|total|choice|option)\b[^.:]{0,60}(?:\b(?:is|are|be)\b|:)\s+\S+(?:\s\S+){0,2}[.!\s\x02]*$"
)
# Words that are no commands of LaTeX, or what may end a sentence or be a factorial.
_WORDED = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}|!")
_WORDS_ONLY = re.compile(r"[A-Za-z][A-Za-z'’-]*(?: [A-Za-z'’-]+){0,3}\.?")


def closing(text: str, complete: bool) -> str | None:
    """The value with which a text closes; none of a text that was cut off, or that ends in a box which does not close."""
    if not complete:
        return None
    sole = _sole(text)
    if sole is not None and not _WORDED.search(text):
        return sole
    opens = _OPENS.match(text[:300])
    if opens and not _LATER.search(text, opens.end()) and re.search(r"\d|\\", opens[1]):
        value = value_of(opens[1])
        if value is not None:
            return value
    for tail in _tails(text):
        if re.search(r"\\(?:boxed|fbox)\s*\{", tail) and not boxes(tail):
            return None
        value = _last_value(_unmarked(tail), every_number=False)
        if value is not None:
            return value
    return sole


def last_number(text: str, complete: bool) -> str | None:
    """The last formula or number of a text, whatever stands around it."""
    for tail in _tails(text):
        if not complete:  # cut off inside a number
            tail = re.sub(r"[\w.,/\\{}$^%-]{0,400}$", "", tail.rstrip()[-TAIL:])
        value = _last_value(_unmarked(tail), every_number=True)
        if value is not None:
            return value
    return None


def _sole(text: str) -> str | None:
    """A text that is a value and nothing else: 42, (B), 5 + 7 = 12."""
    bare = stripped(text[: MAX_TEXT + 1]).strip(" .!")
    if len(bare) > 120 or "\n" in text.strip():
        return None
    value = read(bare, True)
    if spelled(bare.lower()) is not None:
        return bare
    if _ASSUMES.search(bare) or (re.match(r"[A-Za-z]+['’ ]", bare) and isinstance(value, Scalar)):
        return None  # "I'd say 17"
    if CHOICE.fullmatch(bare) or re.fullmatch(r"\([a-j]\)", bare):
        return bare
    if value is None or wordy(value, bare) or not re.search(r"\d|\\[A-Za-z]|[∞π√]", bare):
        return None
    return outcome(bare)


def _tails(text: str) -> Iterator[str]:
    """The last characters, few and then more, from the start of a line so that no formula is cut; of one long line only the longer end."""
    if len(text) > TAIL // 8:
        short = text[-(TAIL // 8) :]
        line = short.find("\n", 0, len(short) // 2)
        if line >= 0:
            yield short[line + 1 :]
    long = text[-TAIL:]
    yield long if len(text) <= TAIL else long[long.find("\n") + 1 :]


def _unmarked(text: str) -> str:
    """Without boxes around formulas and signs that end a proof."""
    return _MARKS.sub(" ", text)


def _last_value(text: str, every_number: bool) -> str | None:
    """The value of the last sentence that has one; of plain numbers only those that are stated, unless ``every_number``."""
    reading = Passage(text)
    spans = reading.sentences()
    for k in range(len(spans) - 1, max(-1, len(spans) - 1 - SENTENCES), -1):
        start, end = spans[k]
        sentence = reading.plain[start:end].replace("\x02", " ")
        if "\x00" in sentence and (cell := _last_cell(reading.text[:end])) is not None:
            return cell
        if sentence.rstrip().endswith("?") or _in_check(reading, spans, k):
            continue
        last = all(_FAREWELL.search(reading.plain[a:b].replace("\x02", " ")) for a, b in spans[k + 1 :])
        hence = None
        for hence in HENCE.finditer(sentence):  # noqa: B007
            pass
        if hence is not None:  # "it takes 2/2=1, so the total is 2+1=3 bolts"
            value = _Sentence(reading, start + hence.end(), end, True, last).value(every_number)
            if value is not None and (re.search(r"\d|\\", value) or _IDENTIFIED.search(sentence[hence.end() :])):
                return value
        value = _Sentence(reading, start, end, _CONCLUDES.search(sentence) is not None, last).value(every_number)
        if value is not None:
            return value
    return None


def _last_cell(text: str) -> str | None:
    """Of the row of a table with which a text ends the last cell, where the head of its column says that answers stand there."""
    rows: list[str] = []
    for line in reversed(text.splitlines()):
        if not line.strip().startswith("|"):
            break
        rows.append(line)
    if len(rows) < 3 or not _ANSWERS.search(rows[-1]):
        return None
    return value_of(rows[0].strip().strip("|").rpartition("|")[2])


def _in_check(reading: Passage, spans: Sequence[tuple[int, int]], k: int) -> bool:
    """Whether a sentence belongs to a check of the result: one that says so, and what follows it in its paragraph up to a conclusion."""
    for j in range(k, max(-1, k - 8), -1):
        start, end = spans[j]
        if j < k and "\n\n" in reading.text[start : spans[j + 1][0]]:
            return False
        sentence = reading.plain[start:end].replace("\x02", " ")
        if _CHECKS.search(sentence) or (j == k and _REMARKS.search(sentence)):
            return True
        if _CONCLUDES.search(sentence):
            return False
    return False


@dataclass(frozen=True)
class _Sentence:
    """A part of a passage. ``concludes``: it says that it is a conclusion; ``last``: only farewells follow."""

    reading: Passage
    start: int
    end: int
    concludes: bool
    last: bool

    @cached_property
    def plain(self) -> str:
        return self.reading.plain[self.start : self.end]

    @cached_property
    def assumes(self) -> bool:
        return _ASSUMES.search(self.plain) is not None and not self.concludes

    @cached_property
    def asks(self) -> bool:
        line_before = self.reading.plain[max(0, self.start - BEFORE) : self.start]
        return _TASK.search(self.plain) is not None or _ASKED.search(line_before) is not None

    @cached_property
    def tells(self) -> bool:
        """Whether it tells what is given, as the end of a question that was repeated, rather than what was worked out."""
        text = self.reading.text
        worked = _WORKED.search(text) or _STATED.search(self.plain) or not text[: self.start].strip()
        return _GIVEN.search(self.plain) is not None or not worked

    def value(self, every_number: bool) -> str | None:
        """Its last value that is stated, or what its words say; None if it has none, or if it is not clear which is meant."""
        reading = self.reading
        groups = reading.groups(self.start, self.end)
        for k in range(len(groups) - 1, -1, -1):
            g = groups[k]
            left = groups[k - 1].end if k else self.start
            before = reading.plain[max(left, g.start - BEFORE) : g.start].replace("\x02", " ")
            after = reading.plain[g.end : self.end].replace("\x02", " ")
            if self._beside(g, before, after, k == 0) or (not every_number and self._asked(g, before)):
                continue
            digits = any(c.isdigit() for c in g.text)
            if g.formula or (self._delimited(g) and (digits or self._alone(g, after) or self._said(before))):
                return self._written(g)
            if CHANGED_AFTER.search(after):
                return None
            if digits:
                month = MONTH.search(before)
                if month is not None and month[0].strip().casefold() == "base":
                    continue
                if month is not None:
                    return (
                        f"{month[0].strip()} {g.text}" if self.concludes and not self._words(g).strip(" .!\n") else None
                    )
                if every_number or self._states(g, before, after, len(groups)):
                    # of several plain numbers that follow one another, it is not clear which is meant
                    clear = k == 0 or _CLEAR.search(before) or re.search(r"\d.*=", g.text)
                    return self._written(g) if every_number or (clear and not _MODIFIED.search(before)) else None
            elif CHOICE.fullmatch(g.text) and self._chooses(g, before, after):
                return g.text
        return self._in_words(bool(groups))

    def _written(self, g: Group) -> str:
        return outcome(self.reading.with_unit(g, self.end))

    def _beside(self, g: Group, before: str, after: str, first: bool) -> bool:
        """Whether a value is denied, bounded, or a condition of another."""
        if DENIED.search(before) or _DENIED_AFTER.search(after) or _BY.search(before):
            return True
        if CONDITION.search(before) and not re.search(r"(?i)\b(?:is|are|be|equals?)\s*$|[:=]\s*$", before):
            return True
        return "=" in g.text and not first and _PLACE.search(before) is not None

    def _asked(self, g: Group, before: str) -> bool:
        """Whether a value belongs to what the sentence assumes or asks for."""
        comes = _COMES.search(before) is not None
        if self.assumes:
            return not (comes and "," in self.reading.plain[self.start : g.start])
        return self.asks and "=" not in g.text and not comes

    def _states(self, g: Group, before: str, after: str, groups: int) -> bool:
        """Whether the sentence states a plain number."""
        if self.concludes or self._marked(g) or self._is_it(g, after):
            return True
        words = self._words(g)
        if not self.last:
            return False
        if not before.strip():
            return not words.strip(" \t\n.,!\x02") and self._apart()
        if self.tells:
            return False
        ends = "\x00" not in words[: len(words) - len(_reason(after))]
        return ends or (groups == 1 and len(before.split()) > 1)

    def _chooses(self, g: Group, before: str, after: str) -> bool:
        """Whether a letter is the choice."""
        option = OPTION.search(before) is not None
        if self._is_it(g, after) and (option or not re.search(r"\w", before)):
            return True
        if self.last and option and not after[: len(after) - len(_reason(after))].strip(" .!\n"):
            return True
        if not (self.concludes or option or self._stated(before) or re.search(r"\b(?:with|by)\s*$", before)):
            return False
        ends = COPULA.search(before) is not None and "\x00" not in self._words(g)
        return self.concludes or self._marked(g) or (self.last and (self._delimited(g) or ends))

    def _words(self, g: Group) -> str:
        """What stands behind a value and its unit, words masked."""
        return self.reading.masked[g.end + len(self.reading.unit_mask(g, self.end)) : self.end]

    def _is_it(self, g: Group, after: str) -> bool:
        return _IS_IT.search(after[len(self.reading.unit_mask(g, self.end)) :]) is not None

    def _marked(self, g: Group) -> bool:
        """Whether a value is bold, or in a heading."""
        reading = self.reading
        return reading.plain[self.start : g.start].count("\x02\x02") % 2 == 1 or reading.titled(self.start, g.start)

    def _delimited(self, g: Group) -> bool:
        return self.reading.plain[g.start : g.start + 1] == "\x01"

    def _alone(self, g: Group, after: str) -> bool:
        return not self.reading.plain[self.start : g.start].strip(" \t\n\x02") and not after.strip(" \t\n.,")

    @staticmethod
    def _stated(before: str) -> bool:
        return COPULA.search(before) is not None or not re.search(r"\w", before)

    def _said(self, before: str) -> bool:
        return self.concludes and self._stated(before)

    def _apart(self) -> bool:
        """Whether a paragraph begins here, or what a colon before it announces."""
        return _PARAGRAPH.search(self.reading.text[max(0, self.start - 40) : self.start]) is not None

    def _in_words(self, values: bool) -> str | None:
        """The answer that it gives in words: emphasised ones, a number, or what the result is said to be."""
        reading = self.reading
        bold = reading.bold(self.start, self.end)
        if bold is not None and _WORDS_ONLY.fullmatch(bold):
            at = reading.plain.rfind("\x02\x02" + bold, self.start, self.end)
            before = reading.plain[self.start : at].replace("\x02", " ")
            if not re.search(r"\w", before) or (COPULA.search(before) and not DENIED.search(before)):
                return bold if not bold.endswith(":") else None
        sentence = reading.text[self.start : self.end].strip().rstrip(".!")
        if values or DOUBT.search(sentence):
            return None
        count = _counted(sentence) if self.last else None
        if count is None and (self.concludes or (self.last and _SUBJECT.search(self.plain))):
            said = re.split(r"(?i)\b(?:is|are|be|get|equals)\b|:\s", sentence)
            words = ARTICLE.sub("", said[-1].strip(" .,;:!*_\"'"))
            return words if len(said) > 1 and 0 < len(words.split()) <= 3 else None
        return count


def _reason(after: str) -> str:
    """The part of a sentence's end that tells why, or more of a value: "because ...", "which is more than 46"."""
    found = _REASON.search(after)
    return found[0] if found else ""


def _counted(sentence: str) -> str | None:
    """The number in words that a sentence ends with, or ends with but for a word or two: "There are twenty-one ways"."""
    said = _COUNTED.search(sentence)
    words = said[1].lower().split() if said else []
    for n in range(len(words), max(0, len(words) - 3), -1):
        if spelled(" ".join(words[:n])) is not None:
            return None if {*NO_UNIT, "of", "and"}.intersection(words[n:]) else " ".join(words[:n])
    return None
