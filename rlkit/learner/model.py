"""The model under training: a Hugging Face causal LM whose forward pass answers in flat action tokens.

The only shift by a position in rlkit is in :meth:`PolicyModel.forward`: the hidden state at position ``t - 1`` predicts
the token at ``t``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlkit.errors import ModelError
from rlkit.learner import packed
from rlkit.learner.head import LMHead
from rlkit.objective.full_vocab import Head
from rlkit.types import Batch, New, Sampling

Embed = Callable[[Tensor], Tensor]  # tokens to input embeddings


def load_lm(path: str | Path, dtype: torch.dtype = torch.float32, attention: str | None = None) -> Any:
    """Loads a causal LM from a folder or from the hub.

    Raises:
        ValueError: the path is not a model, with the reason.
    """
    from transformers import AutoModelForCausalLM

    options = {} if attention is None else {"attn_implementation": attention}
    try:
        lm = AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"model.path: {str(path)!r} could not be loaded as a causal language model: {str(error).splitlines()[0]}"
        ) from error
    config = lm.config
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ModelError(
                f"model.path: {path} transforms its logits ({name} = {getattr(config, name)}); rlkit computes "
                "log-probabilities from hidden states and supports models with a plain output layer."
            )
    if not isinstance(lm.get_output_embeddings(), nn.Linear):
        raise ModelError(f"model.path: {path} has no linear output layer; rlkit needs one.")
    config.use_cache = False
    return lm


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a model folder or hub name, as it was saved.

    ``AutoTokenizer`` takes the class from the *model's* type for some families (Qwen2), whatever the folder says; a folder that names the
    plain class holds a tokenizer of its own, which another class would split differently without a word. And ``add_bos_token: true`` of
    ``tokenizer_config.json`` counts, which transformers 5 passes over where ``tokenizer.json`` says nothing of it.

    Raises:
        ValueError: there is none.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    saved = Path(path) / "tokenizer_config.json"
    try:
        plain = saved.is_file() and json.loads(saved.read_text(encoding="utf-8-sig")).get("tokenizer_class") in (
            "TokenizersBackend",
            "PreTrainedTokenizerFast",
        )
        kind: Any = PreTrainedTokenizerFast if plain else AutoTokenizer
        tokenizer = kind.from_pretrained(path, trust_remote_code=False)
        asked = get_tokenizer_config(str(path)).get("add_bos_token") and tokenizer.bos_token_id is not None
        if asked and tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:
            tokenizer.add_bos_token = True
        return tokenizer
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model.path: no tokenizer could be loaded from {str(path)!r}: {str(error).splitlines()[0]}"
        ) from error


def add_lora(lm: Any, options: dict[str, Any], seed: int) -> Any:
    """Wraps ``lm`` with a LoRA adapter; ``options`` go to ``peft.LoraConfig`` as they are.

    Raises:
        ValueError: peft is missing, or it refuses the options.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ModelError("peft: is set, but peft is not installed. Install it with: pip install peft") from None
    torch.manual_seed(seed)  # every rank must draw the same adapter
    try:
        return get_peft_model(lm, LoraConfig(**{"task_type": "CAUSAL_LM", **options}))
    except (TypeError, ValueError) as error:
        raise ModelError(f"peft: {str(error).splitlines()[0]}") from error


def switch_off_randomness(model: nn.Module) -> None:
    """Sets every dropout, layer drop and router noise of a model and its adapter to 0, so that each pass is a function of its rows.

    Not by ``eval()``: gradient checkpointing and some experts' code ask for the training mode. The model's configuration stays as it is.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and re.search("dropout|pdrop|layerdrop|jitter", name):
                setattr(module, name, 0.0)


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
    """Last hidden states ``[L, H]``: packed (:mod:`rlkit.learner.packed`) if the model was loaded for it, else padded.

    ``embed`` takes the place of the decoder's own embedding.
    """
    if decoder.config._attn_implementation != packed.NAME:
        return padded(decoder, ids, length, embed)
    layout = packed.make(ids, length, action, group)
    return _call(decoder, layout.ids[None], embed, position_ids=layout.position[None], packing=layout)[0, layout.place]


class ValueModel(nn.Module):
    """A critic of its own: a decoder, and a linear layer that starts at zero."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.decoder = lm.get_decoder()
        self.out = nn.Linear(lm.config.hidden_size, 1, dtype=lm.dtype)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, ids: Tensor, length: Tensor, action: Tensor, group: Tensor) -> Tensor:
        """The value of the prefix before each action token, ``[N]``."""
        values: Tensor = self.out(hidden_states(self.decoder, ids, length, action, group)[action - 1])[:, 0]
        return values


