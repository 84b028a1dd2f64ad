"""A run that Python makes: what is given in other forms becomes what a file would give, and what cannot be meant is refused at once."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlkit as rk


def right(response: str, answer: str) -> float:
    return float(response == answer)


def made(**changes: Any) -> rk.Run:
    given: dict[str, Any] = {
        "model": rk.Model(path="m"),
        "data": rk.Data(train="rows.jsonl"),
        "rewards": ["math"],
        "objective": [rk.PPOClip(), rk.KL(estimator="k2", coef=0.1)],
    }
    return rk.Run(**{**given, **changes})


def test_what_python_gives_is_what_a_file_gives() -> None:
    loaded = rk.load(
        {
            "model": {"path": "m"},
            "data": {"train": "rows.jsonl"},
            "rewards": ["math"],
            "objective": ["PPOClip", {"type": "KL", "estimator": "k2", "coef": 0.1}],
            "learner": {"lr": 1.0, "betas": [0.9, 0.99]},
            "cluster": {"engines": 2},
        }
    )
    run = made(
        model=rk.Model(path=Path("m")),
        learner={"lr": 1, "betas": [0.9, 0.99]},
        cluster=rk.Cluster(engines=np.int64(2)),
    )
    assert run == loaded and pickle.loads(pickle.dumps(run)) == run
    assert type(run.learner.lr) is float and type(run.cluster and run.cluster.engines) is int


def test_a_function_is_a_reward_and_a_mapping_may_hold_objects() -> None:
    assert made(rewards=[right, "exact"]).rewards == (rk.RewardSpec(right), rk.RewardSpec("exact"))
    run = rk.load(
        {"model": rk.Model(path="m"), "data": {"task": rk.tasks.Sorting()}, "rewards": [right], "objective": [rk.RPG()]}
    )
    assert run.objective == (rk.RPG(),) and run.rewards[0].fn is right and run.data.task == rk.tasks.Sorting()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: made(steps="many"), "Run.steps: found 'many', expected a whole number."),
        (lambda: made(steps=-1), "Run.steps is -1; it must be in [0, 1000000000]."),
        (lambda: made(seed=True), "Run.seed: found true, expected a whole number."),
        (lambda: made(learner={"lrr": 1}), "Run.learner.lrr: unknown key. Did you mean 'lr'? Keys here: ..."),
        (lambda: made(learner={"lr": "x"}), "LearnerSection.lr: found 'x', expected a number."),
        (lambda: made(critic=[]), "Run.critic: found [], expected a Critic or null."),
        (lambda: made(objective=rk.PPOClip()), "Run.objective: found PPOClip(..., expected a list."),
        (
            lambda: made(objective=[rk.GroupNorm()]),
            "Run.objective.0: found GroupNorm(eps=1e-06, scale='group'), expected a Term.",
        ),
        (lambda: made(rewards=[5]), "Run.rewards.0: found 5, expected a RewardSpec."),
        (
            lambda: made(on_reward_error="skip"),
            "Run.on_reward_error: found 'skip', expected one of 'mask', 'raise', 'zero'.",
        ),
        (
            lambda: made(objective=[]),
            "objective is empty: name at least one loss term, e.g. objective: [{type: PPOClip}].",
        ),
        (lambda: rk.Model(), "model needs exactly one of `path` ..."),
        (
            lambda: rk.Run(),
            "Run.model: is missing, and it has no default.\nRun.data: is missing, and it has no default.",
        ),
        (lambda: made(stepz=1), "Run.stepz: unknown key. Did you mean 'steps'? Keys here: ..."),
        (lambda: rk.Run("run.yaml"), "Run takes no values without a name, and got 1. Its keys: name, ..."),
        (lambda: rk.PPOClip(0.1, 0.2, 3.0, 4), "PPOClip takes at most 3 values without a name, and got 4. ..."),
        (lambda: rk.PPOClip(0.1, eps_low=0.2), "PPOClip.eps_low is given twice: by its place and by its name."),
        (lambda: rk.Constant(), "Constant.value: is missing, and it has no default."),
        (
            lambda: made(model={"make": {"layerz": 1}}, critic={"lrr": 1}),
            "Model.make.layerz: unknown key. ...Run.critic.lrr: unknown key. Did you mean 'lr'? Keys here: path, lr.",
        ),
        (lambda: rk.LearnerSection(betas=[0.9]), "LearnerSection.betas: found 1 values, expected 2."),
        (lambda: rk.KL(coef="much"), "KL.coef: found 'much', expected a number or a Coefficient."),
        (
            lambda: made(steps="many", rewards=[5]),
            "Run.steps: found 'many', expected a whole number.\nRun.rewards.0: found 5, expected a RewardSpec.",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(rk.ConfigError) as error:
        make()
    start, _, end = says.partition("...")
    assert str(error.value).startswith(start) and str(error.value).endswith(end)


def test_replace_changes_values_in_their_sections() -> None:
    run = made()
    new = run.replace(
        {"learner.lr": 1, "objective.1.coef": 0.02, "cluster.engines": 2, "deepspeed.zero_optimization.stage": 1},
        steps=7,
        sampling={"max_tokens": 9},
        rewards=[right],
    )
    assert (new.learner.lr, new.objective[1].coef, new.steps, new.sampling.max_tokens) == (1.0, 0.02, 7, 9)
    assert new.cluster == rk.Cluster(engines=2) and new.deepspeed == {"zero_optimization": {"stage": 1}}
    assert new.rewards == (rk.RewardSpec(right),) and new.sampling.temperature == run.sampling.temperature
    assert run == made()
    assert run.replace(learner=rk.LearnerSection(lr=0.1)).learner == rk.LearnerSection(lr=0.1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stepz": 1}, "Run.stepz: unknown key. Did you mean 'steps'?"),
        ({"learner.lrr": 1}, "LearnerSection.lrr: unknown key. Did you mean 'lr'?"),
        ({"learner.lr": "x"}, "LearnerSection.lr: found 'x', expected a number."),
        ({"learner.lr.x": 1}, "LearnerSection.lr is 1e-06 and has no keys."),
        ({"objective.2.coef": 1}, "Run.objective is a list of 2; '2' is no index into it."),
        ({"objective.0.coef": -1, "steps": 1.5}, "Run.steps: found 1.5, expected a whole number."),
    ],
)
def test_replace_refuses_what_cannot_stand_there(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(rk.ConfigError) as error:
        made().replace(changes)
    assert str(error.value).startswith(says)


@dataclasses.dataclass(frozen=True)
class Theirs(rk.Term):
    """A class of a user's own whose default is not of its annotation."""

    tau: int = 0.5  # type: ignore[assignment]

    def __call__(self, new: rk.New, b: rk.Batch) -> Any:
        return new.logp


def test_a_default_is_the_authors_own_business() -> None:
    assert Theirs().tau == 0.5
    with pytest.raises(rk.ConfigError, match=r"Theirs.tau: found 0.7, expected a whole number"):
        Theirs(tau=0.7)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_made_in_python_trains_on_rows_and_a_function(tiny: Path, tmp_path: Path) -> None:
    run = rk.Run(
        name="python",
        out=str(tmp_path),
        steps=1,
        model=rk.Model(path=tiny),
        data=rk.Data(
            train=({"prompt": f"{i}12>", "answer": f"1{i}"} for i in range(8)), test=[{"prompt": "31>", "answer": "13"}]
        ),
        rewards=[right],
        objective=[rk.PPOClip()],
        sampling={"max_tokens": 4},
        rollout=rk.RolloutSection(engine="hf", prompts=2, n=2),
        probe={"final": False},
    )
    folder = tmp_path / "python"
    rk.train(run, quiet=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 1 and str(run.data.train) in (folder / "config.yaml").read_text()
    with pytest.raises(rk.DataError, match=r"rows given in Python .* are not in this file"):
        rk.train(rk.load(folder / "config.yaml", ["name=again"]), quiet=True)
