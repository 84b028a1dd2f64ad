"""The pages of the documentation site that are made from the code, whenever the site is built: every key of a configuration, every part
that a `type` may name, every name of ``import rlkit as rk``, every metric and alarm. ``pages()`` gives their Markdown by path.

A key's meaning is what the docstring of its class (or of a base) says under `Attributes`, else the sentence of it that names the key.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import rlkit as rk
from rlkit.bounds import bounds
from rlkit.config import known
from rlkit.plug import Plug, is_kind
from rlkit.record.alarms import ALARMS
from rlkit.record.meanings import METRICS
from rlkit.values import OnlyPython, hints_of

ROOT = Path(__file__).parent.parent
FOLDER = "docs/reference"
KINDS: dict[str, tuple[str, str]] = {  # base class: page, title
    "Term": ("terms", "Loss terms"),
    "Advantage": ("advantages", "Advantages"),
    "Penalty": ("penalties", "Penalties in the reward"),
    "Coefficient": ("coefficients", "Coefficients"),
    "Correction": ("corrections", "Corrections"),
    "Generator": ("generators", "Divergences of your own"),
    "Reference": ("references", "References and teachers"),
    "Pairing": ("pairings", "Pairings"),
    "Sampler": ("samplers", "Samplers of prompts"),
    "AdmitRule": ("admit", "Rules that admit prompts"),
    "DropRule": ("drop", "Rules that drop groups"),
    "Task": ("tasks", "Tasks"),
    "EngineSpec": ("engines", "Engines"),
    "Control": ("controls", "Controls of decoding"),
    "Grader": ("graders", "Rewards with settings: judges, reward models"),
}
HEADS = ("Attributes", "Args", "Shapes", "Raises", "Returns", "Yields")


@functools.cache
def pages() -> dict[str, str]:
    """Markdown by path."""
    made = {"keys": keys_page(), "metrics": metrics_page(), "python": python_page()}
    made |= {place(kind)[0]: kind_page(kind) for kind in kinds()}
    return {f"{FOLDER}/{name}.md": text for name, text in made.items()}


def kinds() -> list[type[Plug]]:
    """The library's own, in the order of :data:`KINDS`; new ones behind them."""
    found = [kind for kind in Plug.__subclasses__() if kind.__module__.startswith("rlkit.")]
    order = {name: i for i, name in enumerate(KINDS)}
    return sorted(found, key=lambda kind: (order.get(kind.__name__, len(order)), kind.__name__))


def place(kind: type) -> tuple[str, str]:
    """The page and the title of a kind."""
    name = kind.__name__
    return KINDS.get(name, (f"{name.lower()}s", f"{name}s"))


# -- docstrings as Markdown -------------------------------------------------------------------------------------------


def inline(text: str) -> str:
    """One paragraph: roles and double backticks become code, papers become links, and nothing is taken for HTML."""
    text = re.sub(r":\w+:`~?([^`]*)`", lambda m: f"``{m[1].removeprefix('rlkit.')}``", " ".join(text.split()))
    pieces = re.split(r"(``.*?``|`[^`]*`)", text)
    for k, piece in enumerate(pieces):
        if k % 2:
            pieces[k] = f"`{piece.strip('`')}`"
        else:
            piece = piece.replace("&", "&amp;").replace("<", "&lt;").replace("*", r"\*").replace("[", r"\[")
            pieces[k] = re.sub(r"\b(\d{4}\.\d{5})\b", r"[\1](https://arxiv.org/abs/\1)", piece)
    return "".join(pieces)


def cell(text: str) -> str:
    """The same inside of a table."""
    return inline(text).replace("|", r"\|")


def prose(docstring: str | None, *, attributes: bool = True) -> str:
    """A docstring: paragraphs, lists, literal blocks, and its sections (``Args:``) as lists under a word in bold.

    ``attributes``: also those, which a table of keys says again.
    """
    out, literal = list[str](), False
    for block in re.split(r"\n\s*\n", inspect.cleandoc(docstring or "")):
        lines = block.split("\n")
        if literal and lines[0].startswith(" "):
            body = inspect.cleandoc(block)
            out.append(f"```\n{body}\n```")
            continue
        literal = block.rstrip().endswith("::")
        head = re.fullmatch(rf"({'|'.join(HEADS)}):", lines[0])
        if head and head[1] == "Attributes" and not attributes:
            continue
        if head:
            body = inspect.cleandoc("\n".join(lines[1:]))
            out.append("\n".join([f"**{head[1]}**\n", *(f"- {entry}" for entry in _entries(body))]))
        elif block.startswith(">>> "):
            out.append(f"```pycon\n{block}\n```")
        elif lines[0].startswith("Source: "):
            out.append(f"**Source:** {inline(block.removeprefix('Source: '))}")
        elif lines[0].startswith(("* ", "- ")):
            out.append("\n".join(f"- {inline(item)}" for item in re.split(r"\n?^[*-] ", block, flags=re.M) if item))
        else:
            text = block.rstrip()
            out.append(inline(text[:-1] if literal else text))
    return "\n\n".join(x for x in out if x.strip(": "))


