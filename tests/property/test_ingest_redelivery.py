"""Whatever fails and wherever the worker dies: repeated events end in the state of one orderly run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from contract.events import (
    DELETED_HEADER,
    EventRejected,
    ImageDeleted,
    ImageEvent,
    PayloadChanged,
    PayloadUpdated,
    PointDeleted,
    PointEmbedded,
    decode_log_entry,
)
from contract.settings import Settings
from contract.topics import embedding_log_topic
from streams.continuity import Continuity
from streams.duplicates import Duplicates
from streams.outcome import SourceEvent
from streams.pipeline import Acknowledge, Pipeline
from tests.decoding import shared_decoder
from tests.unit.duplicates_fakes import FakeTable
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

LOG = embedding_log_topic("images")
TORN = png(0)[:30]
State = dict[str, tuple[bytes, int]]

steps = st.lists(
    st.tuples(st.sampled_from(["upload", "torn", "delete", "payload"]), st.sampled_from("abcd"), st.integers(1, 60)),
    min_size=1,
    max_size=25,
)


def _events(plan: Sequence[tuple[str, str, int]]) -> list[ImageEvent]:
    made: list[ImageEvent] = []
    for kind, image_id, number in plan:
        match kind:
            case "upload":
                made.append(upload(image_id, png(number), n=number))
            case "torn":
                made.append(upload(image_id, TORN))
            case "delete":
                made.append(ImageDeleted("images", image_id, number))
            case _:
                made.append(PayloadUpdated("images", image_id, {"n": number}, number))
    return made


def _expected(plan: Sequence[tuple[str, str, int]]) -> dict[str, tuple[str, int]]:
    """Which picture and which payload each image has after one orderly run."""
    state: dict[str, tuple[str, int]] = {}
    for kind, image_id, number in plan:
        if kind == "upload":
            state[image_id] = (upload(image_id, png(number)).sha256, number)
        elif kind == "delete":
            state.pop(image_id, None)
        elif kind == "payload" and image_id in state:
            state[image_id] = (state[image_id][0], number)
    return state


def _applied(log: FakeLog) -> dict[str, tuple[str, int]]:
    """The log as a shard reads it: an entry counts unless its image has seen a later event."""
    state: dict[str, tuple[str, int]] = {}
    seen: dict[str, int] = {}
    payload_seen: dict[str, int] = {}
    for record in log.of(LOG):
        entry = decode_log_entry(record.headers[DELETED_HEADER] if record.value is None else record.value)
        image_id = getattr(entry, "image_id", "")
        match entry:
            case EventRejected():
                continue
            case PointEmbedded() if entry.source_offset >= seen.get(image_id, -1):
                if payload_seen.get(image_id, -1) <= entry.source_offset or image_id not in state:
                    state[image_id] = (entry.sha256, entry.payload["n"])
                    payload_seen[image_id] = entry.source_offset
                else:
                    state[image_id] = (entry.sha256, state[image_id][1])
                seen[image_id] = entry.source_offset
            case PointDeleted() if entry.source_offset >= seen.get(image_id, -1):
                state.pop(image_id, None)
                seen[image_id] = entry.source_offset
            case PayloadChanged() if image_id in state and entry.source_offset >= payload_seen.get(image_id, -1):
                state[image_id] = (state[image_id][0], entry.payload["n"])
                payload_seen[image_id] = entry.source_offset
    return state


async def _run_until_crash(
    events: Sequence[SourceEvent], log: FakeLog, objects: FakeObjects, batch: int, outages: int
) -> set[tuple[int, int]]:
    acked: set[tuple[int, int]] = set()
    embedder = FakeEmbedder()
    embedder.outages = outages

    def acknowledge(event: SourceEvent) -> Acknowledge:
        async def ack() -> None:
            acked.add((event.partition, event.offset))

        return ack

    pipeline = Pipeline(
        Settings(),
        collections=lambda _: SPEC,
        objects=objects,
        embedder=lambda _: embedder,
        log=log,
        duplicates=Duplicates(FakeTable(), lambda *_: []),
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
    return acked


@settings(max_examples=60, deadline=None)
@given(plan=steps, crashes=st.lists(st.integers(0, 40), max_size=3), batch=st.integers(1, 6), outages=st.integers(0, 2))
def test_any_crash_and_redelivery_ends_in_the_state_of_one_run(
    plan: list[tuple[str, str, int]], crashes: list[int], batch: int, outages: int
) -> None:
    log, objects = FakeLog(), FakeObjects()
    objects.put(TORN)
    for _, _, number in plan:
        objects.put(png(number))
    everything = source(_events(plan))
    left = everything
    for crash_after in [*crashes, None]:
        log.crash_after = crash_after
        acked = asyncio.run(_run_until_crash(left, log, objects, batch, outages))
        # Kafka keeps one offset per partition: everything from the first unacknowledged event on comes again.
        committed = {
            p: min([e.offset for e in left if e.partition == p and (p, e.offset) not in acked], default=10**9)
            for p in (0, 1)
        }
        left = [e for e in left if e.offset >= committed[e.partition]]
    assert left == []
    assert _applied(log) == _expected(plan)
