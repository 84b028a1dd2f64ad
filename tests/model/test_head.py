"""Token log-probs and entropies of the output layer against plain autograd on full logits in float64: values and gradients."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rlkit.model import head as module
from rlkit.model.head import LMHead, truncate

N, H, V = 23, 8, 37
TILES = {"one tile": (1 << 22, 1 << 24), "many tiles": (64, 5 * V)}  # elements of a tile, and of a chunk of whole rows


@pytest.fixture(params=TILES)
def tiled(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(("CPU_ELEMENTS", "CHUNK_ELEMENTS"), TILES[request.param], strict=True):
        monkeypatch.setattr(module, name, value)


def inputs(
    dtype: torch.dtype = torch.float32, bias: bool = True, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    g = torch.Generator().manual_seed(0)

    def r(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=g) * scale).to(dtype)

    return r(N, H), r(V, H), r(V) if bias else None, torch.randint(0, V, (N,), generator=g)


def layer(weight: Tensor, bias: Tensor | None, scale: float = 1.0, cap: float | None = None) -> LMHead:
    linear = nn.Linear(H, V, bias=bias is not None)
    linear.weight = nn.Parameter(weight.clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.clone())
    return LMHead.adopt(linear, scale, cap)


def plain(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    scale: float = 1.0,
    cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    logits = nn.functional.linear(hidden * scale, weight, bias)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    log_p = truncate(logits / temperature, target, top_k, top_p).log_softmax(-1)
    return log_p.gather(-1, target[:, None])[:, 0], -(log_p.exp() * log_p.masked_fill(log_p.isinf(), 0)).sum(-1)


def gradients(logp: Tensor, ent: Tensor, of: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a loss in which every token's log-prob and entropy has a weight of its own."""
    w = torch.linspace(-1, 2, 2 * N, dtype=logp.dtype)
    return torch.autograd.grad((w[:N] * logp).sum() + (w[N:] * ent).sum() if len(ent) else (w[:N] * logp).sum(), of)


def check(
    dtype: torch.dtype,
    tolerance: float,
    *,
    scale: float = 1.0,
    bias: bool = True,
    entropy: bool = True,
    fp32: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    factor: float = 1.0,
    cap: float | None = None,
) -> None:
    hidden, weight, b, target = inputs(dtype, bias, scale)
    head, hidden = layer(weight, b, factor, cap), hidden.requires_grad_()
    logp, ent, _ = head(
        hidden, target=target, temperature=temperature, top_k=top_k, top_p=top_p, entropy=entropy, fp32=fp32
    )
    assert logp.dtype == torch.float32 and ent.shape == (N if entropy else 0,)
    found = gradients(logp, ent, [hidden, *head.parameters()])
    wide = [x.detach().double().requires_grad_() for x in (hidden, *head.parameters())]
    want_logp, want_ent = plain(
        wide[0], wide[1], wide[2] if bias else None, target, temperature, top_k, top_p, factor, cap
    )
    want = gradients(want_logp, want_ent if entropy else ent.double(), wide)
    for x, y in zip(
        (logp, *([ent] if entropy else []), *found), (want_logp, *([want_ent] if entropy else []), *want), strict=True
    ):
        assert float((x.double() - y).norm().detach() / y.norm().detach()) < tolerance
    assert [x.dtype for x in found] == [dtype] * len(found)


@pytest.mark.usefixtures("tiled")
@pytest.mark.parametrize(("bias", "entropy", "temperature"), list(product((False, True), (False, True), (1.0, 0.7))))
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.8), (7, 0.9)])
def test_values_and_gradients_are_those_of_full_logits(
    bias: bool, entropy: bool, temperature: float, top_k: int, top_p: float
) -> None:
    check(torch.float32, 1e-5, bias=bias, entropy=entropy, temperature=temperature, top_k=top_k, top_p=top_p)


@pytest.mark.usefixtures("tiled")
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize(("factor", "cap"), [(0.25, None), (1.0, 3.0), (2.0, 1.5)])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (7, 0.9)])
def test_what_models_do_to_their_logits(
    entropy: bool, factor: float, cap: float | None, top_k: int, top_p: float
) -> None:
    """Granite and Cohere multiply them, Gemma 2 bounds them; the gradient goes through both."""
    check(
        torch.float32,
        1e-5,
        temperature=0.7,
        entropy=entropy,
        factor=factor,
        cap=cap,
        top_k=top_k,
        top_p=top_p,
        bias=False,
    )
    if factor == 1:
        check(torch.float32, 1e-5, entropy=entropy, cap=cap)


@pytest.mark.usefixtures("tiled")
@pytest.mark.parametrize("entropy", [False, True])
def test_bfloat16(entropy: bool) -> None:
    check(torch.bfloat16, 0.02, scale=0.5, entropy=entropy)  # products are rounded as the model's are
    check(torch.bfloat16, 0.004, scale=0.5, entropy=entropy, fp32=True)  # only the gradients are rounded


