"""Reward models: their scores are those of transformers' own forward pass, alone and beside others."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

import rlkit as rk
from rlkit.model.classifier import RewardModel
from rlkit.model.tiny import make_tiny, make_tokenizer
from rlkit.rewards import RewardSpec, Scorer
from rlkit.samples import Prompt, Rollout
from tests.rewards.judges import judging

pytestmark = pytest.mark.slow

ALPHABET = "abcdefghij ?.:"
TEXTS = ["a", "bad cab", "jig", "a big fig hid a cage.", "jig", "ab"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A decoder with one score that looks at its last token, the same without a token for padding, and an encoder with three labels."""
    folder, tokenizer = tmp_path_factory.mktemp("classifiers"), make_tokenizer(ALPHABET)
    size: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
    }
    heads: dict[str, Any] = {"num_attention_heads": 2, "max_position_embeddings": 512}
    encoder = BertConfig(**size, **heads, id2label={0: "helpful", 1: "harmless", 2: "terse"}, pad_token_id=0)
    made: dict[str, Any] = {
        "decoder": lambda: Qwen2ForSequenceClassification(
            Qwen2Config(**size, **heads, num_key_value_heads=1, num_labels=1, pad_token_id=0)
        ),
        "unpadded": lambda: Qwen2ForSequenceClassification(
            Qwen2Config(**size, **heads, num_key_value_heads=1, num_labels=1, pad_token_id=None)
        ),
        "encoder": lambda: BertForSequenceClassification(encoder),
    }
    for name, make in made.items():
        torch.manual_seed(7)
        model = make()
        for p in model.parameters():  # so far from equal that a wrong row is seen
            torch.nn.init.normal_(p, std=0.3)
        model.save_pretrained(folder / name)
        if name == "encoder":
            tokenizer.chat_template, tokenizer.model_input_names = (
                None,
                ["input_ids", "token_type_ids", "attention_mask"],
            )
        tokenizer.save_pretrained(folder / name)
    return {name: str(folder / name) for name in made}


def scores(model: RewardModel, texts: list[str], **row: Any) -> list[Any]:
    """All at once, as they come in a run."""

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(
            *(model(response=text, **{"prompt": "a?", "question": "a?", **row}) for text in texts)
        )

    return asyncio.run(all_of_them())


