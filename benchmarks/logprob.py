"""Log-probs of tokens from hidden states, forward and backward: rlkit's output layer, the plain form, and Liger's fused GRPO loss.

    pip install 'rlkit-lm[cpu,bench]'
    python benchmarks/logprob.py                    # continues where it stopped; --fresh starts again

The loss is a policy gradient, the mean of ``-A log pi`` over responses of 256 tokens. The plain form makes all logits and leaves the rest to autograd. Liger's
`LigerFusedLinearGRPOLoss` (without a reference, not compiled) is that loss as a whole; it is left out where liger-kernel is not installed. The floor is the
time of the matrix products alone, on whole matrices in memory that is there already: logits, gradient of the hidden states, gradient of the weight, and the
logits once more as far as rlkit computes them again (what does not fit into one tile, nor into the memory of the weight's gradient). Times are taken in turns in one process (the minimum over repeats), on a
CPU with one thread; memory is what forward and backward add to a process of their own at most (on a GPU: allocated), the gradients they return included.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from report import RESULTS, added_on, append, page, plot, process, read, table

from rlkit.model import head

NAME = "logprob"
H, LENGTH = 896, 256  # hidden size of Qwen2.5-0.5B
CASES: list[dict[str, Any]] = [
    {"V": v, "N": n, "entropy": False, "dtype": "float32"}
    for v, n in (
        (1000, 256),
        (1000, 1024),
        (1000, 4096),
        (32000, 256),
        (32000, 1024),
        (32000, 4096),
        (151936, 256),
        (151936, 1024),
    )
]
CASES += [
    {"V": 32000, "N": 1024, "entropy": True, "dtype": "float32"},
    {"V": 32000, "N": 1024, "entropy": False, "dtype": "bfloat16"},
]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Form = Callable[["Data"], torch.Tensor]


class Data:
    """Hidden states, the layer's weight (both with gradient), targets, and one advantage a response."""

    def __init__(self, case: dict[str, Any]) -> None:
        g = torch.Generator().manual_seed(0)
        self.case, dtype = case, getattr(torch, case["dtype"])
        self.hidden = torch.randn(case["N"], H, generator=g).to(DEVICE, dtype).requires_grad_()
        self.weight = torch.nn.Parameter((torch.randn(case["V"], H, generator=g) * H**-0.5).to(DEVICE, dtype))
        self.target = torch.randint(0, case["V"], (case["N"],), generator=g).to(DEVICE)
        self.advantage = torch.randn(case["N"] // LENGTH, generator=g).to(DEVICE)

    def loss(self, logp: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        pg = -(self.advantage.repeat_interleave(LENGTH) * logp).mean()
        return pg - 0.01 * entropy.mean() if self.case["entropy"] else pg


def rlkit(d: Data) -> torch.Tensor:
    layer = head.LMHead.adopt(torch.nn.Linear(1, 1, bias=False))
    layer.weight = d.weight
    logp, entropy, _ = layer(d.hidden, target=d.target, entropy=d.case["entropy"])
    return d.loss(logp, entropy)


def plain(d: Data) -> torch.Tensor:
    log_p = (d.hidden @ d.weight.T).float().log_softmax(-1)
    return d.loss(
        log_p.gather(-1, d.target[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1) if d.case["entropy"] else log_p
    )


def liger(d: Data) -> torch.Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    fused = LigerFusedLinearGRPOLoss(beta=0.0, compiled=False, use_ref_model=False, loss_type="grpo")
    shape = (d.case["N"] // LENGTH, LENGTH)
    return fused(
        d.hidden.view(*shape, H), d.weight, d.target.view(shape), torch.ones(shape, device=DEVICE), d.advantage
    )[0]


def forms(case: dict[str, Any]) -> dict[str, Form]:
    found: dict[str, Form] = {"rlkit": rlkit, "plain": plain}
    try:
        import liger_kernel.chunked_loss  # noqa: F401
    except ImportError:
        return found
    return found if case["entropy"] else {**found, "liger": liger}


def gradients(d: Data, form: Form) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(form(d), [d.hidden, d.weight])


def seconds(f: Callable[[], Any]) -> float:
    if DEVICE.type == "cpu":  # other processes may use the machine
        start = time.process_time()
        f()
        return time.process_time() - start
    start = time.perf_counter()
    f()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def times(case: dict[str, Any], repeats: int) -> dict[str, Any]:
    d, n, v = Data(case), case["N"], case["V"]
    h, w = d.hidden.detach(), d.weight.detach()
    z, dh, dw = torch.empty(n, v, dtype=h.dtype, device=DEVICE), torch.empty_like(h), torch.empty_like(w)
    run: dict[str, Callable[[], Any]] = {
        "logits": lambda: torch.mm(h, w.T, out=z),
        "d_hidden": lambda: torch.mm(z, w, out=dh),
        "d_weight": lambda: torch.mm(z.T, h, out=dw),
        **{k: (lambda f=f: gradients(d, f)) for k, f in forms(case).items()},
    }
    best: dict[str, float] = {}
    for _ in range(repeats + 1):  # the first round also warms up
        for k, f in run.items():
            best[k] = min(best.get(k, float("inf")), seconds(f))
    want = gradients(d, plain)
    gaps = {
        k: max(float((x - y).float().norm() / y.float().norm()) for x, y in zip(gradients(d, f), want, strict=True))
        for k, f in forms(case).items()
        if k != "plain"
    }
    tiles = head._Tiles(h, w, None, d.target, 1.0, 0, 1.0, False, None)
    tiles.keep(trained=True)
    again = (
        1 - min(0 if tiles.kept is None else tiles.kept.tokens, n) / n
    )  # the share of the logits that is computed twice
    products = {k: best.pop(k) for k in ("logits", "d_hidden", "d_weight")}
    return {
        "seconds": best,
        "three_products": sum(products.values()),
        "rlkit_floor": sum(products.values()) + again * products["logits"],
        "products": 3 + again,
        "gradients_differ": gaps,
    }


def memory(case: dict[str, Any], form: Form) -> float:
    """MiB that one forward and backward add at most."""
    gradients(Data({**case, "V": 300, "N": LENGTH}), form)  # libraries are loaded
    d = Data(case)
    return added_on(DEVICE, lambda: gradients(d, form))


def measure(case: dict[str, Any]) -> dict[str, Any]:
    def worker(*what: str) -> dict[str, Any]:
        return process(__file__, "--case", json.dumps(case), *what, threads=1 if DEVICE.type == "cpu" else None)

    row = worker("--repeats", "1" if case["V"] * case["N"] > 1 << 26 else "3")
    return {**case, **row, "added_mib": {k: worker("--memory", k)["mib"] for k in forms(case)}}


def write(rows: list[dict[str, Any]]) -> None:
    def draw(axes: Any) -> None:
        base = [r for r in rows if not r["entropy"] and r["dtype"] == "float32"]
        for k in ("rlkit", "plain", "liger"):
            own = [r for r in base if k in r["seconds"]]
            axes[0].plot(
                [r["N"] * r["V"] for r in own], [r["seconds"][k] / r["three_products"] for r in own], "o", label=k
            )
            axes[1].loglog([r["N"] * r["V"] for r in own], [r["added_mib"][k] for r in own], "o", label=k)
        axes[0].set_xscale("log")
        axes[0].axhline(1, color="black", linewidth=0.8)
        axes[0].set_ylabel("time / three matrix products")
        axes[1].set_ylabel("added memory, MiB")
        for a in axes:
            a.set_xlabel("logits (N x V)")
            a.legend()

    plot(NAME, draw, width=2)

    def per(key: str, name: str, form: str) -> Callable[[dict[str, Any]], str]:
        return lambda r: format(r[key][name], form) if name in r[key] else ""

    columns = [
        ("V", lambda r: f"{r['V']:,}"),
        ("N", lambda r: f"{r['N']:,}"),
        ("", lambda r: ("entropy" if r["entropy"] else "") + (r["dtype"] if r["dtype"] != "float32" else "")),
        ("rlkit / its products", lambda r: f"{r['seconds']['rlkit'] / r['rlkit_floor']:.2f}"),
        ("products", lambda r: f"{r['products']:.2f}"),
        *(
            (
                f"{k} / three products",
                lambda r, k=k: f"{r['seconds'][k] / r['three_products']:.2f}" if k in r["seconds"] else "",
            )
            for k in ("rlkit", "plain", "liger")
        ),
        *((f"{k} adds, MiB", per("added_mib", k, ".0f")) for k in ("rlkit", "plain", "liger")),
        *((f"{k} differs by", per("gradients_differ", k, ".0e")) for k in ("rlkit", "liger")),
    ]
    page(
        NAME,
        "Log-probs without logits",
        [
            f"H = {H}. Forward and backward; time as a multiple of matrix products alone, taken in the same process; memory with the gradients that are returned. The last columns are",
            "relative differences of the gradients from the plain form's.",
            "",
            *table(rows, columns),
            "",
            "Liger's GRPO loss makes the gradient together with the loss, so that it computes logits once; it is one loss, and no other can be put on it. rlkit returns log-probs,",
            "of which any loss can be made, and pays with those logits computed again that do not fit into the memory of the weight's gradient. Liger has no fused linear log-prob (its issue 873 asks for one).",
        ],
        rows,
    )


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--fresh", action="store_true")
    p.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    p.add_argument("--memory", help=argparse.SUPPRESS)
    p.add_argument("--repeats", type=int, default=3, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.case is not None:
        print(json.dumps({"mib": memory(a.case, forms(a.case)[a.memory])} if a.memory else times(a.case, a.repeats)))
        return
    if a.fresh:
        (RESULTS / f"{NAME}.jsonl").unlink(missing_ok=True)
    for case in CASES:
        if not any(case.items() <= r.items() for r in read(NAME)):
            append(NAME, measure(case))
    write(sorted(read(NAME), key=lambda r: CASES.index({k: r[k] for k in CASES[0]})))


if __name__ == "__main__":
    main()
