from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that need one."""
    from rlkit.cluster.ray import connect, disconnect
    from rlkit.run import Cluster

    connect(Cluster(cpus=0.3))
    yield
    disconnect()