def own_pass(path: str, *texts: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Logits as a user of transformers would compute them of one row."""
    inputs = PreTrainedTokenizerFast.from_pretrained(path)(*texts, return_tensors="pt")
    assert "token_type_ids" not in inputs or set(inputs["token_type_ids"][0].tolist()) == {0, 1}
    lm = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype).eval()
    with torch.no_grad():
        logits: torch.Tensor = lm(**inputs).logits[0].float()
    return logits


@pytest.mark.parametrize("batch", [1, 2, 16])
@pytest.mark.parametrize("name", ["decoder", "unpadded"])
def test_a_score_is_that_of_the_row_alone(models: dict[str, str], name: str, batch: int) -> None:
    path = models[name]
    found = scores(RewardModel(path=path, batch=batch), TEXTS)
    assert found == pytest.approx([float(own_pass(path, f"a?{text}")[0]) for text in TEXTS], abs=1e-5)
    assert len({round(x, 3) for x in found}) == 5, "two of the texts are equal, and no others"


def test_labels_by_name_of_two_texts_that_the_tokenizer_joins(models: dict[str, str]) -> None:
    path = models["encoder"]
    found = scores(RewardModel(path=path, form="pair", labels=("terse", "helpful"), batch=3), TEXTS)
    for text, parts in zip(TEXTS, found, strict=True):
        logits = own_pass(path, "a?", text)
        assert parts == pytest.approx({"terse": float(logits[2]), "helpful": float(logits[0])}, abs=1e-5)
        assert list(parts) == ["terse", "helpful"]


def test_probabilities_and_bfloat16(models: dict[str, str]) -> None:
    given = scores(RewardModel(path=models["decoder"], give="probability"), TEXTS)
    raw = scores(RewardModel(path=models["decoder"]), TEXTS)
    assert given == pytest.approx([1 / (1 + math.exp(-x)) for x in raw])
    shares = scores(
        RewardModel(path=models["encoder"], form="pair", give="probability", labels=("helpful", "harmless", "terse")),
        ["ab"],
    )
    assert sum(shares[0].values()) == pytest.approx(1)
    rough = scores(RewardModel(path=models["decoder"], dtype="bfloat16", batch=1), TEXTS)
    expected = [float(own_pass(models["decoder"], f"a?{text}", dtype=torch.bfloat16)[0]) for text in TEXTS]
    assert rough == pytest.approx(expected) and rough != pytest.approx(raw, abs=1e-6)


def test_the_conversation_is_what_the_models_own_template_writes(models: dict[str, str]) -> None:
    chat = [{"role": "system", "content": "a. "}, {"role": "user", "content": "b?"}]
    (found,) = scores(RewardModel(path=models["decoder"]), ["cab"], messages=chat)
    assert found == pytest.approx(float(own_pass(models["decoder"], "a. b?cab")[0]), abs=1e-5)
    (found,) = scores(RewardModel(path=models["decoder"], form="text"), ["cab"], prompt="hi ")
    assert found == pytest.approx(float(own_pass(models["decoder"], "hi cab")[0]), abs=1e-5)


def test_what_is_too_long_is_told_and_never_cut(models: dict[str, str]) -> None:
    for n, model in (
        (600, RewardModel(path=models["decoder"])),
        (39, RewardModel(path=models["decoder"], max_tokens=40)),
    ):
        with pytest.raises(
            rk.RewardError, match=f"have {n + 2} tokens, and the reward model takes {40 if n == 39 else 512}"
        ):
            scores(model, ["a" * n])
    assert scores(RewardModel(path=models["decoder"], max_tokens=40), ["a" * 38])


def test_what_cannot_work_is_told_before_the_start(models: dict[str, str], tmp_path: Path) -> None:
    lm = str(make_tiny(tmp_path / "lm", ALPHABET, hidden=16, layers=1, heads=2, kv_heads=1))
    for model, told in (
        (RewardModel(path=str(tmp_path / "nothing")), "RewardModel.path: .*nothing"),
        (RewardModel(path=lm), "was saved as Qwen2ForCausalLM, not as a sequence classifier"),
        (
            RewardModel(path=models["encoder"], form="pair"),
            "it has 3 labels, and none is named; there are helpful, harmless, terse",
        ),
        (RewardModel(path=models["encoder"], form="pair", labels=("kind",)), "no label 'kind'"),
        (RewardModel(path=models["encoder"], labels=("helpful",)), "has no chat template. Set form: pair"),
    ):
        with pytest.raises(rk.InputError, match=told):
            Scorer([RewardSpec(model)]).check([])


def test_in_a_run_it_is_a_reward_like_others(models: dict[str, str]) -> None:
    """In its process: several groups at once, and a response that is too long for it is masked alone."""
    said, path = list[str](), models["decoder"]
    scorer = Scorer([RewardSpec(RewardModel(path=path), weight=0.5, name="rm")], report=said.append)
    rollouts = [
        Rollout.given(Prompt(f"p{i // 3}", (3,), "a?", columns={"question": "a?"}), [4], text=text)
        for i, text in enumerate([*TEXTS[:5], "b" * 600])
    ]
    try:
        scorer.check(["question"])
        assert not scorer.trial(rollouts[0].prompt)
        scorer.score(rollouts)
    finally:
        scorer.close()
    for r in rollouts[:5]:
        score = float(own_pass(path, f"a?{r.text}")[0])
        assert r.parts == pytest.approx({"rm": score}, abs=1e-5) and r.reward == pytest.approx(0.5 * score, abs=1e-5)
    assert math.isnan(rollouts[5].reward) and "have 602 tokens" in (rollouts[5].error or "") and "p1" in said[0]


def test_the_example_of_a_reward_model_and_a_judge_runs(
    tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "s3cret-0123456789")
    with judging(lambda text, number: f"It says something. Score: {number % 11}") as server:
        changes = [f"rewards.1.path={models['decoder']}", f"rewards.2.url={server.url}", f"out={tmp_path}", "steps=2"]
        run = rk.load(
            "examples/judged.yaml", [*changes, "rollout.n=2", f"rewards.2.cache={tmp_path}/c.sqlite", "data.test=null"]
        )
        folder = rk.train(run, quiet=True)
    last = folder.metrics()[-1]
    assert last["reward/Judge/asked"] == len(server.asked) and last["reward/Judge/cost"] > 0
    assert {"reward/math", "reward/liked", "reward/Judge", "reward/Judge/tokens"} <= last.keys() and last[
        "reward/errors"
    ] == 0
    assert "A farmer has 12 hens" in "".join(server.asked) and server.keys == {"Bearer s3cret-0123456789"}
    written = "".join(
        p.read_text(errors="replace")
        for p in Path(folder).rglob("*")
        if p.suffix in (".yaml", ".jsonl", ".json", ".log")
    )
    assert "JUDGE_KEY" in written and "s3cret" not in written


def test_a_share_of_a_cluster_needs_one(models: dict[str, str]) -> None:
    with pytest.raises(rk.ConfigError, match=r"takes a share of a cluster \(gpus\), and there is none"):
        Scorer([RewardSpec(RewardModel(path=models["decoder"], gpus=0.5))]).check([])
