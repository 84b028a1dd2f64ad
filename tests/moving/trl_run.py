"""One configuration of TRL trained by rlkit and by TRL, on the same responses: those that rlkit samples are handed to TRL's trainer.

Every step of both has all prompts of the data, so that the order in which prompts are drawn does not matter.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

import rlkit as rk
from rlkit.model.load import load_tokenizer

STEPS, N = 3, 4
ROWS = [{"prompt": f"{a}{b}{c}>", "answer": "123"} for a, b, c in ((3, 1, 2), (2, 3, 1), (1, 3, 2), (3, 2, 1))]


def by_tokens(tokens: list[int]) -> float:
    """Of tokens, because the two decode special ones differently."""
    return tokens[0] % 5 - 0.3 * len(tokens)


def settings(path: Path, folder: Path, beta: float) -> dict[str, Any]:
    """What both get, as keywords of GRPOConfig."""
    return {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "num_generations": N,
        "max_completion_length": 5,
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "epsilon_high": 0.28,
        "beta": beta,
        "loss_type": "dapo" if beta else "dr_grpo",
        "seed": 0,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "weight_decay": 0.0,
        "model_name_or_path": str(path),
    }


def compare(path: Path, folder: Path, beta: float) -> tuple[list[float], list[float]]:
    """The losses of rlkit and of TRL; their weights at the end are equal."""
    given = settings(path, folder, beta)
    run = rk.load(
        {
            **rk.convert(given, "trl").settings,
            "name": "ours",
            "out": str(folder),
            "data": {"train": ROWS},
            "rewards": [by_tokens],
            "eval": {"prompts": 0},
            "log": {"tensorboard": False, "drift": 0},
            "probe": {"every": 0, "final": False},
        }
    )
    ours, sampled = list[float](), defaultdict[int, dict[str, list[list[int]]]](lambda: defaultdict(list))
    for step in rk.steps(run, quiet=True):
        ours.append(step.metrics["loss/total"])
        for r in step.rollouts:
            sampled[step.number][r.prompt.text].append(r.tokens)
    mine = step.folder.model().state_dict()
    theirs, weights = by_trl(path, given, sampled)
    # Biases of keys have a gradient of zero but for rounding, of which AdamW makes whole steps: they are left out.
    apart, moved = distance(mine, weights), distance(mine, start_of(path))
    assert apart < 0.02 * moved, f"weights differ by {apart:.3g}, and moved by {moved:.3g}"
    return ours, theirs


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    named = [name for name in a if not name.endswith("k_proj.bias")]
    return float(torch.stack([(a[name] - b[name]).square().sum() for name in named]).sum().sqrt())


def start_of(path: Path) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    found: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(path).state_dict()
    return found


def by_trl(
    path: Path, given: dict[str, Any], sampled: dict[int, dict[str, list[list[int]]]]
) -> tuple[list[float], dict[str, torch.Tensor]]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = load_tokenizer(path)
    losses = list[float]()

    class Replayed(GRPOTrainer):  # type: ignore[misc]
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            losses.append(float(loss))
            return loss

    def rollouts(prompts: list[str], trainer: Any) -> dict[str, Any]:
        left = {text: list(some) for text, some in sampled[trainer.state.global_step + 1].items()}
        completions = [left[prompt].pop() for prompt in prompts]
        ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        return {"prompt_ids": ids, "completion_ids": completions, "logprobs": [[[0.0]] * len(c) for c in completions]}

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [by_tokens(ids) for ids in completion_ids]

    trainer = Replayed(
        model=AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        reward_funcs=reward,
        args=GRPOConfig(**{k: v for k, v in given.items() if k != "model_name_or_path"}),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(ROWS),
        rollout_func=rollouts,
    )
    trainer.train()
    per_step = [sum(losses[k : k + 2]) for k in range(0, len(losses), 2)]
    return per_step, {name: x.detach().cpu() for name, x in trainer.model.state_dict().items()}
