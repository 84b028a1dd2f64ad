from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of this folder. Warnings of vLLM, Ray and DeepSpeed, whose imports alone give dozens, end none of them."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.stack)
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that need one."""
    from rlkit.cluster.ray import connect, disconnect
    from rlkit.run import Cluster

    connect(Cluster(cpus=0.3))
    yield
    disconnect()
