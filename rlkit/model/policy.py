"""The model under training: a Hugging Face causal LM whose forward pass answers in flat action tokens.

The only shift by a position in rlkit is in :func:`preceding`: the hidden state at position ``t - 1`` predicts
the token at ``t``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlkit.errors import ModelError
from rlkit.model import packed
from rlkit.model.export import in_use, retrains
from rlkit.model.head import LMHead
from rlkit.model.sharing import Share
from rlkit.objective.full_vocab import Whole
from rlkit.types import Batch, New, Sampling

Embed = Callable[[Tensor], Tensor]  # tokens to input embeddings


def output_transform(config: Any) -> tuple[float, float | None]:
    """What a model does to its logits after the output layer: (factor, soft cap); :func:`proven` holds it against the model."""
    factor = getattr(config, "logit_scale", None) or 1.0  # Cohere
    factor *= getattr(config, "lm_head_multiplier", None) or 1.0  # Falcon-H1
    factor /= getattr(config, "logits_scaling", None) or 1.0  # Granite
    return float(factor), getattr(config, "final_logit_softcapping", None)  # Gemma 2


def switch_off_randomness(model: nn.Module) -> None:
    """Sets every dropout, layer drop and router noise of a model and its adapter to 0, so that each pass is a function of its rows.

    Not by ``eval()``: gradient checkpointing and some experts' code ask for the training mode. The model's configuration stays as it is.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            # Phi-MoE's `router_jitter_noise` is no noise, but how much less likely an expert may be: without it the model is another one.
            if isinstance(value, float) and re.search("dropout|pdrop|layerdrop|(?<!router_)jitter", name):
                setattr(module, name, 0.0)


def decoder_of(lm: Any) -> Any:
    """The decoder under a model's output layer. transformers' own lookup misses that of Llama 4 and gives the whole model."""
    found = lm.get_decoder()
    return getattr(lm, "model", lm) if found is lm else found


class _TiedEmbedding(torch.autograd.Function):
    """The embeddings of ``ids``, and the matrix itself for the output layer that shares it.

    Autograd would make a gradient ``[V, H]`` for each use and add them; here the embeddings' rows are added into the output layer's.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(ids)
        ctx.padding = padding
        return nn.functional.embedding(ids, weight), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (ids,), (d_rows, d_weight) = ctx.saved_tensors, grads
        tokens, place = ids.unique(return_inverse=True)
        rows = torch.zeros(len(tokens), d_rows.shape[-1], device=ids.device).index_add_(
            0, place.flatten(), d_rows.flatten(0, -2).float()
        )
        if ctx.padding is not None:  # as nn.Embedding has it: this token's row is not trained as an input
            rows[tokens == ctx.padding] = 0
        return d_weight.index_add_(0, tokens, rows.to(d_weight.dtype)), None, None


def _call(decoder: Any, ids: Tensor, embed: Embed | None, **options: Any) -> Tensor:
    start = {"input_ids": ids} if embed is None else {"inputs_embeds": embed(ids)}
    hidden: Tensor = decoder(**start, use_cache=False, **options).last_hidden_state
    return hidden


def padded(decoder: Any, ids: Tensor, length: Tensor, embed: Embed | None = None) -> Tensor:
    """Last hidden states ``[L, H]`` of a decoder on packed sequences.

    Rows are padded on the right: attention is causal, so no real token ever sees padding and no mask is needed.
    """
    rows, longest = length.shape[0], int(length.max())
    row = torch.repeat_interleave(torch.arange(rows, device=ids.device), length)
    start = (length.cumsum(0) - length)[row]
    column = torch.arange(ids.shape[0], device=ids.device) - start
    ids_2d = ids.new_zeros(rows, longest)
    ids_2d[row, column] = ids
    return _call(decoder, ids_2d, embed)[row, column]


def hidden_states(
    decoder: Any, ids: Tensor, length: Tensor, action: Tensor, group: Tensor, embed: Embed | None = None
) -> Tensor:
    """Last hidden states ``[L, H]``: packed (:mod:`rlkit.model.packed`) if the model was loaded for it, else padded.

    ``embed`` takes the place of the decoder's own embedding.
    """
    method = decoder.config._attn_implementation
    if method not in packed.METHODS:
        return padded(decoder, ids, length, embed)
    layout = packed.make(ids, length, action, group, method)
    return _call(decoder, layout.ids[None], embed, position_ids=layout.position[None], packing=layout)[0, layout.place]


def preceding(
    decoder: Any,
    ids: Tensor,
    length: Tensor,
    action: Tensor,
    group: Tensor,
    share: Share | None = None,
    embed: Embed | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Last hidden states before the action tokens, ``[N, H]``: the one shift.

    With a ``share`` of the rows, this rank's ``[n, H]``, and which of the action tokens they precede, ``[n]``.
    """
    if share is None:
        return hidden_states(decoder, ids, length, action, group, embed)[action - 1], None
    layout = packed.make(ids, length, action, group, decoder.config._attn_implementation, share.size)
    span = share.span(len(layout.ids))
    own = _call(decoder, layout.ids[None, span], embed, position_ids=layout.position[None, span], packing=layout)[0]
    at = layout.place[action - 1]
    mine = ((at >= span.start) & (at < span.stop)).nonzero()[:, 0]
    return own[at[mine] - span.start], mine


