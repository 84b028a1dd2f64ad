"""OpenRLHF's PPO trainer: the options of ``python -m openrlhf.cli.train_ppo_ray``, as of OpenRLHF 0.11.2.

Names, defaults and what a value does were read in its code (``cli/train_ppo_ray.py``, ``models/loss.py``, ``experience_maker.py``). Names
of earlier versions, without dots, are those of the table :data:`EARLIER`, from memory.
"""

from __future__ import annotations

from typing import Any

from rlkit.errors import ConfigError
from rlkit.moving.settings import Converted, Draft, Given, quotient

EARLIER = {
    "pretrain": "actor.model_name_or_path",
    "critic_pretrain": "critic.model_name_or_path",
    "reward_pretrain": "reward.model_name_or_path",
    "remote_rm_url": "reward.remote_url",
    "agent_func_path": "train.agent_func_path",
    "prompt_data": "data.prompt_dataset",
    "prompt_split": "data.prompt_split",
    "input_key": "data.input_key",
    "label_key": "data.label_key",
    "input_template": "data.input_template",
    "apply_chat_template": "data.apply_chat_template",
    "max_samples": "data.max_samples",
    "prompt_max_len": "data.prompt_max_len",
    "generate_max_len": "rollout.max_new_tokens",
    "rollout_batch_size": "rollout.batch_size",
    "n_samples_per_prompt": "rollout.n_samples_per_prompt",
    "temperature": "rollout.temperature",
    "top_p": "rollout.top_p",
    "micro_rollout_batch_size": "rollout.micro_batch_size",
    "train_batch_size": "train.batch_size",
    "micro_train_batch_size": "train.micro_batch_size",
    "max_epochs": "train.max_epochs",
    "num_episodes": "train.num_episodes",
    "seed": "train.seed",
    "async_train": "train.async_enable",
    "partial_rollout": "train.partial_rollout_enable",
    "async_queue_size": "train.async_queue_size",
    "colocate_all_models": "train.colocate_all",
    "colocate_actor_ref": "train.colocate_actor_ref",
    "colocate_critic_reward": "train.colocate_critic_reward",
    "advantage_estimator": "algo.advantage.estimator",
    "gamma": "algo.advantage.gamma",
    "lambd": "algo.advantage.lambd",
    "no_advantage_std_norm": "algo.advantage.no_std_norm",
    "init_kl_coef": "algo.kl.init_coef",
    "kl_target": "algo.kl.target",
    "kl_horizon": "algo.kl.horizon",
    "use_kl_loss": "algo.kl.use_loss",
    "kl_estimator": "algo.kl.estimator",
    "dynamic_filtering": "algo.dynamic_filtering_enable",
    "dynamic_filtering_reward_range": "algo.dynamic_filtering_range",
    "eps_clip": "actor.eps_clip",
    "eps_clip_low_high": "actor.eps_clip_low_high",
    "dual_clip": "actor.dual_clip",
    "value_clip": "critic.value_clip",
    "policy_loss_type": "actor.policy_loss_type",
    "entropy_loss_coef": "actor.entropy_coef",
    "actor_learning_rate": "actor.adam.lr",
    "critic_learning_rate": "critic.adam.lr",
    "adam_betas": "actor.adam.betas",
    "l2": "actor.adam.weight_decay",
    "max_norm": "actor.max_norm",
    "lr_scheduler": "actor.lr_scheduler",
    "lr_warmup_ratio": "actor.lr_warmup_ratio",
    "freezing_actor_steps": "critic.freezing_steps",
    "gradient_checkpointing": "actor.gradient_checkpointing_enable",
    "actor_num_nodes": "actor.num_nodes",
    "actor_num_gpus_per_node": "actor.num_gpus_per_node",
    "vllm_num_engines": "vllm.num_engines",
    "vllm_tensor_parallel_size": "vllm.tensor_parallel_size",
    "vllm_gpu_memory_utilization": "vllm.gpu_memory_utilization",
    "enforce_eager": "vllm.enforce_eager",
    "zero_stage": "ds.zero_stage",
    "adam_offload": "ds.adam_offload",
    "packing_samples": "ds.packing_samples",
    "attn_implementation": "ds.attn_implementation",
    "load_in_4bit": "ds.load_in_4bit",
    "lora_rank": "ds.lora.rank",
    "lora_alpha": "ds.lora.alpha",
    "target_modules": "ds.lora.target_modules",
    "lora_dropout": "ds.lora.dropout",
    "eval_steps": "eval.steps",
    "eval_dataset": "eval.dataset",
    "eval_temperature": "eval.temperature",
    "eval_n_samples_per_prompt": "eval.n_samples_per_prompt",
    "save_steps": "ckpt.save_steps",
    "max_ckpt_num": "ckpt.max_num",
    "save_path": "ckpt.output_dir",
    "use_wandb": "logger.wandb.key",
    "wandb_project": "logger.wandb.project",
    "wandb_run_name": "logger.wandb.run_name",
    "use_tensorboard": "logger.tensorboard_dir",
}
REASONS = {
    "*micro_batch_size": "",  # memory is cut by learner.max_tokens, which does not change a result
    "*max_tokens_per_gpu": "",
    "train.dynamic_batch_enable": "",
    "train.colocate_actor_ref": "",
    "train.colocate_critic_reward": "",
    "train.full_determinism_enable": "",  # requests have seeds of their own
    "train.enable_ema": "reference: {type: EMA} follows the policy; rlkit merge averages models",
    "train.ema_beta": "",
    "train.agent_func_path": "several turns are an async function of your own: rollout.episode (docs/environments.md)",
    "ref.*": "",
    "reward.num_*": "",
    "critic.num_*": "",
    "reward.offload": "",
    "reward.model_name_or_path": "a reward model is asked by a reward function of yours",
    "reward.normalize_enable": "rewards are taken as they are",
    "reward.overlong_*": "a reward of your own takes tokens and finish: rewards: [{fn: file.py:f}]",
    "reward.stop_properly_penalty_coef": "a reward of your own takes finish: rewards: [{fn: file.py:f}]",
    "reward.clip_range": "a reward of your own bounds itself",
    "critic.freezing_steps": "a critic and its policy are trained from the first step",
    "critic.save_value_network": "",
    "critic.*": "a critic has a path and a learning rate: critic: {path: ..., lr: ...}",
    "actor.aux_loss_coef": "no balancing loss is added for mixtures of experts",
    "actor.muon.*": "AdamW is the optimizer; DeepSpeed has others (deepspeed: {optimizer: ...})",
    "actor.gradient_checkpointing_reentrant": "",
    "actor.freeze_visual_encoder": "rlkit is for text",
    "vllm.sync_*": "",
    "vllm.enable_prefix_caching": "",
    "*.enable_sleep": "",  # cluster.colocate
    "vllm.enforce_eager": "vllm: {enforce_eager: true} is handed to vLLM",
    "rollout.vllm_generate_batch_size": "rollout.over starts more groups than a step takes",
    "ds.packing_samples": "",  # learner.packed
    "ds.attn_implementation": "",  # found for the model, and compared
    "ds.load_in_4bit": "quantized weights are not trained",
    "ds.lora.dropout": "there is no dropout: log-probs before and after an update must be of one network",
    "ds.ring_attn_*": "there is no sequence parallelism",
    "ds.tensor_parallel_size": "there is no tensor parallelism of learners",
    "ds.*": "deepspeed: {...} is handed to DeepSpeed",
    "data.max_samples": "data: {size: ...}",
    "data.prompt_probs": "data.sampler: {type: Proportions} mixes data sets",
    "data.*image*": "rlkit is for text",
    "data.dataloader_num_workers": "",
    "data.disable_fast_tokenizer": "",
    "eval.split": "the split test is read: write rows of another one to a file",
    "ckpt.path": "out is the folder of the runs",
    "ckpt.output_dir": "out is the folder of the runs",
    "ckpt.load_enable": "rlkit train CONFIG --resume",
    "ckpt.save_hf": "",  # final/ is one
    "ckpt.max_mem": "checkpoint: {max_gib: ...}",
    "ckpt.*": "",
    "logger.*": "",
    "use_ms": "download the model and give its folder as model.path",
    "local_rank": "",
    "ref_pretrain": "reference: {type: Frozen, path: ...}",
}
POLICY, ADVANTAGE, KL = "actor", "algo.advantage", "algo.kl"


