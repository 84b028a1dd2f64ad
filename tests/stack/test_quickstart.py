"""The README's main job, shortened, on the whole stack: Ray, vLLM, DeepSpeed; and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import rlkit as rk
from rlkit.cluster.ray import check_resources
from rlkit.run import Cluster

RLKIT = [sys.executable, "-m", "rlkit"]
SHORT = [
    "steps=45",
    "data.task.levels=[1]",
    "data.size=600",
    "model.warm_up.steps=150",
    "eval.prompts=100",
    "checkpoint.every=15",
    "cluster.cpus=0.5",
]


def rlkit(*arguments: str, timeout: float = 250) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RLKIT, *arguments], capture_output=True, text=True, timeout=timeout)


def test_the_quickstart_learns_continues_and_leaves_a_model(tmp_path: Path) -> None:
    done = rlkit("train", "configs/quickstart.yaml", f"out={tmp_path}", *SHORT)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Starting on Ray: \d+ vllm engine\(s\).* \.\.\.\n(.*\n)*?  ready in \d+ s\n", done.stdout), (
        done.stdout
    )
    noise = [line for line in (done.stdout + done.stderr).splitlines() if re.search(r"vllm|\bINFO\b|it/s\]", line)]
    assert [line for line in noise if "Starting" not in line] == []
    folder = tmp_path / "quickstart"
    score = json.loads((folder / "summary.json").read_text())
    assert score["eval_before"] < 0.5 and score["eval_after"] > score["eval_before"] + 0.3, done.stdout
    assert f"next         python -m rlkit sample {folder / 'final'}" in done.stdout
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 45 and max(r["mismatch/max"] for r in rows) < 1e-4
    assert list((folder / "tensorboard").iterdir()) and len(list((folder / "checkpoints").iterdir())) == 2

    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompt = json.loads((folder / "rollouts.jsonl").read_text().splitlines()[0])["prompt"]
    lm, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder / "final"),
        AutoTokenizer.from_pretrained(folder / "final"),
    )
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    text = tokenizer.decode(
        lm.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :], skip_special_tokens=True
    )
    shown = rlkit(
        "sample",
        str(folder),
        "--prompt",
        prompt,
        "--engine",
        "vllm",
        "--temperature",
        "0",
        "-n",
        "1",
        "--max-tokens",
        "8",
    )
    assert f"'{text}'" in shown.stdout, (text, shown.stdout, shown.stderr)

    more = rlkit("train", "configs/quickstart.yaml", f"out={tmp_path}", *SHORT, "steps=46", "--resume")
    assert more.returncode == 0 and "from step 45" in more.stdout, more.stderr
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 46 and not (tmp_path / "quickstart-2").exists()


@pytest.mark.parametrize(
    ("cluster", "told"),
    [(Cluster(engines=9), "CPUs"), (Cluster(gpus=1.0), "GPUs"), (Cluster(tensor_parallel=4, gpus=1.0), "GPUs")],
)
def test_more_workers_than_resources_are_refused(cluster: Cluster, told: str) -> None:
    with pytest.raises(ValueError, match=f"need .* {told}, but the cluster has"):
        check_resources(cluster, {"CPU": 4.0, "GPU": 1.0})


def test_a_cluster_that_does_not_answer_is_named(small: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**small, "rewards": [], "cluster": {"address": "127.0.0.1:1"}}))
    done = rlkit("train", str(tmp_path / "c.yaml"))
    assert done.returncode == 2 and "cluster.address: no Ray cluster answers at '127.0.0.1:1'" in done.stderr, (
        done.stderr
    )
    assert not (tmp_path / "runs").exists()


def test_a_worker_that_dies_is_reported_with_the_way_to_continue(
    small: dict[str, Any], tmp_path: Path, ray_session: None
) -> None:
    (tmp_path / "fatal.py").write_text(
        "import os\nfrom dataclasses import dataclass\nfrom rlkit import Term\n\n@dataclass(frozen=True)\nclass Fatal(Term):\n"
        f"    def __call__(self, new, b):\n        if os.getpid() != {os.getpid()}:        # on a learner, not where the objective is examined\n"
        "            os._exit(1)\n        return -new.logp\n"
    )
    run = rk.load(
        {
            **small,
            "rewards": [],
            "objective": [{"type": f"{tmp_path}/fatal.py:Fatal", "acknowledge": True}],
            "cluster": {"cpus": 0.3, "restarts": 0},
        }
    )
    with pytest.raises(RuntimeError, match=r"learner 0 died.*--resume"):
        rk.train(run, quiet=True)
