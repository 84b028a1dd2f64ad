"""The data that flows through rlkit, and the one legend of its letters and units.

Letters
    L  packed model tokens (prompts and responses of all sequences, one after the other)
    N  action tokens: sampled by the policy and trained
    S  sequences        G  prompt groups        V  vocabulary        K  top-k entries
    P  pairs of sequences, a better and a worse one
    A suffix says the shape where two shapes meet: ``logp_N``, ``reward_S``. ``PerToken``, ``PerSequence`` and ``PerPair`` say it in
    annotations. Tests check both at every call (``tests/shapes.py``).

Alignment
    Every ``[N]`` tensor is about the action token itself, given its prefix. The one shift by a position
    of the code base is in :class:`rlkit.model.policy.PolicyModel`.

Units
    Log-probabilities and KL in nats, lengths in tokens, times in seconds; float32 outside the model.
    Log-probabilities are those of the distribution that was really sampled from (after temperature, top-p).

Policies
    ``behav``   the policy that sampled (the inference engine)
    ``old``     the learner's own log-prob before this update
    ``ref``     the reference, the anchor of the KL
    ``teacher`` a teacher that is distilled
    ``new``     the model under training (with gradient)

What a prompt and a response are stands in :mod:`rlkit.samples`, which processes import that have no use for torch.
"""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from rlkit.errors import ConfigError, NumericsError
from rlkit.samples import SOURCES as SOURCES
from rlkit.samples import Finish as Finish
from rlkit.samples import Prompt as Prompt
from rlkit.samples import Rollout as Rollout
from rlkit.samples import Sampling as Sampling
from rlkit.samples import Source as Source
from rlkit.samples import by_episode

# Nats by which two ways to compute the same log-probs may differ on average, by the type of the weights.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}
PerToken = Annotated[Tensor, "N"]
PerSequence = Annotated[Tensor, "S"]
PerPair = Annotated[Tensor, "P"]
RUNS = 16  # of neighbours among kept sequences, up to which tokens are taken by slices


def _runs(start: Tensor, count: Tensor) -> Tensor:
    """``start[0], start[0] + 1, ...`` (``count[0]`` of them), then the run of ``start[1]``, and so on."""
    ends = count.cumsum(0)
    return torch.arange(int(count.sum()), device=start.device) + repeat(start - ends + count, count)


def repeat(x: Tensor, count: Tensor) -> Tensor:
    """``torch.repeat_interleave``, which on CPUs takes ten times as long as numpy's."""
    if x.device.type == "cpu":
        return torch.from_numpy(np.repeat(x.numpy(), count.numpy()))
    return torch.repeat_interleave(x, count)


def all_finite(x: Tensor) -> bool:
    """Whether all numbers are: a sum in float64 is finite just then, and made in a sixth of the time that asking each takes."""
    return math.isfinite(float(x.sum(dtype=torch.float64)))


@dataclass(frozen=True)
class _Bits:
    """A tensor of bfloat16, which numpy does not know."""

    of: Any


def _as_array(x: Any) -> Any:
    if not isinstance(x, Tensor) or x.device.type != "cpu" or x.requires_grad:
        return x
    return _Bits(x.view(torch.int16).numpy()) if x.dtype == torch.bfloat16 else x.numpy()


def _as_tensor(x: Any) -> Any:
    if isinstance(x, _Bits):
        return _as_tensor(x.of).view(torch.bfloat16)
    # Ray's object store gives arrays that must not be written to, and keeps all of them while one is used.
    return torch.from_numpy(x if x.flags.writeable else x.copy()) if isinstance(x, np.ndarray) else x


def _each(fn: Callable[[Any], Any], value: Any) -> Any:
    """``fn`` of a value, or of all values of mappings of them."""
    return {k: _each(fn, x) for k, x in value.items()} if isinstance(value, Mapping) else fn(value)


