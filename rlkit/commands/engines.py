"""What commands that sample have in common: a model that is there, engines for it, and the rewards of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rlkit.checks import context_length
from rlkit.cluster.groups import EngineGroup
from rlkit.cluster.start import start_engines
from rlkit.errors import ConfigError
from rlkit.model.hub import model_config
from rlkit.rewards import Scorer
from rlkit.run import Cluster, Run
from rlkit.samples import Prompt, Rollout
from rlkit.verifier.finding import EXTRACT, extract_answer
from rlkit.verifier.verify import vote_key


def model_folder(model: str | Path, where: str = "--model") -> str:
    """A run folder stands for its final model; refuses what is no model at once, by the name of the option that gave it."""
    final = Path(model) / "final"
    path = str(final) if os.path.isdir(final) else str(model)
    model_config(path, where)
    return path


def refuse_episodes(run: Run) -> None:
    """Raises ConfigError for a run that plays episodes, where single responses are asked for."""
    if run.rollout.episode is not None:
        raise ConfigError(
            "rollout.episode is set, but this command asks for single responses. Held-out episodes are played by `rlkit train` (the "
            "section eval); to look at single responses set rollout.episode: null, and rewards."
        )


@contextlib.contextmanager
def running(
    run: Run, path: str, prompts: Sequence[Prompt], engines: int = 1, address: str | None = None
) -> Iterator[tuple[EngineGroup, Scorer]]:
    """``(engines, scorer)`` for a model and the rewards of a run: one engine in this process, or several on Ray."""
    with contextlib.ExitStack() as stack:
        scorer = Scorer(run.scored_by, on_error=run.on_reward_error)
        stack.callback(scorer.close)
        scorer.check(list(prompts[0].columns))
        scorer.check_rows(prompts)
        for note in scorer.trial(prompts[0]):
            scorer.report(note)
        cluster = None
        if engines != 1 or address is not None:
            section = run.cluster or Cluster()
            cluster = dataclasses.replace(section, engines=engines, address=address or section.address)
        group = start_engines(run.rollout.kind, run.engine_setup(path, context_length(run, prompts, path)), cluster)
        stack.callback(group.close)
        yield group, scorer


def voter(run: Run) -> Callable[[Rollout], str | None]:
    """How a response votes: its final answer where the first reward is ``math``, else its whole text."""
    first = run.scored_by[0]
    if not first.is_math:
        return lambda r: r.text.strip() or None
    places = tuple(first.args.get("extract", EXTRACT))

    def key(r: Rollout) -> str | None:
        found = extract_answer(r.text, places, r.finish)
        return None if found is None else vote_key(found)

    return key