@pytest.mark.usefixtures("tiled")
def test_nothing_is_lost_where_the_policy_is_certain() -> None:
    hidden, weight, bias, target = inputs(scale=6)  # logits of some hundreds, p close to 1
    logp, ent, _ = layer(weight, bias)(hidden, target=target, entropy=True)
    want, want_ent = plain(
        hidden.double(), weight.double(), bias.double() if bias is not None else None, target, 1.0, 0, 1.0
    )
    torch.testing.assert_close(logp.double(), want, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ent.double(), want_ent, rtol=1e-3, atol=1e-7)


@pytest.mark.usefixtures("tiled")
def test_only_what_is_trained_gets_a_gradient() -> None:
    hidden, weight, bias, target = inputs()
    head, x = layer(weight, bias).requires_grad_(False), hidden.clone().requires_grad_()
    (frozen,) = gradients(*head(x, target=target, entropy=True)[:2], [x])  # LoRA
    head.requires_grad_()
    whole, w = gradients(*head(x, target=target, entropy=True)[:2], [x, head.weight])
    (only,) = gradients(*head(hidden, target=target, entropy=True)[:2], [head.weight])
    torch.testing.assert_close(frozen, whole)
    torch.testing.assert_close(only, w)


@pytest.mark.usefixtures("tiled")
def test_a_second_backward_pass_and_a_batch_without_tokens() -> None:
    hidden, weight, bias, target = inputs()
    head, x = layer(weight, bias), hidden.requires_grad_()
    total = head(x, target=target)[0].sum()
    first = torch.autograd.grad(total, [x, head.weight], retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(total, [x, head.weight]), strict=True):
        torch.testing.assert_close(a, b)
    none, ent, _ = head(hidden[:0], target=target[:0], entropy=True)
    assert none.shape == ent.shape == (0,)
    assert not torch.autograd.grad(none.sum(), head.weight)[0].any()


class _Largest(TorchDispatchMode):
    """The most elements of any tensor that is made inside."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def test_no_tensor_is_larger_than_a_tile_or_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_ELEMENTS", 64)
    hidden, weight, bias, target = inputs()
    head, x = layer(weight, bias), hidden.requires_grad_()
    with _Largest() as largest:
        head(x, target=target, entropy=True)[0].sum().backward()
    assert largest.elements == max(V * H, N * H) < N * V


class _Products(TorchDispatchMode):
    """How many products of hidden states and the layer's weight are made inside, and the most elements of a tensor that is."""

    def __init__(self) -> None:
        super().__init__()
        self.made = self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.made += func.overloadpacket is torch.ops.aten.mm and args[0].shape[1] == args[1].shape[0] == H
        self.elements = max(self.elements, out.numel() if isinstance(out, Tensor) else 0)
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, 4, N])
def test_products_are_made_again_only_where_they_could_not_be_kept(
    tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CPU_ELEMENTS", 64)  # tiles of 4 tokens and 16 classes, so there are 3 blocks of these
    hidden, weight, _, target = inputs(dtype, bias=False)
    head, x, target = layer(weight, None), hidden[:tokens].requires_grad_(), target[:tokens]

    def products(frozen: bool) -> tuple[int, int]:
        head.requires_grad_(not frozen)
        with _Products() as forward:
            logp = head(x, target=target)[0]
        with _Products() as backward:
            logp.sum().backward()
        return forward.made, backward.made

    made, again = products(frozen=False)
    assert again == (0 if tokens <= 4 else made - 3)  # the first tile of each block is kept
    assert products(frozen=True) == (made, made)  # an adapter's layer has no gradient whose memory could hold them
    with torch.no_grad(), _Products() as passing:
        head(x, target=target)
    assert passing.elements < V * H


@pytest.mark.usefixtures("tiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, H, H + 1])
def test_products_that_were_kept_give_the_gradients_of_those_that_are_made_again(
    tokens: int, dtype: torch.dtype
) -> None:
    hidden, weight, bias, target = inputs(dtype)
    head, x = layer(weight, bias), hidden[:tokens].requires_grad_()
    total = head(x, target=target[:tokens], temperature=0.7)[0].sum()
    first, second = (torch.autograd.grad(total, [x, *head.parameters()], retain_graph=True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rows", [(1,), (2,), (2, 3), (9,)])
def test_logits_of_few_rows_are_those_of_the_layer(rows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 1)
    _, weight, bias, _ = inputs()
    hidden = torch.randn(*rows, H)
    for b in (bias, None):
        head = layer(weight, b)
        with torch.no_grad():
            found = head(hidden)
        assert found.is_contiguous()
        torch.testing.assert_close(found, nn.functional.linear(hidden, weight, b))
        assert head(hidden).requires_grad
