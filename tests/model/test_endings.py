"""What ends a response and what its text is; generation settings that are examined before a run and valid after it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

import rlkit as rk
from rlkit.errors import ModelError
from rlkit.learner.warm_up import warm_up
from rlkit.model.endings import Endings, chat_end
from rlkit.model.generation import load_settings, settled
from rlkit.model.load import load_tokenizer
from rlkit.rollout.hf import HFEngine
from rlkit.run import WarmUp
from rlkit.types import Prompt, Sampling
from tests.scripted import make_scripted, run_scripts
from tests.tokenizers import CHAT, ids, make

pytestmark = pytest.mark.slow


def test_every_end_and_every_stop_string(tmp_path: Path) -> None:
    tokenizer = make_scripted(tmp_path)
    engine = HFEngine(str(tmp_path))
    try:
        assert all(max(logp) <= 0 for logp in run_scripts(engine, tokenizer))
    finally:
        engine.close()


def test_the_token_that_closes_a_chat() -> None:
    tokenizer = make(chat=CHAT)
    assert chat_end(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    for template in (None, "{% for m in messages %}{{ m.content }}\n{% endfor %}", "{{ raise_exception('no') }}"):
        tokenizer.chat_template = template
        assert chat_end(tokenizer) is None


def test_a_text_shows_what_was_written() -> None:
    tokenizer = make()
    endings = Endings(tokenizer, frozenset({1, 4}))
    assert endings.text([*ids(tokenizer, "<think>1 , 2 .</think>3<pad>"), 4]) == "<think>1 , 2 .</think>3<pad>"
    assert endings.text([1]) == endings.text([]) == ""
    assert endings.text(ids(tokenizer, "a##b#c"), ["b#", "##"]) == "a"


def test_a_warm_up_teaches_the_token_that_ends_an_answer(tmp_path: Path) -> None:
    tokenizer = make_scripted(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    prompt = Prompt("p", (2, *ids(tokenizer, "k")), "k")
    warm_up(tmp_path, WarmUp(steps=30, batch=2, lr=3e-2), [prompt], lambda p, rng: "7", tokenizer, 0, lambda k, x: None)
    engine = HFEngine(str(tmp_path))
    try:
        rollout = engine.generate(prompt, 1, Sampling(temperature=0.0, max_tokens=4))[0]
    finally:
        engine.close()
    assert tokenizer.convert_ids_to_tokens(rollout.tokens) == ["7", "<|im_end|>"] and rollout.finish == "stop"
    with pytest.raises(ModelError, match="no EOS token"):
        _ = Endings(make(eos=None), frozenset()).last


CONTRADICTIONS = [
    ({"temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9, "do_sample": True}),
    ({"top_k": 20}, {"top_k": 20, "do_sample": True}),
    ({"min_p": 0.1}, {"min_p": 0.1, "do_sample": True}),
    ({"temperature": 0.6, "typical_p": 0.9, "do_sample": False}, {"do_sample": False}),
    ({"temperature": 0.6, "do_sample": True, "length_penalty": 2.0}, {"temperature": 0.6, "do_sample": True}),
    ({"early_stopping": True, "output_scores": True}, {}),
    ({"pad_token_id": -1, "max_length": 99}, {"max_length": 99}),
    ({"cache_implementation": "static", "use_cache": False}, {"use_cache": False}),
]


@pytest.mark.parametrize(("given", "kept"), CONTRADICTIONS, ids=lambda x: ",".join(x) or "none")
def test_contradicting_settings_are_made_valid(given: dict[str, Any], kept: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 5, **given}))
    settings = load_settings(tmp_path)
    with pytest.raises(ValueError, match="invalid"):
        settings.save_pretrained(tmp_path)
    made, said = settled(settings, [9, 5])
    assert said and all(next(iter(s.split(":"))) for s in said)
    made.save_pretrained(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    written.pop("transformers_version")
    assert written == {"eos_token_id": [5, 9], **kept}
    again = GenerationConfig.from_pretrained(tmp_path / "out")
    assert again.eos_token_id == [5, 9] and settings.eos_token_id == 5 and settled(again, [5, 9])[1] == []


@pytest.mark.parametrize(
    "text", ['{"max_new_tokens": 0}', '{"early_stopping": "x"}', '{"num_return_sequences": 3}', "{", '{"streamer": 1}']
)
def test_settings_that_cannot_be_loaded_are_named_before_the_start(
    text: str, small: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(text)
    run = rk.load({**small, "model": {"path": str(tmp_path / "model")}})
    with pytest.raises(ModelError, match=r"generation settings of .*Mend or remove its generation_config\.json"):
        rk.train(run, quiet=True)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("peft", [None, {"r": 2, "target_modules": "all-linear"}], ids=["full", "lora"])
def test_the_trained_model_has_valid_settings_tokenizer_and_template(
    peft: dict[str, Any] | None, small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_scripted(tmp_path / "model")
    data = {"train": "rows.jsonl", "template": "chat"}
    (tmp_path / "rows.jsonl").write_text('{"prompt": "2", "answer": "4"}\n{"prompt": "3", "answer": "6"}\n')
    run = {**small, "steps": 1, "model": {"path": str(tmp_path / "model")}, "data": data, "base": str(tmp_path)}
    rewards = [str(Path("tests/rewards/examples.py").absolute()) + ":varied"]
    sampling = {"max_tokens": 4}
    made = rk.load(
        {
            **run,
            "peft": peft,
            "rewards": rewards,
            "sampling": sampling,
            "rollout": {"engine": "hf", "prompts": 2, "n": 2},
        }
    )
    final = Path(rk.train(made)) / "final"
    assert "do_sample is set, because temperature" in capsys.readouterr().out
    settings = json.loads((final / "generation_config.json").read_text())
    tokenizer = load_tokenizer(final)
    ends = sorted(tokenizer.convert_tokens_to_ids(["</s>", "z", "<|im_end|>"]))
    assert settings["eos_token_id"] == ends and settings["temperature"] == 0.6 and settings["do_sample"] is True
    assert tokenizer.chat_template == CHAT and Endings.of(final, tokenizer).ids == set(ends)
    engine = HFEngine(str(final))
    engine.close()
    assert engine.endings.ids == set(ends)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sampling\.stop has an empty text"):
        Sampling(stop=("END", ""))
