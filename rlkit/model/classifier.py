"""A reward model: a sequence classifier with a tokenizer of its own, as a reward."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from rlkit.bounds import Count, NonNegative
from rlkit.errors import ConfigError, ModelError, RewardError, first_line
from rlkit.model.hub import model_config
from rlkit.model.load import first_of, load_tokenizer
from rlkit.place import Place
from rlkit.rewards.grader import Grader

WHERE = "RewardModel.path"
CLASSIFIER = "ForSequenceClassification"


@dataclass(frozen=True, kw_only=True)
class RewardModel(Grader):
    """What a sequence classifier (transformers, ``AutoModelForSequenceClassification``) says of a response: its score, or that of a label.

    It runs in a process or an actor of its own, which loads it before the first call. Responses that wait are
    scored together, the longest waiting with those that are as long; a score is the one that the model gives the response alone.

    Attributes:
        path: a folder or a name of the hub, with its tokenizer.
        labels: names of the model's labels whose scores become parts of the reward; none: the model has one score.
        give: ``score``, the logit itself, or ``probability``: its sigmoid, or with several labels the softmax over all of them.
        form: ``chat``: the conversation and the response as the model's own chat template writes them. ``pair``: question and response as
            the tokenizer joins two texts. ``text``: the policy's prompt and the response as one text.
        dtype: of the weights.
        max_tokens: of conversation and response; null is what the model takes. Where there are more the response has no reward, and that
            is counted: nothing is cut off.
        gpus: of a cluster, which it takes in an actor of its own, wherever the cluster has them (0.5: half of one, 0: none); the folder
            must be seen there. null: it is a process on the machine of the run's process.
        batch: the most rows of one pass. device: null is a GPU where the process has one. threads: of a pass on CPUs.
    """

    usual_timeout: ClassVar[float] = 120.0
    starting: ClassVar[float] = 1800.0

    path: Place
    labels: tuple[str, ...] = ()
    give: Literal["score", "probability"] = "score"
    form: Literal["chat", "pair", "text"] = "chat"
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_tokens: Count | None = None
    gpus: NonNegative | None = None
    batch: Count = 16
    device: str | None = None
    threads: Count = 1

    def check(self) -> None:
        """Raises ModelError where there is no classifier or no tokenizer, ConfigError for labels and forms that it does not have."""
        config = model_config(self.path, WHERE)
        saved = list(config.architectures or ())
        if not any(name.endswith(CLASSIFIER) for name in saved):
            raise ModelError(
                f"{WHERE}: {self.path} was saved as {saved[0] if saved else 'nothing that says what it is'}, not as a sequence classifier "
                f"(...{CLASSIFIER}): its scores would come from random numbers. Give a reward model."
            )
        names = _labels(config)
        unknown = [label for label in self.labels if label not in names]
        if unknown or (not self.labels and len(names) > 1):
            what = f"it has no label {unknown[0]!r}" if unknown else f"it has {len(names)} labels, and none is named"
            raise ConfigError(
                f"{WHERE}: {self.path}: {what}; there are {', '.join(map(str, names))}. Name those whose scores count: labels: [...]."
            )
        tokenizer = load_tokenizer(self.path, WHERE)
        if self.form == "chat" and not tokenizer.chat_template:
            raise ConfigError(
                f"{WHERE}: the tokenizer of {self.path} has no chat template. Set form: pair (question and response as two texts) or form: "
                "text, whichever the model was trained on."
            )

    @property
    def share(self) -> float | None:
        return self.gpus

    def everywhere(self) -> RewardModel:
        return dataclasses.replace(self, path=str(Path(self.path).absolute())) if Path(self.path).exists() else self

    @functools.cached_property
    def _model(self) -> _Classifier:
        return _Classifier(self)

    def start(self) -> None:
        _ = self._model

    async def __call__(self, response: str, prompt: str, question: Any = None, messages: Any = None) -> Any:
        """Raises RewardError for a response that is too long for the model."""
        chat = (
            messages
            if messages is not None
            else [{"role": "user", "content": prompt if question is None else str(question)}]
        )
        return await self._model.score(self._model.encode(response, prompt, chat))


class _Classifier:
    """The model in its process, and what waits for it."""

    def __init__(self, spec: RewardModel) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification

        self.spec = spec
        torch.set_num_threads(spec.threads)
        self.device = torch.device(spec.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.tokenizer = load_tokenizer(spec.path, WHERE)
        try:
            read: Any = AutoModelForSequenceClassification.from_pretrained(
                spec.path, dtype=getattr(torch, spec.dtype), output_loading_info=True, trust_remote_code=False
            )
        except Exception as error:  # whatever transformers makes of somebody's files
            raise ModelError(
                f"{WHERE}: {spec.path!r} could not be loaded as a sequence classifier: {first_line(error)}"
            ) from error
        self.model, told = read
        if told["missing_keys"]:
            raise ModelError(
                f"{WHERE}: {first_of(sorted(told['missing_keys']), 'tensor')} of {spec.path} not found: scores would come from random "
                "numbers. Copy the model again."
            )
        self.model.to(self.device).eval()
        config = self.model.config
        self.at = [_labels(config)[label] for label in spec.labels]
        self.pad = config.get_text_config().pad_token_id
        self.takes = inspect.signature(self.model.forward).parameters
        self.limit = _limit(spec.max_tokens, config, self.tokenizer)
        # Rows, who waits for their scores, and when they came.
        self.waiting: list[tuple[Mapping[str, Sequence[int]], asyncio.Future[Any], int]] = []
        self.numbers = itertools.count()
        self.busy: asyncio.Task[None] | None = None

    def encode(self, response: str, prompt: str, chat: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
        """A row: ``input_ids`` and whatever else the tokenizer gives for it."""
        if self.spec.form == "chat":
            text = self.tokenizer.apply_chat_template(
                [*chat, {"role": "assistant", "content": response}], tokenize=False
            )
            row = self.tokenizer(text, add_special_tokens=False)
        elif self.spec.form == "pair":
            row = self.tokenizer("\n\n".join(str(m["content"]) for m in chat), response)
        else:
            row = self.tokenizer(prompt + response)
        n = len(row["input_ids"])
        if self.limit is not None and n > self.limit:
            raise RewardError(
                f"conversation and response have {n} tokens, and the reward model takes {self.limit}. Lower sampling.max_tokens, or take a "
                "model with a longer context; nothing is cut off"
            )
        return {name: list(ids) for name, ids in row.items() if name in self.takes and name != "attention_mask"}

    async def score(self, row: Mapping[str, Sequence[int]]) -> Any:
        """Its score, or those of its labels by name, from a pass that it shares with whatever else waits."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.waiting.append((row, future, next(self.numbers)))
        if self.busy is None:
            self.busy = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        await asyncio.sleep(0)  # whoever came in the same message waits, too
        while self.waiting:
            length = len(self.waiting[0][0]["input_ids"])
            self.waiting.sort(key=lambda one: abs(len(one[0]["input_ids"]) - length))
            now, self.waiting = self.waiting[: self.spec.batch], self.waiting[self.spec.batch :]
            self.waiting.sort(key=lambda one: one[2])
            try:
                found = await asyncio.to_thread(self.forward, [row for row, _, _ in now])
            except Exception as error:
                found = [error] * len(now)
            for (_, future, _), x in zip(now, found, strict=True):
                if future.done():  # given up
                    continue
                if isinstance(x, Exception):
                    future.set_exception(x)
                else:
                    future.set_result(x)
        self.busy = None

    def forward(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> list[Any]:
        """Scores of rows in one pass, padded on the right; row by row for a model that knows no padding and looks at the last token."""
        import torch

        if self.pad is None and len(rows) > 1:
            return [x for row in rows for x in self.forward([row])]
        most = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": self.pad or 0, "token_type_ids": self.tokenizer.pad_token_type_id}
        inputs = {
            name: torch.tensor([[*row[name], *[fill.get(name, 0)] * (most - len(row[name]))] for row in rows])
            for name in rows[0]
        }
        mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (most - len(row["input_ids"])) for row in rows])
        inputs = {name: x.to(self.device) for name, x in {**inputs, "attention_mask": mask}.items()}
        with torch.inference_mode():
            logits = self.model(**inputs).logits.float()
        if self.spec.give == "probability":
            logits = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(-1)
        if not self.at:
            return [float(x) for x in logits[:, 0]]
        return [dict(zip(self.spec.labels, x.tolist(), strict=True)) for x in logits[:, self.at]]


def _labels(config: Any) -> dict[str, int]:
    """The model's labels by name, with their indices."""
    return {str(name): int(i) for i, name in config.id2label.items()}


def _limit(asked: int | None, config: Any, tokenizer: Any) -> int | None:
    """Tokens that the model takes: as asked, or the least that its configuration and its tokenizer say; None where nobody says."""
    known = getattr(config.get_text_config(), "max_position_embeddings", None)
    said = [n for n in (asked, known, tokenizer.model_max_length) if n is not None and 0 < n < 1 << 40]
    return min(said, default=None)
