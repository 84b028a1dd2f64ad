"""verl's PPO trainer: the overrides of ``python -m verl.trainer.main_ppo`` or its YAML, as of its generated configuration of 0.5.

Names and defaults are those of that file. What a value does in verl's code is from memory where docs/from-verl.md says so.
"""

from __future__ import annotations

from typing import Any

from rlkit.errors import ConfigError
from rlkit.moving.settings import Converted, Draft, Given, quotient

ACTOR, ROLLOUT, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
REASONS = {
    "*_target_": "",
    "*micro_batch_size*": "",  # memory is cut by learner.max_tokens, which does not change a result
    "*max_token_len_per_gpu": "",
    "*use_dynamic_bsz": "",
    "*profiler*": "log: {trace: true} writes a timeline",
    "*fsdp_config*": "deepspeed: {zero_optimization: {stage: 3}} shards a model",
    "*strategy": "deepspeed: {zero_optimization: {stage: 0 to 3}} is how learners share a model",
    "*megatron*": "there is no pipeline or tensor parallelism of learners",
    "*ulysses_sequence_parallel_size": "learner.sequence_parallel is how many learners share the tokens of a row",
    "*use_remove_padding": "",
    "*use_fused_kernels": "",
    "*use_torch_compile": "",
    "*use_liger": "",
    "*enforce_eager": "vllm: {enforce_eager: ...} is handed to vLLM",
    "*enable_chunked_prefill": "",
    "*free_cache_engine": "cluster: {colocate: true} lets engines and learners take turns on a GPU",
    "*max_num_batched_tokens": "vllm: {max_num_batched_tokens: ...} is handed to vLLM",
    "*max_num_seqs": "vllm: {max_num_seqs: ...} is handed to vLLM",
    "*load_format": "",
    "*layered_summon": "",
    "*calculate_log_probs": "",  # always
    "*multi_turn*": "conversations of several turns are not carried over",
    "*agent*": "conversations of several turns are not carried over",
    "*trust_remote_code": "code that comes with a model is not executed",
    "*custom_cls*": "data.train reads rows; a data set of your own is a list or an iterator in Python",
    "*sampler*": "data.sampler may be a class of your own",
    "*gen_batch_size": "data: {refill: ahead} asks for as many prompts at once as a batch is likely to take",
    "*filter_groups*": "data.drop: [{type: ZeroVariance}] is DAPO's dynamic sampling",
    "*overlong_buffer*": "a reward of your own takes tokens and finish: rewards: [{fn: file.py:f}]",
    "reward_model*": "a reward model is a reward function of yours that asks it",
    "ray_kwargs*": "cluster: {address: ...} names a Ray",
    "trainer.logger": "",
    "trainer.balance_batch": "",
    "trainer.resume_*": "rlkit train CONFIG --resume",
    "trainer.default_*": "out is the folder of the runs",
    "trainer.val_before_train": "",  # always
    "trainer.critic_warmup": "a critic is trained from the first step",
    "trainer.log_val_generations": "",  # log.rollouts
    "trainer.*_data_dir": "",
    "trainer.device": "",
    "data.return_*": "",
    "data.reward_fn_key": "",
    "data.dataloader_num_workers": "",
    "data.val_batch_size": "",
    "data.filter_overlong_prompts*": "",  # data.too_long
    "data.image_key": "rlkit is for text",
    "data.video_key": "rlkit is for text",
    "critic.*": "a critic has a path and a learning rate: critic: {path: ..., lr: ...}",
}


def convert(values: dict[str, Any]) -> Converted:
    """The run of verl's settings, by their dotted names.

    Raises:
        ConfigError: a method that has no counterpart.
    """
    given, draft = Given(values), Draft()
    draft.set("name", given.get("trainer.experiment_name"))
    draft.set("seed", given.get("data.seed"))
    _steps(given, draft)
    _model(given, draft)
    _data(given, draft)
    _rollout(given, draft)
    _objective(given, draft)
    _advantage(given, draft)
    _learner(given, draft)
    _watching(given, draft)
    return draft.done("verl", given, REASONS)


