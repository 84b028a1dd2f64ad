r"""Where a response says its answer.

The ways, in the order in which a run tries them (``EXTRACT``); the first that finds a value decides:

1. ``boxed``: the last complete ``\boxed{...}``, also ``\boxed 5``, and of ``\boxed{\text{The answer is } 5}`` the value;
2. ``tag``: what stands in the last ``<answer>...</answer>``;
3. ``line``: what follows the last "Answer:", "answer is" (in a dozen languages), heading "Answer" or table cell "Answer"; of a sentence
   ("Final answer: the number of eggs is 12.") the value in its last words. "If the answer is 5" and "I don't think that the answer
   is 5" state none;
4. ``hash``: what follows the last ``####``;
5. ``closing``: the last formula of the text, in ``$...$``, ``\(...\)``, ``\[...\]``, ``$$...$$`` or as bare LaTeX; before that, if it
   stands later, a bold value, a paragraph that is only a number, the last cell under a table's "Answer", or a number or word of a sentence
   that concludes (So, Therefore, also behind a comma) or ends the text, at its end or the only one in it. A text that is only a value, too
   (and, for :func:`rlkit.verifier.verify.verify`, one that is only the reference, whatever it is made of).
   Names (``$x$``), conditions ("for ``$n > 0$``", "where ``$k = 2$``"), what is denied or bounded ("not 5", "at least 5", "5 is not
   it"), asides ("36 (24 apples and 12 pears)"), questions, remarks and checks of the result are not it.

And only where the data says so: ``number``: the last formula or number of the text, whatever stands around it; ``whole``: all of the text.
A number is one only if it stands on its own: not in ``x2``, ``H2O``, ``3rd``, ``2-step``, "step 3" or "(4)" after "equation".
For all ways but the first two, programs between fences are no text; what else stands between fences is a paragraph.

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
from rlkit.verifier.closing import closing, last_number
from rlkit.verifier.passages import DASH, boxes, formulas
from rlkit.verifier.phrases import DENIED, DOUBT, HENCE, PROSE, stripped, value_of, wordy
from rlkit.verifier.reader import read
from rlkit.verifier.values import Scalar

EXTRACT = ("boxed", "tag", "line", "hash", "closing")
KINDS = ("boxed", "tag", "line", "hash", "closing", "number", "whole")
MAX_RESPONSE = 1_000_000  # characters searched, from the end
_END = re.compile(
    r"<[|｜](?:im_end|eot_id|eom_id|eot|end_of_text|endoftext|return|eos|END_OF_TURN_TOKEN|END_RESPONSE|end▁of▁sentence|end_of_sentence)[|｜]>"
    r"|</s>|<end_of_turn>|<turn\|>|<eos>|<pad>|<\|end\|>(?!\s*<\|start\|>)"
)
_CHANNEL = re.compile(r"<\|channel\|>final<\|message\|>")
_GAP = r"(?:[*_]{1,2}|\s){0,4}"
# what the word for an answer has to be followed by so that an answer follows, by word
_STATES: dict[str, re.Pattern[str]] = {
    word: re.compile(rest, re.IGNORECASE)
    for words, rest in (
        (
            "answer",
            r"(?:s?(?:[*_]{1,2}|[\s,]|\b(?:should|must|would|will|to|turns?|comes?|out|therefore|thus|then|here|hence|choice|option|value)\b"
            r"|\bto\s+(?:the|this|that|your|our)\s+(?:\w+\s+)?(?:problem|question|exercise|task|puzzle|part)\b){0,8}"
            r"(?:(?:is|are|be|equals)\b|[=:：→])(?:\s*[:：])?|[*_ \t]{0,6}\|(?=[ \t]*[^\s|])|\.(?:\*\*|__)(?=\s))",
        ),
        ("option choice", rf"{_GAP}(?:is\b|:)"),
        ("ans", r"\.?[ \t]*(?:[:=]|[-–—](?=[ \t]))|\.(?=[ \t]+[-\d$\\(*])"),
        ("réponse reponse", rf"(?:\s+(?:finale|correcte|exacte))?{_GAP}(?:est\b|:)"),
        (
            "respuesta resposta risposta",
            rf"(?:\s+(?:finale?|corr?ec?ta|corretta|exacta))?{_GAP}(?:(?:es|é|è)(?!\w)|:)",
        ),
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
# "I do not think that the answer is 5", "if the answer is 5"
_DISOWNED = re.compile(
    r"(?i)(?:\bnot|n['’]t)\s+(?:think|believe|say|mean)\b[^.,;\n]*$"
    r"|\b(?:if|whether|unless|doubt)\s+(?:that\s+)?(?:the|my|our)?\s*$"
)
_BEFORE_CHOICE = re.compile(r"(?i)\b(?:correct|right)\s+$")
_HEADING = re.compile(r"(?i)(?:^|\n)[ \t>]*(?:#{1,6}[ \t]*|\*\*|__)(?:the\s+)?(?:(?:final|correct)\s+)?$")
_HEADED = re.compile(r"[ \t]*(?:\*\*|__)?[ \t]*(?=\n)")
_STOP = re.compile(
    r"\.(?=\s+[^\sa-z\d])|\.\s*$|[。！]|(?<=[a-z][a-z])!(?=\s|$)|(?i:,?\s+(?:because|since|which|where|as|when)\b)|\n|[✅✓✔🎉]|(?<=\s)\|"
)
_NO_ANSWERS = re.compile(
    r"(?i)^(?:helpful|correct|right|wrong|clear|useful|verified|consistent|reasonable|obtained|found|given|as follows|below|above|unique|in"
    r"|an?(?=\s)|just|simply)\b"
)
_TRIES = 20  # statements of an answer that are looked at, from the end
_FENCE = re.compile(r"^[ \t>]{0,12}(```|~~~)[ \t]{0,12}([\w+#.-]{0,20})[ \t]{0,12}$", re.MULTILINE)
_SHOWN = frozenset(("", *"text txt plaintext plain output out stdout console math latex tex markdown md".split()))
# No factorials.
_EXCLAIMED = re.compile(r"(?:%|°|\.\d+|\d/\d+|[<>≤≥]=?\s*-?\d+|\^\d+|\d\s?i|\d:\d+|e-?\d+|,.*[)}\]]|=.*)!$")
_COMMA_LANGUAGE = re.compile(
    r"(?i)\b(?:antwort|ergebnis|lautet|ist|réponse|résultat|donc|vaut|respuesta|resultado|es|resposta|portanto|risposta|risultato|quindi"
    r"|odpowiedź|wynik|wynosi|cevap|sonuç|antwoord|svaret|resultatet)\b|[а-яё]|\best\b|\b[éè]\s"
)
_ENGLISH = re.compile(r"(?i)\b(?:the|is|answer|so|of|and|therefore|we|it)\b")
_ADVERBS = re.compile(
    r"(?i)^(?:(?:therefore|thus|hence|then|indeed|simply|clearly|obviously|actually|in\s+fact|precisely|exactly)\b[,:\s]*)+"
)


@dataclass(frozen=True)
class Found:
    """An answer as written, and the way (one of ``KINDS``) that found it; ``comma``: its line is in a language of decimal commas."""

    text: str
    way: str
    comma: bool = False


def _parts(response: str) -> Iterator[str]:
    """What follows the thinking, then everything; both up to the end of the turn."""
    text = response[-MAX_RESPONSE:].lstrip()
    end = next((m.start() for m in _END.finditer(text) if m.start()), None)
    text = text[:end]
    if not text.isascii():
        text = DASH.sub("\u2212", text)
    thought = text.rfind("</think>")
    channel = None
    for channel in _CHANNEL.finditer(text):  # noqa: B007
        pass
    if channel is not None:
        yield text[channel.end() :]
    elif thought >= 0:
        yield text[thought + len("</think>") :]
    yield text


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{...}`` (braces may nest; of nested boxes the innermost), or None."""
    return next((content for _, _, content in boxes(text[-MAX_RESPONSE:])), None)


