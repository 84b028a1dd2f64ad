"""What a step measured: seconds by stage, rewards, lengths, KL, how busy engines and learners were."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from rlkit.files import Row
from rlkit.objective.coefficients import distinct
from rlkit.objective.corrections import correction_stats
from rlkit.objective.diagnostics import gradient_shares, kl_breakdown, kl_of_sequences, kl_tokens
from rlkit.record.memory import resident
from rlkit.record.transcripts import pieces
from rlkit.samples import by_episode, last_of_episodes
from rlkit.session import Session
from rlkit.types import Batch, Rollout, Stats


class Clock:
    """Seconds by stage of one step, and what engines and learners had worked when it began."""

    def __init__(self, s: Session) -> None:
        self.start, self.stages, self.timeline = time.perf_counter(), dict[str, float](), s.record.timeline
        self.engines_busy, self.learners_busy = s.fleet.engines.busy(), s.fleet.learners.busy()

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        with self.timeline(stage):
            yield
        self.stages[stage] = self.stages.get(stage, 0.0) + time.perf_counter() - start


def summarize(
    s: Session, step: int, stats: Stats, rollouts: Sequence[Rollout], batch: Batch, given: int, clock: Clock
) -> None:
    """Everything a step measured, under ``stage/name``. ``batch``: of the step's own samples; ``given``: tokens of the other rows."""
    fleet, controls = s.fleet, s.controls
    values = sampled(s, rollouts, batch) if rollouts else {"batch/tokens": 0.0}
    values |= {f"data/epoch/{rows.spec.key}": rows.epoch(step) for rows in s.feed.examples}
    tokens = sum(len(r.tokens) for r in rollouts) or given
    if s.run.correction is not None and rollouts:
        correction_stats(batch, stats)
    total = time.perf_counter() - clock.start
    values |= {f"time/{k}": v for k, v in clock.stages.items()}
    values |= {
        "time/step": total,
        "speed/tokens_per_second": tokens / total,
        "memory/driver_mib": resident(),
        "memory/engine_mib": fleet.engines.peak(),
    }
    if given:
        values["batch/given_tokens"] = float(given)
    if "mismatch/mean" in stats and not s.run.rollout.max_lag and not s.run.rollout.over:
        values["mismatch/expected"] = s.run.probe_tolerance
    stats.update({k: v for k, v in values.items() if k not in stats})
    if controls.lengths is not None:
        stats.update(controls.lengths.metrics())
        controls.lengths.observe(step, values["entropy/sampled"])
    stats.update(
        {
            "idle/engines": max(0.0, 1 - (fleet.engines.busy() - clock.engines_busy) / total),
            "idle/learners": max(0.0, 1 - (fleet.learners.busy() - clock.learners_busy) / total),
        }
    )
    stats.update(s.feed.collector.metrics() | s.feed.scorer.metrics())
    stats.update(controls.terms.metrics() | controls.penalties.metrics())


def sampled(s: Session, rollouts: Sequence[Rollout], batch: Batch) -> dict[str, float]:
    """What there is to say of a step's own samples."""
    tokens = sum(len(r.tokens) for r in rollouts)
    whole, episodes = batch.by_episode(), last_of_episodes(rollouts)
    rewards = whole.reward
    log_behav = batch.logp["behav"]
    values = {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std(correction=0)) if rewards.min() < rewards.max() else 0.0,
        "reward/equal_groups": equal_groups(whole),
        "entropy/sampled": float(-log_behav.mean()),  # unbiased: the expectation of -log mu under mu
        "length/mean": tokens / len(episodes),
        "length/max": float(max(len(r.tokens) for r in rollouts)),
        "length/truncated": sum(r.finish == "length" for r in episodes) / len(episodes),
        "batch/sequences": float(len(rollouts)),
        "batch/tokens": float(batch.N),
    }
    for name in sorted({k for r in episodes for k in r.parts}):
        scored = [r.parts[name] for r in episodes if name in r.parts]
        values[f"reward/{name}"] = sum(scored) / len(scored)
    if "ref" in batch.logp:
        per_response = whole.seq_sum(whole.logp.get("old", log_behav) - whole.logp["ref"])
        values["kl/ref_sequence"] = float(per_response.mean())
        s.record.statistics.observe_kl(episodes, per_response.tolist())
    if s.feed.player is not None:
        turns = [len({t for r in rows for t in r.turn or () if t >= 0}) for rows in by_episode(rollouts)]
        values |= {"episode/turns": sum(turns) / len(turns), "episode/rows": len(rollouts) / len(turns)}
        values |= s.feed.player.metrics()
    return values


def equal_groups(b: Batch) -> float:
    """The share of prompt groups (of two or more responses) whose rewards are all one number; 0 if there is no such group."""
    lowest, highest = (
        b.reward.new_zeros(b.G).scatter_reduce(0, b.group, b.reward, how, include_self=False)
        for how in ("amin", "amax")
    )
    several = torch.bincount(b.group, minlength=b.G) > 1
    return float((lowest == highest)[several].double().mean()) if bool(several.any()) else 0.0


def break_down(
    s: Session, stats: Stats, batch: Batch, step: int, rollouts: Sequence[Rollout]
) -> tuple[Stats, list[Row]]:
    """Adds where the KL and the gradients come from; ``kl_tokens.jsonl`` gets the tokens that carry most of the KL.

    Also returns what is known about the tokens of the first ``log.rollouts`` responses: more keys for their lines of ``rollouts.jsonl``.
    """
    shares = gradient_shares(stats, distinct(s.run.objective))
    stats = stats.without("gram/").update(shares | kl_breakdown(batch))
    if "ref" in batch.logp:
        tokenizer = s.feed.tokenizer
        tokens = kl_tokens(batch, lambda i: str(tokenizer.convert_ids_to_tokens(i)))
        s.record.log.append("kl_tokens.jsonl", {"step": step, "tokens": tokens})
    first = rollouts[: s.run.log.rollouts]
    kl = iter(kl_of_sequences(batch, sum(r.source == "policy" for r in first)))
    return stats, [token_details(r, next(kl), s.feed.tokenizer) if r.source == "policy" else {} for r in first]


def token_details(r: Rollout, kl: list[float] | None, tokenizer: Any) -> Row:
    """What a response's line gets: its text in pieces, and of each piece the surprise ``-log mu`` and ``kl``, in nats.

    A piece is a token, or the few tokens that are one character; tokens that the policy did not sample have none of either.
    """
    cut = pieces(r.tokens, lambda ids: str(tokenizer.decode(ids)))
    sampled = iter(kl or ())
    per_token = {"surprise": [-x if own else 0.0 for x, own in zip(r.logp, r.sampled, strict=True)]}
    if kl is not None:
        per_token["kl"] = [next(sampled) if own else 0.0 for own in r.sampled]
    ends = list(itertools.accumulate(count for _, count in cut))
    sums = {
        name: [round(math.fsum(values[end - count : end]), 4) for (_, count), end in zip(cut, ends, strict=True)]
        for name, values in per_token.items()
    }
    return {"pieces": [text for text, _ in cut], **sums}
