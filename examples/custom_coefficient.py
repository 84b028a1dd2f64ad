"""A coefficient of your own, as a function of the step. See custom_parts.yaml.

One that reacts to what a step measured is a subclass of ``rk.Coefficient`` with ``start`` and ``next``.
"""

from dataclasses import dataclass

from rlkit.objective.coefficients import Schedule


@dataclass(frozen=True)
class Sawtooth(Schedule):
    """Falls from ``high`` to 0 within ``period`` steps, again and again: the policy is let go, and caught."""

    high: float
    period: int = 20

    def __call__(self, step: int) -> float:
        return self.high * (1 - step % self.period / self.period)
