"""`rlkit eval`, `metrics`, `fit` and `audit-reward` as a user types them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import rlkit as rk
from rlkit.cli import main
from rlkit.errors import ConfigError
from rlkit.evaluation.samples import read_samples
from rlkit.model.load import load_lm
from rlkit.rollout.hf import HFEngine
from rlkit.types import Prompt, Sampling

pytestmark = pytest.mark.slow

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def config(small: dict[str, Any], tmp_path: Path) -> Path:
    """Four held-out prompts of two sets, and a reward that is often 1."""
    rows = [{"id": f"q{i}", "prompt": f"{i}12>", "answer": f"1{i}"} for i in range(4)]
    for name, part in (("one", rows[:2]), ("two", rows[2:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))
    small["data"] = {
        "train": str(tmp_path / "one.jsonl"),
        "test": [str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")],
    }
    small["rewards"] = [str(Path("tests/rewards/examples.py").absolute()) + ":often"]
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(small))
    return path


def test_samples_are_kept_and_go_on_where_they_stopped(
    config: Path, tiny: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "e"
    base = ["eval", str(config), "--model", str(tiny), "--out", str(out)]
    assert main([*base, "-n", "3"]) == 0
    text = capsys.readouterr().out
    assert (
        "12 responses to 4 prompts" in text
        and "pass@2" in text
        and "maj@2" in text
        and "\none " in text
        and "\nall " in text
    )
    settings, rows = read_samples(out)
    assert settings["model"] == str(tiny.resolve()) and len(rows) == 12
    assert all(
        r["correct"] in (0.0, 1.0) and r["length"] > 0 and r["vote"] == (r["response"].strip() or None) for r in rows
    )
    report = json.loads((out / "report.json").read_text())["1.0"]
    assert report["overall"]["avg"]["value"] == pytest.approx(sum(r["correct"] for r in rows) / 12) and set(
        report["datasets"]
    ) == {"one", "two"}

    # interrupted: the last prompt is gone, and half a line is left
    whole = (out / "samples.jsonl").read_text()
    lines = whole.splitlines()
    (out / "samples.jsonl").write_text("\n".join(lines[:-3]) + "\n" + lines[-3][:40])
    assert main([*base, "-n", "3"]) == 0 and "9 samples are there already" in capsys.readouterr().out

    def key(r: dict[str, Any]) -> tuple[str, int, str]:
        return r["prompt_id"], r["k"], r["response"]

    assert sorted(map(key, read_samples(out)[1])) == sorted(map(key, rows))  # the same samples, because seeds are

    # more samples keep the earlier ones; metrics without a model say the same
    assert main([*base, "-n", "20"]) == 0
    more = read_samples(out)[1]
    assert len(more) == 80 and {key(r) for r in rows} <= {key(r) for r in more}
    assert len({r["response"] for r in more if r["prompt_id"] == "q0"}) > 3
    printed = capsys.readouterr().out
    table = printed[printed.index("data set") :].split("\n\n")[0]
    assert main(["metrics", str(out)]) == 0 and table.strip() in capsys.readouterr().out
    assert main(["metrics", str(out), "-k", "64"]) == 2 and "k is 64" in capsys.readouterr().err

    # another model does not go into this file
    other = tmp_path / "other"
    lm = load_lm(tiny)
    with torch.no_grad():
        lm.get_output_embeddings().weight.mul_(1.5)
    lm.save_pretrained(other)
    for f in tiny.glob("tokenizer*"):
        (other / f.name).write_bytes(f.read_bytes())
    assert (
        main(["eval", str(config), "--model", str(other), "--out", str(out)]) == 2
        and "samples of another model" in capsys.readouterr().err
    )
    assert (
        main(["eval", str(config), "--model", str(tiny), "--out", str(out), "sampling.top_p=0.5"]) == 2
        and "another top_p" in capsys.readouterr().err
    )

    # two models, paired by prompt, and how far the one moved
    second = tmp_path / "e2"
    assert (
        main(["eval", str(config), "--model", str(other), "-n", "20", "--out", str(second), "--forgetting", str(tiny)])
        == 0
    )
    assert (
        "forgetting: KL(" in capsys.readouterr().out
        and json.loads((second / "report.json").read_text())["forgetting"]["per_sequence"] != 0
    )
    assert main(["metrics", str(out), "--against", str(second)]) == 0 and "p (McNemar)" in capsys.readouterr().out
    lonely = tmp_path / "lonely.jsonl"
    lonely.write_text(json.dumps({"prompt_id": "elsewhere", "correct": 1}) + "\n")
    assert main(["metrics", str(out), "--against", str(lonely)]) == 2 and "different prompts" in capsys.readouterr().err


def test_votes_over_temperatures_and_by_self_certainty(
    config: Path, tiny: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "e"
    assert (
        main(
            [
                "eval",
                str(config),
                "--model",
                str(tiny),
                "-n",
                "4",
                "--temperature",
                "0.5",
                "--temperature",
                "1.5",
                "--self-certainty",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    text = capsys.readouterr().out
    assert (
        "temperature 0.5" in text
        and "temperature 1.5" in text
        and "vote over all temperatures" in text
        and "self-certainty" in text
    )
    rows = read_samples(out)[1]
    assert len(rows) == 32 and all(r["certainty"] > 0 for r in rows)


def test_adaptive_sampling_stops_where_the_majority_is_settled(config: Path, tiny: Path, tmp_path: Path) -> None:
    """At temperature 0 all answers are equal: one round of 16 settles it, and 64 are never drawn."""
    out = tmp_path / "e"
    assert (
        main(
            [
                "eval",
                str(config),
                "--model",
                str(tiny),
                "-n",
                "64",
                "--adaptive",
                "--temperature",
                "0",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    assert len(read_samples(out)[1]) == 4 * 16
    assert main(["eval", str(config), "--model", str(tiny), "-n", "1", "--adaptive"]) == 2


def test_self_certainty_is_the_divergence_from_the_uniform(tiny: Path) -> None:
    engine = HFEngine(str(tiny))
    try:
        r = engine.generate(Prompt("p", (3, 4, 5), ""), 1, Sampling(max_tokens=6, seed=0))[0]
        with torch.no_grad():
            logp = load_lm(tiny)(torch.tensor([[3, 4, 5, *r.tokens]])).logits[0, 2:-1].log_softmax(-1)
        V = logp.shape[-1]
        want = (1 / V * (-torch.log(torch.tensor(float(V))) - logp)).sum(-1).mean()
        assert engine.self_certainty([r])[0] == pytest.approx(float(want), rel=1e-4)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-n", "0"], "at least 1"),
        (["data.test=null"], "data.test is not set"),
        (["data.test=gsm9k"], "Did you mean 'gsm8k'"),
        (["data.test=no.jsonl"], "no file 'no.jsonl'"),
    ],
)
def test_mistakes(config: Path, tiny: Path, arguments: list[str], says: str, capsys: Capture) -> None:
    assert (
        main(
            [
                "eval",
                str(config),
                *[a for a in arguments if "=" in a],
                "--model",
                str(tiny),
                *[a for a in arguments if "=" not in a],
            ]
        )
        == 2
    )
    assert says in capsys.readouterr().err


def test_an_audit_of_what_eval_wrote(tmp_path: Path, tiny: Path, small: dict[str, Any], capsys: Capture) -> None:
    rows = [{"id": str(i), "prompt": f"{i}12>", "answer": str(i)} for i in range(4)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    small |= {"data": {"train": str(tmp_path / "t.jsonl"), "test": str(tmp_path / "t.jsonl")}, "rewards": ["math"]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(small))
    assert main(["eval", str(tmp_path / "c.yaml"), "--model", str(tiny), "-n", "2", "--out", str(tmp_path / "e")]) == 0
    assert main(["audit-reward", str(tmp_path / "e" / "samples.jsonl"), "--against", "exact"]) == 0
    text = capsys.readouterr().out
    assert (
        "8 responses" in text
        and "math: 0 of 8 correct" in text
        and "disagree on" in text
        and "stored label: 8 of 8 agree" in text
    )
    assert main(["audit-reward", "nowhere.jsonl"]) == 2


def test_fit_reads_run_folders(small: dict[str, Any], tmp_path: Path, capsys: Capture) -> None:
    folder = rk.train(rk.load({**small, "steps": 5, "eval": {"every": 1, "prompts": 4}}), quiet=True)
    assert main(["fit", str(folder), "--out", str(tmp_path / "fit.png")]) == 0
    assert "C_mid" in capsys.readouterr().out and (tmp_path / "fit.png").stat().st_size > 5000
    assert main(["fit", str(tmp_path)]) == 2


def test_an_alarm_when_fewer_prompts_are_solved_than_by_the_start_model(small: dict[str, Any], capsys: Capture) -> None:
    """The reward stops rewarding: pass@2 falls from all prompts to none."""
    small |= {
        "rewards": ["tests/rewards/examples.py:fading"],
        "eval": {"prompts": 8, "n": 2},
        "steps": 1,
        "learner": {"lr": 1.0},
        "probe": {"every": 0},
    }
    small["data"]["test_size"] = 8
    folder = rk.train(rk.load(small))
    assert (
        "warning: pass@2 on held-out prompts is 0.000; the start model's was 1.000 (8 prompts are no longer solved"
        in capsys.readouterr().out
    )
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    assert (
        rows[0]["datasets"][""]["pass@2"] == 1
        and rows[1]["datasets"][""] == {"pass@1": 0.0, "pass@2": 0.0}
        and not any(rows[1]["solved"])
    )


def test_sampling_realigned_best_and_tilted(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    varied = str(Path("tests/rewards/examples.py").absolute()) + ":varied"
    base = ["sample", str(tiny), "--prompt", "31>", "-n", "40", "--max-tokens", "4"]
    assert main(base) == 0
    plain = capsys.readouterr().out
    assert len(plain.splitlines()) == 41
    assert main([*base, "--reference", str(tiny), "--realign", "2.0"]) == 0
    # A mixture with itself is itself.
    assert capsys.readouterr().out.splitlines()[1].split("(")[0] == plain.splitlines()[1].split("(")[0]
    assert main([*base, "--control", "{type: IDLE, pattern: '[0-9]'}"]) == 0
    assert not any(c.isdigit() for line in capsys.readouterr().out.splitlines()[1:] for c in line.split("  (")[0])
    assert main([*base, "--reward", varied, "--best"]) == 0
    best = capsys.readouterr().out.splitlines()
    assert "best of 40: KL to the model about" in best[1] and len(best) == 3 and "reward" in best[2]
    assert main([*base, "--reward", varied, "--tilt", "0.2"]) == 0
    kept = capsys.readouterr().out.splitlines()
    assert "of 40 kept; the optimum at this beta: reward" in kept[1] and 0 < len(kept) - 2 < 40
    for wrong, says in (
        (["--realign", "2"], "belong together"),
        (["--reference", str(tiny), "--realign", "2", "--control", "{type: IDLE, ids: [3]}"], "leave it out"),
        (["--control", "{type: CopT}", "--engine", "vllm"], "use engine: hf"),
        (["--best"], "give --reward"),
        (["--reward", "exact", "--tilt", "-1"], "must be positive"),
        (["--reward", "nothing"], "not a built-in reward"),
        (["--answer", "1", "--answer", "2"], "one answer for each prompt"),
    ):
        assert main([*base, *wrong]) == 2 and says in capsys.readouterr().err


def test_episodes_are_played_and_kept_with_what_was_said(
    config: Path, tiny: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Also the samples of a later call, which go on where the first stopped."""
    (tmp_path / "two.py").write_text(EPISODE)
    out, run = tmp_path / "e", yaml.safe_load(config.read_text())
    run |= {
        "rewards": [],
        "rollout": {"engine": "hf", "episode": {"fn": "two.py:two", "args": {"wanted": "1"}}, "max_model_len": 32},
    }
    config.write_text(yaml.safe_dump(run))
    base = ["eval", str(config), "--model", str(tiny), "--out", str(out)]
    assert (
        main([*base, "-n", "2"]) == 0
        and "8 responses to 4 prompts; correct is what 'two' says" in capsys.readouterr().out
    )
    before = read_samples(out)[1]
    assert main([*base, "-n", "3"]) == 0
    settings, rows = read_samples(out)
    assert rows[:8] == before and len(rows) == 12 and settings["episode"] == "two {'wanted': '1'}"
    for r in rows:
        first, second = (part.split("\n")[0] for part in r["transcript"].split("[model] ")[1:])
        assert r["turns"] == 2 and r["correct"] == r["reward"] == float("1" in first + second)
        assert r["response"] == second and 2 <= r["length"] <= 4, (
            "what the model wrote, without the token that was added"
        )
    text = (out / "transcripts.txt").read_text()
    assert text.count("=== ") == 12 and text.count("[added] >") == 12 and "=== q0, 0, temperature 1: reward " in text
    assert (
        main([*base, "rollout.episode.args.wanted=2"]) == 2 and "samples of another episode" in capsys.readouterr().err
    )
    assert (
        main([*base, "--self-certainty"]) == 2
        and "--self-certainty is about single responses" in capsys.readouterr().err
    )
    assert (
        main([*base, "rollout.max_model_len=null"]) == 2 and "rollout.max_model_len is not" in capsys.readouterr().err
    )


EPISODE = """
async def two(context, wanted):
    first = await context.generate(max_tokens=2)
    context.add(">")
    second = await context.generate(max_tokens=2)
    return float(wanted in first.text + second.text)
"""


def test_a_model_is_evaluated_under_a_control(tiny: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    run, out = rk.load(small), tmp_path / "evaluated"
    banned = rk.controls.IDLE(pattern="[0-9]")
    rk.evaluate(run, tiny, n=2, out=out, control=banned, say=lambda _: None)
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    texts = [row["response"] for row in rows if "response" in row]
    assert len(texts) == 8 and not any(c.isdigit() for text in texts for c in text)
    with pytest.raises(ConfigError, match="another control"):
        rk.evaluate(run, tiny, n=2, out=out, control="{type: IDLE, pattern: '[1-3]'}")
    with pytest.raises(ConfigError, match="look at the model itself"):
        rk.evaluate(run, tiny, control=banned, self_certainty=True)
    own = run.replace(rollout=dataclasses.replace(run.rollout, engine=rk.Controlled(engine="hf", control=banned)))
    with pytest.raises(ConfigError, match="knows no controls"):
        rk.evaluate(own, tiny, control=banned)
