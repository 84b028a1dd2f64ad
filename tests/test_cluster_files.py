"""The files of examples/cluster, as far as they can be tried without a cluster; Slurm's script is run in tests/stack/test_clusters.py."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import rlkit as rk
from rlkit import cli

FILES = Path(__file__).resolve().parent.parent / "examples" / "cluster"


@pytest.mark.parametrize("file", sorted(FILES.glob("*")), ids=lambda p: p.name)
def test_commands_in_their_first_lines_are_understood(file: Path) -> None:
    """Those of rlkit; `sbatch SCRIPT` takes what `rlkit train` takes."""
    text = file.read_text()
    lines = [m[1].strip(" &") for m in re.finditer(r"^#     (.+)$", text, re.MULTILINE)]
    lines = [re.sub(r"^sbatch .*slurm\.sh", "rlkit train", line) for line in lines]
    calls = [cli.parse(shlex.split(line)[1:]) for line in lines if line.startswith("rlkit ")]
    assert calls, lines
    for call in calls:
        run = rk.load(call.config, call.overrides)
        assert run.cluster is not None and run.cluster.engines == run.cluster.learners > 1


def test_every_shell_script_is_one() -> None:
    for script in FILES.glob("*.sh"):
        assert os.access(script, os.X_OK) and "set -euo pipefail" in script.read_text()
        subprocess.run(["bash", "-n", str(script)], check=True)
        if shutil.which("shellcheck"):
            subprocess.run(["shellcheck", str(script)], check=True)


def test_ssh_starts_ray_everywhere_with_a_token_that_others_cannot_read(tmp_path: Path) -> None:
    """`ssh HOST COMMAND` runs the command here, in a home folder of that host; `ray` notes how it was called."""
    (bin := tmp_path / "env" / "bin").mkdir(parents=True)
    (bin / "ray").write_text('#!/bin/bash\necho "$HOME $RAY_AUTH_MODE $(cat "$RAY_AUTH_TOKEN_PATH") $*" >>"$NOTES"\n')
    (bin / "ssh").write_text('#!/bin/bash\nexport HOME="$ROOM/$1"\nmkdir -p "$HOME" && cd "$HOME" && bash -c "$2"\n')
    for file in bin.iterdir():
        file.chmod(0o755)
    (home := tmp_path / "home").mkdir()
    names = {"RLKIT_ENV": str(tmp_path / "env"), "RLKIT_ADDRESS": "10.0.0.1", "HOME": str(home), "ROOM": str(tmp_path)}
    env = {**os.environ, **names, "NOTES": str(tmp_path / "notes"), "PATH": f"{bin}:{os.environ['PATH']}"}
    done = subprocess.run([FILES / "ssh.sh", "start", "a", "b"], env=env, capture_output=True, text=True, check=True)
    token = home / ".rlkit" / "ray-token"
    assert done.stdout.strip() == f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token}"
    assert re.fullmatch("[0-9a-f]{64}", token.read_text())
    for place in (home, tmp_path / "a", tmp_path / "b"):
        assert (place / ".rlkit" / "ray-token").stat().st_mode & 0o777 == 0o600
    head, *others = (tmp_path / "notes").read_text().splitlines()
    assert head.startswith(f"{home} token {token.read_text()} start --head --node-ip-address=10.0.0.1 --port=6379")
    joins = f"token {token.read_text()} start --address=10.0.0.1:6379"
    assert others == [f"{tmp_path}/a {joins}", f"{tmp_path}/b {joins}"]
    subprocess.run([FILES / "ssh.sh", "stop", "a", "b"], env=env, capture_output=True, check=True)
    assert not list(tmp_path.glob("*/.rlkit/ray-token"))
    assert [line.split()[-1] for line in (tmp_path / "notes").read_text().splitlines()[3:]] == ["stop"] * 3


def test_kuberays_pods_have_what_they_name() -> None:
    text = (FILES / "kuberay.yaml").read_text()
    claim, cluster = yaml.safe_load_all(text)
    spec: dict[str, Any] = cluster["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    for pod in pods:
        volumes = {v["name"]: v for v in pod["volumes"]}
        (container,) = pod["containers"]
        assert {m["name"] for m in container["volumeMounts"]} == set(volumes)
        assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert {m["mountPath"] for m in container["volumeMounts"] if m["name"] == "runs"} == {"/runs"}
    assert len({pod["containers"][0]["image"] for pod in pods}) == 1 and spec["authOptions"] == {"mode": "token"}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"] and "out=/runs" in text
    assert all(isinstance(value, str) for group in groups for value in group["rayStartParams"].values())
    gpus = sum(
        g["replicas"] * int(g["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        for g in groups[1:]
    )
    (line,) = re.findall(r"rlkit (submit .*)", text)
    call = cli.parse(shlex.split(line))
    run = rk.load(call.config, call.overrides)
    assert run.cluster is not None and run.cluster.engines + run.cluster.learners == gpus
