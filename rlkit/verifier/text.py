"""One spelling for what LaTeX and Unicode spell in many ways: cleaned text, compact text, words."""

from __future__ import annotations

import re
import unicodedata

from rlkit.verifier.algebra import MAX_TEXT, Unreadable

_SUPER = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n", strict=True))
_SUB = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_UNICODE = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "—": "-",
        "‐": "-",
        "‑": "-",
        "﹣": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "∗": "*",
        "÷": r"\div ",
        "π": r"\pi ",
        "∞": r"\infty ",
        "≤": r"\le ",
        "⩽": r"\le ",
        "≥": r"\ge ",
        "⩾": r"\ge ",
        "≠": r"\ne ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∈": r"\in ",
        "°": r"^\circ ",
        "º": r"^\circ ",
        "±": r"\pm ",
        "∓": r"\mp ",
        "≈": r"\approx ",
        "ℝ": r"\reals ",
        "∅": r"\emptyset ",
        "⟨": r"\langle ",
        "⟩": r"\rangle ",
        "¢": r"\text{cents}",
        "€": r"\text{euros}",
        "£": r"\text{pounds}",
        "½": r"\frac{1}{2}",
        "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}",
        "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}",
        "⅕": r"\frac{1}{5}",
        "⅙": r"\frac{1}{6}",
        "⅛": r"\frac{1}{8}",
        "⅞": r"\frac{7}{8}",
        "⅝": r"\frac{5}{8}",
        "⅜": r"\frac{3}{8}",
        "⅚": r"\frac{5}{6}",
        "⅘": r"\frac{4}{5}",
        "⅗": r"\frac{3}{5}",
        "⅖": r"\frac{2}{5}",
        "⁄": "/",
        "∕": "/",
        "′": "'",
        "’": "'",
        "…": r"\ldots ",
        "θ": r"\theta ",
        "α": r"\alpha ",
        "β": r"\beta ",
        "γ": r"\gamma ",
        "λ": r"\lambda ",
        "φ": r"\phi ",
        "ω": r"\omega ",
        "∠": r"\angle ",
        "\u200b": "",
        "\ufeff": "",
        "∖": r"\setminus ",
    }
)
_DROPPED = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|middle)(?![A-Za-z])\s*\.?(?=\\|[^\w.]|$)|\\(?:left|right)\."
    r"|\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|mathstrut|bf|rm|it|boldsymbol|ensuremath|allowbreak)(?![A-Za-z])"
    r"|\\h?phantom\s*(?:\{[^{}]{0,40}\}|[^\s{])|\\[hv]space\s*\{[^{}]{0,20}\}"
)
_BLANK = re.compile(r"\\[,;:! ]|~|\\q?quad(?![A-Za-z])|\\(?:thin|thick|med|neg(?:thin)?)?space(?![A-Za-z])|\s")
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|['’]|,\\!|\{,\\!\}|\\,|\\ |,\\ )\s{0,3}(?=\d{3}(?!\d))")
TEXT_COMMAND = re.compile(
    r"\\(?:text(?:bf|rm|it|normal|up|sf|tt|sc)?|mbox|hbox|"
    r"math(?:rm|bf|it|sf|tt|bb|cal|ds)|Bbb|operatorname\*?|emph|mathop|underline|fbox|boxed)\s*\{"
)
# TeX's old way: {a \over b}
_OVER = re.compile(
    r"\{((?:[^{}]|\{[^{}]{0,60}\}){1,200}?)\\(over|choose)(?![A-Za-z])((?:[^{}]|\{[^{}]{0,60}\}){1,200})\}"
)
_MONEY = re.compile(r"([€£])\s?(\d[\d,.]*)")
_CLOCK = re.compile(
    r"(?<=:\d\d)\s*([AaPp])\.?\s?[Mm](?![A-Za-z])\.?|(?<=\d)\s*([AP])M(?![A-Za-z])|(?<=\d)\s*([ap])\.\s?m\."
)
_REALS = re.compile(r"\\(?:mathbb|Bbb|mathbf|mathds)\s*(?:\{\s*R\s*\}|R(?![A-Za-z]))")
_WRAPPED = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"), ('"', '"'))


def clean(text: str) -> str:
    """One spelling for what LaTeX and Unicode spell in many ways; the meaning stays. Linear in the length.

    Raises:
        Unreadable: longer than ``MAX_TEXT``.
    """
    if len(text) > 4 * MAX_TEXT:
        raise Unreadable("the answer is too long")
    s = text.strip()
    if "=" in s:
        s = s.replace("<=", r"\le ").replace(">=", r"\ge ").replace("!=", r"\ne ")
    if not s.isascii():
        s = _MONEY.sub(r"\2\1", s)
        s = re.sub("[⁰¹²³⁴-⁹⁻⁺ⁿ]+", lambda m: "^{" + "".join(_SUPER[c] for c in m[0]) + "}", s)
        s = re.sub("[₀-₉]+", lambda m: "_{" + "".join(_SUB[c] for c in m[0]) + "}", s)
        s = re.sub(r"√\s?(\d+(?:\.\d+)?|[A-Za-z])", r"\\sqrt{\1}", s).replace("√", r"\sqrt ")
        s = unicodedata.normalize("NFKC", s.translate(_UNICODE))
    for _ in range(4):
        before = s
        for start, end in _WRAPPED:
            if (
                len(s) > len(start) + len(end)
                and s.startswith(start)
                and s.endswith(end)
                and start not in s[len(start) : -len(end)]
            ):
                s = s[len(start) : -len(end)].strip()
        if s == before:
            break
    s = re.sub(r"\\\\(?:\[[^\]]{0,12}\])?", r"\\newrow " if r"\begin" in s else r"\\", s)  # without rows: escaped twice
    s = _REALS.sub(r"\\reals ", s)
    if r"\over" in s or r"\choose" in s:
        s = f"{{{s}}}"  # the braces around a formula as a whole may be left out
        for _ in range(3):
            s = _OVER.sub(lambda m: rf"\{'frac' if m[2] == 'over' else 'binom'}{{{m[1]}}}{{{m[3]}}}", s)
        s = s[1:-1] if s.startswith("{") and s.endswith("}") and braced(s, 1) == len(s) else s
    if "m" in s or "M" in s:
        s = _CLOCK.sub(lambda m: rf" \text{{{(m[1] or m[2] or m[3]).lower()}m}}", s)
    s = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", _THOUSANDS.sub("", s))
    if "{,}" in s:
        s = re.sub(r"(?<=\d)\{,\}(?=\d)", ".", s)  # not before three digits: a decimal comma
    s = _DROPPED.sub(" ", s)
    s = _BLANK.sub(" ", s)
    s = re.sub(r" {2,}", " ", s).strip()
    while s and s[-1] in ".,;:" and not s.endswith("\\;"):
        s = s[:-1].rstrip()
    if len(s) > MAX_TEXT:
        raise Unreadable("the answer is too long")
    return s


def compact(s: str) -> str:
    """Cleaned text without blanks, except where removing one would join numbers or words."""
    return re.sub(r"(?<![A-Za-z0-9]) +| +(?![A-Za-z0-9])", "", s)


def words(s: str) -> str:
    """Cleaned text as words: without text commands, brackets around a letter, punctuation at the ends and case."""
    s = TEXT_COMMAND.sub("{", s).replace("{", " ").replace("}", " ").replace("$", " ").replace("*", " ")
    s = " ".join(s.split()).strip(" .,;:!?'\"").casefold()
    lone = re.fullmatch(r"\(\s*(\w+)\s*\)", s)
    return lone[1] if lone else s


def untexted(s: str) -> str:
    """Compact text without text commands around its words."""
    out, i = [], 0
    for found in TEXT_COMMAND.finditer(s):
        if found.start() >= i:
            try:
                end = braced(s, found.end())
            except Unreadable:
                return s
            out += [s[i : found.start()], s[found.end() : end - 1].strip()]
            i = end
    return compact("".join([*out, s[i:]]))


def braced(s: str, start: int) -> int:
    """Index after the brace that closes the one opened just before ``start``."""
    depth = 1
    for i in range(start, len(s)):
        c = s[i]
        if c == "{":
            depth += 1
        elif c == "}":
            depth -= 1
            if depth == 0:
                return i + 1
    raise Unreadable("an open brace")
