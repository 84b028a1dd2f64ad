"""From a row's question or chat to the text that the model sees: templates, the tokenizer's own chat template, its first token."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlkit.errors import DataError, first_line
from rlkit.place import Beside

TEMPLATES = Path(__file__).parent / "templates"
TEMPLATE = Beside(r"(?:chat:)?(.*/.*|.*\.txt)")  # which names of templates are paths
ROLES = ("system", "developer", "user", "assistant", "tool")
FIXED = ("messages", "conversation", "add_generation_prompt", "continue_final_message", "tokenize", "return_dict")
Message = dict[str, Any]


@dataclass(frozen=True)
class Template:
    """``text`` holds ``{question}``; ``chat``: the text is the user's message in the tokenizer's own chat template."""

    text: str
    chat: bool = False


@dataclass(frozen=True)
class Rendered:
    """A prompt: what the model sees, the question in it, and the chat where it is one."""

    text: str
    question: str
    templated: bool = False  # the text is what the tokenizer's chat template wrote
    messages: tuple[Message, ...] = ()
    cut: bool = False  # the chat went on with an answer, which is left out
    shown: tuple[Message, ...] = ()  # what the chat template was given
    options: Mapping[str, Any] = field(default_factory=dict)  # and its further variables


class Encoder:
    """Texts of prompts as tokens. What the tokenizer itself puts in front of a text (``<bos>``) stands in front once, never twice.

    What some append (T5: ``</s>``) is left out: the response follows. A chat template writes all special tokens itself, so its text gets
    none, as with transformers' ``apply_chat_template`` and every server.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        whole, bare = (list(tokenizer("a", add_special_tokens=x)["input_ids"]) for x in (True, False))
        places = (i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare)
        self.front = tuple(whole[: next(places, 0)])

    def __call__(self, text: str, templated: bool = False) -> tuple[int, ...]:
        ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return ids if templated or ids[: len(self.front)] == self.front else self.front + ids