def convert(values: dict[str, Any]) -> Converted:
    """The run of OpenRLHF's options, by their names without dashes.

    Raises:
        ConfigError: a method that has no counterpart.
    """
    given, draft = Given({EARLIER.get(key, key): value for key, value in values.items()}), Draft()
    draft.set("name", given.get("logger.wandb.run_name"))
    draft.set("seed", given.number("train.seed", 42))
    _steps(given, draft)
    _model(given, draft)
    _data(given, draft)
    _rollout(given, draft)
    _cluster(given, draft)
    _objective(given, draft)
    _advantage(given, draft)
    _correction(given, draft)
    _learner(given, draft)
    _watching(given, draft)
    return draft.done("OpenRLHF", given, REASONS)


def _steps(given: Given, draft: Draft) -> None:
    prompts, n = given.number("rollout.batch_size", 1024), given.number("rollout.n_samples_per_prompt", 1)
    minibatches = quotient(
        prompts * n, given.number("train.batch_size", 128), "responses of a rollout by train.batch_size"
    )
    epochs = given.number("train.max_epochs", 1)
    draft.set("rollout.prompts", int(prompts))
    draft.set("rollout.n", int(n))
    draft.set("learner.minibatches", minibatches if minibatches > 1 else None)
    draft.set("learner.epochs", int(epochs) if epochs > 1 else None)
    draft.note(
        f"rlkit counts steps: set steps to {given.number('train.num_episodes', 1):g} (num_episodes) times the prompts of the data set, "
        "divided by rollout.prompts"
    )


