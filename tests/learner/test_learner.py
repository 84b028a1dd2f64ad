"""Gradients, weights and numbers that are not finite: found before they are trained on, and named; one rule for all backends."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.cluster.groups import LearnerGroup, LocalWorkers
from rlkit.errors import ConfigError, NumericsError
from rlkit.learner.backend import check_deepspeed_options, free_port, rank_environment
from rlkit.learner.learner import Learner
from rlkit.learner.plan import optimizer_steps
from rlkit.learner.warm_up import warm_up
from rlkit.model.load import load_tokenizer
from rlkit.objective import Term, normalise
from rlkit.objective.diagnostics import bad_gradients
from rlkit.objective.losses import Entropy, PPOClip
from rlkit.run import Run, WarmUp
from rlkit.run import load as make_run
from rlkit.types import Batch, New, Prompt, Rollout

pytestmark = pytest.mark.slow

NEEDS = frozenset({"adv", "old", "behav"})
COEFS = (1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Root(Term):
    """A user's cost, finite everywhere; where the advantage is above 5 it is the root of 0, whose gradient is not finite."""

    def __call__(self, new: New, b: Batch) -> Tensor:
        return torch.where(b.adv > 5, new.logp - new.logp.detach(), 1.0).abs().sqrt()


def rows(seed: int, bad: bool) -> Batch:
    g = torch.Generator().manual_seed(seed)
    rollouts = []
    for s in range(4):
        tokens = torch.randint(3, 13, (2 + s,), generator=g).tolist()
        T = len(tokens)
        rollouts.append(
            Rollout(Prompt(f"p{s}", (4, 5), ""), tokens, [True] * T, [-2.5] * T, [0] * T, "stop", group=s, reward=1.0)
        )
    b = Batch.from_rollouts(rollouts)
    adv = torch.randn(b.N, generator=g).clamp(-2, 2)
    if bad:
        adv[3] = 9.0  # the second token of p1, which has 3
    return b.replace(adv=adv)


def run_of(small: dict[str, Any], **more: Any) -> Run:
    run = make_run({**small, "learner": {"lr": 1e-2, "warmup_steps": 4, "max_tokens": 12, "packed": False}, **more})
    return run.replace(objective=(PPOClip(), Root()))


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in learner.full_weights()}


def one_step(learner: Learner, seed: int, bad: bool, rank: int, world: int) -> Any:
    [shards] = optimizer_steps(
        rows(seed, bad), learner.setup.objective, epochs=1, count=1, ranks=world, max_tokens=12, seed=0
    )
    return learner.step(shards[rank], COEFS)


def the_rule(run: Run, tiny: Path, folder: Path, rank: int, world: int) -> list[dict[str, str]]:
    """With a bad step between two good ones, everything is as with the good ones alone; what each rank blames."""
    ends = []
    for plan in ((1, 0, 1), (1, 1)):
        learner = Learner(run.learner_setup(str(tiny), NEEDS), rank, world)
        blamed = []
        for k, good in enumerate(plan):
            before, lr = weights(learner), learner.backend.lr
            stats = one_step(learner, 0 if k == 0 else 2, not good, rank, world)
            if rank == 0:
                assert stats["learner/skipped"] == (not good)
            assert math.isfinite(stats["learner/grad_norm"]) == bool(good)
            moved = any(not torch.equal(before[n], x) for n, x in weights(learner).items())
            assert moved == bool(good)
            if not good:
                assert learner.backend.lr == lr
                blamed.append(learner.blame())
        ends.append((weights(learner), learner.backend.lr, blamed))
    (mended, mended_lr, blamed), (clean, clean_lr, _) = ends
    assert mended_lr == clean_lr and all(torch.equal(mended[n], clean[n]) for n in clean)

    parameter = next(p for p in learner.policy.parameters() if p.requires_grad)
    with learner.backend.whole([parameter]):
        shape = parameter.shape
    learner.backend.assign(parameter, torch.full(shape, math.nan))
    for write in (learner.save, learner.export):
        with pytest.raises(NumericsError, match="weights are not finite"):
            write(str(folder))
    assert not list(folder.iterdir())
    return blamed


