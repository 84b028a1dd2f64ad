"""Clusters of this machine: one of Slurm's script, whose second node does not see the run folder; and one that runs are sent to."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import rlkit as rk
from rlkit.record.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent
URL = "http://127.0.0.1:8299"
# As many tasks as there are nodes, all of them here; one that joins the head has nothing in the folder of runs.
SRUN = """#!/bin/bash
n=1
while [[ $1 == --* ]]; do [[ $1 == --nodes=* ]] && n=${1#*=}; shift; done
[[ $* == *--address* && -n $HIDE ]] && set -- unshare -m sh -c 'mount -t tmpfs none "$0" && exec "$@"' "$HIDE" "$@"
trap 'kill $(jobs -p)' TERM
for ((i = 0; i < n; i++)); do "$@" & done
wait
"""
# The run, and then its continuation, in one process; in the end it is as if the time limit had come.
TWICE = """#!{python}
import sys
from rlkit.cli import main

assert main([*sys.argv[1:], "steps=2"]) == 0 and main([*sys.argv[1:], "--resume"]) == 0
sys.exit(3)
"""


def curve(folder: Path) -> list[list[float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [[r[k] for k in ("step", "reward/mean", "entropy/sampled", "batch/sequences")] for r in rows]


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_two_nodes_of_slurm_of_which_one_does_not_see_the_run_folder(small: dict[str, Any], tmp_path: Path) -> None:
    """Engine and learner on different nodes, a model that the run makes, checkpoints: the curve is that of one process."""
    (out := tmp_path / "out").mkdir()
    hide = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", out], capture_output=True).returncode == 0
    made = {"make": {"hidden": 64, "layers": 2, "heads": 2, "kv_heads": 1}}
    small |= {"model": made, "rewards": [], "checkpoint": {"every": 1}, "out": str(out)}
    whole = curve(rk.train(rk.load({**small, "name": "whole"}), quiet=True))
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump({**small, "name": "nodes", "cluster": {"cpus": 0.9, "timeout": 100.0}})
    )

    (stubs := tmp_path / "bin").mkdir()
    script(stubs / "srun", SRUN)
    script(
        stubs / "scontrol", f'#!/bin/bash\n[ "$1" = show ] && echo one && echo two || echo "$@" >>{tmp_path}/asked\n'
    )
    script(stubs / "hostname", "#!/bin/bash\necho 127.0.0.1\n")
    script(stubs / "rlkit", TWICE.format(python=sys.executable))
    script(stubs / "python", f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    script(stubs / "ray", f'#!/bin/bash\nexec {BIN}/ray "$@"\n')
    slurm = {"JOB_ID": "6398", "JOB_NODELIST": "one,two", "JOB_NUM_NODES": "2", "CPUS_ON_NODE": "1"}
    env = {**os.environ, **{f"SLURM_{k}": v for k, v in slurm.items()}, "RLKIT_ENV": str(tmp_path)}
    done = subprocess.run(
        ["bash", str(ROOT / "examples/cluster/slurm.sh"), "c.yaml"],
        cwd=tmp_path,
        env={**env, "HIDE": str(out) if hide else "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert (tmp_path / "asked").read_text() == "requeue 6398\n" and not list(tmp_path.glob(".ray-token*"))
    assert "asks nobody for a token" not in done.stdout
    times = 2 if hide else 0
    assert done.stdout.count(f"the machine of learner 0 does not see {out}/nodes: checkpoints travel") == times, (
        done.stdout
    )
    assert done.stdout.count(f"1 machine(s) of the cluster do not have {out}/nodes/start: it travels") == times
    folder = out / "nodes"
    found = curve(folder)
    assert max(abs(a - b) for x, y in zip(whole, found, strict=True) for a, b in zip(x, y, strict=True)) < 1e-4
    path, damaged = Checkpoints(folder / "checkpoints", 0).newest_whole()
    assert path is not None and path.name == "step_00000003" and not damaged and (path / "learner.pt").exists()
    assert rk.RunFolder(folder).model().config.hidden_size == 64


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Path]:
    """A Ray with a dashboard; the home folder of whoever started it."""
    (home := tmp_path / "home").mkdir()
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled", "HOME": str(home)}
    flags = ["--port=6399", "--dashboard-port=8299", "--dashboard-agent-listen-port=52399", "--num-cpus=2"]
    ray = subprocess.Popen(
        [str(BIN / "ray"), "start", "--head", *flags, "--include-dashboard=true", "--disable-usage-stats", "--block"],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(60):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{URL}/api/version"):
                break
            time.sleep(1)
        yield home
    finally:
        ray.terminate()
        ray.wait(60)


def test_a_run_that_was_sent_is_followed_watched_stopped_and_fetched(
    small: dict[str, Any],
    tmp_path: Path,
    head: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (project := tmp_path / "project").mkdir()
    (project / "mine.py").write_text("import os\n\ndef proof(response):\n    return float(os.environ['HF_TOKEN'])\n")
    small |= {
        "rewards": ["mine.py:proof"],
        "cluster": {"cpus": 0.3},
        "steps": 100000,
        "out": "runs",
        "eval": {"prompts": 0},
    }
    (project / "c.yaml").write_text(yaml.safe_dump({**small, "checkpoint": {"every": 0}}))
    monkeypatch.chdir(project)
    with (log := tmp_path / "log").open("w") as out:
        following = subprocess.Popen(
            [sys.executable, str(ROOT / "examples/ray_job.py"), URL, "c.yaml", "name=sent"],
            env={**os.environ, "HF_TOKEN": "0.25"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        while not (found := re.search(r"^job (sent-\w+): (.*)\n", log.read_text(), re.MULTILINE)):
            assert following.poll() is None, log.read_text()
            time.sleep(0.5)
        job = found[1]
        assert found[2] == 'rlkit train c.yaml name=sent cluster.address=auto out="$HOME"/runs'
        for text in rk.watch(job, 1.0, address=URL):
            if "reward" in text and "step 0 of" not in text:
                break
        assert "sent   step " in text and "0.25" in text and f"job {job}: running" in text
        assert [x.status for x in rk.jobs(URL)] == ["RUNNING"]
        assert rk.stop_job(job, address=URL).status == "STOPPED"
        assert following.wait(60) == 0
    finally:
        following.kill()
    said = log.read_text()
    assert said.count("asks nobody for a token") == 1 and "`--resume` continues from step" in said, said
    assert f"job {job} was stopped; the same command with --resume continues its run." in said
    folder = rk.fetch_job(job, tmp_path / "back", address=URL, checkpoints=True)
    assert folder == tmp_path / "back" / "sent" and rk.fetch_job(job, tmp_path / "back", address=URL).name == "sent-2"
    there = head / "runs" / "sent"
    assert (folder / "metrics.jsonl").read_bytes() == (there / "metrics.jsonl").read_bytes()
    assert not (tmp_path / "back" / "sent-2" / "checkpoints").exists()
    steps = len(rk.RunFolder(folder).metrics())
    path, damaged = Checkpoints(folder / "checkpoints", 0).newest_whole()
    assert path is not None and path.name == f"step_{steps:08d}" and not damaged, "it was written before the job ended"
    with pytest.raises(rk.ClusterError, match=r"there is no job 'nobody' at .*`rlkit jobs --address"):
        rk.stop_job("nobody", address=URL)
