"""What ends a response, and what its text is: one rule for every engine, for the warm-up and for the exported model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.errors import ModelError
from rlkit.model.generation import eos_tokens, load_settings


@dataclass(frozen=True)
class Endings:
    """The tokens that end a response of a model.

    Those are every EOS that the model's generation settings name (its configuration, where it has no such settings), the tokenizer's EOS,
    and the token with which the chat template closes an answer. The token that ends a response is a part of it and is trained; its text
    does not show it. All other special tokens (``<think>``) stand in the text: they are what the model wrote.

    A stop string ends a response wherever it appears in the text, also within a token or over several. The text goes up to it; the
    tokens go up to the one with which it was complete, and all of them are trained.
    """

    tokenizer: Any
    ids: frozenset[int]

    @classmethod
    def of(cls, model: str | Path, tokenizer: Any) -> Endings:
        """Those of a model folder or hub name."""
        found = {*eos_tokens(load_settings(model)), tokenizer.eos_token_id, chat_end(tokenizer)}
        return cls(tokenizer, frozenset(i for i in found if i is not None))

    @property
    def last(self) -> int:
        """The token that ends a written example: that of the chat template, else the tokenizer's EOS.

        Raises:
            ModelError: nothing ends a response of this model.
        """
        end = chat_end(self.tokenizer)
        end = self.tokenizer.eos_token_id if end is None else end
        if end is None:
            raise ModelError("model.path: the tokenizer has no EOS token; set eos_token in its tokenizer_config.json.")
        return int(end)

    def text(self, tokens: Sequence[int], stop: Sequence[str] = ()) -> str:
        """What rewards see of a response."""
        shown = tokens[:-1] if len(tokens) and tokens[-1] in self.ids else tokens
        text = self.decode(shown)
        found = [(at + len(s), at) for s in stop if (at := text.find(s)) >= 0]
        return text[: min(found)[1]] if found else text  # cut at the one that was complete first

    @staticmethod
    def reach(stop: Sequence[str]) -> int:
        """How many of the newest tokens surely hold a stop string that is complete now.

        Every token is a byte or more; a few more than that, because decoders may treat the first token of a text apart.
        """
        return max(len(s.encode()) for s in stop) + 8

    def stopped(self, newest: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether the newest tokens (``reach`` of them) hold a stop string."""
        tail = self.decode(newest)
        return any(s in tail for s in stop)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def chat_end(tokenizer: Any) -> int | None:
    """The special token that follows an answer in the tokenizer's chat template; None without a template or such a token."""
    from jinja2.exceptions import TemplateError

    if not tokenizer.chat_template:
        return None
    mark = "The answer"
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "A question"}, {"role": "assistant", "content": mark}], tokenize=False
        )
    except (TemplateError, TypeError, ValueError, KeyError):
        return None  # it has rules of its own, which a user's chats will meet
    rest = str(text).rpartition(mark)[2].lstrip()
    special = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    found = max((t for t in special if rest.startswith(t)), key=len, default=None)
    return None if found is None else int(special[found])
