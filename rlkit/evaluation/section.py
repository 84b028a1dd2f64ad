"""The section `eval`."""

from __future__ import annotations

from dataclasses import dataclass

from rlkit.bounds import Bounded, Count, Natural, NonNegative
from rlkit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvalSection(Bounded):
    """Held-out evaluation: before, every ``every`` steps (0: only before and after), and after training.

    Attributes:
        prompts: at most so many of each data set. n: responses to each. temperature: null is that of training.
        alarm: with ``n`` of at least 2, a warning when pass@n falls below the start model's by more than chance (95 %, paired by prompt).
        patience: the run ends after so many evaluations without a better score; null: it does not.
        go_back: the model that a run leaves in ``final/`` is the one with the best held-out score, not the last one.
    """

    every: Natural = 0
    prompts: Natural = 128
    n: Count = 1
    temperature: NonNegative | None = None
    alarm: bool = True
    patience: Count | None = None
    go_back: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.patience is not None or self.go_back) and not (self.every and self.prompts):
            raise ConfigError(
                f"eval.{'patience' if self.patience is not None else 'go_back'} looks at held-out scores, but eval.every is "
                f"{self.every} and eval.prompts {self.prompts}. Set both, e.g. eval.every: 20."
            )
