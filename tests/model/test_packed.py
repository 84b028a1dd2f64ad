"""Packed sequences with shared prompts against the padded model: log-probs, entropies, values, and the gradient of every parameter."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import rlkit as rk
from rlkit.data.tasks import Sorting
from rlkit.learner.learner import Learner
from rlkit.learner.plan import cut, pack_groups
from rlkit.model import packed
from rlkit.model.adapter import add_adapter
from rlkit.model.load import load_for, load_lm
from rlkit.model.policy import PolicyModel, ValueModel, evaluate_new
from rlkit.model.tiny import make_tiny
from rlkit.types import Batch, Prompt, Rollout, Sampling
from tests.model.families import FAMILIES, Family, make

pytestmark = pytest.mark.slow

packed.register()


def batch(seed: int, groups: tuple[int, ...] = (4, 1, 3), tools: bool = False) -> Batch:
    r = random.Random(seed)
    rollouts = []
    for g, n in enumerate(groups):
        prompt = Prompt(str(g), tuple(r.randint(3, 13) for _ in range(r.randint(1, 20))), "")
        for _ in range(n):
            T = r.randint(1, 12)
            flags = [not tools or r.random() < 0.6 for _ in range(T)]
            flags[-1] = True
            rollouts.append(
                Rollout(prompt, [r.randint(3, 13) for _ in range(T)], flags, [-2.5] * T, [0] * T, "stop", group=g)
            )
    return Batch.from_rollouts(rollouts)


def both(
    path: Path, b: Batch, lora: bool = False, critic: bool = False, checkpointing: bool = False
) -> list[tuple[Any, torch.Tensor]]:
    found = []
    for attention in (None, packed.NAME):
        lm = load_lm(path, attention=attention)
        value = ValueModel(load_lm(path, attention=attention)) if critic else None
        if value is not None:
            torch.nn.init.ones_(value.out.weight)
        if lora:
            lm = add_adapter(lm, {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}, 0)
        if checkpointing:
            lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            lm.enable_input_require_grads()
        model = PolicyModel(lm, value_head=critic, critic=value).train()
        new = evaluate_new(
            model, b, Sampling(temperature=0.8), frozenset({"entropy", "value"} if critic else {"entropy"})
        )
        weight = torch.randn(b.N, generator=torch.Generator().manual_seed(1))
        total = (
            (new.logp * weight).sum()
            + (new.entropy * weight.flip(0)).sum()
            + (0 if new.value is None else (new.value * weight).sum())
        )
        total.backward()
        found.append((new, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    return found


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("seed", range(3))
def test_packed_is_padded(family: Any, seed: int, tmp_path: Path) -> None:
    path = make_tiny(tmp_path, Sorting.alphabet, family=family, hidden=64, layers=2, heads=2, kv_heads=1 + seed % 2)
    (one, grad), (two, other) = both(path, batch(seed, tools=seed == 2))
    torch.testing.assert_close(two.logp, one.logp, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(two.entropy, one.entropy, rtol=1e-5, atol=2e-6)
    assert float((grad - other).norm() / grad.norm()) < 2e-6


def test_with_an_adapter_a_critic_and_checkpointing(tiny: Path) -> None:
    for options in ({"lora": True}, {"critic": True}, {"checkpointing": True}):
        (one, grad), (two, other) = both(tiny, batch(5), **options)
        torch.testing.assert_close(two.logp, one.logp, rtol=1e-5, atol=2e-6)
        assert float((grad - other).norm() / grad.norm()) < 2e-6
        if "critic" in options:
            torch.testing.assert_close(two.value, one.value, rtol=1e-5, atol=2e-6)


def test_a_prompt_is_there_once_and_no_padding() -> None:
    b = batch(0)
    layout = packed.make(b.ids, b.length, b.action, b.group)
    prompts = {
        int(g): int(b.length[b.group == g].sum() - (b.group[b.seq] == g).sum()) // int((b.group == g).sum())
        for g in b.group.unique()
    }
    assert len(layout.ids) == sum(prompts.values()) + b.N
    assert torch.equal(layout.ids[layout.place], b.ids)  # every original token is somewhere
    assert sorted(set(layout.place.tolist())) == list(range(len(layout.ids))) == sorted(layout.method.order.tolist())


def test_rows_of_one_group_with_other_prompts_do_not_share(tiny: Path) -> None:
    """As after an interrupted response, or where stored rows stand in a group of their own."""
    rollouts = [
        Rollout(Prompt(str(k), prompt, ""), [5, 6, 7], [True] * 3, [-1.0] * 3, [0] * 3, "stop", group=0)
        for k, prompt in enumerate([(3, 4), (3, 5), (3, 4), (3,)])
    ]
    b = Batch.from_rollouts(rollouts)
    assert len(packed.make(b.ids, b.length, b.action, b.group).ids) == 2 + 2 + 1 + 4 * 3  # two of four share
    (one, grad), (two, other) = both(tiny, b)
    torch.testing.assert_close(two.logp, one.logp, rtol=1e-5, atol=2e-6)
    assert float((grad - other).norm() / grad.norm()) < 2e-6


def test_what_cannot_be_packed_is_refused_or_padded(
    small: dict[str, Any], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner(rk.load(small).learner_setup(str(tiny), frozenset()))
    assert learner.ready()["layout"] == "packed"
    assert (
        Learner(rk.load({**small, "learner": {"packed": False}}).learner_setup(str(tiny), frozenset())).ready()[
            "layout"
        ]
        == "padded"
    )
    eager = {**small, "model": {"path": str(tiny), "attention": "eager"}}
    assert "model.attention is eager" in Learner(rk.load(eager).learner_setup(str(tiny), frozenset())).ready()["layout"]
    with pytest.raises(ValueError, match=r"learner.packed: model.attention is eager"):
        Learner(rk.load({**eager, "learner": {"packed": True}}).learner_setup(str(tiny), frozenset()))

    # a model whose code does not hand the layout on to its attention
    def deaf(module: Any, query: Any, key: Any, value: Any, mask: Any = None, packing: Any = None, **more: Any) -> Any:
        return packed.attention(module, query, key, value, mask, **more)

    from transformers import AttentionInterface

    monkeypatch.setattr(packed, "register", lambda: AttentionInterface.register(packed.NAME, deaf))
    try:
        assert (
            "other hidden states for packed sequences"
            in Learner(rk.load(small).learner_setup(str(tiny), frozenset())).ready()["layout"]
        )
        with pytest.raises(ValueError, match="this model's code gives other hidden states"):
            Learner(rk.load({**small, "learner": {"packed": True}}).learner_setup(str(tiny), frozenset()))
    finally:
        AttentionInterface.register(packed.NAME, packed.attention)


def test_micro_batches_count_a_prompt_once() -> None:
    g = torch.Generator().manual_seed(0)
    group = torch.arange(10).repeat_interleave(4)
    prompt = torch.randint(5, 30, (10,), generator=g).repeat_interleave(4)
    length = prompt + torch.randint(1, 40, (40,), generator=g)
    for ranks in (1, 2, 3):
        plan = pack_groups(length, prompt, group, ranks, 120)
        assert (
            sorted(r for rank in plan for micro in rank for r in micro) == list(range(40))
            and len({len(rank) for rank in plan}) == 1
        )
        for micro in (m for rank in plan for m in rank):
            tokens = sum(int(length[r] - prompt[r]) for r in micro) + sum(
                int(prompt[group == k][0]) for k in {int(group[r]) for r in micro}
            )
            assert tokens <= 120 or len(micro) == 1
    b = batch(3, groups=(5, 5))
    shards, rows = cut(b, 1, 60, packed=True)
    assert sorted(torch.cat(rows).tolist()) == list(range(10)) and len(shards[0]) > 1


def test_long_and_short_rows_attend_in_parts_of_their_own() -> None:
    """Padding of the attention stays small: one long row does not make all others as long."""
    rollouts = [
        Rollout(Prompt("p", (3,) * 50, ""), [4] * T, [True] * T, [-1.0] * T, [0] * T, "stop", group=0)
        for T in [400] + [10] * 30
    ]
    b = Batch.from_rollouts(rollouts)
    layout = packed.make(b.ids, b.length, b.action, b.group)
    cost = sum(p.query.shape[0] * p.query.shape[1] * p.key.shape[1] for p in layout.method.parts)
    real = 50 * 50 + 400 * 450 + 30 * 10 * 60
    # A part has at least four rows: three short ones stand beside the long one.
    assert len(layout.ids) == 50 + 700 and cost < 4.5 * real


def alone(b: Batch, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    """Attention of each sequence by itself, ``[L, heads, d]``: what every method must give."""
    out = []
    for x, y, z in zip(*(t.split(b.length.tolist()) for t in (q, k, v)), strict=True):
        place = torch.arange(len(x))
        back = place[:, None] - place
        sees = (back >= 0) & (back < (window or len(x)))
        y, z = (t.repeat_interleave(x.shape[1] // y.shape[1], 1) for t in (y, z))
        score = torch.einsum("qhd,khd->hqk", x, y) / x.shape[-1] ** 0.5
        out.append(torch.einsum("hqk,khd->qhd", score.masked_fill(~sees, -torch.inf).softmax(-1), z))
    return torch.cat(out)


def flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends_q: Any, ends_k: Any, *most: int, **options: Any
) -> torch.Tensor:
    """What torch's kernel for GPUs computes, by its documentation: the last query stands at the last key; (left, right) is its window."""
    (left, right), out = options["window_size"], []
    assert right == 0 and most == (int(ends_q.diff().max()), int(ends_k.diff().max()))
    for x, y, z in zip(
        *(t.tensor_split(e[1:-1].long()) for t, e in ((q, ends_q), (k, ends_k), (v, ends_k))), strict=True
    ):
        back = torch.arange(len(y) - len(x), len(y))[:, None] - torch.arange(len(y))
        sees = (back >= 0) & ((back <= left) | torch.tensor(left < 0))
        x, y, z = (t.transpose(0, 1)[None] for t in (x, y, z))
        rows = torch.nn.functional.scaled_dot_product_attention(x, y, z, sees, scale=options["scale"], enable_gqa=True)
        out.append(rows[0].transpose(0, 1))
    return torch.cat(out)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 6])
