"""The examiner: what it says about known cases, and that it cannot be fooled by a name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from rlkit.cli import main
from rlkit.objective import Term
from rlkit.objective.coefficients import AccuracyScaled, DifficultyWeighted, RewardMasked
from rlkit.objective.divergences import KL, Divergence
from rlkit.objective.full_vocab import FullDivergence
from rlkit.objective.losses import CISPO, GSPO, PMD, Entropy, ISGradient, PPOClip, Reinforce
from rlkit.objective.oracle import PG, World, dishonest, examine
from rlkit.objective.penalties import DivergenceReward, KLReward
from rlkit.types import Batch, New

ON, OFF, REF = "on-policy", "off-policy", "from the reference"
REVERSE, FORWARD = "KL(pi‖ref) per token", "KL(ref‖pi) per token"


@pytest.mark.parametrize(
    ("part", "sampled", "follows"),
    [
        (KL(estimator="k2"), ON, REVERSE),
        (KL(estimator="k2"), OFF, None),
        (KL(estimator="k2", importance="token"), OFF, REVERSE),
        (KL(estimator="k3"), ON, FORWARD),
        (KL(estimator="k3"), OFF, None),
        (KL(estimator="k3", importance="token"), OFF, REVERSE),
        (KL(estimator="k3+"), ON, REVERSE),
        (KL(estimator="k1", importance="token"), OFF, REVERSE),
        (Divergence(f="js"), OFF, "js(pi‖ref) per token"),
        (Divergence(f="js", importance="none"), OFF, None),
        (Divergence(f="forward_kl"), REF, FORWARD),
        (Divergence(f="alpha", parameter=0.3), REF, "alpha0.3(pi‖ref) per token"),
        (
            Divergence(f="chi2", importance="sequence"),
            OFF,
            "chi2(pi‖ref) per token, prefixes as the policy visits them",
        ),
        (FullDivergence(f="hellinger"), OFF, "hellinger(pi‖ref) per token"),
        (FullDivergence(level="sequence", reduce="sum"), ON, "KL(pi‖ref) of responses"),
        (FullDivergence(top_k=1), ON, None),
        (KLReward(), ON, "KL(pi‖ref) of responses"),
        (KLReward(placement="advantage", credit="token"), ON, REVERSE),
        (DivergenceReward(f="js", credit="sequence"), ON, "js(pi‖ref) summed over tokens, with credit to earlier ones"),
        (Entropy(), ON, "the entropy, upwards"),
        (Reinforce(), ON, PG),
        (PPOClip(), ON, PG),
        (CISPO(), ON, PG),
        (GSPO(), ON, PG),
        (PMD(), ON, PG),
        (ISGradient(), OFF, f"{PG}, tokens weighed one by one"),
    ],
    ids=str,
)
def test_what_known_parts_follow(part: Any, sampled: Any, follows: str | None) -> None:
    found = examine(part, sampled)
    assert found.follows == follows, found.sentence
    if follows is not None and found.claims == follows:
        assert found.cosine == pytest.approx(1) and found.norm == pytest.approx(1)


def test_the_noise_of_estimators() -> None:
    """Exact distributions are quieter than k2, which is quieter than k1."""
    full, k2, k1 = (
        examine(t, ON).noise for t in (FullDivergence(), KL(estimator="k2"), KL(estimator="k1", importance="token"))
    )
    assert full < k2 < k1


def test_a_reduction_by_response_length_is_reported() -> None:
    found = examine(KL(estimator="k2", reduce="seq"), ON)
    assert found.honest and found.reduction < 0.99 and "bends it" in found.sentence
    assert examine(KL(estimator="k2", reduce="token"), ON).reduction == pytest.approx(1)


@pytest.mark.parametrize(
    "part",
    [
        KL(estimator="k2", coef=DifficultyWeighted()),
        KLReward(coef=DifficultyWeighted()),
        KL(estimator="k2", coef=RewardMasked()),
    ],
    ids=str,
)
def test_a_coefficient_that_differs_between_responses_is_reported(part: Any) -> None:
    """What a term follows is said as with a constant coefficient; how far responses' weights bend it, against the gradient written out."""
    found, constant = examine(part, ON), examine(dataclasses.replace(part, coef=0.1), ON)
    assert found.follows == constant.follows and found.cosine == constant.cosine and found.honest
    assert (
        found.bend < 0.999
        and f"{type(part.coef).__name__} weighs responses differently (cosine {found.bend:.3f} to it)" in found.sentence
    )
    assert constant.coefficient is None and "weighs responses" not in constant.sentence
    if not isinstance(part, KL):
        return
    w = World(ON)
    scale_S, log_u = part.coef.per_sequence(w.batch()), w.at(w.pi()) - w.at(w.ref)
    bent, plain = (
        w.gradient((p * w._sum(0.5 * log_u**2) / (w.whole(w.mu).exp() * w.length).sum()).sum())
        for p in (w.whole(w.mu).exp() * scale_S, w.whole(w.mu).exp())
    )
    assert found.bend == pytest.approx(float((bent * plain).sum() / bent.norm() / plain.norm()))


