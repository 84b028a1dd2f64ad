"""The examiner: what it says about known cases, and that it cannot be fooled by a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from rlkit.cli import main
from rlkit.errors import ConfigError
from rlkit.objective import Term
from rlkit.objective.anchors import Mixture, anchor_log_prob
from rlkit.objective.coefficients import AccuracyScaled, Constant, DifficultyWeighted, RewardMasked
from rlkit.objective.distillation import SinKD
from rlkit.objective.divergences import KL, Divergence
from rlkit.objective.full_vocab import FullDivergence
from rlkit.objective.losses import CISPO, GSPO, NLL, PMD, Entropy, ISGradient, PPOClip, Reinforce, Unlikelihood
from rlkit.objective.oracle import PG, SUPERVISED, UNLEARNING, World, dishonest, examine, refuse_nothing
from rlkit.objective.penalties import DivergenceReward, KLReward, Penalty
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


@dataclass(frozen=True)
class Own(Term):
    """Losses that users write, by name; ``log_u`` is against ``anchor``."""

    what: str = "k1"
    anchor: Any = "ref"

    @property
    def anchors(self) -> tuple[Any, ...]:
        return (self.anchor,)

    def __call__(self, new: New, b: Batch) -> Tensor:
        log_u = new.logp - anchor_log_prob(self.anchor, b)
        w = (new.logp - b.logp["behav"]).exp()
        costs: dict[str, Callable[[], Tensor]] = {
            "k1": lambda: log_u,
            "k1 of responses": lambda: b.seq_sum(log_u),
            "k1 of responses, by length": lambda: b.seq_mean(log_u),
            "k1 in float32": lambda: new.logp.float() - anchor_log_prob(self.anchor, b).float(),
            "tiny k1": lambda: 1e-9 * log_u,
            "huge k1": lambda: 1e9 * log_u,
            "entropy bonus of samples": lambda: new.logp,
            "cross entropy of samples": lambda: -new.logp,
            "baseline": lambda: 0.7 * new.logp,
            "baseline, importance": lambda: 0.7 * w,
            "k1 of a frozen weight": lambda: w.detach() * log_u,
            "constant": lambda: torch.full_like(new.logp, 3.0),
            "detached KL": lambda: 0.5 * log_u.detach() ** 2,
            "k1, importance": lambda: w * log_u,
            "k2": lambda: 0.5 * log_u**2,
            "entropy by the score": lambda: new.logp.detach() * new.logp,
        }
        return costs[self.what]()


NOTHING = ["k1", "k1 of responses", "k1 of responses, by length", "k1 in float32", "tiny k1", "huge k1", "baseline"]
NOTHING += ["entropy bonus of samples", "cross entropy of samples", "baseline, importance", "k1 of a frozen weight"]
NOTHING += ["constant", "detached KL"]
MIXTURE = Mixture(of=("ref", "teacher"))


@pytest.mark.parametrize("reduce", ["token", "seq", "sum", "const", "prompt"])
@pytest.mark.parametrize("what", NOTHING)
def test_a_loss_without_an_expected_gradient_is_nothing(what: str, reduce: Any) -> None:
    for anchor in ("ref", MIXTURE):
        found = examine(Own(what=what, reduce=reduce, anchor=anchor), ON)
        assert found.nothing is not None and found.follows is None and not found.honest, found.sentence
        assert ("it has no gradient" if what in ("constant", "detached KL") else "noise only") in found.sentence
        assert dishonest([found], off_policy=False) == [found]
        with pytest.raises(ConfigError, match="acknowledge: true"):
            refuse_nothing([found], off_policy=False)


@pytest.mark.parametrize(
    ("what", "anchor", "sampled", "follows"),
    [
        ("k1, importance", "ref", OFF, REVERSE),  # with an importance weight k1 is a KL
        ("k1, importance", MIXTURE, OFF, "KL(pi‖ref+teacher) per token"),
        # At its minimum, with noise: off-policy it shows what it is.
        ("k1, importance", "old", ON, "KL(pi‖old) per token"),
        ("k2", "ref", ON, REVERSE),
        ("cross entropy of samples", "ref", OFF, SUPERVISED),
        ("k1", "ref", OFF, UNLEARNING),  # whatever the anchor is: what it says of stale samples is to leave them
    ],
)
def test_a_loss_that_follows_something_is_not_nothing(what: str, anchor: Any, sampled: Any, follows: str) -> None:
    found = examine(Own(what=what, anchor=anchor), sampled)
    assert found.follows == follows and found.nothing is None and found.honest, found.sentence


def test_a_distance_to_the_policy_that_samples_is_at_its_minimum_on_policy() -> None:
    for part in (Own(what="k2", anchor="old"), KL(estimator="k2", anchor="old"), KL(estimator="k3", anchor="behav")):
        found = examine(part, ON)
        assert found.zero and found.nothing is None and not dishonest([found], off_policy=False), found.sentence
    assert examine(KLReward(anchor="behav"), OFF).nothing is None
    assert examine(Own(what="entropy by the score"), ON).nothing is None


def test_what_is_chosen_by_a_coefficient() -> None:
    """Supervised learning of chosen responses is what its name says; k1 of chosen responses is not."""
    assert examine(NLL(), ON).nothing is not None
    assert examine(NLL(coef=RewardMasked()), ON).honest
    found = examine(Own(coef=RewardMasked()), ON)
    assert not found.honest and "What is left of it is made by RewardMasked." in found.sentence


def test_nothing_is_accepted_where_it_is_acknowledged_or_only_measured() -> None:
    for part in (Own(acknowledge=True), Own(coef=0.0), Own(coef=Constant(0.0)), Own(what="constant", coef=0)):
        found = [examine(part, s) for s in (ON, OFF)]
        assert found[0].nothing is not None and not dishonest(found, off_policy=True)
        refuse_nothing(found, off_policy=True)
    assert examine(Own(coef=0.0), ON).sentence.endswith("Its coefficient is 0: it is only measured.")


@dataclass(frozen=True)
class Flat(Penalty):
    """A user's penalty: the same cost for every token."""

    coef: Any = 1.0
    placement: Any = "advantage"
    needs: Any = frozenset()
    name: str = "Flat"

    def __call__(self, b: Batch) -> Tensor:
        return torch.ones(b.N, dtype=torch.float64)


