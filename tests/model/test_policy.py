"""A matrix that is embedding and output layer gets one gradient, the same as autograd's sum of two."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlkit.model import packed
from rlkit.model.load import load_lm
from rlkit.model.policy import PolicyModel, evaluate_new
from rlkit.model.tiny import make_tiny
from rlkit.types import Batch, Prompt, Rollout, Sampling

pytestmark = pytest.mark.slow

PAD = 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tied"), "0123456789+=", hidden=64, layers=2, heads=2, kv_heads=1)


def batch() -> Batch:
    rows = [((3, 4, PAD, 5), [6, 7, 1]), ((3, 4, PAD, 5), [6, 6, 6, 8, PAD, 1]), ((9, 4), [3, 1])]
    return Batch.from_rollouts(
        [
            Rollout(Prompt(str(g), p, ""), t, [True] * len(t), [0.0] * len(t), [0] * len(t), "stop", group=g)
            for g, (p, t) in zip((0, 0, 1), rows, strict=True)
        ]
    )


def gradients(
    folder: Path, dtype: torch.dtype, attention: str | None, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Tensor]:
    packed.register()
    model = PolicyModel(load_lm(folder, dtype=dtype, attention=attention))
    assert model._shared_table() is not None and model._shared_table().padding_idx == PAD
    if not shared:
        monkeypatch.setattr(model, "_shared_table", lambda: None)
    new = evaluate_new(model, batch(), Sampling(), frozenset({"entropy"}))
    (torch.linspace(-1, 2, len(new.logp)) * new.logp + 0.3 * new.entropy).sum().backward()
    return {n: p.grad.float() for n, p in model.named_parameters()}


@pytest.mark.parametrize("attention", [None, packed.NAME])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_one_gradient_is_the_sum_of_two(
    folder: Path, dtype: torch.dtype, tolerance: float, attention: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (gradients(folder, dtype, attention, shared, monkeypatch) for shared in (True, False))
    assert one.keys() == two.keys()
    for name in one:
        assert float((one[name] - two[name]).norm()) <= tolerance * float(two[name].norm()) + 1e-9, name
    table = one["lm.model.embed_tokens.weight"]
    assert bool((table[9] != 0).any()) and bool((table[PAD] != 0).any())  # only an input; only an output


def test_there_is_one_gradient_of_the_size_of_the_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = PolicyModel(load_lm(make_tiny(tmp_path, string.printable, hidden=32, layers=1, heads=1, kv_heads=1)))
    size = model.base.get_output_embeddings().weight.numel()
    assert all(p.numel() < size for n, p in model.named_parameters() if "embed" not in n)
    made: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.numel() == size and out.untyped_storage().data_ptr() not in given:
                made.append(str(func))
            return out

    def backward() -> list[str]:
        made.clear()
        model.zero_grad()
        new = evaluate_new(model, batch(), Sampling(), frozenset())
        with Watch():
            new.logp.sum().backward()
        return list(made)

    assert len(backward()) == 1
    monkeypatch.setattr(model, "_shared_table", lambda: None)
    assert len(backward()) > 1  # so the watch sees them


def test_frozen_and_separate_matrices_are_left_alone(folder: Path, tmp_path: Path) -> None:
    model = PolicyModel(load_lm(folder))
    with torch.no_grad():
        assert model._shared_table() is None
    model.requires_grad_(False)
    assert model._shared_table() is None
    assert (
        PolicyModel(
            load_lm(make_tiny(tmp_path, "01", hidden=32, layers=1, heads=1, kv_heads=1, tie=False))
        )._shared_table()
        is None
    )