def _model(given: Given, draft: Draft) -> None:
    draft.set("model.path", given.get(f"{POLICY}.model_name_or_path"))
    dtype = str(given.get("ds.param_dtype", "bf16"))
    if dtype != "bf16":
        draft.leave(given, "ds.param_dtype", "rlkit trains in bfloat16 under DeepSpeed, or in float32")
    draft.set("model.dtype", "bfloat16")
    zero: dict[str, Any] = {"stage": int(given.number("ds.zero_stage", 2))}
    if given.get("ds.adam_offload", False):
        zero["offload_optimizer"] = {"device": "cpu"}
    draft.set("deepspeed.zero_optimization", zero)
    rank = given.number("ds.lora.rank", 0)
    if rank:
        draft.set("peft.r", int(rank))
        draft.set("peft.lora_alpha", given.number("ds.lora.alpha", 16))
        draft.set("peft.target_modules", given.get("ds.lora.target_modules", "all-linear"))


def _data(given: Given, draft: Draft) -> None:
    draft.set("data.train", _named(given.get("data.prompt_dataset")))
    draft.set("data.test", _named(given.get("eval.dataset")))
    columns = {"prompt": given.get("data.input_key", "input")}
    if given.get("data.label_key") is not None:
        columns["answer"] = given.get("data.label_key")
    draft.set("data.columns", columns)
    if given.get("data.apply_chat_template", False):
        draft.set("data.template", "chat")
    draft.leave(
        given,
        "data.input_template",
        "write it to a file with {question} in the place of {}, and name it as data.template",
    )
    if str(given.get("data.prompt_split", "train")) != "train":
        draft.leave(given, "data.prompt_split", "the split train is read: write rows of another one to a file")
    whole = given.number("data.max_len", 2048)
    longest, prompt = given.number("rollout.max_new_tokens"), given.number("data.prompt_max_len")
    if longest is None:
        draft.note(
            f"a response may be as long as max_len ({whole:g}) has room for behind its prompt there; sampling.max_tokens is one number here"
        )
        longest = whole if prompt is None else whole - prompt
    draft.set("sampling.max_tokens", int(longest))
    draft.set("data.max_prompt_tokens", int(max(1, whole - longest) if prompt is None else prompt))
    draft.set("rollout.max_model_len", None if prompt is not None else int(whole))
    url = given.get("reward.remote_url")
    if url is not None and str(url).endswith(".py"):
        draft.set("rewards", [f"{url}:reward_func"])
        draft.note(
            "a reward here gets one response and takes what it names: def reward_func(response, prompt, answer); OpenRLHF gives lists "
            "(queries, prompts, labels)"
        )
    elif url is not None:
        draft.leave(
            given,
            "reward.remote_url",
            "an async reward function of yours asks it: rewards: [{fn: file.py:f, timeout: 60}]",
        )
    if given.get("algo.dynamic_filtering_enable", False):
        draft.settings["data"]["drop"] = [{"type": "ZeroVariance"}]
        draft.note(
            "dynamic filtering drops groups whose rewards are all equal here, and in OpenRLHF those whose mean is outside of "
            "dynamic_filtering_range: the same for rewards of 0 and 1 and the range (0, 1)"
        )
    given.get("algo.dynamic_filtering_range")