def _entries(body: str) -> Iterator[str]:
    """The items of a section: what begins at its margin, with what is indented below it."""
    for item in re.split(r"\n(?=\S)", body):
        name, colon, rest = item.partition(": ")
        named = colon and re.fullmatch(r"[\w`*., ]+", name)
        yield f"`{name.replace('`', '')}`: {inline(rest)}" if named else inline(item)


def meaning(cls: type, name: str) -> str:
    """What a key means; an empty text where no docstring says it."""
    for base in cls.__mro__:
        text = inspect.cleandoc(vars(base).get("__doc__") or "")
        listed = re.search(r"^Attributes:\n((?:    .*\n?|\n)*)", text, re.M)
        if listed:
            names = "|".join(f.name for f in dataclasses.fields(base)) if dataclasses.is_dataclass(base) else name
            entry = rf"(?:(?<=\n)|(?<=[.;] )|^)((?:(?:{names}), )*(?:{names})): "
            parts = re.split(entry, inspect.cleandoc(listed[1]))
            for told, rest in zip(parts[1::2], parts[2::2], strict=True):
                if name in told.split(", "):
                    return " ".join(rest.split()).rstrip(";")
    for base in cls.__mro__:
        text = inspect.cleandoc(vars(base).get("__doc__") or "").split("\nSource: ")[0].split("\nRaises:")[0]
        for sentence in re.split(r"(?<=[.;:])\s+(?=[A-Z`])|\n\s*\n", text):
            if re.search(rf"`[^`]*(?<![\w.]){name}\b[^`]*`", sentence):
                return " ".join(sentence.split())
    return ""


# -- keys -------------------------------------------------------------------------------------------------------------


def arms(hint: Any) -> list[Any]:
    """What a value may be, without what only Python can give."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return arms(arguments[0])
    if origin in (Union, types.UnionType):
        return [x for arm in arguments for x in arms(arm)]
    return [] if inspect.isclass(hint) and issubclass(hint, OnlyPython) else [hint]


def words(hint: Any, link: Callable[[type], str]) -> str:
    """A type as people say it; ``link`` says a class."""
    plain = {
        float: "number",
        int: "whole number",
        bool: "true, false",
        str: "text",
        type(None): "null",
        Any: "anything",
    }

    def one(arm: Any) -> str:
        origin, arguments = typing.get_origin(arm), typing.get_args(arm)
        if origin is Literal:
            return ", ".join(f"`{x}`" for x in arguments)
        if origin in (tuple, list):
            inside = [words(x, link) for x in arguments if x is not Ellipsis]
            return f"list of {inside[0]}" if len(set(inside)) == 1 else f"list: {', '.join(inside)}"
        if origin is dict or arm is dict:
            return "mapping"
        if arm in plain:
            return plain[arm]
        return link(arm) if inspect.isclass(arm) else "function"

    return " or ".join(dict.fromkeys(map(one, arms(hint))))


def default(field: dataclasses.Field[Any]) -> str:
    """As a file has it."""
    if field.default is not dataclasses.MISSING:
        x = field.default
    elif field.default_factory is not dataclasses.MISSING:
        x = field.default_factory()
    else:
        return "required"
    if dataclasses.is_dataclass(x):
        return f"`{type(x).__name__}`" if isinstance(x, Plug) else "its defaults"
    shown = "null" if x is None else str(x).lower() if isinstance(x, bool) else list(x) if isinstance(x, tuple) else x
    return f"`{shown}`" if shown != "" else "empty"


def table(cls: Any, link: Callable[[type], str], names: list[str] | None = None) -> str:
    """The keys of a class: type, default, bound and meaning."""
    limits, hints = bounds(cls), hints_of(cls)
    lines = ["| key | type | default | must | meaning |", "|---|---|---|---|---|"]
    for f in dataclasses.fields(cls):
        if f.init and (names is None or f.name in names):
            bound = str(limits[f.name]) if f.name in limits else ""
            bound = "" if bound == "be finite" else bound
            told = cell(meaning(cls, f.name))
            lines.append(f"| `{f.name}` | {words(hints[f.name], link)} | {default(f)} | {cell(bound)} | {told} |")
    return "\n".join(lines)


def sections() -> dict[type, str]:
    """Every class that is a part of a configuration by its place, not by a ``type``: the class and its path."""
    found: dict[type, str] = {rk.Run: ""}

    def walk(cls: Any, path: str) -> None:
        for f in dataclasses.fields(cls):
            for arm in arms(hints_of(cls)[f.name]) if f.init else ():
                inner = typing.get_args(arm)[0] if typing.get_origin(arm) is tuple else arm
                if dataclasses.is_dataclass(inner) and not issubclass(inner, Plug) and inner not in found:
                    found[inner] = f"{path}{f.name}"
                    walk(inner, f"{path}{f.name}.")

    walk(rk.Run, "")
    return found


def kind_link(arm: type) -> str:
    """Where a kind's classes are listed, from a page beside it."""
    return f"[{arm.__name__}]({place(arm)[0]}.md)"


