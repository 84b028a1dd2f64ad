"""TRL's side of a comparison of whole runs: GRPOTrainer on the model, prompts and reward of an rlkit run, and measured like one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import mean
from typing import Any

from report import Row


def train(
    run: Any,
    folder: str,
    *,
    seed: int,
    steps: int,
    every: int,
    curves: Mapping[str, str],
    chat: bool = False,
    **own: Any,
) -> Row:
    """Seconds of each step, held-out scores every so many steps, and the metrics that ``curves`` names after TRL's.

    ``own``: arguments of GRPOConfig that say the algorithm and the batch. ``chat``: prompts are messages, else texts.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rlkit.cluster.groups import EngineGroup, LocalWorkers
    from rlkit.data.prompts import load_prompts
    from rlkit.heldout import sample_and_score
    from rlkit.model.load import load_tokenizer
    from rlkit.rewards import Scorer
    from rlkit.rollout.hf import HFEngine

    path = run.model.path
    task, tokenizer = run.data.task, load_tokenizer(path)
    prompts, test = (load_prompts(run.data, split, tokenizer) for split in ("train", "test"))
    scorer = Scorer(run.scored_by)
    scorer.check(list(test[0].columns))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    def accuracy() -> float:
        """By rlkit's engine, outside the clock."""
        model.save_pretrained(f"{folder}/m")
        tokenizer.save_pretrained(f"{folder}/m")
        engine = HFEngine(f"{folder}/m")
        try:
            group = EngineGroup(LocalWorkers(engine))
            return mean(r.reward for r in sample_and_score(group, scorer, test, 1, run.sampling))
        finally:
            engine.close()

    def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        texts = [c[0]["content"] for c in completions] if chat else completions
        return [float(task.verify(text, {"answer": a})) for text, a in zip(texts, answer, strict=True)]

    seconds: list[float] = []
    logged: dict[str, list[float]] = {name: [] for name in curves}
    scores = {0: accuracy()}

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.start)
            for name, theirs in curves.items():
                logged[name].append(trainer._metrics["train"][theirs][-1])
            if state.global_step % every == 0:
                scores[state.global_step] = accuracy()

    args = GRPOConfig(
        output_dir=folder,
        num_generations=run.rollout.n,
        max_completion_length=run.sampling.max_tokens,
        temperature=run.sampling.temperature,
        max_steps=steps,
        learning_rate=run.learner.lr,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=run.learner.warmup_steps,
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        seed=seed,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **own,
    )
    rows = [
        {"prompt": [{"role": "user", "content": p.columns["question"]}] if chat else p.text, "answer": p.answer}
        for p in prompts
    ]
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=args,
        processing_class=tokenizer,
        callbacks=[Clock()],
        train_dataset=Dataset.from_list(rows),
    )
    trainer.train()
    scorer.close()
    return {"seconds": seconds, "scores": scores, **logged}