def test_a_bad_gradient_takes_no_step(small: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    [blamed] = the_rule(run_of(small), tiny, folder, 0, 1)
    token = int(rows(2, True).ids[rows(2, True).action[3]])
    assert blamed == {"Root": f"token 1 (id {token}) of a response to prompt p1"}


def _rank(rank: int, world: int, port: int, small: dict[str, Any], tiny: Path, folder: Path) -> None:
    os.environ.update(rank_environment(rank, world, "127.0.0.1", port))
    torch.set_num_threads(1)
    for stage, dtype in ((0, "float32"), (1, "float32"), (2, "float32"), (3, "float32"), (1, "bfloat16")):
        model = {**small["model"], "dtype": dtype}
        run = run_of(small, model=model, deepspeed={"zero_optimization": {"stage": stage}})
        [blamed] = the_rule(run, tiny, folder, rank, world)
        (folder.parent / f"blamed_{stage}_{dtype}_{rank}").write_text(", ".join(blamed.values()))


def test_every_stage_of_deepspeed_follows_the_same_rule(small: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    torch.multiprocessing.spawn(_rank, (2, free_port(), small, tiny, folder), nprocs=2)
    said = [p.read_text() for p in sorted(tmp_path.glob("blamed_*"))]
    assert len(said) == 10
    assert all("prompt p1" in "".join(pair) and "" in pair for pair in zip(said[::2], said[1::2], strict=True))


def test_a_few_in_a_row_stop_the_run_and_name_term_and_token(small: dict[str, Any], tiny: Path) -> None:
    run, said = run_of(small), list[str]()
    setup = run.learner_setup(str(tiny), NEEDS)
    group = LearnerGroup(LocalWorkers(Learner(setup)), setup)

    def update(bad: bool) -> float:
        return group.update(rows(0, bad), COEFS, 0, say=said.append)["learner/skipped"]

    # The good one starts the count anew.
    assert [update(bad) for bad in (True, True, False, True, True)] == [1, 1, 0, 1, 1]
    assert len(said) == 4 and all("Root at token 1 (id " in s and "of a response to prompt p1" in s for s in said)
    with pytest.raises(
        NumericsError, match=r"Root at token 1 .*prompt p1.* 3 optimizer steps in a row .*learner.max_skipped: 3"
    ):
        update(True)


def test_gradients_through_entropies_and_values_are_blamed_too() -> None:
    @dataclass(frozen=True, kw_only=True)
    class OfEntropy(Term):
        def __call__(self, new: New, b: Batch) -> Tensor:
            return (new.entropy - new.entropy.detach()).abs().sqrt()

    b, terms = rows(0, False), (PPOClip(), OfEntropy(), Entropy())
    b = b.with_logp(old=b.logp["behav"])
    b = b.replace(norm=normalise(terms, b))
    new = New(b.logp["behav"].clone().requires_grad_(), entropy=torch.ones(b.N, requires_grad=True))
    assert bad_gradients(terms, new, b, (1.0, 1.0, 1.0)) == {"OfEntropy": 0}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_named_before_the_step(small: dict[str, Any], tiny: Path, bad: float) -> None:
    run = run_of(small)
    learner = Learner(run.learner_setup(str(tiny), NEEDS))
    group, before = LearnerGroup(LocalWorkers(learner), learner.setup), weights(learner)
    b = rows(0, False)
    at = torch.arange(b.N) == int((b.seq < 2).sum()) + 1  # the second token of p2

    def with_bad(x: Tensor) -> Tensor:
        return x.masked_fill(at, bad)

    zeros = torch.zeros(b.N)
    cases = {
        r"reward of a response to prompt p2 is": b.replace(reward=b.reward.masked_fill(torch.arange(4) == 2, bad)),
        r"advantage at token 1 \(id \d+\) of a response to prompt p2": b.replace(adv=with_bad(b.adv)),
        r"value target at token 1 .* prompt p2": b.replace(returns=with_bad(zeros)),
        r"value at token 1 .* prompt p2": b.replace(value=with_bad(zeros)),
        r"token reward at token 1 .* prompt p2": b.replace(token_reward=with_bad(zeros)),
        r"correction weight at token 1 .* prompt p2": b.replace(weight=with_bad(zeros)),
    }
    for message, batch in cases.items():
        with pytest.raises(NumericsError, match=message):
            group.update(batch, COEFS, 0)
    assert all(torch.equal(before[n], x) for n, x in weights(learner).items())


def test_annotated_log_probs_that_are_not_numbers_are_named(small: dict[str, Any]) -> None:
    class Annotates:
        """A learner with a reference that gives -inf for one token."""

        def ready(self) -> dict[str, Any]:
            return {"layout": "padded", "max_tokens": 99}

        def annotate(self, micros: list[Batch], which: tuple[str, ...]) -> dict[str, Tensor]:
            first = torch.cat([m.seq == 0 for m in micros])
            return {name: torch.zeros(sum(m.N for m in micros)).masked_fill(first, -math.inf) for name in which}

    run = run_of(small)
    with pytest.raises(NumericsError, match=r"log-prob 'ref' at token 0 .* is -inf"):
        LearnerGroup(LocalWorkers(Annotates()), run.learner_setup("", NEEDS)).annotate(rows(0, False), ("ref",))
    cut = run_of(small, sampling={"max_tokens": 4, "top_p": 0.9})  # a token outside of the reference's nucleus
    LearnerGroup(LocalWorkers(Annotates()), cut.learner_setup("", NEEDS)).annotate(rows(0, False), ("ref",))


def test_options_that_step_on_anything_are_refused() -> None:
    for options in ({"bf16": {"check_grad_overflow": False}}, {"zero_optimization": {"compute_grad_norm": False}}):
        with pytest.raises(ConfigError, match="not finite"):
            check_deepspeed_options(options, True)


def test_precision_is_said_in_one_place() -> None:
    check_deepspeed_options({"bf16": {"enabled": True}}, True)
    for bf16 in (False, True):
        with pytest.raises(ConfigError, match=r"deepspeed.bf16.enabled .*Set model.dtype alone"):
            check_deepspeed_options({"bf16": {"enabled": not bf16}}, bf16)
    with pytest.raises(ConfigError, match="DeepSpeed's own Adam"):
        check_deepspeed_options({"bf16": {"bf16_optimizer_states": True}}, True)


def test_a_loss_that_is_not_finite_names_term_and_token(small: dict[str, Any], tiny: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Log(Term):
        def __call__(self, new: New, b: Batch) -> Tensor:
            return torch.where(b.adv > 5, new.logp - new.logp.detach(), 1.0).log()

    run = run_of(small).replace(objective=(PPOClip(), Log()))
    setup = run.learner_setup(str(tiny), NEEDS)
    group = LearnerGroup(LocalWorkers(Learner(setup)), setup)
    with pytest.raises(
        NumericsError,
        match=r"not finite in loss/Log \(Log: token 1 .* prompt p1\); log-probs under training are finite",
    ):
        group.update(rows(0, True), COEFS, 0)


def test_a_warm_up_that_diverges_leaves_the_model_as_it_was(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(tiny, path)
    before = (path / "model.safetensors").read_bytes()
    prompts = [Prompt("p", (3, 4), "")]
    spec = WarmUp(steps=20, batch=2, lr=1e30)
    with pytest.raises(NumericsError, match=r"model.warm_up: loss or gradient of step \d+ is not finite"):
        warm_up(path, spec, prompts, lambda p, rng: "12", load_tokenizer(path), 0, lambda step, loss: None)
    assert (path / "model.safetensors").read_bytes() == before
