"""Prompts, and groups of responses to them, of which only the rewards matter."""

from __future__ import annotations

from rlkit.types import Prompt, Rollout


def prompts(n: int) -> list[Prompt]:
    return [Prompt(f"p{i}", (3,), str(i)) for i in range(n)]


def group(p: Prompt, rewards: list[float], finish: str = "stop") -> list[Rollout]:
    return [Rollout(p, [1], [True], [0.0], [0], finish, reward=x) for x in rewards]