def _boxed(text: str) -> str | None:
    content = last_boxed(text)
    if content is None or not PROSE.search(content):
        return content
    value = value_of(content)
    # Words before it are dropped, none after it.
    ends = value is not None and content.rstrip(" .$}").endswith(value.rstrip(" .$}"))
    return value if ends else content


def _unfenced(text: str) -> str:
    """Without programs between fences, which say nothing of the answer; other text there is a paragraph of its own."""
    if "```" not in text and "~~~" not in text:
        return text
    out, at = [], 0
    opened: re.Match[str] | None = None
    for m in _FENCE.finditer(text):
        if opened is None:
            out += [text[at : m.start()], "\n\n"]
            opened, at = m, m.end()
        elif m[1] == opened[1] and not m[2]:
            out += [text[at : m.start()] if opened[2].lower() in _SHOWN else "", "\n\n"]
            opened, at = None, m.end()
    return "".join([*out, text[at:]])


def _without_formulas(text: str) -> str:
    """The same length, with formulas covered."""
    shadow = text
    for start, end, _ in formulas(text):
        shadow = shadow[:start] + "\x01" * (end - start) + shadow[end:]
    return shadow


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
            if word == "ans" and text[at - 1 : at].isalpha():
                continue
            if word in ("option", "choice") and not _BEFORE_CHOICE.search(text, max(0, at - 12), at):
                continue
            end = at + len(word)
            m = states.match(text, end)
            if m is None and word == "answer" and _HEADING.search(text[max(0, at - 40) : at]):
                m = _HEADED.match(text, end)
            if m is not None and not _DISOWNED.search(text, max(0, at - 60), at):
                found.add(m.end())
    return sorted(found)[-_TRIES:]


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
        return rest[display.end() : end].strip().rstrip(" \t\n.,") or None if end >= 0 else None
    rest = rest.lstrip().lstrip("|").lstrip()
    found = _STOP.search(_without_formulas(rest))
    if found is None and not complete:
        return None  # cut off inside the answer: 12 of 123
    if found is not None and not complete and found.end() >= len(rest) and not found[0].startswith("\n"):
        return None
    said = _ADVERBS.sub("", rest[: found.start() if found else None].strip(" \t:|,"))
    return (said[:-1] if _EXCLAIMED.search(said[-80:]) else said) or None


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
        if re.search(r"\d|\\", statement) and (DOUBT.search(statement) or DENIED.search(statement)):
            return stripped(statement)  # stated, but not as one value: nothing else in the text is more of an answer
    return None


