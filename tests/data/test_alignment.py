"""Texts in two trained tokenizers: tokens end where their text does, and pieces are what both can say."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkit.data.alignment import Piece, encode, ends, pieces

ROOT = Path(__file__).resolve().parents[2]
TEXTS = (
    "The policy is a list of loss terms, and the teacher's tokens are others.",
    "  2 spaces, a tab\tand\n\nlines; 3.14159 x 10^-5",
    "naïve façade, 日本語 🙂👍🏽 and e\u0301",
    "",
)


@functools.cache
def trained(kind: str) -> Any:
    """GPT-2's kind of tokenizer (bytes, merged) and Llama's (words with their space, unknown characters as bytes), trained on our license, which does not change."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    text = [(ROOT / "LICENSE").read_text()]
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        fallback = [f"<0x{i:02X}>" for i in range(256)]
        trainer = trainers.BpeTrainer(
            vocab_size=900,
            special_tokens=["<unk>", "</s>", *fallback],
            max_token_length=7,
            limit_alphabet=80,
            show_progress=False,
        )
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def decode(tokenizer: Any, ids: Any) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("kind", ["bytes", "words"])
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_end_where_their_text_does(kind: str, text: str) -> None:
    tokenizer = trained(kind)
    ids, told = encode(tokenizer, text)
    assert told == ends(functools.partial(decode, tokenizer), ids) and (not ids or told[-1] == len(text))
    bytes_of = [_bytes(kind, token) for token in tokenizer.convert_ids_to_tokens(ids)]
    assert b"".join(bytes_of) == text.encode()
    for i, end in enumerate(told):
        assert text[:end] == b"".join(bytes_of[: i + 1]).decode(errors="ignore")


def _bytes(kind: str, token: str) -> bytes:
    """What a token stands for, by the tables of its kind."""
    if kind == "words":
        return bytes([int(token[3:5], 16)]) if token.startswith("<0x") else token.replace("▁", " ").encode()
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    table = {chr(b): b for b in printable} | {chr(256 + k): b for k, b in enumerate(others)}
    return bytes(table[c] for c in token)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_same_text_in_both(text: str) -> None:
    one, two = trained("bytes"), trained("words")
    (a, a_ends), (b, b_ends) = encode(one, text), encode(two, text)
    found = pieces(a_ends, b_ends)
    assert [decode(one, [a[i] for i in p.own]) for p in found] == [decode(two, [b[j] for j in p.other]) for p in found]
    assert [i for p in found for i in p.own] == list(range(len(a))) and [j for p in found for j in p.other] == list(
        range(len(b))
    )
    if text == TEXTS[0]:  # they are two tokenizers, and pieces are short
        assert a_ends != b_ends and len(found) > 7 and any(len(p.own) > 1 for p in found)


def test_tokens_that_were_sampled_need_not_be_those_of_the_tokenizer() -> None:
    """A text can be written with other tokens than its own: letter by letter, or with a cut character at its end."""
    tokenizer = trained("bytes")
    letters = [i for c in "loss 日" for i in tokenizer(c, add_special_tokens=False)["input_ids"]]
    cut = letters[:-1]
    assert ends(functools.partial(decode, tokenizer), letters) == [1, 2, 3, 4, 5, 5, 5, 6]
    assert ends(functools.partial(decode, tokenizer), cut) == [1, 2, 3, 4, 5, 5, 6]


@given(st.lists(st.integers(1, 3), min_size=1, max_size=12), st.lists(st.integers(1, 3), min_size=1, max_size=12))
def test_pieces_end_at_every_place_where_both_do(a: list[int], b: list[int]) -> None:
    """Against the definition, for tokens of random lengths over one text."""
    own, other = ([sum(x[: i + 1]) for i in range(len(x))] for x in (a, b))
    length = max(own[-1], other[-1]) + 1
    own, other = [*own, length], [*other, length]  # both reach its end
    found = pieces(own, other)
    assert [own[p.own[-1]] for p in found] == [other[p.other[-1]] for p in found] == sorted(set(own) & set(other))
    assert [i for p in found for i in p.own] == list(range(len(own)))
    assert [j for p in found for j in p.other] == list(range(len(other)))


def test_nothing_has_no_pieces() -> None:
    assert pieces([], []) == [] and pieces([3], [1, 3]) == [Piece(range(1), range(2))]
    assert pieces([1, 1, 2], [1, 2]) == [
        Piece(range(1), range(1)),
        Piece(range(1, 3), range(1, 2)),
    ]  # no text: what follows
    assert pieces([1, 2, 2], [1, 2]) == [Piece(range(1), range(1)), Piece(range(1, 3), range(1, 2))]  # nothing follows
