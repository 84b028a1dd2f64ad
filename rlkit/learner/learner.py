"""One learner rank: log-probs, optimizer steps, whole weights, and its part of a checkpoint.

A rank never sees the whole batch. It gets the micro-batches that :mod:`rlkit.learner.plan` cut for it, with their
weights in the global mean; adding up what the ranks return gives the result of the whole batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from rlkit.errors import ConfigError, ModelError, NumericsError
from rlkit.learner.backend import (
    DeepSpeedBackend,
    TorchBackend,
    alone,
    engine_config,
    import_deepspeed,
    in_buckets,
    join,
)
from rlkit.learner.plan import micro_batch
from rlkit.learner.setup import LearnerSetup, Start
from rlkit.learner.sharding import Cutter, cuts, share_of
from rlkit.learner.transfer import Client, Meeting, Sender, Source
from rlkit.model import packed
from rlkit.model.adapter import Proof, add_adapter, hints, probe, prove
from rlkit.model.endings import Endings
from rlkit.model.export import Export, exported, numel, stored
from rlkit.model.generation import load_settings, settled
from rlkit.model.head import truncate
from rlkit.model.load import first_of, fit_vocabulary, load_for, load_lm, load_tokenizer, same_tokens
from rlkit.model.policy import PolicyModel, ValueModel, evaluate_new, proven
from rlkit.model.precision import bfloat16_note, cpu_flags, slowdown
from rlkit.model.reference import Dtype, Reference, ReferenceState
from rlkit.model.size import outputs
from rlkit.model.wire import pack
from rlkit.objective import loss
from rlkit.objective.coefficients import distinct
from rlkit.objective.diagnostics import add_gram, bad_gradients
from rlkit.objective.full_vocab import Head, TopK, Whole, WholeVocabulary, told_apart
from rlkit.record.checkpoint import read_tensors, write_tensors
from rlkit.record.memory import Peaks, release
from rlkit.types import SOURCES, Batch, New, Sampling, Stats

BUCKET_BYTES = 64 << 20
PARTS = ("ids", "logp")  # of an anchor's most likely tokens


def prepare(deepspeed: bool) -> None:
    """Imports what a :class:`Learner` will need, before there is a model."""
    import torch._dynamo  # noqa: F401 (every optimizer's first step does)
    from transformers import AutoModelForCausalLM  # noqa: F401

    if deepspeed:
        import_deepspeed()


class Learner:
    """Rank ``rank`` of ``world``."""

    def __init__(self, setup: LearnerSetup, rank: int = 0, world: int = 1) -> None:
        self.setup, self.rank, self.world = setup, rank, world
        self._passes = 0  # micro-batches worked on
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        # On a CPU windows cannot be packed, and an engine that decodes with this model knows none.
        self.windows = self.device.type != "cpu" and not setup.shared
        start, section = setup.start, setup.learner
        self.attention, self.layout = choose_attention(start, section.packed, self.windows)
        self.cut = self._cutter()
        lm, why = load_for(
            start.path, start.type, self.attention, device=self.device, windows=self.windows, cut=self.cut
        )
        if why is not None:
            if section.packed:
                raise ConfigError(f"learner.packed: {why}. Set learner.packed: false.")
            so_far = f"{self.layout}; " if self.layout.startswith("padded: ") else "padded: "
            self.attention, self.layout = start.attention, so_far + why
        shared = section.sequence_parallel
        if shared > 1 and self.layout != "packed":
            raise ConfigError(
                f"learner.sequence_parallel is {shared}, and ranks share packed rows only; here they are {self.layout}. Set it to 1."
            )
        # Of ranks that work on the same rows, one tells what it measured.
        self.tells = rank % shared == 0
        self.max_tokens = micro_batch(section.max_tokens, self.device.type, outputs(lm))
        self.notes = [f"note: micro-batches are {self.layout}."] if ": " in self.layout else []
        if self.device.type == "cpu" and start.dtype == "bfloat16":
            self.notes += filter(None, [bfloat16_note(cpu_flags(), slowdown())])
        self.policy, self.proof, self.exports = self._make_policy(lm)
        if self.cut is not None:
            release()  # layers that were gathered to be examined
        if shared > 1:
            self.policy.divide(share_of(rank, world, shared), start.tolerance)
        self.tokenizer = load_tokenizer(start.path)
        endings = Endings.of(start.path, self.tokenizer)
        # Now: settings that cannot be saved end no long run.
        self.generation, _ = settled(load_settings(start.path), endings.ids)
        self.backend = self._make_backend()
        self.full = [t for t in setup.objective if isinstance(t, WholeVocabulary)]
        self.peaks = Peaks()
        self.sender = Sender(rank)
        self.culprits: dict[str, str] = {}
        self.specs: dict[str, Reference] = {
            name: spec
            for name, spec in (("ref", setup.reference), ("teacher", setup.teacher))
            if spec is not None and not (spec.pooled and spec.asked) and setup.needs & {name, f"{name}_full"}
        }
        self.anchors: dict[str, ReferenceState] = {name: spec.build(self) for name, spec in self.specs.items()}
        for name, spec in self.specs.items():
            if spec.asked:
                last, classes = len(self.tokenizer) - 1, self.policy.output.out_features
                self.anchors[name].require(self._told_apart(name), last, classes)

    def _make_backend(self) -> TorchBackend | DeepSpeedBackend:
        setup, lr = self.setup, None if self.setup.critic is None else self.setup.critic.lr
        if setup.deepspeed is None:
            return TorchBackend(self.policy, setup.learner, setup.steps, lr)
        bf16 = setup.start.dtype == "bfloat16"
        with self._among_ranks():
            return DeepSpeedBackend(self.policy, setup.learner, setup.steps, setup.deepspeed, bf16, self.world, lr)

    def _cutter(self) -> Cutter | None:
        """What cuts a model that is trained as it is read. An adapter is made, and examined, on whole layers."""
        setup = self.setup
        if setup.deepspeed is None:
            return None
        with self._among_ranks():
            join()
        if setup.peft is not None or not cuts(setup.deepspeed):
            return None
        config = engine_config(setup.learner, setup.deepspeed, setup.start.dtype == "bfloat16")
        return Cutter(config, self.device, setup.start.type)

    def _among_ranks(self) -> contextlib.AbstractContextManager[None]:
        return alone() if self.world == 1 else contextlib.nullcontext()

    def _make_policy(self, lm: Any) -> tuple[PolicyModel, Proof | None, dict[str, Export]]:
        """The model that is trained, with its adapter and critic; and that its log-probs and exported tensors are right."""
        setup, section = self.setup, self.setup.learner
        names, start, proof = stored(lm).keys(), None, None
        plain = proven(lm, "model.path", setup.start.tolerance, setup.start.fp32_head)
        if setup.peft is not None:
            start = probe(plain)
            lm = add_adapter(lm, setup.peft, setup.seed)
            self.notes += hints(setup.peft, lm.get_base_model(), section.lr)
        if section.gradient_checkpointing:
            lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            lm.enable_input_require_grads()
        critic = None
        if setup.critic is not None:
            own = setup.critic.path is not None
            where = setup.critic.path if setup.critic.path is not None else setup.start.path
            name = "critic.path" if own else "model.path"
            value, _ = load_for(where, lm.dtype, self.attention, name, self.device, self.windows, self.cut)
            if section.gradient_checkpointing:
                value.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            critic = ValueModel(value)
        policy = PolicyModel(lm, "value" in setup.needs, setup.start.fp32_head, critic).to(self.device)
        exports = {e.name: e for e in exported(policy.base)}
        if exports.keys() != names:
            raise ModelError(
                f"peft: this adapter changes {first_of(sorted(exports.keys() ^ names), 'tensor')} in a way that engines cannot load. Adapt "
                "modules through target_modules and modules_to_save; where embedding and output layer share a matrix, name both in "
                "modules_to_save with ensure_weight_tying: true, or leave both out."
            )
        if start is not None:
            proof = prove(policy, start, exports.values())
            if not proof.switched_off:
                self.notes.append(
                    "note: peft: with this adapter switched off, the model is not the one that training starts from: a reference without "
                    "`path` is a second copy of that model."
                )
        return policy.train(), proof, exports

    # -- log-probs ------------------------------------------------------------------------------------------------

    def annotate(self, micros: Sequence[Batch], which: Sequence[str]) -> dict[str, Tensor]:
        """Log-probs (``old``, ``ref``, ``teacher``) or values (``value``) of this rank's rows, one after the other, ``[n]``.

        ``uncut`` are the policy's log-probs at the run's temperature, without ``top_p`` and ``top_k``. ``ref_full`` and ``teacher_full``
        are an anchor's most likely tokens, as many as the terms tell apart: two tensors ``[n, k]``, ``teacher_full/ids`` and
        ``teacher_full/logp``.
        """
        uncut = dataclasses.replace(self.sampling, top_p=1.0, top_k=0)
        whole = {name: f"{name}_full" for name in self.anchors if f"{name}_full" in which}
        out: dict[str, list[Tensor]] = {name: [] for name in which if name not in whole.values()}
        out |= {f"{full}/{part}": [] for full in whole.values() for part in PARTS}
        with self.peaks("annotate"):
            for micro in micros:
                self._passes += 1
                b = micro.map(lambda t: t.to(self.device))
                for name, full in whole.items():
                    logp, top = self._likely(name, b)
                    self._keep(out.get(name, []), micro, logp)
                    self._keep(out[f"{full}/ids"], micro, top.ids)
                    self._keep(out[f"{full}/logp"], micro, top.logp)
                for name in (self.anchors.keys() & out.keys()) - whole.keys():
                    self._keep(out[name], micro, self.anchors[name].logprobs(_own(name, b), self.sampling))
                if "uncut" in out:
                    with torch.no_grad():
                        self._keep(out["uncut"], micro, evaluate_new(self.backend, b, uncut, frozenset()).logp)
                if "old" in out or "value" in out:
                    with torch.no_grad():
                        new = evaluate_new(self.backend, b, self.sampling, frozenset(which) & {"value"})
                    if "old" in out:
                        self._keep(out["old"], micro, new.logp)
                    if new.value is not None and "value" in out:
                        self._keep(out["value"], micro, new.value)
        return {name: torch.cat(parts) if parts else torch.empty(0) for name, parts in out.items()}

    def _told_apart(self, name: str) -> int:
        return min(told_apart(self.setup.objective, name), self.policy.output.out_features)

    def _likely(self, name: str, b: Batch) -> tuple[Tensor, TopK]:
        """An anchor's log-probs of the batch's tokens, and its most likely ones, as many as the terms tell apart."""
        anchor, output = self.anchors[name], self.policy.output
        k = self._told_apart(name)
        if self.specs[name].asked:
            return anchor.likely(b, k)
        whole, temperature = anchor.head(b).over(output.over), self.sampling.temperature or 1.0
        top = TopK.of(whole, b.N, k, output.out_features, temperature, self.policy.fp32_head)
        return anchor.logprobs(b, self.sampling), top

    def _told(self, micro: Batch) -> bool:
        """Whether what this rank finds of a micro-batch counts."""
        return self.tells and not micro.idle

    @staticmethod
    def _keep(parts: list[Tensor], micro: Batch, x: Tensor) -> None:
        if not micro.idle:
            parts.append((x.detach().float() if x.is_floating_point() else x).cpu())

    # -- training -------------------------------------------------------------------------------------------------

    def step(self, micros: Sequence[Batch], coefs: Sequence[float], breakdown: bool = False) -> Stats:
        """One optimizer step from this rank's micro-batches; ``breakdown`` also compares the terms' gradients.

        A gradient that is not finite takes no step (``learner/skipped``); :meth:`blame` then says where it comes from.

        Raises:
            NumericsError: a loss that is not finite; weights are untouched.
        """
        stats = Stats()
        with self.peaks("update"):
            for k, micro in enumerate(micros):
                self._backward(micro, coefs, stats, last=k == len(micros) - 1, breakdown=breakdown)
            norm = self.backend.step()
        self.culprits = {} if math.isfinite(norm) else self._culprits(micros, coefs)
        stats.add("learner/grad_norm", norm, "max")
        if self.rank == 0:
            stats.add("learner/skipped", float(not math.isfinite(norm)), "sum")
        stats.add("learner/lr", self.backend.lr, "max")
        stats.add("learner/tokens", float(sum(m.N for m in micros if self._told(m))), "sum")
        for stage, mib in self.peaks.take().items():  # the sync is that before this step
            stats.add(f"memory/learner_{stage}_mib", mib, "max")
        return stats

    def _backward(self, micro: Batch, coefs: Sequence[float], stats: Stats, last: bool, breakdown: bool) -> None:
        """Adds the gradient of one micro-batch, and to ``stats`` what it measured."""
        new, b = self._evaluate(micro, coefs)
        value, shares = loss(self.setup.objective, new, b, coefs)
        if not torch.isfinite(value):
            raise NumericsError(self._diagnose(shares, new, b, coefs))
        if breakdown and self._told(micro):
            # On a copy: sharded engines reduce gradients at the end of every backward pass through their model.
            leaf, parts = new.detached(), list[Tensor]()
            loss(self.setup.objective, leaf, b, coefs, parts)
            add_gram(stats, distinct(self.setup.objective), parts, leaf.logp)
        self.backend.backward(value, last=last)
        if self._told(micro):
            stats.merge(shares)
            sampled = b.source == SOURCES.index("policy")
            describe(stats, new.logp.detach()[sampled[b.seq]], b.policy_rows())
            describe_given(stats, new.logp.detach(), b)

    def _evaluate(self, micro: Batch, coefs: Sequence[float]) -> tuple[New, Batch]:
        """The model's answers about a micro-batch, and the micro-batch as the loss reads it."""
        self._passes += 1
        b = micro.map(lambda t: t.to(self.device))
        assert b.norm is not None
        heads = {name: self._distributions(name, b) for name in {t.anchor for t in self.full}}
        full = [(t, heads[t.anchor], expected) for t, expected in self._compared(b, coefs)]
        new = evaluate_new(self.backend, b, self.sampling, self.setup.needs, full)
        if self.setup.updates == 1:  # the policy has not moved yet: its log-probs before the update are these
            b = b.with_logp(**{"old": new.logp.detach(), **b.logp})
        return new, b

    def _distributions(self, name: str, b: Batch) -> Whole:
        """An anchor's distributions: those that came with the batch, or those that it gives now."""
        if "ids" in b.whole.get(name, {}):
            return TopK(**b.whole[name], temperature=self.sampling.temperature or 1.0)
        return self._likely(name, b)[1] if self.specs[name].asked else self.anchors[name].head(_own(name, b))

    def _compared(self, b: Batch, coefs: Sequence[float]) -> list[tuple[WholeVocabulary, Tensor | None]]:
        """Each divergence over the whole vocabulary once, with the gradient that each token's value will get, where that is known: terms of
        one name are one divergence on several kinds of rows.
        """
        assert b.norm is not None
        found = dict[str, tuple[WholeVocabulary, Tensor | None]]()
        for i, t in enumerate(self.setup.objective):
            if isinstance(t, WholeVocabulary):
                weight = coefs[i] * b.norm[i][b.seq] if t.linear else None
                if t.name in found:
                    other = found[t.name][1]
                    weight = None if weight is None or other is None else weight + other
                found[t.name] = (t, weight)
        return list(found.values())

    def measure(self, micros: Sequence[Batch], coefs: Sequence[float]) -> Stats:
        """What the terms and the log-probs of rows say that are not trained on: no gradient, no step."""
        stats = Stats()
        with self.peaks("annotate"), torch.no_grad():
            for micro in micros:
                new, b = self._evaluate(micro, coefs)
                if self._told(micro):
                    stats.merge(loss(self.setup.objective, new, b, coefs)[1])
                    describe_given(stats, new.logp, b)
        return stats

    def _culprits(self, micros: Sequence[Batch], coefs: Sequence[float]) -> dict[str, str]:
        """Terms whose gradient is not finite, with the first such token. A collective: every rank skipped the step."""
        found: dict[str, str] = {}
        for micro in micros:
            with torch.no_grad():
                new, b = self._evaluate(micro, coefs)
            if not micro.idle:
                for name, n in bad_gradients(self.setup.objective, new, b, coefs).items():
                    found.setdefault(name, b.place(int(b.seq[n]), n))
        return found

    def blame(self) -> dict[str, str]:
        """Where the gradient of the last step was not finite, in this rank's rows: a place for each term, empty if no term has any."""
        return self.culprits

    def _diagnose(self, shares: Stats, new: New, b: Batch, coefs: Sequence[float]) -> str:
        bad = [name for name, v in shares.as_dict().items() if not math.isfinite(v) and name != "loss/total"]
        anchors = [name for name, x in b.logp.items() if not bool(torch.isfinite(x).all())]
        found = f"log-probs under training are {'not ' if not bool(torch.isfinite(new.logp).all()) else ''}finite"
        places = bad_gradients(self.setup.objective, new, b, coefs)
        where = "".join(f" ({name}: {b.place(int(b.seq[n]), n)})" for name, n in places.items())
        return (
            f"the loss is not finite in {', '.join(bad) or 'the total'}{where}; {found}"
            + (f"; stored log-probs that are not finite: {', '.join(anchors)}" if anchors else "")
            + ". No step was taken. Lower learner.lr or the term's coefficient, or look at the rows of this step."
        )

    def forget(self, anchor: str) -> None:
        """Lets go of a reference that nothing asks for any more."""
        self.anchors.pop(anchor, None)

    def after_step(self, step: int, stats: Stats) -> None:
        for anchor in self.anchors.values():
            anchor.after_step(step, stats)

    # -- what references see (rlkit.model.reference.Trained) ----------------------------------------------------------

    @property
    def sampling(self) -> Sampling:
        return self.setup.sampling

    @property
    def contains_start(self) -> bool:
        return self.proof is not None and self.proof.switched_off

    def start_logprobs(self, b: Batch, sampling: Sampling) -> Tensor:
        with torch.no_grad(), self.policy.lm.disable_adapter():
            return evaluate_new(self.backend, b, sampling, frozenset()).logp

    def start_head(self, b: Batch) -> Head:
        assert b.ids is not None and b.length is not None and b.action is not None
        trained = self.policy.output
        with torch.no_grad(), self.policy.lm.disable_adapter():
            hidden = self.policy.hidden(b.ids, b.length, b.action, b.group)[b.action - 1]
            return Head(hidden, None) if self.policy.output is trained else self.policy.output.over(hidden)

    @property
    def start(self) -> str:
        return self.setup.start.path

    def load_frozen(self, path: str | None, dtype: Dtype | None = None, other_tokens: bool = False) -> PolicyModel:
        start = self.setup.start if dtype is None else dataclasses.replace(self.setup.start, dtype=dtype)
        where = start.path if path is None else path
        name = "model.path" if path is None else "reference.path or teacher.path"
        lm, _ = load_for(where, start.type, self.attention, name, self.device, self.windows)
        sizes = (lm.get_output_embeddings().out_features, self.policy.output.out_features)
        if not other_tokens and min(sizes) < len(self.tokenizer) <= max(sizes):
            raise ModelError(
                f"reference or teacher: {where} has a vocabulary of {sizes[0]}, the policy one of {sizes[1]}. Log-probs are "
                "compared token by token: use a model with the same tokenizer, or type: Translated."
            )
        if not other_tokens and sizes[0] != sizes[1]:
            same_tokens(where, name, self.tokenizer)
            fit_vocabulary(lm, sizes[1])
        return proven(lm, name, start.tolerance, start.fp32_head, trained=False).requires_grad_(False)

    def trainable(self) -> Iterator[tuple[str, Tensor]]:
        for name, p in self._trainable().items():
            with torch.no_grad(), self.backend.whole([p]):
                copy = p.detach().float().clone()
            yield name, copy

    def assign(self, values: Mapping[str, Tensor]) -> None:
        own = self._trainable()
        for name, value in values.items():
            self.backend.assign(own[name], value)

    def _trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.policy.lm.named_parameters() if p.requires_grad}

    def reset_optimizer(self) -> None:
        self.backend.reset_optimizer()

    # -- weights --------------------------------------------------------------------------------------------------

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors under their Hugging Face names, adapters merged. A collective: every rank iterates."""
        for names, _ in self.buckets():
            with self._whole(names) as exports:
                for e in exports:
                    yield e.name, e.value().detach()

    def buckets(self, everything: bool = True) -> list[tuple[list[str], int]]:
        """(names, bytes) of the exported tensors in groups of about ``setup.bucket`` bytes; without ``everything``, those that training can
        change.

        Inference engines fuse matrices of one block (q, k, v; gate and up; experts) and load them together or not at all, so what is
        frozen in a block travels if something else in it is trained.
        """
        exports = self.exports.values()
        trained = {e.block for e in exports if any(p.requires_grad for p in e.parameters)}
        sizes = {e.name: e.nbytes for e in exports if everything or e.block in trained}
        return [(names, sum(sizes[n] for n in names)) for names in in_buckets(sizes.items(), self.setup.bucket)]

    def send(self, client: Client, meeting: Meeting, everything: bool) -> str | None:
        """Sends weights to the engines of the meeting, all of them or those that training can change; what failed. A collective."""
        buckets = [[self.exports[name] for name in names] for names, _ in self.buckets(everything)]
        source = Source(buckets, lambda bucket: self._whole([e.name for e in bucket]))
        with self.peaks("sync"):
            return self.sender.send(source, client, meeting)

    def gather(self, names: Sequence[str]) -> dict[str, Any] | None:
        """One bucket of whole tensors as numpy arrays on rank 0 (None elsewhere). A collective.

        Weights travel in their own type (see :mod:`rlkit.model.wire`).
        """
        with self.peaks("sync"), self._whole(names) as exports:
            return {e.name: pack(e.value()) for e in exports} if self.rank == 0 else None

    @contextlib.contextmanager
    def _whole(self, names: Sequence[str]) -> Iterator[list[Export]]:
        """The exports of these names; inside, what they are made of is whole, gathered at once."""
        exports = [self.exports[name] for name in names]
        with torch.no_grad(), self.backend.whole(dict.fromkeys(p for e in exports for p in e.parameters)):
            yield exports

    # -- memory that is shared with an engine ------------------------------------------------------------------------

    def offload(self) -> None:
        """The optimizer's state goes to the host, and what torch keeps for later goes back to the device; weights stay, to be sent."""
        self.backend.offload()
        self.release()

    def release(self) -> None:
        """What torch keeps for later goes back to the device."""
        torch.cuda.empty_cache()  # nothing where there is no GPU

    def onload(self) -> None:
        self.backend.onload()

    # -- files ----------------------------------------------------------------------------------------------------

    def check_weights(self) -> None:
        """Raises NumericsError, on every rank, if a trained weight is not finite."""
        trained = {n: p for n, p in self.policy.named_parameters() if p.requires_grad}
        sizes = [(n, numel(p) * p.element_size()) for n, p in trained.items()]
        for names in in_buckets(sizes, BUCKET_BYTES):
            with torch.no_grad(), self.backend.whole([trained[n] for n in names]):
                bad = [n for n in names if not bool(torch.isfinite(trained[n]).all())]
            if bad:
                raise NumericsError(
                    f"the weights are not finite ({', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}), so they are not written: "
                    "the checkpoints that are there stay the newest. Continue from one with a lower learner.lr."
                )

    def save(self, folder: str) -> None:
        """This rank's part of a checkpoint.

        Raises:
            NumericsError: weights that are not finite; nothing is written.
        """
        self.check_weights()
        self.backend.save(Path(folder))
        if self.rank == 0 and self.anchors:
            write_tensors(
                Path(folder) / "anchors.pt", {name: anchor.state_dict() for name, anchor in self.anchors.items()}
            )

    def load(self, folder: str) -> None:
        self.backend.load(Path(folder))
        if self.anchors:
            states = read_tensors(Path(folder) / "anchors.pt")
            for name, anchor in self.anchors.items():
                anchor.load_state_dict(states[name])

    def export(self, folder: str) -> None:
        """The model in Hugging Face format; with LoRA the merged model, and the adapter in ``adapter/``.

        Raises:
            NumericsError: weights that are not finite; nothing is written.
            OSError: it cannot be written.
        """
        self.check_weights()
        try:
            self._export(folder)
        except SafetensorError as error:  # it tells the system's reason only in its text
            found = re.search(r"os error (\d+)", str(error))
            if found is None:
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1])), folder) from error

    def _export(self, folder: str) -> None:
        state = {name: tensor.to("cpu", copy=True) for name, tensor in self.full_weights() if self.rank == 0}
        if self.proof is not None and self.proof.base_kept:  # else it would belong to a base that is nowhere
            lm = self.policy.lm
            trained = {n: p for n, p in lm.named_parameters(remove_duplicate=False) if p.requires_grad}
            with self.backend.whole(dict.fromkeys(trained.values())):
                if self.rank == 0:
                    kept = trained | dict(lm.named_buffers(remove_duplicate=False))  # PEFT takes what is its own
                    state_of = {n: t.detach().to("cpu", copy=True) for n, t in kept.items()}
                    lm.save_pretrained(str(Path(folder) / "adapter"), state_dict=state_of)
        if self.rank != 0:
            return
        if self.setup.peft is None:
            self.policy.base.generation_config = self.generation
            self.policy.base.save_pretrained(folder, state_dict=state)
        else:
            # The wrapped modules carry the adapter's names; a fresh model of the same shape has the plain ones.
            plain = load_lm(self.setup.start.path, dtype=next(iter(state.values())).dtype)
            plain.generation_config = self.generation
            plain.save_pretrained(folder, state_dict=state)

    def progress(self) -> int:
        """Grows while this rank gets on with what it was asked to do."""
        return self._passes

    def close(self) -> None:
        """What a rank holds ends with its process."""
        self.sender.close()

    def reloaded(self, folder: str, micros: Sequence[Batch]) -> list[Tensor] | None:
        """Log-probs of the rows' action tokens by the model in ``folder``, loaded by transformers and nothing of rlkit's (rank 0)."""
        if self.rank != 0:
            return None
        from transformers import AutoModelForCausalLM

        attention = self.policy.base.config._attn_implementation
        known = None if attention.startswith(packed.NAME) else attention
        options = {} if known is None else {"attn_implementation": known}
        lm: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=self.policy.output.weight.dtype, **options)
        lm.to(self.device).eval()
        s, found = self.sampling, list[Tensor]()
        for b in micros:
            assert b.ids is not None and b.length is not None and b.action is not None
            ends = b.length.cumsum(0)
            for row, end in enumerate(ends.tolist()):
                first = end - int(b.length[row])
                at = b.action[b.seq == row] - first
                ids = b.ids[first:end].to(self.device)
                with torch.no_grad():
                    logits = lm(input_ids=ids[None], use_cache=False).logits[0, at - 1].float() / (s.temperature or 1.0)
                log_p = truncate(logits, ids[at], s.top_k, s.top_p).log_softmax(-1)
                found.append(log_p.gather(-1, ids[at, None])[:, 0].cpu())
        return found

    def ready(self) -> dict[str, Any]:
        """What was built; asked once, at the start."""
        trainable = sum(numel(p) for p in self.policy.parameters() if p.requires_grad)
        return {
            "device": str(self.device),
            "max_tokens": self.max_tokens,
            "parameters": sum(numel(p) for p in self.policy.parameters()),
            "trainable": trainable,
            "layout": self.layout,
            "notes": self.notes,
        }


