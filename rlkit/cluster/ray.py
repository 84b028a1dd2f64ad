"""The part of rlkit that knows Ray: starting or joining a cluster, and actors around learners and engines."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import pickle
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rlkit.cluster.groups import NoWorkers, Worker
from rlkit.cluster.jobs import LINKS
from rlkit.cluster.local import LocalRay, is_open
from rlkit.cluster.luggage import Luggage, Model, machine, machines_without, sees
from rlkit.cluster.section import Cluster
from rlkit.cluster.watch import Pulse, Watch, one_line
from rlkit.distribution import VERSION, install
from rlkit.errors import ClusterError, EngineError, RunError, WorkerError, WorkerTimeout, first_line
from rlkit.files import reason
from rlkit.importing import importing
from rlkit.learner.backend import free_port, rank_environment
from rlkit.learner.learner import Learner
from rlkit.learner.learner import prepare as prepare_learner
from rlkit.learner.setup import LearnerSetup
from rlkit.place import use
from rlkit.record.container import memory
from rlkit.rewards.grader import Grader
from rlkit.rewards.scoring import RewardSpec, Used
from rlkit.rewards.workers import Answer, Call, Job, answered
from rlkit.rollout.engine import EngineSetup, EngineSpec, Transfer

REQUESTS = 1024  # groups that an engine works on at the same time; vLLM runs at most so many responses by default


def import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    try:
        import ray
    except ImportError:
        raise ClusterError(
            f"cluster: is set, but ray is not installed. {install('cpu', 'gpu')}, or set cluster: null to run in one process."
        ) from None
    return ray


_own: LocalRay | None = None  # Ray has one session in a process
_told: set[str] = set()  # clusters that the user has been warned of


def connect(
    cluster: Cluster,
    learners: int | None = None,
    say: Callable[[str], None] = print,
    engines: int | None = None,
    beside: Sequence[Cluster] = (),
) -> None:
    """Starts a local cluster, or joins the one at ``cluster.address``; checks that the run fits on it.

    ``learners``, ``engines``: how many there will be, if not those of ``cluster`` (evaluation has no learner). ``beside``: the engines of
    other models, a section for each.

    Raises:
        ClusterError: the cluster does not answer, or it has too few CPUs or GPUs.
    """
    global _own
    ray = import_ray()
    if _own is not None and _own.ended():
        disconnect()
    if not ray.is_initialized():
        logs = bool(os.environ.get("RLKIT_RAY_LOGS"))
        # Ray prints what it notices itself, pages of its log among it, whatever it was told; we say what was lost.
        if not logs:
            ray._private.worker.print_to_stdstream = lambda data, ignore_prefix: None
        common: dict[str, Any] = {
            "log_to_driver": logs,
            "logging_level": "ERROR",
            "configure_logging": True,
        }
        if cluster.address is None:
            _own = LocalRay(include_dashboard=False, object_store_memory=_store_bytes(), **common)
        else:
            try:
                _knock(cluster.address)
                ray.init(address=cluster.address, **common)
            except (ConnectionError, OSError, ValueError, RuntimeError) as error:
                raise ClusterError(
                    f"cluster.address: no Ray cluster answers at {cluster.address!r} "
                    f"({first_line(error)}). Start one with `ray start --head`, correct the "
                    "address, or set cluster.address: null to start a local one."
                ) from error
    address = ray.get_runtime_context().gcs_address
    if _own is None and address not in _told and is_open(address):
        say(
            f"warning: the Ray cluster at {address} asks nobody for a token: whoever reaches it over the network can run programs there "
            "and read what this run reads. Start it with RAY_AUTH_MODE=token, or close its ports to others (docs/security.md)."
        )
    _told.add(address)
    sender = os.environ.get("RLKIT_SENT_BY", VERSION)
    if sender != VERSION:
        say(
            f"warning: this run was sent by rlkit {sender}, and the cluster has {VERSION}, whose keys and defaults count. Install the same "
            "version on both."
        )
    try:
        resources = ray.cluster_resources()
    except (ray.exceptions.RayError, RuntimeError) as error:
        raise ClusterError(f"the Ray cluster at {address} does not answer any more ({one_line(error)}).") from error
    check_resources(cluster, resources, learners, engines, beside)


def disconnect() -> None:
    """Leaves the cluster; one of our own ends. The next :func:`connect` starts or joins another."""
    global _own
    own, _own = _own, None
    if own is not None:
        own.stop()
    else:
        import_ray().shutdown()


def show_folder(folder: Path, say: Callable[[str], object]) -> None:
    """Where this process is the driver of a job that was sent to the cluster, its dashboard hands out the run folder from here on.

    See :mod:`rlkit.cluster.jobs`.
    """
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("metadata", {}).get("job_submission_id")
    if job is None:
        return
    logs = import_ray()._private.worker._global_node.get_logs_dir_path()
    link = Path(logs) / LINKS / job / folder.name
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(folder.absolute())
    except OSError as error:
        say(f"note: `rlkit watch` and `rlkit jobs --fetch` do not reach this run ({reason(error)}).")


def broken() -> str | None:
    """Why nothing can work on our own Ray any more, if so."""
    ended = None if _own is None else _own.ended()
    return None if ended is None else f"Ray itself has ended (its process {ended} died)."


def _knock(address: str) -> None:
    """Raises OSError at once if nobody listens there; Ray would try again for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _store_bytes() -> int:
    """Room for a few copies of a small model; Ray's default takes 30 % of the machine, whatever its container may have."""
    return max(200 << 20, min(memory()[0] // 10, 8 << 30))


def transfer(cluster: Cluster, spec: EngineSpec) -> Transfer:
    """``cluster.transfer``, or what suits the cluster and its engines.

    Raises:
        ClusterError: it was asked for, but nothing here can do it.
    """
    resources = import_ray().cluster_resources()
    return chosen_transfer(cluster, spec, gpus_per_device(cluster, resources))


def chosen_transfer(cluster: Cluster, spec: EngineSpec, gpus: float) -> Transfer:
    """See :func:`transfer`; ``gpus`` are those of each learner and of each engine device."""
    asked = cluster.transfer
    if asked is None:
        if not spec.meets or not gpus:
            return "store"
        return "ipc" if cluster.colocate else "nccl" if gpus >= 1 else "store"
    if asked != "store" and not spec.meets:
        raise ClusterError(
            f"cluster.transfer is {asked}, but engines of the kind {spec.label} take weights from Ray's object store alone. Set "
            "cluster.transfer: null, or rollout.engine: vllm."
        )
    if asked == "nccl" and gpus < 1:
        found = "none" if not gpus else f"{gpus:g} of one"
        raise ClusterError(
            f"cluster.transfer is nccl, which needs a GPU for each engine and each learner, and each has {found}. Set cluster.transfer: "
            "null to let rlkit choose."
        )
    if asked == "ipc" and not (cluster.colocate and gpus):
        raise ClusterError(
            "cluster.transfer is ipc, which works where an engine and a learner share a GPU, and here none do. Set cluster.colocate: true, "
            "or cluster.transfer: null to let rlkit choose."
        )
    return asked


def gpus_per_device(cluster: Cluster, resources: dict[str, float]) -> float:
    """GPUs of each learner and of each engine device; those that are shared count half for each."""
    if cluster.gpus is not None:
        return cluster.gpus
    return (0.5 if cluster.colocate else 1.0) if resources.get("GPU", 0) else 0.0


def check_resources(
    cluster: Cluster,
    resources: dict[str, float],
    learners: int | None = None,
    engines: int | None = None,
    beside: Sequence[Cluster] = (),
) -> None:
    """Raises ClusterError if the engines and learners of the run (or so many) do not fit on the cluster."""
    learners = cluster.learners if learners is None else learners
    engines = cluster.engines if engines is None else engines
    gpus = gpus_per_device(cluster, resources)
    workers = engines + learners
    want_cpu = cluster.cpus * workers
    want_gpu = gpus * (engines * cluster.tensor_parallel + learners)
    layout = f"{engines} engine(s) of {cluster.tensor_parallel} device(s) and {learners} learner(s)"
    for pool in beside:
        workers += pool.engines
        want_cpu += pool.cpus * pool.engines
        want_gpu += gpus_per_device(pool, resources) * pool.engines * pool.tensor_parallel
        layout += f", beside {pool.engines} engine(s) of {pool.tensor_parallel} device(s) of a teacher, a reference or a reward"
    if learners > 1 and 0 < gpus < 1 and not cluster.colocate:
        raise ClusterError(
            f"cluster.gpus is {gpus:g}, so that Ray may put several of {learners} learners on one GPU, where NCCL does not let them meet. "
            "Leave it out, or set cluster.colocate: true for an engine beside each learner."
        )
    if want_cpu > resources.get("CPU", 0) + 1e-6:
        raise ClusterError(
            f"cluster: {layout} need {want_cpu:g} CPUs, but the cluster has {resources.get('CPU', 0):g}. "
            f"Use fewer workers, or set cluster.cpus to at most {resources.get('CPU', 0) / workers:.2g} "
            "so that they share."
        )
    if want_gpu > resources.get("GPU", 0) + 1e-6:
        raise ClusterError(
            f"cluster: {layout} need {want_gpu:g} GPUs, but the cluster has {resources.get('GPU', 0):g}. "
            "Use fewer workers, or set cluster.gpus to a fraction so that they share devices."
        )


class Asked(NamedTuple):
    """A call of the actor that was worker ``place`` then."""

    place: int
    actor: Any
    future: Future[Any]


class RayWorkers:
    """Actors of one kind, each made by ``spawn(place)``; :meth:`begin` lets them build what they hold.

    One that dies, gives no sign of life for ``timeout`` seconds, or gets no further for ``stall`` seconds is *lost*: everybody who waits
    for it hears so at once, and :meth:`replace` puts another in its place.

    ``away``: workers whose machine does not see the run folder, with its id. ``left``: they may have files that go with them.
    """

    def __init__(self, spawn: Callable[[int], Any], size: int, cluster: Cluster, what: str) -> None:
        self.spawn, self.size, self.what, self.devices = spawn, size, what, cluster.tensor_parallel
        self.away, self.left = dict[int, str](), False
        self.leave: Callable[[], None] = lambda: None  # when all are closed
        self.build: Callable[[int, Any], Any] | None = None
        self.actors = [spawn(index) for index in range(size)]
        self.first: list[Any] = []
        self.watch = Watch(size, what, cluster.timeout, cluster.stall, self._pulse, broken)
        self._places = threading.Lock()  # held while an actor is put into its place, or all are closed
        self._closed = False

    def _pulse(self, index: int) -> Future[Pulse]:
        try:
            return self.actors[index].pulse.options(concurrency_group="pulse").remote().future()  # type: ignore[no-any-return]
        except Exception as error:  # Ray does not even take the question
            failed: Future[Pulse] = Future()
            failed.set_exception(error)
            return failed

    def _ask(self, index: int, what: str, *args: Any, group: str | None = None) -> Asked:
        """Calls a method of the actor."""
        actor = self.actors[index]
        method = getattr(actor, what)
        ref = (method.options(concurrency_group=group) if group else method).remote(*args)
        return Asked(index, actor, self.watch.follow(index, ref.future()))

    def _ask_all(self, what: str, *args: Any) -> list[Asked]:
        return [self._ask(i, what, *args) for i in range(self.size)]

    def begin(self, build: Callable[[int, Any], Any]) -> None:
        """``build(place, actor)`` asks an actor to build, and returns a reference to its answer; so it does with those that take a place
        later.
        """
        self.build = build
        self.first = [build(index, actor) for index, actor in enumerate(self.actors)]

    def awaited(self) -> list[str]:
        """What those do that are not built yet, for people."""
        ray = import_ray()
        ready = set(ray.wait(self.first, num_returns=len(self.first), timeout=0)[0]) if self.first else set()
        return [
            f"{self.what} {i} {self.watch.doing(i)}"
            for i in range(self.size)
            if not self.first or self.first[i] not in ready
        ]

    def started(self) -> None:
        """Waits until all are built. What goes wrong by then is no matter of restarting."""
        made = zip(self.actors, self.first, strict=True)
        try:
            self._answers([Asked(i, a, self.watch.follow(i, ref.future())) for i, (a, ref) in enumerate(made)])
        except WorkerTimeout as error:
            raise ClusterError(
                f"{error} The cluster has no room for it now, or starting takes longer: free resources, or raise cluster.timeout."
            ) from error
        except WorkerError as error:
            raise RunError(f"{error} It did so while it started; RLKIT_RAY_LOGS=1 shows what it printed.") from error

    def call(self, method: str, *args: Any, each: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        return self._answers([self._ask(i, "do", method, *(each[i] if each else args)) for i in range(self.size)])

    def some(self, which: Sequence[int], method: str, *args: Any) -> dict[int, Any]:
        out = {}
        for asked in [self._ask(i, "do", method, *args) for i in which]:
            try:
                out[asked.place] = self._answer(asked)
            except RunError:
                if self.lost(asked.place) is None:
                    raise
        return out

    def handles(self, method: str, *args: Any) -> list[Any]:
        return [a.do.remote(method, *args) for a in self.actors]

    def made(self, handle: Any) -> None:
        ray = import_ray()
        while not ray.wait([handle], timeout=self.watch.period, fetch_local=False)[0]:
            if error := self.watch.any_lost():
                raise error

    def one(self, index: int, method: str, *args: Any) -> Any:
        """For the requests of many threads: they wait in an engine as long as they need, and never keep it from answering ``call``."""
        return self._answer(self._ask(index, "request", method, *args, group="requests"))

    def lost(self, index: int) -> Exception | None:
        return self.watch.lost(index)

    def replace(self, index: int) -> None:
        """Another actor, wherever the cluster has room; the old one is killed, whatever state it is in."""
        with self._places:
            if self._closed:
                raise RunError(f"the {self.what}s were closed")
            import_ray().kill(self.actors[index], no_restart=True)
            assert self.build is not None, "what was never built is not replaced"
            actor = self.actors[index] = self.spawn(index)
            self.watch.renew(index)
            asked = Asked(index, actor, self.watch.follow(index, self.build(index, actor).future()))
        self._answer(asked)

    def busy(self) -> float:
        return float(sum(self._answers(self._ask_all("busy"))) / self.size)

    def look(self, path: Path) -> None:
        """Finds out whose machines do not see a file of this one."""
        found = self._answers(self._ask_all("machine_without", str(path)))
        self.away = {index: where for index, where in enumerate(found) if where is not None}

    def in_folder(self, method: str, folder: str, *args: Any, reads: bool) -> list[Any]:
        """See :class:`~rlkit.cluster.groups.Workers`: one of each machine that does not see the folder unpacks or packs it there."""
        rooms: dict[str, tuple[int, str]] = {}
        try:
            for index, where in self.away.items():
                if where not in rooms:
                    rooms[where] = index, self._answer(self._ask(index, "room"))
            if reads and rooms:
                luggage = Luggage.of(Path(folder))
                for asked in [self._ask(index, "unpack", luggage, room) for index, room in rooms.values()]:
                    self._answer(asked)
            places = [rooms[self.away[i]][1] if i in self.away else folder for i in range(self.size)]
            found = self.call(method, each=[(place, *args) for place in places])
            if not reads:
                for index, room in rooms.values():
                    self._answer(self._ask(index, "pack", room)).unpack(Path(folder))
            return found
        finally:
            for index, room in rooms.values():
                if self.lost(index) is None:
                    self._answer(self._ask(index, "clear", room))

    def _answer(self, asked: Asked) -> Any:
        """What a worker answered; its errors come back as what was raised there."""
        ray = import_ray()
        try:
            return asked.future.result()
        except ray.exceptions.RayTaskError as error:
            cause: Exception = error
            while isinstance(cause, ray.exceptions.RayTaskError) and isinstance(cause.cause, Exception):
                cause = cause.cause
            if isinstance(cause, ray.exceptions.RayError) and cause is not error:
                raise self._unread(asked, cause) from error  # Ray says so where it gathers the arguments, in the actor
            if isinstance(cause, EngineError):  # it lives, but what it is there for does not
                self._lose(asked, cause)
            raise cause from error
        except ray.exceptions.RayError as error:
            own = (None, asked.actor._actor_id.hex())
            if not isinstance(error, ray.exceptions.RayActorError) or error.actor_id not in own:
                raise self._unread(asked, error) from error
            told = WorkerError(f"{self.what} {asked.place} died: {one_line(error)}.")
            self._lose(asked, told)
            raise told from error

    def _unread(self, asked: Asked, error: Exception) -> WorkerError:
        """Who made it has died, or a machine that held it."""
        return WorkerError(f"what {self.what} {asked.place} should have read is lost: {one_line(error)}.")

    def _lose(self, asked: Asked, error: Exception) -> None:
        with self._places:
            if self.actors[asked.place] is asked.actor:  # else another has taken its place by now
                self.watch.lose(asked.place, error)

    def _answers(self, asked: Sequence[Asked]) -> list[Any]:
        """Of one call to all. Where one is lost, the others fail or wait for it, so that its loss is what is told."""
        futures = [a.future for a in asked]
        rest = wait(futures, return_when=FIRST_EXCEPTION).not_done
        if rest:
            wait(rest, timeout=3 * self.watch.period, return_when=FIRST_EXCEPTION)
        failed = [a for a in asked if a.future.done() and a.future.exception() is not None]
        for a in sorted(failed, key=lambda a: isinstance(a.future.exception(), import_ray().exceptions.RayTaskError)):
            self._answer(a)
        return [self._answer(a) for a in asked]

    def client(self, which: Sequence[int], timeout: float) -> EngineClient:
        """For learners that send weights to the engines ``which`` themselves."""
        return EngineClient({i: self.actors[i] for i in which}, self.devices, timeout)

    def close(self) -> None:
        ray = import_ray()
        with self._places:
            if self._closed:
                return
            self._closed = True
            self.watch.close(RunError(f"the {self.what}s were closed"))
            if self.left and broken() is None:
                ray.wait([actor.clear.remote() for actor in self.actors], num_returns=self.size, timeout=5)
            for actor in self.actors if broken() is None else []:
                ray.kill(actor, no_restart=True)
            if broken() is None:
                self.leave()


class EngineClient:
    """vLLM's ``VLLMWeightSyncClient`` over the actors of engines, for learners, which it travels to.

    Every call asks all of them at once and waits for ``timeout`` seconds in all. They are paused and let go by the driver, which knows
    which of them are lost.
    """

    def __init__(self, actors: Mapping[int, Any], devices: int, timeout: float) -> None:
        self.actors, self.devices, self.timeout = dict(actors), devices, timeout
        self._open: set[int] = set()
        self._failed: str | None = None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each engine's devices have the next ranks of the group, if there is one."""
        offset = init_info.get("rank_offset")
        told = [
            init_info if offset is None else {**init_info, "rank_offset": offset + k * self.devices}
            for k in range(len(self.actors))
        ]
        self._ask("meet", told)

    def start_weight_update(self) -> None:
        pass

    def update_weights(self, update_info: Any) -> None:
        self._ask("receive", [update_info] * len(self.actors))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        pass

    def failed(self) -> str | None:
        return self._failed

    def missing(self) -> str:
        """Which engines have not answered the last call."""
        names = ", ".join(str(i) for i in sorted(self._open))
        return (
            f"no answer yet from engine{'s' if len(self._open) > 1 else ''} {names}"
            if names
            else "all engines have answered"
        )

    def _ask(self, method: str, each: Sequence[Any]) -> None:
        ray = import_ray()
        asked = {a.do.remote(method, x): i for (i, a), x in zip(self.actors.items(), each, strict=True)}
        self._open, end = set(asked.values()), time.monotonic() + self.timeout
        while asked:
            for ref in ray.wait(list(asked), timeout=max(0.0, end - time.monotonic()))[0]:
                index = asked.pop(ref)
                try:
                    ray.get(ref)
                except ray.exceptions.RayError as error:
                    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
                    self._failed = f"engine {index} could not take the weights: {one_line(cause)}"
                    raise EngineError(self._failed) from error
                self._open.discard(index)
            if time.monotonic() > end and asked:
                raise WorkerTimeout(self.missing())


class Host:
    """The actor: holds a learner rank or an engine, and calls its methods by name."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.asked = self.answered = 0
        self.seconds = 0.0
        self.rooms = list[str]()
        self.lock = threading.Lock()
        self.doing = "starts"

    def prepare(self, env: dict[str, str], imports: Callable[[], None]) -> None:
        """Imports what :meth:`build` will need, while whoever asks for that has other things to do."""
        os.environ.update(env)
        self.doing = "imports"
        with self.working(), importing(), contextlib.suppress(Exception):  # it fails again where it is heard
            imports()
        gc.freeze()  # modules are no garbage: vLLM looks for some five times as it starts, a quarter of a second each
        self.doing = "waits"

    def address(self) -> tuple[str, int]:
        """Where rank 0 listens for the others."""
        return import_ray().util.get_node_ip_address(), free_port()

    def build(self, make: Callable[..., Any], env: dict[str, str], model: Model, *args: Any) -> Any:
        """Makes the worker, whose first argument is where the model is; ``env`` is set before anything heavy is imported."""
        os.environ.update(env)
        self.doing = "loads the model"
        with self.working():
            self.worker = make(model.here(self.room), *args)
            self.doing = "is ready"
            return self.worker.ready()

    def do(self, method: str, *args: Any) -> Any:
        start = time.perf_counter()
        with self.working():
            try:
                return getattr(self.worker, method)(*args)
            finally:
                self.seconds += time.perf_counter() - start

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        with self.lock:
            self.asked += 1
        try:
            yield
        finally:
            with self.lock:
                self.answered += 1

    def pulse(self) -> Pulse:
        """Answered in a thread of its own, whatever else goes on."""
        with self.lock:
            progress = 0 if self.worker is None else self.worker.progress()
            return Pulse(self.asked, self.answered, progress, self.doing)

    def busy(self) -> float:
        """Seconds in ``do``; calls that run side by side (an engine's) count each by itself."""
        return self.seconds

    # -- files, where the run folder is on another machine ------------------------------------------------------------

    def machine_without(self, path: str) -> str | None:
        """This machine's id if it does not have the file."""
        return None if sees(path) else machine()

    def room(self) -> str:
        """A new folder, for :meth:`clear`."""
        self.rooms.append(tempfile.mkdtemp(prefix="rlkit-"))
        return self.rooms[-1]

    def pack(self, folder: str) -> Luggage:
        return Luggage.of(Path(folder))

    def unpack(self, luggage: Luggage, folder: str) -> None:
        luggage.unpack(Path(folder))

    def clear(self, room: str | None = None) -> None:
        """Removes a folder, or all of them."""
        for folder in [room] if room is not None else self.rooms:
            shutil.rmtree(folder, ignore_errors=True)
        self.rooms = [folder for folder in self.rooms if room is not None and folder != room]


class EngineHost(Host):
    """Takes requests of many callers at once.

    Each has a thread while it is worked on, and the next one gets the same thread. Threads of Ray's own would all be there from the start,
    and take turns: up to ``requests`` of them grow a stack, a heap and a state of Python for requests of which ten run at a time.
    """

    def __init__(self, requests: int) -> None:
        super().__init__()
        self.pool = ThreadPoolExecutor(requests, thread_name_prefix="request")

    async def request(self, method: str, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.pool, self.do, method, *args)


class GraderHost:
    """The actor of a reward model: its calls wait side by side on one event loop."""

    def __init__(self, job: Job, most: int) -> None:
        use(job.texts)
        self.job, self.gate, self.starting, self.ready = job, asyncio.Semaphore(most), asyncio.Lock(), False
        (self.grader,) = pickle.loads(job.functions)

    async def call(self, arguments: Mapping[str, Any], timeout: float) -> list[Any]:
        """The answer, and what the grader has used since the last one. The first call waits until it has started."""
        async with self.starting:
            try:
                if not self.ready:
                    await asyncio.to_thread(self.grader.start)
                self.ready = True
            except Exception as error:  # whatever somebody's model makes of this machine
                return ["error", f"its actor could not start: {first_line(error)}", "", {}]
        async with self.gate:
            return await answered(self.grader, self.job, (0, arguments), timeout)


class HostedGrader:
    """A grader in an actor, in the place of a process of the scorer's. One that dies is replaced, and its calls are made once more.

    ``connected`` says when there is a cluster. The actor is made by the first call, so that it has to be there by then.
    """

    def __init__(self, job: Job, spec: RewardSpec, grader: Grader, cluster: Cluster, used: Used) -> None:
        self.job, self.spec, self.share, self.cluster, self.used = job, spec, grader.share, cluster, used
        self._lock = threading.Lock()
        self._actor: Any = None
        self._closed = False

    def submit(self, call: Call, timeout: float, most: int) -> Future[Answer]:
        future: Future[Answer] = Future()
        self._ask(future, call[1], timeout, most, again=False)
        return future

    def _ask(
        self, future: Future[Answer], arguments: Mapping[str, Any], timeout: float, most: int, again: bool
    ) -> None:
        with self._lock:
            if self._closed:
                future.set_result(("error", "the scorer was closed", ""))
                return
            if self._actor is None:
                self._actor = self._spawn(most)
            actor = self._actor
        asked = actor.call.remote(arguments, timeout).future()

        def hear(done: Future[Any]) -> None:
            error = done.exception()
            if error is None:
                *answer, taken = done.result()
                self.used(taken)
                future.set_result(tuple(answer))
                return
            with self._lock:
                if self._actor is actor:
                    self._actor = None
                closed = self._closed
            if again or closed:
                future.set_result(("lost", f"the reward's actor is lost: {one_line(error)}", ""))
            else:
                self._ask(future, arguments, timeout, most, again=True)

        asked.add_done_callback(hear)

    def _spawn(self, most: int) -> Any:
        kind = import_ray().remote(GraderHost)
        options = {
            "num_cpus": self.cluster.cpus,
            "num_gpus": self.share,
            "max_concurrency": 2 * most,
            "runtime_env": {"env_vars": _surroundings(self.cluster)},
        }
        return kind.options(**options).remote(self.job, most)

    def close(self) -> None:
        with self._lock:
            self._closed, actor = True, self._actor
        if actor is not None and broken() is None:
            import_ray().kill(actor, no_restart=True)


class LearnerHost(Host):
    """So that lists of processes tell it from an engine."""


def make_engine(path: str, spec: EngineSpec, setup: EngineSetup) -> Worker:
    return spec.start(replace(setup, path=path))


def make_learner(
    path: str, setup: LearnerSetup, rank: int, world: int, threads: int, rendezvous: str | None = None
) -> Learner:
    """``rendezvous``: a file where the ranks meet; None: at rank 0's address."""
    import torch

    setup = replace(setup, start=replace(setup.start, path=path))
    if not torch.cuda.is_available():
        torch.set_num_threads(threads)
    if rendezvous is not None and setup.deepspeed is not None:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, f"file://{rendezvous}", rank=rank, world_size=world)
    return Learner(setup, rank, world)


def _surroundings(cluster: Cluster) -> dict[str, str]:
    """Environment of every actor."""
    quiet = {"OMP_NUM_THREADS": str(cluster.arithmetic), "TOKENIZERS_PARALLELISM": "false"}
    return quiet if _own is None else {**quiet, **_own.environment()}


def _places(cluster: Cluster) -> tuple[Callable[[int], dict[str, Any]], Callable[[], None]]:
    """Where Ray puts the worker ``i`` of a kind: engine and learner of one number on one device if they share it, else anywhere.

    And what gives those places back to the cluster, which keeps them otherwise as long as this process lives.
    """
    if not cluster.colocate:
        return lambda index: {}, lambda: None
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    gpus = 2 * gpus_per_device(cluster, import_ray().cluster_resources())
    bundle = {"CPU": 2 * cluster.cpus, **({"GPU": gpus} if gpus else {})}
    group = placement_group([bundle] * cluster.engines)

    def place(index: int) -> dict[str, Any]:
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        return {"scheduling_strategy": strategy}

    return place, lambda: remove_placement_group(group)


def _engine_actors(spec: EngineSpec, cluster: Cluster, place: Callable[[int], dict[str, Any]]) -> RayWorkers:
    """Actors for engines, which import what they will need."""
    ray = import_ray()
    gpus = gpus_per_device(cluster, ray.cluster_resources())
    env = spec.environment()
    kind = ray.remote(concurrency_groups={"requests": REQUESTS, "pulse": 1})(EngineHost)
    options = {
        "num_cpus": cluster.cpus,
        "num_gpus": gpus * cluster.tensor_parallel,
        "runtime_env": {"env_vars": {**_surroundings(cluster), **env}},
    }

    def spawn(index: int) -> Any:
        actor = kind.options(**options, **place(index)).remote(REQUESTS)
        actor.prepare.remote(env, spec.prepare)
        return actor

    return RayWorkers(spawn, cluster.engines, cluster, "engine")


def _begin_engines(engines: RayWorkers, spec: EngineSpec, setup: EngineSetup, cluster: Cluster, model: Model) -> None:
    everywhere = replace(setup, transfer=transfer(cluster, spec), sleeps=cluster.colocate)
    env = spec.environment()
    engines.left = model.luggage is not None
    engines.begin(lambda index, actor: actor.build.remote(make_engine, env, model, spec, everywhere))


def begin_engines(spec: EngineSpec, setup: EngineSetup, cluster: Cluster) -> RayWorkers:
    """Engines without learners, which are being built: ``started`` waits for them."""
    engines = _engine_actors(spec, cluster, lambda index: {})
    _begin_engines(engines, spec, setup, cluster, _model(setup.path, None))
    return engines


def start_engines(spec: EngineSpec, setup: EngineSetup, cluster: Cluster) -> RayWorkers:
    """Engines without learners, for evaluation."""
    engines = begin_engines(spec, setup, cluster)
    try:
        engines.started()
    except BaseException:
        engines.close()
        raise
    return engines


@dataclass(frozen=True)
class Crew:
    """The actors of a run's learners and engines, which import what they will need: there need be no model yet."""

    learners: RayWorkers
    engines: RayWorkers | NoWorkers
    cluster: Cluster
    spec: EngineSpec | None

    @classmethod
    def of(cls, spec: EngineSpec | None, cluster: Cluster, deepspeed: bool) -> Crew:
        """``spec``: None has no engine. ``deepspeed``: whether the learners need it."""
        ray = import_ray()
        place, leave = _places(cluster)
        engines = NoWorkers() if spec is None else _engine_actors(spec, cluster, place)
        kind = ray.remote(concurrency_groups={"pulse": 1})(LearnerHost)
        options = {
            "num_cpus": cluster.cpus,
            "num_gpus": gpus_per_device(cluster, ray.cluster_resources()),
            "runtime_env": {"env_vars": _surroundings(cluster)},
        }

        def spawn(index: int) -> Any:
            actor = kind.options(**options, **place(index)).remote()
            actor.prepare.remote({}, partial(prepare_learner, deepspeed))
            return actor

        learners = RayWorkers(spawn, cluster.learners, cluster, "learner")
        learners.leave = leave
        return cls(learners, engines, cluster, spec)

    def close(self) -> None:
        self.engines.close()
        self.learners.close()  # the last, because they give the places of all back

    def start(
        self,
        learning: LearnerSetup,
        generating: EngineSetup,
        folder: Path | None = None,
        report: Callable[[str], object] = print,
    ) -> None:
        """Waits until all have built what they hold, side by side.

        Where they share devices, engines are built first and sleep, and learners beside them. ``folder``: the run's, which not all
        machines need to see. ``report`` hears what is waited for.
        """
        with contextlib.ExitStack() as stack:
            marker = None if folder is None else stack.enter_context(_marked(folder))
            stack.enter_context(told_regularly(report, self.awaited))
            try:
                self._start(learning, generating, marker, report)
            except BaseException:
                self.close()
                raise

    def awaited(self) -> str:
        """What is waited for, for people."""
        engines = [] if isinstance(self.engines, NoWorkers) else self.engines.awaited()
        return ", ".join([*engines, *self.learners.awaited()])

    def _start(
        self,
        learning: LearnerSetup,
        generating: EngineSetup,
        marker: Path | None,
        report: Callable[[str], object],
    ) -> None:
        ray, cluster, learners, engines = import_ray(), self.cluster, self.learners, self.engines
        model = _model(learning.start.path, marker)
        if isinstance(engines, RayWorkers):
            assert self.spec is not None
            _begin_engines(engines, self.spec, generating, cluster, model)
            if cluster.colocate:
                engines.started()
                engines.call("sleep", 2)
        learners.begin(lambda rank, actor: actor.address.remote())
        learners.started()
        master, port = ray.get(learners.first[0])
        learners.left = model.luggage is not None
        if marker is not None:
            learners.look(marker)
        if marker is not None and learners.away:
            who = "learner " + ", ".join(map(str, learners.away))
            report(
                f"note: the machine of {who} does not see {marker.parent}: checkpoints travel through Ray's object store."
            )
        if model.away:
            report(
                f"note: {len(model.away)} machine(s) of the cluster do not have {model.path}: it travels as checkpoints do."
            )
        rendezvous = None if _own is None else _own.rendezvous()
        learners.begin(
            lambda rank, actor: actor.build.remote(
                make_learner,
                rank_environment(rank, cluster.learners, master, port),
                model,
                learning,
                rank,
                cluster.learners,
                cluster.arithmetic,
                rendezvous,
            )
        )
        learners.started()
        if isinstance(engines, RayWorkers) and not cluster.colocate:
            engines.started()


def start(
    learning: LearnerSetup,
    spec: EngineSpec | None,
    generating: EngineSetup,
    cluster: Cluster,
    folder: Path | None = None,
    report: Callable[[str], object] = print,
) -> tuple[RayWorkers, RayWorkers | NoWorkers]:
    """The learners and engines of a :class:`Crew`, built."""
    crew = Crew.of(spec, cluster, learning.deepspeed is not None)
    crew.start(learning, generating, folder, report)
    return crew.learners, crew.engines


@contextlib.contextmanager
def told_regularly(report: Callable[[str], object], what: Callable[[], str], seconds: float = 10.0) -> Iterator[None]:
    """Inside, ``report`` hears every few seconds what is waited for."""
    done, began = threading.Event(), time.monotonic()

    def tell() -> None:
        while not done.wait(seconds):
            if text := what():
                report(f"  {time.monotonic() - began:.0f} s: {text}")

    thread = threading.Thread(target=tell, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def _marked(folder: Path) -> Iterator[Path]:
    """A file in the folder, by which a machine knows whether it sees that folder, or has another one of the same name."""
    marker = folder.absolute() / f".seen-{secrets.token_hex(8)}"
    marker.touch()
    try:
        yield marker
    finally:
        marker.unlink()


def _model(path: str, marker: Path | None) -> Model:
    """A model with its files for the machines that do not have it; ``marker``: a file in the run folder, by which that is known."""
    folder = Path(path).absolute()  # workers may have another current folder
    if not folder.is_dir():  # a name on the hub
        return Model(path)
    away = machines_without(marker if marker is not None and folder.is_relative_to(marker.parent) else folder)
    return Model(str(folder), Luggage.of(folder) if away else None, away)