class ValueModel(nn.Module):
    """A critic of its own: a decoder, and a linear layer that starts at zero."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.decoder = decoder_of(lm)
        self.out = nn.Linear(lm.config.hidden_size, 1, dtype=lm.dtype)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, ids: Tensor, length: Tensor, action: Tensor, group: Tensor, share: Share | None = None) -> Tensor:
        """The value of the prefix before each action token, ``[N]``; with a ``share``, of this rank's."""
        values: Tensor = self.out(preceding(self.decoder, ids, length, action, group, share)[0])[:, 0]
        return values


class PolicyModel(nn.Module):
    """A language model (with a LoRA adapter or not) and, where values are needed, a value head or a critic of its own.

    ``forward`` takes packed sequences and returns log-probs of the action tokens of the distribution that was sampled
    from: after temperature, top-k and top-p. ``share``: this rank's part in rows that several work on, once :meth:`divide` was called.
    """

    share: Share | None = None

    def __init__(
        self, lm: Any, value_head: bool = False, fp32_head: bool = False, critic: ValueModel | None = None
    ) -> None:
        super().__init__()
        self.lm = lm
        wrapper, transform = self.base.get_output_embeddings(), output_transform(self.base.config)
        if isinstance(wrapper, nn.Linear):
            self.base.set_output_embeddings(LMHead.adopt(wrapper, *transform))
        elif retrains(wrapper):
            wrapper.original_module = LMHead.adopt(wrapper.original_module, *transform)
            for name, copy in wrapper.modules_to_save.items():
                wrapper.modules_to_save[name] = LMHead.adopt(copy, *transform)
        else:
            raise ModelError(
                f"peft: the output layer is adapted ({type(wrapper).__name__}); rlkit evaluates it itself and would not see it. "
                "Leave it out of target_modules, and tokens of a tied embedding out of trainable_token_indices; modules_to_save "
                "can train it whole."
            )
        self.fp32_head = fp32_head
        self.critic = critic
        self.value_head: nn.Linear | None = None
        if value_head and critic is None:
            self.value_head = nn.Linear(self.base.config.hidden_size, 1)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
            self.value_head.to(self.output.weight.dtype)
        switch_off_randomness(self)

    @property
    def base(self) -> Any:
        """The Hugging Face model itself, without the adapter's wrapper."""
        return self.lm.get_base_model() if hasattr(self.lm, "get_base_model") else self.lm

    @property
    def output(self) -> LMHead:
        """The output layer in use: where an adapter trains a copy of it, that copy, and with the adapter off the layer itself."""
        layer = self.base.get_output_embeddings()
        if not isinstance(layer, LMHead):
            layer = in_use(layer)
        assert isinstance(layer, LMHead)
        return layer

    def forward(
        self,
        ids: Tensor,
        length: Tensor,
        action: Tensor,
        group: Tensor,
        sampling: Sampling,
        entropy: bool = False,
        value: bool = False,
        full: Sequence[tuple[Any, Whole, Tensor | None]] = (),
    ) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Tensor]]:
        """Log-probs ``[N]``, entropies (``[N]`` or empty), values (``[N]`` or None), whole-vocabulary divergences by name.

        Shapes:
            ids ``[L]`` packed tokens; length ``[S]``, sums to ``L``; action ``[N]`` indices into ``[L]``; group ``[S]``.
        """
        table, weight = self._shared_table(), None

        def embed(tokens: Tensor) -> Tensor:
            nonlocal weight
            assert table is not None
            rows, weight = _TiedEmbedding.apply(table.weight, tokens, table.padding_idx)
            return rows  # type: ignore[no-any-return]

        own = None if table is None else embed
        at, mine = preceding(decoder_of(self.base), ids, length, action, group, self.share, own)
        logp, ent, found = self.output(
            at,
            target=ids[action] if mine is None else ids[action[mine]],
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            entropy=entropy,
            fp32=self.fp32_head,
            full=full,
            weight=weight,
            seq=torch.searchsorted(length.cumsum(0), action, right=True) if full else None,
        )
        values = None
        if value and self.critic is not None:
            values = self.critic(ids, length, action, group, self.share).float()
        elif value and self.value_head is not None:
            values = self.value_head(at)[:, 0].float()
        if self.share is not None and mine is not None:
            n = action.shape[0]
            logp = self.share.whole(logp, mine, n)
            ent = self.share.whole(ent, mine, n) if entropy else ent
            values = None if values is None else self.share.whole(values, mine, n)
        return logp, ent, values, found

    def divide(self, share: Share, tolerance: float) -> None:
        """From now on rows are worked on together with the other ranks of ``share``. A collective.

        Raises:
            ConfigError: the model's heads cannot be shared. ModelError: log-probs are others than before, by more than ``tolerance`` nats.
        """
        ids = probe_tokens(self.base, 27)
        b = ids.new_tensor
        rows = (ids, b([12, 15]), torch.cat([b(range(5, 12)), b(range(16, 27))]), b([0, 1]), Sampling())
        with torch.no_grad(), gathered_by_layer(self):
            before, *_ = self(*rows)
            share.attend(self.base)
            if self.critic is not None:
                share.attend(self.critic.decoder)
            self.share = share
            gap = float((self(*rows)[0] - before).abs().mean())
        if not gap <= tolerance:
            raise ModelError(
                f"learner.sequence_parallel: log-probs of {type(self.base).__name__} differ by {gap:.2g} nats on average where "
                f"{share.size} ranks share a row: its code lets tokens see each other outside of attention. Set it to 1."
            )

    def _shared_table(self) -> nn.Embedding | None:
        """The embedding whose trained matrix is the output layer's, too; None also where ZeRO-3 gathers it layer by layer."""
        table = self.base.get_input_embeddings()
        shared = type(table) is nn.Embedding and table.weight is self.output.weight
        return (
            table
            if shared and table.weight.requires_grad and torch.is_grad_enabled() and not hasattr(table.weight, "ds_id")
            else None
        )

    def hidden(self, ids: Tensor, length: Tensor, action: Tensor, group: Tensor) -> Tensor:
        """Last hidden states ``[L, H]``."""
        return hidden_states(decoder_of(self.base), ids, length, action, group)


