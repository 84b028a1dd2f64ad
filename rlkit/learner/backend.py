"""What executes an optimizer step: plain torch in one process, or a DeepSpeed engine on one or several ranks.

Both take losses whose micro-batches and ranks *add up* (they are normalised over the whole batch), clip the global
gradient norm, step the learning-rate schedule, and give access to whole parameters.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlkit.distribution import install
from rlkit.errors import ConfigError, NumericsError
from rlkit.learner.section import LearnerSection
from rlkit.model.export import dimensions
from rlkit.record.checkpoint import read_tensors, write_tensors

OURS = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "fp16",
}
# Other writers and universal checkpoints, whose readers run what is in the files.
UNPICKLES = ("checkpoint", "datastates_ckpt")


def lr_factor(section: LearnerSection, total: int) -> Callable[[int], float]:
    """The learning rate of optimizer step ``k`` as a multiple of ``lr``: linear warm-up, then the schedule."""

    def factor(k: int) -> float:
        if k < section.warmup_steps:
            return (k + 1) / section.warmup_steps
        done = min(1.0, (k - section.warmup_steps) / max(1, total - section.warmup_steps))
        if section.schedule == "linear":
            return section.final_lr + (1 - section.final_lr) * (1 - done)
        if section.schedule == "cosine":
            return section.final_lr + (1 - section.final_lr) * 0.5 * (1 + math.cos(math.pi * done))
        return 1.0

    return factor


def make_optimizer(
    model: nn.Module, section: LearnerSection, total: int, critic_lr: float | None = None
) -> tuple[Any, Any]:
    """AdamW over the trainable parameters (no weight decay on vectors: norms and biases), and its schedule.

    ``critic_lr`` is the learning rate of the parameters under ``critic.``; None: that of the others.
    """
    trainable = [(n.startswith("critic."), p) for n, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = []
    for of_critic in (False, True):
        lr = section.lr if critic_lr is None or not of_critic else critic_lr
        for matrix in (True, False):
            groups.append(
                {
                    "params": [p for c, p in trainable if c == of_critic and (dimensions(p) >= 2) == matrix],
                    "lr": lr,
                    "weight_decay": section.weight_decay if matrix else 0.0,
                }
            )
    optimizer = torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=section.lr, betas=section.betas, eps=section.eps
    )
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(section, total))


def move_state(optimizer: Any, device: torch.device | None) -> None:
    """Moves an optimizer's moments to ``device``, or (None) to their parameters'; AdamW's step counts stay on the host."""
    for p, state in optimizer.state.items():
        for name, x in state.items():
            if isinstance(x, Tensor) and name != "step":
                state[name] = x.to(p.device if device is None else device)


HYPERPARAMETERS = ("initial_lr", "weight_decay", "betas", "eps")


def hyperparameters(optimizer: Any) -> list[dict[str, Any]]:
    """The configured numbers of each group of parameters."""
    return [{k: group[k] for k in HYPERPARAMETERS} for group in optimizer.param_groups]


def set_hyperparameters(optimizer: Any, schedule: Any, configured: list[dict[str, Any]]) -> None:
    """Puts the configured numbers in the place of a checkpoint's; the schedule stays at its step."""
    schedule.base_lrs = [group["initial_lr"] for group in configured]
    for group, numbers, factor in zip(optimizer.param_groups, configured, schedule.lr_lambdas, strict=True):
        group.update(numbers, lr=numbers["initial_lr"] * factor(schedule.last_epoch))
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]


