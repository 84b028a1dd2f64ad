"""Files that go to machines which do not see the run folder, and come back from them, through Ray's object store.

A machine sees the run folder where the file system is shared, and else only the driver's does. What the driver made there (the model that
training starts from, a checkpoint that is continued) is unpacked on the others in a folder for temporary files; what a learner writes
there goes the other way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.errors import WorkerError, first_line

PIECE = 64 << 20  # bytes
PATIENCE = 30.0  # seconds within which a machine says what it sees


@dataclass(frozen=True)
class Luggage:
    """The files of a folder, each as pieces in Ray's object store, which spills to disk what it has no room for."""

    files: tuple[tuple[str, tuple[Any, ...]], ...]

    @classmethod
    def of(cls, folder: Path) -> Luggage:
        """What is in a folder of this machine now."""
        import ray

        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return cls(
            tuple((path.relative_to(folder).as_posix(), tuple(ray.put(p) for p in _pieces(path))) for path in paths)
        )

    def unpack(self, folder: Path) -> None:
        """Writes the files into a folder of this machine.

        Raises:
            WorkerError: the machine that packed them is lost.
            OSError: they cannot be written.
        """
        import ray

        for name, pieces in self.files:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as out:
                for piece in pieces:
                    try:
                        out.write(ray.get(piece))
                    except ray.exceptions.RayError as error:
                        raise WorkerError(
                            f"{name} was lost on the way from another machine: {first_line(error)}"
                        ) from error


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as f:
        while piece := f.read(PIECE):
            yield piece


@dataclass(frozen=True)
class Model:
    """A folder or hub name of a model, and its files for the machines ``away``, which do not have them; None: it is there everywhere."""

    path: str
    luggage: Luggage | None = None
    away: frozenset[str] = frozenset()

    def here(self, room: Callable[[], str]) -> str:
        """Where this machine has it; ``room`` makes a folder for what has to be unpacked."""
        if self.luggage is None or (machine() not in self.away and os.path.exists(self.path)):
            return self.path
        folder = room()
        self.luggage.unpack(Path(folder))
        return folder


def machine() -> str:
    """This one, by Ray's id."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def sees(path: str) -> bool:
    """Whether this machine has the file."""
    return os.path.exists(path)


def machines_without(path: Path) -> frozenset[str]:
    """The machines of the cluster, which is joined, that do not see a file of this one."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != machine()]
    look = ray.remote(num_cpus=0, max_retries=0)(sees)
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(str(path)): node
        for node in others
    }
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE) if asked else ([], [])
    return frozenset(asked[ref] for ref in answered if not _true(ref))


def _true(ref: Any) -> bool:
    """The answer; a machine that is lost meanwhile sees nothing, and gets no worker either."""
    import ray

    try:
        return bool(ray.get(ref))
    except ray.exceptions.RayError:
        return False
