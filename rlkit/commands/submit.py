"""``rlkit submit``: the same ``rlkit train`` as a job on a Ray cluster, with the folder of the configuration as its files."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rlkit.distribution import install
from rlkit.errors import ClusterError, RunError, first_line
from rlkit.reading import configuration
from rlkit.run import load

SKIP = ["runs/", "**/.git/", "**/.venv/", "**/__pycache__/", "*.safetensors", "*.pt"]


def submit(
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    address: str,
    wait: bool = True,
    say: Callable[[str], None] = print,
) -> str:
    """Sends the job and, with ``wait``, follows its log until it ends; returns the job's id.

    The working folder of the job is the current folder (without runs and weights), so paths in the configuration mean the same there.
    rlkit must be installed on the cluster, and has configurations that come with it there by the same name.

    Raises:
        ConfigError: a mistake in the configuration. ClusterError: no Ray dashboard at ``address``.
        RunError: the job failed.
    """
    load(config, overrides)  # a typo is found here, not on the cluster
    folder = Path.cwd()
    path = configuration(config)
    is_own = path == Path(config)
    if is_own and not path.resolve().is_relative_to(folder):
        raise ClusterError(
            f"{config} is not below the current folder {folder}, which is what the job gets. Run rlkit submit from the "
            "project's folder."
        )
    try:
        from ray.job_submission import JobStatus, JobSubmissionClient
    except ImportError:
        raise ClusterError(f"rlkit submit needs ray. {install('cpu', 'gpu')}.") from None
    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise ClusterError(
            f"no Ray dashboard answers at {address} ({first_line(error)}). Start one with `ray start --head "
            "--dashboard-host 0.0.0.0`; its default port is 8265."
        ) from None
    joins = [] if any(o.startswith("cluster.address=") for o in overrides) else ["cluster.address=auto"]
    command = shlex.join(
        ["rlkit", "train", str(path.resolve().relative_to(folder) if is_own else config), *overrides, *joins]
    )
    job = _accepted(
        lambda: client.submit_job(entrypoint=command, runtime_env={"working_dir": str(folder), "excludes": SKIP})
    )
    say(f"job {job}: {command}")
    if not wait:
        say(f"  follow it with: ray job logs {job} --address {address} --follow")
        return job
    shown = 0
    while True:
        done = client.get_job_status(job) in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)
        log = client.get_job_logs(job)
        whole = len(log) if done else log.rfind("\n") + 1  # the last line may be half written
        for line in log[shown:whole].splitlines():
            say(line)
        shown = max(shown, whole)
        if done:
            break
        time.sleep(2)
    status = client.get_job_status(job)
    if status != JobStatus.SUCCEEDED:
        raise RunError(f"job {job} ended as {status}: {client.get_job_info(job).message or 'see its log above'}")
    return job


def _accepted(send: Callable[[], str], patience: float = 150.0) -> str:
    """A cluster that has just started answers before it can run jobs: ask again for a while."""
    end = time.monotonic() + patience
    while True:
        try:
            return send()
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(2)