def _named(source: Any) -> Any:
    """One data set, or a list of them."""
    if not isinstance(source, str) or "," not in source:
        return source
    return [part.strip() for part in source.split(",")]


def _rollout(given: Given, draft: Draft) -> None:
    draft.set("rollout.engine", "hf" if given.number("vllm.num_engines") == 0 else "vllm")
    draft.set("sampling.temperature", given.number("rollout.temperature", 1.0))
    draft.set("sampling.top_p", given.number("rollout.top_p", 1.0))
    draft.set("vllm.gpu_memory_utilization", given.number("vllm.gpu_memory_utilization", 0.95))
    if given.get("train.async_enable", False):
        draft.set("rollout.max_lag", int(given.number("train.async_queue_size", 1)))
        draft.set("rollout.pause", "continue" if given.get("train.partial_rollout_enable", False) else None)


def _cluster(given: Given, draft: Draft) -> None:
    learners = int(given.number(f"{POLICY}.num_nodes", 1) * given.number(f"{POLICY}.num_gpus_per_node", 8))
    engines, tensor = int(given.number("vllm.num_engines", 1)), int(given.number("vllm.tensor_parallel_size", 1))
    draft.set("cluster.learners", learners)
    draft.set("cluster.engines", max(1, engines))
    draft.set("cluster.tensor_parallel", tensor if tensor > 1 else None)
    if not given.get("train.colocate_all", False):
        return
    zero = draft.settings["deepspeed"]["zero_optimization"]
    alike = engines == learners and tensor == 1 and not given.get("train.async_enable", False)
    if alike and (zero["stage"] == 2 or "offload_optimizer" in zero):
        draft.set("cluster.colocate", True)
    else:
        draft.leave(
            given,
            "train.colocate_all",
            "cluster: {colocate: true} takes as many engines as learners, no tensor_parallel, no lag, and ZeRO-2 or a host's optimizer",
        )


def _objective(given: Given, draft: Draft) -> None:
    low = high = given.number(f"{POLICY}.eps_clip", 0.2)
    if given.get(f"{POLICY}.eps_clip_low_high") is not None:
        low, high = given.get(f"{POLICY}.eps_clip_low_high")
    reduce = given.choice(
        f"{POLICY}.loss_agg_mode", {"token-mean": "token", "seq-mean-token-mean": "seq"}, "token-mean"
    )
    kind = given.choice(f"{POLICY}.policy_loss_type", {"ppo": "PPOClip", "gspo": "GSPO"}, "ppo")
    term: dict[str, Any] = {"type": kind, "eps_low": low, "eps_high": high}
    dual = given.number(f"{POLICY}.dual_clip")
    if dual is not None and kind == "GSPO":
        draft.leave(given, f"{POLICY}.dual_clip", "GSPO has no second clip here")
    elif dual is not None:
        term["dual_clip"] = dual
    term["reduce"] = "seq" if kind == "GSPO" else reduce
    draft.settings["objective"] = [term, *_kl_in_the_loss(given, draft)]
    entropy = given.number(f"{POLICY}.entropy_coef", 0.0)
    if entropy:
        draft.settings["objective"].append({"type": "Entropy", "coef": entropy, "reduce": "token"})


