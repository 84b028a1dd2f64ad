"""Measures every family of models by every property, and writes docs/models.md::

    python -m tests.model.table                   # everything: an hour on two CPU cores
    python -m tests.model.table "Gemma 2" Llama   # some families anew; the others as they were measured
    python -m tests.model.table --write           # only the page, from what was measured
    python -m tests.model.table --real FOLDER     # also one row of a real model

A number is the largest difference of a log-prob in nats (in bfloat16 the mean one) on responses that the model itself sampled. What is
refused stands there with the sentence that a user gets.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rlkit.model.load import load_tokenizer
from rlkit.types import TOLERANCE, Batch, Prompt, Rollout, Sampling
from tests.model.families import FAMILIES, Family, make

ROOT = Path(__file__).resolve().parents[2]
PAGE, RESULTS = ROOT / "docs" / "models.md", Path(__file__).with_name("results.json")
BOUND = {"float32": 1e-4, "bfloat16": 0.05}
STEPS = 3  # publishes, with a training step before the second and third

COLUMNS = {  # name: what is compared
    "own": "log-probs of the learner with those of the model's own code in transformers, at the start",
    "packed": "log-probs of packed and padded micro-batches; or why they are padded",
    "reference": "after training, the reference with the start model in transformers",
    "hf": "full fine-tuning, Hugging Face engine: engine and learner after each of three publishes",
    "vllm": "the same with vLLM",
    "export": "the trained model with what was exported, loaded again by transformers",
    "LoRA hf": "the same three, with an adapter on all linear layers: Hugging Face engine",
    "LoRA vllm": "vLLM",
    "LoRA reference": "the reference after training with the start model",
    "LoRA export": "the merged model, loaded again",
    "bfloat16 hf": "engine and learner after three publishes in bfloat16 (DeepSpeed, ZeRO-1)",
    "bfloat16 vllm": "the same with vLLM (and torch's AdamW)",
}
REAL = "SmolLM2-135M-Instruct, real"
Result = float | str


TEXTS = (
    "The three largest cities of France are",
    "Water boils at a lower temperature on a mountain, because",
)  # for a real model


def prompts_of(path: Path) -> list[Prompt]:
    """Two prompts: texts where a model's tokenizer knows words, else digits."""
    tokenizer = load_tokenizer(path)
    if len(tokenizer) > 1000:
        return [Prompt(str(k), tuple(tokenizer(text)["input_ids"]), text) for k, text in enumerate(TEXTS)]
    return [Prompt(str(k), tuple((j * 7 + k) % 10 + 3 for j in range(11 + k)), "") for k in (0, 1)]


def rollouts_of(engine: Any, prompts: Sequence[Prompt], version: int) -> list[Rollout]:
    found = [r for p in prompts for r in engine.generate(p, 4, Sampling(max_tokens=16, seed=version))]
    for r in found:
        r.reward = 0.0
    return found


def in_transformers(lm: Any, rollouts: list[Any]) -> list[list[float]]:
    """Log-probs of each response by a model's own forward pass, row by row."""
    out = []
    for r in rollouts:
        ids = torch.tensor([*r.prompt.token_ids, *r.tokens])
        first = len(r.prompt.token_ids)
        with torch.no_grad():
            log_p = lm(input_ids=ids[None], use_cache=False).logits[0, first - 1 : -1].float().log_softmax(-1)
        out.append(log_p.gather(-1, ids[first:, None])[:, 0].tolist())
    return out


