"""Rules of your own: which prompts are worth a group, and which finished groups are not trained on. See custom_parts.yaml."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlkit import AdmitRule, DropRule, Prompt, Rollout


@dataclass(frozen=True, kw_only=True)
class Unsure(AdmitRule):
    """Asks for prompts to which two sampled responses differ."""

    def __call__(self, prompt: Prompt, ask: Callable[[int, bool], Sequence[Rollout]]) -> str | None:
        one, two = ask(2, False)
        return "sure" if one.text == two.text else None


@dataclass(frozen=True, kw_only=True)
class Silent(DropRule):
    """Replaces groups in which more than ``share`` of the responses are empty."""

    share: float = 0.5

    def __call__(self, group: Sequence[Rollout]) -> str | None:
        return "silent" if sum(not r.text.strip() for r in group) > self.share * len(group) else None
