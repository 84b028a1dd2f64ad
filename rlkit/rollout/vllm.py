"""vLLM in this process, stepped by one background thread.

Requests and weight updates reach the thread through a queue, so an update always happens between two steps of the engine, and
concurrent callers are batched continuously. The same class serves a notebook and a Ray actor.
"""

from __future__ import annotations

import copy
import functools
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from rlkit.distribution import install
from rlkit.errors import ConfigError, EngineError
from rlkit.model.endings import Endings
from rlkit.model.load import load_tokenizer
from rlkit.model.reference import Told, gathered
from rlkit.rollout.engine import (
    Aborted,
    Engine,
    EngineSetup,
    EngineSpec,
    Pending,
    UpdateMode,
    check_length,
    request_seed,
)
from rlkit.types import Prompt, Rollout, Sampling


def environment() -> dict[str, str]:
    """Variables that must be set before vLLM is imported."""
    import torch

    env = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not torch.cuda.is_available():
        # Compilation costs more than a small model gains from it on a CPU.
        env["TORCHDYNAMO_DISABLE"] = "1"
        # oneDNN keeps the code that it makes for each size of a batch, 1,024 pieces of it. With the last few an engine is as fast.
        env["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "64"
    return env


def require_vllm() -> None:
    """Imports vLLM, with the variables that it reads then.

    Raises:
        ConfigError: why it could not be imported, and what to install.
    """
    for key, value in environment().items():
        os.environ.setdefault(key, value)
    try:
        import vllm.config
        import vllm.engine.arg_utils
        import vllm.v1.engine.llm_engine  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"vLLM could not be imported ({error}). {install('cpu', 'gpu')}, or set rollout.engine: hf."
        ) from None


def check_options(options: Mapping[str, Any]) -> None:
    """Refuses a ``vllm:`` section that contradicts what training needs.

    Raises:
        ConfigError: the option, and where to set it instead.
    """
    if options.get("logprobs_mode", "processed_logprobs") != "processed_logprobs":
        raise ConfigError(
            f"vllm.logprobs_mode is {options['logprobs_mode']!r}; rlkit needs processed_logprobs: log-probs of the "
            "distribution that was sampled from, after temperature and top-p."
        )
    if options.get("trust_remote_code"):
        raise ConfigError(
            "vllm.trust_remote_code: rlkit executes no code of a model: the learner would train another model than vLLM samples from. "
            "Leave it out."
        )
    for key, where in (
        ("model", "model.path"),
        ("seed", "seed"),
        ("dtype", "model.dtype"),
        ("max_model_len", "rollout.max_model_len"),
        ("tensor_parallel_size", "cluster.tensor_parallel"),
        ("weight_transfer_config", "nothing: rlkit sets it"),
    ):
        if key in options:
            raise ConfigError(f"vllm.{key}: rlkit sets this itself; use {where}.")


