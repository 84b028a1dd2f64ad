"""Arithmetic of weights: numbers worked out by hand, what is refused, and how much is in memory at a time."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import rlkit as rk
from rlkit.errors import ConfigError, ModelError
from rlkit.model.arithmetic import Checkpoint, Recipe, combined, slerp, write_file, write_merged


def one(*numbers: float, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {"w": torch.tensor(numbers, dtype=dtype)}


A, B, C, START = one(3.0, 2.0), one(1.0, 4.0), one(1.0, -1.0), one(1.0, 2.0)
HALF = 1 / math.sqrt(2)  # sin(Om / 2) / sin(Om) for a right angle


@pytest.mark.parametrize(
    ("models", "options", "want"),
    [
        ([A, B, C], {}, [5 / 3, 5 / 3]),
        ([A, B], {"weights": [0.25, 0.75]}, [1.5, 3.5]),
        # d_1 = (2, 0), d_2 = (0, 2): at right angles, so the middle of the arc is as long as they are
        ([A, B], {"method": "slerp", "base": START}, [1 + 2 * HALF, 2 + 2 * HALF]),
        # l = 1/4: sin(3/4 * 90) and sin(1/4 * 90)
        (
            [A, B],
            {"method": "slerp", "base": START, "weights": [0.75, 0.25]},
            [1 + 2 * math.sin(3 * math.pi / 8), 2 + 2 * math.sin(math.pi / 8)],
        ),
        # WARP's iteration: SLERP, then LITI with eta 0.3
        ([A, B], {"method": "slerp", "base": START, "eta": 0.3}, [1 + 0.6 * HALF, 2 + 0.6 * HALF]),
        # d_3 = (0, -3) joins e = (2 HALF, 2 HALF) at 135 degrees: sin(90) / sin(135) = sqrt 2, sin(45) / sin(135) = 1, l = 1/3
        ([A, B, C], {"method": "slerp", "base": START}, [1 + 2.0, 2 + 2.0 - 3.0]),
        ([A, B], {"method": "task", "base": START}, [3.0, 4.0]),
        ([A, B], {"method": "task", "base": START, "weights": [0.5, -1.0]}, [2.0, 0.0]),
        ([A], {"base": START, "eta": 0.25}, [1.5, 2.0]),
        ([A, B], {"base": START, "eta": 0.5}, [1.5, 2.5]),
    ],
    ids=["soup", "linear", "slerp", "slerp-quarter", "warp", "slerp-three", "task", "task-minus", "liti", "soup-liti"],
)
def test_by_hand(models: list[dict[str, Tensor]], options: dict[str, Any], want: list[float]) -> None:
    made = rk.merge_weights(models, **options)
    torch.testing.assert_close(made["w"], torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_an_arc_keeps_the_length_and_divides_the_angle() -> None:
    g = torch.Generator().manual_seed(0)
    a = torch.randn(3, 50, generator=g, dtype=torch.float64)
    b = torch.randn(3, 50, generator=g, dtype=torch.float64)
    b *= a.norm() / b.norm()

    def angle(x: Tensor, y: Tensor) -> float:
        return math.acos(float((x * y).sum() / (x.norm() * y.norm())))

    for share in (0.0, 0.2, 0.5, 1.0):
        c = slerp(a, b, share)
        assert float(c.norm()) == pytest.approx(float(a.norm()), rel=1e-12)
        if share:
            assert angle(a, c) == pytest.approx(share * angle(a, b), rel=1e-9)


@pytest.mark.parametrize("d", [(0.0, 0.0), (4.0, 0.0), (-2.0, 0.0)], ids=["none", "one direction", "opposite"])
def test_where_there_is_no_arc_the_straight_line_takes_its_place(d: tuple[float, float]) -> None:
    a, b = torch.tensor([2.0, 0.0], dtype=torch.float64), torch.tensor(d, dtype=torch.float64)
    torch.testing.assert_close(slerp(a, b, 0.25), 0.75 * a + 0.25 * b)


def test_each_tensor_has_its_own_angle_and_its_own_type() -> None:
    start = {"w": torch.zeros(2), "v": torch.zeros(2, dtype=torch.bfloat16), "n": torch.tensor([3])}
    one = {"w": torch.tensor([1.0, 0.0]), "v": torch.tensor([1.0, 0.0]).bfloat16(), "n": torch.tensor([3])}
    two = {"w": torch.tensor([0.0, 1.0]), "v": torch.tensor([1.0, 0.0]).bfloat16(), "n": torch.tensor([3])}
    made = rk.merge_weights([one, two], method="slerp", base=start)
    torch.testing.assert_close(made["w"], torch.tensor([HALF, HALF]))
    assert made["v"].tolist() == [1.0, 0.0] and made["v"].dtype == torch.bfloat16 and made["n"].tolist() == [3]


@pytest.mark.parametrize(
    ("models", "options", "says"),
    [
        ([A], {}, "nothing to merge in 1 model"),
        ([A], {"method": "slerp", "base": START}, "nothing to merge in 1 model"),
        ([A, B], {"method": "slerp"}, "method slerp needs the model that the others started from"),
        ([A, B], {"eta": 0.3}, "eta 0.3 needs the model that the others started from"),
        ([A, B], {"base": START}, "does not read it"),
        ([A, B], {"weights": [1.0]}, "2 models and 1 weights"),
        ([A, B], {"weights": [0.5, 0.6]}, "whose sum is 1.1"),
        ([A, B], {"weights": [1.5, -0.5]}, r"must be in \[0, 1\] \(method task takes any\)"),
        ([A, B], {"weights": [0.5, math.nan]}, "must be finite"),
        ([A, B], {"base": START, "eta": 1.3}, r"eta is 1.3; it must be in \[0, 1\]"),
    ],
)
def test_a_recipe_that_does_not_fit(models: list[dict[str, Tensor]], options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        rk.merge_weights(models, **options)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({}, r"tensor w of models\[0\] is missing in models\[1\]"),
        ({**B, "v": torch.zeros(1)}, r"tensor v of models\[1\] is missing in models\[0\]"),
        (one(1.0), r"tensor w has the size \[2\] in models\[0\] and \[1\] in models\[1\]"),
        (one(1.0, 2.0, dtype=torch.float32), r"is float64 in models\[0\] and float32 in models\[1\]: say with dtype"),
        ({"w": torch.tensor([1, 2])}, "is float64 .* and int64"),
        (one(1.0, math.inf), "is not finite everywhere"),
    ],
)
def test_models_that_are_not_alike(other: dict[str, Tensor], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        rk.merge_weights([A, other])


def test_whole_numbers_must_agree() -> None:
    with pytest.raises(ModelError, match="whole numbers have no mean"):
        rk.merge_weights([{"n": torch.tensor([1])}, {"n": torch.tensor([2])}])


class Counted(dict[str, Tensor]):
    """Gives a new tensor each time, and knows how many of all that it gave are still there."""

    alive: ClassVar[weakref.WeakSet[Tensor]] = weakref.WeakSet()
    most: ClassVar[int] = 0

    def __getitem__(self, name: str) -> Tensor:
        t = super().__getitem__(name).clone()
        self.alive.add(t)
        Counted.most = max(Counted.most, len(self.alive))
        return t


@pytest.mark.parametrize("method", ["linear", "slerp", "task"])
def test_few_tensors_are_in_memory_at_a_time(method: str) -> None:
    """However many models and tensors there are: the start's, the last one read, and what an operation still holds."""
    Counted.most = 0
    models = {str(i): Counted({f"t{k}": torch.randn(4) for k in range(20)}) for i in range(8)}
    start = Counted({f"t{k}": torch.randn(4) for k in range(20)})
    recipe = Recipe(method=method, eta=0.5)  # type: ignore[arg-type]
    for _ in combined(models, recipe, start):
        pass
    assert Counted.most <= 3