def choose_attention(start: Start, wanted: bool | None, windows: bool) -> tuple[str | None, str]:
    """(attention implementation, layout and why) of ``learner.packed``; ``windows``: see :func:`rlkit.model.packed.supported`.

    Raises:
        ConfigError: packing was asked for, but the model or another setting does not allow it.
    """
    from transformers import AutoConfig

    why = packed.supported(AutoConfig.from_pretrained(start.path), windows)
    if start.attention is not None:
        why = f"model.attention is {start.attention}"
    if wanted and why:
        raise ConfigError(
            f"learner.packed: {why}; packed sequences need full causal attention of rlkit's own. Set learner.packed: false."
        )
    if wanted or (wanted is None and why is None):
        packed.register()
        return packed.NAME, "packed"
    return start.attention, f"padded{f': {why}' if why else ''}"


def _own(anchor: str, b: Batch) -> Batch:
    """The batch as one anchor sees it: what came with it for others is left out."""
    return b.replace(whole={name: parts for name, parts in b.whole.items() if name == anchor})


def describe_given(stats: Stats, logp: Tensor, b: Batch) -> None:
    """The mean NLL of the tokens of rows that nobody sampled here, by where they are from (nats)."""
    for k, name in enumerate(SOURCES):
        tokens = logp[(b.source == k)[b.seq]]
        if name not in ("policy", "reference") and len(tokens):
            stats.add(f"nll/{name}", -tokens.mean(), "mean", float(len(tokens)))


def describe(stats: Stats, logp: Tensor, b: Batch) -> None:
    """What every run shows about its three KLs, as sums over tokens that reduce to means over the batch."""
    n = float(b.N)
    if not n:
        return
    stats.add("ratio/max", (logp - b.logp["behav"]).max().exp(), "max")
    old = b.logp.get("old")
    if old is not None:
        gap, log_ratio = (old - b.logp["behav"]).abs(), logp - old
        stats.add("mismatch/mean", gap.mean(), "mean", n)
        stats.add("mismatch/max", gap.max(), "max")
        stats.add("kl/old", (torch.expm1(log_ratio) - log_ratio).mean(), "mean", n)
    if "ref" in b.logp:
        log_u = (logp if old is None else old) - b.logp["ref"]
        stats.add("kl/ref", log_u.mean(), "mean", n)
        stats.add("kl/ref_k3", (torch.expm1(-log_u) + log_u).mean(), "mean", n)
