"""Uploads, re-uploads and deletions of few pictures under few ids: never a lost point, never a needless embedding."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.events import ImageDeleted, ImageEvent
from contract.settings import Settings
from streams.continuity import Continuity
from streams.duplicates import Duplicates
from streams.outcome import SourceEvent
from streams.pipeline import Acknowledge, Pipeline
from tests.decoding import shared_decoder
from tests.unit.duplicates_fakes import FakeTable, LogShard
from tests.unit.ingest_fakes import (
    SPEC,
    Crash,
    FakeClock,
    FakeEmbedder,
    FakeLog,
    FakeObjects,
    FakeOvertaken,
    every_offset,
    png,
    source,
    upload,
)

PICTURES = [png(n) for n in range(3)]
TORN = png(0)[:30]
Plan = list[tuple[str, str, int]]

plans = st.lists(
    st.tuples(
        st.sampled_from(["upload", "upload", "upload", "delete", "torn"]), st.sampled_from("abcd"), st.integers(0, 2)
    ),
    min_size=1,
    max_size=20,
)


class World:
    """What outlives the process: log, table, shard, objects; and a count of all embeddings."""

    def __init__(self) -> None:
        self.log, self.table, self.objects = FakeLog(), FakeTable(), FakeObjects()
        self.shard = LogShard(self.log)
        self.embedded = 0
        for data in [*PICTURES, TORN]:
            self.objects.put(data)

    async def run(self, events: Sequence[SourceEvent], batch: int) -> set[tuple[int, int]]:
        """One life of the process, to its end or to a crash; which events it acknowledged."""
        acked: set[tuple[int, int]] = set()
        embedder = FakeEmbedder()

        def acknowledge(event: SourceEvent) -> Acknowledge:
            async def ack() -> None:
                acked.add((event.partition, event.offset))

            return ack

        pipeline = Pipeline(
            Settings(),
            collections=lambda _: SPEC,
            objects=self.objects,
            embedder=lambda _: embedder,
            log=self.log,
            duplicates=Duplicates(self.table, lambda *_: [self.shard]),
            decoder=shared_decoder(),
            clock=FakeClock(),
            overtaken=FakeOvertaken(),
            continuity=Continuity(every_offset),
        )
        try:
            for start in range(0, len(events), batch):
                await pipeline.submit([(e, acknowledge(e)) for e in events[start : start + batch]])
            await pipeline.drain()
        except Crash:
            pass
        self.embedded += sum(embedder.calls)
        return acked


def _events(plan: Plan) -> list[ImageEvent]:
    made: list[ImageEvent] = []
    for kind, image_id, number in plan:
        match kind:
            case "upload":
                made.append(upload(image_id, PICTURES[number]))
            case "torn":
                made.append(upload(image_id, TORN))
            case _:
                made.append(ImageDeleted("images", image_id, 1))
    return made


def _expected(plan: Plan) -> dict[str, int]:
    """Which picture each image has after one orderly run."""
    state: dict[str, int] = {}
    for kind, image_id, number in plan:
        if kind == "upload":
            state[image_id] = number
        elif kind == "delete":
            state.pop(image_id, None)
    return state


def _check_points(world: World, plan: Plan) -> None:
    rows, vectors = world.shard.applied()
    shas = [upload("x", data).sha256 for data in PICTURES]
    there = {image_id: row.point for image_id, row in rows.items() if row.point is not None}
    assert {image_id: shas.index(point.sha256) for image_id, point in there.items()} == _expected(plan)
    fresh = [asyncio.run(_vector_of(data)) for data in PICTURES]
    for image_id, point in there.items():
        np.testing.assert_allclose(vectors[image_id], fresh[shas.index(point.sha256)], atol=1e-6)
        assert point.duplicate_of != image_id


async def _vector_of(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    log, objects = FakeLog(), FakeObjects()
    objects.put(data)
    world = World()
    world.log, world.objects = log, objects
    world.shard = LogShard(log)
    await world.run(source([upload("x", data)]), 1)
    return world.shard.applied()[1]["x"]


@settings(max_examples=40, deadline=None)
@given(plan=plans)
def test_bytes_whose_point_stands_are_never_embedded_again(plan: Plan) -> None:
    """Every event before a process of its own, so that nothing is remembered but in the table and the shard."""
    world = World()
    state: dict[str, int] = {}
    needed = 0
    for step, event in zip(plan, source(_events(plan)), strict=True):
        kind, image_id, number = step
        if kind == "upload" and number not in state.values():
            needed += 1
        if kind == "upload":
            state[image_id] = number
        elif kind == "delete":
            state.pop(image_id, None)
        asyncio.run(world.run([event], 1))
        assert world.embedded == needed
    _check_points(world, plan)


@settings(max_examples=60, deadline=None)
@given(
    plan=plans,
    crashes=st.lists(st.integers(0, 25), max_size=3),
    batch=st.integers(1, 6),
    lag=st.integers(0, 5),
    lost=st.sets(st.integers(0, 3)),
    broken=st.booleans(),
)
def test_crashes_redelivery_lag_and_a_lost_table_lose_no_point(
    plan: Plan, crashes: list[int], batch: int, lag: int, lost: set[int], broken: bool
) -> None:
    world = World()
    left = source(_events(plan))
    for life, crash_after in enumerate([*crashes, None]):
        world.log.crash_after = crash_after
        world.shard.lag = min(lag, len(world.log.records)) if crash_after is not None else 0
        world.table.broken = broken and life == 0
        if life in lost:
            world.table.entries.clear()
        acked = asyncio.run(world.run(left, batch))
        committed = {
            p: min([e.offset for e in left if e.partition == p and (p, e.offset) not in acked], default=10**9)
            for p in (0, 1)
        }
        left = [e for e in left if e.offset >= committed[e.partition]]
    assert left == []
    _check_points(world, plan)
