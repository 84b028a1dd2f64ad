"""Writes docs/regularizers.md and its plots from what exact enumeration finds.   python scripts/regularizers.py

A test compares the page with what this program would write now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlkit.objective.divergences import KL, TABLE, Divergence, Mixture, generator, label
from rlkit.objective.full_vocab import FullDivergence
from rlkit.objective.labelled import KLDO, KTO
from rlkit.objective.oracle import Finding, Sampled, World, examine, term_gradient
from rlkit.objective.penalties import DivergenceReward, KLReward
from rlkit.objective.preference import DPO, IPO, ORPO, SPPO, TDPO, WPO, SimPO
from rlkit.record.plots import picture

DOCS = Path(__file__).resolve().parents[1] / "docs"
ALL = [(name, None) for name in TABLE] + [
    ("alpha", 0.5),
    ("tsallis", 1.5),
    ("generalised_js", 0.3),
    ("skew_forward", 0.1),
    ("skew_reverse", 0.1),
]

ESTIMATORS: list[tuple[str, str, Any]] = [
    ("loss", "`KL k2`", KL(estimator="k2")),
    ("loss", "`KL k2`, importance: token", KL(estimator="k2", importance="token")),
    ("loss", "`KL k3` (GRPO as published)", KL(estimator="k3")),
    ("loss", "`KL k3`, importance: token", KL(estimator="k3", importance="token")),
    ("loss", "`KL k3+` (value of k3, gradient of k2)", KL(estimator="k3+")),
    ("loss", "`KL k1`, importance: token", KL(estimator="k1", importance="token")),
    ("loss", "`Divergence reverse_ukl`", Divergence(f="reverse_ukl")),
    ("loss", "`Divergence forward_ukl`", Divergence(f="forward_ukl")),
    ("loss", "`FullDivergence`", FullDivergence()),
    ("loss", "`FullDivergence`, top_k with a tail bucket", FullDivergence(top_k=1)),
    ("loss", "`FullDivergence`, level: sequence", FullDivergence(level="sequence", reduce="sum")),
    ("reward", "`KLReward`", KLReward()),
    ("advantage", "`KLReward`, credit: token", KLReward(placement="advantage", credit="token")),
    ("advantage", "`KLReward`, credit: sequence", KLReward(placement="advantage")),
    ("advantage", "`DivergenceReward js`", DivergenceReward(f="js")),
    ("loss", "`KL k2` to the arithmetic mean of two", KL(estimator="k2", anchor=Mixture(of=("ref", "teacher")))),
    (
        "loss",
        "`KL k2` to the geometric mean of two",
        KL(estimator="k2", anchor=Mixture(of=("ref", "teacher"), mean="geometric")),
    ),
]


def cell(f: Finding) -> str:
    if f.follows is not None:
        return f.follows
    return f"none (cosine {f.cosine:.3f} to {f.claims})"


def estimators() -> Iterator[str]:
    yield "| placement | what you write | on-policy: its expected gradient is that of | off-policy | noise |"
    yield "|---|---|---|---|---|"
    for placement, what, part in ESTIMATORS:
        on, off = (examine(part, sampled) for sampled in ("on-policy", "off-policy"))
        yield f"| {placement} | {what} | {cell(on)} | {'the same' if off.follows == on.follows and on.follows else cell(off)} | {on.noise:.1f} |"


def divergences() -> Iterator[str]:
    yield "| `f` | sampled, on-policy | off-policy | rows from the anchor | whole vocabulary | noise: sampled | whole |"
    yield "|---|---|---|---|---|---|---|"
    kinds: tuple[Sampled, ...] = ("on-policy", "off-policy", "from the reference")
    for name, parameter in ALL:
        found = [examine(Divergence(f=name, parameter=parameter), s) for s in kinds]
        full = examine(FullDivergence(f=name, parameter=parameter), "on-policy")
        marks = ["exact" if f.follows == f.claims else cell(f) for f in (*found, full)]
        yield f"| {label(name, parameter)} | {' | '.join(marks)} | {found[0].noise:.1f} | {full.noise:.1f} |"


VERDICTS: list[tuple[str, Any]] = [
    ("`DPO`", DPO()),
    ("`DPO`, link: exponential", DPO(link="exponential")),
    ("`DPO`, link: savage", DPO(link="savage")),
    ("`DPO`, link: square", DPO(link="square")),
    ("`DPO`, link: hinge", DPO(link="hinge")),
    ("`DPO`, flip: 0.1 (cDPO)", DPO(flip=0.1)),
    ("`DPO`, flip: 0.1, unbiased: true, on labels flipped so", DPO(flip=0.1, unbiased=True)),
    ("`DPO`, f: forward_kl", DPO(f="forward_kl")),
    ("`DPO`, f: js", DPO(f="js")),
    ("`DPO`, f: alpha, parameter: 0.5", DPO(f="alpha", parameter=0.5)),
    ("`DPO`, entropy: 0.8 (H-DPO)", DPO(entropy=0.8)),
    ("`IPO` (means over tokens)", IPO()),
    ("`IPO`, over: sum", IPO(over="sum")),
    ("`SimPO`, gamma: 0", SimPO(gamma=0)),
    ("`SimPO`", SimPO()),
    ("`ORPO`", ORPO()),
    ("`TDPO`", TDPO()),
    ("`WPO`", WPO()),
    ("`SPPO`, eta: 1", SPPO(eta=1.0)),
    ("`KTO`, beta: 1", KTO(beta=1.0)),
    ("`KLDO`", KLDO()),
]


def verdicts() -> Iterator[str]:
    yield "| what you write | where it leads | coefficient | pull on the policy's own | on another policy's |"
    yield "|---|---|---|---|---|"
    for what, term in VERDICTS:
        f = examine(term, "from the reference")
        assert f.pull is not None
        near = "no policy" if f.nearest is None else f"none; near {f.nearest} ({f.cosine:.4f})"
        strength = f"{f.norm:.3g}" if f.follows else ""
        yield f"| {what} | {f.follows or near} | {strength} | {f.pull[0]:.2f} | {f.pull[1]:.2f} |"


Published = Callable[[Tensor], Tensor]  # f of u = pi / anchor, as it stands in the source
# what, source, its f, the name and parameter here; a parameter with another meaning there is part of its name
CONSTANTS: list[tuple[str, str, Published, str, float | None]] = [
    ("reverse KL", "RPG 2505.17508", lambda u: u * u.log(), "reverse_ukl", None),
    ("k2", "Schulman; OpenRLHF, verl: `0.5 (log u)^2` of samples of pi", lambda u: u * u.log(), "reverse_ukl", None),
    ("forward KL", "DPH-RL 2509.07430: `u - 1 - log u`", lambda u: u - 1 - u.log(), "forward_ukl", None),
    ("JS", "DPH-RL 2509.07430, `js_low_var`", lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(), "js", None),
    (
        "JS",
        "f-DPG 2302.08215 (disco), f-DPO 2309.16240",
        lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
        "js",
        None,
    ),
    (
        "JS, beta 0.3",
        "GKD 2306.13649, TRL: beta is the teacher's share",
        lambda u: -0.3 * (0.3 + 0.7 * u).log() + 0.7 * u * (u / (0.3 + 0.7 * u)).log(),
        "generalised_js",
        0.7,
    ),
    ("alpha, a = 0.2", "DPH-RL, f-DPO", lambda u: (u**0.8 - 0.8 * u - 0.2) / (0.2 * -0.8), "alpha", 0.8),
    (
        "alpha, order 0.8",
        "Cressie-Read; TRL's `f_alpha`",
        lambda u: (u**0.8 - 0.8 * u - 0.2) / (0.8 * -0.2),
        "alpha",
        0.8,
    ),
    ("skew forward KL, 0.1", "DistiLLM 2402.03898", lambda u: -(0.1 + 0.9 * u).log(), "skew_forward", 0.1),
    ("skew reverse KL, 0.1", "DistiLLM 2402.03898", lambda u: u * (u / (0.1 * u + 0.9)).log(), "skew_reverse", 0.1),
    ("chi2(pi‖ref)", "`(u - 1)^2`", lambda u: (u - 1) ** 2, "chi2", None),
    ("chi2(pi‖ref)", "as alpha of order 2", lambda u: 0.5 * (u - 1) ** 2, "chi2", None),
    ("chi2(ref‖pi)", "disco's `chi-squared`", lambda u: (u - 1) ** 2 / u, "reverse_chi2", None),
    ("squared Hellinger", "`1 - sum sqrt(p q)`", lambda u: 0.5 * (u.sqrt() - 1) ** 2, "hellinger", None),
    ("squared Hellinger", "as alpha of order 1/2", lambda u: 2 * (u.sqrt() - 1) ** 2, "hellinger", None),
    ("total variation", "disco; `0.5 abs(u - 1)`", lambda u: 0.5 * (u - 1).abs(), "tv", None),
    ("Jeffreys", "sum of both KLs", lambda u: (u - 1) * u.log(), "jeffreys", None),
    ("Jeffreys", "mean of both KLs", lambda u: 0.5 * (u - 1) * u.log(), "jeffreys", None),
    ("Tsallis, q = 1.5", "`(u^q - u) / (q - 1)`", lambda u: (u**1.5 - u) / 0.5, "tsallis", 1.5),
]


def factor(published: Published, f: str, parameter: float | None) -> Tensor:
    """The published slope over ours at a few ratios; of each, what it is at ratio 1 is taken off: constants have no expected gradient."""
    u = torch.tensor([0.05, 0.3, 0.9, 1.2, 3.0, 20.0, 1.0], dtype=torch.float64, requires_grad=True)
    (theirs,) = torch.autograd.grad(published(u).sum(), u)
    ours = generator(f, parameter).slope(u.detach().log())
    return (theirs - theirs[-1])[:-1] / (ours - ours[-1])[:-1]


def constants() -> Iterator[str]:
    yield "| divergence | as published | here | a published coefficient times |"
    yield "|---|---|---|---|"
    for what, source, published, f, parameter in CONSTANTS:
        here = f"`{f}`" if parameter is None else f"`{f}`, `parameter: {parameter:g}`"
        yield f"| {what} | {source} | {here} | {float(factor(published, f, parameter)[0]):.3g} |"


def page() -> str:
    return "\n".join(
        [
            "# Regularizers: what each form optimises",
            "",
            "Written by `scripts/regularizers.py` from exact enumeration (`rlkit check` uses the same code); do not edit.",
            "A policy over three tokens with responses of one to three is small enough to sum over every response, so the expected gradient of a",
            "loss is known exactly, and can be compared with the gradient of every quantity that has a name. *per token*: the divergence of the next",
            "token's distribution, averaged over visited prefixes, prefixes frozen. *of responses*: of the distributions of whole responses. *noise*:",
            "the standard deviation of the gradient of one response over the norm of its mean, in this world; compare within a table only.",
            "Off-policy samples come from another policy that is some updates away.",
            "",
            "## Estimator, placement, anchor",
            "",
            *estimators(),
            "",
            "`KL k1` in a loss without a weight has expected gradient zero, `KLReward` with k2 or k3 that of no KL: both are refused with the reason.",
            "Penalties in reward or advantage are fixed when the samples are taken, so off-policy they are exact for the sampling policy only.",
            "`reduce: seq` weighs a token by 1 / length of its response. The length is decided after the token, which bends the gradient of every",
            "sampled form; `rlkit check` shows by how much. `token`, `sum`, `const` and `prompt` leave its direction alone.",
            "",
            "## Divergences",
            "",
            "`D_f(pi‖anchor) = E_anchor[f(u)]`, `u = pi / anchor`. *exact*: the expected gradient is that of the divergence per token, within 1e-6.",
            "",
            *divergences(),
            "",
            "![f and its slope](regularizers-f.svg)",
            "",
            "Value under samples of the policy, `f(u) / u`, and slope `f'(u)`, the coefficient of the score, against `log u`. Slopes are those at",
            "`log u` of 20 beyond it, and never 0 there.",
            "",
            "![noise of the estimators](regularizers-noise.svg)",
            "",
            "Noise of the gradient of one response as policy and reference move apart.",
            "",
            "## Losses of pairs and labels",
            "",
            "Such a loss is led to where its expected gradient vanishes, with all pairs of responses of the reference, labelled by a Bradley-Terry",
            "reward (single responses: good with chance `sigmoid(r)`). *where it leads*: the objective whose optimum that is, exact within 1e-6, and the",
            "coefficient of its divergence (beta and tau are 0.1 where nothing is said); else the objective whose optimum correlates most with it.",
            "*pull*: where labels say nothing, the cosine of what is left of its gradient to that of KL(pi‖ref) of responses, on pairs of the policy's",
            "own and of another policy's responses. Rows of a file are the latter: no divergence to the reference is followed on the way, and the KL may",
            "grow while the margins on the file do not (`hypo` adds it where the policy samples).",
            "",
            *verdicts(),
            "",
            "## Constants: ours and published",
            "",
            "The same name can mean another multiple, and a parameter the other side. A coefficient that was published for the left, times the last",
            "column, has the same gradient with what stands under *here*. DPH-RL's 0.05 to 0.2 for JS is `coef: 0.1` to `0.4` here; GKD's beta is",
            "the teacher's share of the mixture, `parameter` here the policy's; a of DPH-RL and f-DPO is one minus the order here.",
            "",
            *constants(),
            "",
        ]
    )


def plots() -> None:
    a = torch.linspace(-3, 3, 241, dtype=torch.float64)
    with picture(DOCS / "regularizers-f.svg", ncols=2, figsize=(11, 4.2), layout="tight") as axes:
        for i, (name, parameter) in enumerate(ALL):
            f = generator(name, parameter)
            for axis, y in zip(axes, (f.value(a), f.slope(a)), strict=True):
                axis.plot(a, y, label=label(name, parameter), linewidth=1.3, linestyle="-" if i < 10 else "--")
        for axis, title in zip(axes, ("f(u) / u", "f'(u)"), strict=True):
            axis.set(ylim=(-6, 6), xlabel="log u", title=title)
            axis.grid(alpha=0.3)
        axes[1].legend(fontsize=6.5, ncols=2)

    lines = {
        "k1, importance: token": KL(estimator="k1", importance="token"),
        "k2": KL(estimator="k2"),
        "k3, importance: token": KL(estimator="k3", importance="token"),
        "k3 (follows the forward KL)": KL(estimator="k3"),
        "js": Divergence(f="js"),
        "whole vocabulary": FullDivergence(),
    }
    distance = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6]
    with picture(DOCS / "regularizers-noise.svg", figsize=(6.5, 4.2), layout="tight") as axis:
        for name, term in lines.items():
            noise = [
                sum(term_gradient(World("on-policy", seed, d), term).noise for seed in range(8)) / 8 for d in distance
            ]
            axis.plot(distance, noise, marker="o", markersize=3, label=name)
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="standard deviation of the logits' difference",
            ylabel="noise",
            title="noise of one response",
        )
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=7)


if __name__ == "__main__":
    (DOCS / "regularizers.md").write_text(page())
    plots()
