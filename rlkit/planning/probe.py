"""One worst-case learner step on this machine, with dummy data: what really is used, before data, rewards or engines are touched."""

from __future__ import annotations

import random
import tempfile
import time
from typing import Any

import torch

from rlkit.learner.learner import Learner
from rlkit.learner.plan import annotated
from rlkit.model.hub import model_config
from rlkit.objective import normalise
from rlkit.objective.full_vocab import told_apart
from rlkit.precompute import nothing
from rlkit.rollout.pool import Pool
from rlkit.run import Run
from rlkit.start import made
from rlkit.types import Batch, Prompt, Rollout, Source


def probe(run: Run) -> str:
    """Builds one rank of the learner with its references, gives it one full micro-batch of the longest rows, and steps.

    ZeRO shards over one rank here, so states are not divided. Peak memory is that of the device, or of this process on a CPU.

    Raises:
        ModelError: a model that cannot be loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        if run.model.path is None:
            made(run, folder)
        path = run.model.path if run.model.path is not None else folder
        learner = Learner(run.learner_setup(path))
    device, batch, passes = learner.device, _longest_rows(run, learner), {*run.passes, "old"} - {"value"}
    for _, name, spec in run.anchors:
        if isinstance(spec, Pool):  # engines would give these
            batch = _of_pool(run, name, spec, batch)
            passes -= {name, f"{name}_full"} if spec.asked else {f"{name}_full"}
    times: dict[str, float] = {}
    for _ in range(2):  # the second one is without the start's one-time work
        start = time.perf_counter()
        found = learner.annotate([batch], sorted(passes))
        batch = annotated(batch, found)
        times["annotate"], start = time.perf_counter() - start, time.perf_counter()
        micro = batch.replace(norm=normalise(run.objective, batch))
        measured = learner.step([micro], [1.0] * len(run.objective)).as_dict()
        times["update"] = time.perf_counter() - start
    assert batch.length is not None
    longest = int(batch.length.max())
    peak = max(mib for name, mib in measured.items() if name.startswith("memory/")) / 2**10
    what = f"peak on {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "peak of this process"
    return (
        f"Probe, one rank on {device}: {batch.S} rows of {longest} tokens; {what} {peak:.2f} GiB; annotate "
        f"{times['annotate']:.2f} s, update {times['update']:.2f} s."
    )


def _of_pool(run: Run, name: str, spec: Pool, b: Batch) -> Batch:
    """The batch with something in the place of what a teacher in engines of its own would say of it."""
    if spec.whole:
        width = model_config(spec.path, f"the path of {name}").get_text_config().hidden_size
        return b.replace(whole={**b.whole, name: {"hidden": torch.zeros(b.N, width)}})
    top = nothing(b.N, told_apart(run.objective, name))
    return b.with_logp(**{name: torch.zeros(b.N)}).replace(
        whole={**b.whole, name: {"ids": top.ids, "logp": top.logp}} if top.k else b.whole
    )


def _longest_rows(run: Run, learner: Learner) -> Batch:
    """As many rows of the greatest length as a micro-batch holds, of random tokens, with all that a term may read."""
    config, response = learner.policy.base.config, run.sampling.max_tokens
    longest = min(
        run.rollout.max_model_len or 1 << 30,
        run.data.max_prompt_tokens + response,
        getattr(config, "max_position_embeddings", 1 << 30),
    )
    rng = random.Random(0)
    prompt = tuple(rng.randrange(config.vocab_size) for _ in range(max(1, longest - response)))
    n = longest - len(prompt)

    given: list[Source] = [source for spec in run.data.offline for source in spec.sources]
    sources: list[Source] = ["policy"] if run.online else given

    def row(i: int) -> Rollout:
        drawn, (group, half) = [rng.randrange(config.vocab_size) for _ in range(n)], divmod(i, len(sources))
        more: dict[str, Any] = {"source": sources[half], "reward": i % 2, "group": group if len(sources) > 1 else 0}
        return Rollout(Prompt(str(i), prompt, ""), drawn, [True] * n, [-1.0] * n, [0] * n, "length", **more)

    wanted = run.rollout.prompts * run.rollout.n if run.online else run.data.per_step * len(sources)
    rows = max(len(sources), min(learner.max_tokens // longest, wanted))
    batch = Batch.from_rollouts([row(i) for i in range(rows)])
    return batch.replace(
        adv=torch.ones(batch.N),
        returns=torch.zeros(batch.N),
        value=torch.zeros(batch.N),
        cols={name: torch.zeros(batch.S) for name in (*run.columns, *(f"part:{p}" for p in run.parts), "mismatched")},
        marks={t.name: torch.zeros(batch.N) for t in run.objective},
    )
