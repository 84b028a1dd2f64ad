"""Trackers, by their own clients and without a network: what was told is what their files say."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest

from rlkit.errors import ConfigError
from rlkit.files import Appender
from rlkit.record.results import HeldOut
from rlkit.record.section import LogSection
from rlkit.record.trackers import Tracker, Trackers, scores, table

CONFIG = {"name": "r", "learner": {"lr": 1e-3}, "objective": [{"type": "PPOClip"}]}
ROWS = [
    {
        "step": 1,
        "prompt_id": "p",
        "question": "3|1>",
        "response": "13\n",
        "answer": "13",
        "reward": 1.0,
        "finish": "stop",
        "tokens": 3,
    }
]
SUMMARY = {"steps": 2, "eval_after": 0.75, "final": "x"}


def tell(trackers: Trackers, first_step: int = 0) -> None:
    """What a run of two steps tells, with an evaluation before the first."""
    trackers.start(CONFIG, first_step, lambda name: Appender(trackers.folder / name))
    if not first_step:
        trackers.metrics(0, scores(HeldOut(0, 0.25, datasets={"": {"pass@1": 0.25}, "aime": {"pass@2": 0.5}})))
    for step in range(first_step + 1, first_step + 3):
        trackers.metrics(step, {"reward/mean": step / 10, "kl/ref": math.nan, "gradient/cosine/A(ref)/B": 0.5})
        if step == first_step + 1:
            trackers.samples(step, "rollouts", ROWS)


def test_tensorboard_has_everything_at_its_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trackers = Trackers(LogSection(tensorboard=True), tmp_path, pytest.fail)
    tell(trackers)
    trackers.summary(SUMMARY)
    trackers.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("reward/mean")] == [
        (1, pytest.approx(0.1)),
        (2, pytest.approx(0.2)),
    ]
    assert [(e.step, e.value) for e in found.Scalars("eval/aime/pass@2")] == [(0, 0.5)]
    texts = {
        tag: [e.tensor_proto.string_val[0].decode() for e in found.Tensors(f"{tag}/text_summary")]
        for tag in ("config", "rollouts", "summary")
    }
    assert "| learner.lr | 0.001 |" in texts["config"][0] and "| eval_after | 0.75 |" in texts["summary"][0]
    assert r"| 3\|1> | 13<br> | 13 | 1.0 | stop | 3 |" in texts["rollouts"][0]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_offline(tmp_path: Path) -> None:
    settings = LogSection(tensorboard=False, wandb={"project": "p", "mode": "offline"})
    trackers = Trackers(settings, tmp_path, pytest.fail)
    tell(trackers)
    trackers.close()
    first = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    resumed = Trackers(settings, tmp_path, pytest.fail)
    tell(resumed, first_step=2)
    assert resumed.started["wandb"].id == first, "a resumed run goes on in the same run"
    resumed.metrics(3, {"reward/mean": 0.9})
    resumed.summary(SUMMARY)
    resumed.close()
    records = [
        record
        for file in sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
        for record in wandb_records(file)
    ]
    history = [row for kind, row in records if kind == "history"]
    assert [(r["step"], r["reward/mean"]) for r in history if "reward/mean" in r] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.3),
        (4, 0.4),
        (3, 0.9),
    ], "a step that is made again is not lost"
    assert [(r["step"], r["eval/score"]) for r in history if "eval/score" in r] == [(0, 0.25)]
    assert sum(any(key.startswith("samples/rollouts") for key in r) for r in history) == 2
    config = next(row for kind, row in records if kind == "run")
    assert config["learner"] == {"lr": 1e-3}
    assert any(row.get("summary/eval_after") == 0.75 for kind, row in records if kind == "summary")


def wandb_records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """What is in the file that wandb would upload: records of its protocol in LevelDB's log format, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2 as pb

    data, at, part, out = path.read_bytes(), 7, b"", list[tuple[str, dict[str, Any]]]()
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:  # no header fits into the rest of a block
            at += 2**15 - at % 2**15
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part, at = part + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = pb.Record.FromString(part)
            part, name = b"", record.WhichOneof("record_type")
            items = {
                "history": record.history.item,
                "summary": record.summary.update,
                "run": record.run.config.update,
            }.get(name, ())
            out.append((name, {(x.key or "/".join(x.nested_key)): json.loads(x.value_json) for x in items}))
    return out


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="MLflow is not installed")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where MLflow keeps artifacts of such a store
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    settings = LogSection(tensorboard=False, mlflow={"tracking_uri": uri, "experiment": "e", "tags": {"a": "b"}})
    trackers = Trackers(settings, tmp_path, pytest.fail)
    tell(trackers)
    trackers.close()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert found.info.status == "KILLED" and found.data.params["learner.lr"] == "0.001" and found.data.tags["a"] == "b"
    resumed = Trackers(settings, tmp_path, pytest.fail)
    tell(resumed, first_step=2)
    resumed.summary(SUMMARY)
    resumed.close()
    (found,) = client.search_runs([found.info.experiment_id])
    assert found.info.status == "FINISHED"
    points = [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "reward/mean")]
    assert points == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)] and found.data.metrics["gradient/cosine/A_ref_/B"] == 0.5
    assert [m.step for m in client.get_metric_history(found.info.run_id, "eval/score")] == [0]
    files = {x.path for x in client.list_artifacts(found.info.run_id)} | {
        x.path for x in client.list_artifacts(found.info.run_id, "samples")
    }
    assert files >= {"summary.json", "samples/rollouts-00000001.json", "samples/rollouts-00000003.json"}


def test_one_that_fails_is_said_once_and_the_others_go_on(tmp_path: Path) -> None:
    class Gone(Tracker):
        def metrics(self, step: int, values: Any) -> None:
            raise OSError("no route to host")

    class Kept(Tracker):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def metrics(self, step: int, values: Any) -> None:
            self.seen.append(step)

    said: list[str] = []
    trackers, kept = Trackers(LogSection(tensorboard=False), tmp_path, said.append), Kept()
    trackers.started = {"gone": Gone(), "kept": kept}
    for step in (1, 2):
        trackers.metrics(step, {"a": 1.0})
    assert kept.seen == [1, 2] and said == [
        "warning: gone cannot be told (no route to host). The run goes on, and its own files have everything."
    ]


def test_what_is_not_installed_is_refused_before_a_run_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("mlflow", "tensorboard") else find(name)
    )
    with pytest.raises(ConfigError, match=r"log.mlflow is set, but mlflow is not installed. .*rlkit-lm\[mlflow\]"):
        Trackers(LogSection(mlflow={}), tmp_path, print)
    assert Trackers(LogSection(), tmp_path, print).names == [], "TensorBoard is left out where it is not installed"


def test_a_table_is_one_line_a_row() -> None:
    assert table(("a", "b"), [["x|y\nz", None]]) == "| a | b |\n| --- | --- |\n| x\\|y<br>z | null |"
