"""Jobs of a Ray cluster and what their runs leave, over the address of its dashboard: nothing else of the cluster need be reachable.

A run on a cluster links its folder into the folder of Ray's logs (:func:`rlkit.cluster.ray.show_folder`), from which the dashboard hands
out whole files and their last lines. So a run can be watched, and its folder fetched, from wherever its job could be sent from.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import shlex
import shutil
import socket
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rlkit.distribution import NAME, VERSION, install
from rlkit.errors import ClusterError, first_line
from rlkit.files import reason
from rlkit.record.masking import mask_command

LINKS = "rlkit"  # a folder among Ray's logs: JOB/RUN is a link to a run folder
OVER = ("SUCCEEDED", "FAILED", "STOPPED")
NOT_SENT = ("runs/", "**/.git/", "**/.venv/", "**/__pycache__/", "*.safetensors", "*.pt")
MOST = 500 << 20  # bytes of the files of a job, which Ray keeps in the memory of its head
# A job that is stopped has so long to write its checkpoint; Ray's own patience is three seconds.
GRACE = 600
WHOLE = -1  # lines of a file
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray takes these in place of the address that it is given


class Unreachable(ClusterError):
    """The cluster does not answer now; it may again."""


@dataclass(frozen=True)
class Job:
    """A job as its cluster knows it.

    Attributes:
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED. command: without its secrets. started, ended: seconds since 1970.
        node: the machine on which its driver runs, by Ray's id.
    """

    id: str
    status: str
    command: str
    message: str
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    node: str | None = None

    @property
    def over(self) -> bool:
        return self.status in OVER

    def __str__(self) -> str:
        began = "-" if self.started is None else f"{datetime.datetime.fromtimestamp(self.started):%Y-%m-%d %H:%M}"
        return f"{self.id:<28} {self.status.lower():<10} {began:<17} {self.command}"


class Jobs:
    """The jobs of the cluster whose dashboard is at ``address``, e.g. ``http://head:8265``.

    Raises:
        ClusterError: no Ray dashboard answers there, or it wants a token that this process does not have.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/") if "://" in address else f"http://{address}".rstrip("/")
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError:
            raise ClusterError(f"jobs need ray. {install('cpu', 'gpu')}.") from None
        for name in ("dashboard_sdk", "job.sdk"):  # which tell of every upload
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
        none = f"no Ray dashboard answers at {address}"
        start = "Start one with `ray start --head --dashboard-host 0.0.0.0`; its default port is 8265."
        try:
            place = urlsplit(self.address)
            port = place.port or (443 if place.scheme == "https" else 80)
            socket.create_connection((place.hostname or "", port), timeout=10).close()  # Ray would wait without end
            with _without(ADDRESSES):
                self._client = JobSubmissionClient(self.address)
        except Exception as error:
            if _wants_token(error):
                raise _closed(self.address) from None
            if not isinstance(error, OSError | RuntimeError | ValueError):
                raise
            raise ClusterError(f"{none} ({first_line(error)}). {start}") from None

    @property
    def version(self) -> str:
        """That of the cluster's Ray."""
        return str(self._client._server_ray_version)

    # -- jobs -----------------------------------------------------------------------------------------------------

    def send(self, id: str, command: str, files: Path, variables: Mapping[str, str], patience: float = 150.0) -> None:
        """Starts ``command``, a line of a shell, on the cluster's head, in a folder with the ``files`` of a ZIP archive (:func:`pack`).

        ``variables``: of its environment and its workers'. A cluster that has just started answers before it can run jobs: it is asked
        again for ``patience`` seconds.
        """
        environment = {
            "working_dir": str(files),
            "env_vars": {**variables, "RAY_JOB_STOP_WAIT_TIME_S": str(GRACE), "RLKIT_SENT_BY": VERSION},
        }
        end = time.monotonic() + patience
        while True:
            with self._asking():
                try:
                    self._client.submit_job(
                        entrypoint=command, submission_id=id, runtime_env=environment, metadata={NAME: VERSION}
                    )
                    return
                except RuntimeError as error:
                    if "No available agent" not in str(error) or time.monotonic() > end:
                        raise
            time.sleep(2)

    def all(self) -> list[Job]:
        """Those that were sent, the newest first."""
        with self._asking():
            found = [_job(x) for x in self._client.list_jobs() if x.submission_id]
        return sorted(found, key=lambda job: job.started or 0.0, reverse=True)

    def job(self, id: str) -> Job:
        """The job of this id.

        Raises:
            ClusterError: there is none.
        """
        with self._asking():
            try:
                return _job(self._client.get_job_info(id))
            except RuntimeError as error:
                if "404" not in str(error):
                    raise
        raise ClusterError(
            f"there is no job {id!r} at {self.address}. `rlkit jobs --address {self.address}` lists those that there are."
        )

    def stop(self, id: str, every: float = 1.0) -> Job:
        """Tells the run of a job to end, and waits until it has: it writes a checkpoint of its last finished step first."""
        job = self.job(id)
        if not job.over:
            with self._asking():
                self._client.stop_job(id)
        while not job.over:
            time.sleep(every)
            job = self.job(id)
        return job

    def follow(self, id: str, say: Callable[[str], object], every: float = 2.0, patience: float = 120.0) -> Job:
        """Says the lines of the job's log until it is over. A cluster that is silent for less than ``patience`` seconds ends nothing."""
        shown, end = 0, time.monotonic() + patience
        while True:
            try:
                job = self.job(id)
                log = self.log(id)
            except Unreachable:
                if time.monotonic() > end:
                    raise
                time.sleep(every)
                continue
            end = time.monotonic() + patience
            whole = len(log) if job.over else log.rfind("\n") + 1  # the last line may be half written
            for line in log[shown:whole].splitlines():
                if not line.startswith("Running entrypoint for job "):  # Ray repeats the command, its secrets too
                    say(line)
            shown = max(shown, whole)
            if job.over:
                return job
            time.sleep(every)

    def log(self, id: str) -> str:
        """What the job has printed."""
        with self._asking():
            return str(self._client.get_job_logs(id))

    # -- what their runs leave ------------------------------------------------------------------------------------

    def files(self, job: Job, pattern: str = "*/**/*") -> list[str]:
        """Files of the job's run, as ``RUN/FILE``; empty where it has not made its folder yet. Hidden ones are left out."""
        if job.node is None:
            return []
        below = f"{LINKS}/{job.id}/"
        with self._asking():
            answer = self._get("/api/v0/logs", node_id=job.node, glob=below + pattern)
            kinds = answer.json()["data"]["result"]
        names = [name.removeprefix(below) for some in kinds.values() for name in some if not name.endswith("/")]
        return sorted(name for name in names if not any(part.startswith(".") for part in Path(name).parts))

    def read(self, job: Job, name: str, lines: int = WHOLE) -> bytes:
        """A file of :meth:`files`, or its last lines."""
        with self._asking():
            return bytes(self._file(job, name, lines).content)

    def download(self, job: Job, name: str, path: Path) -> int:
        """Writes a file of :meth:`files` to ``path``; returns its bytes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._asking(), self._file(job, name, WHOLE, stream=True) as answer, path.open("wb") as out:
            for chunk in answer.iter_content(1 << 20):
                out.write(chunk)
            return out.tell()

    def _file(self, job: Job, name: str, lines: int, **options: Any) -> Any:
        place = f"{LINKS}/{job.id}/{name}"
        return self._get("/api/v0/logs/file", options, node_id=job.node, filename=place, lines=lines, timeout=86400)

    def _get(self, path: str, options: Mapping[str, Any] | None = None, **query: Any) -> Any:
        answer = self._client._do_request("GET", path, params=query, **(options or {}))
        if answer.status_code != 200:
            why = next(iter(answer.text.strip().splitlines()), "no reason given")
            raise ClusterError(
                f"the cluster at {self.address} does not hand out what a run left (HTTP {answer.status_code}: {why})."
            )
        return answer

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Inside, what Ray and its HTTP library raise becomes one sentence."""
        try:
            yield
        except ClusterError:
            raise
        except Exception as error:
            if _wants_token(error):
                raise _closed(self.address) from None
            if type(error).__module__.startswith(("requests", "urllib3")) or isinstance(error, ConnectionError):
                raise Unreachable(f"the cluster at {self.address} does not answer ({first_line(error)}).") from error
            if isinstance(error, RuntimeError):
                raise ClusterError(f"the cluster at {self.address} refuses: {first_line(error)}") from error
            raise