def test_every_method_is_attention_of_each_sequence_by_itself(
    dtype: torch.dtype, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.nn.attention import varlen

    monkeypatch.setattr(varlen, "varlen_attn", flash)
    b, heads, kv, d = batch(7, groups=(4, 1, 3)), 4, 2, 16
    layout = packed.make(b.ids, b.length, b.action, b.group)
    g = torch.Generator().manual_seed(0)
    size = len(layout.ids)
    packed_rows = [torch.randn(size, n, d, generator=g).to(dtype).requires_grad_() for n in (heads, kv, kv)]
    weight = torch.randn(len(b.ids), heads, d, generator=g)
    exact = [x.detach().double().requires_grad_() for x in packed_rows]
    want = alone(b, *(x[layout.place] for x in exact), window)
    # A prompt's places are there once, and its results are the same in all of its rows.
    wanted = torch.autograd.grad((want * weight).sum(), exact)
    for name in packed.METHODS:
        if name == packed.NAME and window is not None:
            continue
        method = packed.make(b.ids, b.length, b.action, b.group, name).method
        out = method.attend(*packed_rows, d**-0.5, 0.0, window)[layout.place]
        close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.0, "atol": 0.03}
        torch.testing.assert_close(out.double(), want, **close)
        with torch.no_grad():  # where flex attention has no backward pass, it is asked without one
            bare = method.attend(*packed_rows, d**-0.5, 0.0, window)[layout.place]
        torch.testing.assert_close(bare.double(), want, **close)
        for x, y in zip(torch.autograd.grad((out * weight).sum(), packed_rows), wanted, strict=True):
            assert float((x.double() - y).norm() / y.norm()) < (1e-6 if dtype == torch.float32 else 0.01), name


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kinds", [["sliding_attention", "full_attention"], ["full_attention"] * 2])
def test_windows_and_whole_layers_as_the_padded_pass_has_them(
    kinds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole model, log-probs and the gradient of every parameter, by the methods for GPUs."""
    from torch.nn.attention import varlen
    from transformers import Qwen3Config, Qwen3ForCausalLM

    monkeypatch.setattr(varlen, "varlen_attn", flash)
    config = Qwen3Config(
        vocab_size=16,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        layer_types=kinds,
        sliding_window=6,
        use_sliding_window=True,
        max_window_layers=0,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    b = batch(8)

    def gradient(attention: str) -> tuple[torch.Tensor, torch.Tensor]:
        lm = load_lm(tmp_path)
        lm.set_attn_implementation(attention)
        model = PolicyModel(lm).train()
        new = evaluate_new(model, b, Sampling(), frozenset())
        new.logp.square().sum().backward()
        return new.logp.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    want, wanted = gradient("eager")
    for name in list(packed.METHODS)[1:]:
        logp, grad = gradient(name)
        torch.testing.assert_close(logp, want, rtol=1e-5, atol=2e-6)
        assert float((grad - wanted).norm() / wanted.norm()) < 2e-6
    assert packed.supported(config, windows=True) is None
    assert "sliding" in (packed.supported(config) or "")
    with torch.no_grad():  # rows that are not packed, under the same name
        plain, ours = load_lm(tmp_path, attention="eager"), load_lm(tmp_path)
        ours.set_attn_implementation(packed.NAME)
        torch.testing.assert_close(ours(b.ids[None, :40]).logits, plain(b.ids[None, :40]).logits, rtol=1e-4, atol=1e-5)


REFUSED = {"Gemma 2": "caps the scores of attention", "GPT-OSS": "has attention sinks"}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("family", [f for f in FAMILIES if f.tested], ids=lambda f: f.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_families_by_the_methods_for_gpus(
    family: Family, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and the gradient of every parameter against `eager`; or the reason why rows are padded, in 16 bits, too."""
    from torch.nn.attention import varlen

    monkeypatch.setattr(varlen, "varlen_attn", flash)
    path, b = make(family, tmp_path), batch(8)

    def gradient(lm: Any) -> tuple[torch.Tensor, torch.Tensor]:
        model = PolicyModel(lm).train()
        new = evaluate_new(model, b, Sampling(), frozenset())
        new.logp.square().sum().backward()
        grads = [p.grad.flatten().float() for p in model.parameters() if p.grad is not None]
        return new.logp.detach().float(), torch.cat(grads)

    want, wanted = gradient(load_lm(path, dtype, "eager"))
    for name in list(packed.METHODS)[1:]:
        monkeypatch.setattr(packed, "candidates", lambda device, dtype, name=name: (name,))
        lm, why = load_for(path, dtype, packed.NAME, windows=True)
        if family.name in REFUSED:
            assert why is not None and f"it {REFUSED[family.name]}" in why and lm.config._attn_implementation == "eager"
            continue
        assert why is None and lm.config._attn_implementation == name
        logp, grad = gradient(lm)
        gap = (logp - want).abs()
        most, mean, moved = (1e-5, 1e-5, 5e-6) if dtype == torch.float32 else (0.06, 0.02, 0.04)
        routed = "MoE" in family.name or family.name in ("Mixtral", "OLMoE", "DeepSeek-V3")
        if dtype == torch.bfloat16 and routed:
            most, mean, moved = 1.0, 0.05, 0.5  # rounding sends a token to another expert
        assert float(gap.max()) < most and float(gap.mean()) < mean
        assert float((grad - wanted).norm() / wanted.norm()) < moved


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_window_that_layers_do_not_hand_on_is_noticed_however_long_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen2-MoE's masks have the window, its layers do not tell their attention of it."""
    monkeypatch.setattr(packed, "candidates", lambda device, dtype: (f"{packed.NAME}_blocks",))
    found = {}
    for name in ("Qwen2-MoE", "Mistral"):
        (family,) = (f for f in FAMILIES if f.name == name)
        long = {**family.options, "sliding_window": 200}
        if name == "Qwen2-MoE":
            long |= {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}
        path = make(dataclasses.replace(family, options=long), tmp_path / name)
        lm, why = load_for(path, torch.float32, packed.NAME, windows=True)
        found[name] = why
        assert lm.config.sliding_window == 200
    assert found["Mistral"] is None
    assert "other hidden states for packed sequences" in (found["Qwen2-MoE"] or "")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_kernel_is_compiled_for_rows_of_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its compiler is torch's, without the last step: what a GPU's would be asked for, and how often."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("eager")  # type: ignore[no-untyped-call]
    monkeypatch.setattr(packed, "COMPILER", counter)
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)  # vLLM's tests set it in this process
    packed._compiled.cache_clear()
    try:
        with torch._dynamo.config.patch(disable=False), torch.no_grad():
            for heads, kv, d, window in ((4, 2, 16, 6), (6, 2, 24, None)):
                for seed, n in enumerate((2, 9, 5)):
                    b = batch(seed, groups=tuple(1 + k % 4 for k in range(n)))
                    method = packed.make(b.ids, b.length, b.action, b.group, f"{packed.NAME}_blocks").method
                    rows = [torch.randn(len(method.own), h, d) for h in (heads, kv, kv)]
                    monkeypatch.setattr(packed, "KERNELS", {"cuda"})
                    want = method.attend(*rows, d**-0.5, 0.0, window)
                    method.masks.clear()
                    monkeypatch.setattr(packed, "KERNELS", {"cpu"})
                    torch.testing.assert_close(method.attend(*rows, d**-0.5, 0.0, window), want)
        # The kernel and its mask, two times each: torch also compiles for sizes that happen to be equal.
        assert 4 <= counter.frame_count <= 8
    finally:
        packed._compiled.cache_clear()
        torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_first_method_that_passes_where_the_model_is_loaded_is_taken(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "candidates", lambda device, dtype: list(packed.METHODS)[::-1])
    lm, why = load_for(tiny, torch.float32, packed.NAME)  # flash attention has no kernel for this machine
    assert lm.config._attn_implementation == f"{packed.NAME}_blocks" and why is None
    monkeypatch.setattr(packed, "candidates", lambda device, dtype: [f"{packed.NAME}_spans"])
    lm, why = load_for(tiny, torch.float32, packed.NAME)
    assert lm.config._attn_implementation not in packed.METHODS and "packed sequences fail" in why
