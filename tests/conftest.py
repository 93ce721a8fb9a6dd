"""The running systems that the integration and browser tests share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.pictures import sample_pictures
from tests.integration.system import RunningSystem, kafka_can_run, on_both_brokers

_RUNNING: list[RunningSystem] = []
# What these ask depends on the broker, so they are run on both kinds; the others on one, unless all are asked for.
_OF_THE_BROKER = frozenset({"test_promises", "test_system_queries", "test_dead_letters"})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is run on Apache Kafka anyway (`make test-brokers` leaves out nothing)."""
    if on_both_brokers() or not kafka_can_run():
        return
    left_out = [item for item in items if _is_repetition(item)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def _is_repetition(item: pytest.Item) -> bool:
    kind = item.callspec.params.get("system") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ""
    return kind == "memory" and item.path.stem not in _OF_THE_BROKER


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Beside a failure stands what the systems that ran during it had to say."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        report.sections += [(f"log of the system on {one.kind}", one.warnings()) for one in _RUNNING]


@pytest.fixture(scope="session")
def short_tmp() -> Iterator[Path]:
    """A short folder: Unix sockets under it must keep within their length limit."""
    folder = Path(tempfile.mkdtemp(prefix="rl-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session", params=["kafka", "memory"])
def system(request: pytest.FixtureRequest, short_tmp: Path) -> Iterator[RunningSystem]:
    """The whole system, on Apache Kafka and, where the broker matters, on librdkafka's in-memory cluster.

    Without Java the Kafka half is skipped on a person's machine; in continuous integration
    (`CI=true`) it fails instead.
    """
    kind = str(request.param)
    if kind == "kafka" and not kafka_can_run():
        pytest.skip("Apache Kafka needs Java 17 and Maven")
    running = RunningSystem(short_tmp / kind, kind)
    _RUNNING.append(running)
    try:
        running.start()
        yield running
    finally:
        running.end()
        _RUNNING.remove(running)


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
        _RUNNING.append(made[-1])
        return made[-1]

    yield make
    for one in made:
        one.end()
        _RUNNING.remove(one)
