"""Models and tokenizers from folders or the hub, whole or not at all, with an attention that computes what their own code does."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlkit.errors import ModelError, first_line
from rlkit.model import packed
from rlkit.model.hub import OWN_CODE, read_config, said_of
from rlkit.model.policy import decoder_of, gathered_by_layer, hidden_states, padded, probe_tokens

NEVER = -1e4  # the logit of a token that no model has
WINDOW = 6  # of attention, while ways of computing it are compared
NO_TOKENS = "it has no tokenizer.json, nor another file that transformers makes one of."


def examine(path: str | Path, where: str = "model.path") -> Any:
    """The configuration of a model that rlkit can train, from its files' headers alone: no weight is read.

    Raises:
        ModelError: it is not a causal language model, or its files do not hold all of its tensors, with the reason.
    """
    config, options = _read_config(path, where), {"device_map": "meta"}
    _, told = _read(path, where, **options)
    _complete(told, path, where)
    return config


def load_lm(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    where: str = "model.path",
    mapped: bool = False,
) -> Any:
    """Loads a causal LM from a folder or from the hub, whole, or not at all. ``where`` names the setting that gave the path.

    ``mapped`` parameters are pages of the model's files and cost no memory, but are of the files' type; whoever asks for that casts them.

    Raises:
        ModelError: the path is not such a model, or a tensor of it is missing, of another size, or not finite.
    """
    _read_config(path, where)
    options = {} if attention is None else {"attn_implementation": attention}
    lm, told = _map(path, where, dtype, options) if mapped else _read(path, where, dtype=dtype, **options)
    _complete(told, path, where)
    bad = [name for name, p in lm.named_parameters() if not bool(torch.isfinite(torch.stack(p.aminmax())).all())]
    if bad:
        raise ModelError(
            f"{where}: {first_of(bad, 'tensor')} of {path} hold{'s' if len(bad) == 1 else ''} NaN or infinite numbers. Take another copy "
            "of the model, or an earlier checkpoint."
        )
    if not isinstance(lm.get_output_embeddings(), nn.Linear):
        raise ModelError(f"{where}: {path} has no linear output layer; rlkit computes log-probabilities from one.")
    lm.config.use_cache = False
    return lm


def load_for(
    path: str | Path,
    dtype: torch.dtype,
    attention: str | None,
    where: str = "model.path",
    device: torch.device | None = None,
    windows: bool = False,
    cut: Callable[[Any], None] | None = None,
) -> tuple[Any, str | None]:
    """Like :func:`load_lm`, on ``device``, with an attention that computes there what the model's own code does.

    ``cut`` takes the model as it is mapped from its files, and leaves a part of each parameter (:class:`rlkit.learner.sharding.Cutter`).
    Of the fast implementations some leave out what a few models need (caps, sinks, windows) without a word. ``attention``, rlkit's packed
    one or the library's choice (None) is held against the plainest, ``eager``, which takes its place if they differ; the second result then
    says why. ``windows``: layers that attend within a sliding window can be packed, too.

    Raises:
        ModelError: also if the user's own choice of an attention differs.
    """
    lm = load_lm(path, dtype, None if attention == packed.NAME else attention, where, mapped=cut is not None)
    if cut is not None:
        cut(lm)
    elif device is not None:
        lm.to(device)
    most, why = (0.05 if dtype == torch.bfloat16 else 1e-4), None
    chosen = lm.config._attn_implementation
    if attention == packed.NAME:
        why = packed.supported(lm.config, windows)
        if why is None:
            for method in packed.candidates(lm.device, dtype):
                lm.set_attn_implementation(method)
                if decoder_of(lm).config._attn_implementation != method:
                    why = "this model's code takes no attention but its own"
                    break
                try:
                    gap = attention_gap(lm)
                except ModelError as error:
                    why = str(error)
                    break
                except Exception as error:  # whatever a kernel makes of a device or a shape that it does not know
                    why = f"packed sequences fail with this model ({first_line(error)[:200]})"
                    continue
                if gap <= most:
                    return lm, None
                why = (
                    f"this model's code gives other hidden states for packed sequences (relative difference {gap:.2g})"
                )
            lm.set_attn_implementation(chosen)
    gap, asked = attention_gap(lm), unheeded(lm) if chosen == "sdpa" else None
    if asked is not None or not gap <= most:
        told = f" (relative difference {gap:.2g})" if asked is None else f": {asked}"
        if attention not in (None, packed.NAME):
            raise ModelError(
                f"model.attention: {attention} gives other hidden states than {type(lm).__name__}'s own code{told}. Set model.attention: "
                "eager."
            )
        lm.set_attn_implementation("eager")
        other = f"{chosen} attention gives other hidden states than its own code{told}, so eager is used"
        why = other if why is None else f"{why}; {other}"
    return lm, why


@contextlib.contextmanager
def short_windows(lm: Any) -> Iterator[None]:
    """Inside, windows of attention are short enough to show in a few tokens, where a model has some: its masks read them from the
    configuration, and most layers hand them on, from there or from an attribute."""
    owners = {id(one): one for one in (lm.config, decoder_of(lm).config, *lm.modules())}.values()
    found = [(one, vars(one)["sliding_window"]) for one in owners if isinstance(vars(one).get("sliding_window"), int)]
    try:
        for one, window in found:
            one.sliding_window = min(window, WINDOW)
        yield
    finally:
        for one, window in found:
            one.sliding_window = window


def unheeded(lm: Any) -> str | None:
    """What a model's layers ask of their attention and torch's own (``sdpa``) passes over, if they do. It shows in some rows more than in
    others, and in 16 bits it can drown in rounding.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, **asked: Any) -> Any:
        packed.heed({k: v for k, v in asked.items() if k != "position_bias"})
        return sdpa_attention_forward(module, query, key, value, attention_mask, **asked)

    name = f"{packed.NAME}_heeding"
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, AttentionMaskInterface()["sdpa"])
    ids = probe_tokens(lm, 4)
    try:
        with torch.no_grad(), gathered_by_layer(lm):
            lm.set_attn_implementation(name)
            padded(decoder_of(lm), ids, ids.new_tensor([len(ids)]))
    except ModelError as error:
        return str(error)
    finally:
        lm.set_attn_implementation("sdpa")
    return None