class PolicyModel(nn.Module):
    """A language model (with a LoRA adapter or not) and, where values are needed, a value head or a critic of its own.

    ``forward`` takes packed sequences and returns log-probs of the action tokens of the distribution that was sampled
    from: after temperature, top-k and top-p.
    """

    def __init__(
        self, lm: Any, value_head: bool = False, fp32_head: bool = False, critic: ValueModel | None = None
    ) -> None:
        super().__init__()
        self.lm = lm
        head = self.base.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ModelError(
                f"peft: the output layer is adapted ({type(head).__name__}); rlkit evaluates it itself and would not see it. "
                "Leave it out of target_modules and modules_to_save, and tokens out of trainable_token_indices."
            )
        self.base.set_output_embeddings(LMHead.adopt(head))
        self.fp32_head = fp32_head
        self.critic = critic
        self.value_head: nn.Linear | None = None
        if value_head and critic is None:
            self.value_head = nn.Linear(self.base.config.hidden_size, 1)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
            self.value_head.to(self.base.get_output_embeddings().weight.dtype)
        switch_off_randomness(self)

    @property
    def base(self) -> Any:
        """The Hugging Face model itself, without the adapter's wrapper."""
        return self.lm.get_base_model() if hasattr(self.lm, "get_base_model") else self.lm

    def forward(
        self,
        ids: Tensor,
        length: Tensor,
        action: Tensor,
        group: Tensor,
        sampling: Sampling,
        entropy: bool = False,
        value: bool = False,
        full: Sequence[tuple[Any, Head, Tensor]] = (),
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

        hidden = hidden_states(
            self.base.get_decoder(), ids, length, action, group, None if table is None else embed
        )  # [L, H]
        at = hidden[action - 1]  # the one shift
        logp, ent, found = self.base.get_output_embeddings()(
            at,
            target=ids[action],
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            entropy=entropy,
            fp32=self.fp32_head,
            full=full,
            weight=weight,
        )
        values = None
        if value and self.critic is not None:
            values = self.critic(ids, length, action, group).float()
        elif value and self.value_head is not None:
            values = self.value_head(at)[:, 0].float()
        return logp, ent, values, found

    def _shared_table(self) -> nn.Embedding | None:
        """The embedding whose trained matrix is the output layer's, too; None also where ZeRO-3 gathers it layer by layer."""
        table = self.base.get_input_embeddings()
        shared = type(table) is nn.Embedding and table.weight is self.base.get_output_embeddings().weight
        return (
            table
            if shared and table.weight.requires_grad and torch.is_grad_enabled() and not hasattr(table.weight, "ds_id")
            else None
        )

    def hidden(self, ids: Tensor, length: Tensor, action: Tensor, group: Tensor) -> Tensor:
        """Last hidden states ``[L, H]``."""
        return hidden_states(self.base.get_decoder(), ids, length, action, group)


def evaluate_new(
    model: Any, b: Batch, sampling: Sampling, needs: frozenset[str], full: Sequence[tuple[Any, Head, Tensor]] = ()
) -> New:
    """Runs ``model`` (a :class:`PolicyModel` or an engine around one) on a micro-batch.

    ``full`` are the terms that compare whole distributions, with their anchors' output layers and the tokens' weights in the loss.
    """
    logp, entropy, value, found = model(
        b.ids, b.length, b.action, b.group, sampling, entropy="entropy" in needs, value="value" in needs, full=full
    )
    return New(logp, entropy if "entropy" in needs else None, value, found)
