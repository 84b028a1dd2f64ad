"""What the driver puts into a checkpoint between two steps, and takes back when a run continues."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

from rlkit.config import plain
from rlkit.errors import DataError
from rlkit.files import reason, told
from rlkit.looking.page import report_of
from rlkit.record.checkpoint import Checkpoints
from rlkit.record.log import REPEATED
from rlkit.record.masking import mask_values
from rlkit.rollout.collector import Group, read_groups, write_groups
from rlkit.session import Session, State, write_down
from rlkit.stopping import Stopped

STATISTICS = "prompts.sqlite"
AHEAD = "ahead.jsonl"


def remember(s: Session, step: int) -> None:
    """Takes what the driver knows after ``step`` steps, as values that later work does not change: the next checkpoint holds it."""
    feed, controls, record = s.feed, s.controls, s.record
    driver = {
        "collector": feed.collector.state_dict(),
        "rewards": feed.scorer.state_dict(),
        "skipped": s.fleet.learners.skipped,
        "sampler": feed.collector.sampler.state_dict(),
        "terms": controls.terms.state_dict(),
        "penalties": controls.penalties.state_dict(),
        "drift": record.drift.state_dict(),
        "alarms": record.alarms.state_dict(),
        "lengths": controls.lengths.state_dict() if controls.lengths else None,
        "best": controls.best.state_dict(),
        "rows": {rows.name: rows.digest for rows in feed.drawn},
    }
    if feed.player is not None:
        driver["episodes"] = feed.player.state_dict()
    record.state = State(step, json.loads(json.dumps(driver)), record.statistics.copy(), feed.collector.in_flight())


def save(s: Session, *, complete: bool = True) -> bool:
    """A checkpoint of the last finished step; whether it is on disk. One that cannot be written is reported, and tried again later.

    It holds the groups that were made ahead. Under ``pause: wait`` their responses are there, and ``complete`` waits for the rewards that
    are not, so that a resumed run asks none of them again.
    """
    record, best = s.record, s.controls.best
    assert record.state is not None
    now, start = record.state, time.monotonic()

    def write(folder: str) -> None:
        s.fleet.learners.save(folder)
        now.statistics.save(Path(folder) / STATISTICS)
        write_groups(Path(folder) / AHEAD, now.in_flight)

    if complete and now.in_flight and s.run.rollout.pause == "wait":
        with s.stop.interruptible():
            s.feed.collector.finish_ahead()
    kept = best.step if s.run.checkpoint.best else -1
    # Rows first: a run that continues from a checkpoint does not make earlier rows again.
    problem = record.log.on_disk()
    if problem is None:
        try:
            record.checkpoints.save(now.step, now.driver, write, protect={kept})
            if kept == now.step and best.score is not None:
                record.checkpoints.mark_best(kept, best.score)
            now.statistics.save(record.folder / STATISTICS)
        except OSError as error:
            problem = error
    if problem is None:
        record.cadence.wrote(now.step)
        s.on_save(record.checkpoints.path(now.step))
        return True
    record.cadence.failed(time.monotonic() - start)
    record.log.say(
        f"warning: the checkpoint of step {now.step} could not be written ({reason(problem)}). It is tried again; make room, or the "
        f"run can only be continued from step {max(0, record.cadence.saved)}."
    )
    return False


def save_when_due(s: Session, step: int) -> None:
    """A checkpoint on its cadence, when SIGUSR1 asked for one, and at the last step."""
    wanted, cadence = s.stop.take_save(), s.record.cadence
    if wanted or cadence.due(step) or (step == s.run.steps and cadence.saved != step):
        saved = save(s)
        if wanted and saved:
            s.record.log.say(f"SIGUSR1: a checkpoint of step {step} is written; the run goes on.")


@contextlib.contextmanager
def kept_when_left(s: Session) -> Iterator[None]:
    """A run that is told to stop, or whose loop is left, leaves a checkpoint of its last finished step, and its report."""
    try:
        yield
    except (Stopped, GeneratorExit) as left:
        state, cadence = s.record.state, s.record.cadence
        made = state is not None and state.step > 0
        s.fleet.engines.turns.end()
        if state is not None and made and state.step != cadence.saved:
            save(s, complete=False)
        if made and s.run.log.report:
            report_of(s.record.folder, s.record.log.say)
        if isinstance(left, Stopped) and cadence.saved >= 0:
            left.kept = f"`--resume` continues from step {cadence.saved}"
        elif isinstance(left, Stopped) and made:
            left.kept = "no checkpoint could be written"
        raise


def restore(s: Session) -> int:
    """The step to start from. A resumed run changes nothing on disk before its checkpoint is loaded."""
    record, found = s.record, s.record.found
    if found.checkpoint is not None:
        _load(s, found.checkpoint)
    s.stop.begin()
    with told("the run folder"):
        moved = record.log.begin(found.step, mask_values(plain(s.run)))
        if found.resume:
            aside = record.checkpoints.set_aside(found.damaged)
            write_down(s.run, record.folder, found)
            _say_resumed(s, moved, aside)
    s.feed.scorer.output.write_to(record.folder / "rewards.log")
    remember(s, found.step)
    return found.step


def _load(s: Session, checkpoint: Path) -> None:
    feed, controls, record, learners = s.feed, s.controls, s.record, s.fleet.learners
    step, driver = Checkpoints.read(checkpoint)
    for rows in feed.drawn:
        if driver.get("rows", {}).get(rows.name, rows.digest) != rows.digest:
            raise DataError(
                f"data.{rows.name}: the rows are not those that {checkpoint} was trained on, or in another order. Start a run of "
                "another name, or use the rows of the first run."
            )
    record.statistics.load(checkpoint / STATISTICS)
    learners.load(str(checkpoint))
    feed.collector.sampler.load_state_dict(driver["sampler"])
    by_id = {prompt.id: prompt for prompt in feed.train}
    if "collector" in driver:
        feed.collector.load_state_dict(driver["collector"], read_groups(checkpoint / AHEAD, by_id))
        feed.scorer.load_state_dict(driver["rewards"])
        learners.skipped = driver["skipped"]
    else:  # formats 3 and 4 know which prompts were in flight only
        taken = driver.get("groups", 0)
        in_flight = [Group(taken + k, by_id[i], Future()) for k, i in enumerate(driver["in_flight"])]
        counts = {"taken": taken, "dropped": driver["dropped"], "reasons": driver.get("reasons", {}), "aborted": 0}
        feed.collector.load_state_dict(counts, in_flight)
    # Checkpoints of format 3 have no "drift", "alarms" and "best".
    record.drift.load_state_dict(driver.get("drift", []))
    if "alarms" in driver:
        record.alarms.load_state_dict(driver["alarms"])
    if controls.lengths is not None and driver["lengths"]:
        controls.lengths.load_state_dict(driver["lengths"])
    controls.terms.load_state_dict(driver["terms"])
    controls.penalties.load_state_dict(driver["penalties"])
    if feed.player is not None:
        feed.player.load_state_dict(driver.get("episodes", {}))
    if "best" in driver:
        controls.best.load_state_dict(driver["best"])
    record.cadence.wrote(step)


def _say_resumed(s: Session, moved: int, aside: Sequence[Path]) -> None:
    found, say, again = s.record.found, s.record.log.say, s.feed.collector.unasked
    for why, path in zip(found.damaged.values(), aside, strict=True):
        say(f"warning: {why} It is kept as {path.name}; the run continues from the one before it.")
    if found.checkpoint is None:
        say("note: there is no checkpoint yet: the run starts again from its first step.")
    if again:
        say(
            f"note: {len(again)} prompt groups had no rewards yet at the checkpoint: they are asked again, by its weights."
        )
    if moved:
        say(f"note: {moved} rows of later steps, which are made again, are kept in {s.record.folder / REPEATED}/.")
    for key, (old, new) in found.changes.items():
        say(f"note: {key} was {old!r} and is {new!r} from here on.")
