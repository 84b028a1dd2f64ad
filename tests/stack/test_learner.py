"""The learner: however a batch is cut, the step is the same; adapters leave the reference alone; sharding changes nothing."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlkit.cluster.groups import LearnerGroup, LocalWorkers
from rlkit.learner.learner import Learner
from rlkit.learner.setup import LearnerSetup
from rlkit.model.load import load_lm
from rlkit.model.policy import PolicyModel, evaluate_new
from rlkit.objective import loss, normalise
from rlkit.objective.diagnostics import gradient_shares
from rlkit.objective.divergences import KL
from rlkit.objective.losses import Entropy, PPOClip
from rlkit.run import load as make_run
from rlkit.types import Batch, Prompt, Rollout, Sampling

NEEDS = frozenset({"adv", "old", "ref", "behav", "value", "returns"})


def batch(seed: int) -> Batch:
    r = random.Random(seed)
    rollouts = []
    for g in range(4):
        prompt = Prompt(str(g), tuple(r.randint(3, 13) for _ in range(r.randint(2, 9))), "")
        for _ in range(3):
            T = r.randint(1, 12)
            rollouts.append(
                Rollout(
                    prompt,
                    [r.randint(3, 13) for _ in range(T)],
                    [True] * T,
                    [-2.5] * T,
                    [0] * T,
                    "stop",
                    group=g,
                    reward=0.0,
                )
            )
    b = Batch.from_rollouts(rollouts)
    b = b.replace(adv=torch.randn(b.S, generator=torch.Generator().manual_seed(seed))[b.seq])
    return b


def train(setup: LearnerSetup, workers: Any, steps: int = 3) -> dict[str, np.ndarray]:
    group = LearnerGroup(workers, setup)
    for k in range(steps):
        b = batch(k)
        b = group.annotate(b, ("ref", "old", "value"))
        b = b.replace(returns=b.adv * 0.5)
        stats = group.update(b, (1.0, 0.1, 0.5)[: len(setup.objective)], seed=k, breakdown=k == 1)
        group.after_step(k + 1, stats)
        if k == 0:
            workers.call("reset_optimizer")
        if k == 1:
            assert 0 < gradient_shares(stats, [t.name for t in setup.objective])["gradient/share/PPOClip"] < 1
    out: dict[str, np.ndarray] = {}
    for names, _ in group.buckets():
        out |= (
            workers.handles("gather", names)[0]
            if isinstance(workers, LocalWorkers)
            else workers.call("gather", names)[0]
        )
    b = group.annotate(b, ("value",))
    return {**out, "values": b.value.numpy()}


def test_the_token_log_probs_are_those_of_the_plain_model(tiny: Path) -> None:
    b = batch(0)
    lm = load_lm(tiny)
    with torch.no_grad():
        got = evaluate_new(PolicyModel(lm), b, Sampling(temperature=0.7), frozenset()).logp
        want, at = [], 0
        for s, n in enumerate(b.length.tolist()):
            ids = b.ids[at : at + n]
            logp = (load_lm(tiny)(input_ids=ids[None]).logits[0] / 0.7).log_softmax(-1)
            k = int((b.seq == s).sum())
            want += [logp[n - k - 1 + i, ids[n - k + i]] for i in range(k)]
            at += n
    torch.testing.assert_close(got, torch.stack(want), rtol=1e-4, atol=1e-5)


def test_gradients_do_not_depend_on_how_the_batch_is_cut(tiny: Path) -> None:
    """Against one pass over the whole batch by plain autograd through the full logits."""
    objective = (PPOClip(reduce="seq"), KL(estimator="k2", reduce="token"), Entropy(coef=0.1))
    b = batch(1)
    b.logp["ref"] = torch.full((b.N,), -2.4)
    b.logp["old"] = torch.full((b.N,), -2.5)
    b = b.replace(norm=normalise(objective, b))

    def gradient(rows: list[torch.Tensor]) -> torch.Tensor:
        model = PolicyModel(load_lm(tiny))
        for keep in rows:
            part = b.rows(keep)
            value, _ = loss(
                objective, evaluate_new(model, part, Sampling(), frozenset({"entropy"})), part, (1.0, 0.1, 0.1)
            )
            value.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole = gradient([torch.ones(b.S, dtype=torch.bool)])
    single = gradient([torch.arange(b.S) == s for s in range(b.S)])
    assert whole.norm() > 1e-3
    torch.testing.assert_close(single, whole, rtol=1e-3, atol=1e-6)


def test_lora_reference_is_the_base_and_the_export_is_the_merge(
    small: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    run = make_run(
        {**small, "peft": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}, "learner": {"lr": 1e-2}}
    )
    learner = Learner(run.learner_setup(str(tiny), NEEDS))
    train(learner.setup, LocalWorkers(learner))
    b = batch(7)
    now = learner.annotate([b], ("old", "ref"))
    with torch.no_grad():
        base = evaluate_new(PolicyModel(load_lm(tiny)), b, Sampling(), frozenset()).logp
    torch.testing.assert_close(now["ref"], base, rtol=1e-5, atol=1e-5)
    assert (now["old"] - base).abs().max() > 1e-3
    learner.export(str(tmp_path / "merged"))
    with torch.no_grad():
        merged = evaluate_new(PolicyModel(load_lm(tmp_path / "merged")), b, Sampling(), frozenset()).logp
    torch.testing.assert_close(merged, now["old"], rtol=1e-4, atol=1e-5)
    from peft import PeftModel

    with torch.no_grad():
        adapter = PeftModel.from_pretrained(load_lm(tiny), str(tmp_path / "merged" / "adapter"))
        logits = adapter(input_ids=b.ids[None, :5]).logits
        torch.testing.assert_close(
            logits, load_lm(tmp_path / "merged")(input_ids=b.ids[None, :5]).logits, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_sharded_ranks_on_ray_train_as_one_process_does(
    small: dict[str, Any], tiny: Path, stage: int, ray_session: None
) -> None:
    from rlkit.cluster import ray as on_ray

    """With a critic of its own, a schedule that starts again with a new optimizer, and a policy that goes back to its average."""
    small |= {"critic": {"lr": 2e-3}, "reference": {"type": "ElasticReset", "every": 2, "decay": 0.5}}
    small["objective"].append({"type": "ValueMSE", "coef": 0.5})
    small["learner"] = {**small["learner"], "warmup_steps": 3}
    local = make_run(small)
    alone = Learner(local.learner_setup(str(tiny), NEEDS))
    want = train(alone.setup, LocalWorkers(alone))
    assert np.abs(want["values"]).max() > 1e-3
    run = make_run(
        {
            **small,
            "deepspeed": {"zero_optimization": {"stage": stage}},
            "cluster": {"engines": 1, "learners": 2, "cpus": 0.3},
        }
    )
    run = dataclasses.replace(run, cluster=dataclasses.replace(run.cluster, timeout=200.0))
    setup = run.learner_setup(str(tiny), NEEDS)
    learners, engines = on_ray.start(setup, run.rollout.kind, run.engine_setup(str(tiny), 64), run.cluster)
    try:
        got = train(setup, learners)
    finally:
        learners.close()
        engines.close()
    assert got.keys() == want.keys()
    assert max(float(np.abs(got[k] - want[k]).max()) for k in want) < 2e-5