class TorchBackend:
    """One process, no sharding: for notebooks, debuggers and tests."""

    def __init__(
        self, model: nn.Module, section: LearnerSection, total_steps: int, critic_lr: float | None = None
    ) -> None:
        self.module, self.section, self.total_steps, self.critic_lr = model, section, total_steps, critic_lr
        self.reset_optimizer()

    def reset_optimizer(self) -> None:
        self.optimizer, self.schedule = make_optimizer(self.module, self.section, self.total_steps, self.critic_lr)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def backward(self, loss: Tensor, last: bool) -> None:
        """``last``: this is the step's last micro-batch."""
        loss.backward()

    def step(self) -> float:
        """One optimizer step; returns the gradient norm before clipping.

        Where the norm is not finite no step was taken: weights, moments and schedule are as they were, and the gradient is forgotten.
        Every rank gets the same answer.
        """
        norm = torch.nn.utils.clip_grad_norm_(
            [p for p in self.module.parameters() if p.grad is not None], self.section.max_grad_norm or math.inf
        )
        if torch.isfinite(norm):
            self.optimizer.step()
            self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    @property
    def lr(self) -> float:
        return float(self.schedule.get_last_lr()[0])

    def whole(self, parameters: Iterable[nn.Parameter]) -> contextlib.AbstractContextManager[Any]:
        """Inside, the given parameters are whole on every rank."""
        return contextlib.nullcontext()

    def assign(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Gives a parameter another value (whole, the same on every rank); the optimizer's state stays."""
        with torch.no_grad():
            parameter.copy_(value)

    def offload(self) -> None:
        """Moves the optimizer's state to the host."""
        move_state(self.optimizer, torch.device("cpu"))

    def onload(self) -> None:
        """Moves it back to where its parameters are."""
        move_state(self.optimizer, None)

    def save(self, folder: Path) -> None:
        trainable = {n: p.detach() for n, p in self.module.named_parameters() if p.requires_grad}
        write_tensors(
            folder / "learner.pt",
            {"model": trainable, "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()},
        )

    def load(self, folder: Path) -> None:
        """What ``save`` wrote; the optimizer's numbers (learning rate, ...) are those of the configuration."""
        state = read_tensors(folder / "learner.pt")
        configured = hyperparameters(self.optimizer)
        named = dict(self.module.named_parameters())
        with torch.no_grad():
            for name, value in state["model"].items():
                named[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        set_hyperparameters(self.optimizer, self.schedule, configured)


def join() -> None:
    """Makes the group of all learner ranks, if there is none yet."""
    deepspeed = import_deepspeed()
    if torch.distributed.is_initialized():
        return
    # An engine of vLLM in this process ends all groups with itself, and DeepSpeed remembers those of an earlier run.
    deepspeed.utils.groups._release_process_group_references()
    deepspeed.init_distributed(
        dist_backend="nccl" if torch.cuda.is_available() else "gloo", auto_mpi_discovery=False, verbose=False
    )


def engine_config(section: LearnerSection, options: Mapping[str, Any], bf16: bool) -> dict[str, Any]:
    """What DeepSpeed is configured with: the user's ``deepspeed:`` section, and what rlkit sets from its own."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        # Boundaries are set by hand, micro-batch by micro-batch; any number above 1 makes ZeRO accumulate.
        "gradient_accumulation_steps": 2,
        "gradient_clipping": section.max_grad_norm,
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **({"data_types": {"grad_accum_dtype": "fp32"}} if bf16 else {}),
        **options,
        **({"bf16": {"enabled": True, **(options.get("bf16") or {})}} if bf16 else {}),
        "zero_optimization": {
            "stage": 0,
            "overlap_comm": torch.cuda.is_available(),
            **options.get("zero_optimization", {}),
        },
    }


class DeepSpeedBackend:
    """A DeepSpeed engine on this rank of ``world`` ranks. The user's ``deepspeed:`` section is handed on as it is."""

    def __init__(
        self,
        model: nn.Module,
        section: LearnerSection,
        total_steps: int,
        options: Mapping[str, Any],
        bf16: bool,
        world: int,
        critic_lr: float | None = None,
    ) -> None:
        deepspeed = import_deepspeed()
        join()
        optimizer, schedule = make_optimizer(model, section, total_steps, critic_lr)
        config = engine_config(section, options, bf16)
        self.world, self.stage, self.section = world, int(config["zero_optimization"]["stage"]), section
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=schedule, config=config)
        self.files = tensor_files()
        self.engine.checkpoint_engine = self.files
        self.engine._copy_recovery_script = lambda folder: None  # a program has no place among a checkpoint's tensors
        self.module = self.engine.module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.engine(*args, **kwargs)

    def backward(self, loss: Tensor, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks; rlkit's losses are shares of one global mean and must be added.
        self.engine.backward(loss * self.world, scale_wrt_gas=False)

    def step(self) -> float:
        """See :meth:`TorchBackend.step`. Stages 1 to 3 look at the norm and skip by themselves; stage 0 steps on whatever it has."""
        if self.stage == 0:
            norm = float(
                torch.nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
            )
            if not math.isfinite(norm):
                self.engine.zero_grad()
                return norm
        self.engine.step()
        if self.stage > 0:
            norm = float(self.engine.get_global_grad_norm())
            if not math.isfinite(norm) and self.engine.was_step_applied():
                raise NumericsError(
                    f"DeepSpeed took a step although the gradient norm is {norm}: the weights are lost. Continue from the last "
                    "checkpoint, with another version of DeepSpeed or other options in `deepspeed`."
                )
        return norm

    @property
    def lr(self) -> float:
        return float(self.engine.get_lr()[0])

    def whole(self, parameters: Iterable[nn.Parameter]) -> contextlib.AbstractContextManager[Any]:
        if self.stage < 3:
            return contextlib.nullcontext()
        gathered: contextlib.AbstractContextManager[Any] = import_deepspeed().zero.GatheredParameters(list(parameters))
        return gathered

    def reset_optimizer(self) -> None:
        """Moments and step counts to zero, the schedule to its start; weights stay."""
        for state in self._adam().state.values():
            for key, x in state.items():
                if isinstance(x, Tensor):
                    x.zero_()
                else:
                    state[key] = 0
        schedule = self.engine.lr_scheduler
        schedule.last_epoch = -1
        schedule.step()

    def _adam(self) -> Any:
        # Inside ZeRO's wrapper, or AdamW itself.
        return getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)

    def assign(self, parameter: nn.Parameter, value: Tensor) -> None:
        """See :meth:`TorchBackend.assign`; the optimizer's own float32 copy gets the value too."""
        deepspeed = import_deepspeed()
        shards = (
            deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
            if self.stage == 3
            else contextlib.nullcontext()
        )
        with torch.no_grad(), shards:
            parameter.data.copy_(value)
        deepspeed.utils.safe_set_full_fp32_param(parameter, value.to(parameter.device, torch.float32))

    def offload(self) -> None:
        """See :meth:`TorchBackend.offload`; float32 master weights and gradients, too. What ``deepspeed`` keeps on the host stays there."""
        if self.stage == 0:
            move_state(self._adam(), torch.device("cpu"))
        elif not self.engine.zero_use_cpu_optimizer():
            self.engine.offload_states(include=_offloaded(), pin_memory=torch.cuda.is_available())

    def onload(self) -> None:
        """See :meth:`TorchBackend.onload`."""
        if self.stage == 0:
            move_state(self._adam(), None)
        elif not self.engine.zero_use_cpu_optimizer():
            self.engine.reload_states()

    def save(self, folder: Path) -> None:
        """See :meth:`TorchBackend.save`. Ranks wait for each other in it, so a file that one of them cannot write is told at its end."""
        (folder / "deepspeed").mkdir(exist_ok=True)
        self.files.failure = None
        self.engine.save_checkpoint(str(folder), tag="deepspeed", save_latest=False, exclude_frozen_parameters=True)
        if self.files.failure is not None:
            raise self.files.failure

    def load(self, folder: Path) -> None:
        """See :meth:`TorchBackend.load`."""
        configured = hyperparameters(self._adam())
        self.engine.load_checkpoint(str(folder), tag="deepspeed", load_module_strict=False)
        set_hyperparameters(self._adam(), self.engine.lr_scheduler, configured)
        if self.stage:
            self.engine.optimizer.clip_grad = self.section.max_grad_norm  # ZeRO keeps it in its state


def _offloaded() -> list[Any]:
    """What DeepSpeed moves to the host in an engine's turn: all but the weights, which are sent."""
    from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as States

    return [States.optim_states, States.hp_params, States.lp_grads, States.contiguous_grad_buffer]


def tensor_files() -> Any:
    """How DeepSpeed's engine reads and writes the files of a checkpoint: its own way unpickles them, which runs what is in them."""
    import_deepspeed()
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    allowed = (LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address)  # plain data, a part of ZeRO's states

    class TensorFiles(TorchCheckpointEngine):  # type: ignore[misc]
        failure: OSError | None = None

        def save(self, state_dict: Any, path: str) -> None:
            try:
                write_tensors(Path(path), state_dict)
            except OSError as error:
                self.failure = error

        def load(self, path: str, map_location: Any = None) -> Any:
            return read_tensors(Path(path), allowed)

    return TensorFiles()


def check_deepspeed_options(options: Mapping[str, Any], bf16: bool) -> None:
    """Refuses keys that rlkit sets from its own sections, so that no value is silently overridden.

    ``bf16``: ``model.dtype`` is bfloat16.
    """
    taken = sorted(OURS & set(options))
    if taken:
        raise ConfigError(
            f"deepspeed.{taken[0]}: rlkit sets this itself. Use learner.max_tokens, learner.minibatches, "
            "learner.max_grad_norm, learner.lr, learner.schedule and model.dtype instead."
        )
    low = options.get("bf16") or {}
    if not isinstance(low, Mapping):
        raise ConfigError(f"deepspeed.bf16 is {low!r:.100}; it must be a mapping. Leave it out: model.dtype says it.")
    if low.get("enabled", bf16) is not bf16:
        raise ConfigError(
            f"deepspeed.bf16.enabled is {low['enabled']!r:.20}, and model.dtype {'bfloat16' if bf16 else 'float32'}. Set model.dtype alone."
        )
    for key in ("bf16_master_weights_and_grads", "bf16_optimizer_states"):
        if low.get(key):
            raise ConfigError(
                f"deepspeed.bf16.{key} needs DeepSpeed's own Adam, and rlkit trains float32 masters with torch's AdamW. Leave it out."
            )
    for section, key in (("bf16", "check_grad_overflow"), ("zero_optimization", "compute_grad_norm")):
        inside = options.get(section)
        if isinstance(inside, Mapping) and inside.get(key) is False:
            raise ConfigError(
                f"deepspeed.{section}.{key} is false: DeepSpeed would step on gradients that are not finite. Leave it out."
            )
    for key in UNPICKLES:
        if key in options:
            raise ConfigError(
                f"deepspeed.{key}: rlkit reads and writes checkpoints itself. Remove it; see the section checkpoint."
            )


def import_deepspeed() -> Any:
    """DeepSpeed, quiet, without the just-in-time build of its shared-memory collective."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
        from deepspeed.utils import logger
    except ImportError:
        raise ConfigError(f"deepspeed is not installed. {install('cpu', 'gpu')}.") from None
    logger.setLevel("ERROR")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if "deepspeed.runtime.zero.muon.original_muon" not in sys.modules:
        # ZeRO imports its Muon, which nobody uses here, to look at it; as it decorates, that would import torch's compiler (1 s).
        usual, deepspeed.runtime.compiler.compile = (
            deepspeed.runtime.compiler.compile,
            lambda: lambda function: function,
        )
        try:
            import deepspeed.runtime.zero.muon.original_muon
        finally:
            deepspeed.runtime.compiler.compile = usual
    return deepspeed


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, the variables that torch.distributed and DeepSpeed read are those of the only rank; then they are the caller's again.

    Only ``LOCAL_RANK`` stays, if the caller has none: ZeRO-3 reads it in its passes.
    """
    os.environ.setdefault("LOCAL_RANK", "0")
    ours = rank_environment(0, 1, "127.0.0.1", free_port())
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def rank_environment(rank: int, world: int, address: str, port: int) -> dict[str, str]:
    """What torch.distributed and DeepSpeed read; each rank is alone on its device."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": "0",
        "LOCAL_SIZE": "1",
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def in_buckets(parameters: Iterable[tuple[str, int]], limit: int) -> Iterator[list[str]]:
    """Groups names so that each group holds about ``limit`` bytes, in order."""
    bucket: list[str] = []
    size = 0
    for name, nbytes in parameters:
        if bucket and size + nbytes > limit:
            yield bucket
            bucket, size = [], 0
        bucket.append(name)
        size += nbytes
    if bucket:
        yield bucket