def keys_page() -> str:
    places = sections()

    def link(arm: type) -> str:
        if is_kind(arm):
            return kind_link(arm)
        return f"[{arm.__name__}](#{anchor(places[arm])})" if arm in places else f"`{arm.__name__}`"

    out = [
        "# Configuration keys",
        "Every key of a configuration. Made from the classes when this page is built. `rlkit show CONFIG` prints the values of one "
        "configuration with the place that each was read from. What stands behind a `type` has its own keys: "
        + ", ".join(f"[{title[0].lower()}{title[1:]}]({page}.md)" for page, title in map(place, kinds()))
        + ".",
    ]
    for cls, path in places.items():
        out += [f"## {path or 'The whole file'}", prose(cls.__doc__, attributes=False)]
        out.append(table(cls, link))
    return "\n\n".join(out) + "\n"


def anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


# -- parts ------------------------------------------------------------------------------------------------------------


def kind_page(kind: type[Plug]) -> str:
    """All classes of a kind, after what a class of one's own is a subclass of."""
    _, title = place(kind)

    def link(arm: type) -> str:
        return kind_link(arm) if is_kind(arm) else f"`{arm.__name__}`"

    classes = known(kind)
    listed = ", ".join(f"[{name}](#{anchor(name)})" for name in classes)
    bases = [kind, *(c for c in _subclasses(kind) if inspect.isabstract(c) and c.__module__.startswith("rlkit."))]
    out = [f"# {title}", f"Named by `type` in a configuration: {listed}." if listed else "There is none to name."]
    shared = {f.name for base in bases for f in dataclasses.fields(base)}
    for name, cls in classes.items():
        own = [f.name for f in dataclasses.fields(cls) if f.init and f.name not in shared]
        out += [f"## {name}", f"`{cls.__module__}`{_reads(cls)}", prose(cls.__doc__, attributes=not own)]
        if own:
            out.append(table(cls, link, own))
    for base in bases:
        has_keys = any(f.init for f in dataclasses.fields(base))
        out += [f"## {base.__name__}, a base", prose(base.__doc__, attributes=not has_keys)]
        if has_keys:
            out.append(table(base, link))
        out += methods(base)
    return "\n\n".join(out) + "\n"


def _subclasses(cls: type) -> Iterator[type]:
    for below in cls.__subclasses__():
        yield below
        yield from _subclasses(below)


def _reads(cls: Any) -> str:
    """What a part reads, where its defaults say so."""
    required = any(f.default is f.default_factory is dataclasses.MISSING for f in dataclasses.fields(cls) if f.init)
    if required or not hasattr(cls, "needs"):
        return ""
    return f", reads {', '.join(f'`{x}`' for x in sorted(cls().needs)) or 'nothing beside the log-probs of now'}"


