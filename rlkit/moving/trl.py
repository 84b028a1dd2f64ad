"""TRL's GRPO, DPO, KTO, SFT, GKD and distillation: ``GRPOConfig``, ``DPOConfig`` and so on with ``ModelConfig`` and ``ScriptArguments``
(``trl grpo --config x.yaml``), as of TRL 1.16.

What is equal was read in the trainers of TRL: ratios, clips, estimators, advantages, divergences, and what their means are taken over. A
test trains GRPO in both from one file.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from rlkit.errors import ConfigError
from rlkit.moving.settings import Converted, Draft, Given, LeftOut, quotient

Method = Literal["grpo", "dpo", "kto", "sft", "gkd", "distillation"]
# Keys that tell whose configuration it is, the most telling first: an object of TRL's has those of what it extends, too.
TELLING: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("none", ("center_rewards_coefficient",)),
    ("gkd", ("lmbda", "seq_kd", "max_new_tokens")),
    ("distillation", ("teacher_model_name_or_path",)),
    ("grpo", ("num_generations",)),
    ("kto", ("desirable_weight", "undesirable_weight")),
    ("sft", ("completion_only_loss", "assistant_only_loss", "dataset_text_field", "packing", "packing_strategy", "eval_packing")),
    ("dpo", ("label_smoothing", "f_divergence_type", "ld_alpha", "loss_weights")),
    ("ambiguous", ("precompute_ref_log_probs", "max_length")),
)  # fmt: skip
RATES = {"sft": 2e-5, "gkd": 2e-5}  # learning rates that are not 1e-6 by default
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
    "lr_scheduler_kwargs": "learner.final_lr is the share of the rate at the end",
    "cache_implementation": "",
    "disable_dropout": "",  # there is none
    "vllm_mode": "",  # where engines are is a matter of cluster:
    "vllm_group_port": "",
    "vllm_server_*": "rlkit starts its engines itself: cluster.engines",
    "vllm_enable_sleep_mode": "cluster: {colocate: true} lets engines and learners take turns on their GPUs",
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
    "activation_offloading": "",
    "dataset_num_proc": "",
    "precompute_ref_batch_size": "",
    "shuffle_dataset": "every epoch is shuffled",
    "chat_template_path": "give the model folder the chat template: it is read from its tokenizer",
    "eos_token": "what ends a response is found in the model: docs/guide.md, What ends a response",
    "pad_token": "",
    "average_tokens_across_devices": "",
    "label_smoothing_factor": "the loss is that of the data's tokens alone",
    "optim*": "AdamW is the optimizer; DeepSpeed has others (deepspeed: {optimizer: ...})",
}


def convert(values: dict[str, Any], processes: int = 1, method: Method | None = None) -> Converted:
    """The run of a configuration. ``processes``: learners, which TRL counts when it is launched; ``method``: None: that which keys tell.

    Raises:
        ConfigError: it is of another method, or asks for something that has no counterpart.
    """
    given, draft = Given(values), Draft()
    method = _method(given, draft) if method is None else method
    if method not in get_args(Method):
        raise ConfigError(f"--method: {method!r} is unknown; there are {', '.join(get_args(Method))}.")
    draft.set("name", given.get("run_name"))
    draft.set("seed", given.get("seed", 42))
    updates = 1
    if method == "grpo":
        updates = _batch(given, draft, processes)
    _model(given, draft)
    if method == "grpo":
        _data(given, draft)
        _sampling(given, draft)
        _objective(given, draft)
    else:
        per_step = int(
            given.number("per_device_train_batch_size", 8) * processes * given.number("gradient_accumulation_steps", 1)
        )
        {"dpo": _dpo, "kto": _kto, "sft": _sft, "gkd": _gkd, "distillation": _distillation}[method](
            given, draft, per_step
        )
        _length(given, draft, 1)
    if method in ("grpo", "dpo", "kto"):
        _reference(given, draft)
    _learner(given, draft, RATES.get(method, 1e-6))
    _watching(given, draft, updates)
    if processes > 1:
        draft.set("cluster.learners", processes)
    else:
        draft.note(
            "TRL multiplies per_device_train_batch_size by its processes: rlkit convert --processes N, if there were several"
        )
    return draft.done("TRL", given, REASONS)


def _method(given: Given, draft: Draft) -> Method:
    """Whose configuration it is."""
    found = next((name for name, keys in TELLING if not given.values.keys().isdisjoint(keys)), "grpo")
    if found == "none":
        raise ConfigError("center_rewards_coefficient: reward models are not trained here; rewards are functions.")
    if found == "ambiguous":
        draft.note(
            "read as one of DPO; SFT and KTO have the same keys: rlkit convert --method sft or kto, if it is theirs"
        )
        return "dpo"
    return found  # type: ignore[return-value]  # the names of the table


def _rows(given: Given, draft: Draft, section: str, per_step: int) -> None:
    """Rows that somebody else wrote; a step is an optimizer step in both."""
    source = _source(given)
    draft.set(f"data.{section}.path", source)
    if source is not None and str(given.get("eval_strategy", "no")) != "no":
        draft.set(f"data.{section}.test", source)
        _split(given, draft, "dataset_test_split", "test")
    _split(given, draft, "dataset_train_split", "train")
    draft.set(f"data.{section}.per_step", per_step)
    draft.set(f"data.{section}.max_tokens", given.number("max_length", None if "max_length" in given else 1024))
    draft.set(f"data.{section}.unusable", "drop")
    given.get("truncation_mode")
    draft.note("rows of more than max_length tokens are cut in TRL and left out (and counted) here: unusable: drop")
    draft.set("data.chat_template_kwargs", given.get("chat_template_kwargs"))


def _source(given: Given) -> str | None:
    name, config = given.get("dataset_name"), given.get("dataset_config")
    return f"{name}:{config}" if name is not None and config else name


def _split(given: Given, draft: Draft, key: str, usual: str) -> None:
    if given.get(key, usual) != usual:
        draft.leave(given, key, f"the split {usual} is read: write rows of another one to a file, and name that")


def _dpo(given: Given, draft: Draft, per_step: int) -> None:
    _rows(given, draft, "pairs", per_step)
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
    _precomputed(given, draft)


def _kto(given: Given, draft: Draft, per_step: int) -> None:
    """``_get_batch_loss_metrics`` of TRL: a mean over responses, whose baseline is an estimate of KL(pi‖ref)."""
    _rows(given, draft, "labelled", per_step)
    draft.set("rollout.prompts", 0)
    term: dict[str, Any] = {"type": "KTO", "beta": given.number("beta", 0.1)}
    for ours in ("desirable", "undesirable"):
        term |= {ours: given.number(f"{ours}_weight", 1.0)}
    baseline = given.choice("loss_type", {"kto": "mismatched", "apo_zero_unpaired": "zero"}, "kto")
    if baseline == "zero":
        term |= {"baseline": "zero"}
    else:
        draft.note(
            "the baseline z0 is that of the whole batch of an optimizer step, before the update; in TRL that of a micro-batch over all "
            "processes. Responses under another's prompt are drawn anew each step here, and are fixed neighbours there"
        )
    given.get("train_sampling_strategy")
    draft.settings["objective"] = [term]
    _precomputed(given, draft)


def _precomputed(given: Given, draft: Draft) -> None:
    if given.get("precompute_ref_log_probs", False):
        draft.note(
            "precompute_ref_log_probs: reference: {type: Frozen, precompute: FILE} keeps them in a file here; without it they are computed "
            "beside each step"
        )


def _sft(given: Given, draft: Draft, per_step: int) -> None:
    """The mean over all tokens of an optimizer step, in both."""
    loss = str(given.get("loss_type", "nll"))
    if loss != "nll":
        raise ConfigError(
            f"loss_type: {loss!r} has no counterpart in rlkit convert; there is nll. A loss of your own is four lines (docs/tutorials/"
            "first-loss.md)."
        )
    _rows(given, draft, "demonstrations", per_step)
    _answers(given, draft)
    draft.set("rollout.prompts", 0)
    draft.settings["objective"] = [{"type": "NLL", "on": "dataset", "reduce": "token"}]
    draft.settings["reference"] = None


def _answers(given: Given, draft: Draft) -> None:
    """What of a row is trained on: here the answers alone."""
    if not given.get("assistant_only_loss", False):
        draft.note(
            "assistant_only_loss: of a chat the assistant's answers are trained on here, in TRL all messages unless it is set"
        )
    if given.get("completion_only_loss") is False:
        draft.leave(given, "completion_only_loss", "a prompt is not trained on: the loss is that of the response")
    if (text := given.get("dataset_text_field", "text")) != "text":
        draft.set("data.demonstrations.columns", {"text": text})
    for key in ("packing", "packing_strategy", "eval_packing"):
        given.get(key)  # rows share no attention here, and micro-batches have no padding


def _gkd(given: Given, draft: Draft, per_step: int) -> None:
    """``training_step`` of TRL: a micro-batch is answered by the student with probability ``lmbda``, else it is that of the data."""
    share = given.number("lmbda", 0.5)
    sampled = round(share * per_step)
    if share not in (0, 1):
        draft.note(
            f"a step has {sampled} prompts that the student answers and {per_step - sampled} rows of the data, weighed by lmbda; in TRL "
            "each micro-batch is the one or the other at random, and its sum is divided by the number of the data's tokens"
        )
    _divergence(given, draft, {"policy": share, "dataset": 1 - share}, 0.5)
    if sampled < per_step:
        _rows(given, draft, "demonstrations", per_step - sampled)
        _answers(given, draft)
    if sampled:
        _answered(given, draft, sampled, given.number("max_new_tokens", 128), given.number("temperature", 0.9))
        if given.number("temperature", 0.9) != 1:
            draft.note(
                "the divergence is that of the distributions at sampling.temperature here; TRL samples at temperature and compares at 1"
            )
    else:
        draft.set("rollout.prompts", 0)
        given.get("temperature")
        given.get("max_new_tokens")
        given.get("max_length")
    if given.get("seq_kd", False):
        draft.leave(
            given,
            "seq_kd",
            "let the teacher write the data first: rlkit filter CONFIG --model TEACHER --demonstrations FILE",
        )


def _distillation(given: Given, draft: Draft, per_step: int) -> None:
    """Distillation on the student's own responses, with one temperature for sampling and for the divergence, as here."""
    _divergence(given, draft, {"policy": 1.0}, 1.0)
    _answered(given, draft, per_step, given.number("max_completion_length", 512), given.number("temperature", 1.0))
    for key, off in (("top_p", 1.0), ("top_k", 0)):
        if given.number(key, off) != off:
            draft.leave(
                given, key, "where a truncated distribution is zero and the other is not, the divergence is infinite"
            )


