"""From a run and its GPUs to a report: the run's own layout, the fastest layout that fits, and how throughput grows with the cluster."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.cluster.section import Cluster
from rlkit.data.examples import read_examples
from rlkit.data.prompts import load_prompts
from rlkit.errors import ConfigError, InputError, first_line
from rlkit.learner.plan import micro_batch
from rlkit.model.hub import model_config
from rlkit.model.load import untrainable
from rlkit.model.reference import Frozen
from rlkit.objective.full_vocab import WholeVocabulary
from rlkit.planning import speed
from rlkit.planning.memory import BYTES, GIB, Budget, SecondModel, Shape, Sharding, engine_memory, learner_memory, shape
from rlkit.planning.simulate import EngineModel, LearnerModel, LogNormal, Trace, Workload, simulate
from rlkit.planning.speed import Assumptions, Gpu, find_gpu
from rlkit.record.plots import Style, picture
from rlkit.run import Run
from rlkit.start import made, tokenizer_of

SIZES = tuple(2**k for k in range(11))
FIRST_ROWS = 256  # prompts whose lengths are measured


@dataclass(frozen=True)
class Layout:
    """Who gets which GPU.

    ``shared``: engine and learner on one device in one process (``cluster: null``). ``turns``: an engine beside each learner, which take
    turns (``cluster.colocate``). ``part``: of a GPU that each learner and each engine's device reserves (``cluster.gpus``); below 1 they
    share devices without taking turns. ``sharing``: learners that share each row (``learner.sequence_parallel``).
    """

    learners: int
    engines: int
    tensor_parallel: int
    sharding: Sharding
    checkpointing: bool
    max_tokens: int
    utilization: float
    shared: bool = False
    turns: bool = False
    part: float = 1.0
    sharing: int = 1

    @property
    def parts(self) -> int:
        """Groups of learners with rows of their own."""
        return max(1, self.learners // self.sharing)

    @property
    def actors(self) -> int:
        """Learners, and devices of engines."""
        return self.learners + self.engines * self.tensor_parallel

    @property
    def seats(self) -> int:
        """How many of them Ray puts on one GPU."""
        return max(1, int(1 / self.part + 1e-9)) if self.part else self.actors

    @property
    def gpus(self) -> int:
        """Devices that are taken: of three actors that reserve 0.4 each, two share one and the third needs another."""
        if self.shared or self.turns:
            return self.learners
        return math.ceil(self.actors / self.seats) if self.part < 1 else math.ceil(self.actors * self.part - 1e-9)

    @property
    def beside(self) -> tuple[int, int]:
        """The most engines and learners that a learner may find on its own GPU; Ray does not say who sits where."""
        others = 0 if self.shared or self.turns else min(self.seats, self.actors) - 1
        engines = min(others, self.engines * self.tensor_parallel)
        return engines, min(others - engines, self.learners - 1)

    def keys(self) -> str:
        """What to write on the command line."""
        z = self.sharding.options()
        engines = (
            f" cluster.engines={self.engines} cluster.tensor_parallel={self.tensor_parallel}" if self.engines else ""
        )
        turns = " cluster.colocate=true" if self.turns else ""
        part = "" if self.part == 1 else f" cluster.gpus={self.part:g}"
        where = "cluster=null" if self.shared else f"cluster.learners={self.learners}{engines}{turns}{part}"
        zero = (
            "deepspeed=null"
            if z is None
            else "deepspeed=" + json.dumps(z).replace('"', "").replace(" ", "").replace(":", ": ")
        )
        zero = zero if " " not in zero else f"'{zero}'"
        zero += "" if self.sharing == 1 else f" learner.sequence_parallel={self.sharing}"
        return (
            f"{where} {zero} learner.gradient_checkpointing={str(self.checkpointing).lower()} learner.max_tokens={self.max_tokens}"
            + (
                f" vllm.gpu_memory_utilization={self.utilization:g}"
                if self.turns or (self.shared and self.engines)
                else ""
            )
        )


@dataclass(frozen=True)
class Estimate:
    """One layout: its memory, and its seconds of one step."""

    layout: Layout
    learner: Budget
    engine: Budget
    kv: dict[str, float]
    seconds: dict[str, float]
    workload: Workload
    engine_model: EngineModel
    learner_model: LearnerModel
    loaded: float  # bytes of the model that every rank reads into host memory first

    @property
    def fits(self) -> bool:
        return self.learner.over <= 0 and self.engine.over <= 0

    @property
    def step(self) -> float:
        """Without the simulation: stages one after the other, or the slower one with ``max_lag``."""
        s = self.seconds
        both = (
            s["generate"] + s["learner"]
            if not self.workload.max_lag or self.layout.shared or self.layout.turns
            else max(s["generate"], s["learner"])
        )
        return both + s["sync"]

    def learner_host(self) -> float:
        """Bytes of host memory of one rank, at the start or later."""
        return max(self.loaded, self.learner.host)

    def simulate(self, max_lag: int | None = None, steps: int = 9) -> Trace:
        w = self.workload if max_lag is None else dataclasses.replace(self.workload, max_lag=max_lag)
        return simulate(
            w,
            self.layout.engines,
            self.engine_model,
            self.learner_model,
            steps=steps,
            shared=self.layout.shared or self.layout.turns,
        )


class Planner:
    """Everything of a run that does not depend on its layout."""

    def __init__(
        self,
        run: Run,
        gpu: Gpu,
        gpus_per_node: int,
        config: Any,
        prompt_tokens: float | None,
        mean_length: float | None,
        assumptions: Assumptions,
        turns: float | None = None,
    ) -> None:
        self.run, self.gpu, self.per_node, self.a = run, gpu, gpus_per_node, assumptions
        need = run.needs
        own = self._own_config() if config is None else config
        own = model_config(own, "model.path") if isinstance(own, str) else own
        self.unfit = untrainable(own, run.model.path or type(own).__name__)
        self.shape = shape(own, run.peft, "value" in need)
        plain = self.shape if run.peft is None else shape(own)
        given, untold = ([], None) if run.online else row_lengths(run)
        asked = run.sampling.max_tokens if run.rollout.lengths is None else run.rollout.lengths.limits[-1]
        self.limit = max((response for _, response in given), default=asked)
        self.max_tokens = micro_batch(run.learner.max_tokens, "cuda", self.shape.width)
        found = [prompt for prompt, _ in given]
        if run.online and prompt_tokens is None:
            found, untold = prompt_lengths(run)
        self.measured, self.untold = len(found) or None, untold  # prompts
        self.prompt_longest = max(found, default=run.data.max_prompt_tokens)
        context = run.rollout.max_model_len or self.shape.context
        # All answers of an episode are counted as one response: they are sampled one after another, and trained on in one context.
        self.turns = _turns(run, turns, context - self.prompt_longest)
        self.limit = min(math.ceil(self.turns * self.limit), max(self.limit, context - self.prompt_longest))
        self.longest = min(context, self.prompt_longest + self.limit)
        if prompt_tokens is not None:
            self.prompt = prompt_tokens
        elif found:
            self.prompt = sum(found) / len(found)
        else:
            self.prompt = assumptions.prompt_share * run.data.max_prompt_tokens
        usual = sum(n for _, n in given) / len(given) if given else assumptions.mean_share * self.limit
        self.mean = max(1.0, usual) if mean_length is None else self.turns * mean_length
        self.entropy = "entropy" in need
        self.whole = any(isinstance(t, WholeVocabulary) for t in run.objective)
        self.anchors: dict[str, SecondModel] = {}
        before = run.passes
        self._found: dict[tuple[int, bool, bool], tuple[Estimate | None, Estimate]] = {}
        self.passes = 1.0 if {"old", "value"} & set(before) else 0.0
        for name, spec in (("ref", run.reference), ("teacher", run.teacher)):
            if spec is None or not need & {name, f"{name}_full"} or spec.kept is not None:
                continue
            again = (
                run.learner.epochs
                if any(isinstance(t, WholeVocabulary) and t.anchor == name for t in run.objective)
                else 0
            )
            for k, part in enumerate(spec.held):
                path = next(iter(part.models), None)
                anchor = plain if path is None else self._second(path, name)
                by_switching_off = isinstance(part, Frozen) and path is None and run.peft is not None  # the adapter
                if not by_switching_off:
                    label = name if len(spec.held) == 1 else f"{name} {k + 1}"
                    own = part.dtype if isinstance(part, Frozen) else None
                    self.anchors[label] = SecondModel(anchor, part.offload, BYTES[own or run.model.dtype])
                self.passes += anchor.active / self.shape.active * ((name in before) + again)

    def _second(self, path: str, name: str) -> Shape:
        """The shape of a model beside the policy."""
        config = model_config(path, name)
        self.unfit = self.unfit or untrainable(config, path)
        return shape(config)

    def _own_config(self) -> Any:
        run = self.run
        if run.model.path is not None:
            return run.model.path
        from transformers import AutoConfig

        with tempfile.TemporaryDirectory() as folder:
            made(run, folder)
            return AutoConfig.from_pretrained(folder)

    def known(self, prompt_tokens: float | None) -> str:
        """Where the length of prompts is from."""
        if prompt_tokens is not None:
            return "given"
        if self.measured is not None:
            return f"measured on {self.measured} prompts"
        return f"assumed: {self.a.prompt_share:.0%} of data.max_prompt_tokens"

    def answers(self, turns: float | None, text: str) -> str:
        """``text`` about the length of a response, as one of all answers of an episode where there are several."""
        if self.run.rollout.episode is None:
            return f"responses of {text}"
        known = "assumed: as many as fit" if turns is None else "given"
        return f"episodes of {self.turns:g} answers ({known}) and {text} tokens"

    def asked(self) -> Layout:
        """The layout that the run's configuration says."""
        run, c = self.run, self.run.cluster
        ranks = c.learners if c else 1
        return Layout(
            ranks,
            (c.engines if c else 1) if run.online else 0,
            c.tensor_parallel if c else 1,
            Sharding.of(run.deepspeed, ranks),
            run.learner.gradient_checkpointing,
            self.max_tokens,
            float(run.vllm.get("gpu_memory_utilization", 0.92)) if run.online else 0.0,
            c is None,
            c is not None and c.colocate,
            1.0 if c is None or c.gpus is None or c.colocate else c.gpus,
            run.learner.sequence_parallel,
        )

    def layouts(self, gpus: int, turns: bool = False) -> Iterator[Layout]:
        """All layouts of ``gpus`` devices that are worth a look; ``turns``: those in which engines and learners share all of them."""
        run, s = self.run, self.shape
        base, per_node = Sharding.of(run.deepspeed or {}, 1), self.per_node
        floor = min(self.longest, self.max_tokens)  # one row is never cut
        sizes = sorted({max(floor, self.max_tokens >> k) for k in range(12)}, reverse=True)
        utilization = float(run.vllm.get("gpu_memory_utilization", 0.92))
        places: list[tuple[int, int, int, float, bool]] = []
        if not run.online:
            places = [(gpus, 0, 1, 0.0, gpus == 1)]
        elif turns:  # what is free depends on what learners keep, by stage
            free = {(self.a.capacity(self.gpu) - self.kept(gpus, stage)) / self.gpu.memory for stage in (1, 3)}
            places = [(gpus, gpus, 1, max(0.1, math.floor(100 * u) / 100), False) for u in sorted(free, reverse=True)]
        elif gpus == 1:
            places = [(1, 1, 1, u, True) for u in (0.8, 0.6, 0.45, 0.3, 0.2, 0.1)]
        apart = run.online and not turns
        for tp in (t for t in (1, 2, 4, 8, 16) if apart and t <= min(per_node, gpus - 1) and s.heads % t == 0):
            for learners in sorted({max(1, round(gpus * k / 8)) for k in range(8)}):
                if gpus - learners >= tp:
                    places.append((learners, (gpus - learners) // tp, tp, utilization, False))
        for learners, engines, tp, u, shared in places:
            stages: list[int | None] = (
                [1, 2, 3] if run.model.dtype == "bfloat16" else [None] if learners == 1 else [0, 1, 2, 3]
            )
            for stage, away, checkpointing, size in itertools.product(stages, (0, 1, 2), (False, True), sizes):
                if (away and not stage) or (away == 2 and stage != 3):
                    continue
                # States that DeepSpeed does not move to the host, as `rlkit.checks` has it.
                if turns and not away and (stage == 3 or (stage == 1 and run.model.dtype == "bfloat16")):
                    continue
                z = dataclasses.replace(
                    base, stage=stage, ranks=learners, offload_optimizer=away > 0, offload_params=away > 1
                )
                # Where one rank has room for the longest row, sharing it costs an exchange and gains nothing.
                for sharing in self._sharing(learners) if size == sizes[-1] else (1,):
                    yield Layout(learners, engines, tp, z, checkpointing, size, u, shared, turns, sharing=sharing)

    def _sharing(self, learners: int) -> list[int]:
        """How many of so many learners could share a row."""
        s, alone = self.shape, self.whole or self.run.learner.packed is False
        return [
            n
            for n in (1, 2, 4, 8)
            if n == 1
            or (not alone and learners % n == 0 and s.heads % n == 0 and (s.kv_heads % n == 0 or n % s.kv_heads == 0))
        ]

    @property
    def groups(self) -> int:
        """Prompts of one step, with the rows of data that join it."""
        return self.run.rollout.prompts + sum(s.per_step for s in self.run.data.offline)

    @property
    def sampled(self) -> int:
        """Responses of one step that engines make."""
        return self.run.rollout.prompts * self.run.rollout.n

    @property
    def responses(self) -> int:
        """Of one step, with those of data."""
        return self.sampled + sum(s.per_step * len(s.sources) for s in self.run.data.offline)

    @property
    def spread(self) -> float:
        """Tokens of the response that a token is of, on average over all tokens: ``E[l^2] / E[l]`` of a log-normal."""
        return min(self.mean * math.exp(self.a.sigma**2), self.limit)

    def estimate(self, x: Layout) -> Estimate:
        """What a layout needs on its devices, and the seconds of its step."""
        engine, kv = Budget("no engine", self.a.capacity(self.gpu), {"training": {}}), dict[str, float]()
        engine_model = EngineModel(0.0, 0.0, 0.0, 0.0, 1)
        if x.engines:
            engine, kv = self._engine_memory(x)
            engine_model = self._engine_model(x, kv["sequences at the mean length"])
        parts = self._learner_seconds(x)
        # Ranks without a row wait for the others.
        learned = parts["total"] * math.ceil(self.responses / x.parts) * x.parts / self.responses
        sync = self._sync_seconds(x)
        tokens = self.responses * (self.prompt + self.mean)
        return Estimate(
            layout=x,
            learner=self._learner_memory(x),
            engine=engine,
            kv=kv,
            seconds={
                "generate": self._generate_seconds(x, engine_model) if x.engines else 0.0,
                "learner": learned,
                "sync": sync,
                **{f"learner: {k}": v for k, v in parts.items() if k != "total"},
            },
            workload=self._workload(),
            engine_model=engine_model,
            learner_model=LearnerModel(parts["optimizer"], (learned - parts["optimizer"]) / tokens, sync),
            loaded=0.0
            if x.sharding.stage == 3 and not self.shape.lora
            else BYTES[self.run.model.dtype] * self.shape.parameters,
        )

    def _learner_memory(self, x: Layout) -> Budget:
        run = self.run
        most = math.ceil(self.responses / run.learner.minibatches / x.parts)
        rows = max(1.0, min(max(x.max_tokens, self.longest) / self.longest, most))
        micro = rows * self.longest
        engine_share = x.utilization * self.gpu.memory if x.shared else self.a.asleep if x.turns else 0.0
        engines, learners = x.beside
        room = self.a.capacity(self.gpu) - engine_share - engines * x.utilization * self.gpu.memory
        return learner_memory(
            self.shape,
            x.sharding,
            dtype=run.model.dtype,
            tokens=micro,
            actions=micro * min(1.0, self.limit / self.longest),
            longest=self.longest,
            capacity=room / (1 + learners),
            checkpointing=x.checkpointing,
            attention=run.model.attention,
            anchors=self.anchors,
            entropy=self.entropy,
            whole_vocabulary=self.whole,
            bucket=(run.cluster or Cluster()).bucket_bytes,
            sharing=x.sharing,
        )

    def _engine_memory(self, x: Layout) -> tuple[Budget, dict[str, float]]:
        seats, batched = speed.batch_sizes(self.gpu)  # vLLM's own
        kept = self.kept(x.learners, x.sharding.stage) if x.turns else 0.0
        return engine_memory(
            self.shape,
            dtype=self.run.model.dtype,
            capacity=self.a.capacity(self.gpu) - kept,
            device=self.gpu.memory,
            utilization=x.utilization,
            tensor_parallel=x.tensor_parallel,
            max_seqs=int(self.run.vllm.get("max_num_seqs", seats)),
            batched_tokens=int(self.run.vllm.get("max_num_batched_tokens", batched)),
            mean=self.prompt + self.mean,
            longest=self.longest,
            beside=x.turns,
        )

    def kept(self, learners: int, stage: int | None) -> float:
        """Bytes that a learner keeps in an engine's turn: its weights, which are sent, and those of models beside it."""
        shards = learners if stage == 3 else 1
        beside = sum(a.bytes for a in self.anchors.values() if not a.offload)
        return BYTES[self.run.model.dtype] * self.shape.parameters / shards + beside

    def _engine_model(self, x: Layout, running: float) -> EngineModel:
        """How fast one engine is; ``running``: the sequences that its cache has room for."""
        dtype, tp = self.run.model.dtype, x.tensor_parallel
        base, per_sequence, per_context = speed.decode_step(
            self.shape, self.gpu, self.a, dtype, tp, self.prompt + self.spread / 2
        )
        prefill = speed.prefill_seconds(self.shape, self.gpu, self.a, tp, self.prompt)
        return EngineModel(base, per_sequence, per_context, prefill, max(1, int(running)))

    def _generate_seconds(self, x: Layout, engine: EngineModel) -> float:
        """Prompts, then as many steps as the longest response has tokens (or as the waves have that take turns), then each token's own."""
        each = self.sampled / x.engines
        longest = min(self.limit, self.mean * math.exp(2.5 * self.a.sigma))
        waves = each / min(engine.max_running, each)
        return (
            self.run.rollout.prompts / x.engines * engine.prefill
            + engine.base * max(longest, waves * self.mean)
            + each * self.mean * (engine.per_sequence + engine.per_context * (self.prompt + self.spread / 2))
        )

    def _learner_seconds(self, x: Layout) -> dict[str, float]:
        section = self.run.learner
        tokens = self.responses * (self.prompt + self.mean)
        of_rank = tokens / section.minibatches / x.parts
        return speed.learner_seconds(
            self.shape,
            self.gpu,
            self.a,
            x.sharding,
            dtype=self.run.model.dtype,
            tokens=tokens,
            actions=self.responses * self.mean,
            length=self.prompt + self.spread,
            passes=self.passes,
            updates=section.epochs * section.minibatches,
            epochs=section.epochs,
            micros=max(1, math.ceil(of_rank / max(x.max_tokens, self.longest))),
            checkpointing=x.checkpointing,
            gpus_per_node=self.per_node,
            sharing=x.sharing,
        )

    @property
    def can_share(self) -> bool:
        """Whether engines and learners could take turns on their devices."""
        rollout = self.run.rollout
        return self.run.online and not rollout.max_lag and not rollout.over and rollout.kind.rests

    def _sync_seconds(self, x: Layout) -> float:
        dtype = self.run.model.dtype
        if not x.engines:
            return 0.0
        if x.turns:
            return speed.turn_seconds(self.shape, self.gpu, x.learners if x.sharding.stage else 1, dtype)
        nodes = math.ceil(x.engines * x.tensor_parallel / self.per_node)
        return speed.sync_seconds(self.shape, self.gpu, self.a, nodes, dtype)

    def _workload(self) -> Workload:
        """What a simulation makes again and again."""
        r = self.run.rollout
        return Workload(
            r.prompts,
            r.n,
            LogNormal(min(self.mean, self.limit), self.a.sigma, self.limit),
            self.prompt,
            r.max_lag,
            "keep" if r.pause in ("keep", "continue") else "wait",
            r.over,
            r.overtake,
        )

    def search(self, gpus: int, turns: bool = False) -> tuple[Estimate | None, Estimate]:
        """(the fastest layout that fits, or None; the layout that comes closest); ``turns``: of those that share devices."""
        key = gpus, self.run.rollout.max_lag > 0, turns
        if key not in self._found:
            all_of = [self.estimate(x) for x in self.layouts(gpus, turns)]
            if not all_of:
                raise ConfigError(f"--nodes, --gpus-per-node: {gpus} GPUs hold no engine and learner.")
            simple = min(
                (e for e in all_of if e.fits),
                default=None,
                key=lambda e: (
                    e.step,
                    e.layout.sharding.offload_optimizer,
                    e.layout.checkpointing,
                    e.layout.sharding.stage or 0,
                ),
            )
            self._found[key] = simple, min(all_of, key=lambda e: max(0.0, e.learner.over) + max(0.0, e.engine.over))
        best, closest = self._found[key]
        return best and self.estimate(best.layout), closest


def _turns(run: Run, given: float | None, room: int) -> float:
    """Answers of a response: 1, or of an episode those that are ``given``, or as many of ``sampling.max_tokens`` as there is ``room`` for.

    Raises:
        ConfigError: they are given, and nothing has several.
    """
    if run.rollout.episode is None:
        if given is not None:
            raise ConfigError("--turns counts the answers of an episode, and rollout.episode is not set. Leave it out.")
        return 1.0
    return max(1.0, float(room // run.sampling.max_tokens) if given is None else given)


def not_measured(why: str | None) -> list[str]:
    """The line of a report that says why lengths of prompts are assumed, where that is not the user's choice."""
    return [] if why is None else [f"prompts could not be measured, give --prompt-tokens: {why}"]


def prompt_lengths(run: Run) -> tuple[list[int], str | None]:
    """Tokens of the first prompts; none, and why, where the tokenizer or the data cannot be had from here."""
    data = dataclasses.replace(run.data, size=min(run.data.size or FIRST_ROWS, FIRST_ROWS))
    try:
        tokenizer = tokenizer_of(run)
        return [len(p.token_ids) for p in load_prompts(data, "train", tokenizer)], None
    except (InputError, OSError) as error:
        return [], first_line(error)


def row_lengths(run: Run) -> tuple[list[tuple[int, int]], str | None]:
    """Tokens of the prompt and of the response of the first rows of data; none, and why, where the tokenizer or the data cannot be had."""
    try:
        tokenizer, found = tokenizer_of(run), list[tuple[int, int]]()
        for spec in run.data.offline:
            few = dataclasses.replace(spec, size=min(spec.size or FIRST_ROWS, FIRST_ROWS), unusable="drop")
            rows = read_examples(run.data, few, "train", tokenizer, 0, None)
            found += [(len(e.prompt.token_ids), len(e.tokens)) for row in rows for e in row]
    except (InputError, OSError) as error:
        return [], first_line(error)
    return found, None


@dataclass(frozen=True)
class Plan:
    """The report; ``print(plan)``. ``asked`` is the run's own layout, ``best`` the fastest that fits, ``closest`` what comes nearest,
    ``together`` the fastest in which engines and learners share devices by turns; None where the run generates ahead, or none fits.
    """

    run: Run
    gpu: Gpu
    gpus: int
    shape: Shape
    assumptions: Assumptions
    lengths: str
    asked: Estimate
    asked_gpus: int
    best: Estimate | None
    closest: Estimate
    together: Estimate | None
    growth: tuple[tuple[int, int, float, float, float, float, str], ...]
    unfit: str | None = None  # why the model could not be trained
    untold: str | None = None  # why lengths of prompts could not be measured

    @property
    def fits(self) -> bool:
        """Whether the run fits as it is configured."""
        return self.asked.fits and self.asked_gpus <= self.gpus and not self.refused

    @property
    def refused(self) -> str | None:
        """Why the configured layout would not even start."""
        z = self.asked.layout.sharding
        if self.unfit is not None:
            return self.unfit
        if self.run.model.dtype == "bfloat16" and z.stage == 0:
            return "DeepSpeed refuses bfloat16 with float32 gradient sums under ZeRO-0: set deepspeed.zero_optimization.stage to 1, 2 or 3."
        if z.offload_params and z.stage != 3:
            return "deepspeed.zero_optimization.offload_param needs stage 3."
        return None

    def __str__(self) -> str:
        s, run = self.shape, self.run
        lora = f", {s.trainable / 1e6:.1f} M of them trained (LoRA)" if s.lora else ""
        usable = self.assumptions.capacity(self.gpu) / GIB
        out = [
            f"{run.name}: {s.parameters / 1e9:.4f} B parameters{lora}, {run.model.dtype}, {s.layers} layers, hidden {s.hidden}, "
            f"vocabulary {s.vocab}",
            f"{self.gpus} x {self.gpu.name} ({self.gpu.memory / GIB:.0f} GiB, {usable:.1f} GiB usable), {self.lengths}",
            *not_measured(self.untold),
            "",
            f"As configured ({self.asked_gpus} GPUs): {self.asked.layout.keys()}",
        ]
        x = self.asked.layout
        if x.part != 1 and not x.shared and not x.turns:
            shared = (
                f": up to {x.seats} on one; their seconds are those of devices that each has alone"
                if x.seats > 1
                else ""
            )
            out.append(f"  {x.actors} actors that reserve {x.part:g} GPUs each{shared}")
        if self.asked_gpus > self.gpus:
            out.append(f"  DOES NOT FIT: it asks for {self.asked_gpus} GPUs of {self.gpus}.")
        out += [f"  DOES NOT START: {self.refused}"] if self.refused else []
        out += self._describe(self.asked)
        if self.best is not None and not (self.fits and self.best.layout == self.asked.layout):
            out += [
                "",
                f"Fastest layout that fits {self.gpus} GPUs: {self.best.layout.keys()}",
                *self._describe(self.best),
            ]
        elif self.best is None:
            out += ["", f"No layout fits {self.gpus} GPUs. The closest: {self.closest.layout.keys()}"]
            out += [
                f"  {line}"
                for b in (self.closest.learner, self.closest.engine)
                if b.over > 0
                for line in (str(b), advice(b))
            ]
        if self.together is not None:
            apart = (
                "no layout with devices of their own fits"
                if self.best is None
                else f"{self.best.step:.1f} s with devices of their own"
            )
            faster = self.best is None or self.together.step < self.best.step
            out += [
                "",
                f"Engines and learners on the same {self.gpus} GPUs, by turns: {self.together.step:.1f} s a step ({apart}). "
                f"{'Recommended' if faster else 'Not recommended'}, by formula; this layout has not been run on a GPU yet.",
                f"  {self.together.layout.keys()}",
            ]
        if self.growth:
            out += [
                "",
                "Growth (simulated, the run's batch; each size with its fastest layout):",
                f"  {'GPUs':>5} {'lag':>4} {'tokens/s':>10} {'s/step':>9} {'engines idle':>13} {'learners idle':>14}  layout",
            ]
            out += [
                f"  {g:>5} {k:>4} {speed_:>10.0f} {step:>9.1f} {ei:>12.0%} {li:>13.0%}   {text}"
                for g, k, speed_, step, ei, li, text in self.growth
            ]
        a = self.assumptions
        g = self.gpu
        out += [
            "",
            f"Assumed, not measured: {a.mfu:.0%} of peak FLOP/s, {a.hbm:.0%} of memory bandwidth, "
            f"{a.engine_step * 1e3:g} ms an engine step, object store {a.store / 1e9:g} GB/s, {a.reserve / GIB:g} GiB reserved "
            f"and {a.slack:.0%} lost to fragmentation a device, log-normal lengths with sigma {a.sigma:g}.",
            f"{g.name}: {g.flops / 1e12:g} TFLOP/s in bfloat16, memory {g.hbm / 1e12:g} TB/s, link {g.link / 1e9:g} GB/s, network "
            f"{g.network / 1e9:g} GB/s, host {g.host / 1e9:g} GB/s. Rewards, evaluation and checkpoints take no time here.",
        ]
        return "\n".join(out)

    def plot(self, out: str | Path) -> Path:
        """Draws the memory of every role against its device, and throughput against GPUs where growth was simulated (.svg, .pdf, .png).

        Raises:
            ConfigError: matplotlib is missing.
        """
        e, out = self.asked, Path(out)
        budgets = [e.learner]
        if e.layout.engines:
            cache = {"KV cache": e.kv["tokens"] * e.kv["bytes a token"]}
            budgets.append(dataclasses.replace(e.engine, phases={e.engine.worst: {**e.engine.items, **cache}}))
        size = (8.0, 5.2 if self.growth else 2.6)
        with picture(out, 1 + bool(self.growth), figsize=size, style=Style.PAPER) as axes:
            memory, *growth = axes.flat if self.growth else (axes,)
            draw_memory(memory, budgets, f"{self.run.name} on {self.gpu.name}")
            for axis in growth:
                self._draw_growth(axis)
        return out

    def _draw_growth(self, axis: Any) -> None:
        lags = sorted({k for _, k, *_ in self.growth})
        for i, lag in enumerate(lags):
            points = [(gpus, speed_) for gpus, k, speed_, *_ in self.growth if k == lag]
            axis.plot(*zip(*points, strict=True), f"{Style.MARKS[i]}-", color=Style.COLOURS[i], label=f"max_lag {lag}")
        first = min(self.growth)
        most = max(gpus for gpus, *_ in self.growth)
        ends = (first[0], most)
        axis.plot(
            ends, [first[2] * n / first[0] for n in ends], ":", color="#777777", linewidth=1, label="in proportion"
        )
        axis.set(
            xscale="log", yscale="log", xlabel="GPUs", ylabel="response tokens per second", title="growth (simulated)"
        )
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.05))

    def _describe(self, e: Estimate) -> list[str]:
        s, w = e.seconds, e.workload
        out = [f"  {line}" for line in (str(e.learner), *([str(e.engine)] if e.layout.engines else []))]
        if not e.layout.shared:
            first = "; each reads the whole model first" if e.loaded else ""
            out.append(f"    host memory: {e.learner_host() / GIB:.1f} GiB a rank{first}")
        if not e.layout.engines:
            return [*out, f"    no engine; one step: learner {s['learner']:.1f} s ({_learner_parts(s)})"]
        trace = e.simulate()
        kv, each = e.kv, w.prompts * w.n / e.layout.engines
        out.append(
            f"    KV cache: {kv['bytes a token'] / 1024:.1f} KiB a token and device, {kv['tokens']:.0f} tokens: "
            f"{kv['sequences at the mean length']:.0f} sequences at the mean length, {kv['sequences at the longest length']:.0f} at "
            "the longest"
        )
        seats = int(self.run.vllm.get("max_num_seqs", speed.batch_sizes(self.gpu)[0]))
        room = min(each, kv["room at the mean length"])
        if seats < room:
            out.append(
                f"    {each:.0f} responses an engine, but vLLM runs {seats} at once: set vllm.max_num_seqs={room:.0f}"
            )
        out.append(
            f"    one step: generate {s['generate']:.1f} s, learner {s['learner']:.1f} s ({_learner_parts(s)}), weight sync "
            f"{s['sync']:.1f} s"
        )
        out.append(
            f"    simulated with max_lag {w.max_lag}, pause {w.pause}: {trace.step_seconds:.1f} s a step, {trace.throughput:.0f} "
            f"tokens/s, engines idle {trace.engine_idle:.0%}, learners idle {trace.learner_idle:.0%}, tokens "
            f"{trace.staleness:.2f} versions old"
        )
        return out


def draw_memory(axis: Any, budgets: Sequence[Budget], title: str, of: str = "memory of one device (GiB)") -> None:
    """A bar for each budget: what it holds when it holds most, part by part, and the room that there is."""
    named = list(dict.fromkeys(name for b in budgets for name, size in b.items.items() if size > 0.004 * b.capacity))
    looks = {name: (Style.COLOURS[i % 7], ("", "///", "...")[i // 7 % 3]) for i, name in enumerate(named)}
    for row, b in enumerate(budgets):
        left = 0.0
        for name, size in b.items.items():
            if name in looks:
                colour, hatch = looks[name]
                known = name not in [t for other in budgets[:row] for t in other.items if t in looks]
                axis.barh(row, size / GIB, left=left / GIB, height=0.55, color=colour, hatch=hatch, edgecolor="white",
                          linewidth=0.5, label=name if known else None)  # fmt: skip
            left += size
        axis.plot(
            [b.capacity / GIB] * 2,
            [row - 0.38, row + 0.38],
            color="black",
            linewidth=1.6,
            label=None if row else "room",
        )
    axis.set(
        yticks=range(len(budgets)), yticklabels=[b.role.replace(" (", "\n(") for b in budgets], xlabel=of, title=title
    )
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.05))


def _learner_parts(s: Mapping[str, float]) -> str:
    parts = {name: s[f"learner: {name}"] for name in ("compute", "communication", "exchange", "optimizer")}
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items() if seconds or name != "exchange")


def advice(b: Budget) -> str:
    """What is largest, and what makes it smaller."""
    name, size = max(b.items.items(), key=lambda i: i[1])
    table = (
        (
            "before ZeRO-3",
            "the model must fit on one device before it is split: larger GPUs, or LoRA on a smaller model",
        ),
        ("AdamW", "more learners, a higher ZeRO stage, offload_optimizer, or LoRA (peft:)"),
        ("master", "more learners, a higher ZeRO stage, offload_optimizer, or LoRA (peft:)"),
        ("gradients inside", "a smaller learner.max_tokens, shorter responses"),
        ("gradient", "ZeRO-2 or 3, more learners, or LoRA (peft:)"),
        ("parameters", "ZeRO-3 with more learners, a smaller model or larger GPUs"),
        ("copy on every rank", "offload: true, LoRA (its reference is free), or no anchor that is a second model"),
        (
            "activations",
            "learner.gradient_checkpointing: true, a smaller learner.max_tokens, shorter responses, learner.sequence_parallel",
        ),
        ("layer", "a smaller learner.max_tokens, shorter responses, attention: sdpa"),
        ("weights", "a larger cluster.tensor_parallel"),
        ("logits", "a smaller vllm.max_num_seqs"),
        ("KV", "a larger cluster.tensor_parallel, shorter responses, vllm.gpu_memory_utilization"),
    )
    remedy = next((text for key, text in table if key in name), "larger GPUs")
    return (
        f"too large by {b.over / GIB:.1f} GiB; the largest part is {name!r} ({size / GIB:.1f} GiB). Change: {remedy}."
    )


def plan(
    run: Run,
    gpu: str | Gpu = "80GB",
    nodes: int = 1,
    gpus_per_node: int = 8,
    model_config: Any = None,
    *,
    prompt_tokens: float | None = None,
    mean_length: float | None = None,
    turns: float | None = None,
    assumptions: Assumptions | None = None,
    growth: bool = True,
) -> Plan:
    """What ``run`` needs on ``nodes * gpus_per_node`` GPUs, as configured and at best; ``str(plan)`` is the report.

    ``model_config``: a ``PretrainedConfig`` or a folder instead of the run's own model. ``prompt_tokens`` and ``mean_length``: mean tokens
    of prompts and responses (of answers, in an episode of ``turns``), where they are known. ``growth``: also simulate 1 to 1,024 GPUs.

    Raises:
        ConfigError: unknown GPU, or a model that cannot be planned.
    """
    if nodes < 1 or gpus_per_node < 1:
        raise ConfigError(f"--nodes is {nodes} and --gpus-per-node {gpus_per_node}; both must be at least 1.")
    gpu, a = find_gpu(gpu) if isinstance(gpu, str) else gpu, assumptions or Assumptions()
    p = Planner(run, gpu, gpus_per_node, model_config, prompt_tokens, mean_length, a, turns)
    asked = p.estimate(p.asked())
    best, closest = p.search(nodes * gpus_per_node)
    x = asked.layout
    lengths = (
        f"prompts of {p.prompt:.0f} tokens ({p.known(prompt_tokens)}), "
        + p.answers(turns, f"{p.mean:.0f} ({'given' if mean_length is not None else 'assumed'})")
        + f", at most {p.longest} together"
    )
    return Plan(
        run,
        gpu,
        nodes * gpus_per_node,
        p.shape,
        a,
        lengths,
        asked,
        x.gpus,
        best,
        closest,
        p.search(nodes * gpus_per_node, True)[0] if p.can_share else None,
        tuple(grow(p)) if growth and run.online else (),
        p.unfit,
        p.untold,
    )


def grow(
    p: Planner, sizes: tuple[int, ...] = SIZES, lags: tuple[int, ...] | None = None
) -> Iterator[tuple[int, int, float, float, float, float, str]]:
    """(GPUs, max_lag, tokens/s, seconds a step, idle share of engines and of learners, layout) of each size, simulated."""
    run = p.run
    for k in lags if lags is not None else sorted({0, 1, max(run.rollout.max_lag, 4)}):
        q = dataclasses.replace(run.rollout, max_lag=k, pause="keep" if k else run.rollout.pause)
        p.run = run.replace(rollout=q)
        for gpus in sizes:
            e, _ = p.search(gpus)
            if e is None:
                continue
            t, x = e.simulate(), e.layout
            words = [
                "shared device" if x.shared else f"{x.learners} learners, {x.engines} x {x.tensor_parallel} engines",
                "torch" if x.sharding.stage is None else f"ZeRO-{x.sharding.stage}",
            ]
            words += ["offload"] * x.sharding.offload_optimizer + ["checkpointing"] * x.checkpointing
            yield gpus, k, t.throughput, t.step_seconds, t.engine_idle, t.learner_idle, ", ".join(words)
    p.run = run