def _steps(given: Given, draft: Draft) -> None:
    total, epochs = given.number("trainer.total_training_steps"), given.number("trainer.total_epochs", 30)
    if total is not None:
        draft.set("steps", int(total))
    else:
        draft.note(
            f"rlkit counts steps: set steps to {epochs:g} times the rows of the data set, divided by rollout.prompts"
        )
    prompts, mini = given.number("data.train_batch_size", 1024), given.number(f"{ACTOR}.ppo_mini_batch_size", 256)
    draft.set("rollout.prompts", int(prompts))
    draft.set("rollout.n", int(given.number(f"{ROLLOUT}.n", 1)))
    minibatches, epochs = (
        quotient(prompts, mini, "data.train_batch_size by ppo_mini_batch_size"),
        given.number(f"{ACTOR}.ppo_epochs", 1),
    )
    draft.set("learner.minibatches", minibatches if minibatches > 1 else None)
    draft.set("learner.epochs", int(epochs) if epochs > 1 else None)


def _model(given: Given, draft: Draft) -> None:
    draft.set("model.path", given.get(f"{MODEL}.path"))
    draft.set("model.dtype", "bfloat16")
    draft.set("deepspeed.zero_optimization.stage", 2)
    draft.note(
        "FSDP with float32 master weights is DeepSpeed with model.dtype: bfloat16 here; stage 3 also shards the model"
    )
    rank = given.number(f"{MODEL}.lora_rank", 0)
    if rank:
        draft.set("peft.r", int(rank))
        draft.set("peft.lora_alpha", given.number(f"{MODEL}.lora_alpha", 16))
        draft.set("peft.target_modules", given.get(f"{MODEL}.target_modules", "all-linear"))
    draft.set("learner.gradient_checkpointing", given.get(f"{MODEL}.enable_gradient_checkpointing", True))


def _data(given: Given, draft: Draft) -> None:
    draft.set("data.train", given.get("data.train_files"))
    draft.set("data.test", given.get("data.val_files"))
    draft.set("data.columns", {"prompt": given.get("data.prompt_key", "prompt"), "answer": "reward_model.ground_truth"})
    draft.set("data.max_prompt_tokens", int(given.number("data.max_prompt_length", 512)))
    draft.set("data.chat_template_kwargs", given.get("data.apply_chat_template_kwargs"))
    truncation = str(given.get("data.truncation", "error"))
    if truncation == "error" and not given.get("data.filter_overlong_prompts", False):
        draft.set("data.too_long", "raise")
    elif truncation != "error":
        draft.leave(given, "data.truncation", "prompts that are too long are dropped, never cut: data.too_long")
    if given.get("data.shuffle", True) is False:
        draft.leave(given, "data.shuffle", "every epoch is shuffled; data.sampler may be a class of your own")
    path, name = given.get("custom_reward_function.path"), given.get("custom_reward_function.name", "compute_score")
    if path is None:
        draft.set("rewards", ["math"])
        draft.note(
            "verl chooses a reward by data_source; rewards: [math] reads final answers of all (rlkit audit-reward compares)"
        )
    else:
        draft.set("rewards", [f"{path}:{name}"])
        draft.note(
            "a reward here takes what it names: response, answer and data columns; verl gives solution_str, ground_truth, data_source and "
            "extra_info. Write def f(response, answer, data_source): return compute_score(data_source, response, answer)"
        )