def gap(one: Any, two: Any, mean: bool = False) -> float:
    found = [abs(a - b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(found) / len(found) if mean else max(found)


class Training:
    """One learner with one engine, three publishes, and two steps that move every trained tensor."""

    def __init__(self, path: Path, engine: str, peft: dict[str, Any] | None, dtype: str = "float32") -> None:
        from rlkit.cluster.groups import EngineGroup, LearnerGroup, LocalWorkers
        from rlkit.cluster.sync import WeightSync, probe_parity
        from rlkit.learner.learner import Learner
        from rlkit.run import load

        run: dict[str, Any] = {
            "model": {"path": str(path), "dtype": dtype},
            "data": {"task": {"type": "Sorting"}},
            "objective": [{"type": "NLL"}],
            "rollout": {"engine": engine},
            "learner": {"lr": 2e-3},
            "peft": peft,
        }
        # vLLM and DeepSpeed get on once in a process, and here they would again and again.
        if dtype == "bfloat16" and engine == "hf":
            run["deepspeed"] = {"zero_optimization": {"stage": 1}}
        self.run = load(run)
        self.learner = Learner(self.run.learner_setup(str(path), frozenset({"ref"})))
        self.group = LearnerGroup(LocalWorkers(self.learner), self.learner.setup)
        self.engine = self.run.rollout.kind.start(self.run.engine_setup(str(path), 64))
        self.gaps = list[float]()
        try:
            engines, prompts = EngineGroup(LocalWorkers(self.engine)), prompts_of(path)
            sync = WeightSync(self.group, engines, "wait")
            for version in range(STEPS):
                if version:
                    self.group.update(Batch.from_rollouts(self.rollouts), (1.0,), seed=version)
                sync.publish(version)
                probe_parity(self.group, engines, prompts, Sampling(max_tokens=16, seed=0), TOLERANCE[dtype], version)
                self.rollouts = rollouts_of(self.engine, prompts, version)
                known = self.group.logprobs(self.rollouts)
                if not version:
                    self.start = known
                    self.first = self.rollouts
                self.gaps.append(gap([r.logp for r in self.rollouts], known, mean=dtype == "bfloat16"))
            assert gap(self.group.logprobs(self.first), self.start) > 0.02, "training did not move the model"
        finally:
            self.engine.close()


def measure(
    path: Path, engines: Sequence[str], lora: Mapping[str, Any], known: dict[str, Result]
) -> Iterator[dict[str, Result]]:
    """The parts of one row of the table that are not ``known``."""
    from transformers import AutoModelForCausalLM

    def plain(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    def full(kind: str) -> Iterator[tuple[str, Result]]:
        t = Training(path, kind, None)
        if kind == "hf":
            yield "own", gap(t.start, in_transformers(plain(path), t.first))
            yield "packed", packed(path, t)
            yield "reference", gap(t.group.logprobs(t.first, "ref"), in_transformers(plain(path), t.first))
        yield kind, max(t.gaps)
        if kind == "hf":
            yield "export", exported(t, "full")

    def adapted(kind: str) -> Iterator[tuple[str, Result]]:
        t = Training(path, kind, {"r": 4, "lora_alpha": 32, **lora})
        if kind == "hf":
            yield "LoRA reference", gap(t.group.logprobs(t.first, "ref"), in_transformers(plain(path), t.first))
        yield f"LoRA {kind}", max(t.gaps)
        if kind == "hf":
            yield "LoRA export", exported(t, "lora")

    def exported(t: Training, name: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            t.learner.export(folder)
            return gap(t.group.logprobs(t.rollouts), in_transformers(plain(Path(folder)), t.rollouts))

    def low(kind: str) -> Iterator[tuple[str, Result]]:
        yield f"bfloat16 {kind}", max(Training(path, kind, None, "bfloat16").gaps)

    jobs: list[tuple[str, Callable[[str], Iterator[tuple[str, Result]]], list[str]]] = [
        ("", full, ["own", "packed", "reference", "export"]),
        ("LoRA ", adapted, ["LoRA reference", "LoRA export"]),
        ("bfloat16 ", low, []),
    ]
    for prefix, job, more in jobs:
        for kind in engines:
            wanted = [f"{prefix}{kind}", *(more if kind == "hf" else [])]
            if set(wanted) <= known.keys():
                continue
            found = dict.fromkeys(wanted, "")
            try:
                found |= dict(job(kind))
            except Exception as error:
                sentence = " ".join(str(error).split()) or type(error).__name__
                found = {name: x or f"{type(error).__name__}: {sentence}" for name, x in found.items()}
            yield found


def packed(path: Path, t: Training) -> Result:
    """How far packed rows are from padded ones, or why there are none."""
    from rlkit.cluster.groups import LearnerGroup, LocalWorkers
    from rlkit.learner.learner import Learner

    layout = t.learner.layout
    if layout != "packed":
        return layout
    alone = Learner(
        t.run.replace(learner=dataclasses.replace(t.run.learner, packed=False)).learner_setup(str(path), frozenset())
    )
    return gap(LearnerGroup(LocalWorkers(alone), alone.setup).logprobs(t.first), t.start)


def rows() -> list[tuple[Family, bool]]:
    """Every family as it is published; those that the test measures, too, also with the other kind of output layer."""
    return [(f, tie) for f in FAMILIES for tie in ((f.tie, not f.tie) if f.tested else (f.tie,))]


def label(family: Family, tie: bool) -> str:
    return f"{family.name}, {'tied' if tie else 'untied'}"


@contextmanager
def quiet() -> Iterator[None]:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from rlkit.session import quiet_libraries

    quiet_libraries()
    yield


def cell(x: Result, column: str, notes: list[str], bounds: Mapping[str, float] = BOUND) -> str:
    if isinstance(x, float):
        bound = bounds["bfloat16" if column.startswith("bfloat16") else "float32"]
        return f"{x:.1g}" if x <= bound else f"**{x:.1g}**"
    if not x:
        return ""
    if x not in notes:
        notes.append(x)
    return f"[{notes.index(x) + 1}]"


def read(path: Path) -> dict[str, dict[str, Result]]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def keep(name: str, found: dict[str, Result]) -> None:
    """Adds to the file of results at once: what was measured stays when a later row ends the program."""
    print(name, found, flush=True)
    results = read(RESULTS)
    results[name] = results.get(name, {}) | found
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def write(results: dict[str, dict[str, Result]]) -> None:
    """docs/models.md from what was measured."""
    notes: list[str] = []
    lines = [
        "# Models",
        "",
        "Made by `python -m tests.model.table`: tiny models of the real architectures, from their configuration classes in transformers, with",
        "windows, caps and scales set to where they matter. Each is trained for two steps between three publishes. A number is the largest",
        "difference of two log-probs of a token, in nats, over 8 responses that the model sampled itself (in bfloat16 the mean difference); below",
        "1e-4 (0.05; 1e-3 in the row of the real model, which has 30 layers) it is rounding, above it stands in bold. A number in brackets is",
        "a note under the table: the sentence that a user gets. Head sizes, experts and layers are small; what depends on size alone (memory, speed,",
        "parallel layouts) is not measured here. An empty cell was not measured: LoRA and bfloat16 with vLLM are, for the output layer (tied",
        "or not) with which a family is published. Of the families from Qwen3.5 on only that layer and the Hugging Face engine in float32 were",
        "measured. The real model in bfloat16 is trained with this table's learning rate of 2e-3, too, which is far above any that suits it.",
        "",
        "| column | what is compared |",
        "|---|---|",
        *(f"| {name} | {text} |" for name, text in COLUMNS.items()),
        "",
        f"| model | {' | '.join(COLUMNS)} |",
        f"|---|{'---|' * len(COLUMNS)}",
    ]
    for name, found in results.items():
        bounds = TOLERANCE if name == REAL else BOUND
        lines.append(
            f"| {name} | {' | '.join(cell(found[c], c, notes, bounds) if c in found else '' for c in COLUMNS)} |"
        )
    lines += ["", *(f"{i}. {text}" for i, text in enumerate(notes, 1)), ""]
    page = PAGE.read_text() if PAGE.exists() else "<!-- table -->\n"
    _, mark, tail = page.partition("<!-- end of table -->")
    PAGE.write_text("\n".join(lines) + "\n<!-- end of table -->" + (tail if mark else "\n"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--real", metavar="FOLDER")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--missing", action="store_true", help="only what was not measured yet")
    parser.add_argument("--engines", default="hf,vllm")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    try:
        with quiet():
            for family, tie in rows():
                name = label(family, tie)
                if args.write or args.real or (args.families and family.name not in args.families):
                    continue
                row = read(RESULTS).get(name, {}) if args.missing else {}
                # Which output layer a model has matters to the engine once; the other kind is not adapted and rounded too.
                row |= dict.fromkeys(() if tie == family.tie else ("LoRA vllm", "bfloat16 vllm"), "")
                path = make(family, work / "model", tie)
                keep(name, row)
                for found in measure(path, args.engines.split(","), family.lora, row):
                    keep(name, found)
                shutil.rmtree(path)
            if args.real:
                row = read(RESULTS).get(REAL, {}) if args.missing else {}
                for found in measure(Path(args.real), args.engines.split(","), {"target_modules": "all-linear"}, row):
                    keep(REAL, found)
    finally:
        shutil.rmtree(work)
    results, order = read(RESULTS), [label(f, tie) for f, tie in rows()]
    write({name: results[name] for name in [*order, *(n for n in results if n not in order)] if name in results})


if __name__ == "__main__":
    sys.exit(main())
