"""``rlkit merge``: one model folder of several, by arithmetic on their weights (soups, WARP's SLERP and LITI, task vectors)."""

from __future__ import annotations

import json
import shutil
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from rlkit.commands.engines import model_folder
from rlkit.errors import ConfigError, ModelError
from rlkit.files import replace_folder, told
from rlkit.model.arithmetic import Checkpoint, Method, Recipe, require_alike, write_merged
from rlkit.model.generation import load_settings
from rlkit.model.load import examine, load_tokenizer
from rlkit.record.output import require_folder
from rlkit.session import quiet_libraries

Type = Literal["float32", "bfloat16", "float16"]
# Files of a model folder beside its weights: configuration, generation settings, tokenizer and templates.
BESIDE = ("*.json", "*.jinja", "*.txt", "*.model")
# What a configuration says beside what its weights compute.
ASIDE = frozenset(
    "_name_or_path transformers_version dtype torch_dtype use_cache max_position_embeddings initializer_range max_window_layers "
    "pretraining_tp architectures return_dict output_hidden_states output_attentions".split()
)


@dataclass(frozen=True)
class Merged:
    """What was written: ``folder``, of which models, how, and what a user should know; ``str`` says it."""

    folder: Path
    models: tuple[str, ...]
    base: str | None
    recipe: Recipe
    tensors: int
    size: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        r = self.recipe
        weights = "" if r.weights is None else f", weights {', '.join(f'{w:g}' for w in r.weights)}"
        start = "" if self.base is None else f", from {self.base}"
        eta = "" if r.eta == 1 else f", eta {r.eta:g}"
        how = f"{r.method} of {', '.join(self.models)}{weights}{start}{eta}"
        return f"{self.folder}: {how} ({self.tensors} tensors, {self.size / 1e6:,.1f} MB)"


def merge(
    models: Sequence[str | Path],
    out: str | Path,
    *,
    method: Method = "linear",
    weights: Sequence[float] | None = None,
    base: str | Path | None = None,
    eta: float = 1.0,
    dtype: Type | None = None,
    say: Callable[[str], None] = print,
) -> Merged:
    """Writes the model that is made of ``models`` (folders, hub names or run folders) into the folder ``out``.

    Weights are read and written tensor by tensor, into files as those of ``base``, or else of the first model, from which configuration,
    generation settings and tokenizer are taken, too; ``merge.json`` says what was done.

    Args:
        method, weights, eta: as of :class:`~rlkit.model.arithmetic.Recipe`. base: the model that the others started from.
        dtype: type of the merged weights; null: that of the models, which must then have the same.

    Raises:
        ConfigError: weights or a factor that the method does not take, a missing base, or a place where nothing can be written.
        ModelError: models that cannot be loaded, or are of different architectures, sizes, types or tokenizers. Nothing is written.
    """
    recipe = Recipe(method=method, weights=None if weights is None else tuple(weights), eta=eta)
    recipe.require(len(models), base is not None)
    place = Path(out)
    require_folder(place, "--out")
    if place.is_dir() and any(place.iterdir()):
        raise ConfigError(f"--out: {place} is not empty: name a new folder.")
    if dtype not in (None, *typing.get_args(Type)):
        raise ConfigError(f"merge: dtype is {dtype!r}; it must be one of {', '.join(typing.get_args(Type))}.")
    names = [str(m) for m in models]
    quiet_libraries()
    order = names if base is None else [str(base), *names]
    folders = {name: _local(model_folder(name, "merge")) for name in order}
    places = [folders[name].resolve() for name in names]
    twice = next((name for i, name in enumerate(names) if places[i] in places[:i]), None)
    if twice is not None:
        raise ConfigError(f"merge: {twice} is given twice: name each model once, with its weight in weights.")
    notes = tuple(_require_alike(folders))
    checkpoints = {name: Checkpoint(folder) for name, folder in folders.items()}
    require_alike(checkpoints, types=dtype is None)
    for note in notes:
        say(note)
    start = None if base is None else checkpoints[str(base)]
    layout, kind = checkpoints[order[0]], None if dtype is None else getattr(torch, dtype)
    place.parent.mkdir(parents=True, exist_ok=True)
    tmp = place.with_name(f".{place.name}.writing")
    shutil.rmtree(tmp, ignore_errors=True)
    try:
        with told("the merged model", "Make room, or give another --out."):
            tmp.mkdir()
            _copy_beside(layout.folder, tmp, dtype)
            size = write_merged(tmp, {name: checkpoints[name] for name in names}, recipe, start, layout, kind)
            made = {"models": names, "base": None if base is None else str(base), **asdict(recipe)}
            (tmp / "merge.json").write_text(json.dumps(made, indent=1))
            replace_folder(tmp, place)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    return Merged(place, tuple(names), None if base is None else str(base), recipe, len(layout), size, notes)


def _local(model: str) -> Path:
    """The folder of a model; that of a hub's model in the cache, to which it is brought."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=["*.safetensors", *BESIDE]))


def _require_alike(folders: dict[str, Path]) -> Iterator[str]:
    """Refuses models that are not of one architecture or not over one tokenizer; yields notes on what else differs.

    Raises:
        ModelError: a model that cannot be loaded, or what differs and in which model.
    """
    (first, folder), *others = folders.items()
    config, tokenizer, settings = _described(folder)
    for name, other in others:
        their_config, their_tokenizer, their_settings = _described(other)
        for key in sorted(config.keys() | their_config.keys()):
            one, two = config.get(key), their_config.get(key)
            if one != two and key not in ASIDE and not key.endswith(("_token_id", "dropout", "pdrop")):
                raise ModelError(
                    f"merge: the models are of different architectures: {key} is {one!r:.100} in {first} and {two!r:.100} in {name}."
                )
        ours, theirs = tokenizer.get_vocab(), their_tokenizer.get_vocab()
        differ = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
        if differ:
            raise ModelError(
                f"merge: the tokenizers of {first} and {name} give different ids to {len(differ)} tokens ({differ[0]!r}, ...): rows "
                "of their embeddings mean different things and cannot be merged."
            )
        if tokenizer.chat_template != their_tokenizer.chat_template:
            yield f"note: {name} has another chat template than {first}; the merged model gets that of {first}."
        keys = sorted(k for k in settings.keys() | their_settings.keys() if settings.get(k) != their_settings.get(k))
        if keys:
            yield f"note: {name} has other generation settings than {first} ({', '.join(keys)}); the merged model gets those of {first}."


def _described(folder: Path) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """What a model's files say: its configuration, tokenizer and generation settings."""
    config = examine(folder, "merge").to_dict()
    settings = load_settings(folder).to_diff_dict()
    return config, load_tokenizer(folder), {k: v for k, v in settings.items() if k not in ASIDE}


def _copy_beside(source: Path, target: Path, dtype: str | None) -> None:
    """Copies everything but weights; a new type of the weights is told to the configuration."""
    for pattern in BESIDE:
        for file in source.glob(pattern):
            if not file.name.endswith(".index.json"):
                shutil.copyfile(file, target / file.name)
    if dtype is not None:
        config = json.loads((target / "config.json").read_text())
        config.pop("torch_dtype", None)
        (target / "config.json").write_text(json.dumps({**config, "dtype": dtype}, indent=2))
