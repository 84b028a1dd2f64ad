"""TRL's GRPO and DPO: ``GRPOConfig`` or ``DPOConfig`` with ``ModelConfig`` and ``ScriptArguments`` (``trl grpo --config x.yaml``), as of
TRL 1.16.

What is equal was read in TRL's ``_compute_loss``: ratios, clips, estimators, advantages, and what their means are taken over. The test
trains both from one file.
"""

from __future__ import annotations

from typing import Any

from rlkit.errors import ConfigError
from rlkit.moving.settings import Converted, Draft, Given, LeftOut, quotient

ELSEWHERE = (
    "desirable_weight",
    "undesirable_weight",
    "assistant_only_loss",
    "completion_only_loss",
    "center_rewards_coefficient",
)
DPO = ("label_smoothing", "precompute_ref_log_probs", "f_divergence_type", "ld_alpha", "max_length", "loss_weights")
REWARDS = {"accuracy_reward": "math"}
REASONS = {
    "_*": "",  # of the object, not of its user
    "per_device_eval_batch_size": "",
    "logging_*": "",  # rlkit writes every number of every step
    "log_*": "",
    "num_completions_to_print": "",
    "report_to": "",
    "output_dir": "",
    "overwrite_output_dir": "",
    "remove_unused_columns": "",
    "disable_tqdm": "",
    "do_train": "",
    "do_eval": "",
    "use_cpu": "",
    "fp16": "rlkit trains in float32 or bfloat16: model.dtype",
    "bf16": "",
    "tf32": "set by torch: torch.set_float32_matmul_precision",
    "ddp_*": "",
    "dataloader_*": "",
    "pad_to_multiple_of": "",
    "padding_free": "",
    "use_liger_kernel": "rlkit's own output layer makes no logits",
    "ds3_gather_for_generation": "",
    "gradient_checkpointing_kwargs": "",
    "cache_implementation": "",
    "disable_dropout": "",  # there is none
    "vllm_mode": "",  # where engines are is a matter of cluster:
    "vllm_group_port": "",
    "vllm_server_*": "rlkit starts its engines itself: cluster.engines",
    "vllm_enable_sleep_mode": "engine and learner do not share a GPU's memory in turns",
    "use_transformers_*": "",
    "push_to_hub": "the model is in final/; push it from there",
    "hub_*": "the model is in final/; push it from there",
    "resume_from_checkpoint": "rlkit train CONFIG --resume",
    "trust_remote_code": "code that comes with a model is not executed",
    "model_revision": "download the revision and give its folder as model.path",
    "load_in_*": "quantized weights are not trained",
    "min_p": "the distribution that is trained must be the one that is sampled: temperature, top_p and top_k only",
    "repetition_penalty": "the distribution that is trained must be the one that is sampled: temperature, top_p and top_k only",
    "generation_kwargs": "the distribution that is trained must be the one that is sampled: temperature, top_p and top_k only",
    "top_entropy_quantile": "no term here keeps the tokens of highest entropy alone; KLCov and ClipCov choose tokens by covariance",
    "mask_truncated_completions": "a reward that returns None where finish is length masks a response",
    "multi_objective_aggregation": "rewards are added before they are normalised",
    "router_aux_loss_coef": "no balancing loss is added for mixtures of experts",
    "model_init_kwargs": "model.dtype and model.attention are the settings of loading",
    "torch_empty_cache_steps": "",
    "max_tool_calling_iterations": "write an environment or an engine of your own",
    "vllm_structured_outputs_regex": "no engine here samples under a grammar",
    "vllm_model_impl": "vllm: {model_impl: ...} is handed to vLLM",
    "optim*": "AdamW is the optimizer; DeepSpeed has others (deepspeed: {optimizer: ...})",
}


