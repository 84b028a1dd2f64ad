"""A whole-vocabulary divergence: rlkit's chunked form against plain autograd on full logits, each in a process of its own.

    python benchmarks/full_vocab.py                     # V = 151936, N = 4096, H = 256: needs about 20 GB for the plain form
    python benchmarks/full_vocab.py --tokens 512        # a smaller one

Prints the ratios of time and of peak extra memory, and the largest relative difference of the gradients.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from rlkit.objective.divergences import TABLE
from rlkit.objective.full_vocab import Head, full_divergence


class Peak:
    """Peak memory above the start, in bytes: of the GPU, or of this process."""

    def __enter__(self) -> Peak:
        import psutil

        self.cuda, self.process, self.done = torch.cuda.is_available(), psutil.Process(), False
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        else:
            self.start = self.top = self.process.memory_info().rss
            self.thread = threading.Thread(target=self._watch)
            self.thread.start()
        self.clock = time.perf_counter()
        return self

    def _watch(self) -> None:
        while not self.done:
            self.top = max(self.top, self.process.memory_info().rss)
            time.sleep(0.002)

    def __exit__(self, *error: object) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.clock
        self.done = True
        if self.cuda:
            self.bytes = torch.cuda.max_memory_allocated() - self.start
        else:
            self.thread.join()
            self.bytes = self.top - self.start


def measure(form: str, a: argparse.Namespace) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    g = torch.Generator().manual_seed(0)

    def r(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=g) * 0.2).to(device)

    policy = Head(r(a.tokens, a.hidden).requires_grad_(), r(a.vocabulary, a.hidden).requires_grad_())
    anchor = Head(
        policy.hidden.detach() + r(a.tokens, a.hidden) * 0.3, policy.weight.detach() + r(a.vocabulary, a.hidden) * 0.3
    )
    f, seconds, peaks = TABLE[a.f], [], []
    for _ in range(a.repeat + 1):
        policy.hidden.grad = policy.weight.grad = None
        with Peak() as peak:
            if form == "chunked":
                d = full_divergence(policy, anchor, f, expected=torch.ones(a.tokens, device=device))
            else:
                log_p = (policy.hidden @ policy.weight.T).log_softmax(-1)
                with torch.no_grad():
                    log_q = (anchor.hidden @ anchor.weight.T).log_softmax(-1)
                d = (log_p.exp() * f.value(log_p - log_q)).sum(-1)
            d.mean().backward()
        seconds.append(peak.seconds)
        peaks.append(peak.bytes)
    torch.save(
        {"value": d.detach().cpu(), "hidden": policy.hidden.grad.cpu(), "weight": policy.weight.grad.cpu()}, a.out
    )
    print(
        json.dumps(
            {"seconds": sorted(seconds[1:])[len(seconds[1:]) // 2] if a.repeat else seconds[0], "bytes": max(peaks)}
        )
    )


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--vocabulary", type=int, default=151_936)
    p.add_argument("--tokens", type=int, default=4096)
    p.add_argument("--hidden", type=int, default=256)
    p.add_argument("--f", default="reverse_kl")
    p.add_argument("--repeat", type=int, default=2)
    p.add_argument("--form")
    p.add_argument("--out")
    a = p.parse_args()
    if a.form:
        measure(a.form, a)
        return
    with tempfile.TemporaryDirectory() as folder:
        found, saved = {}, {}
        for form in ("plain", "chunked"):
            out = Path(folder) / f"{form}.pt"
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--form", form, "--out", str(out)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                sys.exit(f"{form}: exit code {done.returncode} (out of memory?)\n{done.stderr[-2000:]}")
            found[form], saved[form] = json.loads(done.stdout), torch.load(out)
            print(
                f"{form:<8} {found[form]['seconds']:7.2f} s   peak extra memory {found[form]['bytes'] / 2**20:8.0f} MiB"
            )
    ratio = {k: found["chunked"][k] / found["plain"][k] for k in ("seconds", "bytes")}
    gap = {
        k: float((saved["chunked"][k] - saved["plain"][k]).norm() / saved["plain"][k].norm()) for k in saved["plain"]
    }
    print(
        f"{a.f}, V = {a.vocabulary}, N = {a.tokens}, H = {a.hidden}: time x {ratio['seconds']:.2f}, memory x {ratio['bytes']:.3f} "
        f"(1/{1 / ratio['bytes']:.0f}); relative difference of value {gap['value']:.1e}, of gradients {max(gap['hidden'], gap['weight']):.1e}"
    )


if __name__ == "__main__":
    main()
