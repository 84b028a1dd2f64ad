"""Whole runs in one process: files, resume, custom losses, and what wrong input says."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import rlkit as rk
from rlkit.cli import main
from rlkit.session import open_session
from tests.rewards.examples import correct

pytestmark = pytest.mark.slow


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "final" / "model.safetensors")


def test_a_run_writes_what_a_reader_needs(small: dict[str, Any]) -> None:
    folder = rk.train(rk.load({**small, "log": {"tensorboard": False, "rollouts": 3}}), quiet=True)
    rows = metrics(folder)
    assert [r["step"] for r in rows] == [1, 2, 3]
    assert {
        "reward/mean",
        "kl/ref",
        "entropy/sampled",
        "length/mean",
        "time/step",
        "mismatch/mean",
        "learner/grad_norm",
        "coef/KL_k2(ref)",
    } <= rows[0].keys()
    assert (
        rows[0]["mismatch/mean"] < 1e-4 and rows[0]["kl/ref"] == pytest.approx(0, abs=1e-5) and rows[2]["kl/ref"] != 0
    )
    shown = [json.loads(x) for x in (folder / "rollouts.jsonl").read_text().splitlines()]
    assert {"prompt", "response", "reward", "answer", "finish"} <= shown[0].keys()
    held_out = [json.loads(x) for x in (folder / "eval_samples.jsonl").read_text().splitlines()]
    asked = [[r["prompt_id"] for r in held_out if r["step"] == step and r["sample"] == "fixed"] for step in (0, 3)]
    assert asked[0] == asked[1] and len(asked[0]) == len(set(asked[0])) == 3
    others = [r["prompt_id"] for r in held_out if r["sample"] == "random"]
    assert len(others) == 2 and not set(others) & set(asked[0]), "one of the rest at each evaluation"
    again = rk.load(folder / "config.yaml")
    assert again.objective == rk.load(small).objective
    environment = json.loads((folder / "environment.jsonl").read_text().splitlines()[0])
    assert {"torch", "transformers"} <= environment["packages"].keys() and "commit" in environment["git"]
    assert {p.name for p in folder.iterdir()} >= {"checkpoints", "final", "eval.jsonl", "summary.json", "report.html"}


def test_a_timeline_for_the_trace_viewer(small: dict[str, Any]) -> None:
    folder = rk.train(rk.load({**small, "log": {"tensorboard": False, "trace": True}, "steps": 2}), quiet=True)
    events = json.loads((folder / "trace.json").read_text().rstrip().rstrip(",") + "]")
    names = [e["name"] for e in events]
    assert (
        names.count("generate") == 2 + 8
        and names.count("update") == 2
        and names.count("reward") == 8
        and all(e["dur"] >= 0 for e in events)
    )
    last = metrics(folder)[-1]
    assert 0 <= last["idle/engines"] <= 1 and 0 < last["idle/learners"] < 1 and last["sync/mib"] > 0
    assert all(
        last[f"memory/{name}_mib"] > 50
        for name in ("learner_annotate", "learner_update", "learner_sync", "engine", "driver")
    )


def test_four_steps_and_two_more_are_six(small: dict[str, Any]) -> None:
    small["checkpoint"] = {"every": 3}
    whole = rk.train(rk.load({**small, "steps": 6, "name": "whole"}), quiet=True)
    part = {**small, "steps": 6, "name": "part"}
    run = rk.load(part)
    for step in rk.steps(run, quiet=True):
        if step.number == 4:
            break
    folder = rk.train(run, resume=True, quiet=True)
    assert [r["step"] for r in metrics(folder)] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(metrics(whole), metrics(folder), strict=True):
        assert a["reward/mean"] == pytest.approx(b["reward/mean"]) and a["loss/total"] == pytest.approx(
            b["loss/total"], abs=1e-6
        )
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(folder)[name], value, rtol=1e-5, atol=1e-6)


def test_requests_have_seeds_unless_the_run_wants_none(small: dict[str, Any]) -> None:
    for seeded, seed in ((True, 5), (False, None)):
        run = rk.load({**small, "seed": 5, "rollout": {**small["rollout"], "seeded": seeded}})
        with open_session(run, quiet=True) as s:
            assert s.feed.collector.sampling.seed == seed


def test_a_plain_function_as_reward_and_a_loss_of_the_users_own(small: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom rlkit import Term\n\n@dataclass(frozen=True)\nclass Squared(Term):\n"
        "    needs = frozenset({'adv'})\n    power: float = 2.0\n    def __call__(self, new, b):\n        return -b.adv * new.logp + new.logp.abs() ** self.power\n"
    )
    small |= {"objective": [{"type": f"{tmp_path}/mine.py:Squared", "power": 3.0}], "steps": 2}
    run = rk.load(small).replace(rewards=[correct])
    folder = rk.train(run, quiet=True)
    assert "loss/Squared" in metrics(folder)[0] and "reward/correct/short" in metrics(folder)[0]


def test_a_reward_in_the_middle_of_training_that_fails_is_counted(small: dict[str, Any]) -> None:
    small |= {"rewards": ["tests/rewards/examples.py:breaks_later"], "rollout": {**small["rollout"], "max_waste": 1}}
    with pytest.raises(RuntimeError, match="no_reward"):
        rk.train(rk.load(small), quiet=True)


@pytest.mark.parametrize(
    "objective",
    [
        [{"type": "RPG", "kl": "reverse_ukl"}],
        [{"type": "CISPO"}, {"type": "Divergence", "f": "js", "coef": 0.1}],
        [{"type": "GSPO"}, {"type": "Entropy", "coef": 0.01}],
        [{"type": "PMD", "reduce": "sum"}],
        [{"type": "PPOClip"}, {"type": "KL", "estimator": "k2", "coef": {"type": "KLBudget", "target": 0.05}}],
    ],
    ids=str,
)
def test_objectives_run_off_policy_too(small: dict[str, Any], objective: list[Any]) -> None:
    small |= {"objective": objective, "steps": 2, "learner": {"lr": 1e-3, "minibatches": 2, "epochs": 2}}
    rows = metrics(rk.train(rk.load(small), quiet=True))
    assert all(math.isfinite(r["loss/total"]) for r in rows) and max(r["ratio/max"] for r in rows) > 1


def test_ppo_with_a_value_function_and_kl_in_the_reward(small: dict[str, Any]) -> None:
    small |= {
        "advantage": {"type": "GAE"},
        "objective": [{"type": "PPOClip"}, {"type": "ValueMSE", "coef": 0.5}],
        "reward_penalties": [{"type": "KLReward", "coef": {"type": "AdaptiveKL", "init": 0.05, "target": 1.0}}],
    }
    rows = metrics(rk.train(rk.load(small), quiet=True))
    assert rows[-1]["loss/ValueMSE"] > 0 and "coef/KLReward(ref)/target" in rows[-1]


# -- wrong input: one message with place, finding and remedy; exit code 2; nothing written --------------------------------

WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"stepz": 5}, ["stepz", "steps"]),
    ({"steps": "many"}, ["steps", "many"]),
    ({"learner": {"lr": -1}}, ["learner.lr", "negative"]),
    ({"objective": []}, ["objective", "PPOClip"]),
    ({"objective": [{"type": "PPOclip"}]}, ["PPOclip", "PPOClip"]),
    ({"objective": [{"type": "KL", "estimator": "k1"}]}, ["k1", "gradient"]),
    ({"objective": [{"type": "KL"}], "reference": None}, ["reference", "null"]),
    ({"rollout": {"engine": "hf", "n": 1}}, ["rollout.n", "GroupNorm"]),
    ({"model": {"path": "no/such/model"}}, ["no/such/model"]),
    ({"model": {}}, ["model", "path", "make"]),
    ({"data": {"train": "no_such.jsonl"}}, ["no_such.jsonl"]),
    ({"data": {"task": {"type": "Sorting"}, "train": "x.jsonl"}}, ["task", "train"]),
    ({"rewards": ["nowhere.py:f"]}, ["nowhere.py"]),
    ({"rewards": ["tests/rewards/examples.py:unknown_column"]}, ["no_such_column"]),
    ({"cluster": {"learners": 2}}, ["cluster.learners", "deepspeed"]),
    ({"sampling": {"temperature": 0}}, ["temperature", "greedy"]),
    ({"model": {"path": "x", "dtype": "bfloat16"}}, ["bfloat16", "DeepSpeed"]),
    ({"deepspeed": {"optimizer": {}}}, ["deepspeed", "optimizer"]),
    ({"objective": [{"type": "Divergence", "f": "forward_kl", "on": "reference"}]}, ["data.stored", "rlkit filter"]),
    ({"objective": [{"type": "KL", "estimator": "k2", "anchor": "teacher"}]}, ["teacher", "Frozen"]),
    ({"objective": [{"type": "Divergence", "f": "alpha"}]}, ["alpha", "parameter"]),
    (
        {"objective": [{"type": "FullDivergence"}], "sampling": {"top_p": 0.9, "max_tokens": 4}},
        ["FullDivergence", "top_p"],
    ),
    (
        {"data": {"task": {"type": "Sorting", "levels": [1]}, "size": 40, "sampler": {"type": "ZeroVariance"}}},
        ["sampler", "ZeroVariance"],
    ),
    (
        {
            "data": {
                "task": {"type": "Sorting", "levels": [1]},
                "size": 40,
                "drop": [{"type": "ZeroVariance", "of": "math"}],
            }
        },
        ["'math'", "varied", "name"],
    ),
]


@pytest.mark.parametrize(("change", "told"), WRONG, ids=lambda x: str(x)[:60])
def test_wrong_input(
    small: dict[str, Any],
    change: dict[str, Any],
    told: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tmp_path / "c.yaml"
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(small.get(key), dict) and key != "data" and value
        small[key] = {**small[key], **value} if both and key != "model" else value
    small["rewards"] = [str(Path(r).absolute()) if r.startswith("tests/") else r for r in small["rewards"]]
    config.write_text(yaml.safe_dump(small))
    assert main(["train", str(config)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error:") and all(t in message for t in told), message
    assert len(message) < 900 and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": "12>"', ":2: not valid JSON"),
        ("", ":2: the line is empty"),
        ('{"question": "12>"}', "'prompt'"),
        ('{"prompt": ""}', ":2"),
        ("[1]", ":2"),
    ],
)
def test_a_bad_data_row_is_named_by_file_and_line(
    small: dict[str, Any], tmp_path: Path, line: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "31>", "answer": "13"}\n' + line + '\n{"prompt": "21>", "answer": "12"}\n'
    )
    small["data"] = {"train": str(tmp_path / "rows.jsonl")}
    small["rewards"] = [str(Path("tests/rewards/examples.py").absolute()) + ":length"]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(small))
    assert main(["train", str(tmp_path / "c.yaml")]) == 2
    message = capsys.readouterr().err
    assert "rows.jsonl" in message and told in message, message


def test_show_says_where_every_value_came_from(
    small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(small))
    assert main(["show", str(tmp_path / "c.yaml"), "learner.lr=1e-4"]) == 0
    out = capsys.readouterr().out
    row = next(x for x in out.splitlines() if x.startswith("learner.lr "))
    assert "0.0001" in row and "command line" in row and "KL_k2(ref)" in out


def test_the_core_imports_with_torch_and_transformers_alone() -> None:
    import subprocess
    import sys

    heavy = ("vllm", "ray", "deepspeed", "peft", "datasets", "math_verify", "tensorboard", "wandb")
    code = (
        "import sys\nclass Block:\n    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {heavy}: raise ImportError(name)\nsys.meta_path.insert(0, Block())\n"
        "import rlkit, rlkit.trainer, rlkit.session, rlkit.cluster.ray, rlkit.rollout.vllm, rlkit.learner.learner, rlkit.cli\n"
        "[getattr(rlkit, n) for n in rlkit.__all__]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_eval_and_filter_from_the_command_line(
    small: dict[str, Any], tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small["rewards"] = [str(Path("tests/rewards/examples.py").absolute()) + ":often"]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(small))
    assert main(["eval", str(tmp_path / "c.yaml"), "--model", str(tiny), "-n", "2", "--out", str(tmp_path / "e")]) == 0
    assert "8 responses to 4 prompts" in capsys.readouterr().out
    assert (
        main(
            [
                "filter",
                str(tmp_path / "c.yaml"),
                "--model",
                str(tiny),
                "-n",
                "4",
                "--out",
                str(tmp_path / "kept.jsonl"),
                "--high",
                "0.9",
            ]
        )
        == 0
    )
    rows = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert 0 < len(rows) < 40 and all(0 < r["pass_rate"] <= 0.9 and r["prompt"] and "level" in r for r in rows)
    small["data"] = {"train": str(tmp_path / "kept.jsonl"), "test_size": 4}
    small["steps"] = 1
    rk.train(rk.load(small), quiet=True)
    assert main(["filter", str(tmp_path / "c.yaml"), "--model", str(tiny), "--out", "x", "--low", "2"]) == 2
    assert main(["eval", str(tmp_path / "c.yaml"), "--model", str(tmp_path)]) == 2


@pytest.mark.parametrize(
    ("rows", "data", "printed"),
    [
        (["prompt"], {"template": "qwen-boxed"}, "'data.columns={prompt: question}'"),
        (["prompt"], {}, ""),
        (["q", "a"], {"template": "qwen-boxed", "columns": {"prompt": "q", "answer": "a"}}, ""),
        (["question", "q"], {"template": "qwen-boxed", "columns": {"prompt": "q"}}, ""),
        (["question", "prompt"], {"template": "qwen-boxed"}, "'data.columns={}' data.template=plain"),
        ([], {}, "data.task=null"),
    ],
    ids=str,
)
def test_what_filter_prints_reads_its_file_back(
    small: dict[str, Any],
    tiny: Path,
    tmp_path: Path,
    rows: list[str],
    data: dict[str, Any],
    printed: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from rlkit.data.prompts import load_prompts
    from rlkit.model.load import load_tokenizer

    small["rewards"] = [str(Path("tests/rewards/examples.py").absolute()) + ":often"]
    if rows:
        (tmp_path / "rows.jsonl").write_text(
            "\n".join(json.dumps({"id": str(i), **{c: f"{i}{c}1>" for c in rows}}) for i in range(4))
        )
        small["data"] = {"train": str(tmp_path / "rows.jsonl"), **data}
    else:
        small["data"]["size"] = 4
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(small))
    kept = tmp_path / "kept it.jsonl"
    assert (
        main(["filter", str(tmp_path / "c.yaml"), "seed=3", "--model", str(tiny), "-n", "2", "--out", str(kept)]) == 0
    )
    command = shlex.split(capsys.readouterr().out.split("Train on them with:\n")[1])
    assert command[:4] == ["rlkit", "train", str(tmp_path / "c.yaml"), "seed=3"] and printed in shlex.join(command)
    run, tokenizer = rk.load(command[2], command[3:]), load_tokenizer(tiny)
    before = {p.id: p.text for p in load_prompts(rk.load(command[2]).data, "train", tokenizer)}
    after = load_prompts(run.data, "train", tokenizer)
    assert (
        run.seed == 3
        and len(after) == len(kept.read_text().splitlines()) > 0
        and all(before[p.id] == p.text for p in after)
    )


def test_test_prompts_that_are_trained_on_are_counted(
    small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, texts in (("train", ("31>", "2 1>", "54>")), ("test", ("21>", "2  1> ", "54>"))):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"prompt": t, "answer": "1"}) for t in texts))
    small |= {"steps": 0, "data": {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")}}
    rk.train(rk.load(small))
    assert "data: 2 of 3 test prompts are also training prompts (the first: " in capsys.readouterr().out
    rk.train(rk.load({**small, "name": "apart", "data": {**small["data"], "test": None}}))
    assert "also training prompts" not in capsys.readouterr().out


def test_stored_rows_join_batches_and_are_not_reported_as_the_policys(small: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"prompt": "31>", "tokens": [4, 5], "logp": [-1.0, -2.0]}, {"prompt": "21>", "tokens": [4], "logp": [-0.5]}]
    (tmp_path / "s.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    small |= {
        "objective": [{"type": "PPOClip"}, {"type": "Divergence", "f": "forward_ukl", "on": "reference"}],
        "reference": None,
    }
    small["data"] = {**small["data"], "stored": {"path": str(tmp_path / "s.jsonl"), "per_step": 3}}
    plain = metrics(
        rk.train(
            rk.load(
                {
                    **small,
                    "data": {**small["data"], "stored": None},
                    "objective": [{"type": "PPOClip"}],
                    "name": "plain",
                }
            ),
            quiet=True,
        )
    )
    got = metrics(rk.train(rk.load(small), quiet=True))
    assert got[0]["loss/forward_ukl(ref)"] != 0 and "kl/ref" not in got[0]
    for name in ("reward/mean", "length/mean", "mismatch/max", "batch/sequences", "loss/PPOClip"):
        assert got[0][name] == pytest.approx(plain[0][name], abs=1e-6), name
    for line, told in (
        ('{"prompt": "1>", "tokens": [4]}', ":3"),
        ('{"prompt": "1>", "tokens": [4], "logp": [1.0]}', "not positive"),
        ("x", ":3"),
    ):
        (tmp_path / "s.jsonl").write_text("\n".join([*(json.dumps(r) for r in rows), line]))
        with pytest.raises(ValueError, match=told):
            rk.train(rk.load(small), quiet=True)


def test_yaml_words_stay_words(tmp_path: Path, small: dict[str, Any]) -> None:
    """In YAML 1.1 `on` would be the key True, and `1e-4` a string."""
    small["objective"] = [{"type": "PPOClip", "coef": 1e-4}]
    text = yaml.safe_dump(small).replace("type: PPOClip", "on: policy\n  type: PPOClip")
    (tmp_path / "c.yaml").write_text(text.replace("'on'", "on"))
    run = rk.load(tmp_path / "c.yaml", ["learner.lr=1e-4"])
    assert run.objective[0].on == "policy" and run.learner.lr == 1e-4
    (tmp_path / "again.yaml").write_text(rk.to_yaml(run))
    assert rk.load(tmp_path / "again.yaml") == run and "\n- type: PPOClip" in rk.to_yaml(run)
    with pytest.raises(rk.ConfigError, match="true or false"):
        rk.load(tmp_path / "c.yaml", ["log.tensorboard=no"])
