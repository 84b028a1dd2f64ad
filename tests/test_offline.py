"""Runs on rows that are there already, alone and beside what is sampled: what they learn, leave, resume, and refuse."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import rlkit as rk
from rlkit.data.stored import StoredRows
from rlkit.data.tasks import Sorting
from rlkit.errors import ConfigError, DataError, InputError, ModelError
from rlkit.learner.learner import Learner
from rlkit.model.load import load_lm, load_tokenizer
from rlkit.model.policy import PolicyModel, evaluate_new
from rlkit.model.tiny import make_tiny
from rlkit.objective import On, Reduce
from rlkit.objective.preference import log_ratio
from rlkit.planning import Machine, plan_here
from rlkit.samples import SOURCES
from rlkit.session import open_session
from rlkit.types import Batch, Rollout, Sampling
from tests.test_exact_resume import same

pytestmark = pytest.mark.slow

LAPTOP = Machine(memory=16 * 2**30, cores=2, flops=1e11, process=3e8)


@dataclass(frozen=True, kw_only=True)
class Labels(rk.Term):
    """A loss of the user's on labelled responses that compares with the mean log-ratio of responses to other prompts."""

    needs: ClassVar[frozenset[str]] = frozenset({"ref", "mismatched"})
    on: On = "labelled"
    reduce: Reduce = "sum"

    def mark(self, b: rk.Batch, generator: torch.Generator) -> Tensor:
        assert b.S in (4, 6) and bool((b.source == SOURCES.index("labelled")).all())
        return b.cols["mismatched"].mean().clamp(min=0).expand(b.N)

    def score(self, new: rk.New, b: rk.Batch) -> Tensor:
        return log_ratio(new, b)

    def __call__(self, new: rk.New, b: rk.Batch) -> Tensor:
        moved = log_ratio(new, b) - b.seq_mean(b.marks[self.name])
        return torch.sigmoid(torch.where(b.reward > 0.5, -moved, moved))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Digits in order are right; in any other order, or with one more, wrong."""
    draw, pairs = random.Random(0), []
    for row in Sorting(levels=(1,)).rows("train", 28):
        right = str(row["answer"])
        wrong = "".join(draw.sample(right, len(right))) + draw.choice("123")
        pairs.append({"prompt": row["prompt"], "chosen": right, "rejected": wrong, "weight": 2.0})
    labelled = [
        {"prompt": p["prompt"], "response": p[half], "label": half == "chosen"}
        for p in pairs
        for half in ("chosen", "rejected")
    ]
    return {
        "pairs": write(tmp_path / "pairs.jsonl", pairs[:20]),
        "test": write(tmp_path / "test.jsonl", pairs[20:]),
        "labelled": write(tmp_path / "labelled.jsonl", labelled),
        "demonstrations": write(
            tmp_path / "demonstrations.jsonl", [{"prompt": p["prompt"], "completion": p["chosen"]} for p in pairs]
        ),
    }


@pytest.fixture
def offline(small: dict[str, Any], files: dict[str, str]) -> dict[str, Any]:
    """DPO on pairs, and nothing else."""
    kept = {key: small[key] for key in ("out", "model", "log")}
    return {
        **kept,
        "name": "dpo",
        "steps": 6,
        "data": {"pairs": {"path": files["pairs"], "test": files["test"], "per_step": 8}},
        "objective": [{"type": "DPO", "beta": 0.5}],
        "learner": {"lr": 1e-3},
        "eval": {"every": 3},
        "checkpoint": {"minutes": None},
    }


def test_dpo_raises_the_margin_without_an_engine_and_goes_on_bit_by_bit(
    offline: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = rk.load(offline)
    whole = rk.train(run.replace(name="whole"))
    said = capsys.readouterr().out
    assert "Starting in this process: no engine, torch learner" in said and "accuracy    margin" in said
    assert "data.pairs: 20 rows, 8 a step: an epoch is 2.5 steps" in said and "rollouts.jsonl" not in said
    rows, held_out = whole.metrics(), whole.held_out()
    assert [h.step for h in held_out] == [0, 3, 6] and all(h.rows == 8 and h.prompts == 0 for h in held_out)
    first, last = held_out[0].measured, held_out[-1].measured
    assert first["margin/DPO"] == pytest.approx(0, abs=1e-6) and first["loss/DPO"] == pytest.approx(0.6931, abs=1e-4)
    assert last["margin/DPO"] > 0.3 and held_out[-1].score == last["accuracy/DPO"] >= 0.75
    assert rows[-1]["margin/DPO"] > rows[1]["margin/DPO"] > 0 and rows[-1]["data/epoch/pairs"] == 2.4
    assert "reward/mean" not in rows[-1] and not (whole / "rollouts.jsonl").exists()
    for step in rk.steps(run, quiet=True):
        if step.number == 4:
            break
    file = Path(offline["data"]["pairs"]["path"])
    first_rows = file.read_text()
    one, two, *rest = first_rows.splitlines()
    file.write_text("\n".join([two, one, *rest]))
    with pytest.raises(DataError, match=r"data.pairs: the rows are not those that .* or in another order"):
        rk.train(run, resume=True, quiet=True)
    file.write_text(first_rows)
    same(whole, rk.train(run, resume=True, quiet=True))
    tokenizer = whole.tokenizer()
    assert whole.model().generate(**tokenizer("12>", return_tensors="pt"), max_new_tokens=2).shape == (1, 5)


def test_of_a_demonstrated_chat_the_answers_are_trained_and_nothing_between_them(
    small: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    """The loss of a step is that of the answers' tokens by the model's own forward pass, and kept log-probs change nothing."""
    chat = [{"role": "user", "content": "12"}, {"role": "assistant", "content": "21"}]
    folder = tmp_path / "chats"
    shutil.copytree(tiny, folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% else %}>{% endif %}{% endfor %}"
    tokenizer.save_pretrained(folder)
    rows = [{"messages": [*chat, {"role": "user", "content": "345"}, {"role": "assistant", "content": "543"}]}]
    run = rk.load(
        {
            **{key: small[key] for key in ("out", "log")},
            "name": "chats",
            "model": {"path": str(folder)},
            "data": {"demonstrations": {"path": rows, "per_step": 1}},
            "objective": [{"type": "NLL", "on": "dataset", "reduce": "token"}, {"type": "KL", "on": "dataset"}],
            "steps": 2,
        }
    )
    found = rk.train(run, quiet=True).metrics()
    ids = torch.tensor([tokenizer("12>21", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]])
    first = ids.shape[1]
    ids = torch.cat(
        [ids, torch.tensor([tokenizer("345>543", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]])], 1
    )
    trained = torch.zeros(ids.shape[1], dtype=torch.bool)
    trained[3:first] = trained[first + 4 :] = True
    with torch.no_grad():
        logp = load_lm(str(folder))(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    assert found[0]["loss/NLL"] == pytest.approx(float(-logp[trained[1:]].mean()), rel=1e-4)
    assert found[0]["learner/tokens"] == 7
    kept = rk.train(run.replace(name="kept", reference={"precompute": str(tmp_path / "ref.pt")}), quiet=True).metrics()
    assert found[1]["learner/grad_norm"] == pytest.approx(kept[1]["learner/grad_norm"], rel=1e-4)


def test_a_run_does_not_depend_on_how_its_batches_are_cut_or_laid_out(offline: dict[str, Any]) -> None:
    plain = {**offline, "steps": 2, "eval": {"prompts": 0}, "probe": {"final": False}}
    plain["objective"] = [*plain["objective"], {"type": "NLL", "on": "chosen", "coef": 0.1, "reduce": "seq"}]
    found = []
    for name, section in {
        "packed": {"packed": True},
        "padded": {"packed": False},
        "a pair at a time": {"packed": True, "max_tokens": 1},
        "a padded pair at a time": {"packed": False, "max_tokens": 1},
    }.items():
        folder = rk.train(rk.load({**plain, "name": name, "learner": {"lr": 1e-3, **section}}), quiet=True)
        found.append((folder.metrics(), load_file(folder / "final" / "model.safetensors")))
    for rows, weights in found[1:]:
        for row, want in zip(rows, found[0][0], strict=True):
            for key in (
                "loss/DPO",
                "loss/NLL",
                "margin/DPO",
                "chosen/DPO",
                "nll/rejected",
                "learner/grad_norm",
                "learner/tokens",
            ):
                assert row[key] == pytest.approx(want[key], rel=1e-4, abs=1e-5), key
        assert all(torch.allclose(weights[k], found[0][1][k], atol=2e-5) for k in weights)


def test_kept_log_probs_of_the_reference_change_nothing_and_take_its_place(
    offline: dict[str, Any], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = rk.load({**offline, "steps": 2, "eval": {"every": 1}})
    kept = plain.replace(name="kept", reference={"precompute": str(tmp_path / "kept" / "ref.pt")})
    want = rk.train(plain, quiet=True)

    def no_second_model(self: Any, path: str | None, dtype: str | None) -> Any:
        raise AssertionError("a second model was loaded")

    monkeypatch.setattr(Learner, "load_frozen", no_second_model)
    for _ in range(2):  # computes, then reads
        found = rk.train(kept, quiet=True)
        for row, other in zip(want.metrics(), found.metrics(), strict=True):
            assert row["loss/DPO"] == pytest.approx(other["loss/DPO"], rel=1e-5) and row["margin/DPO"] == pytest.approx(
                other["margin/DPO"], abs=1e-5
            )
        assert found.held_out()[-1].measured["margin/DPO"] == pytest.approx(
            want.held_out()[-1].measured["margin/DPO"], abs=1e-5
        )
    for change, says in (
        ({"model.path": str(want.final)}, "ref.pt holds log-probs of another model"),
        ({"data.pairs.path": offline["data"]["pairs"]["test"]}, "ref.pt holds log-probs of another rows"),
    ):
        with pytest.raises(DataError, match=says):
            rk.train(kept.replace({"name": "refused", **change}), quiet=True)
    assert not (Path(offline["out"]) / "refused").exists()
    path = tmp_path / "kept" / "ref.pt"
    whole, state = path.read_bytes(), torch.load(path)
    for damage in (
        lambda: path.write_bytes(b"no file of tensors"),
        lambda: path.write_bytes(whole[: len(whole) // 2]),
        lambda: torch.save(torch.ones(3), path),
        lambda: torch.save([1, 2], path),
        lambda: torch.save({**state, "length": state["length"][:-1]}, path),
    ):
        damage()
        with pytest.raises(DataError, match=r"ref\.pt is no whole file of log-probs that a run has kept\. Remove it"):
            rk.train(kept, quiet=True)


def test_sampled_and_given_rows_stand_in_one_batch(small: dict[str, Any], files: dict[str, str]) -> None:
    small["data"] |= {key: {"path": files[key], "per_step": 4} for key in ("pairs", "labelled", "demonstrations")}
    run = rk.load({**small, "steps": 2, "probe": {"every": 0}})
    terms = [*run.objective, rk.DPO(), rk.NLL(on="dataset", coef=0.1), Labels(), rk.DPO(on="policy", coef=0.5)]
    folder = rk.train(dataclasses.replace(run, objective=tuple(terms[:-1])), quiet=True)
    rows = folder.metrics()
    names = [
        "loss/PPOClip",
        "loss/DPO",
        "loss/NLL",
        "loss/Labels",
        "margin/DPO",
        "accuracy/DPO",
    ]
    names += ["reward/mean", "kl/ref", "nll/chosen", "nll/dataset", "nll/labelled", "data/epoch/labelled", "data/epoch"]
    assert [name for name in names if any(name not in row for row in rows)] == [] and rows[0]["batch/sequences"] == 16
    assert {"chosen/Labels", "rejected/Labels"} <= {name for row in rows for name in row}
    assert all(h.score is not None for h in folder.held_out())
    data = {"pairs": None, "labelled": None, "demonstrations": None}
    own = run.replace(name="own", objective=[terms[-1]], pairing=rk.BestWorst(), data=data)
    rows = rk.train(own, quiet=True).metrics()
    assert all(row["loss/DPO"] > 0 and "nll/chosen" not in row for row in rows) and rows[1]["margin/DPO"] != 0


def test_the_rollouts_that_a_run_leaves_are_rows_for_another(small: dict[str, Any], tmp_path: Path) -> None:
    first = rk.train(
        rk.load({**small, "name": "first", "steps": 2, "log": {"rollouts": 64, "tokens": True, "tensorboard": False}}),
        quiet=True,
    )
    path = first / "rollouts.jsonl"
    given = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(given) == 32 and all(len(r["token_ids"]) == len(r["logp"]) == r["tokens"] for r in given)
    kept = {key: small[key] for key in ("out", "model", "log", "learner")}
    data = {"stored": {"path": str(path), "per_step": 8}}
    objective = [
        {"type": "Divergence", "f": "forward_ukl", "on": "reference"},
        {"type": "NLL", "on": "reference", "coef": 0.1},
    ]
    run = rk.load({**kept, "name": "second", "steps": 2, "data": data, "objective": objective})
    rows = rk.train(run, quiet=True).metrics()
    assert run.engine is None and rows[0]["loss/NLL"] > 1 and rows[0]["batch/given_tokens"] > 8
    stored = StoredRows(run.data.stored, load_tokenizer(run.model.path), 0).rows
    assert [(r.prompt.id, r.tokens, r.reward) for r in stored] == [
        (g["prompt_id"], g["token_ids"], g["reward"] or 0.0) for g in given
    ]
    path.write_text(json.dumps({k: v for k, v in given[0].items() if k != "token_ids"}) + "\n")
    with pytest.raises(
        DataError,
        match=r"rollouts.jsonl:1: a line of rollouts.jsonl without its tokens; a run writes them with log.tokens: true",
    ):
        rk.train(run.replace(name="third"), quiet=True)


def test_what_labelled_responses_are_compared_with_are_others_under_their_prompt(
    small: dict[str, Any], tiny: Path
) -> None:
    """``mismatched``: log-ratios of the next row's response, here to a reference of other weights, one row at a time."""
    other = make_tiny(Path(small["out"]) / "other", Sorting.alphabet, hidden=64, layers=2, heads=2, kv_heads=1, seed=3)
    rows = [{"prompt": f"{k}{k}>", "response": "1" * (k + 1), "label": k % 2} for k in range(4)]
    kept = {key: small[key] for key in ("out", "model", "log")}
    run = rk.load(
        {
            **kept,
            "name": "pairs",
            "data": {"labelled": {"path": rows, "per_step": 4}},
            "objective": [{"type": "NLL", "on": "labelled"}],
        }
    )
    run = run.replace(objective=[Labels()], reference={"path": str(other)})
    with open_session(run, quiet=True) as s:
        drawn = s.feed.drawn[0].draw(0, 0)
        found = s.batch(drawn).cols["mismatched"].tolist()
        policy, ref = (PolicyModel(load_lm(path)) for path in (tiny, other))
        for i, r in enumerate(drawn):
            b = Batch.from_rollouts([Rollout.given(r.prompt, drawn[(i + 1) % 4].tokens)])
            with torch.no_grad():
                want = [evaluate_new(m, b, Sampling(), frozenset()).logp.sum() for m in (policy, ref)]
            assert found[i] == pytest.approx(float(want[0] - want[1]), abs=1e-4) and abs(found[i]) > 1e-3


