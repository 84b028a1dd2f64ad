"""What a run tells trackers: TensorBoard, Weights & Biases, MLflow.

All get the configuration, every metric at its step, held-out scores at theirs, tables of responses, and the summary at the end. A resumed
run goes on in the tracker's own run, whose id is in the run folder (``trackers.json``). A tracker that fails, because its server is gone,
is said once and does not stop the run.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.distribution import NAME
from rlkit.errors import ConfigError, first_line
from rlkit.files import Appender, Row, replace_file
from rlkit.reading import located
from rlkit.record.results import HeldOut
from rlkit.record.section import LogSection

COLUMNS = ("step", "prompt_id", "question", "response", "answer", "reward", "finish", "tokens")
IDS = "trackers.json"
INSTALL = {
    "tensorboard": "tensorboard, or set log.tensorboard: false",
    "wandb": f"'{NAME}[wandb]', or set log.wandb: null",
    "mlflow": f"'{NAME}[mlflow]', or set log.mlflow: null",
}


@dataclass(frozen=True)
class Start:
    """What a tracker is started with. ``config`` has no secrets. ``id``: that of its run, which a resumed run continues."""

    folder: Path
    config: Mapping[str, Any]
    first_step: int
    id: str | None


class Tracker:
    """Base of the trackers, which hears of everything and does nothing. ``id`` is that of the run which it made or continues."""

    id: str | None = None

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Values of a step."""

    def samples(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """A table of responses: of a training step (``rollouts``) or an evaluation (``eval_samples``)."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """What the run says at its end."""

    def close(self, finished: bool) -> None:
        """``finished``: the run has come to its end."""


def scores(found: HeldOut) -> dict[str, float]:
    """Held-out scores by the names that trackers get: ``eval/score``, ``eval/SET/pass@k``, ``eval/margin/DPO`` and so on."""
    out = {"eval/score": math.nan if found.score is None else found.score}
    out |= {f"eval/{name}": value for name, value in found.measured.items()}
    for name, values in found.datasets.items():
        out |= {f"eval/{name}/{key}" if name else f"eval/{key}": value for key, value in values.items()}
    return out


class Tensorboard(Tracker):
    """Written like the other files of a run: at once, without a thread, or later where there is no room now."""

    def __init__(self, start: Start, file: Callable[[str], Appender]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        (start.folder / "tensorboard").mkdir(exist_ok=True)
        name = f"tensorboard/events.out.tfevents.{time.time():.6f}.{platform.node()}.{os.getpid()}"
        self.file = file(name)

        class Bytes:
            write = staticmethod(self.file.add)

        self._event, self._summary, self._records = Event, Summary, RecordWriter(Bytes)
        self._write(file_version="brain.Event:2")
        if start.first_step:  # values of later steps, which an earlier process wrote, are not shown
            self._write(step=start.first_step + 1, session_log=SessionLog(status=SessionLog.START))
        self._text("config", table(("key", "value"), flat(start.config).items()), start.first_step)

    def _write(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())

    def _text(self, tag: str, markdown: str, step: int) -> None:
        from torch.utils.tensorboard.summary import text

        self._write(step=step, summary=text(tag, markdown))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._write(step=step, summary=self._summary(value=[self._summary.Value(tag=tag, simple_value=value)]))

    def samples(self, step: int, name: str, rows: Sequence[Row]) -> None:
        self._text(name, table(COLUMNS, ([row.get(c) for c in COLUMNS] for row in rows)), step)

    def summary(self, values: Mapping[str, Any]) -> None:
        self._text("summary", table(("", "value"), values.items()), int(values["steps"]))


class Wandb(Tracker):
    """Values are at their step, and have it beside them (``step``): W&B's own steps cannot go back, those of a resumed run can."""

    def __init__(self, start: Start, options: Mapping[str, Any]) -> None:
        import wandb

        own: dict[str, Any] = {"dir": str(start.folder), "name": start.folder.name, "config": dict(start.config)}
        own |= {"resume": "allow"} | ({} if start.id is None else {"id": start.id})
        self._wandb, self._run = wandb, wandb.init(**own | dict(options))
        self.id = str(self._run.id)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, values)

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        if step >= self._run.step:
            self._run.log({**values, "step": step}, step=step)
        else:
            self._run.log({}, commit=True)  # ends the row that is open, or these values would go into it
            self._run.log({**values, "step": step}, commit=True)

    def samples(self, step: int, name: str, rows: Sequence[Row]) -> None:
        data = [[_cell(row.get(column)) for column in COLUMNS] for row in rows]
        self._log(step, {f"samples/{name}": self._wandb.Table(columns=list(COLUMNS), data=data)})

    def summary(self, values: Mapping[str, Any]) -> None:
        self._run.summary.update({f"summary/{key}": value for key, value in values.items()})

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class Mlflow(Tracker):
    """``log.mlflow: {tracking_uri, experiment, run_name, tags}``; without ``tracking_uri`` MLflow's own setting counts."""

    def __init__(self, start: Start, options: Mapping[str, Any]) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=options.get("tracking_uri"))
        name = options.get("experiment", "rlkit")
        if start.id is None:
            found = self._client.get_experiment_by_name(name)
            experiment = self._client.create_experiment(name) if found is None else found.experiment_id
            made = self._client.create_run(
                experiment, run_name=options.get("run_name", start.folder.name), tags=options.get("tags")
            )
            self.id = str(made.info.run_id)
            self._parameters(flat(start.config))
        else:
            self.id = start.id
            self._client.update_run(self.id, status="RUNNING")

    def _parameters(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        found = [Param(_name(key), _cell(value)[:500]) for key, value in values.items()]
        for k in range(0, len(found), 100):  # the most that a call may have
            self._client.log_batch(self.id, params=found[k : k + 100])

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        found = [Metric(_name(key), value, now, step) for key, value in values.items() if math.isfinite(value)]
        for k in range(0, len(found), 1000):
            self._client.log_batch(self.id, metrics=found[k : k + 1000])

    def samples(self, step: int, name: str, rows: Sequence[Row]) -> None:
        data = {"columns": list(COLUMNS), "data": [[_cell(row.get(column)) for column in COLUMNS] for row in rows]}
        self._client.log_dict(self.id, data, f"samples/{name}-{step:08d}.json")

    def summary(self, values: Mapping[str, Any]) -> None:
        self._client.log_dict(self.id, dict(values), "summary.json")

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


class Trackers:
    """All trackers of a run. ``say`` hears of one that fails."""

    def __init__(self, settings: LogSection, folder: Path, say: Callable[[str], object]) -> None:
        self.settings, self.folder, self._say = settings, folder, say
        here = importlib.util.find_spec("tensorboard") is not None
        wanted = {
            "tensorboard": here if settings.tensorboard is None else settings.tensorboard,
            "wandb": settings.wandb is not None,
            "mlflow": settings.mlflow is not None,
        }
        self.names = [name for name, is_wanted in wanted.items() if is_wanted]
        for name in self.names:
            if importlib.util.find_spec(name) is None:
                raise ConfigError(
                    f"log.{name} is set, but {name} is not installed. Install it with: pip install {INSTALL[name]}."
                )
        self.started: dict[str, Tracker] = {}
        self._failing, self._finished = set[str](), False

    def start(self, config: Mapping[str, Any], first_step: int, file: Callable[[str], Appender]) -> None:
        """Starts all of them; what cannot be started ends the run, before it has made a step."""
        path = self.folder / IDS
        ids: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        for name in self.names:
            start = Start(self.folder, config, first_step, ids.get(name))
            if name == "tensorboard":
                self.started[name] = Tensorboard(start, file)
            else:
                kind, options = (Wandb, self.settings.wandb) if name == "wandb" else (Mlflow, self.settings.mlflow)
                self.started[name] = kind(start, options or {})
        known = ids | {name: tracker.id for name, tracker in self.started.items() if tracker.id is not None}
        if known != ids:
            replace_file(path, json.dumps(known))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._tell(lambda tracker: tracker.metrics(step, values))

    def samples(self, step: int, name: str, rows: Sequence[Row]) -> None:
        if rows:
            self._tell(lambda tracker: tracker.samples(step, name, rows))

    def summary(self, values: Mapping[str, Any]) -> None:
        self._finished = True
        self._tell(lambda tracker: tracker.summary(values))

    def close(self) -> None:
        self._tell(lambda tracker: tracker.close(self._finished))

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for name, tracker in self.started.items():
            try:
                what(tracker)
            except Exception as error:  # of another library, about its server or its files: nothing that a run needs
                if name not in self._failing:
                    self._failing.add(name)
                    self._say(
                        f"warning: {name} cannot be told ({first_line(error)}). The run goes on, and its own files have everything."
                    )


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Values by their dotted keys."""
    return {path: leaf.value for path, leaf in located(dict(config)).leaves()}


def table(head: Sequence[str], rows: Any) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(_cell(x).replace('|', chr(92) + '|').replace(chr(10), '<br>') for x in line)} |"
        for line in lines
    )


def _cell(x: Any) -> str:
    return "null" if x is None else x if isinstance(x, str) else json.dumps(x, default=str)


def _name(text: str) -> str:
    """What MLflow allows in a name."""
    return re.sub(r"[^\w\-./ ]", "_", text)
