"""Shard actors under their supervisor, on real Ray and the in-memory broker."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray

from actors.call_context import on_behalf_of
from actors.cluster import connect, leave
from actors.handles import ShardClient
from actors.log.collections import create_collection, drop_collection
from actors.log.producer import LogProducer
from actors.log.registry import CollectionRegistry
from actors.messages import (
    EncoderDescription,
    FloatMatrix,
    PreprocessSpec,
    ShardQuery,
    ShardScan,
    ShardSearch,
    ShardStatus,
    shard_name,
)
from contract.errors import FingerprintMismatch, InvalidRequest, ShardUnavailable
from contract.events import CollectionSpec, PointEmbedded, encode_log_entry
from contract.settings import Settings
from contract.topics import embedding_log_topic, image_events_topic, vector_key
from tests.integration.local_broker import BrokerProcess
from tests.integration.system import eventually

pytestmark = pytest.mark.integration

DIMENSION = 8
DESCRIPTION = EncoderDescription(
    # No such model: the shards need none, and embedders that cannot start must not disturb them.
    model="none-such",
    fingerprint="f",
    dimension=DIMENSION,
    preprocess=PreprocessSpec(8, "fit", "bilinear", 0.0, (255, 255, 255), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    device="cpu",
)


class Instance:
    """Broker, Ray and supervisor of one home folder, and one collection with one shard."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home, kafka_local="memory")
        self.environment = {
            **os.environ,
            "RIVERLENS_HOME": str(home),
            "RIVERLENS_KAFKA_LOCAL": "memory",
            "RIVERLENS_LOG_LEVEL": "DEBUG",
        }
        self.log = home.parent / f"{home.name}.log"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.broker = BrokerProcess(home, "memory")
        self.published = 0

    def start(self) -> None:
        self.broker.start()
        self.run("actors.cluster")
        connect(self.settings, 90)
        self.registry = CollectionRegistry(self.settings)
        self.spec = self.create()
        self.shard = ShardClient(self.spec.name, self.spec.incarnation, 0, 0)
        self.run("actors.supervisor")

    def create(self) -> CollectionSpec:
        wanted = CollectionSpec(
            name="images",
            incarnation=uuid.uuid4().hex,
            created_at_ms=0,
            partitions=1,
            shards=1,
            replicas=1,
            model=DESCRIPTION.model,
            fingerprint=DESCRIPTION.fingerprint,
            dimension=DESCRIPTION.dimension,
            m=8,
            ef_construction=40,
            ef_search=32,
        )
        return create_collection(self.settings, self.registry, wanted)

    def run(self, module: str) -> None:
        with self.log.open("ab") as log:
            self.processes[module] = subprocess.Popen(
                [sys.executable, "-m", module],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def end(self) -> None:
        self.registry.close()
        leave(self.settings)
        for module in ("actors.supervisor", "actors.cluster"):
            process = self.processes[module]
            process.terminate()
            process.wait(60)
        self.broker.end()

    def vector(self, n: int) -> FloatMatrix:
        row = np.random.default_rng(n).standard_normal(DIMENSION)
        return np.asarray(row / np.linalg.norm(row), dtype=np.float32)

    async def publish(self, count: int) -> int:
        """Publish `count` more points; the source offset of the last."""
        producer = LogProducer(self.settings, "test")
        for n in range(self.published, self.published + count):
            source_offset = await producer.send(image_events_topic("images"), 0, b"", b"{}")
            entry = PointEmbedded(
                image_id=f"id-{n}",
                vector=self.vector(n).tobytes(),
                fingerprint="f",
                payload={"n": n},
                object_key="o",
                sha256="s",
                width=1,
                height=1,
                source_offset=source_offset,
                event_at_ms=0,
            )
            await producer.send(embedding_log_topic("images"), 0, vector_key(entry.image_id), encode_log_entry(entry))
        self.published += count
        await asyncio.to_thread(producer.close)
        return source_offset

    async def ready(self) -> ShardStatus:
        return await self.status(lambda status: status.state == "ready")

    async def status(self, holds: Callable[[ShardStatus], bool]) -> ShardStatus:
        async with asyncio.timeout(90):
            while True:
                try:
                    status = await self.shard.status()
                except ShardUnavailable:
                    status = None
                if status is not None and holds(status):
                    return status
                await asyncio.sleep(0.1)

    async def nearest(self, n: int, fingerprint: str = "f") -> str:
        request = ShardSearch(fingerprint, self.vector(n)[None], (ShardQuery(1),))
        try:
            return (await self.shard.search(request)).candidates[0][0].image_id
        finally:
            await self.hang_up()

    async def hang_up(self) -> None:
        """Every test has an event loop of its own, and connections belong to one."""
        self.shard.close()
        await asyncio.sleep(0)


@pytest.fixture(scope="module")
def instance(short_tmp: Path) -> Iterator[Instance]:
    one = Instance(short_tmp / "shards")
    one.start()
    yield one
    one.end()


async def test_what_is_in_the_log_is_found(instance: Instance) -> None:
    last = await instance.publish(40)
    await instance.ready()
    assert await instance.shard.wait_applied(0, last, 60)
    assert [await instance.nearest(n) for n in range(40)] == [f"id-{n}" for n in range(40)]
    status = await instance.shard.status()
    assert (status.points, status.freshness.applied_offsets) == (40, {0: last})
    state = (await instance.shard.fetch(["id-7", "nobody"], with_vector=True))[0]
    assert state is not None
    assert np.array_equal(np.asarray(state.vector), instance.vector(7))
    assert [state.image_id for state in (await instance.shard.scan(ShardScan("id-8", 2))).points] == ["id-9"]


async def test_what_a_shard_logs_names_the_requests_it_works_for(instance: Instance) -> None:
    await instance.ready()
    with on_behalf_of("request-7"):
        await instance.shard.fetch(["id-7"])
    both = ("request-8", "request-9")
    await instance.shard.search(ShardSearch("f", instance.vector(0)[None], (ShardQuery(1),), request_ids=both))
    await instance.hang_up()

    def told(call: str, request_id: str) -> bool:
        lines = instance.log.read_text(errors="replace").splitlines()
        return any(f"call={call}" in line and request_id in line and "process=shard-0-0" in line for line in lines)

    for call, request_id in (("fetch", "request-7"), *(("search", one) for one in both)):
        await asyncio.to_thread(eventually, partial(told, call, request_id), 30)


async def test_errors_of_the_shard_reach_the_caller_as_themselves(instance: Instance) -> None:
    await instance.ready()
    with pytest.raises(FingerprintMismatch):
        await instance.nearest(0, fingerprint="other")
    with pytest.raises(InvalidRequest):
        await instance.shard.wait_applied(5, 0, 1)


async def test_waiters_take_no_search_thread_and_are_woken_by_the_record(instance: Instance) -> None:
    await instance.ready()
    last = await instance.publish(1)
    assert await instance.shard.wait_applied(0, last, 60)
    waiters = [asyncio.ensure_future(instance.shard.wait_applied(0, last + 1, 60)) for _ in range(100)]
    assert await instance.nearest(0) == "id-0"
    assert not any(waiter.done() for waiter in waiters)
    await instance.publish(1)
    assert all(await asyncio.gather(*waiters))
    assert not await instance.shard.wait_applied(0, last + 1000, 0.1)


async def test_callers_that_go_away_leave_no_work_and_no_complaint(instance: Instance) -> None:
    await instance.ready()
    before = len(instance.log.read_text(errors="replace"))
    request = ShardSearch("f", instance.vector(0)[None], (ShardQuery(1),))
    calls = [asyncio.ensure_future(instance.shard.wait_applied(0, 10**9, 3600)) for _ in range(20)]
    calls += [asyncio.ensure_future(instance.shard.search(request)) for _ in range(200)]  # type: ignore[arg-type]
    await asyncio.sleep(0.01)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert await instance.nearest(0) == "id-0"
    assert (await instance.shard.status()).state == "ready"
    logged = instance.log.read_text(errors="replace")[before:]
    assert "Traceback" not in logged
    assert "Cancelled" not in logged


async def test_a_killed_shard_comes_back_with_its_points(instance: Instance) -> None:
    await instance.ready()
    last = await instance.publish(20)
    assert await instance.shard.wait_applied(0, last, 60)
    before = await instance.shard.status()
    os.kill(before.pid, signal.SIGKILL)
    after = await instance.status(lambda status: status.pid != before.pid and status.state == "ready")
    assert after.points == before.points
    assert after.freshness.applied_offsets == {0: last}
    assert after.log_offsets == before.log_offsets
    assert [await instance.nearest(n) for n in range(20)] == [f"id-{n}" for n in range(20)]
    last = await instance.publish(1)
    assert await instance.shard.wait_applied(0, last, 60)


async def test_a_new_supervisor_adopts_the_shards_of_one_that_was_killed(instance: Instance) -> None:
    before = await instance.ready()
    supervisor = instance.processes["actors.supervisor"]
    supervisor.kill()
    supervisor.wait()
    assert await instance.nearest(3) == "id-3"
    name = shard_name("images", instance.spec.incarnation, 0, 0)
    told = instance.log.read_text().count(name)
    instance.run("actors.supervisor")
    await asyncio.to_thread(eventually, lambda: instance.log.read_text().count(name) > told)
    assert (await instance.shard.status()).pid == before.pid
    os.kill(before.pid, signal.SIGKILL)
    after = await instance.status(lambda status: status.pid != before.pid and status.state == "ready")
    assert after.points == before.points


async def test_a_dropped_collection_takes_its_shards_and_stores_along(instance: Instance) -> None:
    await instance.ready()
    folder = instance.settings.home_path / "shards" / "images" / instance.spec.incarnation
    assert folder.exists()
    await asyncio.to_thread(drop_collection, instance.settings, instance.registry, "images")

    def gone() -> bool:
        names = [entry["name"] for entry in ray.util.list_named_actors(all_namespaces=True)]
        return not folder.exists() and not any(instance.spec.incarnation in str(name) for name in names)

    await asyncio.to_thread(eventually, gone, 60)
