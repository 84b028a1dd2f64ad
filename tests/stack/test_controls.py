"""vLLM under a control against the Hugging Face engine under the same one, on the same tokens."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.data.tasks import Sorting
from rlkit.errors import EngineError
from rlkit.model.load import load_tokenizer
from rlkit.model.tiny import make_tiny
from rlkit.rollout.control import IDLE, Companion, DeRa, QSharp, Seen, Steering
from rlkit.rollout.controlled import Controlled
from rlkit.rollout.engine import EngineSetup
from rlkit.types import Prompt, Rollout, Sampling


@dataclass(frozen=True, kw_only=True)
class All(Steering):
    """Everything that a control may ask for: banned tokens, another model's logits, a value model's opinion of candidates."""

    reference: str
    value: str

    @property
    def parts(self) -> tuple[Steering, ...]:
        return IDLE(ids=(5,)), DeRa(reference=self.reference, lam=1.7), QSharp(value=self.value, eta=0.5, top_k=8)

    @property
    def companions(self) -> tuple[Companion, ...]:
        return (*self.parts[1].companions, *self.parts[2].companions)

    def steer(self, logits: Tensor, seen: Seen) -> Tensor:
        banned, mixed, led = self.parts
        z = mixed.steer(logits, seen)
        ids = z.topk(8, dim=-1).indices
        gain = led.gain(seen.after(1, ids))  # type: ignore[attr-defined]
        led_z = torch.full_like(z, -torch.inf).scatter(-1, ids, z.gather(-1, ids) + gain)
        return banned.steer(led_z, seen)


@pytest.fixture(scope="module")
def control(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> All:
    from transformers import AutoModelForTokenClassification

    folder = tmp_path_factory.mktemp("companions")
    ref = make_tiny(folder / "ref", Sorting.alphabet, hidden=32, layers=1, heads=2, kv_heads=1, seed=7)
    torch.manual_seed(1)
    value: Any = AutoModelForTokenClassification.from_pretrained(ref, num_labels=1)
    torch.nn.init.normal_(value.score.weight, std=2.0)
    value.save_pretrained(folder / "value")
    load_tokenizer(tiny).save_pretrained(folder / "value")
    return All(reference=str(ref), value=str(folder / "value"))


def test_vllm_samples_what_the_other_engine_scores(tiny: Path, control: All) -> None:
    """Requests of different lengths that share prompts, wait for places, move in the batch, and are preempted in the middle."""
    setup = EngineSetup(path=str(tiny), max_model_len=128, options={"max_num_seqs": 5})
    vllm: Any = Controlled(engine="vllm", control=control).start(setup)
    hf: Any = Controlled(engine="hf", control=control).start(setup)
    plain = hf.own
    prompts = [Prompt(str(i), tuple(3 + (i * k) % 9 for k in range(1, 3 + 4 * i)), "") for i in range(5)]

    def ask(p: Prompt) -> list[Rollout]:
        length = 8 + 9 * int(p.id)
        return vllm.generate(p, 3, Sampling(max_tokens=length, seed=2, temperature=0.8, top_k=6))  # type: ignore[no-any-return]

    try:
        with ThreadPoolExecutor(5) as threads:
            before = vllm.progress()
            asked = [threads.submit(ask, p) for p in prompts]
            while vllm.progress() < before + 12 and not all(f.done() for f in asked):
                time.sleep(0.002)
            vllm.begin_update("continue")  # what runs is preempted, and comes back with its tokens
            vllm.end_update(1)
            rollouts = [r for f in asked for r in f.result(60)]
        assert {v for r in rollouts for v in r.version} == {0, 1}
        furthest = 0.0
        for r in rollouts:
            scored, ids = [], torch.tensor([[*r.prompt.token_ids, *r.tokens]])
            logits = logits_under(hf, r)
            for z, token in zip(logits, r.tokens, strict=True):
                z = z / 0.8
                kept = z.masked_fill(z < z.topk(6).values[-1:], -torch.inf)
                scored.append(float(kept.log_softmax(-1)[token]))
            assert r.logp == pytest.approx(scored, abs=2e-3) and 5 not in r.tokens
            with torch.no_grad():
                own = plain(input_ids=ids).logits[0, len(r.prompt.token_ids) - 1 : -1].log_softmax(-1)
            away = logits.log_softmax(-1) - own
            furthest = max(furthest, float(away[away.isfinite()].abs().max()))
        assert furthest > 0.3  # from the model itself, so that 2e-3 tells them apart
        greedy = [e.generate(prompts[1], 2, Sampling(max_tokens=10, temperature=0)) for e in (vllm, hf)]
        assert greedy[0][0].tokens == greedy[1][0].tokens
        with pytest.raises(EngineError, match="vLLM scores given tokens with the model itself"):
            vllm.score(rollouts[:1])
    finally:
        vllm.close()
        hf.close()


def logits_under(hf: Any, r: Rollout) -> Tensor:
    """What the Hugging Face engine would sample each token of a response from, ``[T, V]``."""
    found: list[Tensor] = []
    steered = hf.lm.forward

    def watched(*args: Any, **given: Any) -> Any:
        out = steered(*args, **given)
        found.append(out.logits[0, -1])
        return out

    hf.lm.forward = watched
    try:
        hf.score([r])
    finally:
        del hf.lm.forward
    return torch.stack(found)
