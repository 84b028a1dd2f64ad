"""The section `model`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlkit.bounds import Bounded, Count, Natural, NonNegative
from rlkit.errors import ConfigError
from rlkit.place import Place


@dataclass(frozen=True, kw_only=True)
class TinyModel(Bounded):
    """A small random model with a character tokenizer for the task's alphabet: what runs without any download.

    Attributes:
        family: whose architecture it has. hidden: width; divided by ``heads`` it is 32, 64, 96 or 128. layers: decoder layers.
        heads: attention heads. kv_heads: key and value heads, a divisor of ``heads``.
    """

    family: Literal["qwen2", "qwen3", "llama"] = "qwen2"
    hidden: Count = 128
    layers: Count = 4
    heads: Count = 4
    kv_heads: Count = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden % self.heads or self.hidden // self.heads not in (32, 64, 96, 128) or self.heads % self.kv_heads:
            raise ConfigError(
                f"model.make: hidden {self.hidden} / heads {self.heads} must be a head size of 32, 64, 96 or 128 (vLLM's "
                f"CPU attention has no other), and kv_heads ({self.kv_heads}) must divide heads."
            )


@dataclass(frozen=True, kw_only=True)
class WarmUp(Bounded):
    """Supervised training on the task's demonstrations before RL starts.

    Attributes:
        steps: of the optimizer. batch: sequences of a step. lr: learning rate.
    """

    steps: Natural = 200
    batch: Count = 64
    lr: NonNegative = 2e-3


@dataclass(frozen=True, kw_only=True)
class Model(Bounded):
    """Where training starts: a folder or hub name, or a tiny model that the run makes.

    Attributes:
        path: a folder (beside the configuration, or in the current folder) or a name on the hub; or
        make: a tiny random model that the run makes itself.
        warm_up: supervised training on the task's demonstrations before RL starts; null: none.
        dtype: of the weights; bfloat16 trains under DeepSpeed, which keeps float32 master weights.
        attention: the implementation by its name in transformers; null: rlkit's packed one where it fits, else the model's own.
        fp32_head: the output layer is evaluated in float32, which brings engine and learner closer together in bfloat16.
    """

    path: Place | None = None
    make: TinyModel | None = None
    warm_up: WarmUp | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: str | None = None
    fp32_head: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.path is None) == (self.make is None):
            raise ConfigError(
                "model needs exactly one of `path` (a folder or hub name) and `make` (a tiny model "
                "that the run makes itself)."
            )
