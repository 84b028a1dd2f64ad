"""``rlkit merge``: a model that transformers loads, and what is refused before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import rlkit as rk
from rlkit.cli import main
from rlkit.data.tasks import Sorting
from rlkit.errors import ConfigError, ModelError
from rlkit.learner.learner import Learner
from rlkit.model.load import load_lm, load_tokenizer
from rlkit.model.tiny import make_tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """A start model in two files, and two others."""
    folder = tmp_path_factory.mktemp("models")
    start = load_lm(tiny)
    start.save_pretrained(folder / "start", max_shard_size="50KB")
    load_tokenizer(tiny).save_pretrained(folder / "start")
    for seed in (1, 2):
        make_tiny(folder / str(seed), Sorting.alphabet, hidden=64, layers=2, heads=2, kv_heads=1, seed=seed)
    return str(folder / "start"), str(folder / "1"), str(folder / "2")


def test_the_program_writes_a_model_that_transformers_loads(
    models: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, one, two = models
    out = tmp_path / "runs" / "warp"
    asked = ["merge", one, two, "--base", start, "--method", "slerp", "--weights", "0.25", "0.75", "--eta", "0.3"]
    assert main([*asked, "--out", str(out)]) == 0
    assert f"{out}: slerp of {one}, {two}, weights 0.25, 0.75, from {start}, eta 0.3" in capsys.readouterr().out
    states = {name: load_lm(name).state_dict() for name in models}
    want = rk.merge_weights(
        [states[one], states[two]], method="slerp", weights=[0.25, 0.75], base=states[start], eta=0.3
    )
    found = load_lm(out).state_dict()
    assert found.keys() == want.keys() and all(torch.equal(found[name], want[name]) for name in want)
    assert load_tokenizer(out).get_vocab() == load_tokenizer(start).get_vocab()
    shards = sorted(p.name for p in Path(start).glob("*.safetensors"))
    assert len(shards) > 1 and sorted(p.name for p in out.glob("*.safetensors")) == shards
    assert json.loads((out / "merge.json").read_text()) == {
        "models": [one, two],
        "base": start,
        "method": "slerp",
        "weights": [0.25, 0.75],
        "eta": 0.3,
    }
    assert not [p for p in out.parent.iterdir() if p != out]


def test_types_are_asked_for_where_they_differ(models: tuple[str, str, str], tmp_path: Path) -> None:
    _, one, two = models
    load_lm(one, torch.bfloat16).save_pretrained(tmp_path / "one")
    load_tokenizer(one).save_pretrained(tmp_path / "one")
    with pytest.raises(ModelError, match=r"is bfloat16 in .* and float32 in .*: say with dtype"):
        rk.merge([tmp_path / "one", two], tmp_path / "out")
    made = rk.merge([tmp_path / "one", two], tmp_path / "out", dtype="float32")
    assert json.loads((made.folder / "config.json").read_text())["dtype"] == "float32"
    wide = load_lm(made.folder).state_dict()
    a, b = load_lm(tmp_path / "one").state_dict(), load_lm(two).state_dict()
    assert all(torch.allclose(wide[k], 0.5 * a[k] + 0.5 * b[k]) for k in wide)


def test_what_a_learner_has_is_merged_on_the_fly(models: tuple[str, str, str], small: dict[str, Any]) -> None:
    """Half of the way back to the start, from a learner's own tensors, and given to the learner again."""
    start, one, _ = models
    learner = Learner(rk.load(small).learner_setup(one, frozenset()))
    origin = load_lm(start).state_dict()
    mine = {name: t.clone() for name, t in learner.full_weights()}
    half = rk.merge_weights([mine], base={name: origin[name] for name in mine}, eta=0.5)
    learner.assign({name: half[name] for name, _ in learner.trainable()})
    for name, t in learner.full_weights():
        torch.testing.assert_close(t, 0.5 * (origin[name] + mine[name]))


def changed(folder: Path, file: str, **values: object) -> None:
    found = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(found | values))


def other_words(folder: Path) -> None:
    make_tiny(folder, Sorting.alphabet[::-1], hidden=64, layers=2, heads=2, kv_heads=1)


def other_size(folder: Path) -> None:
    make_tiny(folder, Sorting.alphabet, hidden=32, layers=2, heads=2, kv_heads=1)


def untied(folder: Path) -> None:
    make_tiny(folder, Sorting.alphabet, hidden=64, layers=2, heads=2, kv_heads=1, tie=False)


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def torn(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def written_out(folder: Path) -> None:
    """The shared matrix under both of its names."""
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (other_words, r"the tokenizers of .* give different ids to \d+ tokens"),
        (other_size, r"different architectures: hidden_size is 64 in .* and 32 in"),
        (untied, r"different architectures: tie_word_embeddings is True in .* and False in"),
        (lambda f: changed(f, "config.json", rms_norm_eps=1e-3), "different architectures: rms_norm_eps"),
        (adapter, "holds an adapter, not a whole model"),
        (torn, r"model.safetensors is damaged"),
        (without_tokenizer, r"no tokenizer could be loaded from .*: it has no tokenizer\.json, nor another file"),
        (written_out, r"tensor lm_head.weight of .*other is missing in .* names a shared matrix twice, load both"),
        (shutil.rmtree, "is no folder"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(
    models: tuple[str, str, str], tmp_path: Path, harm: Callable[[Path], object], says: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(models[1], other)
    harm(other)
    with pytest.raises(ModelError, match=says):
        rk.merge([models[2], other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_that_differ_are_said(models: tuple[str, str, str], tmp_path: Path) -> None:
    shutil.copytree(models[1], tmp_path / "other")
    changed(tmp_path / "other", "generation_config.json", do_sample=True, temperature=0.6)
    (tmp_path / "other" / "chat_template.jinja").write_text("{{ messages }}")
    notes = list[str]()
    made = rk.merge([models[2], tmp_path / "other"], tmp_path / "out", say=notes.append)
    assert tuple(notes) == made.notes
    assert "another chat template" in notes[0] and "generation settings than" in notes[1] and "temperature" in notes[1]
    assert load_tokenizer(made.folder).chat_template == load_tokenizer(models[2]).chat_template


def test_what_else_is_refused(models: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, one, two = models
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match=r"--out: .* is not empty"):
        rk.merge([one, two], tmp_path / "full")
    with pytest.raises(ConfigError, match="is given twice"):
        rk.merge([one, f"{one}/../{Path(one).name}/"], tmp_path / "out")
    dtype: Any = "int8"
    with pytest.raises(ConfigError, match="dtype is 'int8'; it must be one of float32, bfloat16, float16"):
        rk.merge([one, two], tmp_path / "out", dtype=dtype)
    assert main(["merge", one, two, "--weights", "0.5", "0.6", "--out", str(tmp_path / "out")]) == 2
    assert "add up to 1" in capsys.readouterr().err
    assert main(["merge", one, two, "--eta", "1.5", "--out", str(tmp_path / "out")]) == 2
    assert "must be in [0, 1]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
