"""One collector for on-policy, k-steps-off and in-flight training: only ``max_lag`` and the weight sync's mode differ.

    the loop's thread                                   one thread a group (the pool)
    next() -- starts groups up to a limit -->           engine.generate, scorer.score
           <-- takes the oldest that counts -- pending <-- the group's result

The loop waits for the group that it takes, a group for the engine and its rewards, and nobody for the loop: a group that has finished stays
in ``pending``. The limit bounds how many there are, and so how old a token gets. Errors of a group wait in its result until it is taken.
"""

from __future__ import annotations

import bisect
import dataclasses
import heapq
import json
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlkit.data.curriculum import AdmitRule, DropRule, SamplerState
from rlkit.data.statistics import PromptStatistics
from rlkit.errors import RunError
from rlkit.record.log import Timeline
from rlkit.rollout.engine import Aborted, Generates, Scores, numbered
from rlkit.rollout.section import RolloutSection
from rlkit.samples import last_of_episodes
from rlkit.types import Prompt, Rollout, Sampling


class Group(NamedTuple):
    """A prompt group in flight; ``number`` counts the run's groups from 0 in the order in which they started."""

    number: int
    prompt: Prompt
    result: Future[tuple[list[Rollout], str | None]]

    @property
    def finished(self) -> bool:
        return self.result.done() and self.result.exception() is None


ROLLOUT = tuple(f.name for f in dataclasses.fields(Rollout) if f.name not in ("prompt", "outputs"))
PROMPT_TOKENS = "prompt_tokens"  # of a row whose prompt is not the group's: an episode that went on in another one


def write_groups(path: Path, groups: Iterable[Group]) -> None:
    """Groups in flight, one JSON object a line: number, prompt and, of those that have finished, the responses with their rewards."""
    with path.open("w") as f:
        for g in groups:
            rollouts, refused = g.result.result() if g.finished else (None, None)
            row = {"number": g.number, "prompt": g.prompt.id, "refused": refused, "rollouts": rollouts}
            if rollouts is not None:
                row["rollouts"] = [
                    {name: getattr(r, name) for name in ROLLOUT}
                    | ({PROMPT_TOKENS: r.prompt.token_ids} if r.prompt.token_ids != g.prompt.token_ids else {})
                    for r in rollouts
                ]
            f.write(json.dumps(row) + "\n")


def read_groups(path: Path, prompts: Mapping[str, Prompt]) -> list[Group]:
    """What :func:`write_groups` wrote."""
    out = []
    for row in map(json.loads, path.read_text().splitlines()):
        group = Group(row["number"], prompts[row["prompt"]], Future())
        if row["rollouts"] is not None:
            rollouts = []
            for r in row["rollouts"]:
                other = r.pop(PROMPT_TOKENS, None)
                prompt = group.prompt if other is None else dataclasses.replace(group.prompt, token_ids=tuple(other))
                rollouts.append(Rollout(prompt=prompt, **r))
            group.result.set_result((rollouts, row["refused"]))
        out.append(group)
    return out


Refill = bool | Literal["ahead"]


@dataclass(frozen=True)
class Rules:
    """Which prompts and groups are not trained on, and whether others take their places (the section ``data``)."""

    drop: tuple[DropRule, ...] = ()
    refill: Refill = True
    admit: AdmitRule | None = None


