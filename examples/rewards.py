"""Rewards that configurations name as ``rewards.py:function``. Parameters are filled by name; ``limit`` is a data column."""


def brevity(tokens: list[int], finish: str, limit: int = 24) -> float:
    """1 for an empty response, 0 at ``limit`` tokens; a response that was cut off gets 0."""
    return 0.0 if finish == "length" else max(0.0, 1 - len(tokens) / limit)