def test_a_run_on_rows_answers_held_out_prompts_by_its_own_model(small: dict[str, Any], files: dict[str, str]) -> None:
    small["data"] |= {"labelled": {"path": files["labelled"], "test": files["labelled"], "test_size": 6, "per_step": 4}}
    run = rk.load({**small, "steps": 2, "rollout": {"prompts": 0}, "eval": {"prompts": 4, "every": 1}})
    folder = rk.train(dataclasses.replace(run, objective=(Labels(),)), quiet=True)
    for h in folder.held_out():
        assert (
            h.prompts == 4
            and h.rows == 6
            and h.score is not None
            and {"loss/Labels", "nll/labelled"} <= h.measured.keys()
        )
    assert (
        len((folder / "eval_samples.jsonl").read_text().splitlines()) == 12
        and run.engine is not None
        and run.shares_weights
    )


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a term on pairs without pairs": ({"data": {"demonstrations": "x.jsonl"}}, r"DPO reads on: pairs, but data.pairs is not set. Name a file: data: \{pairs: rows.jsonl\}."),
    "rows that nothing reads": ({"data": {"pairs": "x.jsonl", "labelled": "y.jsonl"}}, "data.labelled is set, but no term reads it. Add one with on: labelled"),
    "a term on samples": ({"objective": [{"type": "DPO"}, {"type": "KL"}]}, r"KL_k2?.* reads responses that are sampled \(on: policy\), but this run samples none. Say which rows it reads \(on: chosen, rejected\)"),
    "advantages of rows": ({"objective": [{"type": "PPOClip", "on": "chosen"}]}, "PPOClip needs 'adv', which only responses have that the run samples; on: chosen reads rows of data"),
    "an engine section": ({"rollout": {"engine": "hf", "n": 4}}, "rollout is set, but data has no prompts to sample .* starts no engine. Leave rollout out"),
    "options of an engine": ({"vllm": {"max_num_seqs": 4}}, "vllm is set, but no engine of vLLM starts"),
    "no reference": ({"reference": None}, r"DPO compares with anchor 'ref', but reference is null. Set reference: \{type: Frozen\}"),
    "another temperature than that of data": ({"sampling": {"temperature": 0.6}}, "sampling.temperature is 0.6: log-probs are taken at this temperature, also those of rows"),
    "cut distributions": ({"sampling": {"top_p": 0.9}}, "rows of data hold tokens that are cut off: their log-prob would be -inf"),
    "more minibatches than pairs": ({"learner": {"minibatches": 9}}, r"a step has only 8 prompt groups \(per_step of the rows of data\)"),
    "pairs of samples without a rule": ({"objective": [{"type": "DPO"}, {"type": "DPO", "on": "policy"}]}, "compares a step's own responses (.|\n)*Set pairing: {type: BestWorst}"),
    "a rule without samples": ({"pairing": {"type": "BestWorst"}}, "pairing is set, but no term compares a step's own responses"),
    "penalties of samples": ({"reward_penalties": [{"type": "KLReward"}]}, "reward_penalties is about responses that are sampled, but this run samples none"),
    "prompts without rewards": ({"data": {"pairs": "x.jsonl", "test": "p.jsonl"}}, "rewards is empty"),
    "scores of which all are good": ({"data": {"labelled": [{"prompt": "1>", "response": "1", "score": x} for x in (2, 5)]}, "objective": [{"type": "KTO"}]}, r"KTO: all 2 responses of the data are good, because their labels, from 2 to 5, are above 0.5. Say which scores are good"),
    "kept log-probs of other rows": ({"objective": [{"type": "DPO"}, {"type": "FullDivergence", "on": "chosen"}], "reference": {"type": "Frozen", "precompute": "x.pt"}}, "compares all tokens, but reference.precompute keeps the log-probs of its most likely tokens"),
    "a place for kept log-probs that is none": ({"reference": {"type": "Frozen", "precompute": "/proc/none/ref.pt"}}, r"reference\.precompute: a file cannot be written at '/proc/none/ref\.pt'"),
    "a column that rows lack": ({"objective": [{"type": "DPO"}, {"type": "AStar", "on": "chosen", "coef": 0.1}]}, "AStar reads the column 'v_star', but 40 of 40 prompts have no number there"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_said_before_anything_is_made(offline: dict[str, Any], name: str) -> None:
    change, says = WRONG[name]
    with pytest.raises(InputError, match=says):
        rk.train(rk.load({**offline, **change}), quiet=True)
    assert not Path(offline["out"]).exists()


def test_a_reference_with_another_tokenizer_is_refused(offline: dict[str, Any], tmp_path: Path) -> None:
    other = make_tiny(tmp_path / "other", "abcdefghijk", hidden=64, layers=2, heads=2, kv_heads=1)
    with pytest.raises(ModelError, match=r"reference\.path"):
        rk.train(rk.load({**offline, "reference": {"type": "Frozen", "path": str(other)}}), quiet=True)
    assert not Path(offline["out"]).exists()


def test_plans_checks_and_probes_know_of_runs_without_engines(
    offline: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = rk.load(offline)
    here = plan_here(run, LAPTOP)
    text = str(here)
    assert (
        here.fits
        and here.seconds["generate"] == 0
        and "engine's weights" not in text
        and "ref (a second model)" in text
    )
    assert "prompts of 4 tokens (measured on 40 prompts), responses of up to 5" in text
    gpus = str(rk.plan(run, "H100", 1, 4))
    assert "no engine; one step: learner" in gpus and "cluster.engines" not in gpus and "Growth" not in gpus
    kept = str(plan_here(run.replace(reference={"precompute": "ref.pt"}), LAPTOP))
    assert "ref (a second model)" not in kept
    assert "rows of" in rk.probe(run) and str(rk.check(run)).startswith("part")


def test_prompts_are_still_needed_where_nothing_else_is_there(small: dict[str, Any]) -> None:
    small["objective"] = [{"type": "NLL"}]
    with pytest.raises(ConfigError, match=r"rollout.prompts is 0, but data has no rows to train on."):
        rk.train(rk.load({**small, "rollout": {"prompts": 0}}), quiet=True)