def convert(values: dict[str, Any], processes: int = 1) -> Converted:
    """The run of a configuration of GRPO, or of DPO where keys are DPO's. ``processes``: learners, which TRL counts when it is launched.

    Raises:
        ConfigError: it is neither's, or asks for a method that has no counterpart.
    """
    given, draft = Given(values), Draft()
    if not given.values.keys().isdisjoint(ELSEWHERE):
        key = next(k for k in ELSEWHERE if k in given)
        raise ConfigError(
            f"{key}: rlkit convert reads configurations of GRPO and DPO; this is one of KTO, SFT or reward models."
        )
    draft.set("name", given.get("run_name"))
    draft.set("seed", given.get("seed", 42))
    by_pairs = "num_generations" not in given and not given.values.keys().isdisjoint(DPO)
    updates = _pairs(given, draft, processes) if by_pairs else _batch(given, draft, processes)
    _model(given, draft)
    if not by_pairs:
        _data(given, draft)
        _sampling(given, draft)
        _objective(given, draft)
    _reference(given, draft)
    _learner(given, draft)
    _watching(given, draft, updates)
    if processes > 1:
        draft.set("cluster.learners", processes)
    else:
        draft.note(
            "TRL multiplies per_device_train_batch_size by its processes: rlkit convert --processes N, if there were several"
        )
    return draft.done("TRL", given, REASONS)


def _pairs(given: Given, draft: Draft, processes: int) -> int:
    """Data and objective of DPO; a step is an optimizer step in both."""
    window = given.number("per_device_train_batch_size", 8) * processes
    name, config = given.get("dataset_name"), given.get("dataset_config")
    draft.set("data.pairs.path", f"{name}:{config}" if name is not None and config else name)
    draft.set("data.pairs.per_step", int(window * given.number("gradient_accumulation_steps", 1)))
    draft.set("data.pairs.max_tokens", given.number("max_length"))
    draft.set("rollout.prompts", 0)
    losses = given.get("loss_type", ["sigmoid"])
    if losses not in ("sigmoid", ["sigmoid"]):
        raise ConfigError(
            f"loss_type: {losses!r} has no counterpart in rlkit convert; there is sigmoid. docs/algorithms.md has other losses of pairs."
        )
    if given.number("label_smoothing", 0.0) or given.get("f_divergence_type", "reverse_kl") != "reverse_kl":
        key = "label_smoothing" if given.number("label_smoothing", 0.0) else "f_divergence_type"
        raise ConfigError(
            f"{key}: {given.get(key)!r} has no counterpart in rlkit convert: leave it out, and see docs/algorithms.md."
        )
    draft.settings["objective"] = [{"type": "DPO", "beta": given.number("beta", 0.1)}]
    given.get("precompute_ref_log_probs")
    _length(given, draft, 1)
    return 1


def _length(given: Given, draft: Draft, updates: int) -> None:
    """The steps of a run, of which TRL makes ``updates`` for one of ours."""
    steps, epochs = given.number("max_steps", -1), given.get("num_train_epochs", 3)
    if steps > 0:
        draft.set("steps", quotient(steps, updates, "max_steps (of which one step here makes several)"))
    else:
        draft.note(
            f"rlkit counts steps, not epochs: set steps to {epochs} (num_train_epochs) times the rows of the data set, divided by those of "
            "a step"
        )


def _batch(given: Given, draft: Draft, processes: int) -> int:
    """Sizes of a step; returns how many optimizer steps of TRL are one step here."""
    n, accumulate = given.number("num_generations", 8), given.number("gradient_accumulation_steps", 1)
    window = given.number("per_device_train_batch_size", 8) * processes
    several = given.number("steps_per_generation")
    size = given.number("generation_batch_size")
    if several is not None and size is not None and size != window * several:
        raise ConfigError(
            f"generation_batch_size is {size}, and per_device_train_batch_size * processes * steps_per_generation is {window * several}: "
            "name the number of processes (--processes), or leave one of them out."
        )
    if several is None:
        several = accumulate if size is None else quotient(size, window, "generation_batch_size")
    draft.set("rollout.prompts", quotient(window * several, n, "the batch of a generation (num_generations)"))
    draft.set("rollout.n", int(n))
    minibatches, epochs = quotient(several, accumulate, "steps_per_generation"), given.number("num_iterations", 1)
    draft.set("learner.minibatches", minibatches if minibatches > 1 else None)
    draft.set("learner.epochs", epochs if epochs > 1 else None)
    updates = int(minibatches * epochs)
    _length(given, draft, updates)
    return updates


