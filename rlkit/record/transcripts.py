"""A response as a person reads it, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def pieces(tokens: Sequence[int], decode: Callable[[list[int]], str]) -> list[tuple[str, int]]:
    """The text of a response in pieces of as few tokens as make whole characters: (text, number of tokens) each.

    A token's text depends on the one before it (a space in front of a word, the bytes of a character), so each piece is what the text
    grows by when its tokens are added to the piece before.
    """
    ids, out = list(tokens), list[tuple[str, int]]()
    before = start = 0  # where the last piece begins, and the next
    for end in range(1, len(ids) + 1):
        known, text = decode(ids[before:start]), decode(ids[before:end])
        if text.endswith("\ufffd") and end < len(ids):
            continue
        out.append((text[len(known) :], end - start))
        before, start = start, end
    return out