def _rollout(given: Given, draft: Draft) -> None:
    engine = str(given.get(f"{ROLLOUT}.name", "vllm"))
    if engine not in ("vllm", "hf"):
        draft.leave(
            given, f"{ROLLOUT}.name", "engines are vllm, hf and your own (rollout.engine: {type: file.py:Mine})"
        )
    draft.set("rollout.engine", engine if engine in ("vllm", "hf") else "vllm")
    given.get(f"{ROLLOUT}.mode")
    draft.set("sampling.temperature", given.number(f"{ROLLOUT}.temperature", 1.0))
    draft.set("sampling.top_p", given.number(f"{ROLLOUT}.top_p"))
    top_k = given.number(f"{ROLLOUT}.top_k", -1)
    draft.set("sampling.top_k", int(top_k) if top_k > 0 else None)
    draft.set("sampling.max_tokens", int(given.number("data.max_response_length", 512)))
    draft.set("rollout.max_model_len", given.get(f"{ROLLOUT}.max_model_len"))
    draft.set("vllm.gpu_memory_utilization", given.get(f"{ROLLOUT}.gpu_memory_utilization"))
    tensor = int(given.number(f"{ROLLOUT}.tensor_model_parallel_size", 2))
    draft.set("cluster.tensor_parallel", tensor)
    gpus = int(given.number("trainer.n_gpus_per_node", 8) * given.number("trainer.nnodes", 1))
    if gpus > 1:
        half = max(1, gpus // 2)
        draft.set("cluster.learners", gpus - max(1, half // tensor) * tensor if gpus > tensor else 1)
        draft.set("cluster.engines", max(1, half // tensor))
    draft.note(
        f"verl's {gpus} GPUs train and sample in turns; here engines and learners share them out: rlkit plan says which layout fits"
    )


def _objective(given: Given, draft: Draft) -> None:
    mode = str(given.get(f"{ACTOR}.policy_loss.loss_mode", "vanilla"))
    clip = given.number(f"{ACTOR}.clip_ratio", 0.2)
    low, high = given.number(f"{ACTOR}.clip_ratio_low", clip), given.number(f"{ACTOR}.clip_ratio_high", clip)
    dual, loss = given.number(f"{ACTOR}.clip_ratio_c", 3.0), f"{ACTOR}.policy_loss"
    terms: dict[str, dict[str, Any]] = {
        "vanilla": {"type": "PPOClip", "eps_low": low, "eps_high": high, "dual_clip": dual},
        "gspo": {"type": "GSPO", "eps_low": low, "eps_high": high},
        "clip_cov": {
            "type": "ClipCov",
            "eps_low": low,
            "eps_high": high,
            "share": given.number(f"{loss}.clip_cov_ratio", 2e-4),
        }
        | {"low": given.number(f"{loss}.clip_cov_lb", 1.0), "high": given.number(f"{loss}.clip_cov_ub", 5.0)},
        "kl_cov": {
            "type": "KLCov",
            "share": given.number(f"{loss}.kl_cov_ratio", 2e-4),
            "beta": given.number(f"{loss}.ppo_kl_coef", 0.1),
        },
    }
    if mode not in terms:
        raise ConfigError(f"{loss}.loss_mode: {mode!r} has no counterpart in rlkit; there are {', '.join(terms)}.")
    longest = given.number("data.max_response_length", 512)
    reduction = given.choice(
        f"{ACTOR}.loss_agg_mode",
        {
            "token-mean": {"reduce": "token"},
            "seq-mean-token-mean": {"reduce": "seq"},
            "seq-mean-token-sum": {"reduce": "sum"},
            "seq-mean-token-sum-norm": {"reduce": "const", "const": float(longest)},
        },
        "token-mean",
    )
    if reduction["reduce"] == "const":
        draft.note("seq-mean-token-sum-norm is divided by the number of sequences here; verl's versions differ in that")
    objective = [terms[mode] | reduction]
    if given.get(f"{ACTOR}.use_kl_loss", False):
        estimator = _estimator(given, f"{ACTOR}.kl_loss_type", "low_var_kl")
        if estimator == "k1":
            raise ConfigError(
                f"{ACTOR}.kl_loss_type: k1 in the loss has an expected gradient of zero. Use mse (k2) or low_var_kl (k3), or put it into "
                "the reward: algorithm.use_kl_in_reward."
            )
        kl = {"type": "KL", "estimator": estimator, "coef": given.number(f"{ACTOR}.kl_loss_coef", 0.001)}
        objective.append(kl | reduction | ({"acknowledge": True} if estimator == "k3" else {}))
        if estimator == "k3":
            draft.note(
                "k3 in the loss has the gradient of KL(ref‖pi), not of KL(pi‖ref): rlkit check says so; k2 has that of KL(pi‖ref)"
            )
    entropy = given.number(f"{ACTOR}.entropy_coeff", 0.0)
    if entropy:
        objective.append({"type": "Entropy", "coef": entropy} | reduction)
    draft.settings["objective"] = objective
    draft.note(
        "verl takes means over micro-batches of a mini-batch where they differ in tokens; here over the whole batch of the optimizer step"
    )


def _estimator(given: Given, key: str, default: str) -> str:
    names = {
        "kl": "k1",
        "k1": "k1",
        "mse": "k2",
        "k2": "k2",
        "low_var_kl": "k3",
        "k3": "k3",
        "k3+": "k3+",
        "low_var_kl+": "k3+",
    }
    found: str = given.choice(key, names, default)
    return found


def _advantage(given: Given, draft: Draft) -> None:
    kind = str(given.get("algorithm.adv_estimator", "gae"))
    gamma, lam = given.number("algorithm.gamma", 1.0), given.number("algorithm.lam", 1.0)
    if kind == "gae":
        draft.set("advantage", {"type": "GAE", "gamma": gamma, "lam": lam, "variance": "sample"})
        clip = given.number("critic.cliprange_value", 0.5)
        draft.settings["objective"].append({"type": "ValueMSE", "clip": clip, "coef": 1.0})
        draft.set("critic.path", given.get("critic.model.path", draft.settings.get("model", {}).get("path")))
        draft.set("critic.lr", given.number("critic.optim.lr", 1e-5))
    elif kind == "grpo":
        by_std = given.get("algorithm.norm_adv_by_std_in_grpo", True)
        draft.set("advantage", {"type": "GroupNorm", "eps": 1e-6} if by_std else "GroupMean")
    elif kind in ("rloo", "rloo_vectorized"):
        draft.set("advantage", "RLOO")
    elif kind in ("reinforce_plus_plus", "reinforce_plus_plus_baseline"):
        draft.set(
            "advantage", {"type": "ReinforcePlusPlus"} | ({"baseline": "group"} if kind.endswith("baseline") else {})
        )
    else:
        there = "gae, grpo, rloo, reinforce_plus_plus, reinforce_plus_plus_baseline"
        raise ConfigError(f"algorithm.adv_estimator: {kind!r} has no counterpart in rlkit; there are {there}.")
    if given.get("algorithm.use_kl_in_reward", False):
        coef: Any = given.number("algorithm.kl_ctrl.kl_coef", 0.001)
        if given.get("algorithm.kl_ctrl.type", "fixed") == "adaptive":
            target, horizon = (
                given.number("algorithm.kl_ctrl.target_kl", 0.1),
                given.number("algorithm.kl_ctrl.horizon", 10000),
            )
            coef = {"type": "AdaptiveKL", "init": coef, "target": target, "horizon": float(horizon), "per": "token"}
        estimator = _estimator(given, "algorithm.kl_penalty", "kl")
        draft.settings["reward_penalties"] = [{"type": "KLReward", "estimator": estimator, "coef": coef}]
        draft.note(
            "a penalty here goes to all tokens from its own on (return-to-go), as verl's does under GAE with gamma and lam 1"
        )


def _learner(given: Given, draft: Draft) -> None:
    optim = f"{ACTOR}.optim"
    draft.set("learner.lr", given.number(f"{optim}.lr", 1e-6))
    kind = str(given.get(f"{optim}.warmup_style", given.get(f"{optim}.lr_scheduler_type", "constant")))
    if kind in ("constant", "cosine"):
        draft.set("learner.schedule", kind)
        draft.set("learner.final_lr", given.number(f"{optim}.min_lr_ratio") if kind == "cosine" else None)
    else:
        draft.leave(given, f"{optim}.warmup_style", "learner.schedule is constant, linear or cosine")
    warmup = given.number(f"{optim}.lr_warmup_steps", -1)
    if warmup > 0:
        draft.set("learner.warmup_steps", int(warmup))
    elif given.number(f"{optim}.lr_warmup_steps_ratio", 0.0):
        draft.leave(given, f"{optim}.lr_warmup_steps_ratio", "learner.warmup_steps is a number of optimizer steps")
    draft.set("learner.weight_decay", given.number(f"{optim}.weight_decay", 0.01))
    draft.set("learner.betas", given.get(f"{optim}.betas", [0.9, 0.999]))
    draft.set("learner.max_grad_norm", given.number(f"{ACTOR}.grad_clip", 1.0))


def _watching(given: Given, draft: Draft) -> None:
    for ours, theirs in (("eval.every", "trainer.test_freq"), ("checkpoint.every", "trainer.save_freq")):
        every = given.number(theirs, -1)
        draft.set(ours, int(every) if every > 0 else None)
    keep = given.get("trainer.max_actor_ckpt_to_keep")
    draft.set("checkpoint.keep", keep)
    draft.set("eval.n", given.get(f"{ROLLOUT}.val_kwargs.n"))
    draft.set("eval.temperature", given.number(f"{ROLLOUT}.val_kwargs.temperature", 0.0))
    given.get(f"{ROLLOUT}.val_kwargs.do_sample")
    loggers = given.get("trainer.logger", [])
    if "wandb" in ([loggers] if isinstance(loggers, str) else loggers):
        draft.set("log.wandb", {"project": given.get("trainer.project_name", "verl_examples")})