class _Tokens:
    """The tokens of the sequences ``kept`` (ascending), of which sequence ``s`` has ``edge[s]`` to ``edge[s + 1]``.

    They are taken as whole slices where few runs of neighbours are kept, which is a copy at the speed of memory, or none; else by index.
    """

    def __init__(self, kept: Tensor, edge: Tensor) -> None:
        self.kept, self.edge, self.count = kept, edge, edge.diff()[kept]
        gap = (kept.diff() != 1).nonzero()[:, 0]
        self.slices: list[slice] | None = None
        if len(kept) and len(gap) < RUNS:
            # The place among ``kept`` where each run begins, and where it has ended.
            self.begin = torch.cat([gap.new_zeros(1), gap + 1])
            end = torch.cat([gap + 1, gap.new_full((1,), len(kept))])
            first, last = kept[self.begin], kept[end - 1] + 1
            self.slices = [slice(a, b) for a, b in torch.stack([edge[first], edge[last]], 1).tolist()]
        else:
            self.index = _runs(edge[kept], self.count)

    def of(self, x: Tensor) -> Tensor:
        """What is known of the tokens."""
        if self.slices is None:
            return x[self.index]
        return x[self.slices[0]] if len(self.slices) == 1 else torch.cat([x[part] for part in self.slices])

    def moved(self, x: Tensor, by: Tensor) -> Tensor:
        """The same, plus ``by`` ``[kept]``, which is one number for neighbours."""
        if self.slices is None:
            return x[self.index] + repeat(by, self.count)
        parts = [x[part] + own for part, own in zip(self.slices, by[self.begin].tolist(), strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True, eq=False)
class Batch:
    """What advantages and losses see; the same type on the driver and on a rank.

    Flat: losses run on the ``N`` action tokens, so no term ever multiplies by a mask or divides by its sum.

    Nothing writes into a batch: what is learned about it (log-probs, advantages, weights) makes another one by :meth:`replace`. So batches
    may share tensors, and no micro-batch can change what another one holds.
    """

    seq: PerToken  # sequence of each action token, ascending
    group: PerSequence  # prompt group of each sequence
    source: PerSequence  # index into SOURCES
    reward: PerSequence
    logp: Mapping[str, PerToken] = field(default_factory=dict)  # "behav" always; "old", "ref", ... on demand
    # What an anchor gave of whole distributions that learners do not make themselves, by its name: "ids" and "logp", both [N, K], are its
    # most likely tokens (rlkit.objective.full_vocab.TopK), or "hidden", [N, H], the states from which its output layer makes all of them.
    whole: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    value: PerToken | None = None
    token_reward: PerToken | None = None  # reward of single tokens (KL penalties), beside the sequence's own
    earned: PerToken | None = None  # the part of the reward that single tokens earned, a turn's at its last
    turn: PerToken | None = None  # which generation of its episode sampled a token, ascending; None: all of one
    adv: PerToken | None = None
    returns: PerToken | None = None  # what the value function is trained towards
    weight: PerToken | None = None  # detached train/inference correction, see objective.corrections
    episode: PerSequence | None = None  # those of one number share credit and stand together; None: each is by itself
    cols: Mapping[str, PerSequence] = field(default_factory=dict)  # prompt columns, e.g. v_star; rewards as part:NAME
    norm: Annotated[Tensor, "terms S"] | None = None  # weight of each token of a sequence in each term's mean
    marks: Mapping[str, PerToken] = field(default_factory=dict)  # what a term's `mark` says of each token, by its name
    # the model's input
    ids: Annotated[Tensor, "L"] | None = None  # prompts and responses, packed
    length: PerSequence | None = None  # prompt + response tokens; sums to L
    action: PerToken | None = None  # index into [L] of each action token
    prompt: tuple[str, ...] = ()  # ids of the sequences' prompts, for messages; () where nobody knows them
    dataset: tuple[
        str, ...
    ] = ()  # the set that each sequence's prompt is from, by its name (the column ``dataset``); () as above
    pairs: Annotated[Tensor, "P two"] | None = None  # the sequences (better, worse) of each pair, both of one group
    idle: bool = False  # a copy of some row with weight 0: its rank takes part in the collectives and adds nothing

    def replace(self, **changes: Any) -> Batch:
        """A batch with other values; ``self`` stays as it is."""
        return dataclasses.replace(self, **changes)

    def __getstate__(self) -> dict[str, Any]:
        """Tensors travel as numpy arrays: a tensor's own pickle takes ten times as long, and of a view takes the whole."""
        return {name: _each(_as_array, value) for name, value in self.__dict__.items()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update({name: _each(_as_tensor, value) for name, value in state.items()})

    def with_logp(self, **found: Tensor) -> Batch:
        """With these log-probs beside the others."""
        return self.replace(logp={**self.logp, **found})

    @property
    def S(self) -> int:
        return int(self.reward.shape[0])

    @property
    def N(self) -> int:
        return int(self.seq.shape[0])

    @property
    def G(self) -> int:
        """Number of group labels, the largest label + 1 (a shard may hold only some of them)."""
        return int(self.group.max()) + 1 if self.S else 0

    @property
    def P(self) -> int:
        return 0 if self.pairs is None else int(self.pairs.shape[0])

    def halves(self, x_S: Tensor) -> tuple[PerPair, PerPair]:
        """What a number of each sequence is for the better and for the worse one of each pair; keeps gradient."""
        assert self.pairs is not None, "a batch without pairs has no halves"
        better, worse = self.pairs.unbind(1)
        return x_S[better], x_S[worse]

    def seq_sum(self, x_N: Tensor) -> PerSequence:
        """Sum over the action tokens of each sequence; keeps gradient."""
        return x_N.new_zeros(self.S).index_add(0, self.seq, x_N)

    def edge(self) -> Tensor:
        """``[S + 1]``: the action tokens of sequence ``s`` are those from ``edge[s]`` up to ``edge[s + 1]``."""
        return torch.searchsorted(self.seq, torch.arange(self.S + 1, device=self.seq.device))

    def count(self) -> PerSequence:
        """Number of action tokens of each sequence, as whole numbers."""
        return torch.bincount(self.seq, minlength=self.S)

    def seq_len(self) -> PerSequence:
        """Number of action tokens of each sequence, at least 1 so that it can be divided by."""
        return self.count().clamp(min=1).to(self.reward.dtype)

    def seq_mean(self, x_N: Tensor) -> PerSequence:
        """Mean over the action tokens of each sequence."""
        return self.seq_sum(x_N) / self.seq_len().to(x_N.dtype)

    def seq_cumsum(self, x_N: Tensor) -> PerToken:
        """Sum over the sequence's action tokens up to and including each one; keeps gradient.

        Summed in float64: differences of a running sum over a whole batch would lose float32's digits.
        """
        total = x_N.to(torch.float64).cumsum(0)
        first = self.edge()[:-1]
        before = (total - x_N)[first.clamp(max=max(0, self.N - 1))] if self.N else total.new_zeros(self.S)
        return (total - before[self.seq]).to(x_N.dtype)

    def reward_to_go(self, x_N: Tensor) -> PerToken:
        """Sum over this and all later action tokens of the sequence."""
        return self.seq_sum(x_N)[self.seq] - self.seq_cumsum(x_N) + x_N

    def group_sum(self, x_S: Tensor) -> Annotated[Tensor, "G"]:
        """Sum over the sequences of each prompt group."""
        return x_S.new_zeros(self.G).index_add(0, self.group, x_S)

    def group_size(self) -> Annotated[Tensor, "G"]:
        """Number of sequences of each group, at least 1."""
        return torch.bincount(self.group, minlength=self.G).clamp(min=1).to(self.reward.dtype)

    def groups(self) -> Sequence[Tensor]:
        """The sequences of each prompt group, ascending."""
        order = self.group.argsort(stable=True)
        found: Sequence[Tensor] = order.split(
            torch.unique_consecutive(self.group[order], return_counts=True)[1].tolist()
        )
        return found

    def rows(self, keep: PerSequence) -> Batch:
        """The sub-batch of the sequences where ``keep`` (bool) holds, a new object; group labels stay as they are, and a pair stays if both
        of its sequences do.
        """
        return self.parts([keep.nonzero()[:, 0]])[0]

    def parts(self, rows: Sequence[Tensor]) -> list[Batch]:
        """The sub-batches of these sequences (ascending indices), of which each is in one part at most; as :meth:`rows` for each.

        Linear in the tokens, however many parts there are. What stands together already is a view of this batch.
        """
        if len(rows) == 1 and len(rows[0]) == self.S:
            return [self.map(lambda x: x)]
        edge = self.edge()
        # The same of packed tokens.
        start = None if self.length is None else torch.cat([self.length.new_zeros(1), self.length.cumsum(0)])
        return [self._part(kept, edge, start, pairs) for kept, pairs in zip(rows, self._pairs_of(rows), strict=True)]

    def _pairs_of(self, rows: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """The pairs whose sequences are both in a part, by their places in it."""
        if self.pairs is None:
            return [None] * len(rows)
        part, place = (torch.full((self.S,), -1, device=self.pairs.device) for _ in range(2))
        for k, kept in enumerate(rows):
            part[kept], place[kept] = k, torch.arange(len(kept), device=kept.device)
        better, worse = part[self.pairs].unbind(1)
        inside = ((better == worse) & (better >= 0)).nonzero()[:, 0]
        of = better[inside]
        inside = inside[of.argsort(stable=True)]
        count = torch.bincount(of, minlength=len(rows))
        found: Sequence[Tensor] = place[self.pairs[inside]].split(count.tolist())
        return found

    def _part(self, kept: Tensor, edge: Tensor, start: Tensor | None, pairs: Tensor | None) -> Batch:
        tokens = _Tokens(kept, edge)
        pick, place = tokens.of, torch.arange(len(kept), device=kept.device)
        model: dict[str, Tensor] = {}
        if self.ids is not None:
            assert self.length is not None and self.action is not None and start is not None
            length = self.length[kept]
            model["ids"], model["length"] = _Tokens(kept, start).of(self.ids), length
            model["action"] = tokens.moved(self.action, length.cumsum(0) - length - start[kept])

        def maybe(x: Tensor | None) -> Tensor | None:
            return None if x is None else pick(x)

        return self.replace(
            seq=tokens.moved(self.seq, place - kept),
            group=self.group[kept],
            source=self.source[kept],
            reward=self.reward[kept],
            logp={k: pick(v) for k, v in self.logp.items()},
            whole={k: {part: pick(x) for part, x in v.items()} for k, v in self.whole.items()},
            value=maybe(self.value),
            token_reward=maybe(self.token_reward),
            earned=maybe(self.earned),
            turn=maybe(self.turn),
            adv=maybe(self.adv),
            returns=maybe(self.returns),
            weight=maybe(self.weight),
            episode=None if self.episode is None else self.episode[kept],
            cols={k: v[kept] for k, v in self.cols.items()},
            marks={k: pick(v) for k, v in self.marks.items()},
            norm=None if self.norm is None else self.norm[:, kept],
            prompt=tuple(self.prompt[i] for i in kept.tolist()) if self.prompt else (),
            dataset=tuple(self.dataset[i] for i in kept.tolist()) if self.dataset else (),
            pairs=pairs,
            **model,
        )

    def by_episode(self) -> Batch:
        """The same tokens in the same order, with each episode as one sequence: how rewards, advantages and means see it.

        Only the model's input, which belongs to the single sequences, is left out. Where no episode has several sequences, it is ``self``.
        """
        if self.episode is None:
            return self
        number = self.episode_of()
        first = torch.searchsorted(number, torch.arange(int(number[-1]) + 1 if self.S else 0, device=number.device))
        return self.replace(
            seq=number[self.seq],
            group=self.group[first],
            source=self.source[first],
            reward=self.reward[first],
            cols={k: v[first] for k, v in self.cols.items()},
            norm=None if self.norm is None else self.norm[:, first],
            prompt=tuple(self.prompt[i] for i in first.tolist()) if self.prompt else (),
            dataset=tuple(self.dataset[i] for i in first.tolist()) if self.dataset else (),
            pairs=None if self.pairs is None else number[self.pairs],
            episode=None,
            ids=None,
            length=None,
            action=None,
        )

    def episode_of(self) -> PerSequence:
        """The sequence of :meth:`by_episode` that each sequence is a part of."""
        if self.episode is None:
            return torch.arange(self.S, device=self.reward.device)
        number: Tensor = torch.unique_consecutive(self.episode, return_inverse=True)[1]
        return number

    def place(self, s: int, n: int | None = None) -> str:
        """Where sequence ``s`` (and its action token ``n``) is, in words for a message."""
        who = f"a response to prompt {self.prompt[s]}" if self.prompt else f"sequence {s}"
        if n is None:
            return who
        token = f"token {n - int(torch.searchsorted(self.seq, s))}"
        if self.ids is not None and self.action is not None:
            token += f" (id {int(self.ids[self.action[n]])})"
        return f"{token} of {who}"

    def check_finite(self) -> None:
        """Raises NumericsError for a reward, advantage, value target or weight that is not finite; names its prompt.

        Rewards count where advantages were made of them: a batch without advantages may have none.
        """
        bad = (self.source == SOURCES.index("policy")) & ~self.reward.isfinite()
        if self.adv is not None and bool(bad.any()):
            s = int(bad.nonzero()[0])
            raise NumericsError(
                f"the reward of {self.place(s)} is {float(self.reward[s])} ({int(bad.sum())} such responses). Rewards must be finite: "
                "mend the reward function for this response, or return None where there is no verdict."
            )
        parts = {
            "token reward": self.token_reward,
            "value": self.value,
            "advantage": self.adv,
            "value target": self.returns,
            "correction weight": self.weight,
        }
        for name, x in parts.items():
            if x is not None and not all_finite(x):
                self.check_tokens(name, x, x.isfinite())

    def check_tokens(self, name: str, x_N: Tensor, good: PerToken) -> None:
        """Raises NumericsError for the first token where ``good`` (bool) does not hold of ``x_N``."""
        if bool(good.all()):
            return
        n = int((~good).nonzero()[0])
        raise NumericsError(
            f"the {name} at {self.place(int(self.seq[n]), n)} is {float(x_N[n])} ({int((~good).sum())} of {self.N} tokens). No step was "
            "taken. Look at this prompt's rewards and log-probs in rollouts.jsonl; if the model itself gives such numbers, continue from "
            "the checkpoint before it with a lower learner.lr."
        )

    def policy_rows(self) -> Batch:
        """The sequences that the policy sampled in this step, without log-probs that only stored rows have."""
        part = self.rows(self.source == SOURCES.index("policy"))
        known = {k: v for k, v in part.logp.items() if not bool(v.isnan().all())}
        return part.replace(logp=known)

    def map(self, fn: Any) -> Batch:
        """A copy with ``fn`` applied to every tensor (``lambda t: t.to(device)``)."""

        def one(x: Any) -> Any:
            return fn(x) if isinstance(x, Tensor) else x

        return self.replace(**{f.name: _each(one, getattr(self, f.name)) for f in dataclasses.fields(self)})

    @classmethod
    def from_rollouts(
        cls, rollouts: Sequence[Rollout], columns: Iterable[str] = (), parts: Iterable[str] = ()
    ) -> Batch:
        """Packs rollouts; ``columns`` names the numeric prompt columns that some term reads, ``parts`` rewards by their name. A chosen
        and a rejected response of one group are a pair.

        Raises:
            ConfigError: a rollout without a sampled token, log-probs that are not finite, or a missing column.
        """
        ids, length, before = array("q"), list[int](), list[int]()  # before: tokens of the prompt
        flags = bytearray()  # of each packed token, whether the policy sampled it
        behav, ref = array("f"), array("f")  # of each token of a response
        stored = any(r.ref_logp is not None for r in rollouts)
        known: dict[int, array[int]] = {}  # prompts of a group are one object
        for s, r in enumerate(rollouts):
            if not len(r.tokens) == len(r.sampled) == len(r.logp):
                raise ConfigError(
                    f"{_where(s, r)}: {len(r.tokens)} tokens, {len(r.sampled)} sampled flags and "
                    f"{len(r.logp)} log-probs; they must be equally many."
                )
            prompt = known.get(id(r.prompt)) or known.setdefault(id(r.prompt), array("q", r.prompt.token_ids))
            ids.extend(prompt)
            ids.extend(array("q", r.tokens))
            before.append(len(prompt))
            length.append(len(prompt) + len(r.tokens))
            flags.extend(bytes(len(prompt)))
            flags.extend(b"\1" * len(r.tokens) if all(r.sampled) else bytes(map(bool, r.sampled)))
            behav.extend(array("f", r.logp))
            if stored:
                ref.extend(array("f", [math.nan] * len(r.tokens) if r.ref_logp is None else r.ref_logp))
        lengths, prompts = torch.tensor(length, dtype=torch.long), torch.tensor(before, dtype=torch.long)
        action = _flat(flags, torch.uint8).nonzero()[:, 0]
        # The first action token of each sequence, which are in the order of packed tokens.
        edge = torch.searchsorted(action, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))
        seq = repeat(torch.arange(len(rollouts)), edge.diff())
        # Where each action token is among the tokens of all responses: nearly always, they are the same.
        answered = slice(None) if len(action) == len(behav) else action - prompts.cumsum(0)[seq]
        logp = {"behav": _flat(behav, torch.float32)[answered]}
        if stored:
            logp["ref"] = _flat(ref, torch.float32)[answered]
        given = torch.tensor([r.ref_logp is not None for r in rollouts], dtype=torch.bool)
        if not all_finite(logp["behav"]) or (stored and not all_finite(logp["ref"][given[seq]])):
            _check_log_probs(rollouts)
        cols = {name: torch.tensor([_column(r, name) for r in rollouts]) for name in columns}
        cols |= {f"part:{name}": torch.tensor([_part(r, name) for r in rollouts]) for name in parts}
        episode, earned, turn = _episodes(rollouts, answered)
        return cls(
            seq=seq,
            group=torch.tensor([r.group for r in rollouts], dtype=torch.long),
            source=torch.tensor([SOURCES.index(r.source) for r in rollouts], dtype=torch.long),
            reward=torch.tensor([r.reward for r in rollouts], dtype=torch.float32),
            logp=logp,
            episode=episode,
            earned=earned,
            turn=turn,
            cols=cols,
            prompt=tuple(r.prompt.id for r in rollouts),
            dataset=tuple(str(r.prompt.columns.get("dataset", "")) for r in rollouts),
            ids=_flat(ids, torch.long),
            length=lengths,
            action=action,
            pairs=_offline_pairs(rollouts),
        )


def _check_log_probs(rollouts: Sequence[Rollout]) -> None:
    """Raises ConfigError for the first rollout whose sampled tokens have log-probs that are not finite."""
    for s, r in enumerate(rollouts):
        kept = [t for t, flag in enumerate(r.sampled) if flag]
        if r.ref_logp is not None and not all(math.isfinite(r.ref_logp[t]) for t in kept):
            raise ConfigError(
                f"{_where(s, r)}: a stored reference log-prob is not finite. Store the row again, or drop it."
            )
        bad = [t for t in kept if not math.isfinite(r.logp[t])]
        if bad:
            raise ConfigError(
                f"{_where(s, r)}: the engine's log-prob of token {bad[0]} (id {r.tokens[bad[0]]}) is {r.logp[bad[0]]} "
                f"({len(bad)} such tokens). Check the engine's dtype and weights (rlkit's parity probe names the "
                "difference), or drop the row before training."
            )


def _where(s: int, r: Rollout) -> str:
    return f"rollout {s} (prompt {r.prompt.id})"


def _flat(values: Any, dtype: torch.dtype) -> Tensor:
    """A tensor over the memory of an ``array``; a list of so many Python numbers is read some ten times slower."""
    return torch.frombuffer(values, dtype=dtype) if len(values) else torch.empty(0, dtype=dtype)


def _episodes(
    rollouts: Sequence[Rollout], answered: Tensor | slice
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The batch's ``episode``, ``earned`` and ``turn``; None for what every response has in the usual way.

    ``answered``: where each action token is among the tokens of all responses.
    """
    rows = by_episode(rollouts)
    episode = [number for number, of in enumerate(rows) for _ in of]
    earned, turn = array("d"), array("q")
    if has_earned := any(r.earned is not None for r in rollouts):
        for r in rollouts:
            earned.extend(array("d", [0.0] * len(r.tokens) if r.earned is None else r.earned))
    if has_turn := any(r.turn is not None for r in rollouts):
        for r in rollouts:
            turn.extend(array("q", [0] * len(r.tokens) if r.turn is None else r.turn))
    return (
        torch.tensor(episode, dtype=torch.long) if len(rollouts) > len(rows) else None,
        _flat(earned, torch.float64)[answered].float() if has_earned else None,
        _flat(turn, torch.long)[answered] if has_turn else None,
    )


def _part(r: Rollout, name: str) -> float:
    """One of a response's rewards; NaN in rows that have none."""
    if r.source == "policy" and name not in r.parts:
        raise ConfigError(
            f"the reward {name!r} is read on its own, but the rewards of a response to prompt {r.prompt.id} are "
            f"{', '.join(sorted(r.parts)) or 'without names'}."
        )
    return r.parts.get(name, math.nan)


def _column(r: Rollout, name: str) -> float:
    """A number of the prompt's row; NaN in a row of a set whose terms do not read it."""
    try:
        return float(r.prompt.columns[name])
    except (KeyError, TypeError, ValueError):
        if r.source not in ("policy", "reference"):
            return math.nan
        raise ConfigError(
            f"the objective reads the column {name!r}, but at least one prompt has no number "
            "there. Add the column to the data set."
        ) from None


def _offline_pairs(rollouts: Sequence[Rollout]) -> Tensor | None:
    """The chosen and the rejected response of each group that has both; None if none has."""
    chosen = {r.group: s for s, r in enumerate(rollouts) if r.source == "chosen"}
    found = [(chosen[r.group], s) for s, r in enumerate(rollouts) if r.source == "rejected" and r.group in chosen]
    return torch.tensor(found, dtype=torch.long) if found else None


@dataclass(frozen=True, eq=False)
class New:
    """What the model under training says about a batch, with gradient."""

    logp: PerToken
    entropy: PerToken | None = None
    value: PerToken | None = None
    full: Mapping[str, PerToken] = field(default_factory=dict)  # whole-vocabulary divergences by term name

    def detached(self) -> New:
        """A copy without history whose log-probs are leaves that want a gradient."""

        def cut(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.detach()

        return New(
            self.logp.detach().requires_grad_(),
            cut(self.entropy),
            cut(self.value),
            {k: v.detach() for k, v in self.full.items()},
        )

    def rows(self, tok: PerToken) -> New:
        """The tokens where ``tok`` (bool) holds."""

        def pick(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[tok]

        return New(self.logp[tok], pick(self.entropy), pick(self.value), {k: v[tok] for k, v in self.full.items()})


class Stats:
    """Numbers with the way they reduce: ``mean`` (weighted), ``sum``, ``max``, ``min``, or ``last``.

    Micro-batches and ranks each fill one; :meth:`merge` joins them, so a metric never depends on how a batch was cut. An accumulator: it
    is written to by the one who made it, and ``scaled`` and ``without`` give copies.
    """

    def __init__(self) -> None:
        self._data: dict[str, tuple[str, float, float]] = {}  # name -> (how, value, weight)

    def add(self, name: str, value: float | Tensor, how: str = "mean", weight: float = 1.0) -> None:
        value = float(value)
        if name not in self._data:
            self._data[name] = (how, value * weight if how == "mean" else value, weight)
            return
        kind, old, w = self._data[name]
        assert kind == how, f"metric {name} is emitted as {kind} and as {how}"
        if how == "mean":
            self._data[name] = (how, old + value * weight, w + weight)
        elif how == "sum":
            self._data[name] = (how, old + value, w + weight)
        elif how in ("max", "min"):
            worse = math.isnan(old) or math.isnan(value)
            new = math.nan if worse else (max if how == "max" else min)(old, value)
            self._data[name] = (how, new, w + weight)
        else:
            self._data[name] = (how, value, w + weight)

    def merge(self, other: Stats) -> Stats:
        for name, (how, value, weight) in other._data.items():
            mean = value / weight if how == "mean" and weight else value
            self.add(name, mean, how, weight)
        return self

    def scaled(self, prefix: str, factor: float) -> Stats:
        """A copy in which the sums under ``prefix`` are multiplied, e.g. by 1 / optimizer steps."""
        out = Stats()
        out._data = {
            name: (how, value * factor if how == "sum" and name.startswith(prefix) else value, weight)
            for name, (how, value, weight) in self._data.items()
        }
        return out

    def without(self, prefix: str) -> Stats:
        """A copy that lacks the names under ``prefix``."""
        out = Stats()
        out._data = {name: entry for name, entry in self._data.items() if not name.startswith(prefix)}
        return out

    def update(self, values: Mapping[str, float]) -> Stats:
        for k, v in values.items():
            self.add(k, v, "last")
        return self

    def __getitem__(self, name: str) -> float:
        how, value, weight = self._data[name]
        return value / weight if how == "mean" and weight else value

    def get(self, name: str, default: float = math.nan) -> float:
        return self[name] if name in self._data else default

    def __contains__(self, name: str) -> bool:
        return name in self._data

    def as_dict(self) -> dict[str, float]:
        return {name: self[name] for name in self._data}
