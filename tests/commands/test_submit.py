"""What is sent to a cluster, and what is refused before that. A cluster itself is in tests/stack/test_clusters.py."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import rlkit as rk
from rlkit.cluster.jobs import Job
from rlkit.commands import submit as command


class Cluster:
    """Remembers what it was sent; its jobs are over at once."""

    sent: tuple[str, str, set[str], Mapping[str, str]]

    def __init__(self, address: str) -> None:
        import ray

        self.address, self.version = address, ray.__version__

    def send(self, id: str, line: str, files: Path, variables: Mapping[str, str]) -> None:
        Cluster.sent = id, line, set(zipfile.ZipFile(files).namelist()), variables

    def follow(self, id: str, say: object) -> Job:
        return Job(id, "SUCCEEDED", "", "")


@pytest.fixture
def project(small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration, its reward and its rows, which git ignores."""
    (folder := tmp_path / "project").mkdir()
    (folder / "mine.py").write_text("def right(response, answer):\n    return float(response == answer)\n")
    (folder / "rows.jsonl").write_text('{"prompt": "1", "answer": "2"}\n')
    (folder / ".gitignore").write_text("*.jsonl\n")
    run = {**small, "out": "runs", "name": "my run", "data": {"train": "rows.jsonl"}, "rewards": ["mine.py:right"]}
    (folder / "c.yaml").write_text(yaml.safe_dump(run))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(command, "Jobs", Cluster)
    return folder


def test_what_is_sent(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setenv("HF_TOKEN", "hidden")
    settings = ["steps=7", "log.wandb={api_key: s3cr3t}"]
    job = rk.submit("c.yaml", settings, address="http://x", resume=True, env=["HF_TOKEN", "A=b=c"], say=heard.append)
    id, line, files, variables = Cluster.sent
    assert id == job and job.startswith("my-run-")
    assert line == (
        "rlkit train c.yaml steps=7 'log.wandb={api_key: s3cr3t}' cluster.address=auto --resume out=\"$HOME\"/runs"
    )
    assert {"c.yaml", "mine.py", "rows.jsonl"} <= files and variables == {"HF_TOKEN": "hidden", "A": "b=c"}
    said = "\n".join(heard)
    assert "s3cr3t" not in said and "hidden" not in said and "steps=7" in said
    assert f"note: model.path: {yaml.safe_load((project / 'c.yaml').read_text())['model']['path']} is not below" in said


def test_an_absolute_folder_is_taken_as_it_is(project: Path) -> None:
    rk.submit("c.yaml", ["out=/shared/runs", "cluster.address=10.0.0.1:6379"], address="http://x", wait=False)
    assert Cluster.sent[1] == "rlkit train c.yaml out=/shared/runs cluster.address=10.0.0.1:6379"


def test_what_leads_out_of_the_folder_is_refused_by_its_key(project: Path) -> None:
    (project.parent / "far.jsonl").write_text('{"prompt": "1"}\n')
    with pytest.raises(
        rk.ClusterError, match=r"data.train: .*far.jsonl is not below the current folder .* absolute path"
    ):
        rk.submit("c.yaml", ["data.train=../far.jsonl"], address="http://x")
    (project.parent / "base.yaml").write_text(
        (project / "c.yaml").read_text().replace("rows.jsonl", "project/rows.jsonl")
    )
    (project / "d.yaml").write_text("extends: ../base.yaml\n")
    with pytest.raises(rk.ClusterError, match=r"d.yaml extends a file in .* which is not below the current folder"):
        rk.submit("d.yaml", ["rewards=[mine.py:right]"], address="http://x")


def test_variables_that_are_none(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_HERE", raising=False)
    with pytest.raises(rk.ConfigError, match="--env NOT_HERE: there is no such variable here"):
        rk.submit("c.yaml", address="http://x", env=["NOT_HERE"])
    with pytest.raises(rk.ConfigError, match="--env takes NAME or NAME=VALUE") as refused:
        rk.submit("c.yaml", address="http://x", env=["not a name=s3cr3t"])
    assert "s3cr3t" not in str(refused.value)