def _concluded(statement: str) -> str | None:
    """The value of a statement: of "12, so she is right" what stands before "so", of "5 boxes of 3, so 15 apples" what stands after it."""
    parts = [p for p in HENCE.split(statement) if p.strip()]
    if len(parts) > 1:
        first = stripped(parts[0])
        if read(first, True) is not None and re.search(r"\d|\\", first) and not wordy(read(first, True), first):
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
    return stripped(statement) or None if statement else None


def _hash(text: str, complete: bool) -> str | None:
    at = text.rfind("####")
    if at < 0:
        return None
    line, newline, _ = text[at + 4 : at + 4 + MAX_TEXT].lstrip("# ").partition("\n")
    line = line.strip()
    if not line or not (newline or complete):
        return None
    return _line(line, True) or value_of(line) or line


def find(response: str, extract: Sequence[str] = EXTRACT, finish: str = "stop") -> Found | None:
    """What the response commits to and how it was found (the module's docstring has the order), or None.

    If ``finish`` is "length", an answer that ends with the text is not complete.

    Raises:
        ConfigError: an unknown way.
    """
    unknown = [kind for kind in extract if kind not in _WAYS]
    if unknown:
        raise ConfigError(f"the reward `math` has no extract {unknown[0]!r}; there are {', '.join(KINDS)}.")
    complete = finish != "length"
    parts = list(_parts(response))
    for part in parts:
        shown: str | None = None
        for kind in extract:
            if shown is None and kind not in ("boxed", "tag", "whole"):
                shown = _unfenced(part)
            text = _WAYS[kind](part if kind in ("boxed", "tag", "whole") else shown or "", complete)
            if text is not None and text.strip():
                return Found(text.strip(), kind, "," in text and _comma(part, text))
    for part in parts if "line" in extract else []:
        raw = _raw_line(part, complete)
        if raw is not None:
            return Found(raw, "line")
    return None


def _comma(text: str, answer: str) -> bool:
    """Whether the line that holds an answer is written in a language whose decimals have a comma: 2,5."""
    at = text.rfind(answer)
    if at < 0:
        return False
    start, end = text.rfind("\n", 0, at) + 1, text.find("\n", at)
    line = text[max(start, at - 400) : at] + (text[at + len(answer) : end if end >= 0 else None])[:400]
    return _COMMA_LANGUAGE.search(line) is not None and _ENGLISH.search(line) is None


def extract_answer(response: str, extract: Sequence[str] = EXTRACT, finish: str = "stop") -> str | None:
    """The text that :func:`find` finds."""
    found = find(response, extract, finish)
    return found.text if found is not None else None


_WAYS: dict[str, Callable[[str, bool], str | None]] = {
    "boxed": lambda text, complete: _boxed(text),
    "tag": _tag,
    "line": _line,
    "hash": _hash,
    "closing": closing,
    "number": last_number,
    "whole": lambda text, complete: text.strip() or None if complete else None,
}
