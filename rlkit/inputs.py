"""What a run is given: its tokenizer, prompts, rows and rewards, read and checked before it has a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rlkit.checks import (
    Findings,
    check_columns,
    check_labels,
    check_models,
    check_sets,
    context_length,
    context_of,
    generation_notes,
    self_test,
)
from rlkit.cluster.start import hosting
from rlkit.data.examples import ExampleRows, overlap_of_rows, read_examples
from rlkit.data.prompts import first_of_each, load_prompts, overlap, preview
from rlkit.data.stored import StoredRows
from rlkit.data.tasks import Split
from rlkit.model.endings import Endings
from rlkit.objective.full_vocab import told_apart
from rlkit.precompute import Kept
from rlkit.rewards import Scorer
from rlkit.rollout.interrupt import Interruption
from rlkit.rollout.player import Played
from rlkit.run import Run
from rlkit.samples import Prompt
from rlkit.start import tokenizer_of


@dataclass(frozen=True)
class Inputs:
    """What a run is given, read and checked before it has a folder. ``context``: the longest prompt and response, in tokens."""

    tokenizer: Any
    train: list[Prompt]
    test: list[Prompt]
    scorer: Scorer
    stored: StoredRows | None
    examples: tuple[ExampleRows, ...]
    held_out: tuple[ExampleRows, ...]
    interrupt: Interruption | None
    played: Played | None
    context: int

    def try_rewards(self) -> list[str]:
        """What there is to say of rewards that were tried on the first prompt, on a cluster that is connected if one is used."""
        prompts = self.train or self.test
        return self.scorer.trial(prompts[0]) if prompts else []

    def shown(self) -> Iterator[str]:
        """The first prompt and the first row of each set, as the model sees them."""
        if self.train:
            yield preview(self.train, self.tokenizer)
        for rows in self.examples:
            steps = len(rows.rows) / rows.per_step
            yield f"data.{rows.spec.key}: {len(rows.rows)} rows, {rows.per_step} a step: an epoch is {steps:.3g} steps"
            first = rows.rows[0]
            yield f"  first prompt ({first[0].prompt.id}): {first[0].prompt.text!r}"
            for e in first:
                parts = ((trained, repr(self.tokenizer.decode(tokens))) for trained, tokens in e.pieces())
                text = " ".join(part if trained else f"(not trained: {part})" for trained, part in parts)
                yield f"  {e.source}: {text} (reward {e.reward:g})"

    def kept(self, run: Run, start: str) -> Iterator[Kept]:
        """The files that keep what reference and teacher say of the rows of data; where there is none, they are asked in every step."""
        sets, temperature = (*self.examples, *self.held_out), run.sampling.temperature
        for section, anchor, spec in run.anchors:
            if spec.kept is not None:
                k = told_apart(run.objective, anchor)
                yield Kept.of(section, spec.kept, spec.identity(start), sets, temperature, k)


def read_inputs(run: Run, stack: contextlib.ExitStack, notes: list[str]) -> Inputs:
    """All of it; what there is to say goes into ``notes``. The processes of rewards end with ``stack``.

    Raises:
        InputError: all that is wrong, as far as one thing can be looked at without the other.
    """
    specs = run.scored_by
    elsewhere = None if run.cluster is None else hosting(run.cluster)
    workers = max(1, (os.cpu_count() or 2) // 2)
    scorer = Scorer(specs, on_error=run.on_reward_error, workers=workers, elsewhere=elsewhere)
    stack.callback(scorer.close)
    tokenizer = tokenizer_of(run)
    if run.model.path is not None:
        notes += generation_notes(run.model.path, tokenizer, run.sampling)
    train = load_prompts(run.data, "train", tokenizer, notes.append)
    test = first_of_each(load_prompts(run.data, "test", tokenizer, notes.append), run.eval.prompts)
    notes += filter(None, [overlap(train, test)])
    prompts, wrong = [*train, *test], Findings()
    examples, held_out = tuple[ExampleRows, ...](), tuple[ExampleRows, ...]()
    with wrong:
        examples = _examples(run, "train", tokenizer, notes.append)
        held_out = _examples(run, "test", tokenizer, notes.append)
        notes += filter(None, (overlap_of_rows(a, b) for a in examples for b in held_out if a.spec.key == b.spec.key))
        notes += check_labels(run, examples)
    with wrong:
        if prompts:
            scorer.check(list(prompts[0].columns))
            scorer.check_rows(prompts)
        notes += self_test(specs, prompts)
    episode, played = run.rollout.episode, None
    if episode is not None:
        with wrong:
            played = episode.found(list(prompts[0].columns) if prompts else [])
            played.check(episode.label, prompts, run.rollout.serve)
    with wrong:
        check_columns(run, train, examples)
    with wrong:
        if run.data.stored is None:  # its rows are read as they are needed
            rows = (e.prompt for found in (*examples, *held_out) for row in found.rows for e in row)
            check_sets(run, [*prompts, *rows])
    with wrong:
        check_models(run, tokenizer)
    wrong.refuse()
    stored = StoredRows(run.data.stored, tokenizer, run.seed) if run.data.stored else None
    section = run.rollout.interrupt
    interrupt = None if section is None else Interruption(section, tokenizer, run.sampling.max_tokens)
    longest = max((e.length for rows in (*examples, *held_out) for row in rows.rows for e in row), default=0)
    context = context_length(run, prompts, run.model.path, max(longest, stored.longest if stored else 0))
    given = Inputs(tokenizer, train, test, scorer, stored, examples, held_out, interrupt, played, context)
    if run.model.warm_up is None and run.model.path is not None:  # else there is no start model yet
        for kept in given.kept(run, run.model.path):
            kept.read()
    return given


def _examples(run: Run, split: Split, tokenizer: Any, say: Callable[[str], None]) -> tuple[ExampleRows, ...]:
    """The rows that somebody else wrote, by section: those that are trained on, or those that are only measured."""
    found = list[ExampleRows]()
    for spec in run.data.offline:
        end, context = Endings(tokenizer, frozenset()).last, context_of(run.model.path)
        rows = read_examples(run.data, spec, split, tokenizer, end, context, say)
        if rows:
            found.append(ExampleRows(spec, rows, run.seed))
    return tuple(found)
