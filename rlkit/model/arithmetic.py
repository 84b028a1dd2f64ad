"""Arithmetic of weights: the mean of models, the arc between two task vectors, the way back to where they started.

Everything is done tensor by tensor, on whatever maps names to tensors: a state dict, what a learner gives out, or a folder
(:class:`Checkpoint`), of which no more than the tensors of one name are in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rlkit.bounds import Bounded, Share
from rlkit.errors import ConfigError, ModelError, first_line

Method = Literal["linear", "slerp", "task"]
Outline = tuple[tuple[int, ...], torch.dtype]  # size and type of a tensor
CODES = {  # types of tensors as the format of safetensors writes them
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
CHUNK = 1 << 22  # elements that are float64 at a time
PARALLEL = 1e-6  # the sine below which two task vectors are one direction, or opposite ones, and span no arc


@dataclass(frozen=True, kw_only=True)
class Recipe(Bounded):
    """How the tensors ``theta_1 ... theta_M`` of one name become one; ``theta_0`` is that of the model that all of them started from.

    ======  ============================================================================  =================  =========
    method  theta                                                                         weights            default
    ======  ============================================================================  =================  =========
    linear  ``sum_m w_m theta_m``; with equal weights a model soup                        in [0, 1], sum 1   ``1 / M``
    slerp   ``theta_0 + sin((1-l) Om) / sin(Om) d_1 + sin(l Om) / sin(Om) d_2``           in [0, 1], sum 1   ``1 / M``
    task    ``theta_0 + sum_m w_m (theta_m - theta_0)``                                   any                1
    ======  ============================================================================  =================  =========

    Then ``theta <- theta_0 + eta (theta - theta_0)``: with ``eta`` below 1 the linear interpolation towards the start (LITI).

    In ``slerp`` ``d_m = theta_m - theta_0`` is a task vector and ``Om`` the angle between the two, of each tensor on its own, and
    ``l = w_2 / (w_1 + w_2)``. Of more than two models the third joins what the first two made, ``l = w_3 / (w_1 + w_2 + w_3)``, and so on:
    with equal weights ``l = 1 / m``. Where a task vector is 0, or the two lie on one line, there is no arc, and the straight line takes its
    place. Numbers are computed in float32 (float64 for tensors of that type), angles in float64.

    Source: WARP 2406.16768, SLERP and LITI (angles by tensor; the fold over more than two models from memory); Model soups 2203.05482
    (uniform soup); Task arithmetic 2212.04089 (addition of task vectors).
    """

    method: Method = "linear"
    weights: tuple[float, ...] | None = None
    eta: Share = 1.0

    @property
    def from_start(self) -> bool:
        """Whether it needs ``theta_0``."""
        return self.method != "linear" or self.eta < 1

    def require(self, models: int, start: bool) -> None:
        """Refuses what cannot be done with so many ``models``, with ``start`` or without.

        Raises:
            ConfigError: what is missing, or wrong about the weights.
        """
        found, w = None, self.weights
        if models < 1 or (models < 2 and (self.method == "slerp" or not self.from_start)):
            found = (
                f"there is nothing to merge in {models} model(s): give two or more, or one with a base and eta below 1."
            )
        elif self.from_start and not start:
            what = f"method {self.method}" if self.method != "linear" else f"eta {self.eta:g}"
            found = f"{what} needs the model that the others started from: give it as base."
        elif start and not self.from_start:
            found = "base is given, but method linear with eta 1 does not read it: leave it out, or set eta or another method."
        elif w is not None and len(w) != models:
            found = f"there are {models} models and {len(w)} weights: give one for each."
        elif w is not None and self.method != "task" and not all(0 <= x <= 1 for x in w):
            found = (
                f"weights are {_numbers(w)}; those of method {self.method} must be in [0, 1] (method task takes any)."
            )
        elif w is not None and self.method != "task" and abs(sum(w) - 1) > 1e-6:
            found = (
                f"weights are {_numbers(w)}, whose sum is {sum(w):g}; those of method {self.method} must add up to 1."
            )
        if found is not None:
            raise ConfigError(f"merge: {found}")

    def __call__(self, tensors: Iterable[Tensor], start: Tensor | None, models: int) -> Tensor:
        """The merged tensor, in float32 or float64. ``tensors`` may be read one after the other; ``models`` is how many they are."""
        w = self.weights or (1.0 if self.method == "task" else 1 / models,) * models
        values, origin = map(_wide, tensors), None if start is None else _wide(start)
        if origin is None or self.method == "linear":
            out = _sum(values, w)
        else:
            moved = (t - origin for t in values)
            out = (_arcs if self.method == "slerp" else _sum)(moved, w).add_(origin)
        return out if origin is None or self.eta == 1 else origin.lerp(out, self.eta)


def _numbers(x: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in x)


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.float64 if t.dtype == torch.float64 else torch.float32)


def _sum(tensors: Iterator[Tensor], weights: Sequence[float]) -> Tensor:
    out = next(tensors) * weights[0]
    for t, w in zip(tensors, weights[1:], strict=True):
        out.add_(t, alpha=w)
    return out


def _arcs(directions: Iterator[Tensor], weights: Sequence[float]) -> Tensor:
    """Task vectors joined one after the other along arcs."""
    out, total = next(directions), weights[0]
    for d, w in zip(directions, weights[1:], strict=True):
        total += w
        out = slerp(out, d, w / total if total else 0.5)
    return out


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """``sin((1 - share) Om) / sin(Om) a + sin(share Om) / sin(Om) b``, ``Om`` the angle between them; a straight line where it is none."""
    norms = math.sqrt(_dot(a, a)) * math.sqrt(_dot(b, b))
    angle = math.acos(max(-1.0, min(1.0, _dot(a, b) / norms))) if norms else 0.0
    if math.sin(angle) < PARALLEL:
        return a.lerp(b, share)
    return (a * (math.sin((1 - share) * angle) / math.sin(angle))).add_(
        b, alpha=math.sin(share * angle) / math.sin(angle)
    )


def _dot(a: Tensor, b: Tensor) -> float:
    """The inner product in float64, without copies of that type."""
    pairs = zip(a.flatten().split(CHUNK), b.flatten().split(CHUNK), strict=True)
    return sum((float(x.double() @ y.double()) for x, y in pairs), 0.0)


# -- many tensors -----------------------------------------------------------------------------------------------------


def require_alike(models: Mapping[str, Mapping[str, Tensor]], types: bool = True) -> None:
    """Refuses models, by their names, that do not hold the same tensors: of the same sizes and, with ``types``, of the same types.

    Raises:
        ModelError: the first tensor that differs, and in which model.
    """
    (first, one), *others = ((name, outline(tensors)) for name, tensors in models.items())
    for second, two in others:
        for name in (*one, *(n for n in two if n not in one)):
            if name not in one or name not in two:
                there, lacks = (first, second) if name in one else (second, first)
                raise ModelError(
                    f"merge: tensor {name} of {there} is missing in {lacks}: only models of one architecture, saved whole, can be merged. "
                    "Where one of them names a shared matrix twice, load both with transformers and save them again (save_pretrained)."
                )
            (size, kind), (other_size, other_kind) = one[name], two[name]
            if size != other_size:
                raise ModelError(
                    f"merge: tensor {name} has the size {list(size)} in {first} and {list(other_size)} in {second}: only models of one "
                    "architecture can be merged."
                )
            if kind != other_kind and (types or not (kind.is_floating_point and other_kind.is_floating_point)):
                raise ModelError(
                    f"merge: tensor {name} is {_type(kind)} in {first} and {_type(other_kind)} in {second}: say with dtype what the merged "
                    "model shall be."
                )


def _type(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def outline(tensors: Mapping[str, Tensor]) -> Mapping[str, Outline]:
    """Size and type of each tensor; those of a folder stand in the heads of its files."""
    if isinstance(tensors, Checkpoint):
        return tensors.outline
    return {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}


def combined(
    models: Mapping[str, Mapping[str, Tensor]],
    recipe: Recipe,
    start: Mapping[str, Tensor] | None = None,
    names: Iterable[str] | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Merged tensors of models that were found to be alike, one after the other; ``dtype``: their type, null for that of the first model.

    Raises:
        ModelError: a tensor that is no float differs between models, or a merged one is not finite.
    """
    first = next(iter(models.values()))
    kinds = {name: kind for name, (_, kind) in outline(first).items()}
    for name in first if names is None else names:
        kind = kinds[name]
        if not kind.is_floating_point:
            one = first[name]
            for other, tensors in models.items():
                if not torch.equal(one, tensors[name]):
                    raise ModelError(
                        f"merge: tensor {name} ({_type(kind)}) of {other} holds other numbers than that of {next(iter(models))}, and whole "
                        "numbers have no mean."
                    )
            yield name, one
            continue
        origin = start[name] if start is not None and recipe.from_start else None
        value = recipe((tensors[name] for tensors in models.values()), origin, len(models)).to(dtype or kind)
        if not bool(torch.isfinite(value).all()):
            raise ModelError(
                f"merge: tensor {name} of the merged model is not finite everywhere: look for NaN in that of {', '.join(models)}, or take "
                "smaller weights."
            )
        yield name, value


