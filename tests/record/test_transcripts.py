"""A response in pieces."""

from __future__ import annotations

import pytest

from rlkit.record.transcripts import pieces


@pytest.mark.parametrize("text", ["", "12>", "größer", "日本, 👍🏽!", "a\n\tb"])
def test_pieces_are_whole_characters_of_the_text(text: str) -> None:
    """Of a tokenizer whose tokens are bytes."""
    cut = pieces(list(text.encode()), lambda ids: bytes(ids).decode(errors="replace"))
    assert cut == [(c, len(c.encode())) for c in text]


def test_a_character_that_never_ends_is_the_last_piece() -> None:
    cut = pieces([*b"a", 0xF0, 0x9F], lambda ids: bytes(ids).decode(errors="replace"))
    assert cut == [("a", 1), ("\ufffd", 2)]


def test_the_space_in_front_of_a_word_depends_on_the_word_before() -> None:
    words = ["▁Good", "▁day", "s", "▁all"]

    def decode(ids: list[int]) -> str:
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert pieces([0, 1, 2, 3], decode) == [("Good", 1), (" day", 1), ("s", 1), (" all", 1)]