@contextlib.contextmanager
def gathered_by_layer(model: nn.Module) -> Iterator[None]:
    """Inside, ``model`` runs although ZeRO-3 has cut its parameters: each layer's are whole while it does. A collective of all ranks.

    DeepSpeed's own hooks do so from the time when its engine is made; a model is examined before that.
    """
    with contextlib.ExitStack() as stack:
        for part, inside in _parts(model):
            cut: list[Any] = [p for p in part.parameters(recurse=inside) if hasattr(p, "ds_id")]
            if cut:
                stack.callback(part.register_forward_pre_hook(partial(_gather, cut)).remove)
                stack.callback(part.register_forward_hook(partial(_release, cut), always_call=True).remove)
        yield


def _parts(module: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """The layers of a model, each with all that is inside, and its other modules one by one."""
    yield module, False
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from ((layer, True) for layer in child)
        else:
            yield from _parts(child)


def _gather(cut: list[Any], *_: Any) -> None:
    """Makes parameters whole, in one piece of memory that is just large enough; DeepSpeed's own way takes nearly thrice that on CPUs."""
    sizes = [p.ds_tensor.numel() * torch.distributed.get_world_size(p.ds_process_group) for p in cut]
    pieces = torch.empty(sum(sizes), dtype=cut[0].dtype, device=cut[0].device).split(sizes)
    for p, whole, size in zip(cut, pieces, sizes, strict=True):
        me = torch.distributed.get_rank(p.ds_process_group)
        for rank, part in enumerate(whole.chunk(size // p.ds_tensor.numel())):
            if rank == me:
                part.copy_(p.ds_tensor)
            torch.distributed.broadcast(part, group=p.ds_process_group, group_src=rank)
        p.data = whole[: p.ds_numel].view(p.ds_shape)


def _release(cut: list[Any], *_: Any) -> None:
    for p in cut:
        p.data = torch.empty(0, dtype=p.dtype, device=p.device)


def proven(lm: Any, where: str, tolerance: float, fp32_head: bool = False, trained: bool = True) -> PolicyModel:
    """``lm`` as rlkit evaluates it, in evaluation mode, after its log-probs were held against those of the model's own forward pass, on a
    row of tokens and on its first half.

    rlkit takes hidden states and goes its own way from there, and switches randomness off. Whatever a model's code does after them,
    whatever lets a token see later ones, and what depends on more than the row in training mode (if it is to be ``trained``), shows here.

    Raises:
        ModelError: the mean difference is above ``tolerance`` nats.
    """
    ids = probe_tokens(lm, 24)
    half = ids[:12]
    b = ids.new_tensor
    rows = (torch.cat([ids, half]), b([24, 12]), torch.cat([b(range(1, 24)), b(range(25, 36))]), b([0, 1]), Sampling())
    with torch.no_grad(), gathered_by_layer(lm):
        logits = lm.eval()(input_ids=ids[None], use_cache=False).logits[0].float()
    policy = PolicyModel(lm, fp32_head=fp32_head).to(ids.device).eval()
    with torch.no_grad(), gathered_by_layer(policy):
        own, *_ = policy(*rows)
        again = policy.train()(*rows)[0] if trained else own
        policy.eval()
    want = logits[:-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    gap = float((own - torch.cat([want, want[:11]])).abs().mean())
    name = type(policy.base).__name__
    if not gap <= tolerance:
        raise ModelError(
            f"{where}: rlkit's log-probabilities of {name} differ from the model's own by {gap:.2g} nats on "
            "average: its code transforms logits in a way that rlkit does not know, or lets tokens see later ones. It cannot be trained."
        )
    gap = float((again - own).abs().mean())
    if not gap <= tolerance:
        raise ModelError(
            f"{where}: in training mode {name} gives other log-probabilities than when it is sampled, by {gap:.2g} nats on average: "
            "its code draws random numbers there. Set what config.json has of dropout to 0; if there is none, it cannot be trained."
        )
    return policy


def probe_tokens(lm: Any, count: int) -> Tensor:
    """Tokens from all over the vocabulary, ``[count]``, always the same."""
    table = lm.get_input_embeddings().weight
    size = min(lm.config.vocab_size, int(getattr(table, "ds_shape", table.shape)[0]))
    return torch.randint(0, size, (count,), generator=torch.Generator().manual_seed(0)).to(table.device)


def evaluate_new(
    model: Any,
    b: Batch,
    sampling: Sampling,
    needs: frozenset[str],
    full: Sequence[tuple[Any, Whole, Tensor | None]] = (),
) -> New:
    """Runs ``model`` (a :class:`PolicyModel` or an engine around one) on a micro-batch.

    ``full`` are the terms that compare whole distributions, with those of their anchors and the tokens' weights in the loss.
    """
    logp, entropy, value, found = model(
        b.ids, b.length, b.action, b.group, sampling, entropy="entropy" in needs, value="value" in needs, full=full
    )
    return New(logp, entropy if "entropy" in needs else None, value, found)
