"""Responses that take too long are told so, and answer."""

from __future__ import annotations

import pytest

from rlkit.rollout.interrupt import Interrupt, Interruption
from rlkit.types import Prompt, Rollout, Sampling


class Typist:
    """Writes the numbers 0, 1, 2, ... after what it was given, up to 9, which ends the text."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, ...], int]] = []

    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        self.calls.append((prompt.token_ids, sampling.max_tokens))
        tokens = list(range(prompt.token_ids[-1] + 1, 10))[: sampling.max_tokens]
        done = tokens[-1] == 9
        return [
            Rollout(
                prompt,
                list(tokens),
                [True] * len(tokens),
                [-1.0] * len(tokens),
                [3] * len(tokens),
                "stop" if done else "length",
                text="".join(map(str, tokens)),
            )
            for _ in range(n)
        ]


def test_interrupted_responses_are_told_so_and_answer() -> None:
    def tokenizer(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [int(c) for c in text]}

    typist = Typist()
    told = Interruption(Interrupt(low=3, high=3, text="77", until="x"), tokenizer, 8)
    group = told.generate(typist, Prompt("p", (0,), "0"), 2, Sampling(max_tokens=8))
    for r in group:
        assert r.tokens == [1, 2, 3, 7, 7, 8, 9] and r.text == "1237789" and r.finish == "stop" and r.prompt.id == "p"
        assert r.sampled == [True] * 3 + [False] * 2 + [True] * 2 and r.logp[3:5] == [0.0, 0.0] and r.version == [3] * 7
    assert sorted(typist.calls) == [((0,), 3), ((0, 1, 2, 3, 7, 7), 3), ((0, 1, 2, 3, 7, 7), 3)]
    simply = Interruption(Interrupt(low=3, high=3, text="77", until="23"), tokenizer, 8).generate(
        typist, Prompt("p", (0,), "0"), 1, Sampling(max_tokens=8)
    )
    assert simply[0].tokens == [1, 2, 3, 4, 5, 6, 7, 8] and simply[0].finish == "length" and all(simply[0].sampled)
    assert (
        Interruption(Interrupt(low=9, high=9, text="7"), tokenizer, 11)
        .generate(typist, Prompt("p", (0,), "0"), 1, Sampling(max_tokens=11))[0]
        .finish
        == "stop"
    )
    with pytest.raises(ValueError, match="no room for an answer"):
        Interruption(Interrupt(low=3, high=6, text="77"), tokenizer, 8)
