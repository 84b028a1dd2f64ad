"""A divergence of your own: ``f(u) / u`` and ``f'(u)`` as functions of ``a = log u``, ``u = pi / anchor``. See custom_parts.yaml.

``rlkit check examples/custom_parts.yaml`` compares its gradient with the exact one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlkit import Generator


@dataclass(frozen=True)
class LeCam(Generator):
    """``f(u) = (u - 1)^2 / (2 (u + 1))``: bounded, and the same in both directions."""

    def value(self, a: Tensor) -> Tensor:
        u = a.exp()
        return torch.expm1(a) ** 2 / (2 * u * (u + 1))

    def slope(self, a: Tensor) -> Tensor:
        u = a.exp()
        return torch.expm1(a) * (u + 3) / (2 * (u + 1) ** 2)