def _model(given: Given, draft: Draft) -> None:
    draft.set("model.path", given.get("model_name_or_path", given.get("model")))
    dtype = str(given.get("dtype", given.get("torch_dtype", "float32")))
    if dtype in ("bfloat16", "float32"):
        draft.set("model.dtype", dtype if dtype == "bfloat16" else None)
    else:
        draft.note(
            f"model.dtype is float32, which is what TRL's {dtype!r} loads unless it says otherwise; bfloat16 trains under DeepSpeed"
        )
    draft.set("model.attention", given.get("attn_implementation"))
    draft.set("model.fp32_head", given.get("cast_lm_head_to_fp32"))
    if given.get("use_peft"):
        draft.set("peft.r", given.get("lora_r", 16))
        draft.set("peft.lora_alpha", given.get("lora_alpha", 32))
        draft.set("peft.target_modules", given.get("lora_target_modules", "all-linear"))
        for theirs, ours in (
            ("lora_modules_to_save", "modules_to_save"),
            ("use_rslora", "use_rslora"),
            ("use_dora", "use_dora"),
        ):
            draft.set(f"peft.{ours}", given.get(theirs))
        draft.leave(
            given, "lora_dropout", "there is no dropout: log-probs before and after an update must be of one network"
        )
        given.get("lora_task_type")
    deepspeed = given.get("deepspeed")
    if isinstance(deepspeed, dict):
        draft.set("deepspeed.zero_optimization", deepspeed.get("zero_optimization", {"stage": 0}))
        draft.note(
            "of the DeepSpeed configuration only zero_optimization is carried over; rlkit sets batch sizes, precision and optimizer"
        )
    else:
        draft.leave(given, "deepspeed", "copy zero_optimization of that file to deepspeed:")


def _data(given: Given, draft: Draft) -> None:
    name, config = given.get("dataset_name"), given.get("dataset_config")
    split, test = given.get("dataset_train_split", "train"), given.get("dataset_test_split", "test")
    if name is not None:
        draft.set("data.train", f"{name}:{config}" if config else name)
        if split != "train":
            draft.leave(given, "dataset_train_split", "write rows of that split to a file and give it as data.train")
        if str(given.get("eval_strategy", "no")) != "no":
            draft.set("data.test", f"{name}:{config}" if config else name)
            if test != "test":
                draft.leave(given, "dataset_test_split", "write rows of that split to a file and give it as data.test")
    draft.set("data.chat_template_kwargs", given.get("chat_template_kwargs"))
    if given.get("shuffle_dataset", True) is False:
        draft.leave(given, "shuffle_dataset", "every epoch is shuffled; data.sampler may be a class of your own")
    weights = given.get("reward_weights")
    funcs = given.get("reward_funcs", [])
    for k, fn in enumerate([funcs] if isinstance(funcs, str) else funcs):
        ours = REWARDS.get(str(fn))
        if ours is None:
            draft.left.append(
                LeftOut(
                    "reward_funcs",
                    fn,
                    "a reward here gets one response (def f(response, answer): ...) and is named file.py:f",
                )
            )
            continue
        draft.note(f"{fn} is {ours} here, which reads answers itself (rlkit audit-reward compares two rewards)")
        weight = 1.0 if weights is None else weights[k]
        draft.settings.setdefault("rewards", []).append(ours if weight == 1.0 else {"fn": ours, "weight": weight})
    if weights is not None and not draft.settings.get("rewards"):
        draft.leave(given, "reward_weights", "rewards: [{fn: file.py:f, weight: ...}]")


def _sampling(given: Given, draft: Draft) -> None:
    draft.set("sampling.temperature", given.number("temperature", 1.0))
    draft.set("sampling.top_p", given.number("top_p"))
    draft.set("sampling.top_k", given.number("top_k"))
    draft.set("sampling.max_tokens", given.number("max_completion_length", 512))
    draft.set("rollout.engine", "vllm" if given.get("use_vllm", False) else "hf")
    draft.set("rollout.max_model_len", given.get("vllm_max_model_length"))
    if given.get("use_vllm", False):
        draft.set("vllm.gpu_memory_utilization", given.get("vllm_gpu_memory_utilization"))
        draft.set("cluster.tensor_parallel", given.get("vllm_tensor_parallel_size"))
        draft.note("engines and learners have GPUs of their own: cluster: {engines: ..., learners: ...}")