class Collector:
    """Keeps prompt groups in flight and hands out ``prompts`` finished ones a step, in the order in which they started.

    In a step, groups may start until there are ``(1 + max_lag) * prompts + extra`` more of them than earlier steps took, where ``extra =
    ceil(over * prompts)``, and one more for each that is replaced: with ``max_lag=0`` generation is strictly on-policy, with ``k`` it runs
    up to ``k`` steps ahead. With ``refill: ahead`` groups start in rounds, each of as many as are missing, divided by the share of groups
    that is trained on (of this step, and of earlier ones, which count half as much from step to step): replacements of replacements would
    come in many more rounds. What is not needed when the step is full leaves, the youngest first. Groups leave in start order, so that
    short answers do not win. Rewards are computed in the same thread as their group, while other groups still generate.

    With ``over`` a step takes the first ``prompts`` groups that finish, and the stragglers go on: weight updates do not end them, and a
    later step trains on them. No group is lost, but a step's batch is biased: what is quick to answer, which means short, comes earlier,
    long answers come with later and more versions. Each token keeps the log-prob and the version that sampled it, so that a correction
    or a clip against the engine sees them as they are. A group is overtaken by at most ``overtake * prompts`` younger ones, then the step
    waits for it; so its first token is at most ``max_lag + ceil(over) + overtake`` steps old when it is trained on (``max_lag`` without
    ``over``).

    ``witness`` sees every whole group, before any is dropped.

    Source: APRIL 2509.18521, active partial rollouts (here engines do not stop while the learner works, and age is bounded).
    """

    def __init__(
        self,
        engine: Generates,
        scorer: Scores,
        sampler: SamplerState,
        statistics: PromptStatistics,
        section: RolloutSection,
        sampling: Sampling,
        rules: Rules | None = None,
        *,
        timeline: Timeline | None = None,
        witness: Callable[[Sequence[Rollout]], None] = lambda group: None,
    ) -> None:
        self.engine, self.scorer, self.sampler, self.statistics = engine, scorer, sampler, statistics
        self.section, self.sampling, self.rules = section, sampling, rules or Rules()
        self.extra = math.ceil(section.over * section.prompts)
        self.timeline, self.witness = timeline or Timeline(None), witness
        most = section.prompts * (1 + section.max_lag) + self.extra
        if self.rules.refill == "ahead":
            most += math.ceil(section.max_waste * section.prompts)
        self.pool = ThreadPoolExecutor(max(1, most), thread_name_prefix="group")
        self.pending: deque[Group] = deque()
        # Numbers of groups that have finished, the lowest first; kept only where groups may be overtaken.
        self._finished, self._news = list[int](), threading.Condition()
        # New ones, and those in flight at a resumed run's checkpoint, which has no responses of them.
        self.unasked: list[Group] = []
        self.taken = self.dropped = self.aborted = 0
        # Groups of the steps so far, each step half as heavy as the next one.
        self.seen = self.kept = float(section.prompts)
        self.reasons: Counter[str] = Counter()
        self.versions: dict[str, float] = {}
        self.waited = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What the run has done, but for the groups :meth:`in_flight`."""
        counts = {"taken": self.taken, "dropped": self.dropped, "aborted": self.aborted}
        return {**counts, "reasons": dict(self.reasons), "seen": self.seen, "kept": self.kept}

    def load_state_dict(self, state: Mapping[str, Any], in_flight: Sequence[Group]) -> None:
        """A resumed run goes on: groups of its checkpoint that had finished are trained on, the others are asked in the next step."""
        self.taken, self.dropped, self.aborted = state["taken"], state["dropped"], state["aborted"]
        self.reasons.update(state["reasons"])
        self.seen, self.kept = state.get("seen", self.seen), state.get("kept", self.kept)  # older checkpoints have none
        self.pending.extend(in_flight)
        for group in in_flight:
            self._follow(group)
        self.unasked = [g for g in in_flight if not g.finished]

    def in_flight(self) -> tuple[Group, ...]:
        """Groups whose prompts the sampler has given out and that no step has been made of."""
        return tuple(self.pending)

    def finish_ahead(self) -> None:
        """Waits until no group is in flight any more; an error of one surfaces when a step takes it."""
        unasked = {g.number for g in self.unasked}
        wait([g.result for g in self.pending if g.number not in unasked])

    @property
    def started(self) -> int:
        """Groups that the run has started; the next one has this number."""
        return self.taken + len(self.pending)

    def _admit(self, limit: int) -> None:  # the whole staleness rule, with the one of _take
        while self.started < limit:
            group = Group(self.started, next(self.sampler), Future())
            self.pending.append(group)
            self.unasked.append(group)
            self._follow(group)

    def _ask(self) -> None:
        """Asks together for all groups that were not asked for yet: an engine that batches what waits would begin with the first."""
        groups, self.unasked = self.unasked, []
        for group in groups:
            self._start(group)

    def _start(self, group: Group) -> None:
        def work() -> None:
            try:
                group.result.set_result(self._run_group(group.prompt, group.number))
            except BaseException as error:
                group.result.set_exception(error)

        self.pool.submit(work)

    def _take(self) -> tuple[list[Rollout], str | None]:
        """The oldest group; with ``over`` the oldest that has finished, unless the oldest of all was overtaken often enough."""
        group = self.pending[0]  # all that started before it are gone: the rest that was taken overtook it
        if not group.result.done():
            self._ask()
        if self.extra and self.taken - group.number < self.section.overtake * self.section.prompts:
            group = self._first_finished()
        self.pending.remove(group)
        self.taken += 1
        return group.result.result()

    def _follow(self, group: Group) -> None:
        """Has the group's number put among those that have finished, once it has."""

        def came(result: Future[Any]) -> None:
            with self._news:
                heapq.heappush(self._finished, group.number)
                self._news.notify()

        if self.extra:
            group.result.add_done_callback(came)

    def _first_finished(self) -> Group:
        """The oldest of the groups that have finished, which it waits for; none is looked at that has not."""
        while True:
            with self._news:
                self._news.wait_for(lambda: self._finished)
                number = heapq.heappop(self._finished)
            at = bisect.bisect_left(self.pending, number, key=lambda g: g.number)
            if at < len(self.pending) and self.pending[at].number == number:  # else it was taken as the oldest, or left
                return self.pending[at]

    def _run_group(self, prompt: Prompt, number: int) -> tuple[list[Rollout], str | None]:
        """The scored group, or one greedy response and the reason why the prompt was not admitted."""
        asked: list[Rollout] = []
        sampling = numbered(self.sampling, number)

        def ask(n: int, greedy: bool) -> list[Rollout]:
            asked[:] = self._answer(prompt, n, dataclasses.replace(sampling, temperature=0.0) if greedy else sampling)
            return asked

        admit = self.rules.admit
        refused = None if admit is None else admit(prompt, ask)
        return (asked, refused) if refused else (self._answer(prompt, self.section.n, sampling), None)

    def _answer(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        while True:
            try:
                with self.timeline("generate", threading.current_thread().name, prompt=prompt.id):
                    group = self.engine.generate(prompt, n, sampling)
                break
            except Aborted:
                self.aborted += 1
        with self.timeline("reward", threading.current_thread().name, prompt=prompt.id):
            self.scorer.score(group)
        return group

    def next(self, version: int) -> list[Rollout]:
        """The rollouts of the next step; ``rollout.group`` numbers the prompt groups from 0. None where the section asks for no prompts.

        Errors of engines and rewards surface here. Responses without a reward are left out. Without ``refill`` there are fewer groups when
        some are dropped, but at least one.

        Raises:
            RunError: more than ``max_waste * prompts`` groups of one step were dropped.
        """
        out: list[Rollout] = []
        kept = dropped_now = 0
        start = time.perf_counter()
        prompts, refill = self.section.prompts, self.rules.refill
        ahead = self.section.max_lag * prompts + self.extra
        limit = self.taken + prompts + ahead
        while kept + (0 if refill else dropped_now) < prompts or (prompts and not kept):
            if refill == "ahead" and len(self.pending) <= ahead:
                limit = self.taken + self._to_fill(kept, dropped_now) + ahead
            self._admit(limit)
            group, refused = self._take()
            whole = last_of_episodes(group)  # what is counted and judged is an episode, however many rows it is
            self.statistics.step = version
            self.statistics.observe(whole)
            self.sampler.observe(whole)
            if refused is None:
                self.witness(group)
            scored = [r for r in group if not math.isnan(r.reward)]
            judged = [r for r in whole if not math.isnan(r.reward)]
            why = (
                refused or "no_reward"
                if refused or not scored
                else next(filter(None, (rule(judged) for rule in self.rules.drop)), None)
            )
            if why is None:
                for r in scored:
                    r.group = kept
                out.extend(scored)
                kept += 1
                continue
            self.dropped += 1
            dropped_now += 1
            if refill is True or (not refill and dropped_now >= prompts):  # there must be something to train on
                limit += 1
            self.reasons[why] += 1
            if dropped_now > self.section.max_waste * prompts:
                counts = ", ".join(f"{k}: {v}" for k, v in self.reasons.most_common())
                raise RunError(
                    f"{dropped_now} groups were dropped in one step to find {kept} of {prompts} to train on ({counts}; last "
                    f"prompt: {group[0].prompt.id}{', ' + group[0].error if group[0].error else ''}). The task is too easy or too "
                    "hard for the model, or rewards fail. Raise rollout.max_waste, change data.drop, or choose other prompts."
                )
        if refill == "ahead":
            self._leave(ahead)
            self.seen, self.kept = (self.seen + kept + dropped_now) / 2, (self.kept + kept) / 2
        self._ask()
        self.waited = time.perf_counter() - start
        self.versions = version_metrics(out, version)
        return out

    def _to_fill(self, kept: int, dropped: int) -> int:
        """Groups that it will take to keep the step's ``prompts``, of which ``kept`` are there."""
        prompts, share = self.section.prompts, (self.kept + kept) / (self.seen + kept + dropped)
        most = math.ceil(self.section.max_waste * prompts) + prompts - kept - dropped
        return min(most, math.ceil((prompts - kept) / share))

    def _leave(self, ahead: int) -> None:
        """The youngest groups leave, until as many are in flight as the next steps may take."""
        while len(self.pending) > ahead:
            group = self.pending.pop()
            if group in self.unasked:
                self.unasked.remove(group)
            self.taken += 1
            self.dropped += 1
            self.reasons["surplus"] += 1

    def metrics(self) -> dict[str, float]:
        reasons = {f"rollout/dropped_{k}": float(v) for k, v in self.reasons.items()}
        counts = {"rollout/dropped": float(self.dropped), "rollout/aborted": float(self.aborted)}
        return {**counts, **self.versions, **reasons, **self.statistics.metrics(), **self.sampler.metrics()}

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


def version_counts(r: Rollout) -> Mapping[int, int]:
    """How many of a response's tokens each version sampled; nearly always it is one version."""
    first = r.version[0]
    return {first: len(r.version)} if r.version.count(first) == len(r.version) else Counter(r.version)


def version_metrics(rollouts: Sequence[Rollout], step: int) -> dict[str, float]:
    """How old tokens are when step ``step`` (from 0) trains on them, ``step - version``, and how many versions made one response."""
    if not rollouts:
        return {}
    counts = [version_counts(r) for r in rollouts]
    spread = [len(of) for of in counts]
    tokens = sum(len(r.version) for r in rollouts)
    return {
        "rollout/lag_mean": step - sum(v * k for of in counts for v, k in of.items()) / tokens,
        "rollout/lag_max": float(step - min(min(of) for of in counts)),
        "rollout/versions_mean": sum(spread) / len(spread),
        "rollout/versions_max": float(max(spread)),
        "rollout/continued": float(sum(k > 1 for k in spread)),
    }