def _coefficient(given: Given, init: float) -> Any:
    """A number, or Ziegler's controller, which counts responses."""
    target = given.number(f"{KL}.target")
    if target is None:
        return init
    horizon = given.number(f"{KL}.horizon", 10000)
    return {"type": "AdaptiveKL", "init": init, "target": target, "horizon": float(horizon), "per": "token"}


def _kl_in_the_loss(given: Given, draft: Draft) -> list[dict[str, Any]]:
    init = given.number(f"{KL}.init_coef", 0.01)
    if not given.get(f"{KL}.use_loss", False) or not init:
        return []
    estimator, unbiased = str(given.get(f"{KL}.estimator", "k1")), given.get(f"{KL}.unbiased_gradient", False)
    term = {"type": "KL", "estimator": estimator, "coef": _coefficient(given, init), "reduce": "token"}
    if unbiased:
        draft.note(
            "unbiased_gradient: the gradient is that of k2 with an importance weight, whatever the estimator: estimator: k2, importance: "
            "token. The weight here is against the engine's log-probs, there against the learner's before the step"
        )
        return [term | {"estimator": "k2", "importance": "token"}]
    if estimator == "k1":
        raise ConfigError(
            f"{KL}.estimator: k1 in the loss has an expected gradient of zero. Use k2 (or k3, or unbiased_gradient), or put it into the "
            f"reward: leave {KL}.use_loss out."
        )
    if estimator == "k3":
        draft.note(
            "k3 in the loss has the gradient of KL(ref‖pi), not of KL(pi‖ref): rlkit check says so; k2 has that of KL(pi‖ref)"
        )
        return [term | {"acknowledge": True}]
    return [term]


def _advantage(given: Given, draft: Draft) -> None:
    kind = str(given.get(f"{ADVANTAGE}.estimator", "gae"))
    gamma, lam = given.number(f"{ADVANTAGE}.gamma", 1.0), given.number(f"{ADVANTAGE}.lambd", 1.0)
    found: dict[str, Any] = {
        "gae": {"type": "GAE", "gamma": gamma, "lam": lam},
        "reinforce": "ReinforcePlusPlus",
        "reinforce_baseline": {"type": "ReinforcePlusPlus", "baseline": "group"},
        "rloo": "RLOO",
        "group_norm": {"type": "GroupNorm", "eps": 1e-9},
        "dr_grpo": "GroupMean",
    }
    if kind not in found:
        raise ConfigError(f"{ADVANTAGE}.estimator: {kind!r} has no counterpart in rlkit; there are {', '.join(found)}.")
    draft.set("advantage", found[kind])
    whitened = kind in ("gae", "reinforce", "reinforce_baseline")
    if given.get(f"{ADVANTAGE}.no_std_norm", False) and whitened:
        draft.leave(given, f"{ADVANTAGE}.no_std_norm", "advantages over the batch are divided by their deviation, too")
    if kind == "reinforce" and gamma != 1:
        draft.leave(given, f"{ADVANTAGE}.gamma", "returns are not discounted here")
    if kind == "gae":
        draft.settings["objective"].append(
            {"type": "ValueMSE", "clip": given.number("critic.value_clip", 0.5), "coef": 1.0}
        )
        start = given.get("critic.model_name_or_path", draft.settings.get("model", {}).get("path"))
        draft.set("critic", {"lr": given.number("critic.adam.lr", 9e-6)} | ({} if start is None else {"path": start}))
    _kl_in_the_reward(given, draft, kind, whitened)


def _kl_in_the_reward(given: Given, draft: Draft, kind: str, whitened: bool) -> None:
    """OpenRLHF subtracts it from token rewards after a group's baseline and scale, and before the batch's."""
    init = given.number(f"{KL}.init_coef", 0.01)
    if given.get(f"{KL}.use_loss", False) or not init:
        return
    estimator = str(given.get(f"{KL}.estimator", "k1"))
    if estimator != "k1":
        raise ConfigError(
            f"{KL}.estimator: {estimator} in the reward has the gradient of no KL. Use k1 there, or {KL}.use_loss with {estimator}."
        )
    penalty: dict[str, Any] = {"type": "KLReward", "coef": _coefficient(given, init)}
    if not whitened:
        penalty["placement"] = "advantage"  # untouched by the group's baseline and scale, as there
    elif kind == "reinforce_baseline":
        draft.note(
            "the group's mean that is subtracted is that of rewards with their KL here, of rewards alone in OpenRLHF"
        )
    draft.settings["reward_penalties"] = [penalty]


