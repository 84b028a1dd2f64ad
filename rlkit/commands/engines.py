"""What commands that sample have in common: a model that is there, engines for it, and the rewards of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rlkit.checks import check_room, context_length
from rlkit.cluster.start import start_engines
from rlkit.config import build
from rlkit.errors import ConfigError
from rlkit.model.hub import model_config
from rlkit.model.load import load_tokenizer
from rlkit.reading import located, override, read
from rlkit.rewards import Scorer
from rlkit.rollout.control import Control
from rlkit.rollout.controlled import Controlled
from rlkit.rollout.engine import Generates, Scores
from rlkit.run import Cluster, Run
from rlkit.samples import Prompt, Rollout
from rlkit.session import player_of
from rlkit.verifier.finding import EXTRACT, extract_answer
from rlkit.verifier.verify import vote_key


def model_folder(model: str | Path, where: str = "--model") -> str:
    """A run folder stands for its final model; refuses what is no model at once, by the name of the option that gave it."""
    final = Path(model) / "final"
    path = str(final) if os.path.isdir(final) else str(model)
    model_config(path, where)
    return path


def given_control(control: Control | str | None) -> Control | None:
    """A control, also as YAML has it (``{type: IDLE, pattern: '[0-9]'}``), or by the name of a YAML file that holds one.

    Raises:
        ConfigError: what is wrong, and where.
    """
    if not isinstance(control, str):
        return control
    text = control
    if Path(text).suffix in (".yaml", ".yml"):
        return build(Control, read(text), Path(text).parent)  # type: ignore[no-any-return]
    tree = located({})
    override(tree, f"control={text}")
    given = tree.value["control"]
    given.move("--control")
    return build(Control, given)  # type: ignore[no-any-return]


def under(run: Run, control: Control, path: str) -> Run:
    """``run`` with engines that sample from the model in ``path`` under ``control``; raises ConfigError where they cannot."""
    engine = run.rollout.engine
    if not isinstance(engine, str):
        raise ConfigError(
            f"rollout.engine is {run.rollout.kind.label}, which knows no controls: set rollout.engine=vllm or rollout.engine=hf."
        )
    control.check(path)
    section = dataclasses.replace(
        run.rollout, engine=Controlled(engine=engine, control=control), over=0.0, pause="wait"
    )
    return dataclasses.replace(run, rollout=section)


@contextlib.contextmanager
def running(
    run: Run,
    path: str,
    prompts: Sequence[Prompt],
    engines: int = 1,
    address: str | None = None,
    say: Callable[[str], None] = print,
) -> Iterator[tuple[Generates, Scores]]:
    """Who answers and who scores, for a model and the rewards of a run: one engine in this process, or several on Ray, and the scorer; or
    the player of its episodes for both.
    """
    with contextlib.ExitStack() as stack:
        scorer = Scorer(run.scored_by, on_error=run.on_reward_error, report=say)
        stack.callback(scorer.close)
        columns, episode, played = list(prompts[0].columns), run.rollout.episode, None
        scorer.check(columns)
        scorer.check_rows(prompts)
        if episode is not None:
            check_room(run)
            played = episode.found(columns)
            played.check(episode.label, prompts, run.rollout.serve)
        for note in scorer.trial(prompts[0]):
            say(note)
        cluster, limit = None, context_length(run, prompts, path)
        if engines != 1 or address is not None:
            section = run.cluster or Cluster()
            cluster = dataclasses.replace(section, engines=engines, address=address or section.address)
        group = start_engines(run.rollout.kind, run.engine_setup(path, limit), cluster)
        stack.callback(group.close)
        if played is None:
            yield group, scorer
            return
        player = player_of(run, played, load_tokenizer(path, "--model"), path, group, scorer, limit, say)
        stack.callback(player.close)
        yield player, player


def voter(run: Run) -> Callable[[Rollout], str | None]:
    """How a response (of an episode its last) votes: its final answer where the first reward is ``math``, else its whole text."""
    first = next(iter(run.scored_by), None)
    if first is None or not first.is_math:
        return lambda r: r.text.strip() or None
    places = tuple(first.args.get("extract", EXTRACT))

    def key(r: Rollout) -> str | None:
        found = extract_answer(r.text, places, r.finish)
        return None if found is None else vote_key(found)

    return key