# -- files ------------------------------------------------------------------------------------------------------------

TENSORS = {
    "a": torch.randn(3, 2),
    "b": torch.randn(5).bfloat16(),
    "c": torch.tensor(2.0),
    "d": torch.tensor([1, 2, 3]),
    "e": torch.tensor([True, False]),
    "f": torch.zeros(0, 4),
    "g": torch.randn(4, 4).T,
}


def test_a_file_that_is_written_tensor_by_tensor_is_read_by_safetensors(tmp_path: Path) -> None:
    outlines = {name: (tuple(t.shape), t.dtype) for name, t in TENSORS.items()}
    size = write_file(tmp_path / "model.safetensors", outlines, iter(TENSORS.items()))
    assert size == sum(t.numel() * t.element_size() for t in TENSORS.values())
    for found in (load_file(tmp_path / "model.safetensors"), dict(Checkpoint(tmp_path))):
        assert found.keys() == TENSORS.keys()
        for name, t in TENSORS.items():
            assert found[name].dtype == t.dtype and torch.equal(found[name], t)
    assert Checkpoint(tmp_path).outline == outlines


def sharded(folder: Path, by: float) -> Checkpoint:
    folder.mkdir()
    files = {"model-00001-of-00002.safetensors": {"a": torch.ones(2) * by}}
    files["model-00002-of-00002.safetensors"] = {"b": torch.ones(3, 3) * by, "c": torch.arange(2)}
    for file, tensors in files.items():
        save_file(tensors, folder / file, {"format": "pt"})
    places = {name: file for file, tensors in files.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {places}}}'.replace("'", '"'))
    return Checkpoint(folder)


def test_files_are_cut_as_those_of_the_base(tmp_path: Path) -> None:
    models = {"1": sharded(tmp_path / "1", 1.0), "2": sharded(tmp_path / "2", 4.0)}
    out = tmp_path / "out"
    out.mkdir()
    size = write_merged(out, models, Recipe(weights=(0.5, 0.5)), None, models["1"], torch.float16)
    made = Checkpoint(out)
    assert {file: list(held) for file, held in made.files.items()} == {
        file: list(held) for file, held in models["1"].files.items()
    }
    assert made["a"].tolist() == [2.5, 2.5] and made["a"].dtype == torch.float16 and made["c"].tolist() == [0, 1]
    assert (
        size == 2 * 2 + 2 * 9 + 8 * 2 and f'"total_size": {size}' in (out / "model.safetensors.index.json").read_text()
    )


def damaged(folder: Path) -> Iterator[None]:
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"\x10")
    yield
    (folder / "model-00002-of-00002.safetensors").unlink()
    yield
    (folder / "model.safetensors.index.json").write_text("{")
    yield
    (folder / "model.safetensors.index.json").unlink()
    yield


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    sharded(tmp_path / "1", 1.0)
    said = [
        "00002.safetensors cannot be read",
        "00002.safetensors cannot be read",
        "index.json is damaged",
        "holds no safetensors",
    ]
    for _, want in zip(damaged(tmp_path / "1"), said, strict=True):
        with pytest.raises(ModelError, match=want):
            Checkpoint(tmp_path / "1")