def _correction(given: Given, draft: Draft) -> None:
    of = f"{ADVANTAGE}.is_correction"
    level = str(given.get(f"{of}_level", "off"))
    mode, gating = str(given.get(f"{of}_mode", "mask")), str(given.get(f"{of}_gating", "ratio"))
    threshold = given.get(f"{of}_threshold", [0.5, 5.0])
    low, high = (0.0, threshold) if not isinstance(threshold, list) else (0.0, *threshold)[-2:]
    if level == "off":
        return
    if gating != "ratio":
        draft.leave(
            given, f"{of}_gating", "corrections here look at ratios; K3Mask keeps sequences whose mean k3 is small"
        )
    elif mode == "clip":
        draft.set("correction", {"type": "TruncatedIS", "cap": high})
        if low:
            draft.note(f"the correction bounds ratios from above alone; OpenRLHF raises those below {low:g} to it")
    elif level == "token":
        draft.set("correction", {"type": "IcePop", "low": low, "high": high})
    else:
        draft.set("correction", {"type": "SequenceMask", "of": "geometric", "low": low, "high": high})


def _learner(given: Given, draft: Draft) -> None:
    adam = f"{POLICY}.adam"
    if str(given.get(f"{POLICY}.optim", "adam")) != "adam":
        draft.leave(
            given, f"{POLICY}.optim", "AdamW is the optimizer; DeepSpeed has others (deepspeed: {optimizer: ...})"
        )
    draft.set("learner.lr", given.number(f"{adam}.lr", 1e-6))
    kind = str(given.get(f"{POLICY}.lr_scheduler", "cosine_with_min_lr"))
    schedules = {"cosine_with_min_lr": "cosine", "cosine": "cosine", "linear": "linear", "constant": "constant"}
    schedules["constant_with_warmup"] = "constant"
    if kind in schedules:
        draft.set("learner.schedule", schedules[kind])
        draft.set(
            "learner.final_lr", given.number(f"{POLICY}.min_lr_ratio", 0.1) if kind == "cosine_with_min_lr" else None
        )
    else:
        draft.leave(given, f"{POLICY}.lr_scheduler", "learner.schedule is constant, linear or cosine")
    share = given.number(f"{POLICY}.lr_warmup_ratio", 0.03)
    if share:
        draft.note(f"learner.warmup_steps is a number of optimizer steps; OpenRLHF's is a share of all, {share:g}")
    draft.set("learner.betas", given.get(f"{adam}.betas", [0.9, 0.95]))
    draft.set("learner.eps", given.number(f"{adam}.eps"))
    draft.set("learner.weight_decay", given.number(f"{adam}.weight_decay", 0.0))
    draft.set("learner.max_grad_norm", given.number(f"{POLICY}.max_norm", 1.0))
    draft.set("learner.gradient_checkpointing", bool(given.get(f"{POLICY}.gradient_checkpointing_enable", False)))


def _watching(given: Given, draft: Draft) -> None:
    for ours, theirs in (("eval.every", "eval.steps"), ("checkpoint.every", "ckpt.save_steps")):
        every = given.number(theirs, -1)
        draft.set(ours, int(every) if every > 0 else None)
    draft.set("checkpoint.keep", int(given.number("ckpt.max_num", 3)))
    draft.set("eval.n", int(given.number("eval.n_samples_per_prompt", 4)))
    draft.set("eval.temperature", given.number("eval.temperature", 0.6))
    if given.get("logger.wandb.key"):
        draft.set("log.wandb", {"project": given.get("logger.wandb.project", "openrlhf_train_ppo")})
    draft.set("log.tensorboard", True if given.get("logger.tensorboard_dir") else None)
