"""A reward model in an actor of a cluster."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from rlkit.cluster.ray import HostedGrader
from rlkit.cluster.start import hosting
from rlkit.model.classifier import RewardModel
from rlkit.model.tiny import make_tokenizer
from rlkit.rewards import RewardSpec, Scorer
from rlkit.run import Cluster
from rlkit.samples import Prompt, Rollout


def test_a_reward_model_has_an_actor_and_another_when_that_dies(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its path is relative to this folder, where the actor is not."""
    import ray

    tokenizer = make_tokenizer("abc?")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    model = Qwen2ForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    monkeypatch.chdir(tmp_path)
    texts = ["a", "bb", "cab"]
    with torch.no_grad():
        expected = [float(model(**tokenizer(f"a?{text}", return_tensors="pt")).logits) for text in texts]

    def rows() -> list[Rollout]:
        return [Rollout.given(Prompt("p", (3,), "a?", columns={"question": "a?"}), [4], text=text) for text in texts]

    places = list[HostedGrader]()

    def place(*given: Any) -> HostedGrader:
        places.append(hosting(Cluster(cpus=0.1))(*given))  # type: ignore[arg-type]
        return places[-1]

    scorer = Scorer([RewardSpec(RewardModel(path="rm", gpus=0))], elsewhere=place)
    try:
        scorer.check(["question"])
        assert scorer.trial(rows()[0].prompt) == []
        scorer.score(first := rows())
        assert [r.reward for r in first] == pytest.approx(expected, abs=1e-5)
        pid = ray.get(places[0]._actor.__ray_call__.remote(lambda self: os.getpid()))
        assert pid != os.getpid()
        os.kill(pid, signal.SIGKILL)
        scorer.score(second := rows())
        assert [r.reward for r in second] == pytest.approx(expected, abs=1e-5) and scorer.metrics()[
            "reward/errors"
        ] == 0
    finally:
        scorer.close()
