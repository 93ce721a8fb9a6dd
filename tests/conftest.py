"""The running systems that the integration and browser tests share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.pictures import sample_pictures
from tests.integration.system import RunningSystem, kafka_can_run


@pytest.fixture(scope="session")
def short_tmp() -> Iterator[Path]:
    """A short folder: Unix sockets under it must keep within their length limit."""
    folder = Path(tempfile.mkdtemp(prefix="rl-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session", params=["kafka", "memory"])
def system(request: pytest.FixtureRequest, short_tmp: Path) -> Iterator[RunningSystem]:
    """The whole system, once on Apache Kafka and once on librdkafka's in-memory cluster.

    Without Java the Kafka half is skipped on a person's machine; in continuous integration
    (`CI=true`) it fails instead.
    """
    kind = str(request.param)
    if kind == "kafka" and not kafka_can_run():
        pytest.skip("Apache Kafka needs Java 17 and Maven")
    running = RunningSystem(short_tmp / kind, kind)
    try:
        running.start()
        yield running
    finally:
        running.end()


@pytest.fixture(scope="session")
def pictures() -> list[tuple[str, bytes]]:
    """Real sample pictures: (caption, bytes)."""
    return sample_pictures()


@pytest.fixture
def fresh_system(short_tmp: Path) -> Iterator[Callable[..., RunningSystem]]:
    """Makes systems of one test's own, and ends them."""
    made: list[RunningSystem] = []

    def make(name: str, kind: str, **settings: str) -> RunningSystem:
        made.append(RunningSystem(short_tmp / name, kind, settings))
        return made[-1]

    yield make
    for one in made:
        one.end()
