"""vLLM under a control that is a function of logits: a logits processor of vLLM's, whose companions read along within its step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from rlkit.errors import EngineError
from rlkit.model.load import load_tokenizer
from rlkit.rollout.control import Steering
from rlkit.rollout.engine import EngineSetup
from rlkit.rollout.reading import Along
from rlkit.rollout.steered import load_companions, steer
from rlkit.rollout.vllm import VLLM, VLLMEngine
from rlkit.types import Rollout


@dataclass
class _Request:
    """One request of vLLM's batch: its tokens, which vLLM adds to, and how many of them its ``row`` of the companions has read."""

    prompt: list[int]
    answer: list[int]
    row: int
    read: int = 0

    def fresh(self) -> list[int]:
        """What is not read yet, and the last token in any case: vLLM asks again where it takes a step back."""
        start = self.read = min(self.read, len(self.prompt) + len(self.answer) - 1)
        if start >= len(self.prompt):
            return self.answer[start - len(self.prompt) :]
        return [*self.prompt[start:], *self.answer]


class Processor(LogitsProcessor):
    """``control`` is set by a subclass that is made for one engine (:func:`start`): vLLM takes classes, not objects.

    It changes which token is the likeliest, so vLLM applies it to greedy requests, too, and before temperature, top-k and top-p; the
    log-probs that vLLM reports (``processed_logprobs``) are those of what it then sampled from.
    """

    control: ClassVar[Steering]

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        model = vllm_config.model_config
        tokenizer = load_tokenizer(model.model)
        self.steering = self.control.over(tokenizer)
        self.along = Along(
            self.control.companions, load_companions(self.control, model.dtype, torch.device(device), tokenizer)
        )
        self.requests: dict[int, _Request] = {}  # by their place in vLLM's batch

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.requests, batch_update, self._admit)

    def _admit(self, _: Any, prompt: list[int] | None, answer: list[int]) -> _Request:
        """Also a request that was preempted, which comes back with the tokens that it has."""
        taken = {r.row for r in self.requests.values()}
        row = next(i for i in range(len(taken) + 1) if i not in taken)
        for reading in self.along.readings:
            reading.open(row)
        return _Request(prompt or [], answer, row)

    def apply(self, logits: Tensor) -> Tensor:
        if not self.requests:
            return logits
        places = sorted(self.requests)
        requests = [self.requests[i] for i in places]
        if self.along.readings:
            self._read(requests, logits.device)
        at = torch.tensor(places, device=logits.device)
        return logits.index_copy(0, at, steer(self.steering, logits[at], self.along).to(logits.dtype))

    def _read(self, requests: Sequence[_Request], device: torch.device) -> None:
        fresh = [r.fresh() for r in requests]
        rows = torch.tensor([r.row for r in requests], device=device)
        self.along.rewind(rows, torch.tensor([r.read for r in requests], device=device))
        self.along.read(rows, fresh)
        for r, new in zip(requests, fresh, strict=True):
            r.read += len(new)


class SteeredVLLMEngine(VLLMEngine):
    """vLLM under a control."""

    def score(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        raise EngineError(
            "vLLM scores given tokens with the model itself, not with what a control makes of it. Score with the Hugging Face engine."
        )


class _Steered(VLLM):
    runs = SteeredVLLMEngine


def start(setup: EngineSetup, control: Steering) -> SteeredVLLMEngine:
    """A vLLM engine under ``control``, beside whatever ``vllm.logits_processors`` the user has."""
    made = type("Processor", (Processor,), {"control": control})
    options = {**setup.options, "logits_processors": [*setup.options.get("logits_processors", ()), made]}
    engine = _Steered().start(dataclasses.replace(setup, options=options))
    assert isinstance(engine, SteeredVLLMEngine)
    return engine