def attention_gap(lm: Any) -> float:
    """How far the model's hidden states are from those of its plainest attention: 0 if they agree. Both with windows that show.

    In 16 bits a fifth of the tokens, the farthest, does not count: rounding sends a few to other experts.

    Raises:
        ModelError: the attention knows that it would leave something out.
    """
    decoder, chosen = decoder_of(lm), lm.config._attn_implementation
    ids = probe_tokens(lm, 50)
    ids[17:21], ids[33:37] = ids[:4], ids[:4]  # two rows of one prompt and one of another
    length = ids.new_tensor([17, 16, 17])
    action = ids.new_tensor([*range(4, 17), *range(21, 33), *range(36, 50)])
    with torch.no_grad(), gathered_by_layer(lm), short_windows(lm):
        one = hidden_states(decoder, ids, length, action, ids.new_tensor([0, 0, 1])).float()
        lm.set_attn_implementation("eager")
        two = padded(decoder, ids, length).float()
        lm.set_attn_implementation(chosen)
    apart = (one - two).norm(dim=-1)
    if lm.dtype != torch.float32:
        counted = apart.argsort()[: len(apart) * 4 // 5]
        apart, two = apart[counted], two[counted]
    return float(apart.norm() / two.norm().clamp(min=1e-9))


def first_of(names: Sequence[str], what: str) -> str:
    """``tensor a.weight``, or ``tensors a.weight and 3 others``."""
    others = f" and {len(names) - 1} other{'s' if len(names) > 2 else ''}" if len(names) > 1 else ""
    return f"{what}{'s' if others else ''} {names[0]}{others}"


def _read_config(path: str | Path, where: str) -> Any:
    """The configuration of a causal language model; refuses every other kind by what it says of itself."""
    config = read_config(str(path), where, ModelError)
    told = untrainable(config, path)
    if told is not None:
        raise ModelError(f"{where}: {told}")
    return config


def untrainable(config: Any, path: str | Path) -> str | None:
    """Why rlkit does not train the model of ``path``, as its configuration has it, and what to do; None: it does."""
    from transformers import AutoModelForCausalLM

    kind = config.model_type
    if config.is_encoder_decoder:
        return f"{path} is an encoder-decoder ({kind}); rlkit trains decoder-only language models, which continue their prompt."
    if config.get_text_config() is not config:
        return (
            f"{path} is a model of text and other inputs ({kind}); rlkit trains language models alone. Save its language "
            "model as a folder of its own and give that."
        )
    causal: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if causal is None:
        return f"{path} is a {kind}, which transformers knows no causal language model of."
    saved = config.architectures or [causal.__name__]
    if causal.__name__ not in saved:
        return (
            f"{path} was saved as {saved[0]}, not as a causal language model ({causal.__name__}): its output layer is another "
            "one. Give the language model that it was made from."
        )
    if getattr(config, "quantization_config", None) is not None:
        return (
            f"{path} has quantized weights, which cannot be trained. Give the model before quantization, or dequantize it "
            "and save it."
        )
    return None


def _read(path: str | Path, where: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The model, and what transformers missed when it was read."""
    from transformers import AutoModelForCausalLM

    try:
        read: Any = AutoModelForCausalLM.from_pretrained(
            str(path),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # or nobody would be told which tensor it is
            trust_remote_code=False,
            **options,
        )
    except Exception as error:  # whatever transformers and safetensors make of somebody's files
        raise ModelError(
            f"{where}: {str(path)!r} could not be loaded as a causal language model: {_damaged(Path(path)) or first_line(error)}"
        ) from error
    lm, told = read
    return lm, told


def _map(path: str | Path, where: str, dtype: torch.dtype, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model in the type of its files, with the buffers that it has in ``dtype``."""
    lm, told = _read(path, where, dtype="auto", **options)
    if lm.dtype == dtype:
        return lm, told
    wanted, _ = _read(path, where, dtype=dtype, device_map="meta")
    types = {name: b.dtype for name, b in wanted.named_buffers()}
    if any(b.dtype != types[name] for name, b in lm.named_buffers()):  # the model's code computes some in its own type
        return _read(path, where, dtype=dtype, **options)
    lm.config.dtype = dtype
    return lm, told


def _damaged(folder: Path) -> str | None:
    """Which of a folder's files is cut off, empty or missing."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    try:
        parts = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{index} is damaged. Copy the model again."
    for file in sorted({folder / part for part in parts} | set(folder.glob("*.safetensors"))):
        if not file.is_file():
            return f"{file} is missing; {index.name} names it. Copy the model again."
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{file} is damaged ({first_line(error)}). Copy the model again."
    return None


def _complete(told: dict[str, Any], path: str | Path, where: str) -> None:
    """Refuses a model of which something would start from random numbers, or of which a part would be left out."""
    if told["mismatched_keys"]:
        name, found, wanted = sorted(told["mismatched_keys"])[0]
        raise ModelError(
            f"{where}: tensor {name} of {path} has the size {list(found)}, but its config.json describes {list(wanted)}. The "
            "configuration and the weights are of two models."
        )
    if told["missing_keys"]:
        raise ModelError(
            f"{where}: {first_of(sorted(told['missing_keys']), 'tensor')} {'is' if len(told['missing_keys']) == 1 else 'are'} missing in "
            f"{path}: training would start from random numbers there. Copy the model again, or save it whole."
        )
    strange = sorted(k for k in told["unexpected_keys"] if any(part.isdigit() for part in k.split(".")))
    if strange:
        raise ModelError(
            f"{where}: {path} holds {first_of(strange, 'tensor')}, which the model of its config.json has no place for: a part of the "
            "model would be left out. The configuration and the weights are of two models."
        )


def load_tokenizer(path: str | Path, where: str = "model.path") -> Any:
    """The tokenizer of a model folder or hub name, as it was saved; ``where`` names the setting that gave the path.

    ``AutoTokenizer`` takes the class from the *model's* type for some families (Qwen2), whatever the folder says; a folder that names the
    plain class holds a tokenizer of its own, which another class would split differently without a word. And ``add_bos_token: true`` of
    ``tokenizer_config.json`` counts, which transformers 5 passes over where ``tokenizer.json`` says nothing of it.

    Raises:
        ModelError: there is none.
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
        if not set(tokenizer.get_vocab()) - {str(t) for t in tokenizer.added_tokens_decoder.values()}:
            raise OSError(NO_TOKENS)  # what transformers makes of a folder without files of a tokenizer
        asked = get_tokenizer_config(str(path)).get("add_bos_token") and tokenizer.bos_token_id is not None
        if asked and tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:
            tokenizer.add_bos_token = True
        return tokenizer
    except (OSError, ValueError, KeyError) as error:
        said = said_of(error)
        if "backend tokenizer" in said:  # transformers goes on with what it would have taken instead
            own = "auto_map" in get_tokenizer_config(str(path))
            said = OWN_CODE if own else NO_TOKENS
        raise ModelError(f"{where}: no tokenizer could be loaded from {str(path)!r}: {said}") from error


def fit_vocabulary(lm: Any, size: int) -> None:
    """Gives a model's output layer ``size`` rows. Models of one family pad one vocabulary to different sizes (Qwen2.5 has 151,936 and
    152,064): rows that no token has are cut off, or added, for tokens that never come.
    """
    layer = lm.get_output_embeddings()
    own = layer.out_features
    if own == size:
        return
    rows, weight = min(own, size), layer.weight.data
    fitted = nn.Linear(layer.in_features, size, bias=layer.bias is not None or size > own, device="meta")
    fitted.weight = nn.Parameter(torch.cat([weight[:rows], weight.new_zeros(size - rows, weight.shape[1])]))
    if fitted.bias is not None:
        given = weight.new_zeros(rows) if layer.bias is None else layer.bias.data[:rows]
        fitted.bias = nn.Parameter(torch.cat([given, weight.new_full((size - rows,), NEVER)]))
    lm.set_output_embeddings(fitted)
    lm.config.vocab_size = rows


def same_tokens(path: str | Path, where: str, tokenizer: Any) -> None:
    """Refuses a model whose folder has a tokenizer that gives other ids than ``tokenizer``; a folder without one is taken at its word."""
    try:
        theirs = load_tokenizer(path).get_vocab()
    except ModelError:
        return
    ours = tokenizer.get_vocab()
    differ = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if differ:
        raise ModelError(
            f"{where}: the tokenizer of {path} gives other ids than the policy's to {len(differ)} tokens ({differ[0]!r}, ...). Models are "
            "compared token by token: use one with the same tokenizer, or as a teacher type: Translated."
        )