def _objective(given: Given, draft: Draft) -> None:
    loss = str(given.get("loss_type", "dapo"))
    longest = given.number("max_completion_length", 512)
    reductions: dict[str, dict[str, Any]] = {
        "grpo": {"reduce": "seq"},
        "dapo": {"reduce": "token"},
        "bnpo": {"reduce": "token"},
        "dr_grpo": {"reduce": "const", "const": float(longest)},
        "cispo": {"reduce": "token"},
        "sapo": {"reduce": "seq"},
        "luspo": {"reduce": "sum"},
    }
    if loss not in reductions:
        raise ConfigError(f"loss_type: {loss!r} has no counterpart in rlkit; there are {', '.join(reductions)}.")
    if loss == "bnpo":
        draft.note(
            "bnpo takes means over micro-batches; here a mean is over the whole batch of an optimizer step, which is dapo's"
        )
    reduction = reductions[loss]
    draft.settings["objective"] = [
        _policy_gradient(given, draft, loss) | reduction,
        *_kl(given, draft, reduction),
        *_entropy(given),
    ]
    _advantage(given, draft)
    _correction(given, draft)


def _reference(given: Given, draft: Draft) -> None:
    if given.get("sync_ref_model", False):
        alpha, every = given.number("ref_model_mixup_alpha", 0.6), given.number("ref_model_sync_steps", 512)
        draft.set("reference", {"type": "EMA", "decay": 1 - alpha, "every": int(every)})
        draft.note("reference: EMA counts steps; ref_model_sync_steps counts optimizer steps")


def _policy_gradient(given: Given, draft: Draft, loss: str) -> dict[str, Any]:
    low = given.number("epsilon", 0.2)
    high = given.number("epsilon_high", low)
    by_sequence = str(given.get("importance_sampling_level", "token")) == "sequence"
    if loss == "cispo":
        return {"type": "CISPO", "against": "old", "eps_max": high}
    if loss == "sapo":
        return {
            "type": "SAPO",
            "tau_pos": given.number("sapo_temperature_pos", 1.0),
            "tau_neg": given.number("sapo_temperature_neg", 1.05),
        }
    if by_sequence:
        draft.leave(given, "delta", "GSPO has no second clip here")
        return {"type": "GSPO", "eps_low": low, "eps_high": high}
    delta = given.number("delta")
    return {"type": "PPOClip", "eps_low": low, "eps_high": high} | ({} if delta is None else {"dual_clip": delta})


def _kl(given: Given, draft: Draft, reduction: dict[str, Any]) -> list[dict[str, Any]]:
    beta, weighed = given.number("beta", 0.0), given.get("use_bias_correction_kl", True)
    if not beta:
        return []
    term = {"type": "KL", "estimator": "k3", "coef": beta} | reduction
    if weighed:
        draft.note(
            "use_bias_correction_kl, on in TRL 1.16 unless it is switched off, weighs k3 with the ratio, which makes its gradient that of "
            "KL(pi‖ref): importance: token. The weight here is against the engine's log-probs, there against the learner's before the step"
        )
        return [term | {"importance": "token"}]
    draft.note(
        "k3 in the loss has the gradient of KL(ref‖pi), not of KL(pi‖ref): rlkit check says so, and acknowledge: true keeps it"
    )
    return [term | {"acknowledge": True}]


def _entropy(given: Given) -> list[dict[str, Any]]:
    coef = given.number("entropy_coef", 0.0)
    if given.get("use_adaptive_entropy", False):
        rule = {"type": "EntropyTarget", "rule": "steps", "init": coef}
        names = {"target": ("entropy_target", 0.2), "rate": ("entropy_coef_delta", 0.005)}
        names |= {"low": ("entropy_coef_min", 0.0), "high": ("entropy_coef_max", 1.0)}
        return [{"type": "Entropy", "coef": rule | {ours: given.number(key, x) for ours, (key, x) in names.items()}}]
    return [{"type": "Entropy", "coef": coef}] if coef else []


