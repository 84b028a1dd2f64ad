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
   that concludes (So, Therefore, also behind a comma) or ends the text, at its end or the only one in it. A text that is only a value, too.
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
from rlkit.verifier.passages import DASH, Passage, formulas
from rlkit.verifier.phrases import (
    ARTICLE,
    BEFORE,
    CHANGED_AFTER,
    CHOICE,
    CONDITION,
    COPULA,
    DENIED,
    DOUBT,
    MONTH,
    OPTION,
    PROSE,
    outcome,
    stripped,
    value_of,
    wordy,
)
from rlkit.verifier.reader import read
from rlkit.verifier.spelled import spelled
from rlkit.verifier.units import NO_UNIT
from rlkit.verifier.values import Scalar

EXTRACT = ("boxed", "tag", "line", "hash", "closing")
KINDS = ("boxed", "tag", "line", "hash", "closing", "number", "whole")
MAX_RESPONSE = 1_000_000  # characters searched, from the end
TAIL = 8_000  # characters in which formulas and sentences are looked for
SENTENCES = 40  # from the end, in which the closing value may stand
_END = re.compile(
    r"<[|｜](?:im_end|eot_id|eom_id|eot|end_of_text|endoftext|return|eos|END_OF_TURN_TOKEN|END_RESPONSE|end▁of▁sentence|end_of_sentence)[|｜]>"
    r"|</s>|<end_of_turn>|<turn\|>|<eos>|<pad>|<\|end\|>(?!\s*<\|start\|>)"
)
_CHANNEL = re.compile(r"<\|channel\|>final<\|message\|>")
_BRACES = re.compile(
    r"\\(?:boxed|fbox)\s{0,3}(?:(\{)|([-+\u2212\u2013]?(?:\\[dt]?frac\s?(?:\d\d|\{[^{}$]{1,40}\}\{[^{}$]{1,40}\})|\\sqrt\s?(?:\d|\{[^{}$]{1,40}\})"
    r"|[0-9A-Za-z][^\s$.,;)\\{}]*(?:\.\d+)?|\([^()$\n]{1,60}\))))|\\[{}]|[{}]"
)
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
        ("ans", r"\.?[ \t]*[:=]"),
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
    r"(?i)\b(?:n['’]t|not)\s+(?:think|believe|say|mean)\b[^.,;\n]*$|n['’]t\s+(?:think|believe|say|mean)\b[^.,;\n]*$"
    r"|\b(?:if|whether|unless|doubt)\s+(?:that\s+)?(?:the|my|our)?\s*$"
)
_BEFORE_CHOICE = re.compile(r"(?i)\b(?:correct|right)\s+$")
_HEADING = re.compile(r"(?i)(?:^|\n)[ \t>]*(?:#{1,6}[ \t]*|\*\*|__)(?:the\s+)?(?:(?:final|correct)\s+)?$")
_HEADED = re.compile(r"[ \t]*(?:\*\*|__)?[ \t]*(?=\n)")
_STOP = re.compile(
    r"\.(?=\s+[^\sa-z\d])|\.\s*$|[。！]|(?<=[a-z][a-z])!(?=\s|$)|(?i:,?\s+(?:because|since|which|where|as|when)\b)|\n|[✅✓✔🎉]|(?<=\s)\|"
)
_HENCE = re.compile(r"(?i),?\s+(?:so|hence|therefore|thus)\b(?!\s+(?:that|far|on)\b)")
_NO_ANSWERS = re.compile(
    r"(?i)^(?:helpful|correct|right|wrong|clear|useful|verified|consistent|reasonable|obtained|found|given|as follows|below|above|unique|in"
    r"|an?(?=\s)|just|simply)\b"
)
_TRIES = 20  # statements of an answer that are looked at, from the end
_FENCE = re.compile(r"^[ \t>]{0,12}(```|~~~)[ \t]*([\w+#.-]{0,20})[ \t]*$", re.MULTILINE)
_SHOWN = frozenset(("", *"text txt plaintext plain output out stdout console math latex tex markdown md".split()))
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
_EXCLAIMED = re.compile(
    r"(?:%|°|\.\d+|\d/\d+|[<>≤≥]=?\s*-?\d+|\^\d+|\d\s?i|\d:\d+|e-?\d+|,.*[)}\]]|=.*)!$"
)  # no factorials
_COMMA_LANGUAGE = re.compile(
    r"(?i)\b(?:antwort|ergebnis|lautet|ist|réponse|résultat|donc|vaut|respuesta|resultado|es|resposta|portanto|risposta|risultato|quindi"
    r"|odpowiedź|wynik|wynosi|cevap|sonuç|antwoord|svaret|resultatet)\b|[а-яё]|\best\b|\b[éè]\s"
)
_ENGLISH = re.compile(r"(?i)\b(?:the|is|answer|so|of|and|therefore|we|it)\b")
_REASON = re.compile(r"(?i)[,;]?\s+(?:because|since|as|which|where|when|while)\b.*$", re.DOTALL)
_ANSWERS = re.compile(r"(?i)\b(?:answers?|results?|values?|solutions?)[\s*_]*\|?\s*$")  # the last of a table's heads
# a text that begins with a line for its result
_OPENS = re.compile(
    r"(?i)(?:\*\*|__)(?:(?:final\s+)?(?:result|solution|value|total)\s*)?(?::\s*(?:\*\*|__))?\s*([^*_\n:]{1,80}?)(?:\*\*|__)?"
    r"[ \t.]*\n[ \t]*\n"
)
_IDENTIFIED = re.compile(
    r"(?i)(?<!there )\bis\s+\S+(?:\s\S+)?\W*$"
)  # ", so the fastest is Evelyn", not ", so we are done"
_CLEAR = re.compile(r"(?i)\b(?:is|are|be|equals?|gets?)(?:\s+(?:about|only|just))?\s*\$?$|[=:]\s*$")
_COUNTED = re.compile(
    r"(?i)\b(?:is|are|be|equals?|gets?|makes?|needs?|takes?|leaves?|has|have)\s+((?:[a-z]+[ -]?){1,10})$"
)
_ADVERBS = re.compile(
    r"(?i)^(?:(?:therefore|thus|hence|then|indeed|simply|clearly|obviously|actually|in\s+fact|precisely|exactly)\b[,:\s]*)+"
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
_WORDS_ONLY = re.compile(r"[A-Za-z][A-Za-z'’-]*(?: [A-Za-z'’-]+){0,3}\.?")


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
    return (said[:-1] if _EXCLAIMED.search(said) else said) or None


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
    parts = [p for p in _HENCE.split(statement) if p.strip()]
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


def _closing(text: str, complete: bool) -> str | None:
    if not complete:
        return None
    opens = _OPENS.match(text)
    if (
        opens
        and not _LATER.search(text, opens.end())
        and value_of(opens[1]) is not None
        and re.search(r"\d|\\", opens[1])
    ):
        return value_of(opens[1])
    for tail in _tails(text):
        if re.search(r"\\(?:boxed|fbox)\s*\{", tail) and not boxes(tail):
            return None  # a box that does not close is an answer that was not finished
        value = _last_value(_unmarked(tail), every_number=False)
        if value is not None:
            return value
    return _sole(text)


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
        for hence in _HENCE.finditer(sentence):  # noqa: B007
            pass
        if hence is not None:  # "it takes 2/2=1, so the total is 2+1=3 bolts"
            value = _value_in(reading, start + hence.end(), end, True, every_number, last)
            if value is not None and (re.search(r"\d|\\", value) or _IDENTIFIED.search(sentence[hence.end() :])):
                return value
        value = _value_in(reading, start, end, _CONCLUDES.search(sentence) is not None, every_number, last)
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


def _value_in(reading: Passage, start: int, end: int, concludes: bool, every_number: bool, last: bool) -> str | None:
    """The value that a sentence states; ``last``: it ends the text, ``concludes``: it says that it is a conclusion."""
    groups = reading.groups(start, end)
    sentence = reading.plain[start:end]
    assumes = _ASSUMES.search(sentence) is not None and not concludes
    asks = (
        _TASK.search(sentence) is not None or _ASKED.search(reading.plain[max(0, start - BEFORE) : start]) is not None
    )
    # a sentence that only tells what is given ends many a question that was repeated, and no answer
    told = _WORKED.search(reading.text) or _STATED.search(sentence) or not reading.text[:start].strip()
    given = _GIVEN.search(sentence) is not None or not told
    for k in range(len(groups) - 1, -1, -1):
        g = groups[k]
        left = groups[k - 1].end if k else start
        before = reading.plain[max(left, g.start - BEFORE) : g.start].replace("\x02", " ")
        after = reading.plain[g.end : end].replace("\x02", " ")
        if DENIED.search(before) or _DENIED_AFTER.search(after) or _BY.search(before):
            continue
        if CONDITION.search(before) and not re.search(r"(?i)\b(?:is|are|be|equals?)\s*$|[:=]\s*$", before):
            continue
        if "=" in g.text and k and _PLACE.search(before):
            continue
        comes = _COMES.search(before) is not None
        if not every_number and (
            (assumes and not (comes and "," in reading.plain[start : g.start]))
            or (asks and "=" not in g.text and not comes)
        ):
            continue
        marked = reading.plain[start : g.start].count("\x02\x02") % 2 == 1 or reading.titled(start, g.start)
        delimited = reading.plain[g.start : g.start + 1] == "\x01"
        digits = any(c.isdigit() for c in g.text)
        stated = COPULA.search(before) is not None or not re.search(r"\w", before)
        alone = not reading.plain[start : g.start].strip(" \t\n\x02") and not after.strip(" \t\n.,")
        if g.formula or (delimited and (alone or digits or (stated and concludes))):
            return outcome(reading.with_unit(g, end))
        if CHANGED_AFTER.search(after):
            return None
        unit = len(reading.unit_mask(g, end))
        words = reading.masked[g.end + unit : end]  # after it and its unit
        is_it = _IS_IT.search(after[unit:]) is not None
        if digits:
            month = MONTH.search(before)
            if month is not None:
                return f"{month[0].strip()} {g.text}" if concludes and not words.strip(" .!\n\x02") else None
            if last and not before.strip() and not words.strip(" \t\n.,!\x02") and _apart(reading.text, start):
                return outcome(reading.with_unit(g, end))
            ends = last and not given and before.strip() and "\x00" not in words[: len(words) - len(_reason(after))]
            sole = last and not given and len(groups) == 1 and len(before.split()) > 1
            if every_number or concludes or marked or is_it or ends or sole:
                # of several plain numbers that follow one another, it is not clear which is meant
                clear = k == 0 or _CLEAR.search(before) or re.search(r"\d.*=", g.text)
                modified = _MODIFIED.search(before) is not None
                return outcome(reading.with_unit(g, end)) if every_number or (clear and not modified) else None
        elif CHOICE.fullmatch(g.text) and (
            (is_it and (OPTION.search(before) or not re.search(r"\w", before)))
            or (last and OPTION.search(before) and not after[: len(after) - len(_reason(after))].strip(" .!\n"))
            or (
                (concludes or stated or OPTION.search(before) or re.search(r"\b(?:with|by)\s*$", before))
                and (marked or concludes or (last and (delimited or (COPULA.search(before) and "\x00" not in words))))
            )
        ):
            return g.text
    return _words_in(reading, start, end, concludes, last, bool(groups))


def _apart(text: str, start: int) -> bool:
    """Whether a paragraph begins at a position, or what a colon before it announces."""
    return _PARAGRAPH.search(text[max(0, start - 40) : start]) is not None


def _reason(after: str) -> str:
    """The part of a sentence's end that tells why, or more of a value: "because ...", "which is more than 46"."""
    found = _REASON.search(after)
    return found[0] if found else ""


def _words_in(reading: Passage, start: int, end: int, concludes: bool, last: bool, values: bool) -> str | None:
    """The answer that a sentence gives in words: emphasised ones, a number, or what the result is said to be."""
    bold = reading.bold(start, end)
    if bold is not None and _WORDS_ONLY.fullmatch(bold):
        before = reading.plain[start : reading.plain.rfind("\x02\x02" + bold, start, end)].replace("\x02", " ")
        if not re.search(r"\w", before) or (COPULA.search(before) and not DENIED.search(before)):
            return bold if not bold.endswith(":") else None
    if values:
        return None
    sentence = reading.text[start:end].strip().rstrip(".!")
    if DOUBT.search(sentence):
        return None
    count = _counted(sentence) if last else None
    if count is not None:
        return count
    if concludes or (last and _SUBJECT.search(reading.plain[start:end])):
        said = re.split(r"(?i)\b(?:is|are|be|get|equals)\b|:\s", sentence)
        words = ARTICLE.sub("", said[-1].strip(" .,;:!*_\"'"))
        if len(said) > 1 and 0 < len(words.split()) <= 3:
            return words
    return None


def _counted(sentence: str) -> str | None:
    """The number in words that a sentence ends with, or ends with but for a word or two: "There are twenty-one ways"."""
    said = _COUNTED.search(sentence)
    words = said[1].lower().split() if said else []
    for n in range(len(words), max(0, len(words) - 3), -1):
        if spelled(" ".join(words[:n])) is not None:
            return None if {*NO_UNIT, "of", "and"}.intersection(words[n:]) else " ".join(words[:n])
    return None


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
        shown = _unfenced(part)
        for kind in extract:
            text = _WAYS[kind](part if kind in ("boxed", "tag", "whole") else shown, complete)
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
    "closing": _closing,
    "number": _number,
    "whole": lambda text, complete: text.strip() or None if complete else None,
}