def engine_arguments(
    model: str, *, seed: int, dtype: str, max_model_len: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What vLLM's EngineArgs get: defaults of rlkit, then the user's ``vllm:`` section, which :func:`check_options` may refuse."""
    import torch

    check_options(options)
    defaults: dict[str, Any] = {"disable_log_stats": True}
    if not torch.cuda.is_available():
        # A prompt that is cut in two draws a token too much, which vLLM can take back on GPUs only.
        defaults |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": 64 << 20,
            "block_size": 32,
            "enable_chunked_prefill": False,
        }
    return {
        **defaults,
        "model": model,
        "seed": seed,
        "dtype": dtype,
        "max_model_len": max_model_len,
        "logprobs_mode": "processed_logprobs",
        **options,
    }


def _parameters(**settings: Any) -> Any:
    """vLLM's SamplingParams of a request that is answered once, when it is complete."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **settings)


class VLLMEngine(Engine):
    """See :class:`rlkit.rollout.engine.Engine`."""

    def __init__(
        self,
        model: str,
        *,
        seed: int = 0,
        dtype: str = "float32",
        max_model_len: int = 1024,
        options: Mapping[str, Any] | None = None,
        tensor_parallel: int = 1,
        transfer: str = "store",
        sleeps: bool = False,
    ) -> None:
        import torch

        super().__init__()
        arguments = engine_arguments(model, seed=seed, dtype=dtype, max_model_len=max_model_len, options=options or {})
        require_vllm()
        from vllm.config import WeightTransferConfig
        from vllm.engine.arg_utils import EngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.llm_engine import LLMEngine

        from rlkit.rollout.vllm_weights import BACKENDS, Extension, classes_unchanged, decoder_class

        self.limit = max_model_len
        if sleeps and torch.cuda.is_available():
            arguments["enable_sleep_mode"] = True
        if tensor_parallel > 1 and not torch.cuda.is_available():
            # vLLM would bind each process to a NUMA node of its own, and not start where there are fewer.
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        self.endings = Endings.of(model, load_tokenizer(model))
        try:
            with classes_unchanged(decoder_class(model)):
                # vLLM's batch sizes for throughput; `vllm: {max_num_seqs: ...}` sets others.
                self.engine = LLMEngine.from_engine_args(
                    EngineArgs(
                        tensor_parallel_size=tensor_parallel,
                        weight_transfer_config=WeightTransferConfig(backend=BACKENDS[transfer][0]),
                        **{"worker_extension_cls": f"{Extension.__module__}.{Extension.__qualname__}", **arguments},
                    ),
                    usage_context=UsageContext.LLM_CLASS,
                )
        except (TypeError, ValueError) as error:  # an unknown option, or one that vLLM refuses for this model
            raise ConfigError(f"vllm: {' '.join(str(error).split())[:500]}") from error
        except Exception as error:  # whatever vLLM makes of a model that it does not know, or knows otherwise
            raise EngineError(
                f"vLLM could not start with the model in {model}: {type(error).__name__}: {' '.join(str(error).split())[:300]}. Set "
                "rollout.engine: hf, or look at the vllm: options."
            ) from error
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: dict[str, Future[Any]] = {}
        self._pending = Pending()
        self._held: list[Callable[[], None]] = []
        self._updating, self._mode = False, "wait"
        self._ids = itertools.count()
        self._set_version(0)
        self._thread = threading.Thread(target=self._loop, name="vllm", daemon=True)
        self._thread.start()

    # -- the engine's thread ----------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            running = self.engine.has_unfinished_requests() and not self._updating
            try:
                while True:
                    job = self._inbox.get(block=not running)
                    if job is None:
                        return
                    job()
                    running = self.engine.has_unfinished_requests() and not self._updating
            except queue.Empty:
                pass
            try:
                self._step()
            except Exception as error:  # the engine is lost: tell every caller instead of hanging them
                self._pending.fail(EngineError(f"vLLM failed: {type(error).__name__}: {error}"))
                return

    def _step(self) -> None:
        start = time.perf_counter()
        outputs = self.engine.step()
        self.work.busy += time.perf_counter() - start
        self.work.steps += 1
        for output in outputs:
            if output.finished and output.request_id in self._waiting:
                self._waiting.pop(output.request_id).set_result(output)

    def _submit(self, job: Callable[[], Any]) -> Any:
        """Runs ``job`` on the engine's thread and returns its result."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(job())
            except Exception as error:
                future.set_exception(error)

        return self._pending.wait(future, lambda: self._inbox.put(run))

    # -- requests ---------------------------------------------------------------------------------------------------

    def generate(self, prompt: Prompt, n: int, sampling: Sampling) -> list[Rollout]:
        check_length(prompt, sampling, self.limit)

        def params() -> Any:  # made when the request is admitted: the seed knows the version
            return _parameters(
                n=n if sampling.temperature > 0 else 1,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k or -1,
                max_tokens=sampling.max_tokens,
                stop=list(sampling.stop) or None,
                stop_token_ids=sorted(self.endings.ids),
                skip_special_tokens=False,  # stop strings are looked for in the text that rewards see
                detokenize=bool(sampling.stop),
                logprobs=0,
                flat_logprobs=True,  # a list, in place of a dictionary and an object for each token
                seed=request_seed(sampling, prompt, self.version),
            )

        output = self._request(prompt.token_ids, params)
        choices = sorted(output.outputs, key=lambda c: c.index)
        # Greedy responses are all the same.
        rollouts = [self._rollout(prompt, choices[i % len(choices)], sampling.stop) for i in range(n)]
        self.work.tokens += sum(len(r.tokens) for r in rollouts)
        return rollouts

    def _request(self, token_ids: Sequence[int], params: Callable[[], Any]) -> Any:
        future: Future[Any] = Future()
        admit = functools.partial(self._admit, str(next(self._ids)), future, list(token_ids), params)
        return self._pending.wait(future, lambda: self._inbox.put(admit))

    # No function within `_request`: one that names itself is a cycle, which keeps its request's output until Python collects garbage.
    def _admit(self, name: str, future: Future[Any], token_ids: list[int], params: Callable[[], Any]) -> None:
        if self._updating:  # new requests belong to the new weights
            self._held.append(functools.partial(self._admit, name, future, token_ids, params))
            return
        self._waiting[name] = future
        try:
            # The salt keeps new requests from blocks of older weights, which running ones still hold under `keep`.
            self.engine.add_request(name, {"prompt_token_ids": token_ids, "cache_salt": f"v{self.version}"}, params())
        except Exception as error:
            self._waiting.pop(name)
            future.set_exception(ConfigError(f"vLLM refused the request: {error}"))

    def _rollout(self, prompt: Prompt, c: Any, stop: Sequence[str]) -> Rollout:
        tokens = list(c.token_ids)
        version = [self.version] * len(tokens)
        for span in c.weight_versions or ():
            version[span.start : span.end] = [int(span.version)] * (span.end - span.start)
        finish = {"stop": "stop", "length": "length"}.get(c.finish_reason, "abort")
        logp = list(c.logprobs.logprobs) if tokens else []  # of the sampled tokens, and no others
        text = self.endings.text(tokens, stop)
        return Rollout(prompt, tokens, [True] * len(tokens), logp, version, finish, text=text)  # type: ignore[arg-type]

    def score(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        out = []
        for r in rollouts:
            ids = [*r.prompt.token_ids, *r.tokens]
            params = _parameters(max_tokens=1, prompt_logprobs=0, temperature=0.0)
            answer = self._request(ids, functools.partial(copy.copy, params))
            first = len(r.prompt.token_ids)
            out.append([answer.prompt_logprobs[t][ids[t]].logprob for t in range(first, len(ids))])
        return out

    def likely(self, rows: Sequence[Sequence[int]], k: int) -> tuple[Tensor, Tensor, Tensor]:
        params = _parameters(max_tokens=1, prompt_logprobs=k, temperature=0.0, detokenize=False)

        def told(ids: Sequence[int]) -> list[Told]:
            given = self._request(ids, functools.partial(copy.copy, params)).prompt_logprobs
            return [
                None if entry is None else (token, {i: x.logprob for i, x in entry.items()})
                for token, entry in zip(ids, given, strict=True)
            ]

        with ThreadPoolExecutor(len(rows)) as waiting:
            logp, top = gathered(list(waiting.map(told, rows)), k)
        return logp, top.ids, top.logp

    # -- weights ----------------------------------------------------------------------------------------------------

    def begin_update(self, mode: UpdateMode) -> None:
        def pause() -> None:
            while mode == "wait" and self.engine.has_unfinished_requests():
                self._step()
            self._settle()
            if mode == "abort":
                self._abort()
            if self._updating:
                self.engine.collective_rpc("abandon_weight_update")
            self._updating, self._mode = True, mode
            self.engine.collective_rpc("start_weight_update")

        self._submit(pause)

    def _settle(self) -> None:
        """With asynchronous scheduling (GPUs) a batch may run between two steps of the engine: its tokens belong to the old weights."""
        from vllm.v1.core.sched.interface import PauseState

        client: Any = self.engine.engine_core
        core = client.engine_core
        if not core.batch_queue:
            return
        core.scheduler.set_pause_state(PauseState.PAUSED_ALL)  # or every step would start another batch
        while core.batch_queue:
            self._step()
        core.scheduler.set_pause_state(PauseState.UNPAUSED)

    def _abort(self) -> None:
        waiting, self._waiting = self._waiting, {}
        self.engine.abort_request(list(waiting))
        for future in waiting.values():
            future.set_exception(Aborted("the request was aborted by a weight update"))

    def assign(self, tensors: Mapping[str, Tensor]) -> None:
        self.receive({"tensors": dict(tensors)})

    def meet(self, info: Mapping[str, Any]) -> None:
        """Joins the learner's group as vLLM's ``init_weight_transfer_engine`` has it."""
        self._submit(
            lambda: self.engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": dict(info)})
        )

    def receive(self, info: Mapping[str, Any]) -> None:
        """Takes weights as vLLM's ``update_weights`` has it: those in ``info``, or what it announces."""
        self._submit(lambda: self.engine.collective_rpc("update_weights", kwargs={"update_info": dict(info)}))

    def end_update(self, version: int) -> None:
        def resume() -> None:
            self.engine.collective_rpc("finish_weight_update")
            self._set_version(version)
            # Preempted requests keep their tokens and the state of their random generator; their cache is computed again.
            self.engine.reset_prefix_cache(reset_running_requests=self._mode != "keep")
            self._updating = False
            held, self._held = self._held, []
            for admit in held:
                admit()

        self._submit(resume)

    def sleep(self, level: int) -> None:
        """Gives up its memory of the device: 1, weights to the host; 2, altogether. Nothing runs then. A CPU's engine keeps all."""

        def rest() -> None:
            self._settle()
            if self._updating:  # an update that was broken off: the next one begins anew
                self.engine.collective_rpc("abandon_weight_update")
                self._updating = False
            self.engine.sleep(level)

        self._submit(rest)

    def wake(self, tags: Sequence[str] | None) -> None:
        """Takes memory again: ``weights``, ``kv_cache`` or all; with the last of it, the engine runs again."""
        self._submit(lambda: self.engine.wake_up(None if tags is None else list(tags)))

    def abort(self) -> None:
        """Ends what it works on: whoever waits for it hears :class:`Aborted`."""
        self._submit(self._abort)

    def _set_version(self, version: int) -> None:
        self.version = version
        self.engine.set_weight_version(str(version))

    def ready(self) -> dict[str, Any]:
        return {"engine": "vllm", "max_model_len": self.limit}

    def close(self) -> None:
        self._inbox.put(None)
        self._thread.join(10)
        self._pending.fail(EngineError("the engine was closed"))
        # Now, and not when it is collected: it takes vLLM's state of the whole process along, which a next engine has made anew by then.
        self.engine.engine_core.shutdown()


@dataclass(frozen=True)
class VLLM(EngineSpec):
    """``rollout.engine: vllm``; its settings are the section ``vllm``."""

    lasting = True
    meets = True
    rests = True
    label = "vllm"
    runs: ClassVar[type[VLLMEngine]] = VLLMEngine

    def start(self, setup: EngineSetup) -> VLLMEngine:
        return self.runs(
            setup.path,
            seed=setup.seed,
            dtype=setup.dtype,
            max_model_len=setup.max_model_len,
            options=setup.options,
            tensor_parallel=setup.tensor_parallel,
            transfer=setup.transfer,
            sleeps=setup.sleeps,
        )

    def prepare(self) -> None:
        require_vllm()
        import vllm.model_executor.model_loader
        import vllm.v1.worker.gpu_worker  # noqa: F401

    def environment(self) -> dict[str, str]:
        return environment()