def methods(cls: type) -> list[str]:
    """What a class has that is called: signature and docstring of each public method that has one."""
    out = list[str]()
    for name, x in vars(cls).items():
        call = x.__func__ if isinstance(x, classmethod | staticmethod) else x
        if (not name.startswith("_") or name == "__call__") and (inspect.isfunction(call) or isinstance(x, property)):
            told = inspect.getdoc(x.fget if isinstance(x, property) else call)
            head = name if isinstance(x, property) else f"{name}{signature(call)}"
            out.append(f"`{head}`\n\n{prose(told)}" if told else f"`{head}`")
    return [f"- {x.replace(chr(10), chr(10) + '    ')}" for x in out]


def signature(call: Any) -> str:
    return re.sub(r"\brlkit\.(\w+\.)*", "", str(inspect.signature(call)).replace("'", ""))


def wrapped(call: str) -> str:
    """A long signature with a line for each parameter."""
    if len(call) <= 90:
        return call
    head, _, rest = call.partition("(")
    inside, _, back = rest.rpartition(")")
    lines, depth = [""], 0
    for letter in inside:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            lines.append("")
        else:
            lines[-1] += letter
    return "\n".join([f"{head}(", *(f"    {line.strip()}," for line in lines), f"){back}"])


# -- the face ---------------------------------------------------------------------------------------------------------


def python_page() -> str:
    """Every name of ``rk``, or where it is described."""
    out = [
        "# Python",
        "Every name of `import rlkit as rk`. A section of a configuration is described under [configuration keys](keys.md), a part that "
        "a `type` names on the page of its kind; [From Python](../guide.md#from-python) shows how they are used.",
    ]
    places, later = sections(), list[str]()
    for name in rk.__all__:
        x = getattr(rk, name)
        kind = next((k for k in kinds() if inspect.isclass(x) and issubclass(x, k)), None)
        if inspect.isclass(x) and x in places:
            later.append(
                f"- `rk.{name}`: [{places[x] or 'the whole file'}](keys.md#{anchor(places[x] or 'The whole file')})"
            )
        elif kind is not None:
            is_base = x not in known(kind).values()
            page, _ = place(kind)
            later.append(f"- `rk.{name}`: [{name}]({page}.md#{anchor(name + (', a base' if is_base else ''))})")
        elif inspect.isclass(x):
            out += [f"## {name}", prose(x.__doc__), *methods(x)]
        elif inspect.isfunction(x):
            out += [f"## {name}", f"```python\n{wrapped(f'rk.{name}{signature(x)}')}\n```", prose(x.__doc__)]
        elif inspect.ismodule(x):
            later.append(f"- `rk.{name}`: {inline((x.__doc__ or '').split(chr(10) + chr(10))[0])}")
    return "\n\n".join([*out, "## Described elsewhere", "\n".join(later)]) + "\n"


# -- metrics ----------------------------------------------------------------------------------------------------------


def metrics_page() -> str:
    out = [
        "# Metrics and alarms",
        "Every number of `metrics.jsonl`, which has a row for every step. A word in capitals stands for something of the run: "
        "`loss/TERM` is `loss/PPOClip`. Trackers get the same names, and held-out scores as `eval/score`, `eval/SET/pass@k`. A share is "
        "in [0, 1]; counts are those of the run so far where it says so. [Alarms](#alarms) are below.",
        "\n".join(
            [
                "| metric | unit | meaning | alarms that read it |",
                "|---|---|---|---|",
                *(f"| `{m.name}` | {m.unit} | {cell(m.meaning)} | {_watched(m.name)} |" for m in METRICS),
            ]
        ),
        "## Alarms",
        "An alarm is said once, with its remedy, when it begins to hold; `alarm/NAME` counts the steps in which it held. Nothing is "
        "changed or stopped. Means are over 5 steps.",
    ]
    for alarm in ALARMS:
        levels = ", ".join(f"`{f.name}` = {getattr(alarm, f.name):g}" for f in dataclasses.fields(alarm))
        out += [f"### {alarm.name}", prose(alarm.__doc__)]
        reads = ", ".join(f"`{name}`" for name in sorted(alarm.reads))
        out.append(f"Level: {levels or 'any'}, from step {alarm.after} on. It reads {reads}.")
        out.append(f"**Remedy:** {inline(alarm.remedy)}.")
    return "\n\n".join(out) + "\n"


def _watched(name: str) -> str:
    return ", ".join(f"[{a.name}](#{a.name})" for a in ALARMS if name in a.reads)


if __name__ == "__main__":
    for path, text in pages().items():
        print(path, len(text))
