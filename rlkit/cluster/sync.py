"""Weights from the learners to the engines, and the probe that proves they arrived."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rlkit.cluster.groups import EngineGroup, LearnerGroup
from rlkit.errors import EngineError
from rlkit.rollout.engine import UpdateMode
from rlkit.types import Prompt, Sampling, Stats


class WeightSync:
    """After :meth:`publish` returns, every new token carries ``version``.

    The first publish sends all weights, whatever the engines started with; later ones send those that training can change: with an
    adapter, the merged weights of what it adapts. They travel in buckets: on Ray from learner rank 0 through the object store to every
    engine without passing through the driver, the next one gathered while engines load the last, so that two exist at a time; in one
    process the engine reads them in place.
    """

    def __init__(self, learners: LearnerGroup, engines: EngineGroup, mode: UpdateMode) -> None:
        self.learners, self.engines, self.mode = learners, engines, mode
        self._complete = False  # the engines have had all weights

    def publish(self, version: int) -> Stats:
        start = time.perf_counter()
        stats = Stats()
        buckets = self.learners.buckets(everything=not self._complete)
        handles = (self.learners.gather(names) for names, _ in buckets)
        ahead = next(handles)
        self.engines.begin_update(self.mode)
        for _ in buckets:
            bucket, ahead = ahead, next(handles, None)
            self.engines.load(bucket)
            del bucket  # or three would exist while the next one is gathered
        self.engines.end_update(version)
        self._complete = True
        stats.add("time/sync", time.perf_counter() - start, "sum")
        stats.add("sync/mib", sum(nbytes for _, nbytes in buckets) / 2**20, "last")
        return stats


def probe_parity(
    learners: LearnerGroup,
    engines: EngineGroup,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    tolerance: float,
    version: int,
) -> Stats:
    """Samples a few responses on every engine and compares its log-probs with the learner's.

    Raises:
        RuntimeError: the mean absolute difference of an engine is above ``tolerance`` nats, with what to look at.
    """
    stats = Stats()
    for i in range(engines.workers.size):
        rollouts = [r for prompt in prompts for r in engines.generate_on(i, prompt, 2, sampling)]
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
