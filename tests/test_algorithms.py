"""Every algorithm of configs/algorithms: at most 25 lines, says what it is, and runs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import rlkit as rk
from rlkit.cli import main
from rlkit.data.tasks import Sorting
from rlkit.objective.oracle import dishonest, examine_all

pytestmark = pytest.mark.slow

CONFIGS = sorted(Path("configs/algorithms").glob("*.yaml"))


@pytest.fixture(scope="module")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a short ``rlkit train configs/algorithms/grpo.yaml`` leaves: ``start`` is warmed up, ``final`` trained."""
    out = tmp_path_factory.mktemp("teacher")
    rk.train(rk.load("configs/algorithms/grpo.yaml", [f"out={out}", "steps=3", "eval.prompts=4"]), quiet=True)
    return out / "grpo"


def filtering(grpo: Path) -> list[str]:
    """The command that asks the start model about prompts of the task; what it writes is said after it."""
    task = ["configs/tasks/sorting.yaml", "objective=[PPOClip]", "data.size=60"]
    return ["filter", *task, "--model", str(grpo / "start")]


@pytest.fixture(scope="module")
def base_rewards(tmp_path_factory: pytest.TempPathFactory, grpo: Path) -> Path:
    """Prompts with the rewards of the start model's responses."""
    out = tmp_path_factory.mktemp("rows") / "base_rewards.jsonl"
    assert main([*filtering(grpo), "-n", "8", "--rewards", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 60 and all(len(row["base_rewards"]) == 8 for row in rows)
    return out


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, grpo: Path) -> dict[str, Path]:
    """The model's own responses for the sections of ``data`` that hold rows."""
    folder = tmp_path_factory.mktemp("files")
    found = {key: folder / f"{key}.jsonl" for key in ("pairs", "labelled", "demonstrations")}
    written = [x for key, path in found.items() for x in (f"--{key}", str(path))]
    assert main([*filtering(grpo), "--out", str(folder / "kept.jsonl"), *written]) == 0
    return found


def wordings() -> Iterator[str]:
    """Eight questions in three wordings: the same digits in another order."""
    for i, row in enumerate(Sorting(levels=(1,)).rows("train", 8)):
        digits = row["prompt"].rstrip(">")
        for k in range(3):
            prompt = f"{digits[k:]}{digits[:k]}>"
            yield json.dumps({"id": f"{i}-{k}", "prompt": prompt, "answer": row["answer"], "question_id": i}) + "\n"


def test_every_algorithm_is_on_the_page_and_was_trained() -> None:
    """Its row of ``docs/algorithms.md`` says what it is; its row of the benchmark holds what it learned, and its curve."""
    rows = [
        line.split("|")[1] for line in Path("docs/algorithms.md").read_text().splitlines() if line.startswith("| `")
    ]
    named = set[str]()
    for name in (x for row in rows for x in re.findall(r"`([^`]+)`", row)):
        before, _, rest = name.partition("{")
        named |= {before + each for each in rest.rstrip("}").split(",")}
    assert named == {path.stem for path in CONFIGS}
    results = map(json.loads, Path("benchmarks/results/algorithms.jsonl").read_text().splitlines())
    assert {row["name"] for row in results if row.get("curve")} == named
    page, picture = Path("benchmarks/algorithms.md").read_text(), Path("docs/algorithms.svg").read_text()
    assert not [name for name in named if not re.search(rf"^\| {name} ", page, re.M)]
    assert not [name for name in named - {"erpd_teacher"} if f"<!-- {name} -->" not in picture]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_algorithm(path: Path, tmp_path: Path, grpo: Path, base_rewards: Path, files: dict[str, Path]) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 25 and lines[0].startswith("# ")
    overrides = [
        f"out={tmp_path}",
        "steps=2",
        "model.make=null",
        "model.warm_up=null",
        f"model.path={grpo / 'start'}",
        "eval.prompts=4",
        "rollout.max_waste=50",
    ]
    if path.stem == "delta_kd":
        overrides += [f"teacher.tuned.path={grpo / 'final'}", f"teacher.raw.path={grpo / 'start'}"]
    elif "teacher:" in path.read_text():
        overrides.append(f"teacher.path={grpo / 'final'}")
    if path.stem == "minillm":
        overrides.append(f"rollout.engine.control.other={grpo / 'final'}")
    run = rk.load(path, overrides)
    overrides += [f"data.{s.key}={{path: {files[s.key]}, test: {files[s.key]}, per_step: 8}}" for s in run.data.offline]
    run = rk.load(path, overrides)
    assert run.name == path.stem
    if path.stem == "salsa":
        run = rk.load(path, [*overrides, f"reference.paths=[{grpo / 'start'}, {grpo / 'final'}]"])
    if path.stem in ("infalign", "rlkf"):
        run = rk.load(path, [*overrides, f"data.train={base_rewards}", "data.test=null", "learner.minibatches=1"])
    if path.stem == "ps_grpo":
        (tmp_path / "wordings.jsonl").write_text("".join(wordings()))
        run = rk.load(path, [*overrides, f"data.train={tmp_path / 'wordings.jsonl'}"])
    if path.stem == "astar_po":
        stage_1 = tmp_path / "astar.jsonl"
        assert main([*filtering(grpo), "-n", "8", "--soft-value", "0.5", "--out", str(stage_1)]) == 0
        assert all(0 < json.loads(line)["v_star"] <= 1 for line in stage_1.read_text().splitlines())
        run = rk.load(
            path, [*overrides, f"data.train={stage_1}", "data.test=null", "rollout.prompts=16", "learner.minibatches=1"]
        )
    if run.data.stored is not None:
        stored = tmp_path / "stored.jsonl"
        assert (
            main(
                [
                    "filter",
                    str(path),
                    *overrides,
                    "data.size=40",
                    "data.stored=null",
                    "objective=[PPOClip]",
                    "--model",
                    str(grpo / "start"),
                    "-n",
                    "8",
                    "--out",
                    str(tmp_path / "kept.jsonl"),
                    "--responses",
                    str(stored),
                ]
            )
            == 0
        )
        run = rk.load(
            path, [*overrides, f"data.stored.path={stored}", "data.stored.per_step=5", "learner.minibatches=2"]
        )
    if path.stem == "erpd_teacher":  # as published one big batch and many updates
        run = rk.load(path, [*overrides, "rollout.prompts=8", "learner.minibatches=2", "learner.epochs=2"])
    assert not dishonest(examine_all(run.objective, run.reward_penalties), run.off_policy)
    rows = [json.loads(line) for line in (rk.train(run, quiet=True) / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(math.isfinite(r["loss/total"]) for r in rows) and rows[0]["learner/grad_norm"] > 0


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (
            "opd",
            "teacher.path=no/such/model",
            r"teacher.path: 'no/such/model' is no folder.*rlkit train configs/algorithms/grpo.yaml",
        ),
        ("opd", "teacher=null", "compares with anchor 'teacher', but teacher is null"),
        (
            "astar_po",
            "data={task: {type: Sorting}, size: 40, test_size: 4}",
            r"AStar reads the column 'v_star'.*rlkit filter CONFIG --model MODEL --soft-value",
        ),
        ("dph_rl", "data.stored.path=no/rows.jsonl", r"there is no file 'no/rows.jsonl'. Make it with: rlkit filter"),
        ("dph_rl", "data.stored=null", r"data.stored is not set. Make them with: rlkit filter"),
        ("ppo", "objective=[PPOClip]", "nothing trains it: add {type: ValueMSE"),
        ("grpo", "critic={}", "critic is set, but nothing needs values"),
        ("ppo_critic", "critic.path=no/critic", "critic.path: 'no/critic' is no folder"),
        (
            "decoupled_kl",
            "teacher={type: Served, url: 'http://127.0.0.1:9'}",
            "compares all tokens, but teacher .type: Served. gives the log-probs of its most likely tokens",
        ),
        ("grpo", "learner.minibatches=17", "a step has only 16 prompt groups"),
        (
            "grpo_care",
            "advantage.correct=format",
            "the reward 'format' is read on its own, but the rewards are correct. Name one",
        ),
        ("scalerl", "rollout.interrupt.high=9", "leave no room for an answer"),
    ],
)
def test_what_a_method_lacks_is_said_before_it_starts(name: str, change: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        rk.train(rk.load(f"configs/algorithms/{name}.yaml", [f"out={tmp_path}", change]), quiet=True)
    assert not list(tmp_path.iterdir())  # nothing was started