class Picture:
    """The files of a job's run that :func:`rlkit.watch` reads, in a folder here; :meth:`update` brings what is new.

    Of a file that grows only the last ``lines`` are asked for again, as long as the last line that is known is one of them.
    """

    SMALL = ("config.yaml", "eval.jsonl", "environment.jsonl", "summary.json")
    GROWS = ("metrics.jsonl",)
    LAST = ("rollouts.jsonl",)  # of which the last rows are looked at

    def __init__(self, jobs: Jobs, id: str, folder: Path, lines: int = 200) -> None:
        self.jobs, self.id, self.place, self.lines = jobs, id, folder, lines
        self.job = jobs.job(id)

    def update(self) -> Path | None:
        """The folder, named as the run's; None: the run has none yet."""
        self.job = self.jobs.job(self.id)
        there = self.jobs.files(self.job, "*/*")
        runs = [name.removesuffix("/config.yaml") for name in there if name.endswith("/config.yaml")]
        if not runs:
            return None
        run = runs[-1]
        folder = self.place / run
        folder.mkdir(exist_ok=True)
        for name in (*self.SMALL, *self.GROWS, *self.LAST):
            if f"{run}/{name}" in there:
                self._bring(f"{run}/{name}", folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        return folder

    def _bring(self, name: str, path: Path) -> None:
        if path.name in self.LAST:
            path.write_bytes(self.jobs.read(self.job, name, 4))
        elif path.name in self.GROWS and path.exists():
            grown = joined(path.read_bytes(), self.jobs.read(self.job, name, self.lines))
            path.write_bytes(self.jobs.read(self.job, name) if grown is None else grown)
        else:
            path.write_bytes(self.jobs.read(self.job, name))


def joined(known: bytes, tail: bytes) -> bytes | None:
    """A file that grew, from what is known of its beginning and from its last lines; None where they do not meet in a whole line.

    Lines are told apart by their text, as those of metrics are, which hold times.
    """
    whole = known[: known.rfind(b"\n") + 1]
    last = whole[whole.rfind(b"\n", 0, -1) + 1 :]
    at = (b"\n" + tail).rfind(b"\n" + last) if last else -1
    return None if at < 0 else whole + tail[at + len(last) :]


def pack(folder: Path, target: Path, named: Iterable[Path] = ()) -> list[str]:
    """Writes the files of a folder into a ZIP archive, as Ray does, and returns their names.

    Left out are :data:`NOT_SENT`, and what ``.gitignore`` and ``.rayignore`` name; files and folders in ``named``, which are below the
    folder, are not.

    Raises:
        ClusterError: they are more than a job may have.
    """
    from ray._private.runtime_env.packaging import create_package

    create_package(str(folder), target, include_gitignore=True, excludes=list(NOT_SENT), logger=_silent())
    with zipfile.ZipFile(target, "a") as archive:
        there = set(archive.namelist())
        for path in named:
            for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
                name = file.relative_to(folder).as_posix()
                if name not in there:
                    archive.write(file, name)
                    there.add(name)
        sizes = sorted(((x.compress_size, x.filename) for x in archive.infolist()), reverse=True)
    total = target.stat().st_size
    if total > MOST:
        largest = ", ".join(f"{name} ({size / 2**20:,.0f} MiB)" for size, name in sizes[:3])
        raise ClusterError(
            f"the files of the job, those of {folder}, have {total / 2**20:,.0f} MiB; a Ray job takes at most {MOST >> 20}. The largest "
            f"are {largest}. Name what need not travel in .rayignore, and put models and data where the cluster sees them."
        )
    return sorted(there)


def fetch(jobs: Jobs, id: str, folder: Path, *, checkpoints: bool = False) -> list[Path]:
    """Copies the folder of a job's run to ``folder``, under its name there or the next free one; returns where it is now.

    A copy is whole or not there. ``checkpoints``: those too, from which ``--resume`` would continue.

    Raises:
        ClusterError: the job has no run folder (yet), or the cluster does not answer.
    """
    job = jobs.job(id)
    names = [n for n in jobs.files(job) if checkpoints or "checkpoints" not in Path(n).parts[1:2]]
    if not names:
        raise ClusterError(
            f"job {id} ({job.status.lower()}) has no run folder that could be fetched: it has not come so far, its machine is gone, or "
            f"its rlkit is older than {VERSION}. Its log: `rlkit jobs {id} --address {jobs.address}`."
        )
    made = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for run in sorted({Path(name).parts[0] for name in names}):
            part = Path(tempfile.mkdtemp(prefix=f".{run}-", dir=folder))
            try:
                for name in names:
                    if Path(name).parts[0] == run:
                        jobs.download(job, name, part / Path(name).relative_to(run))
                part.chmod(0o755)
                final, k = folder / run, 2
                while final.exists():
                    final, k = folder / f"{run}-{k}", k + 1
                part.rename(final)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
            made.append(final)
    except OSError as error:
        raise ClusterError(f"what job {id} left could not be written here ({reason(error)}).") from error
    return made


def _job(found: Any) -> Job:
    try:
        command = shlex.join(mask_command(shlex.split(found.entrypoint)))
    except ValueError:  # somebody else's job, whose command is no list of words
        command = "..."
    return Job(
        str(found.submission_id),
        str(found.status.value),
        command,
        found.message or "",
        None if found.start_time is None else found.start_time / 1000,
        None if found.end_time is None else found.end_time / 1000,
        found.driver_exit_code,
        found.driver_node_id,
    )


@contextlib.contextmanager
def _without(variables: Iterable[str]) -> Iterator[None]:
    """Inside, these environment variables are not set."""
    before = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _wants_token(error: Exception) -> bool:
    from ray.exceptions import AuthenticationError

    return isinstance(error, AuthenticationError)


def _closed(address: str) -> ClusterError:
    return ClusterError(
        f"the cluster at {address} wants a token, and not the one that is here, if any. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH "
        "to the file that it was started with (docs/security.md)."
    )


def _silent() -> logging.Logger:
    """For a library that would print what is said in sentences here."""
    logger = logging.Logger("rlkit.jobs")
    logger.addHandler(logging.NullHandler())
    return logger