def _divergence(given: Given, draft: Draft, shares: dict[str, float], usual: float) -> None:
    """The generalised Jensen-Shannon divergence to the teacher: its ``beta`` is the teacher's part of the mixture, ours the student's."""
    beta = given.number("beta", usual)
    if not 0 <= beta <= 1:
        raise ConfigError(f"beta: is {beta:g}; it must be in [0, 1].")
    names = {0.0: {"f": "forward_kl"}, 1.0: {"f": "reverse_kl"}}
    f: dict[str, Any] = names.get(float(beta), {"f": "generalised_js", "parameter": round(1 - beta, 12)})
    both = len([x for x in shares.values() if x]) > 1
    path = given.get("teacher_model_name_or_path")
    anchor = "ref" if path is None else "teacher"  # without a teacher TRL takes the model that training starts from
    draft.settings["objective"] = [
        {"type": "FullDivergence", **f, "anchor": anchor, "on": on, "reduce": "token"} | ({"coef": x} if both else {})
        for on, x in shares.items()
        if x
    ]
    if path is not None:
        draft.set("teacher", {"type": "Frozen", "path": path})
        draft.settings["reference"] = None
    draft.leave(given, "teacher_model_init_kwargs", "a teacher is loaded as the student is: model.dtype")


def _answered(given: Given, draft: Draft, prompts: int, longest: float, temperature: float) -> None:
    """Prompts that the student answers once; rewards are not trained on."""
    draft.set("data.train", _source(given))
    draft.set("data.columns", {"prompt": "messages", "answer": "messages.-1.content"})
    draft.note("data.columns: the prompt is a chat without its last answer; for other columns name them there")
    draft.set("rollout.prompts", prompts)
    draft.set("rollout.n", 1)
    draft.set("rollout.engine", "vllm" if given.get("use_vllm", False) else "hf")
    draft.set("sampling.max_tokens", int(longest))
    draft.set("sampling.temperature", temperature)
    draft.settings["advantage"] = "Plain"
    draft.settings["rewards"] = ["exact"]
    draft.note("rewards: a distillation trains on none; exact is only measured. Name what you want to see")


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


def _learner(given: Given, draft: Draft, rate: float) -> None:
    draft.set("learner.lr", given.number("learning_rate", rate))
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
