"""Runs that end early and continue: signals, limits, full disks, damage, other settings, early stopping."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import rlkit as rk
from rlkit import finish, heldout, trainer
from rlkit.cli import main
from rlkit.errors import CheckpointError, RunError
from rlkit.files import read_rows
from rlkit.record.checkpoint import Checkpoints
from rlkit.record.log import lock_folder
from rlkit.record.results import HeldOut
from rlkit.resume import Found, compare, difference, is_free
from rlkit.session import write_down
from rlkit.stopping import TIME_LIMIT, Best, Stopped
from tests.conftest import settings_of_small
from tests.record.test_checkpoint import Payload, flip
from tests.test_files import largest_file

pytestmark = pytest.mark.slow

Hook = Callable[[Any, int], None]


@contextlib.contextmanager
def around(name: str, hook: Hook, before: bool = False, module: Any = trainer) -> Iterator[None]:
    """Calls ``hook(session, step)`` after, or before, a function that the trainer (or another ``module``) calls."""
    original = getattr(module, name)

    def both(s: Any, *rest: Any) -> Any:
        if before:
            hook(s, rest[0])
        out = original(s, *rest)
        if not before:
            hook(s, rest[0])
        return out

    setattr(module, name, both)
    try:
        yield
    finally:
        setattr(module, name, original)


def at(step: int, do: Callable[[], Any]) -> Hook:
    return lambda p, now: do() if now == step else None


def die() -> None:
    raise InterruptedError("what a SIGKILL would do: nothing is written after it")


def steps(folder: Path, name: str = "metrics.jsonl") -> list[int]:
    return [r["step"] for r in read_rows(folder / name)]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def result(folder: Path) -> tuple[list[Any], list[dict[str, Any]], dict[str, torch.Tensor]]:
    shown = [(r["step"], r["prompt_id"], r["response"]) for r in read_rows(folder / "rollouts.jsonl")]
    kinds = ("loss/", "reward/", "kl/", "learner/lr", "eval/")
    rows = [{k: v for k, v in r.items() if k.startswith(kinds)} for r in read_rows(folder / "metrics.jsonl")]
    return shown, rows, load_file(folder / "final" / "model.safetensors")


def assert_same(a: Path, b: Path) -> None:
    """Two runs with the same responses, numbers and weights, but for rounding: this engine's batches depend on who asks at the same time."""
    (shown, rows, weights), (shown_b, rows_b, weights_b) = result(a), result(b)
    assert shown == shown_b and len(rows) == len(rows_b)
    for x, y in zip(rows, rows_b, strict=True):
        assert x == pytest.approx(y, abs=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(value, weights_b[name], rtol=1e-5, atol=1e-6)


@pytest.fixture
def plain(small: dict[str, Any]) -> dict[str, Any]:
    return {**small, "eval": {"prompts": 0}, "probe": {"every": 0}, "steps": 6}


@pytest.fixture(scope="module")
def died(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A run with checkpoints of steps 2 and 4 that died in step 5, with half a row written; and its settings."""
    out = tmp_path_factory.mktemp("died")
    settings = {**settings_of_small(out, tiny), "eval": {"prompts": 0}, "probe": {"every": 0}, "steps": 6}
    run = rk.load({**settings, "checkpoint": {"every": 2, "minutes": None}})
    with around("save_when_due", at(5, die)), pytest.raises(InterruptedError):
        rk.train(run, quiet=True)
    folder = Path(run.out) / run.name
    with (folder / "metrics.jsonl").open("a") as f:
        f.write('{"step": 6, "rew')
    assert steps(folder) == [1, 2, 3, 4, 5]
    return settings, folder


@pytest.fixture
def killed(died: tuple[dict[str, Any], Path], tmp_path: Path) -> tuple[rk.Run, Path]:
    """A copy of that run."""
    settings, folder = died
    shutil.copytree(folder, tmp_path / "runs" / "small")
    return rk.load(
        {**settings, "out": str(tmp_path / "runs"), "checkpoint": {"every": 2, "minutes": None}}
    ), tmp_path / "runs" / "small"


def test_damage_is_said_the_older_checkpoint_used_and_the_result_exact(
    killed: tuple[rk.Run, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = killed
    flip(folder / "checkpoints" / "step_00000004" / "learner.pt", 5000)
    rk.train(run, resume=True)
    out = capsys.readouterr().out
    assert "learner.pt does not have the bytes that were written" in out and "kept as damaged_00000004" in out
    assert ", from step 2" in out and (folder / "checkpoints" / "damaged_00000004").is_dir()
    whole = rk.train(run.replace(name="whole"), quiet=True)
    assert_same(folder, whole)
    assert steps(folder) == [1, 2, 3, 4, 5, 6]
    assert steps(folder / "repeated") == [3, 4, 5] and (folder / "repeated" / "metrics.jsonl").read_bytes().endswith(
        b'"rew\n'
    )
    assert {3, 4, 5} == set(steps(folder / "repeated", "rollouts.jsonl"))
    assert [json.loads(x).get("from_step") for x in (folder / "environment.jsonl").read_text().splitlines()] == [
        None,
        2,
    ]


def with_payload(folder: Path) -> None:
    """A checkpoint that runs something when it is unpickled, with a manifest that fits."""

    def write(tmp: str) -> None:
        for p in newest.glob("[!m]*"):
            (Path(tmp) / p.name).write_bytes(p.read_bytes())
        (Path(tmp) / "learner.pt").write_bytes(pickle.dumps(Payload(folder / "ran")))

    checkpoints = Checkpoints(folder / "checkpoints", 2)
    newest = checkpoints.path(4)
    checkpoints.save(4, json.loads((newest / "driver.json").read_text()), write)


def names_code(folder: Path, short: bool = False) -> None:
    """A configuration that would import a file of the folder when it is read; ``short``: a text stands for ``{type: text}``."""
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    name = f"{folder / 'evil.py'}:Evil"
    config["advantage"] = name if short else {"type": name}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def names_code_shortly(folder: Path) -> None:
    names_code(folder, short=True)


def damage_both(folder: Path) -> None:
    for path in (folder / "checkpoints").glob("step_*/driver.json"):
        path.write_bytes(b"\0" * 10)


@pytest.mark.parametrize(
    ("damage", "change", "told"),
    [
        (damage_both, {}, "no checkpoint in .* is whole"),
        (with_payload, {}, "holds more than tensors and numbers"),
        (names_code, {}, r"advantage\.type was '.*Evil' and is now 'GroupNorm'"),
        (names_code_shortly, {}, r"advantage was '.*Evil' and is now not set"),
        (
            lambda f: (f / "config.yaml").write_text("a: ["),
            {},
            r"config\.yaml, with which the run was started, cannot be read",
        ),
        (lambda f: None, {"seed": 5}, "seed was 0 and is now 5"),
        (lambda f: None, {"objective": [{"type": "CISPO"}]}, r"objective\.0\.type was 'PPOClip' and is now 'CISPO'"),
        (lambda f: None, {"peft": {"r": 4}}, r"peft\.r was not set and is now 4"),
        (
            lambda f: None,
            {"deepspeed": {"zero_optimization": {"stage": 1}}},
            r"deepspeed\.zero_optimization\.stage was not set",
        ),
        (lambda f: None, {"rollout": {"engine": "hf", "prompts": 4, "n": 5}}, r"rollout\.n was 4 and is now 5"),
        (
            lambda f: None,
            {"data": {"task": {"type": "Sorting", "levels": [2]}, "size": 40}},
            r"data\.task\.levels\.0 was 1 and is now 2",
        ),
    ],
    ids=lambda x: str(x)[:50],
)
def test_a_resume_that_cannot_load_changes_nothing(
    killed: tuple[rk.Run, Path],
    plain: dict[str, Any],
    damage: Callable[[Path], None],
    change: dict[str, Any],
    told: str,
) -> None:
    _, folder = killed
    damage(folder)
    before = tree(folder)
    with pytest.raises(CheckpointError, match=told) as error:
        rk.train(rk.load({**plain, "checkpoint": {"every": 2}, **change}), resume=True, quiet=True)
    assert tree(folder) == before and "weights_only" not in str(error.value) and not (folder / "ran").exists()


def test_changed_settings_take_effect_and_are_recorded(
    killed: tuple[rk.Run, Path], plain: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = killed
    later = rk.load(
        {
            **plain,
            "steps": 7,
            "learner": {"lr": 5e-4, "schedule": "linear", "final_lr": 0.5},
            "log": {"tensorboard": True, "rollouts": 1},
        }
    )
    rk.train(later, resume=True)
    rows = {r["step"]: r for r in read_rows(folder / "metrics.jsonl")}
    assert rows[4]["learner/lr"] == 1e-3 and rows[7]["learner/lr"] == pytest.approx(5e-4 * 0.5)
    assert [r["learner/lr"] for k, r in rows.items() if k > 4] == pytest.approx(
        [5e-4 * (1 - 0.5 * k / 7) for k in (5, 6, 7)]
    )
    assert "note: learner.lr was 0.001 and is 0.0005 from here on." in capsys.readouterr().out
    assert rk.load(folder / "config.yaml").learner == later.learner and steps(folder, "rollouts.jsonl").count(7) == 1
    last = json.loads((folder / "environment.jsonl").read_text().splitlines()[-1])
    assert last["changed"]["learner.lr"] == [1e-3, 5e-4] and last["changed"]["steps"] == [6, 7]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("reward/mean")] == [5, 6, 7]


def test_keys_that_may_change() -> None:
    free = (
        "steps",
        "learner.lr",
        "learner.betas.1",
        "eval.every",
        "checkpoint.keep",
        "log.wandb.project",
        "cluster.engines",
        "rewards.0.timeout",
        "rollout.engine.type",
        "rollout.engine.options.speed",
        "teacher.url",
        "rollout.episode.timeout",
        "reference.precompute",
    )
    held = (
        "seed",
        "rollout.n",
        "rollout.prompts",
        "objective.0.type",
        "objective",
        "model.path",
        "data.train",
        "sampling.temperature",
        "rewards.0.fn",
        "rewards.0.args.timeout",  # of the reward's own
        "rewards.0",
        "rollout.episode.args.timeout",
        "rollout",
        "learner.lrs",
    )
    assert all(map(is_free, free)) and not any(map(is_free, held))
    assert difference({"a": None, "b": {}, "c": [1]}, {"b": None, "c": [2], "d": None}) == {"c.0": (1, 2)}


ENGINE = """
from dataclasses import dataclass
from rlkit import EngineSpec

@dataclass(frozen=True)
class Mine(EngineSpec):
    speed: int = 1

    def start(self, setup):
        raise NotImplementedError
"""


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ({"speed": 2}, {"speed": 3}, {"rollout.engine.speed": (2, 3)}),
        ("hf", {"speed": 3}, {"rollout.engine": ("hf", None), "rollout.engine.speed": (None, 3)}),
        ({"speed": 3}, "vllm", {"rollout.engine": (None, "vllm"), "rollout.engine.speed": (3, None)}),
    ],
)
def test_an_engine_of_the_users_own_may_change(
    before: Any, after: Any, changed: dict[str, Any], small: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "my_engine.py").write_text(ENGINE)
    name = f"{tmp_path / 'my_engine.py'}:Mine"

    def made(engine: Any) -> rk.Run:
        given = engine if isinstance(engine, str) else {"type": name, **engine}
        return rk.load({**small, "rollout": {**small["rollout"], "engine": given}})

    write_down(made(before), tmp_path, Found(False))
    own = (
        {"rollout.engine.type": (name, None) if after == "vllm" else (None, name)}
        if "rollout.engine" in changed
        else {}
    )
    assert compare(tmp_path, made(after)) == changed | own


@pytest.mark.parametrize("number", [3, 4])
def test_a_checkpoint_of_a_version_before_is_continued(killed: tuple[rk.Run, Path], number: int) -> None:
    run, folder = killed
    for path in (folder / "checkpoints").glob("step_*"):
        manifest = json.loads((path / "manifest.json").read_text())
        driver = json.loads((path / "driver.json").read_text())
        collector = driver.pop("collector")
        later = {"rewards", "skipped"} | ({"best", "drift", "alarms"} if number == 3 else set())
        driver = {k: v for k, v in driver.items() if k not in later}
        driver |= {"in_flight": [], "groups": collector["taken"], "dropped": 0, "reasons": {}}
        (path / "driver.json").write_text(json.dumps(driver))
        (path / "ahead.jsonl").unlink()
        sizes = {n: (path / n).stat().st_size for n in manifest["files"] if n != "ahead.jsonl"}
        (path / "manifest.json").write_text(json.dumps({"format": number, "step": manifest["step"], "files": sizes}))
    assert_same(rk.train(run, resume=True, quiet=True), rk.train(run.replace(name="whole"), quiet=True))


def test_a_run_without_a_checkpoint_starts_again_and_keeps_its_rows(plain: dict[str, Any]) -> None:
    run = rk.load(plain)
    with around("save_when_due", at(2, die)), pytest.raises(InterruptedError):
        rk.train(run, quiet=True)
    folder = rk.train(run, resume=True, quiet=True)
    assert steps(folder) == [1, 2, 3, 4, 5, 6] and steps(folder / "repeated") == [1, 2]


def test_two_runs_do_not_share_a_folder(plain: dict[str, Any]) -> None:
    run = rk.load({**plain, "steps": 1})
    folder = rk.train(run, quiet=True)
    lock = lock_folder(folder)
    with pytest.raises(CheckpointError, match=rf"is in use by process {os.getpid()} on "):
        rk.train(run.replace(steps=2), resume=True, quiet=True)
    lock.release()
    os.rename(folder / "config.yaml", folder / "aside")  # as if another had taken the folder and not yet begun
    lock = lock_folder(folder)
    assert rk.train(run, quiet=True).name == "small-2"
    lock.release()


# -- told to stop -----------------------------------------------------------------------------------------------------


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "where"), [(signal.SIGTERM, "update"), (signal.SIGINT, "generate"), (signal.SIGHUP, "generate")]
)
def test_a_signal_leaves_a_checkpoint_from_which_the_run_is_exact(
    plain: dict[str, Any], number: signal.Signals, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = rk.load(plain)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has it ignored
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    if where == "generate":  # while groups of step 4 are asked for: their prompts are asked for again
        from rlkit.rollout.collector import Collector

        original = Collector._take
        monkeypatch.setattr(
            Collector, "_take", lambda self: (send(number)() if self.taken == 14 else None, original(self))[1]
        )
        hook: Any = contextlib.nullcontext()
    else:
        hook = around("summarize", at(3, send(number)), before=True)
    with hook, pytest.raises(Stopped, match=r"interrupted|stopped by SIG(TERM|HUP)") as stopped:
        rk.train(run, quiet=True)
    monkeypatch.undo()
    folder = Path(run.out) / run.name
    assert stopped.value.code == 128 + number and stopped.value.kept == "`--resume` continues from step 3"
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step_00000003"] and steps(folder) == [1, 2, 3]
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    assert_same(rk.train(run, resume=True, quiet=True), rk.train(run.replace(name="whole"), quiet=True))


def test_a_second_signal_ends_at_once_and_sigusr1_goes_on(plain: dict[str, Any]) -> None:
    run = rk.load({**plain, "steps": 4})
    folder = Path(run.out) / run.name

    def twice() -> None:
        send(signal.SIGTERM)()
        send(signal.SIGTERM)()

    with (
        around("summarize", at(1, send(signal.SIGUSR1)), before=True),
        around("save_when_due", at(2, twice)),
        pytest.raises(KeyboardInterrupt) as ended,
    ):
        rk.train(run, quiet=True)
    assert not isinstance(ended.value, Stopped) and [p.name for p in (folder / "checkpoints").iterdir()] == [
        "step_00000001"
    ]


def test_a_time_limit_stops_before_it_with_a_checkpoint(plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run = rk.load({**plain, "steps": 100_000, "checkpoint": {"time_limit": 0.05}})
    with pytest.raises(Stopped, match="the time limit is near") as stopped:
        rk.train(run, quiet=True)
    assert stopped.value.code == TIME_LIMIT
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1")  # long past
    with pytest.raises(Stopped, match="the time limit is near"):
        rk.train(rk.load(plain), quiet=True)


def test_the_program_ends_at_once_and_says_in_one_line_how_to_go_on(plain: dict[str, Any], tmp_path: Path) -> None:
    config, flag, folder = tmp_path / "c.yaml", tmp_path / "hang", Path(plain["out"]) / "small"
    (tmp_path / "hangs.py").write_text(
        "import os, time\ndef reward(response):\n"
        f"    if os.path.exists({str(flag)!r}):\n        time.sleep(900)\n    return float(len(response))\n"
    )
    config.write_text(
        yaml.safe_dump({**plain, "steps": 100_000, "rewards": [{"fn": "hangs.py:reward", "timeout": 900.0}]})
    )
    command = [sys.executable, "-m", "rlkit", "train", str(config)]
    with (
        open("/dev/full", "w") as full,
        subprocess.Popen(command, stdout=full, stderr=subprocess.PIPE, text=True) as run,
    ):
        while len(read_rows(folder / "metrics.jsonl")) < 2:
            assert run.poll() is None, run.communicate()
            time.sleep(0.1)
        flag.touch()
        time.sleep(1)  # it waits for its rewards now
        run.terminate()
        _, err = run.communicate()
    last = steps(folder)[-1]
    assert run.returncode == 143 and err.count("\n") <= 4 and f"`--resume` continues from step {last}" in err, err
    assert (folder / "checkpoints" / f"step_{last:08d}" / "manifest.json").exists()


# -- disks ------------------------------------------------------------------------------------------------------------


def test_a_full_disk_stops_nothing_and_afterwards_everything_is_there(
    plain: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = rk.load({**plain, "checkpoint": {"every": 2, "minutes": None}, "log": {"tensorboard": True, "trace": True}})
    limit = contextlib.ExitStack()

    def fills(s: Any, step: int) -> None:
        if step == 1:
            limit.enter_context(largest_file(100))
        if step == 5:
            limit.close()
            s.record.cadence.not_before = 0.0  # or it would wait ten times as long as the last try took

    with limit, around("after_step", fills, before=True):
        folder = rk.train(run)
    out = capsys.readouterr().out
    assert out.count("metrics.jsonl: File too large. Its rows wait in memory") == 1 and "can be written again" in out
    assert "the checkpoint of step 2 could not be written (" in out and "File too large). It is tried again" in out
    assert not any(line.startswith("Traceback") for line in out.splitlines())
    kept = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert kept == ["step_00000005", "step_00000006"]  # 5: the one of step 2 that was owed
    whole = rk.train(run.replace(name="whole"), quiet=True)
    assert_same(folder, whole)
    assert steps(folder, "rollouts.jsonl") == steps(whole, "rollouts.jsonl")


def test_a_model_that_cannot_be_written_is_one_sentence(plain: dict[str, Any]) -> None:
    run = rk.load({**plain, "steps": 1})
    with (
        contextlib.ExitStack() as limit,
        around("go_back", lambda s, step: limit.enter_context(largest_file(3000)), module=finish),
        pytest.raises(
            RunError, match=r"the model of the last step could not be written \(.*: File too large\)"
        ) as told,
    ):
        rk.train(run, quiet=True)
    folder = Path(run.out) / run.name
    assert "\n" not in str(told.value) and not (folder / "final").exists()
    assert rk.train(run, resume=True, quiet=True) == folder and (folder / "final" / "model.safetensors").exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(plain: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("")
    plain["rewards"] = [str(Path("tests/rewards/examples.py").absolute()) + ":varied"]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**plain, "out": str(tmp_path / "file")}))
    assert main(["train", str(tmp_path / "c.yaml")]) == 2
    assert "cannot be" in (err := capsys.readouterr().err) and "Not a directory" in err and err.count("\n") == 1


def test_output_that_cannot_be_written_stops_nothing() -> None:
    code = "from rlkit import cli; cli.main = lambda: print('x' * 10_000, flush=True) or print('y') or 0; cli.entry()"
    for place in ("/dev/full", "/dev/null"):  # every write to the first says that there is no space
        with open(place, "w") as out:
            done = subprocess.run([sys.executable, "-c", code], stdout=out, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (0, b"")


# -- held-out scores --------------------------------------------------------------------------------------------------

TABLE = {0: 0.1, 1: 0.3, 2: 0.7, 3: 0.5, 4: 0.6, 5: 0.65, 6: 0.2}


def scored(monkeypatch: pytest.MonkeyPatch, asked: list[int]) -> None:
    def evaluate(s: Any, step: int) -> HeldOut:
        asked.append(step)
        return HeldOut(step, TABLE[step])

    monkeypatch.setattr(heldout, "evaluate", evaluate)


def test_the_best_checkpoint_stays_and_the_run_ends_and_goes_back_to_it(
    small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    scored(monkeypatch, asked)
    settings = {"every": 1, "prompts": 4, "patience": 3, "go_back": True}
    run = rk.load({**small, "steps": 6, "eval": settings, "checkpoint": {"every": 1, "keep": 1}, "probe": {"every": 0}})
    with around("save_when_due", at(4, die)), pytest.raises(InterruptedError):
        rk.train(run, quiet=True)
    folder = Path(run.out) / run.name
    kept = {p.name for p in (folder / "checkpoints").iterdir()}
    assert kept == {"best.json", "step_00000002", "step_00000004"}
    assert json.loads((folder / "checkpoints" / "best.json").read_text()) == {"step": 2, "score": 0.7}
    rk.train(run, resume=True, quiet=True)  # two evaluations without a better score are remembered
    summary = json.loads((folder / "summary.json").read_text())
    assert steps(folder) == [1, 2, 3, 4, 5] and summary["steps"] == 5
    assert (summary["final_step"], summary["best_step"], summary["eval_after"]) == (2, 2, 0.7)
    short = rk.train(run.replace(name="short", steps=2), quiet=True)
    weights = result(short)[2]
    assert all(torch.allclose(value, weights[name], atol=1e-6) for name, value in result(folder)[2].items())


def test_an_evaluation_is_not_repeated_by_a_resume(small: dict[str, Any]) -> None:
    run = rk.load({**small, "steps": 4, "eval": {"every": 2, "prompts": 4}, "checkpoint": {"every": 2}})
    with around("save_when_due", at(3, die)), pytest.raises(InterruptedError):
        rk.train(run, quiet=True)
    folder = Path(run.out) / run.name
    before = (folder / "eval.jsonl").read_bytes()
    rk.train(run, resume=True, quiet=True)
    assert (folder / "eval.jsonl").read_bytes().startswith(before) and steps(folder, "eval.jsonl") == [0, 2, 4]
    whole = rk.train(run.replace(name="whole"), quiet=True)
    assert_same(folder, whole)
    scores = [r.get("eval/score") for r in read_rows(folder / "metrics.jsonl")]
    assert scores == [r.get("eval/score") for r in read_rows(whole / "metrics.jsonl")] and scores[2] is not None


def test_the_best_score() -> None:
    best = Best()
    found = [best.observe(k, s) for k, s in enumerate([None, 0.2, 0.2, 0.1, 0.3])]
    assert found == [False, True, False, False, True] and (best.step, best.stalled) == (4, 0)
    assert not best.observe(4, 0.9)  # a step counts once
    again = Best()
    again.load_state_dict(json.loads(json.dumps(best.state_dict())))
    assert again == best


@pytest.mark.parametrize(
    "section", [{"patience": 0, "every": 1}, {"patience": 2}, {"go_back": True}, {"every": -1}, {"n": 0}]
)
def test_scores_that_are_never_measured_are_refused(small: dict[str, Any], section: dict[str, Any]) -> None:
    with pytest.raises(rk.ConfigError, match="eval"):
        rk.load({**small, "eval": section})


def test_weights_follow_a_changed_rate_and_a_schedule(small: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    from rlkit.learner.backend import TorchBackend

    model = torch.nn.Linear(2, 2)
    section = dataclasses.replace(rk.load(small).learner, warmup_steps=4)
    one = TorchBackend(model, section, 10)
    for _ in range(2):
        model(torch.ones(2)).sum().backward()
        one.step()
    one.save(tmp_path)
    again = TorchBackend(torch.nn.Linear(2, 2), section, 10)
    again.load(tmp_path)
    assert again.lr == one.lr == section.lr * 3 / 4
    other = TorchBackend(
        torch.nn.Linear(2, 2), dataclasses.replace(section, lr=7.0, weight_decay=0.3, betas=(0.5, 0.6)), 10
    )
    other.load(tmp_path)
    assert other.lr == 7.0 * 3 / 4 and other.optimizer.param_groups[0]["betas"] == (0.5, 0.6)
    assert other.optimizer.param_groups[0]["weight_decay"] == 0.3
    moments = [state["exp_avg"] for state in other.optimizer.state.values()]
    assert all(torch.equal(a, b["exp_avg"]) for a, b in zip(moments, one.optimizer.state.values(), strict=True))
