"""``rlkit jobs``: the jobs of a cluster, the log of one of them, its end, and the folder of its run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rlkit.cluster.jobs import Job, Jobs, fetch
from rlkit.distribution import NAME
from rlkit.errors import RunError
from rlkit.stopping import Stopped


def jobs(address: str) -> list[Job]:
    """The jobs that were sent to the cluster whose dashboard is at ``address``, the newest first."""
    return Jobs(address).all()


def follow_job(id: str, *, address: str, say: Callable[[str], object] = print) -> Job:
    """Says what a job prints until it is over.

    Raises:
        ClusterError: there is no such job, or no cluster.
        RunError: it failed.
    """
    return followed(Jobs(address), id, say)


def followed(cluster: Jobs, id: str, say: Callable[[str], object]) -> Job:
    """See :func:`follow_job`. Who interrupts it hears that the job goes on."""
    try:
        job = cluster.follow(id, say)
    except KeyboardInterrupt:
        left = Stopped(f"job {id} goes on without being followed", 130)
        left.kept = ways(id, cluster.address)
        raise left from None
    if job.status != "FAILED":
        return job
    if job.exit_code == 127:
        raise RunError(
            f"job {id} failed: its shell finds no program rlkit. Install {NAME} on all machines of the cluster, and start Ray in that "
            "environment."
        )
    if job.exit_code is None:
        raise RunError(f"job {id} failed: {job.message.strip() or 'Ray says nothing more'}")
    raise RunError(f"job {id} ended with exit code {job.exit_code}; its log says why.")


def ways(id: str, address: str) -> str:
    """What can be done with a job, as the end of a sentence."""
    at = f"--address {address}"
    return (
        f"its log: `rlkit jobs {id} {at}`, its curves: `rlkit watch {id} {at}`, its end: `rlkit jobs {id} --stop {at}`"
    )


def stop_job(id: str, *, address: str) -> Job:
    """Ends the run of a job, which writes a checkpoint first; returns when it has.

    Raises:
        ClusterError: there is no such job, or no cluster.
    """
    return Jobs(address).stop(id)


def fetch_job(id: str, folder: str | Path, *, address: str, checkpoints: bool = False) -> Path:
    """Copies the run folder of a job, whatever its state, into ``folder``; returns where it is now.

    Raises:
        ClusterError: there is no such job, or it has no run folder.
    """
    return fetch(Jobs(address), id, Path(folder), checkpoints=checkpoints)[-1]
