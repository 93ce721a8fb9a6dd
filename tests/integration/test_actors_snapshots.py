"""Shard actors that lost their disk, and what a dropped collection leaves of its snapshots."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from actors.index.snapshots import Snapshots
from actors.log.collections import drop_collection
from actors.messages import RAY_NAMESPACE, shard_name
from actors.snapshot_objects import SnapshotObjects, snapshots_prefix
from tests.integration.system import eventually
from tests.integration.test_actors_shards import Instance

pytestmark = pytest.mark.integration


@pytest.fixture
def resting(short_tmp: Path) -> Iterator[Instance]:
    """With an interval that never comes round; it ends before the instance of the other tests begins."""
    one = Instance(short_tmp / "resting")
    one.environment["RIVERLENS_SNAPSHOT_INTERVAL_S"] = "100000"
    one.start()
    yield one
    one.end()


async def test_a_clean_end_leaves_a_snapshot_of_everything(resting: Instance) -> None:
    last = await resting.publish(10)
    await resting.ready()
    assert await resting.shard.wait_applied(0, last, 60)
    assert (await resting.shard.status()).snapshot_at_ms is None
    name = shard_name("images", resting.spec.incarnation, 0, 0)
    await ray.get_actor(name, RAY_NAMESPACE).close.remote()
    prefix = f"{snapshots_prefix('images', resting.spec.incarnation)}0/"
    elsewhere = Snapshots(resting.settings.home_path / "elsewhere", 2, SnapshotObjects(resting.settings, prefix))
    restored = elsewhere.restore(resting.settings.home_path / "restored", lambda _: None)
    assert restored is not None
    assert restored.facts.points == 10


@pytest.fixture(scope="module")
def instance(short_tmp: Path) -> Iterator[Instance]:
    one = Instance(short_tmp / "snapshots")
    one.environment["RIVERLENS_SNAPSHOT_INTERVAL_S"] = "0.5"
    one.start()
    yield one
    one.end()


async def snapshotted(instance: Instance, count: int) -> None:
    """Publish, and wait until a snapshot of all of it is in the object store."""
    last = await instance.publish(count)
    await instance.ready()
    assert await instance.shard.wait_applied(0, last, 60)
    uploads = told(instance, "snapshot uploaded")
    await asyncio.to_thread(eventually, lambda: told(instance, "snapshot uploaded") > uploads, 60)


def told(instance: Instance, event: str) -> int:
    return instance.log.read_text().count(event)


@pytest.mark.parametrize("lost", [("shards",), ("shards", "snapshots")], ids=["the store", "the whole disk"])
async def test_a_shard_whose_store_is_gone_starts_from_its_snapshot(instance: Instance, lost: tuple[str, ...]) -> None:
    await snapshotted(instance, 30)
    before = await instance.shard.status()
    assert before.snapshot_at_ms is not None
    restored = told(instance, "snapshot restored")
    supervisor = instance.processes["actors.supervisor"]
    os.kill(supervisor.pid, signal.SIGSTOP)  # so that the store is gone before the shard is started again
    try:
        os.kill(before.pid, signal.SIGKILL)
        for part in lost:
            shutil.rmtree(instance.settings.home_path / part / "images" / instance.spec.incarnation / "0-0")
        tail = await instance.publish(5)
    finally:
        os.kill(supervisor.pid, signal.SIGCONT)
    after = await instance.status(lambda status: status.pid != before.pid and status.state == "ready")
    await asyncio.to_thread(eventually, lambda: told(instance, "snapshot restored") == restored + 1, 30)
    assert await instance.shard.wait_applied(0, tail, 60)
    assert after.log_offsets[0] >= before.log_offsets[0]
    points = instance.published
    assert (await instance.shard.status()).points == points
    assert [await instance.nearest(n) for n in range(points)] == [f"id-{n}" for n in range(points)]


async def test_a_dropped_collection_takes_its_snapshots_along(instance: Instance) -> None:
    await snapshotted(instance, 1)
    settings, incarnation = instance.settings, instance.spec.incarnation
    local = settings.home_path / "snapshots" / "images" / incarnation
    remote = settings.home_path / "objects" / snapshots_prefix("images", incarnation)
    assert list(local.glob("*/*/manifest.json"))
    assert list(remote.glob("*/manifests/*.json"))
    await asyncio.to_thread(drop_collection, settings, instance.registry, "images")

    def gone() -> bool:
        return not local.exists() and not [path for path in remote.rglob("*") if path.is_file()]

    await asyncio.to_thread(eventually, gone, 60)