def test_a_constant_cost_in_the_advantage_is_nothing_and_in_the_reward_a_price_of_length() -> None:
    assert examine(Flat(), ON).nothing is not None
    assert examine(Flat(placement="reward"), ON).nothing is None


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
            assert float(w.whole(table).detach().exp().sum()) == pytest.approx(1)
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
    (tmp_path / "own.py").write_text(OWN_K1)
    small["objective"][1] = {"type": f"{tmp_path / 'own.py'}:MyKL", "coef": 0.3}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(small))
    assert main(["check", str(tmp_path / "own.yaml")]) == 1
    out = capsys.readouterr().out
    assert "MyKL, on-policy: noise only: its expected gradient is zero" in out and "noise only\n" in out
    assert main(["check", str(tmp_path / "own.yaml"), "objective.1.acknowledge=true"]) == 0
    capsys.readouterr()
    assert main(["train", str(tmp_path / "own.yaml"), f"out={tmp_path / 'runs'}"]) == 2
    said = capsys.readouterr().err
    assert "MyKL, on-policy: noise only" in said and "acknowledge: true" in said and not (tmp_path / "runs").exists()


def test_what_a_small_world_cannot_say_is_no_verdict() -> None:
    """A term that acts on marked tokens alone is not nothing, and one that compares the tokens of a response is no sum over prefixes."""
    found = examine(Unlikelihood(n=2), ON)
    assert found.problem is not None and "tokens that it marks" in found.problem and not dishonest([found], False)
    found = examine(FullDivergence(f=SinKD(), anchor="teacher"), ON)
    assert found.problem is not None and "tokens of a response with each other" in found.problem


OWN_K1 = """
from dataclasses import dataclass
from rlkit.errors import ConfigError
from rlkit.objective import Term

@dataclass(frozen=True)
class MyKL(Term):
    needs = frozenset({"ref"})

    def __call__(self, new, b):
        return new.logp - b.logp["ref"]
"""


@pytest.mark.slow
def test_the_page_on_regularizers_is_what_enumeration_says_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("scripts")
    import regularizers

    assert Path("docs/regularizers.md").read_text() == regularizers.page(), "run: python scripts/regularizers.py"
    for name in ("regularizers-f.svg", "regularizers-noise.svg"):
        assert (Path("docs") / name).stat().st_size > 10_000


def test_the_page_on_k1_shows_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("benchmarks")
    import k1_in_the_loss as program
    import report

    rows = report.read(program.NAME)
    page = Path("docs/k1-in-the-loss.md").read_text()
    assert "\n".join(program.table(rows)) in page, "run: python benchmarks/k1_in_the_loss.py, and copy its table"
    assert {(r["arm"], r["seed"]) for r in rows} == {
        (name, s) for name, arm in program.arms().items() for s in arm.seeds
    }
    assert examine(program.K1(), ON).nothing is not None  # what was trained is the mistake
