"""A reward of your own: a plain function whose parameters are filled by name. Runs in this process, without Ray.

python examples/custom_reward.py                  # about a minute
python examples/custom_reward.py steps=200        # with changes of the configuration
"""

import sys
from pathlib import Path

import rlkit as rk

CONFIG = Path(__file__).parent / "local.yaml"


def close_to_sorted(response: str, answer: str) -> dict[str, float]:
    """Partial credit for every digit in its place; each part is logged as ``reward/close_to_sorted/...``."""
    right = sum(a == b for a, b in zip(response, answer, strict=False))
    return {"places": 0.5 * right / len(answer), "exact": 0.5 * (response == answer)}


if __name__ == "__main__":
    run = rk.load(CONFIG, sys.argv[1:]).replace(name="custom_reward", rewards=[close_to_sorted])
    folder = rk.train(run)
    print(f"\nThe final model is in {folder / 'final'}")
