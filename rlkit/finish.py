"""The end of a run: the last evaluation, the model that it leaves, and what was learned."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

from rlkit.cluster.sync import probe_export
from rlkit.errors import CheckpointError
from rlkit.files import replace_file, replace_folder, told
from rlkit.heldout import evaluate_at_the_end
from rlkit.looking.page import report_of
from rlkit.record.checkpoint import Checkpoints
from rlkit.record.log import duration
from rlkit.record.results import RunFolder, digits
from rlkit.saving import save
from rlkit.session import Session

# Of a run folder, for people.
FILES = (
    "config.yaml",
    "metrics.jsonl",
    "rollouts.jsonl",
    "transcripts.txt",
    "eval.jsonl",
    "eval_samples.jsonl",
    "report.html",
    "tensorboard/",
    "checkpoints/",
)


def finish(s: Session, step: int) -> RunFolder:
    """Evaluates and exports the model after ``step`` steps, and says what was learned and where everything lies."""
    record, best = s.record, s.controls.best
    last = evaluate_at_the_end(s, step)
    if step and record.cadence.saved != step:
        save(s)
    kept, score = go_back(s, step, None if last is None else last.score)
    folder = record.folder
    with told("the model of the last step"):
        export(s, folder.final)
    gap = None
    if s.run.probe.final:
        gap = probe_export(s.fleet.learners, str(folder.final), s.sampled(), s.run.probe_tolerance)
    history = folder.held_out()
    before = history[0].score if history else None
    seconds = time.monotonic() - record.started
    summary = {
        "steps": step,
        "seconds": seconds,
        "eval_before": before,
        "eval_after": score,
        "best_step": best.step if best.step >= 0 else None,
        "best_score": best.score,
        "final_step": kept,
        "final": str(folder.final),
        "export_gap": gap,
    }
    with told("the summary"):
        replace_file(folder / "summary.json", json.dumps(summary, indent=1))
    record.log.trackers.summary(summary)
    if s.run.log.report:
        report_of(folder, record.log.say)
    say = record.log.say
    say(f"\nDone: {step} steps in {duration(seconds)}.")
    if history:
        say(f"  learned      held-out score {digits(before)} -> {digits(score)}")
    again = "" if gap is None else f"; loaded again, it is the trained model within {gap:.1g} nats"
    there = ", ".join(name for name in FILES if (folder / name).exists())
    first = s.feed.train[0] if s.feed.train else s.feed.drawn[0].draw(0, 0)[0].prompt
    say(
        f"  model        {folder.final} (Hugging Face format{f', of step {kept}' if kept != step else ''}{again})\n"
        f"  everything   {folder}/: {there}\n"
        f"  next         {program()} sample {folder.final} --prompt {first.columns.get('question', first.text)!r}"
    )
    return folder


def go_back(s: Session, step: int, score: float | None) -> tuple[int, float | None]:
    """With ``eval.go_back``, loads the weights with the best held-out score; the step they are of, and their score."""
    best, say = s.controls.best, s.record.log.say
    if not s.run.eval.go_back or best.step in (-1, step):
        return step, score
    path = s.record.checkpoints.path(best.step)
    try:
        Checkpoints.read(path)
    except CheckpointError as error:
        say(f"warning: eval.go_back: {error} The model of step {step} is left in its place.")
        return step, score
    s.fleet.learners.load(str(path))
    say(f"eval.go_back: the model of step {best.step} had the best held-out score, {digits(best.score)}.")
    return best.step, best.score


def export(s: Session, final: Path) -> None:
    """The model in Hugging Face format, whole or not at all."""
    tmp = final.with_name(f".{final.name}.writing")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir()
    try:
        s.fleet.learners.export(str(tmp))
        s.feed.tokenizer.save_pretrained(tmp)
        replace_folder(tmp, final)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise


def program() -> str:
    """How this command line was called, so that what we print can be pasted."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return "python -m rlkit"
    return os.path.relpath(called) if called.name == "rlkit" and shutil.which("rlkit") is None else "rlkit"
