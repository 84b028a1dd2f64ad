"""A divergence over the whole vocabulary with a teacher, forward and backward: rlkit, plain autograd, TRL's GKD loss, and Liger's fused one.

    pip install 'rlkit-lm[cpu,bench]'
    python benchmarks/full_vocab.py                     # continues where it stopped; --fresh starts again
    python benchmarks/full_vocab.py --tokens 4096       # other sizes, into the same page

The loss is the mean over tokens of the Jensen-Shannon divergence between student and teacher, from hidden states and output layers of both. TRL's side is
`GKDTrainer.generalized_jsd_loss` on logits of these tokens alone; its trainer makes those of prompts and padding, too. Liger's is `LigerFusedLinearJSDLoss`, not
compiled, with its own chunk size. Each is left out where it is not installed. The floor is the matrix products alone, on whole matrices: logits of student and
teacher, gradients of hidden states and weight. Times are taken in turns in one process (the minimum over repeats); memory is what forward and backward add to a
process of their own at most (on a GPU: allocated), the gradients that they return included.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from report import RESULTS, Row, added_on, append, growth, page, process, read, table

from rlkit.objective.divergences import TABLE
from rlkit.objective.full_vocab import Head, full_divergence

NAME = "full_vocab"
V, H = 151_936, 896  # Qwen2.5-0.5B's
TOKENS = (128, 256, 512)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FORMS = ("plain", "rlkit", "trl", "liger")
Form = Callable[["Data"], torch.Tensor]


class Data:
    """Hidden states and output layers of a student, which get gradients, and of a teacher that is not far from it."""

    def __init__(self, n: int, vocabulary: int = V) -> None:
        g = torch.Generator().manual_seed(0)

        def r(rows: int, scale: float) -> torch.Tensor:
            return (torch.randn(rows, H, generator=g) * scale).to(DEVICE)

        self.hidden, self.weight = r(n, 1.0).requires_grad_(), r(vocabulary, 2 * H**-0.5).requires_grad_()
        self.teacher_hidden, self.teacher_weight = self.hidden.detach() + r(n, 0.5), self.weight.detach()
        self.labels = torch.zeros(n, dtype=torch.long, device=DEVICE)


def rlkit(d: Data) -> torch.Tensor:
    n = len(d.hidden)
    policy, teacher = Head(d.hidden, d.weight), Head(d.teacher_hidden, d.teacher_weight)
    # A run knows each token's weight in the loss beforehand.
    return full_divergence(policy, teacher, TABLE["js"], expected=torch.full((n,), 1 / n, device=DEVICE)).mean()


def plain(d: Data) -> torch.Tensor:
    log_p = (d.hidden @ d.weight.T).log_softmax(-1)
    with torch.no_grad():
        log_q = (d.teacher_hidden @ d.teacher_weight.T).log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
    return 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1).mean()


def trl(d: Data) -> torch.Tensor:
    from trl.experimental.gkd import GKDTrainer

    student = d.hidden @ d.weight.T
    with torch.no_grad():
        teacher = d.teacher_hidden @ d.teacher_weight.T
    return GKDTrainer.generalized_jsd_loss(student[None], teacher[None], labels=d.labels[None], beta=0.5)


def liger(d: Data) -> torch.Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    fused = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, compiled=False)
    return fused(d.hidden, d.weight, d.teacher_hidden, d.teacher_weight, d.labels)


def forms() -> dict[str, Form]:
    found: dict[str, Form] = {"rlkit": rlkit, "plain": plain}
    for name, form in (("trl", trl), ("liger", liger)):
        try:
            form(Data(4, 64))
        except ImportError:
            continue
        found[name] = form
    return found


def gradients(d: Data, form: Form) -> tuple[torch.Tensor, ...]:
    value = form(d)
    return (value.detach(), *torch.autograd.grad(value, [d.hidden, d.weight]))


def seconds(f: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    out = f()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, out


def times(n: int, repeats: int) -> Row:
    d, found = Data(n), forms()
    h, w, t = d.hidden.detach(), d.weight.detach(), d.teacher_hidden
    z, dh, dw = torch.empty(n, V, device=DEVICE), torch.empty_like(h), torch.empty_like(w)

    def products() -> None:
        torch.mm(t, d.teacher_weight.T, out=z)
        torch.mm(h, w.T, out=z)
        torch.mm(z, w, out=dh)
        torch.mm(z.T, h, out=dw)

    best, gaps, want = dict[str, float](), dict[str, float](), list[torch.Tensor]()
    for _ in range(repeats):
        best["products"] = min(best.get("products", float("inf")), seconds(products)[0])
        for k in sorted(found, key=FORMS.index):
            taken, got = seconds(lambda k=k: gradients(d, found[k]))
            best[k] = min(best.get(k, float("inf")), taken)
            want = want or list(got)  # the plain form's
            gaps[k] = max(float((x - y).norm() / y.norm()) for x, y in zip(got, want, strict=True))
    return {"seconds": best, "differ": {k: gap for k, gap in gaps.items() if k != "plain"}}


def memory(n: int, form: Form) -> float:
    """MiB that one forward and backward add at most."""
    gradients(Data(4, 64), form)  # libraries are loaded
    d = Data(n)
    return added_on(DEVICE, lambda: gradients(d, form))


def measure(n: int) -> Row:
    def worker(*what: str) -> Row:
        return process(__file__, "--case", str(n), *what, threads=1 if DEVICE.type == "cpu" else None)

    row = worker()
    return {"N": n, **row, "added_mib": {k: worker("--memory", k)["mib"] for k in row["seconds"] if k in FORMS}}


def write(rows: list[Row]) -> None:
    gradient = V * H * 4 / 2**20

    def per(key: str, name: str, form: str) -> Callable[[Row], str]:
        return lambda r: format(r[key][name], form) if name in r[key] else ""

    def ratio(key: str, over: str, less: float = 0.0) -> Callable[[Row], str]:
        def show(r: Row) -> str:
            return f"{(r[key]['rlkit'] - less) / (r[key][over] - less):.2f}" if over in r[key] else ""

        return show

    columns = [
        ("N", lambda r: f"{r['N']:,}"),
        *(
            (f"{k} / products", lambda r, k=k: f"{r['seconds'][k] / r['seconds']['products']:.2f}")
            for k in FORMS
            if k in rows[0]["seconds"]
        ),
        *((f"time, rlkit / {k}", ratio("seconds", k)) for k in ("trl", "liger")),
        *((f"{k} adds, MiB", per("added_mib", k, ",.0f")) for k in FORMS),
        *((f"memory, rlkit / {k}", ratio("added_mib", k)) for k in ("trl", "liger")),
        *(
            (f"without the gradient of the weight, rlkit / {k}", ratio("added_mib", k, gradient))
            for k in ("trl", "liger")
        ),
        ("largest difference", lambda r: f"{max(r['differ'].values()):.0e}"),
    ]
    grown = [
        f"{k} {growth([r['N'] for r in rows], [r['seconds'][k] for r in rows]):.2f}"
        for k in FORMS
        if len(rows) > 1 and all(k in r["seconds"] for r in rows)
    ]
    page(
        NAME,
        "A divergence over the whole vocabulary, with a teacher",
        [
            f"V = {V:,}, H = {H}, float32. Forward and backward; `products` are the four matrix products alone, taken in the same process. Memory includes the gradients that are",
            f"returned, of which that of the weight is {gradient:.0f} MiB. The last column is the largest relative difference of a value or a gradient from the plain form's.",
            "",
            *table(rows, columns),
            "",
            f"Exponents of time over tokens: {', '.join(grown)}." if grown else "",
        ],
        rows,
    )


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--fresh", action="store_true")
    p.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    p.add_argument("--repeats", type=int, default=2, help=argparse.SUPPRESS)
    p.add_argument("--case", type=int, help=argparse.SUPPRESS)
    p.add_argument("--memory", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.case is not None:
        print(json.dumps({"mib": memory(a.case, forms()[a.memory])} if a.memory else times(a.case, a.repeats)))
        return
    if a.fresh:
        (RESULTS / f"{NAME}.jsonl").unlink(missing_ok=True)
    for n in a.tokens:
        if not any(r["N"] == n for r in read(NAME)):
            append(NAME, measure(n))
    write(sorted(read(NAME), key=lambda r: r["N"]))


if __name__ == "__main__":
    main()