def _advantage(given: Given, draft: Draft) -> None:
    scale = given.get("scale_rewards", "group")
    scale = {True: "group", False: "none"}.get(scale, scale) if isinstance(scale, bool) else str(scale)
    if scale == "none":
        draft.set("advantage", "GroupMean")
    elif scale in ("group", "batch"):
        draft.set("advantage", {"type": "GroupNorm", "eps": 1e-4} | ({"scale": "batch"} if scale == "batch" else {}))
        if scale == "batch":
            draft.note(
                "scale: batch divides by the standard deviation of rewards less their group's mean; TRL by that of the rewards"
            )
    else:
        raise ConfigError(f"scale_rewards: {scale!r} has no counterpart in rlkit; there are group, batch and none.")


def _correction(given: Given, draft: Draft) -> None:
    mode = str(given.get("vllm_importance_sampling_mode", "sequence_mask"))
    high = given.number("vllm_importance_sampling_clip_max", 3.0)
    low = given.number("vllm_importance_sampling_clip_min", 0.0)
    mask = given.number("off_policy_mask_threshold")
    if mask is not None:
        draft.set("correction", {"type": "OffPolicySequenceMask", "delta": mask})
        draft.note(
            "one correction weighs the terms: off_policy_mask_threshold is carried over, vllm_importance_sampling_* is not"
        )
    elif given.get("use_vllm", False) and given.get("vllm_importance_sampling_correction", True):
        found = {
            "token_truncate": {"type": "TruncatedIS", "cap": high},
            "sequence_truncate": {"type": "TruncatedIS", "cap": high, "level": "sequence"},
            "token_mask": {"type": "IcePop", "low": low, "high": high},
            "sequence_mask": {"type": "SequenceMask", "of": "product", "low": low, "high": high},
        }
        if mode not in found:
            raise ConfigError(
                f"vllm_importance_sampling_mode: {mode!r} has no counterpart in rlkit; there are {', '.join(found)}."
            )
        draft.set("correction", found[mode])
        if mode == "sequence_mask":
            draft.note(
                "a sequence that is kept weighs each token by its own ratio here, by the product of all of them in TRL"
            )
    else:
        given.get("vllm_importance_sampling_correction")


def _learner(given: Given, draft: Draft) -> None:
    draft.set("learner.lr", given.number("learning_rate", 1e-6))
    kind = str(given.get("lr_scheduler_type", "linear"))
    schedules = {"linear": "linear", "constant": "constant", "constant_with_warmup": "constant", "cosine": "cosine"}
    if kind in schedules:
        draft.set("learner.schedule", schedules[kind])
    else:
        draft.leave(given, "lr_scheduler_type", f"there are {', '.join(schedules.values())}")
    warmup = given.number("warmup_steps", 0)
    if 0 < warmup < 1 or given.number("warmup_ratio", 0.0):
        draft.leave(
            given,
            "warmup_ratio" if "warmup_ratio" in given else "warmup_steps",
            "learner.warmup_steps is a number of optimizer steps",
        )
    elif warmup:
        draft.set("learner.warmup_steps", int(warmup))
        draft.note("the first of w warm-up steps has lr / w here and 0 in TRL: the schedule is one step ahead")
    draft.set("learner.betas", [given.number("adam_beta1", 0.9), given.number("adam_beta2", 0.999)])
    draft.set("learner.eps", given.number("adam_epsilon"))
    draft.set("learner.weight_decay", given.number("weight_decay"))
    draft.set("learner.max_grad_norm", given.number("max_grad_norm"))
    draft.set("learner.gradient_checkpointing", bool(given.get("gradient_checkpointing", True)))


def _watching(given: Given, draft: Draft, updates: int) -> None:
    strategy, every = str(given.get("eval_strategy", "no")), given.number("eval_steps")
    if strategy == "steps" and every is not None:
        draft.set("eval.every", max(1, int(every) // updates))
    draft.set("eval.n", given.get("num_generations_eval"))
    if str(given.get("save_strategy", "steps")) == "steps":
        draft.set("checkpoint.every", max(1, int(given.number("save_steps", 500)) // updates))
    else:
        given.get("save_steps")
    draft.set("checkpoint.keep", given.get("save_total_limit", 0))
    trackers = given.get("report_to", [])
    if "wandb" in ([trackers] if isinstance(trackers, str) else trackers):
        draft.set("log.wandb", {})
