"""Cleaned text to tokens, and tokens by their brackets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rlkit.verifier.algebra import MAX_DEPTH, Unreadable
from rlkit.verifier.numeric import FUNCTIONS
from rlkit.verifier.spelled import NUMBER_WORDS
from rlkit.verifier.text import TEXT_COMMAND, braced
from rlkit.verifier.units import UNITS

MAX_DIGITS = 400  # of a literal


class Token(NamedTuple):
    kind: str  # number, word (text), cmd, letter, or the character itself
    text: str
    gap: bool = False  # a blank stands before it


_COMMANDS = {
    "dfrac": "frac",
    "tfrac": "frac",
    "cfrac": "frac",
    "dbinom": "binom",
    "tbinom": "binom",
    "leq": "le",
    "leqslant": "le",
    "geq": "ge",
    "geqslant": "ge",
    "neq": "ne",
    "lt": "<",
    "gt": ">",
    "cdot": "*",
    "times": "*",
    "ast": "*",
    "div": "/",
    "varnothing": "emptyset",
    "lbrace": "{",
    "rbrace": "}",
    "lbrack": "[",
    "rbrack": "]",
    "lvert": "|",
    "rvert": "|",
    "vert": "|",
    "infin": "infty",
    "R": "reals",
    "degree": "circ",
    "lor": "or",
    "vee": "or",
    "land": "and",
    "wedge": "and",
    "backslash": "setminus",
    "arcctg": "arccot",
    "tg": "tan",
    "ctg": "cot",
    "varphi": "phi",
    "varepsilon": "epsilon",
    "simeq": "approx",
    "doteq": "approx",
    "sim": "approx",
    "cong": "approx",
    "colon": ":",
    "mid": "|",
    "isin": "in",
    "lparen": "(",
    "rparen": ")",
    "cdots": "ldots",
    "dots": "ldots",
}
_TOKEN = re.compile(
    r"(?P<number>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+(?![A-Za-z\d]))?)"
    r"|(?P<cmd>\\(?:[A-Za-z]+|.))|(?P<letters>[A-Za-z]+)|(?P<other>\S)",
    re.DOTALL,
)
GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar".split()
)
PLAIN = {
    "pi": "pi",
    "sqrt": "sqrt",
    "infinity": "infty",
    "inf": "infty",
    "oo": "infty",
    "infty": "infty",
    "theta": "theta",
    "alpha": "alpha",
    "beta": "beta",
    "frac": "frac",
    "degrees": "°",
    "degree": "°",
    "deg": "°",
    "percent": "%",
    "lambda": "lambda",
    "phi": "phi",
    "union": "cup",
}
CONNECT = {"or": "or", "and": "and", ", and": "and", ", or": "or", ",and": "and", ",or": "or", "and/or": "or"}
CALLS = FUNCTIONS.keys() - {"abs", "floor", "ceil", "binom", "factorial"} | {"ln", "lg", "asin", "acos", "atan"}
_OPEN = {"(", "[", "\\{", "{", "langle", "lfloor", "lceil", "begin"}
_CLOSE = {")", "]", "\\}", "}", "rangle", "rfloor", "rceil", "end"}


def tokenize(s: str) -> list[Token]:
    """Tokens of a cleaned text; ``\text{...}`` becomes a word, or its content where that is mathematics."""
    out: list[Token] = []
    i, gap, n = 0, False, len(s)
    while i < n:
        if s[i] == " ":
            gap, i = True, i + 1
            continue
        if s[i] == "\\":
            text = TEXT_COMMAND.match(s, i)
            if text:
                end = braced(s, text.end())
                out.extend(_text_tokens(s[text.end() : end - 1], text[0], gap))
                i, gap = end, False
                continue
        found = _TOKEN.match(s, i)
        assert found is not None
        i = found.end()
        kind, text_of = found.lastgroup, found[0]
        if kind == "number":
            if len(text_of) > MAX_DIGITS:
                raise Unreadable("a number is too long")
            out.append(Token("number", text_of, gap))
        elif kind == "cmd":
            name = text_of[1:]
            name = _COMMANDS.get(name, name)
            if name in ("or", "and"):
                out.append(Token("connect", name, gap))
            elif name in "{}[]()<>:*/|%$&#_" and name:
                out.append(Token({"{": "\\{", "}": "\\}"}.get(name, name), name, gap))
            else:
                out.append(Token("cmd", name, gap))
        elif kind == "letters":
            out.extend(_letter_tokens(text_of, gap, out[-1] if out else None))
        else:
            out.append(Token(text_of, text_of, gap))
        gap = False
    return out


def _text_tokens(content: str, command: str, gap: bool) -> list[Token]:
    inner = content.strip()
    if inner.casefold() in CONNECT:
        return [Token("connect", CONNECT[inner.casefold()], gap)]
    if (
        command.startswith((r"\fbox", r"\boxed", r"\underline"))
        or not re.search(r"[A-Za-z]", inner)
        or re.search(r"[\\^_=]", inner)
        or (command.startswith(r"\math") and not re.fullmatch(r"[A-Za-z' ]+", inner))
    ):
        return tokenize(inner)
    if command.startswith((r"\math", r"\operatorname")) and (len(inner) == 1 or inner in CALLS):
        return _letter_tokens(inner, gap, None)
    return [Token("word", content, gap)]


def _letter_tokens(run: str, gap: bool, before: Token | None) -> list[Token]:
    low = run.casefold()
    if low in CONNECT:
        return [Token("connect", CONNECT[low], gap)]
    if low in NUMBER_WORDS and len(run) > 1:
        return [Token("word", run, gap)]
    if run in CALLS or run in ("sqrt",):
        return [Token("cmd", run, gap)]
    if low in PLAIN:
        name = PLAIN[low]
        return [Token(name, name, gap) if name in "°%" else Token("cmd", name, gap)]
    after_number = before is not None and (before.kind in ("number", "word", "}", ")") or before.text in GREEK)
    known = (len(run) >= 2 and low in UNITS) or low in ("sq", "cu")
    if known and (after_number or len(run) >= 3):
        return [Token("word", run, gap)]
    if len(run) >= 4 or (len(run) == 3 and (run.isupper() or (gap and after_number and run.islower()))):
        return [Token("word", run, gap)]
    if len(run) == 1 and gap and before is not None and before.kind == "word":
        return [Token("word", run, gap)]
    return [Token("letter", c, gap and k == 0) for k, c in enumerate(run)]


def name_of(t: Token) -> str:
    return t.text if t.kind == "cmd" else t.kind


def _depths(tokens: list[Token]) -> Iterator[tuple[int, Token, int]]:
    """``(index, token, depth outside of it)``."""
    depth = 0
    for i, t in enumerate(tokens):
        name = name_of(t)
        if name in _CLOSE:
            depth -= 1
            if depth < 0:
                raise Unreadable("brackets do not match")
        yield i, t, depth
        if name in _OPEN:
            depth += 1
            if depth > MAX_DEPTH:
                raise Unreadable("too deeply nested")
    if depth:
        raise Unreadable("brackets do not match")


def split(tokens: list[Token], at: Callable[[Token], bool]) -> tuple[list[list[Token]], list[Token]]:
    """Pieces between the tokens at depth 0 for which ``at`` holds, and those tokens."""
    parts: list[list[Token]] = [[]]
    found = []
    for _, t, depth in _depths(tokens):
        if depth == 0 and at(t):
            parts.append([])
            found.append(t)
        else:
            parts[-1].append(t)
    return parts, found


def enclosed(tokens: list[Token]) -> bool:
    """Whether the first token's bracket closes at the last token."""
    if len(tokens) < 2 or name_of(tokens[0]) not in _OPEN or name_of(tokens[-1]) not in _CLOSE:
        return False
    return all(depth > 0 for i, _, depth in _depths(tokens) if 0 < i < len(tokens) - 1)