def merge_weights(
    models: Sequence[Mapping[str, Tensor]],
    *,
    method: Method = "linear",
    weights: Sequence[float] | None = None,
    base: Mapping[str, Tensor] | None = None,
    eta: float = 1.0,
) -> dict[str, Tensor]:
    """Merged weights of models in memory: state dicts, or ``dict(learner.full_weights())``; :class:`Recipe` says how.

    Raises:
        ConfigError: weights or a factor that the method does not take, or no base where it needs one.
        ModelError: tensors that are missing, of different sizes or types, or not finite.
    """
    recipe = Recipe(method=method, weights=None if weights is None else tuple(weights), eta=eta)
    recipe.require(len(models), base is not None)
    named = {f"models[{i}]": m for i, m in enumerate(models)}
    require_alike(named if base is None else {**named, "base": base})
    return dict(combined(named, recipe, base))


# -- files ------------------------------------------------------------------------------------------------------------


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a model folder's safetensors files; each is read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelError for a folder without such files, or with one that is damaged."""
        self.folder, self.files = folder, dict[str, dict[str, Outline]]()
        for file in _parts(folder):
            try:
                with safe_open(folder / file, "pt") as f:
                    self.files[file] = {name: _outline(f.get_slice(name)) for name in f.keys()}  # noqa: SIM118 (no mapping)
            except (OSError, SafetensorError, KeyError) as error:
                raise ModelError(f"merge: {folder / file} cannot be read: {first_line(error)}.") from error

    @cached_property
    def outline(self) -> dict[str, Outline]:
        """Size and type of every tensor."""
        return {name: found for held in self.files.values() for name, found in held.items()}

    @cached_property
    def _file(self) -> dict[str, str]:
        return {name: file for file, held in self.files.items() for name in held}

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.folder / self._file[name], "pt") as f:
            tensor: Tensor = f.get_tensor(name)
            return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.outline)

    def __len__(self) -> int:
        return len(self.outline)


