"""Weights from the learners to the engines and to files, and the probes that prove that they arrived."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rlkit.cluster.groups import EngineGroup, LearnerGroup
from rlkit.cluster.routes import Route, Store
from rlkit.errors import EngineError, ModelError
from rlkit.rollout.engine import UpdateMode
from rlkit.types import Prompt, Rollout, Sampling, Stats


class WeightSync:
    """After :meth:`publish` returns, every new token carries ``version``.

    The first publish sends all weights, whatever the engines started with; later ones send those that training can change: with an
    adapter, the merged weights of what it adapts. They take a ``route`` (:mod:`rlkit.cluster.routes`), in buckets of which two exist at a
    time, and never pass through the driver; in one process the engine reads them in place.

    An engine that was started again gets all weights: at once if the learners' are still those of the last version, else with the next.
    Then ``check(engine, version)`` says whether it samples what the learner trains, and it gets requests.
    """

    def __init__(
        self,
        learners: LearnerGroup,
        engines: EngineGroup,
        mode: UpdateMode,
        check: Callable[[int, int], object] = lambda engine, version: None,
        route: Route | None = None,
    ) -> None:
        self.learners, self.engines, self.mode, self.check = learners, engines, mode, check
        self.route = Store() if route is None else route
        self.version = 0
        self._complete: set[tuple[int, int]] = set()  # (engine, which life of it) that have had all weights
        self._joining: set[int] = set()  # engines that were started again and get no requests yet
        engines.join, engines.turns.refill = self.join, self.refill

    def publish(self, version: int) -> Stats:
        start = time.perf_counter()
        stats = Stats()
        with self.engines.turns.loading(), self.learners.lock:
            nbytes = self._send(version, sorted({*self.engines.up(), *self._joining}))
            self.version, self.learners.moved = version, False
            self._welcome()
        stats.add("time/sync", time.perf_counter() - start, "sum")
        stats.add("sync/mib", nbytes / 2**20, "last")
        return stats

    def join(self, index: int) -> None:
        """Called from another thread than the training loop's, which may hold the learners."""
        with self.learners.lock:
            self._joining.add(index)
            if not self.learners.moved:
                self._send(self.version, [index])
                self._welcome()

    def refill(self) -> None:
        """Gives all engines the weights of the last publish once more: those that slept have lost theirs."""
        assert not self.learners.moved, "engines never answer between an update and its publish"
        self._complete.clear()
        self._send(self.version, self.engines.up())

    def _send(self, version: int, which: list[int]) -> int:
        """Bytes that went to each of the engines ``which``; a run may have none."""
        if not self.engines.size:
            return 0
        now = {i: (i, self.engines.life(i)) for i in which}
        everything = not self._complete.issuperset(now.values())
        which = self.route(self.learners, self.engines, which, self.mode, everything)
        self._complete = {*self._complete, *(now[i] for i in self.engines.end_update(version, which))}
        return sum(nbytes for _, nbytes in self.learners.buckets(everything))

    def _welcome(self) -> None:
        for i in sorted(self._joining):
            if (i, self.engines.life(i)) in self._complete:
                self.check(i, self.version)
                self._joining.discard(i)
                if (i, self.engines.life(i)) in self._complete:  # it has survived the check
                    self.engines.admit(i)


def probe_parity(
    learners: LearnerGroup,
    engines: EngineGroup,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    tolerance: float,
    version: int,
    which: Sequence[int] | None = None,
) -> Stats:
    """Samples a few responses on every engine (or on those of ``which``) and compares its log-probs with the learner's.

    Raises:
        EngineError: the mean absolute difference of an engine is above ``tolerance`` nats, with what to look at.
    """
    stats = Stats()
    for i in engines.up() if which is None else which:
        groups = [engines.generate_on(i, prompt, 2, sampling) for prompt in prompts]
        rollouts = [r for group in groups if group is not None for r in group]
        # An engine was lost; the one that takes its place is probed before it gets requests.
        if len(rollouts) < 2 * len(prompts):
            continue
        stale = sorted({v for r in rollouts for v in r.version} - {version})
        if stale:
            raise EngineError(
                f"parity probe: engine {i} still samples with weight version {stale[0]} after version "
                f"{version} was published. Its weight update did not take effect."
            )
        pairs = [
            (a, b)
            for r, learned in zip(rollouts, learners.logprobs(rollouts), strict=True)
            for a, b in zip((x for x, s in zip(r.logp, r.sampled, strict=True) if s), learned, strict=True)
        ]
        gaps = [abs(a - b) for a, b in pairs]
        mean, worst = sum(gaps) / len(gaps), max(gaps)
        stats.add("probe/mean", mean, "max")
        stats.add("probe/max", worst, "max")
        if mean > tolerance:
            raise EngineError(
                f"parity probe: engine {i} and the learner disagree on the log-probs of the engine's own samples by {mean:.2g} "
                f"nats on average ({worst:.2g} at most; probe.tolerance is {tolerance:g}), at weight version {version}. "
                "Look at, in this order: a vllm: option that changes the model (quantization, kv_cache_dtype, rope), "
                "model.dtype against vllm.dtype, sampling settings that the engine applies and the learner does not, "
                "an adapter that was not merged. In bfloat16 a gap of 0.01 to 0.03 is normal."
            )
    return stats


def mean_gap(one: Sequence[Sequence[float]], two: Sequence[Sequence[float]]) -> float:
    """The mean absolute difference of the log-probs of the same tokens."""
    gaps = [abs(a - b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(gaps) / len(gaps)


def probe_reference(learners: LearnerGroup, rollouts: Sequence[Rollout], tolerance: float) -> None:
    """Compares the reference with the model that training starts from, before the first step.

    Raises:
        ModelError: the mean absolute difference is above ``tolerance`` nats.
    """
    gap = mean_gap(learners.logprobs(rollouts), learners.logprobs(rollouts, "ref"))
    if not gap <= tolerance:
        raise ModelError(
            f"reference probe: before the first step, the reference differs from the policy by {gap:.2g} nats per token on average, but "
            "both are the model that training starts from. An adapter's initialisation that moves the model (peft.init_lora_weights) does "
            "this; to train towards another model, name it: reference: {type: Frozen, path: ...}."
        )


def probe_export(learners: LearnerGroup, folder: str, rollouts: Sequence[Rollout], tolerance: float) -> float:
    """Loads an exported model again, with transformers alone, and compares it with the trained one; returns the mean difference in nats.

    Raises:
        EngineError: the mean absolute difference is above ``tolerance`` nats.
    """
    mean = mean_gap(learners.reloaded(folder, rollouts), learners.logprobs(rollouts))
    if not mean <= tolerance:
        raise EngineError(
            f"export probe: the model in {folder}, loaded again with transformers, differs from the trained one by {mean:.2g} nats on "
            f"average (probe.tolerance is {tolerance:g}). The checkpoint of the last step holds what was trained; "
            "look at peft: options that change more than weights, and at the versions of transformers and peft. probe.final: false "
            "leaves the comparison out."
        )
    return mean
