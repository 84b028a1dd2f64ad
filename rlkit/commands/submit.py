"""``rlkit submit``: the same ``rlkit train`` as a job on a Ray cluster, with the current folder as its files."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rlkit.cluster.jobs import Jobs, fetch, pack
from rlkit.commands.jobs import followed, ways
from rlkit.config import plain
from rlkit.errors import ClusterError, ConfigError, RunError
from rlkit.reading import configuration, override, read
from rlkit.record.masking import mask_command
from rlkit.resume import leaves
from rlkit.run import Run, load
from rlkit.shipped import CONFIGS, EXAMPLES

SHIPPED = (CONFIGS.resolve(), EXAMPLES.resolve())  # the cluster has them, too


def submit(
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    address: str,
    wait: bool = True,
    resume: bool = False,
    env: Sequence[str] = (),
    fetch_to: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Sends the job and, with ``wait``, follows its log until it ends; returns the job's id.

    The working folder of the job is a copy of the current folder, without runs, weights and what is ignored, but with everything below it
    that the configuration names: paths mean the same there. rlkit must be installed on the cluster, and has configurations that come with
    it there by the same name. The run folder is ``out`` on the cluster's head; one that is relative is below the home folder there.

    Args:
        resume: the newest run of this name in ``out`` there is continued. env: variables for the run and its workers, ``NAME=VALUE``, or
            ``NAME`` for the value that it has here. fetch_to: the run folder is copied here at the end, whatever the end is.

    Raises:
        ConfigError: a mistake in the configuration, or a variable that is not set.
        ClusterError: no Ray dashboard at ``address``, or something that the configuration names would not be there.
        RunError: the job failed.
        Stopped: who follows it was interrupted; the job goes on.
    """
    run = load(config, overrides)  # a typo is found here, not on the cluster
    variables = environment(env)
    if fetch_to is not None and not wait:
        raise ConfigError(
            "a run folder is fetched at the end of a job that is followed: leave out --no-wait, or --fetch."
        )
    folder, path = Path.cwd(), configuration(config)
    is_own = path == Path(config)
    if is_own and not path.resolve().is_relative_to(folder):
        raise ClusterError(
            f"{config} is not below the current folder {folder}, which is what the job gets. Run rlkit submit from the "
            "project's folder."
        )
    named = list(travelling(run, config, overrides, folder, say))
    cluster = Jobs(address)
    _compare(cluster, say)
    words = ["rlkit", "train", str(path.resolve().relative_to(folder) if is_own else config), *overrides]
    if not any(o.startswith("cluster.address=") for o in overrides):
        words.append("cluster.address=auto")
    if resume:
        words.append("--resume")
    out = Path(run.out)
    # The job's own folder is Ray's, who removes it: what a run leaves goes to the home folder there, which its shell knows.
    home = "" if out.is_absolute() else f' out="$HOME"/{shlex.quote(out.as_posix())}'
    job = f"{re.sub(r'[^A-Za-z0-9_.-]', '-', run.name)}-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory() as place:
        files = Path(place) / "files.zip"
        pack(folder, files, named)
        cluster.send(job, shlex.join(words) + home, files, variables)
    say(f"job {job}: {shlex.join(mask_command(words))}{home}")
    if not wait:
        say(f"  {ways(job, cluster.address)}")
        return job
    try:
        ended = followed(cluster, job, say)
    except RunError:
        _bring(cluster, job, fetch_to, say)
        raise
    _bring(cluster, job, fetch_to, say)
    if ended.status == "STOPPED":
        say(f"job {job} was stopped; the same command with --resume continues its run.")
    return job


def _bring(cluster: Jobs, job: str, folder: str | Path | None, say: Callable[[str], object]) -> None:
    if folder is not None and cluster.files(cluster.job(job)):
        say(f"fetched: {fetch(cluster, job, Path(folder))[-1]}")


def _compare(cluster: Jobs, say: Callable[[str], object]) -> None:
    """Says that the cluster has another Ray. Its rlkit says by itself that it was sent by another (:mod:`rlkit.cluster.ray`)."""
    import ray

    if cluster.version.split(".")[:2] != ray.__version__.split(".")[:2]:
        say(
            f"note: the cluster has Ray {cluster.version}, here is {ray.__version__}. The run is the cluster's; sending it may fail."
        )


def environment(given: Sequence[str]) -> dict[str, str]:
    """Variables by name.

    Raises:
        ConfigError: one is no variable, or is to be taken over and not set here.
    """
    out = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigError(
                "--env takes NAME or NAME=VALUE; what was given does not begin with the name of a variable."
            )
        if not equals and name not in os.environ:
            raise ConfigError(f"--env {name}: there is no such variable here. Set it, or give --env {name}=VALUE.")
        out[name] = value if equals else os.environ[name]
    return out


def travelling(
    run: Run, config: str | Path, overrides: Sequence[str], folder: Path, say: Callable[[str], object]
) -> Iterator[Path]:
    """Files and folders below the current folder that a configuration names, itself among them.

    Raises:
        ClusterError: a path leads out of the folder, so that it means nothing in the job's.
    """
    tree = read(config)
    for o in overrides:
        override(tree, o)
    written = dict(tree.leaves())
    for place in {leaf.folder.resolve() for leaf in written.values() if leaf.folder is not None}:
        if not _inside(place, folder, *SHIPPED):
            raise ClusterError(
                f"{config} extends a file in {place}, which is not below the current folder {folder}: the job gets no more than that. "
                "Run rlkit submit from a folder that holds both."
            )
    if _inside(configuration(config).resolve(), folder):
        yield configuration(config).resolve()
    for key, value in leaves(plain(run)).items():
        text = re.sub(r"(\.py):[^:/]+$", r"\1", value) if isinstance(value, str) and key not in ("name", "out") else ""
        if not text or not os.path.exists(text):
            continue
        path = Path(text).resolve()
        as_written = str(written[key].value) if key in written else ""
        if _inside(path, folder):
            if path != folder:
                yield path
        elif as_written.startswith("/"):
            say(f"note: {key}: {text} is not below the current folder: the cluster must have it at the same place.")
        elif not _inside(path, *SHIPPED):
            raise ClusterError(
                f"{key}: {text} is not below the current folder {folder}, which is what the job gets. Run rlkit submit from a folder that "
                "holds both, or give the absolute path that it has on the cluster."
            )


def _inside(path: Path, *folders: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)
