"""One text in two tokenizers: where tokens end in it, and the pieces that both cut it into.

A piece is the shortest stretch of text that is a whole number of tokens in either. Its log-prob in a model is the sum over its tokens there
(the chain rule), so models of any two vocabularies can be compared piece by piece; and the tokens with which a piece begins stand behind
the same text, so their distributions are about the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Piece(NamedTuple):
    """Tokens of the two tokenizations, from the first up to (not including) the last of each."""

    own: range
    other: range


def ends(decode: Callable[[Sequence[int]], str], ids: Sequence[int]) -> list[int]:
    """Where in the text of ``ids`` each token ends, in characters; a part of a character ends where the character begins.

    Tokens are decoded behind the one before them, because what a token adds to a text depends on whether it is the first.
    """
    out, end, first, fresh, shown = [], 0, 0, 0, ""
    for i in range(len(ids)):
        text = decode(ids[first : i + 1])
        if len(text) > len(shown) and not text.endswith("\ufffd"):  # no character is cut
            end += len(text) - len(shown)
            first, fresh = fresh, i + 1
            shown = decode(ids[first:fresh])
        out.append(end)
    if out and fresh < len(ids):  # the text ends within a character
        out[-1] = end + len(decode(ids[first:])) - len(shown)
    return out


def encode(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """The tokens of a text, and where in it each ends, as :func:`ends` says; by the offsets that the tokenizer itself gives."""
    told = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets, out, limit = told["offset_mapping"], list[int](), len(text)
    for start, end in reversed(offsets):  # a token that begins before this one ends cuts a character with it
        out.append(min(end, limit))
        limit = min(limit, start)
    return list(told["input_ids"]), out[::-1]


def pieces(own: Sequence[int], other: Sequence[int]) -> list[Piece]:
    """The pieces of a text of which two tokenizations end their tokens at ``own`` and ``other``; every token is in one of them.

    Tokens without any text belong to the piece that follows, or to the last one.
    """
    out, i, j, before = list[Piece](), 0, 0, (0, 0)
    while i < len(own) and j < len(other):
        if own[i] < other[j]:
            i += 1
        elif own[i] > other[j]:
            j += 1
        else:
            i, j = i + 1, j + 1
            out.append(Piece(range(before[0], i), range(before[1], j)))
            before = i, j
    if before < (len(own), len(other)) and (out or (own and other)):
        start = before if not out else (out[-1].own.start, out[-1].other.start)
        out[len(out) - 1 :] = [Piece(range(start[0], len(own)), range(start[1], len(other)))]
    return out