def test_a_coefficient_of_whole_batches_bends_nothing() -> None:
    for coef in (AccuracyScaled(), RewardMasked(by="group")):
        for part in (KL(estimator="k2", coef=coef), KLReward(coef=coef)):
            assert examine(part, ON) == examine(dataclasses.replace(part, coef=1.0), ON)


@dataclass(frozen=True)
class Mine(Term):
    """A user's loss that is k3 in disguise."""

    def __call__(self, new: New, b: Batch) -> Tensor:
        log_u = new.logp - b.logp["ref"]
        return (-log_u).exp() - 1 + log_u


@dataclass(frozen=True)
class Broken(Term):
    def __call__(self, new: New, b: Batch) -> Tensor:
        return b.logp["no_such_policy"]


def test_a_users_own_term_is_examined_as_any_other() -> None:
    assert examine(Mine(), ON).follows == FORWARD and examine(Mine(), ON).honest
    assert "could not be examined here (KeyError" in examine(Broken(), ON).sentence


def test_what_needs_to_be_acknowledged() -> None:
    found = (
        [examine(KL(estimator="k3"), s) for s in (ON, OFF)]
        + [examine(KL(estimator="k2"), s) for s in (ON, OFF)]
        + [examine(PPOClip(), OFF)]
    )
    assert [f.part for f in dishonest(found, off_policy=False)] == ["KL_k3(ref)"]
    assert [f.part for f in dishonest(found, off_policy=True)] == ["KL_k3(ref)", "KL_k3(ref)", "KL_k2(ref)"]
    assert not dishonest([examine(KL(estimator="k3", acknowledge=True), ON)], off_policy=False)


def test_the_world_is_a_probability_space() -> None:
    for sampled in (ON, OFF, REF):
        w = World(sampled)
        for table in (w.pi(), w.mu, w.ref):
            assert float(w.whole(table).exp().sum()) == pytest.approx(1)
    torch.testing.assert_close(World(ON).mu, World(ON).pi().detach())


def test_the_command_line_says_it_and_exits_accordingly(
    small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small["objective"] = [{"type": "PPOClip"}, {"type": "KL", "estimator": "k3"}]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(small))
    assert main(["check", str(tmp_path / "c.yaml")]) == 1
    out = capsys.readouterr().out
    assert "its name says KL(pi‖ref) per token; its expected gradient is that of KL(ref‖pi) per token" in out
    assert main(["check", str(tmp_path / "c.yaml"), "objective.1.acknowledge=true"]) == 0
    assert main(["check", str(tmp_path / "c.yaml"), "objective.1.estimator=k2"]) == 0
    assert main(["check", "configs/quickstart.yaml"]) == 0


def test_the_page_on_regularizers_is_what_enumeration_says_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("scripts")
    import regularizers

    assert Path("docs/regularizers.md").read_text() == regularizers.page(), "run: python scripts/regularizers.py"
    for name in ("regularizers-f.svg", "regularizers-noise.svg"):
        assert (Path("docs") / name).stat().st_size > 10_000