def _parts(folder: Path) -> list[str]:
    """The files that hold a folder's tensors, as transformers finds them."""
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise ModelError(
            f"merge: {folder} holds no safetensors files. Load it with transformers and save it again (save_pretrained)."
        )
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"merge: {index} is damaged. Copy the model again.") from error


def _outline(part: Any) -> Outline:
    """Size and type of a tensor that safetensors has not read yet."""
    kinds = {code: kind for kind, code in CODES.items()}
    return tuple(part.get_shape()), kinds[part.get_dtype()]


def write_file(path: Path, outlines: Mapping[str, Outline], tensors: Iterable[tuple[str, Tensor]]) -> int:
    """Writes a safetensors file of which no more than one tensor is in memory; returns the bytes of its tensors.

    ``outlines`` says what will come, in that order: the format has the places of all tensors at its beginning. It is the length of the head
    (8 bytes, little-endian), the head as JSON, and the tensors' bytes.
    """
    head: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (size, kind) in outlines.items():
        begin, end = end, end + math.prod(size) * kind.itemsize
        head[name] = {"dtype": CODES[kind], "shape": list(size), "data_offsets": [begin, end]}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for (name, t), (want, described) in zip(tensors, outlines.items(), strict=True):
            assert name == want and described == (tuple(t.shape), t.dtype), f"{name} is not what was announced"
            _write(f, t)
    return end


def _write(f: IO[bytes], t: Tensor) -> None:
    flat = t.detach().to("cpu").contiguous().reshape(-1)
    for part in flat.split(CHUNK):
        f.write(part.view(torch.uint8).numpy().data)


def write_merged(
    folder: Path,
    models: Mapping[str, Checkpoint],
    recipe: Recipe,
    start: Checkpoint | None,
    layout: Checkpoint,
    dtype: torch.dtype | None = None,
) -> int:
    """Writes the merged tensors of alike models into ``folder``, cut into files as ``layout`` is; returns their bytes."""
    total, place = 0, dict[str, str]()
    for file, held in layout.files.items():
        kinds = {
            name: (size, dtype if dtype is not None and kind.is_floating_point else kind)
            for name, (size, kind) in held.items()
        }
        total += write_file(folder / file, kinds, combined(models, recipe, start, held, dtype))
        place |= dict.fromkeys(held, file)
    if list(layout.files) != ["model.safetensors"]:
        index = {"metadata": {"total_size": total}, "weight_map": place}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return total
