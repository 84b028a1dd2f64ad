"""What every number of ``metrics.jsonl`` means, and its unit.

A name in capitals stands for something of the run: ``loss/TERM`` is ``loss/PPOClip``. A test holds the list against the names that the
library writes, so that no metric is without a meaning and no meaning without a metric.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

TOKEN, RESPONSE = "nats per token", "nats per response"


@dataclass(frozen=True)
class Metric:
    """One number of a step, or one for each of several things."""

    name: str
    unit: str
    meaning: str

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Names that it stands for; a reward's own name may have a stroke in it."""
        return re.compile(re.sub(r"[A-Z]{2,}", lambda m: ".+" if m[0] == "PART" else "[^/]+", re.escape(self.name)))


# fmt: off  (a line a metric)
METRICS: tuple[Metric, ...] = (
    Metric("reward/mean", "", "mean reward of the step's responses"),
    Metric("reward/std", "", "standard deviation of the rewards over the step's responses"),
    Metric("reward/equal_groups", "share", "prompt groups whose rewards are all one number: they have no advantage"),
    Metric("reward/errors", "count", "responses so far whose reward raised or gave no number"),
    Metric("reward/timeouts", "count", "responses so far whose reward did not come back within its `timeout`"),
    Metric("reward/PART", "", "mean of one reward, or of one named part of a reward that returns several"),
    Metric("entropy/sampled", TOKEN, "mean of -log mu of the sampled tokens, an unbiased estimate of the entropy"),
    Metric("length/mean", "tokens", "mean length of a response; of an episode, of all its rows"),
    Metric("length/max", "tokens", "longest response"),
    Metric("length/truncated", "share", "responses that ended at the length limit"),
    Metric("length/limit", "tokens", "the limit of now (`rollout.lengths`)"),
    Metric("length/gate_entropy", TOKEN, "the averaged entropy that decides whether the limit may grow"),
    Metric(
        "kl/ref", TOKEN, "mean of log pi - log ref on sampled tokens, before the update: KL(pi‖ref); may be negative"
    ),
    Metric(
        "kl/ref_k3",
        TOKEN,
        "the same KL by k3, u - 1 - log u with u = ref / pi: never negative, less noise where it is small",
    ),
    Metric("kl/ref_sequence", RESPONSE, "the sum of log pi - log ref over a response, mean over responses"),
    Metric(
        "kl/old",
        TOKEN,
        "how far the update moved the policy: w - 1 - log w with w = new / old, averaged over its optimizer steps",
    ),
    Metric("kl_by/position/QUARTER", TOKEN, "`kl/ref` of the tokens of one quarter of their responses (q1: the first)"),
    Metric("kl_by/surprise/QUARTER", TOKEN, "`kl/ref` by quarter of -log mu of the token (q4: the least likely ones)"),
    Metric("kl_by/advantage/SIGN", TOKEN, "`kl/ref` of tokens with a positive, a negative and no advantage"),
    Metric(
        "kl_by/pass_rate/SOLVED", TOKEN, "`kl/ref` of prompts of which none, some and all responses have a reward of 1"
    ),
    Metric(
        "drift/start",
        TOKEN,
        "KL(start‖policy) on responses of the start model, every `log.drift` steps: the forward direction",
    ),
    Metric("drift/start_error", TOKEN, "its standard error"),
    Metric("drift/start_sequence", RESPONSE, "the same, summed over a response"),
    Metric("drift/start_sequence_error", RESPONSE, "its standard error"),
    Metric("mismatch/mean", TOKEN, "mean |log old - log mu|: learner against engine on the engine's own tokens"),
    Metric("mismatch/max", "nats", "the largest such difference"),
    Metric(
        "mismatch/expected",
        TOKEN,
        "`probe.tolerance`: what numbers of the run's type explain of `mismatch/mean`; where nothing is sampled ahead",
    ),
    Metric("ratio/max", "", "the largest ratio pi / mu of a token, learner against engine"),
    Metric("probe/mean", TOKEN, "mean |learner - engine| of the parity probe; above `probe.tolerance` the run stops"),
    Metric("probe/max", "nats", "the largest difference of the probe"),
    Metric("correction/mean_difference", TOKEN, "mean |log old - log mu| where a `correction` is set"),
    Metric("correction/max_difference", "nats", "the largest such difference"),
    Metric(
        "correction/ess", "share", "effective sample size of the uncorrected weights, divided by the number of tokens"
    ),
    Metric("correction/masked", "share", "tokens whose weight is 0"),
    Metric("correction/mean_weight", "", "mean weight of a token after the correction"),
    Metric("loss/total", "", "the loss: the sum of the terms times their coefficients, mean over the optimizer steps"),
    Metric("loss/TERM", "", "one term's cost without its coefficient"),
    Metric("margin/TERM", "", "what a term takes for the reward of better responses, less that of worse ones"),
    Metric(
        "accuracy/TERM", "share", "pairs (or labelled responses) that a term's implicit reward puts in the right order"
    ),
    Metric(
        "nll/SOURCE", TOKEN, "mean negative log-likelihood of rows that are not sampled here, by where they are from"
    ),
    Metric("coef/TERM", "", "coefficient of a term or penalty in the next step"),
    Metric("coef/TERM/STATE", "", "state of its controller (`target`, `measured`, `error`, ...); `held`: set by hand"),
    Metric(
        "gradient/share/TERM",
        "share",
        "a term's part of the summed gradient norms, with respect to the log-probs of sampled tokens",
    ),
    Metric("gradient/cosine/TERM/OTHER", "", "cosine of two terms' gradients: below 0 they work against each other"),
    Metric("learner/grad_norm", "", "the largest gradient norm of the step's optimizer steps, before clipping"),
    Metric("learner/lr", "", "learning rate"),
    Metric(
        "learner/skipped",
        "count",
        "optimizer steps of this step that were not taken because the gradient was not finite",
    ),
    Metric("learner/tokens", "tokens", "action tokens that went through the backward pass"),
    Metric("batch/sequences", "count", "responses of the step"),
    Metric("batch/tokens", "tokens", "tokens of the step's responses that the policy sampled"),
    Metric("batch/given_tokens", "tokens", "trained tokens of rows that were not sampled"),
    Metric("prompts/seen", "share", "prompts that were asked at least once"),
    Metric("prompts/pass_rate_ema", "", "mean over seen prompts of the moving average of their pass rate"),
    Metric("prompts/solved", "share", "seen prompts whose moving average is above 0.9"),
    Metric("prompts/unsolved", "share", "seen prompts whose moving average is below 0.1"),
    Metric("prompts/reward_variance", "", "mean variance of a prompt's rewards"),
    Metric("data/epoch", "epochs", "how often the data has been gone through"),
    Metric("data/epoch/SECTION", "epochs", "the same of `data.pairs`, `labelled` or `demonstrations`"),
    Metric("data/active", "share", "prompts of this epoch; the others are retired"),
    Metric("data/stage", "", "stage of a curriculum of pools, from 0"),
    Metric("data/stage_pass_rate", "", "moving average of that stage's pass rate"),
    Metric("data/share_SET", "share", "how often a data set is drawn now (`Replay`)"),
    Metric("rollout/dropped", "count", "groups so far that were sampled and not trained on"),
    Metric("rollout/dropped_REASON", "count", "those of one reason"),
    Metric(
        "rollout/aborted",
        "count",
        "times so far that a group was asked again because a weight update ended its requests",
    ),
    Metric("rollout/lag_mean", "steps", "mean age of a token's weights when it is trained on"),
    Metric("rollout/lag_max", "steps", "the largest such age"),
    Metric("rollout/versions_mean", "count", "versions of the weights that sampled one response, mean"),
    Metric("rollout/versions_max", "count", "the same, at most"),
    Metric("rollout/continued", "count", "responses that went on through a weight update"),
    Metric("episode/turns", "count", "mean turns of an episode"),
    Metric("episode/rows", "count", "mean rows of an episode: 1 where its history was only appended to"),
    Metric("episode/failed", "count", "episodes so far whose function failed"),
    Metric("time/generate", "seconds", "waiting for responses and rewards"),
    Metric("time/annotate", "seconds", "log-probs and values before the update"),
    Metric("time/update", "seconds", "optimizer steps"),
    Metric("time/sync", "seconds", "weights on their way to the engines"),
    Metric("time/step", "seconds", "the whole step"),
    Metric("speed/tokens_per_second", "tokens/s", "response tokens of the step by its seconds"),
    Metric("sync/mib", "MiB", "weights that were sent: all at first, then what training can change"),
    Metric("idle/engines", "share", "part of the step in which engines did not work"),
    Metric("idle/learners", "share", "part of the step in which learners did not work"),
    Metric(
        "memory/learner_STAGE_mib",
        "MiB",
        "the most that any learner held in `annotate`, `update`, or the `sync` before the step",
    ),
    Metric("memory/engine_mib", "MiB", "the most that any engine held"),
    Metric("memory/driver_mib", "MiB", "memory of the driver's process"),
    Metric("eval/score", "", "the held-out score that was measured before this step"),
    Metric("alarm/NAME", "steps", "steps so far in which an alarm held"),
)
# fmt: on


def meaning(name: str) -> Metric | None:
    """The entry of a metric's name: that of the name itself, else the first that the name fits; None: nothing is known about it."""
    for found in METRICS:
        if found.name == name:
            return found
    return next((m for m in METRICS if m.pattern.fullmatch(name)), None)
