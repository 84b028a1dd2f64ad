r"""Graded answers as chat models write them: what is right is known because it was made so, not because a verifier says so.

An :class:`Answer` is a reference, other ways to write it, and near misses (another number, the opposite sign, the reciprocal, swapped
entries, the other end of an interval, another unit). A style is how a model writes its last lines. Every case puts one into the other, behind
a few lines of working that hold other numbers and, where the case is wrong, often the right answer too. ``TUNED``, ``SECOND`` and ``THIRD``
styles were looked at while the verifier was written, the latter two after a first run that is noted there; of ``HELD_OUT``, too, the
first run is what counts (98.9 %, none of 1,495 wrong ones accepted).

    for case in cases(seed=0): ...                       # without files: generic answers
    for case in cases(seed=0, files=["math500.jsonl"]):  # the references of data sets (rows with "answer") as well
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Answer:
    """``right``: ways to write ``gold`` in LaTeX; ``wrong``: near misses. ``plain`` turns each into plain text, or None where none is usual."""

    kind: str
    gold: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    plain: bool = False  # the texts are at home in a sentence without LaTeX


@dataclass(frozen=True)
class Case:
    kind: str
    style: str
    part: str  # of the benchmark: the styles that the verifier was written with, or held out
    gold: str
    text: str
    right: bool


# ------------------------------------------------------------------------------------------------------------------------- answers


def _integer(r: random.Random) -> Answer:
    n = r.choice((r.randint(2, 99), r.randint(100, 999), -r.randint(2, 60)))
    return Answer(
        "integer",
        str(n),
        (str(n), f"{n}", f"{n}.0" if r.random() < 0.2 else str(n)),
        (str(n + 1), str(-n), str(n * 10)),
        True,
    )


def _thousands(r: random.Random) -> Answer:
    n = r.randint(1_000, 9_999_999)
    grouped = f"{n:,}"
    ways = (grouped, grouped.replace(",", "{,}"), grouped.replace(",", r"\,"), str(n))
    near = (f"{n + 1000:,}", f"{n + 1000:,}".replace(",", r"\,"), f"{n * 10:,}", f"{n % 1000 + 1}")
    return Answer("thousands", str(n), ways, near)


def _thousands_plain(r: random.Random) -> Answer:
    n = r.randint(1_000, 9_999_999)
    ways = tuple(f"{n:,}".replace(",", mark) for mark in (",", " ", "\u202f", "\u00a0"))
    return Answer("thousands", str(n), ways, tuple(f"{n + 1000:,}".replace(",", mark) for mark in (",", " ")), True)


def _decimal(r: random.Random) -> Answer:
    n = r.randint(101, 9999)
    n += n % 10 == 0
    text = f"{n / 100:.2f}"
    return Answer("decimal", text, (text, text + "0"), (f"{n / 10:.1f}", f"{(n + 100) / 100:.2f}", f"{n // 100}"), True)


def _fraction(r: random.Random) -> Answer:
    b = r.choice((3, 7, 9, 11, 13))
    a = r.choice([k for k in range(1, 4 * b) if k % b])
    gold = rf"\frac{{{a}}}{{{b}}}"
    ways = (
        rf"\frac{{{a}}}{{{b}}}",
        rf"\dfrac{{{a}}}{{{b}}}",
        f"{a}/{b}",
        rf"\frac{{{2 * a}}}{{{2 * b}}}",
        rf"\tfrac{{{a}}}{{{b}}}",
    )
    return Answer(
        "fraction",
        gold,
        ways,
        (rf"\frac{{{b}}}{{{a}}}", rf"\frac{{{a + 1}}}{{{b}}}", rf"-\frac{{{a}}}{{{b}}}", f"{a}", f"{b}"),
    )


def _fraction_plain(r: random.Random) -> Answer:
    b = r.choice((3, 7, 9, 11, 13))
    a = r.randint(1, b - 1)
    shown = f"{a / b:.12f}"
    return (
        Answer(
            "fraction",
            rf"\frac{{{a}}}{{{b}}}",
            (f"{a}/{b}",),
            (f"{b}/{a}", f"{a + 1}/{b}", f"-{a}/{b}", f"{a / b:.2f}"),
            True,
        )
        if (r.random() < 0.7)
        else Answer("long decimal", rf"\frac{{{a}}}{{{b}}}", (shown,), (f"{a / b + 0.01:.12f}", f"{b / a:.12f}"), True)
    )


def _mixed(r: random.Random) -> Answer:
    w, b = r.randint(2, 9), r.choice((3, 4, 5, 7))
    a = r.randint(1, b - 1)
    return Answer(
        "mixed number",
        rf"\frac{{{w * b + a}}}{{{b}}}",
        (rf"{w}\frac{{{a}}}{{{b}}}", rf"{w} \frac{{{a}}}{{{b}}}"),
        (rf"{w + 1}\frac{{{a}}}{{{b}}}", rf"\frac{{{a}}}{{{b}}}"),
    )


def _surd(r: random.Random) -> Answer:
    a, d = r.randint(2, 9), r.choice((2, 3, 5, 7, 11))
    ways = (rf"{a}\sqrt{{{d}}}", rf"\sqrt{{{a * a * d}}}", rf"{a} \sqrt{d}")
    return Answer(
        "surd",
        rf"{a}\sqrt{{{d}}}",
        ways,
        (rf"{a + 1}\sqrt{{{d}}}", rf"\sqrt{{{d}}}", rf"{a * d}"),
    )


def _pi(r: random.Random) -> Answer:
    a = r.randint(2, 40)
    return Answer("pi", rf"{a}\pi", (rf"{a}\pi", rf"{a} \pi"), (rf"{a + 1}\pi", rf"\frac{{\pi}}{{{a}}}", f"{a}"))


def _interval(r: random.Random) -> Answer:
    a = r.randint(-9, 5)
    b = a + r.randint(1, 9)
    return Answer(
        "interval",
        f"[{a}, {b})",
        (f"[{a}, {b})", rf"\left[{a}, {b}\right)", rf"{a} \le x < {b}", rf"x \in [{a},{b})"),
        (f"[{a}, {b}]", f"({a}, {b})", f"[{a}, {b + 1})"),
    )


def _union(r: random.Random) -> Answer:
    a = r.randint(-9, 0)
    b = a + r.randint(1, 9)
    gold = rf"(-\infty, {a}) \cup ({b}, \infty)"
    return Answer(
        "interval",
        gold,
        (gold, rf"(-\infty,{a})\cup({b},\infty)"),
        (rf"(-\infty, {a}] \cup [{b}, \infty)", f"({a}, {b})"),
    )


def _tuple(r: random.Random) -> Answer:
    a, b = r.sample(range(-9, 20), 2)
    return Answer(
        "tuple",
        f"({a}, {b})",
        (f"({a}, {b})", f"({a},{b})", rf"\left({a}, {b}\right)"),
        (f"({b}, {a})", f"({a}, {b + 1})"),
        False,
    )


def _list(r: random.Random) -> Answer:
    a, b, c = r.sample(range(-9, 20), 3)
    return Answer(
        "list",
        f"{a}, {b}, {c}",
        (f"{a}, {b}, {c}", f"{c}, {a}, {b}", rf"\{{{a}, {b}, {c}\}}"),
        (f"{a}, {b}", f"{a}, {b}, {c + 30}"),
    )


def _matrix(r: random.Random) -> Answer:
    a, b, c, d = (r.randint(-9, 9) for _ in range(4))

    def m(name: str, *x: int) -> str:
        return rf"\begin{{{name}}} {x[0]} & {x[1]} \\ {x[2]} & {x[3]} \end{{{name}}}"

    return Answer(
        "matrix",
        m("pmatrix", a, b, c, d),
        (m("pmatrix", a, b, c, d), m("bmatrix", a, b, c, d)),
        (m("pmatrix", a, b, c, d + 1), m("bmatrix", a, b + 1, c, d)),
    )


def _text(r: random.Random) -> Answer:
    options = r.choice(
        (("Tuesday", "Friday", "Sunday"), ("even", "odd", "neither"), ("Yes", "No"), ("Evelyn", "Briana", "Carla"))
    )
    gold, *others = r.sample(options, len(options))
    return Answer("text", rf"\text{{{gold}}}", (gold, gold), tuple(others), True)


def _choice(r: random.Random) -> Answer:
    gold, other = r.sample("ABCDE", 2)
    return Answer(
        "choice",
        gold,
        (f"({gold})", gold, rf"\text{{({gold})}}", rf"\textbf{{({gold})}}"),
        (f"({other})", other, rf"\text{{({other})}}"),
    )


def _choice_plain(r: random.Random) -> Answer:
    gold, other = r.sample("ABCDE", 2)
    return Answer("choice", gold, (f"({gold})", gold), (f"({other})", other), True)


def _unit(r: random.Random) -> Answer:
    n = r.randint(2, 400)
    unit, long, other = r.choice(
        (("cm", "centimeters", "m"), ("kg", "kilograms", "g"), ("m", "meters", "km"), ("hours", "hours", "minutes"))
    )
    ways = (rf"{n} \text{{ {unit}}}", rf"{n}\text{{ {long}}}", rf"{n}\,\text{{{unit}}}", str(n))
    return Answer(
        "unit", rf"{n}\text{{ {unit}}}", ways, (rf"{n + 1} \text{{ {unit}}}", rf"{n} \text{{ {other}}}", str(n * 2))
    )


def _unit_plain(r: random.Random) -> Answer:
    n = r.randint(2, 400)
    unit, other = r.choice((("cm", "m"), ("kg", "g"), ("hours", "minutes"), ("miles", "feet")))
    return Answer(
        "unit", rf"{n}\text{{ {unit}}}", (f"{n} {unit}", f"{n} {unit}"), (f"{n + 1} {unit}", f"{n} {other}"), True
    )


def _percent(r: random.Random) -> Answer:
    n = r.randint(2, 97)
    return Answer("percentage", rf"{n}\%", (rf"{n}\%", str(n)), (rf"{n + 1}\%", rf"{100 - n if n != 50 else 51}\%"))


def _percent_plain(r: random.Random) -> Answer:
    n = r.randint(2, 97)
    return Answer("percentage", rf"{n}\%", (f"{n}%", f"{n} percent"), (f"{n + 1}%", f"{n / 10}%"), True)


def _money(r: random.Random) -> Answer:
    n = r.randint(2, 900)
    return Answer(
        "money",
        str(n),
        (rf"\${n}", rf"\${n}.00", rf"{n} \text{{ dollars}}"),
        (rf"\${n + 1}", rf"\${n}0", rf"\${n / 100:.2f}"),
    )


def _money_plain(r: random.Random) -> Answer:
    n = r.randint(2, 900)
    return Answer("money", str(n), (f"${n}", f"${n}.00", f"{n} dollars"), (f"${n + 1}", f"${n}0", f"${n}.50"), True)


def _time(r: random.Random) -> Answer:
    h, m = r.randint(1, 12), r.randint(10, 58)
    return Answer("time", f"{h}:{m}", (f"{h}:{m}", f"{h}:{m}"), (f"{h}:{m + 1}", f"{h % 12 + 1}:{m}"), True)


def _polynomial(r: random.Random) -> Answer:
    a, b = r.randint(1, 9), r.randint(1, 9)
    gold = f"x^2 + {a + b}x + {a * b}"
    return Answer(
        "polynomial",
        gold,
        (gold, f"(x+{a})(x+{b})", f"x^{{2}}+{a + b}x+{a * b}"),
        (f"x^2 + {a + b}x - {a * b}", f"x^2 + {a + b + 1}x + {a * b}"),
    )


def _expression(r: random.Random) -> Answer:
    a, b = r.randint(2, 9), r.randint(2, 9)
    return Answer(
        "expression",
        rf"\frac{{{a}n + {b}}}{{n}}",
        (rf"\frac{{{a}n + {b}}}{{n}}", rf"{a} + \frac{{{b}}}{{n}}", rf"\frac{{{b} + {a} n}}{{n}}"),
        (rf"\frac{{{a}n - {b}}}{{n}}", rf"\frac{{{a + 1}n + {b}}}{{n}}", rf"\frac{{n}}{{{a}n + {b}}}"),
    )


def _equation(r: random.Random) -> Answer:
    m, b = r.randint(2, 9), r.randint(1, 9)
    return Answer(
        "equation",
        f"y = {m}x + {b}",
        (f"y = {m}x + {b}", f"y={b}+{m}x"),
        (f"y = {m}x - {b}", f"y = {m + 1}x + {b}", f"x = {m}y + {b}"),
    )


def _complex(r: random.Random) -> Answer:
    a, b = r.randint(1, 9), r.randint(2, 9)
    return Answer(
        "complex",
        f"{a}+{b}i",
        (f"{a}+{b}i", f"{a} + {b} i", f"{b}i + {a}"),
        (f"{a}-{b}i", f"{b}+{a}i" if a != b else f"{a}+{b + 1}i"),
    )


def _unicode(r: random.Random) -> Answer:
    n, d = r.randint(2, 30), r.choice((2, 3, 5, 7))
    ways, gold, near = r.choice(
        (
            ((f"\u2212{n}",), f"-{n}", (f"{n}", f"\u2212{n + 1}")),
            ((f"{n}\u03c0",), rf"{n}\pi", (f"{n + 1}\u03c0",)),
            ((f"{n}\u221a{d}",), rf"{n}\sqrt{{{d}}}", (f"{n + 1}\u221a{d}",)),
            (("\u00be",), r"\frac{3}{4}", ("\u00bd", "\u2153")),
            ((f"{n}\u00bd",), rf"\frac{{{2 * n + 1}}}{{2}}", (f"{n}\u00be", f"{n}")),
            ((f"{n}\u00b0",), rf"{n}^\circ", (f"{n + 1}\u00b0",)),
        )
    )
    return Answer("unicode", gold, ways, near, True)


ANSWERS: tuple[Callable[[random.Random], Answer], ...] = (
    _integer, _thousands, _thousands_plain, _decimal, _fraction, _fraction_plain, _mixed, _surd, _pi, _interval, _union, _tuple, _list,
    _matrix, _text, _choice, _choice_plain, _unit, _unit_plain, _percent, _percent_plain, _money, _money_plain, _time, _polynomial,
    _expression, _equation, _complex, _unicode,
)  # fmt: skip


def _of_file(gold: str, others: list[str], r: random.Random) -> Answer | None:
    """A reference of a data set with near misses by its numbers; None where there is no number to change."""
    numbers = list(re.finditer(r"\d+", gold))
    if not numbers or len(gold) > 120:
        return None
    last, any_of = numbers[-1], r.choice(numbers)
    near = [gold[: m.start()] + str(int(m[0]) + k) + gold[m.end() :] for m, k in ((last, 1), (any_of, 2))]
    if re.fullmatch(r"-?\d+", gold):
        near += [
            gold[1:] if gold.startswith("-") else "-" + gold if gold != "0" else "1",
            gold + "0" if gold != "0" else "2",
        ]
        plain = True
    else:
        plain = False
    return Answer("of data sets", gold, (gold,), tuple(near), plain)


# -------------------------------------------------------------------------------------------------------------------------- styles
#
# <a>: the answer in LaTeX, <p>: in plain text (such styles take only answers that are at home there), <w>: lines of working, <n>: a number

TUNED: dict[str, tuple[str, ...]] = {
    "box": (
        r"<w>\nSo the answer is $\boxed{<a>}$.",
        r"<w>\n\n**Final Answer**\n\n\\[\n\\boxed{<a>}\n\\]",
        r"<w>\n\\[ \\boxed{<a>}. \\]\n\nThis is the required value.",
        r"<think>\nMaybe $\\boxed{<n>}$? Wait, let me redo this.\n<w>\n</think>\n\n<w>\n\nTherefore, the result is $\\boxed{<a>}$.",
        r"\\boxed{<a>}<|im_end|>",
        r"<w> $\\boxed{\\text{The answer is } <a>}$",
        r"<w> \\fbox{<a>}",
    ),
    "box without braces": (r"<w> So we get $\\boxed <p>$.", r"<w> The answer: \\boxed <p>"),
    "formula at the end": (
        r"<w>\nTherefore, the value is $<a>$.",
        r"<w>\n\nThe required value is $<a>$.",
        r"<w>\nThus we obtain\n\\[<a>.\\]",
        r"<w>\nHence we obtain\n$$<a>$$",
        r"<w>\nTherefore, we find \\(<a>\\).",
        r"<w>\nHence, we get $<a>$. $\\blacksquare$",
        r"1. First, <w>\n2. Then simplify.\n3. This gives $<a>$.",
        r"<w>\nSo, for all values of $t$ in the question, the result is $<a>$.",
        r"<w>\n\n### Conclusion\n\nThe final result is \\(<a>\\), as required. QED",
    ),
    "name and formula": (r"<w>\nTherefore, \\(A = <a>\\).", r"<w>\n\n$$T = <a>$$", r"<w> So $S = <a>$."),
    "bare LaTeX": (r"<w>\nThe required value is <a>.", r"<w> Therefore we get <a>."),
    "final answer": (
        r"<w>\nFinal Answer: The final answer is $<a>$. I hope it is correct.",
        r"<w>\nFinal answer: $<a>$",
        r"**Final Answer:** \\(<a>\\)",
        r"<w>\n\nThe answer is: $<a>$",
        r"### Final Answer\n\n$<a>$",
        r"<w>\n\n**Answer:** \\[<a>\\]\n\n**Explanation:** <w>",
    ),
    "final sentence": (
        r"<w>\nFinal answer: The value that we are looking for is <p>.",
        r"<w>\n\nAnswer: the result is <p>",
        r"Final answer: So, after all of these steps, we get <p>.",
        r"**Final answer:** The result must be **<p>**.",
    ),
    "bold": (
        r"<w>\n\n**<p>**",
        r"<w>\nSo the result is **<p>**.",
        r"### Final Answer\n\n**<p>**",
        r"<w>\nThe correct result is **<p>**. \U0001f389",
    ),
    "chat token": (
        r"<w>\nAnswer: <p><|im_end|>",
        r"<w>\nThe answer is <p>.</s>",
        r"<w>\n#### <p><|eot_id|>",
        r"<w>\nTherefore, the value is $<a>$.<end_of_turn>\n",
        r"<w>\nFinal answer: <p><|endoftext|>",
    ),
    "hash": (r"<w>\n#### <p>",),
    "tag": (
        r"<think> <w> </think> <answer> <p> </answer>",
        r"<think> <w> </think>\n<answer>The answer is <p>.</answer>",
    ),
    "thinking": (
        r"<think>\n<w>\nSo \\boxed{<n>}. Wait, that is not right.\n</think>\n\nThe answer is \\(<a>\\).",
        r"<think>\n<w>\nMaybe $<n>$ or \\boxed{<n>}.\n</think>\n\n<w>\n\n**<p>**",
    ),
    "other languages": (
        r"<w>\nLa réponse est $<a>$.",
        r"<w>\nОтвет: $<a>$",
        r"<w>\n因此，答案是 $<a>$。",
        r"<w>\nDie Antwort lautet $<a>$.",
        r"<w>\nRespuesta: <p>",
    ),
    "conclusion": (r"<w>\nTherefore, the result is <p>.", r"<w>\nSo we get <p>.", r"<w>\n\nThus, it must be <p>."),
    "table": (r"<w>\n\n| quantity | value |\n|---|---|\n| first | <n> |\n| **Answer** | **<p>** |",),
}

# once held out: 98.7 % agreed on the first run (1 of 1,523 wrong ones accepted, by a mistake of this file); then looked at
SECOND: dict[str, tuple[str, ...]] = {
    "box": (
        r"Let me work through it.\n\n## Step 1\n<w>\n\n## Step 2\n<w>\n\n$$\\boxed{<a>}$$\n\nLet me know if you need anything else!",
        r"<w>\nThe final answer is: $\\boxed{<a>}$",
        r"<w>\n\nThus the quantity equals $\\boxed{\\,<a>\\,}$ \u2705",
        r"<w> Hence \\( \\boxed{ \\displaystyle <a> } \\).<\uff5cend\u2581of\u2581sentence\uff5c>",
    ),
    "box without braces": (r"<w>\nTherefore \\( \\boxed <p> \\) is the result.",),
    "formula at the end": (
        r"<w>\n\nPutting everything together:\n\n\\[\n<a>\n\\]",
        r"Okay, so <w>\n\nand so the quantity we want equals $<a>$.",
        r"<w>\n\nIn conclusion, it comes out to be \\( <a> \\).",
        r"- <w>\n- Simplify.\n- Result: $<a>$",
        r"<w>\n\n\u2234 $<a>$",
        r"<w>\n\nWe conclude that the desired quantity is \\[ <a> \\,. \\]",
        r"Sure! <w>\n\nHence the solution is:\n$$\n<a>\n$$\n\nLet me know if you would like more detail!",
        r"<w>\nFinally, we have that this is equal to $\\displaystyle <a>$, which is what was asked.",
    ),
    "name and formula": (r"<w>\nConsequently, \\[ N = <a> \\]", r"<w>\nIt follows that $V = <a>$, so we are done."),
    "bare LaTeX": (r"<w>\nIn the end the value equals <a>", r"<w>\nHence the quantity is <a>. Done."),
    "final answer": (
        r"<w>\n\n## Answer\n\n$<a>$",
        r"<w>\n\n**The final answer is: \\(<a>\\)**",
        r"<w>\nSo the correct answer is $<a>$.",
        r"<w>\n\n**Answer**: $<a>$ \u2705",
        r"ANSWER: $<a>$\n\nHere is why. <w>",
        r"<w>\n\n\U0001f449 **Final Answer:** $<a>$",
    ),
    "final sentence": (
        r"<w>\n\n**Final Answer:** The requested quantity turns out to be <p>.",
        r"<w>\nFinal Answer:\nThe result of the computation is <p>",
        r"<w>\nAnswer: It is <p>.",
    ),
    "bold": (
        r"<w>\n\n**Result:** **<p>**",
        r"<w>\n\nTherefore, it is **<p>**.\n\nHope this helps!",
        r"<w>\n\n---\n\n**<p>**\n",
        r"<w>\nThat leaves us with __<p>__.",
    ),
    "chat token": (
        r"<w>\nFinal answer: <p><end_of_turn>",
        r"<w>\nThe answer is <p><|eot_id|>",
        r"<w>\n\n**<p>**</s>",
        r"<w>\nTherefore the value is \\(<a>\\).<|end_of_text|>",
        r"<w>\nAnswer: <p>.<|end|>",
    ),
    "hash": (r"<w>\n\n#### <p>\n", r"<w>\n#### The answer is <p>"),
    "tag": (
        r"<think><w></think><answer>\n<p>\n</answer>",
        r"<think> <w> </think>\n<answer>\n$$<a>$$\n</answer><|im_end|>",
    ),
    "thinking": (
        r"<think>\nOkay, <w>\nThe answer is <n>. Hmm, no.\n</think>\n\nAfter simplification we are left with $<a>$.",
        r"<think>\n<w>\n\\boxed{<n>}\n</think>\n\n<w>\n\n**Answer:** <p>",
    ),
    "other languages": (
        r"<w>\nLa respuesta es $<a>$.",
        r"<w>\nA resposta é $<a>$.",
        r"<w>\n所以答案为：<p>",
        r"<w>\nAntwort: <p>",
        r"<w>\nLa risposta è $<a>$.",
        r"<w>\n答えは $<a>$ です。",
    ),
    "conclusion": (
        r"<w>\nHence the final result is <p>.",
        r"<w>\n\nThat means the answer we want is <p>.",
        r"<w>\n\nIn summary, we end up with <p>.",
    ),
    "table": (r"<w>\n\n| Step | Value |\n|:--|--:|\n| 1 | <n> |\n| Final answer | <p> |",),
}

# once held out, too: 97.6 % agreed on the first run, none of 1,575 wrong ones was accepted
THIRD: dict[str, tuple[str, ...]] = {
    "box": (
        r"<w>\n\n**Answer:** $\\boxed{<a>}$\n\n*(If you meant something else by question 7, tell me.)*",
        r"<w>\nThus, our final answer is \\[ \\boxed{ <a> } . \\] We are done!",
        r"So <w>\n\n$$\n\\boxed{<a>}\n$$\n\nwhich matches option 3 of the 4 given.",
        r"<w>\n\\boxed{\\text{Result: }<a>}",
    ),
    "box without braces": (r"<w> Thus $$\\boxed <p>$$", r"\\boxed <p>. <w>"),
    "formula at the end": (
        r"To solve this, <w>\n\nSo, when everything is combined, you get:\n\n$$<a>$$\n\nThat's it! \U0001f60a",
        r"<w>\n\nTherefore, the desired quantity is given by $$<a>.$$",
        r"<w>\nAfter cancelling, the whole thing collapses to $<a>$, and we are done.",
        r"Step 1: <w>\nStep 2: <w>\nStep 3: Combine. The outcome is \\(<a>\\).",
        r"Alright, <w>\n\nOur solution: $<a>$",
        r"<w>\n\n=> $<a>$",
        r"<w> Consequently the value asked for is $<a>$ (as one sees at once).",
        r"<w>\n\\begin{align*}\nE &= <n> - 1 \\\\ \n\\end{align*}\nSimplifying, one arrives at $<a>$.",
        r"<w>\n\n**Conclusion:** the expression evaluates to \\( <a> \\) .\n\n---\n",
    ),
    "name and formula": (
        r"<w>\n\nThus:\n\\[\nk = <a>\n\\]\n",
        r"<w>\nPutting this back gives us $P = <a>$ as the final value.",
        r"<w> Finally, $q = <a>$, where the other root was rejected.",
    ),
    "bare LaTeX": (r"<w>\n\nThe final value is <a>.", r"<w>\n=> <a>"),
    "final answer": (
        r"<w>\n\n**Final answer**: \\(<a>\\).",
        r"<w>\n\nFinal Answer\n$<a>$",
        r"<w>\n\n# Answer: $<a>$",
        r"The answer would be $<a>$. Here's the reasoning: <w>",
        r"<w>\n\n*Answer:* $$<a>$$",
        r"<w>\nHence, the answer to the question is $<a>$.",
    ),
    "final sentence": (
        r"<w>\n\nFinal answer: After all is said and done, we end with <p>.",
        r"<w>\nFinal Answer: The quantity equals <p>",
        r"<w>\n**Answer:** They should report <p>.",
        r"<w>\nThe answer, then, is <p>.",
    ),
    "bold": (
        r"<w>\n\nSo in the end we get: **<p>**",
        r"<w>\n\n\u27a1\ufe0f **<p>**",
        r"<w>\n\n> **<p>**",
        r"<w>\n\nThe correct value is therefore ***<p>***.",
    ),
    "chat token": (
        r"<w>\nSo the result is <p>.<|im_end|>\n<|endoftext|>",
        r"<w>\n\n**Answer:** <p><|END_OF_TURN_TOKEN|>",
        r"<w>\nThe final result is \\( <a> \\).</s></s>",
        r"<w>\nFinal answer: <p> <|im_end|>\n<|im_start|>user\nThanks! And what is <n> + 1?",
    ),
    "hash": (r"<w>\n####<p>", r"<w>\n#### **<p>**"),
    "tag": (r"<think><w></think>\n\n<answer>**<p>**</answer>", r"<answer>\\(<a>\\)</answer>"),
    "thinking": (
        r"<think>\nHmm. <w>\nSo $<n>$. Wait, no.\n</think>\n\n<w>\n\n**Final Answer**\n$<a>$",
        r"<think>\n<w> So the answer is <n>?\n</think>\nAfter careful work, the result is <p>.",
        r"<think>\\boxed{<n>}</think>\n\n### Solution\n<w>\n\nThis yields\n\\[\n<a>\n\\]",
    ),
    "other languages": (
        r"<w>\n\n**Réponse :** $<a>$",
        r"<w>\n**答案：** $<a>$",
        r"<w>\nLa respuesta final es <p>.",
        r"<w>\n\n**Ответ:** <p>",
        r"<w>\nRisposta: $<a>$",
        r"<w>\nDaher ist die Antwort: $<a>$.",
    ),
    "conclusion": (
        r"<w>\n\nAs a result, we are looking at <p>.",
        r"<w>\nOverall, the quantity is <p>.",
        r"<w>\n\nAnd that's how we get <p>!",
        r"<w>\nThis means the value is <p>.",
    ),
    "table": (r"<w>\n\n| | |\n|---|---|\n| Given | <n> |\n| **Final Answer** | $<a>$ |",),
}

HELD_OUT: dict[str, tuple[str, ...]] = {
    "box": (
        r"We need to find it. <w>\n\nHence the answer is\n\n$$\\boxed{<a>}.$$\n\nIf $x$ were $<n>$ instead, it would differ.",
        r"<w>\n\n$$ \\therefore \\quad \\boxed{ <a> } $$",
        r"<w>\n\nSo:\n\\[\\boxed{\\mathbf{<a>}}\\]",
    ),
    "box without braces": (r"<w>\nResult: $\\boxed{}$ hmm, I mean $\\boxed <p>$",),
    "formula at the end": (
        r"Great question! <w>\n\nIn other words, it works out to $<a>$. Feel free to ask for more.",
        r"<w>\nIt is then easy to see that the quantity is \\[<a>\\]\nas claimed.",
        r"**Step 1.** <w>\n\n**Step 2.** <w>\n\n**Step 3.** We find $<a>$.",
        r"<w> Substituting everything, we finally arrive at \\(\\displaystyle <a>\\).",
        r"<w>\n\n$$\\text{Therefore: } <a>$$",
        r"<w>\nIf you do the sums, what remains is $<a>$",
        r"- First: <w>\n- Second: $<n> - 1$\n- Together: $<a>$",
    ),
    "name and formula": (
        r"<w>\nSolving for it, we get\n$$\nm = <a>.\n$$\nThat is all.",
        r"<w> It must be that \\(r = <a>\\).",
        r"<w>\n\n**Solution:** $d = <a>$",
    ),
    "bare LaTeX": (r"<w>\nTherefore the number sought equals <a>.", r"<w>\n\nResult: <a>"),
    "final answer": (
        r"<w>\n\n---\n\n### \u2705 Final Answer: $<a>$",
        r"<w>\nI believe the answer is $<a>$.",
        r"<w>\n\n## Final Answer\nThe requested value is $<a>$.",
        r"**Answer:**\n$$<a>$$\n**Why:** <w>",
        r"<w>\n\nSo the final answer is: \n\n\\(<a>\\)",
        r"Answer = $<a>$",
    ),
    "final sentence": (
        r"<w>\n\nFinal answer: Therefore, the required result would be <p>.",
        r"<w>\nFinal Answer: we conclude with <p>!",
        r"<w>\nAnswer: So that makes <p>.",
    ),
    "bold": (
        r"<w>\n\n**So the result is <p>.**",
        r"<w>\n\nThe value you're looking for is: **<p>**",
        r"<w>\n\n* Final result: **<p>**",
        r"### Result\n\n**<p>**\n\n### Working\n\nSee above.",
    ),
    "chat token": (
        r"<w>\n\nTherefore: <p><end_of_turn>\n<eos>",
        r"<w>\nThe final answer is $<a>$<|eot_id|>",
        r"<w>\nAnswer: <p>\n</s>",
        r"<w> It equals <p>.<|endoftext|>Question: What is <n>?",
    ),
    "hash": (r"<w>\n\n#### Answer: <p>", r"<w>\n#### <p>.\n"),
    "tag": (
        r"<reasoning><w></reasoning>\n<answer>\n<p>\n</answer>\n",
        r"<think><w></think><answer>So it is $<a>$.</answer>",
    ),
    "thinking": (
        r"<think>\nLet me see. <w>\nThus $x = <n>$.\n</think>\n\n<w>\n\n$$\n<a>\n$$",
        r"<think>\n<w>\n**<n>**\n</think>\n\nThe value is **<p>**.",
    ),
    "other languages": (
        r"<w>\nAlso ist die Antwort $<a>$.",
        r"<w>\n\nDonc, la réponse finale est : $<a>$",
        r"<w>\n最终答案是 $<a>$。",
        r"<w>\nPor lo tanto, la respuesta es <p>.",
        r"<w>\nОтвет: <p>.",
    ),
    "conclusion": (
        r"<w>\nAll in all that comes to <p>.",
        r"<w>\n\nThat gives us a final value of <p>.",
        r"<w>\nHence: <p>",
        r"<w>\nSo the correct number is <p>. Let me know if anything is unclear!",
    ),
    "table": (r"<w>\n\n| Quantity | Result |\n|---|---|\n| Start | <n> |\n| Answer | **<p>** |\n",),
}

_WORK = (
    "We start from the equation $3x + {n} = {m}$ and subtract ${n}$ from both sides.",
    "First, note that there are {n} of them and {m} of the others, so {n} + {m} = {s}.",
    "Let $f(t) = t^2 - {n}t + {m}$; its discriminant is $\\Delta = {n}^2 - 4 \\cdot {m}$.",
    "In step 2 we use that \\frac{{{n}}}{{{m}}} is smaller than one.",
    "By the formula for $H_2$ in figure 3, $\\angle ABC = {n}^\\circ$.",
    "Each of the {n} rows costs ${m}, which makes it {s} in total for both.",
)


def _work(r: random.Random, hidden: str | None) -> str:
    lines = []
    for line in r.sample(_WORK, r.randint(1, 3)):
        n, m = r.randint(2, 90), r.randint(91, 300)
        lines.append(line.format(n=n, m=m, s=n + m))
    if hidden is not None:  # the right answer, in the middle of a wrong solution
        lines.insert(r.randint(0, len(lines) - 1), f"At first one might think of $x = {hidden}$ here.")
    return " ".join(lines)


def _styled(style: str, answer: str, hidden: str | None, r: random.Random) -> str:
    text = (
        style.replace("\\n", "\n") if "\\\\" not in style else re.sub(r"(?<!\\)\\n", "\n", style).replace("\\\\", "\\")
    )
    text = re.sub(r"\\[uU]([0-9a-f]{8}|[0-9a-f]{4})", lambda m: chr(int(m[1], 16)), text)
    text = re.sub("<w>", lambda _: _work(r, hidden), text)
    text = re.sub("<n>", lambda _: str(r.randint(1001, 1999)), text)
    return text.replace("<a>", answer).replace("<p>", answer)


_DOLLARS = re.compile(r"(?<!\\)\$\d")
_SYMBOLS = re.compile(r"^[^\\$\u00b0\u00bd\u00be\u2153\u221a\u03c0]*$")


def _fits(kind: str, style: str, a: Answer, text: str) -> bool:
    if a.kind == "long decimal" and "box" in kind:
        return False  # a box says how exact the answer is to be: there it is wrong
    if "<p>" in style:
        if not a.plain or (kind == "box without braces" and not re.fullmatch(r"-?\d+", text)):
            return False
        return not (kind == "chat token" and "<a>" in style)
    if kind == "bare LaTeX":
        return not a.plain and "begin" not in text and (a.kind not in ("choice",))
    if kind == "name and formula":
        return a.kind in (
            "integer",
            "decimal",
            "fraction",
            "surd",
            "pi",
            "mixed number",
            "expression",
            "complex",
            "percentage",
        )
    return not _DOLLARS.search(text) and (a.kind != "text")


def cases(seed: int = 0, each: int = 3, files: Iterable[str | Path] = (), per_file: int = 150) -> Iterator[Case]:
    """Right and wrong cases of every answer in every style that suits it, ``each`` draws of each pair; the same for the same seed."""
    r = random.Random(seed)
    pools: list[Callable[[random.Random], Answer]] = list(ANSWERS)
    from_files = references(files, per_file, r)
    for part, groups in (("tuned", TUNED), ("tuned", SECOND), ("tuned", THIRD), ("held out", HELD_OUT)):
        for style_kind, styles in groups.items():
            for make in pools:
                for _ in range(each):
                    yield from _pair(make(r), style_kind, styles, part, r)
        for a in from_files:
            style_kind = r.choice(list(groups))
            yield from _pair(a, style_kind, groups[style_kind], part, r)


def references(files: Iterable[str | Path], per_file: int, r: random.Random) -> list[Answer]:
    """References of data sets (rows with "answer"), some of each."""
    found: list[Answer] = []
    for file in files:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
        golds = [str(json.loads(line)["answer"]) for line in lines if line.strip()]
        r.shuffle(golds)
        found += [a for g in golds[:per_file] if (a := _of_file(g, golds, r)) is not None]
    return found


def _pair(a: Answer, style_kind: str, styles: tuple[str, ...], part: str, r: random.Random) -> Iterator[Case]:
    for right in (True, False):
        text = r.choice(a.right if right else a.wrong)
        fitting = [s for s in styles if _fits(style_kind, s, a, text)]
        if not fitting:
            continue
        hidden = a.right[0] if not right and not _DOLLARS.search(a.right[0]) and r.random() < 0.5 else None
        yield Case(a.kind, style_kind, part, a.gold, _styled(r.choice(fitting), text, hidden, r), right)
