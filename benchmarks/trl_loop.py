"""TRL's side of a comparison of whole runs: its trainers on the model, prompts, rows and reward of an rlkit run, and measured like one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from report import Row


class HeldOut:
    """The held-out score of a model that TRL trains, by rlkit's engine and the run's reward."""

    def __init__(self, run: Any, tokenizer: Any, folder: str) -> None:
        from rlkit.data.prompts import load_prompts
        from rlkit.rewards import Scorer

        self.run, self.tokenizer, self.folder = run, tokenizer, folder
        self.prompts = load_prompts(run.data, "test", tokenizer)
        self.scorer = Scorer(run.scored_by)
        self.scorer.check(list(self.prompts[0].columns))

    def __call__(self, model: Any) -> float:
        from dataclasses import replace

        from rlkit.cluster.groups import EngineGroup, LocalWorkers
        from rlkit.heldout import sample_and_score
        from rlkit.rollout.hf import HFEngine

        temperature = self.run.eval.temperature
        sampling = self.run.sampling if temperature is None else replace(self.run.sampling, temperature=temperature)
        model.save_pretrained(f"{self.folder}/m")
        self.tokenizer.save_pretrained(f"{self.folder}/m")
        engine = HFEngine(f"{self.folder}/m")
        try:
            group = EngineGroup(LocalWorkers(engine))
            return mean(r.reward for r in sample_and_score(group, self.scorer, self.prompts, 1, sampling))
        finally:
            engine.close()


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

    from rlkit.data.prompts import load_prompts
    from rlkit.model.load import load_tokenizer

    path = run.model.path
    task, tokenizer = run.data.task, load_tokenizer(path)
    prompts, held_out = load_prompts(run.data, "train", tokenizer), HeldOut(run, tokenizer, folder)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        texts = [c[0]["content"] for c in completions] if chat else completions
        return [float(task.verify(text, {"answer": a})) for text, a in zip(texts, answer, strict=True)]

    seconds: list[float] = []
    logged: dict[str, list[float]] = {name: [] for name in curves}
    scores = {0: held_out(model)}

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.start)
            for name, theirs in curves.items():
                logged[name].append(trainer._metrics["train"][theirs][-1])
            if state.global_step % every == 0:
                scores[state.global_step] = held_out(model)  # outside the clock

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
    held_out.scorer.close()
    return {"seconds": seconds, "scores": scores, **logged}


def dpo_trainer(path: str, ref: str | None, rows: Sequence[Row], tokenizer: Any, folder: str, **own: Any) -> Any:
    """TRL's DPOTrainer on rows of tokens (``prompt_ids``, ``chosen_ids``, ``rejected_ids``), which are those that rlkit trains on.

    ``ref``: None is the model that training starts from. ``own``: further arguments of DPOConfig.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    args = DPOConfig(
        output_dir=folder,
        lr_scheduler_type="constant_with_warmup",
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=None,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **own,
    )
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        ref_model=None if ref is None else AutoModelForCausalLM.from_pretrained(ref, dtype=torch.float32),
        args=args,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": "1", "chosen": "2", "rejected": "3"}]),
    )
    trainer.train_dataset = Dataset.from_list(list(rows))
    return trainer


def train_on_pairs(
    run: Any, rows: Sequence[Row], test: Sequence[Row], folder: str, *, seed: int, steps: int, every: int, parts: int
) -> Row:
    """DPOTrainer on pairs of tokens: seconds of each step, held-out scores and margins every so many steps.

    ``parts``: micro-batches of a step; with one TRL is fastest and needs the most memory.
    """
    import torch
    from transformers import TrainerCallback

    from rlkit.model.load import load_tokenizer

    tokenizer = load_tokenizer(run.model.path)
    held_out, pairs = HeldOut(run, tokenizer, folder), run.data.pairs
    trainer = dpo_trainer(
        run.model.path,
        None,
        rows,
        tokenizer,
        folder,
        beta=run.objective[0].beta,
        max_steps=steps,
        learning_rate=run.learner.lr,
        warmup_steps=run.learner.warmup_steps,
        per_device_train_batch_size=pairs.per_step // parts,
        gradient_accumulation_steps=parts,
        seed=seed,
    )

    def margin() -> float:
        """The mean margin of the implicit rewards on the held-out pairs."""
        mode, found = trainer._metrics["eval"], 0.0
        trainer.model.eval()
        with torch.no_grad():
            for i in range(0, len(test), 16):
                mode.clear()
                some = test[i : i + 16]
                trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.data_collator(list(some))))
                found += mode["rewards/margins"][-1] * len(some)
        trainer.model.train()
        return found / len(test)

    seconds: list[float] = []
    scores, margins = {0: held_out(trainer.model)}, {0: margin()}

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.start)
            if state.global_step % every == 0:  # outside the clock
                scores[state.global_step], margins[state.global_step] = held_out(trainer.model), margin()

    trainer.add_callback(Clock())
    trainer.train()
    held_out.scorer.close()
    return {"seconds": seconds, "scores": scores, "margins": margins}