@dataclass(frozen=True)
class Renderer:
    """How questions and chats become prompts.

    A question is put into ``template``. A chat is put into the tokenizer's chat template, whatever ``template`` is, unless that would be
    another form than the chat's own; ``chat:NAME`` puts its text around the last message of the user.

    Attributes:
        system: a system message in front of chats that have none. options: further variables of the chat template
            (``enable_thinking: false``).
    """

    tokenizer: Any
    name: str = "plain"
    template: Template = Template("{question}")
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, data: Any, tokenizer: Any) -> Renderer:
        """As the section ``data`` says.

        Raises:
            DataError: a template that is not there; a chat template is asked for, and the tokenizer has none.
        """
        made = cls(tokenizer, data.template, load_template(data.template), data.system, dict(data.chat_template_kwargs))
        if made.template.chat:
            made.check()
        return made

    @classmethod
    def trained(cls, config: Path, tokenizer: Any) -> Renderer:
        """As a run did whose resolved configuration this is; read as plain data, so that no file of the user is executed.

        Raises:
            DataError: this is no configuration of a run.
        """
        try:
            run = yaml.safe_load(config.read_text(encoding="utf-8"))
            data, name = run["data"], run["data"]["template"]
            system, options = data.get("system"), dict(data.get("chat_template_kwargs") or {})
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{config}: this is not the configuration of a run ({type(error).__name__}).") from None
        return cls(
            tokenizer, name, load_template(TEMPLATE.resolve(name, [Path(run.get("base") or ".")])), system, options
        )

    def __call__(self, value: Any, where: str) -> Rendered:
        """The prompt of a row's value, a text or a list of messages; ``where`` is the row's place.

        Raises:
            DataError: neither, or a chat that the template refuses.
        """
        if isinstance(value, str) and value.strip():
            if is_written_chat(value):
                raise DataError(f"{where}: {written_chat(value)}")
            text = self.template.text.replace("{question}", value)
            if self.template.chat:
                asked = self._with_system([{"role": "user", "content": text}])
                return Rendered(self.chat(asked, where), value, True, shown=asked, options=self.options)
            for key, given in (("system", self.system), ("chat_template_kwargs", self.options)):
                if given:
                    raise DataError(
                        f"data.{key} is for the tokenizer's chat template, but data.template is {self.name} and the prompt of "
                        f"{where} is a text. Set data.template: chat, or chat:NAME."
                    )
            return Rendered(text, value)
        if not isinstance(value, list | tuple) or not value:
            raise DataError(
                f"{where}: the prompt is {short(value)}; it must be a text that is not empty, or a list of messages."
            )
        messages = read_messages(value, where)
        cut = messages[-1]["role"] == "assistant"
        messages = messages[:-1] if cut else messages
        if not messages or messages[-1]["role"] not in ("user", "tool"):
            last = f"ends with a message of {messages[-1]['role']!r}" if messages else "is an answer alone"
            raise DataError(f"{where}: the chat {last}; the model answers to a message of 'user' (or 'tool').")
        mine = [i for i, m in enumerate(messages) if m["role"] == "user"]
        question = messages[mine[-1]]["content"] if mine else messages[-1]["content"]
        shown = messages
        if self.template.text != "{question}":
            if not self.template.chat:
                raise DataError(
                    f"{where}: the prompt is a chat, which data.template: {self.name} does not fit. Set data.template: chat (or "
                    "chat:NAME), or name a text in it: data.columns: {prompt: COLUMN.-1.content}."
                )
            put = {**messages[mine[-1]], "content": self.template.text.replace("{question}", question)} if mine else {}
            shown = [put if mine and i == mine[-1] else m for i, m in enumerate(messages)]
        whole = self._with_system(shown)
        return Rendered(self.chat(whole, where), question, True, tuple(messages), cut, whole, self.options)

    def _with_system(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        if self.system is None or messages[0]["role"] in ("system", "developer"):
            return tuple(messages)
        return ({"role": "system", "content": self.system}, *messages)

    def answer(self, prompt: Rendered, message: Message, where: str) -> str:
        """What stands after a prompt that a message of the assistant answers: what the chat template makes of it, with what closes it.

        Where the template writes the whole chat otherwise than the prompt alone, and in a prompt that is no chat, it is the content itself,
        without the tag (``<think>``) with which the template has begun it.

        Raises:
            DataError: where the template does so, an answer that is nothing but calls of tools.
        """
        if not prompt.templated:
            return str(message["content"])
        whole = self.chat([*prompt.shown, message], where, prompt.options, ask=False)
        content = str(message["content"])
        if whole.startswith(prompt.text):
            return whole[len(prompt.text) :]
        if not content.strip():
            raise DataError(
                f"{where}: an answer calls a tool, but the tokenizer's chat template writes what stands before it otherwise than the "
                "prompt alone, so that nobody knows what the model would have to write. Take another template, or leave the row out."
            )
        asks = prompt.text.removeprefix(self.chat(prompt.shown, where, prompt.options, ask=False))
        # <think>, with which a thought in the content begins, too
        begun = (asks[m.start() :] for m in re.finditer("<", asks))
        return content.removeprefix(next((tag for tag in begun if content.startswith(tag)), ""))

    def chat(
        self, messages: Sequence[Message], where: str, more: Mapping[str, Any] | None = None, ask: bool = True
    ) -> str:
        """What the tokenizer's chat template writes of messages; with ``ask`` up to where the model answers. ``more``: options beside those
        of the data.

        Raises:
            DataError: it refuses them.
        """
        from jinja2.exceptions import TemplateError

        self.check()
        options = {**self.options, **(more or {})}
        try:
            return str(
                self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask, **options)
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            roles = ", ".join(m["role"] for m in messages)
            ours = self.system is not None and messages[0] == {"role": "system", "content": self.system}
            raise DataError(
                f"{where}: the tokenizer's chat template refuses this chat of {roles}: {first_line(error)}"
                + (" Leave data.system out." if ours else "")
            ) from error

    @property
    def _words(self) -> set[str]:
        return set(re.findall(r"[A-Za-z_]\w*", str(self.tokenizer.get_chat_template())))

    def reads(self, variable: str) -> bool:
        """Whether the tokenizer's chat template has a variable of this name."""
        return bool(self.tokenizer.chat_template) and variable in self._words

    def check(self) -> None:
        """Raises DataError if the tokenizer has no chat template, or one that reads no variable of an option's name."""
        if not self.tokenizer.chat_template:
            raise DataError(
                "data.template: the tokenizer has no chat template, which base models often do not have. Take a model that has "
                "one, put one into its folder (chat_template.jinja), or use a template that needs none: qwen-boxed, r1, abel "
                "(of rows that are chats with the question alone: data.columns: {prompt: COLUMN.-1.content})."
            )
        for key in self.options:
            if key in FIXED:
                raise DataError(f"data.chat_template_kwargs.{key}: rlkit sets this itself; leave it out.")
            if not self.reads(key):
                near = difflib.get_close_matches(key, self._words, 1)
                raise DataError(
                    f"data.chat_template_kwargs.{key}: the tokenizer's chat template reads no variable of this name."
                    + (f" Did you mean {near[0]!r}?" if near else " Leave it out.")
                )


def read_messages(value: Sequence[Any], where: str, *, empty: bool = False) -> list[Message]:
    """A chat as chat templates read it: texts as contents, and no keys without a value (Parquet gives each message those of all).
    ``empty``: a content may be; that of a tool's result always may.

    Raises:
        DataError: with the number of the message that is none.
    """
    out: list[Message] = []
    for i, m in enumerate(value):
        place = f"{where}: message {i}"
        if not isinstance(m, Mapping):
            raise DataError(f"{place} is {short(m)}; a message is a mapping with role and content.")
        kept = {k: v for k, v in m.items() if v is not None}
        role = kept.get("role")
        if role is None:
            other = " Rename `from` to role and `value` to content." if "from" in kept else ""
            raise DataError(f"{place} has no role; it has {', '.join(map(str, kept)) or 'nothing'}.{other}")
        if role not in ROLES:
            raise DataError(f"{place} has the role {short(role)}; roles are {', '.join(ROLES)}.")
        kept["content"] = _content(kept.get("content"), place)
        if not empty and not kept["content"].strip() and not kept.get("tool_calls") and role != "tool":
            raise DataError(f"{place} ({role}) has no content. Fill it in, or take the message out.")
        out.append(kept)
    return out


def _content(content: Any, place: str) -> str:
    """The text of a content: itself, or that of its parts."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list | tuple):
        raise DataError(f"{place} has the content {short(content)}; it must be a text or a list of texts.")
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        if kind not in (None, "text"):
            raise DataError(f"{place} holds a part of type {short(kind)}; rlkit trains on texts only.")
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            raise DataError(f"{place} holds the part {short(part)}; a part is {{type: text, text: ...}}.")
        texts.append(text)
    return "".join(texts)


def is_written_chat(text: str) -> bool:
    """Whether a text is a list of messages as Python or JSON writes it."""
    return re.match(r"\s*\[\s*\{\s*['\"](role|content|from|value)['\"]\s*:", text) is not None


def written_chat(text: str, what: str = "prompt") -> str:
    """What there is to say of such a text."""
    alone = ", or name a column that holds the question alone" if what == "prompt" else ""
    return (
        f"the {what} is a chat that was written as one text ({short(text)}). Store the rows as .jsonl or .parquet with a list of "
        f"messages{alone}."
    )


def short(value: Any) -> str:
    """A value as an error message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]} ... ({len(text)} characters)"


def load_template(name: str) -> Template:
    """A template by name (a file of ``rlkit/data/templates``) or path; ``chat:NAME`` puts its text into the tokenizer's chat template.

    Raises:
        DataError: no such template, or one without ``{question}``.
    """
    if name == "chat":
        return Template("{question}", chat=True)
    chat, name = name.startswith("chat:"), name.removeprefix("chat:")
    path = Path(name) if "/" in name or name.endswith(".txt") else TEMPLATES / f"{name}.txt"
    if not path.is_file():
        known = sorted(p.stem for p in TEMPLATES.glob("*.txt"))
        near = difflib.get_close_matches(name, known, 1)
        raise DataError(
            f"data.template: there is no template {name!r}."
            + (f" Did you mean {near[0]!r}?" if near else "")
            + f" There are {', '.join(known)}, chat (the tokenizer's own), chat:NAME (one inside it), or the path of a text "
            "file with {question}."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"data.template: {path} is not UTF-8 text. Save it as UTF-8.") from None
    if "{question}" not in text:
        raise DataError(f"data.template: {path} has no {{question}}.")
    return Template(text, chat)
