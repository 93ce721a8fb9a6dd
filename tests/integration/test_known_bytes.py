"""The known-bytes table of two ingest processes on a real broker: each reads what the other writes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from actors.log.admin import ensure_topic
from actors.log.producer import LogProducer
from contract.settings import Settings
from contract.topics import image_events_spec, known_bytes_key, system_topic_specs
from streams.app import make_app
from streams.known_bytes import KnownBytesTable
from tests.integration.local_broker import BrokerProcess
from tests.integration.system import kafka_can_run, on_both_brokers

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


@pytest.fixture(params=["memory", "kafka"])
def settings(request: pytest.FixtureRequest, short_tmp: Path) -> Iterator[Settings]:
    kind = str(request.param)
    if kind == "kafka" and not kafka_can_run():
        pytest.skip("Apache Kafka needs Java 17 and Maven")
    broker = BrokerProcess(short_tmp / f"tables-{kind}", kind)
    try:
        broker.start()
        for spec in system_topic_specs(-1):
            ensure_topic(broker.settings, spec)
        ensure_topic(broker.settings, image_events_spec("images", 2, -1))
        yield broker.settings
    finally:
        broker.end()


@asynccontextmanager
async def _process(settings: Settings, folder: Path) -> AsyncIterator[KnownBytesTable]:
    """What an ingest process has of the table, from its start to its end."""

    async def submit(_: object) -> None:
        await asyncio.sleep(0)

    app = make_app(settings, {"images": "life"}, submit, folder)
    producer = LogProducer(settings, "test-tables")
    table = KnownBytesTable(app, producer)
    app.finalize()
    await app.start()
    try:
        await asyncio.wait_for(table.restored(), 120)
        yield table
    finally:
        await app.stop()
        await asyncio.to_thread(producer.close)


async def _eventually(probe: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not probe():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def _key(number: int) -> bytes:
    key = known_bytes_key("life", "f", f"{number:064x}")
    assert key is not None
    return key


async def test_what_is_written_outlives_the_process_and_its_folder(settings: Settings, tmp_path: Path) -> None:
    async with _process(settings, tmp_path / "one") as one:
        await one.put({_key(1): b"first", _key(2): b"kept", _key(3): uuid.uuid4().bytes})
        await _eventually(lambda: one.get(_key(1)) == b"first")
        await one.put({_key(3): b"changed", _key(1): None})
        await _eventually(lambda: one.get(_key(3)) == b"changed" and one.get(_key(1)) is None)
    # A folder that is there goes on from its place, one that is lost is read from the changelog.
    for folder in ("one", "two"):
        async with _process(settings, tmp_path / folder) as again:
            assert [again.get(_key(n)) for n in range(1, 4)] == [None, b"kept", b"changed"]


@pytest.mark.skipif(not on_both_brokers(), reason="two Faust apps in one process: with `make test-brokers`")
async def test_each_reads_what_the_other_writes(settings: Settings, tmp_path: Path) -> None:
    async with _process(settings, tmp_path / "one") as one:
        await one.put({_key(1): b"before the other came"})
        await _eventually(lambda: one.get(_key(1)) == b"before the other came")
        async with _process(settings, tmp_path / "two") as two:
            await _eventually(lambda: two.get(_key(1)) == b"before the other came")
            await two.put({_key(2): b"by the other", _key(3): uuid.uuid4().bytes})
            await _eventually(lambda: one.get(_key(2)) == b"by the other")
            await one.put({_key(3): b"changed", _key(1): None})
            await _eventually(lambda: two.get(_key(3)) == b"changed" and two.get(_key(1)) is None)
        await _eventually(lambda: one.get(_key(3)) == b"changed")
        await one.put({_key(4): b"alone again"})
        await _eventually(lambda: one.get(_key(4)) == b"alone again")
