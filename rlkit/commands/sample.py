"""``rlkit sample``: what a model says, or what decoding makes of it: a control, best of n, rejection sampling."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlkit.commands.engines import given_control, model_folder
from rlkit.data.render import Encoder, Renderer, load_template
from rlkit.errors import ConfigError
from rlkit.evaluation.selection import (
    FrontierPoint,
    best_of_n,
    best_of_n_kl,
    best_of_n_kl_bound,
    frontier,
    rejection_sample,
)
from rlkit.model.load import load_tokenizer
from rlkit.rewards import RewardSpec, Scorer
from rlkit.rollout.control import Control, DeRa
from rlkit.rollout.controlled import Controlled
from rlkit.rollout.engine import EngineSetup
from rlkit.rollout.section import ENGINES
from rlkit.samples import Prompt, Rollout, Sampling
from rlkit.session import quiet_libraries


@dataclass(frozen=True)
class Sampled:
    """Responses to one prompt; ``str`` shows them.

    Attributes:
        responses: those that were chosen of ``drawn``: all, the best, or what rejection kept. scored: they have rewards.
        best_kl: what choosing the best costs, nats, by its estimator. optimum: the best that any policy can reach at ``tilt``.
    """

    prompt: Prompt
    drawn: tuple[Rollout, ...]
    responses: tuple[Rollout, ...]
    scored: bool = False
    best_kl: float | None = None
    optimum: FrontierPoint | None = None

    def __str__(self) -> str:
        lines = [self.prompt.text]
        if self.best_kl is not None:
            n, bound = len(self.drawn), best_of_n_kl_bound(len(self.drawn))
            lines.append(f"  best of {n}: KL to the model about {self.best_kl:.3f} nats (at most {bound:.3f})")
        if self.optimum is not None:
            point = self.optimum
            of = sum(not math.isnan(r.reward) for r in self.drawn)
            lines.append(
                f"  {len(self.responses)} of {of} kept; the optimum at this beta: reward {point.reward:.3f}, KL {point.kl:.3f} nats"
                + ("" if point.valid else f" (from too few samples: {point.ess:.1f} effective ones)")
            )
        for r in self.responses:
            score = f", reward {r.reward:g}" if self.scored else ""
            lines.append(f"  {r.text!r}  ({len(r.tokens)} tokens, {r.finish}, log-prob {sum(r.logp):.2f}{score})")
        return "\n".join(lines)


def sample(
    model: str | Path,
    prompts: str | Sequence[str],
    *,
    n: int = 4,
    sampling: Sampling | None = None,
    template: str | None = None,
    engine: Literal["vllm", "hf"] = "hf",
    reference: str | Path | None = None,
    realign: float | None = None,
    control: Control | str | None = None,
    reward: str | Callable[..., Any] | RewardSpec | None = None,
    answers: Sequence[Any] = (),
    best: bool = False,
    tilt: float | None = None,
    say: Callable[[str], None] = print,
) -> list[Sampled]:
    """``n`` responses of a model to each prompt.

    Args:
        model: a model folder, a hub name, or a run folder, which stands for its final model.
        sampling: None is temperature 1, at most 64 tokens, seed 0.
        template: how a prompt is rendered; None is as the run trained that the model is of, and plain where it is of none.
        reference, realign: mixes with this model at every token (DeRa): 0 is the reference, 1 the model, above 1 goes further.
        control: any other way to change what is sampled from (:mod:`rlkit.rollout.control`), or the YAML of one.
        reward: scores the responses; answers: the reference answer of each prompt, where the reward reads one.
        best: only the best response of each prompt, by the reward. tilt: only responses that rejection keeps, towards
            ``model * exp(reward / tilt)``.

    Raises:
        ConfigError: no model, or arguments that do not belong together.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if (reference is None) != (realign is None):
        raise ConfigError(
            "--reference MODEL and --realign LAMBDA belong together: the mixture of two models needs both."
        )
    control = given_control(control)
    if reference is not None and realign is not None:
        if control is not None:
            raise ConfigError("--reference is a control of its own (DeRa): leave it out, or --control.")
        control = DeRa(reference=model_folder(reference, "--reference"), lam=realign)
    if (best or tilt is not None) and reward is None:
        raise ConfigError(
            "--best and --tilt choose by a reward: give --reward, e.g. --reward my_rewards.py:helpful or --reward math."
        )
    if answers and len(answers) != len(prompts):
        raise ConfigError(
            f"there are {len(prompts)} --prompt and {len(answers)} --answer; give one answer for each prompt."
        )
    if best and tilt is not None:
        raise ConfigError("--best and --tilt are two ways to choose: use one of them.")
    quiet_libraries()
    path = model_folder(model)
    sampling = sampling or Sampling(max_tokens=64, seed=0)
    rendered = _render(model, load_tokenizer(path, "--model"), template, prompts, answers or [None] * len(prompts), say)
    length = max((len(p.token_ids) for p in rendered), default=0) + sampling.max_tokens + 8
    with contextlib.ExitStack() as stack:
        scorer = None
        if reward is not None:
            scorer = Scorer([reward if isinstance(reward, RewardSpec) else RewardSpec(reward)], report=say)
            stack.callback(scorer.close)
            scorer.check([])
        spec = ENGINES[engine] if control is None else Controlled(engine=engine, control=control)
        running = spec.start(EngineSetup(path=path, seed=sampling.seed or 0, max_model_len=length))
        stack.callback(running.close)
        out = []
        for p in rendered:
            group = list(running.generate(p, n, sampling))
            if scorer is not None:
                scorer.score(group)
            out.append(_choose(p, group, scorer is not None, best, tilt, sampling.seed or 0))
        return out


def _choose(p: Prompt, group: list[Rollout], scored: bool, best: bool, tilt: float | None, seed: int) -> Sampled:
    if best:
        kept = best_of_n(group)
        kl = float(best_of_n_kl([sum(kept[0].logp)], len(group))[0])
        return Sampled(p, tuple(group), tuple(kept), scored, best_kl=kl)
    if tilt is not None:
        known = [r for r in group if not math.isnan(r.reward)]
        rewards = [r.reward for r in known]
        kept = [known[i] for i in rejection_sample(rewards, tilt, seed=seed)]
        return Sampled(p, tuple(group), tuple(kept), scored, optimum=frontier(rewards, [tilt])[0])
    return Sampled(p, tuple(group), tuple(group), scored)


def _render(
    model: str | Path,
    tokenizer: Any,
    template: str | None,
    questions: Sequence[str],
    answers: Sequence[Any],
    say: Callable[[str], None],
) -> list[Prompt]:
    render, encode = _renderer(model, tokenizer, template, say), Encoder(tokenizer)
    found = [(q, render(q, "--prompt"), a) for q, a in zip(questions, answers, strict=True)]
    return [Prompt(q, encode(r.text, r.templated), r.text, answer) for q, r, answer in found]


def _renderer(model: str | Path, tokenizer: Any, template: str | None, say: Callable[[str], None]) -> Renderer:
    """As ``template`` says, else as the run did that the model is of; says which."""
    if template is not None:
        return Renderer(tokenizer, template, load_template(template))
    for folder in (Path(model), Path(model).parent):  # a run, or its final model
        if (folder / "config.yaml").is_file() and (folder / "environment.jsonl").is_file():
            made = Renderer.trained(folder / "config.yaml", tokenizer)
            say(f"template: {made.name}, with which {folder} was trained (--template NAME applies another)")
            return made
    if tokenizer.chat_template:
        say("template: plain, prompts go in as they are; this model has a chat template, which --template chat applies")
    return Renderer(tokenizer)
