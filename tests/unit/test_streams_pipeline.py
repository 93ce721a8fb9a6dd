"""The ingest pipeline on fakes: what becomes of each event, in which order, acknowledged when."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from actors.log.records import LogRecord
from contract.errors import LogGap, NotFound, Unavailable
from contract.events import (
    DELETED_HEADER,
    CollectionSpec,
    EventRejected,
    ImageDeleted,
    ImageUploaded,
    PayloadChanged,
    PayloadUpdated,
    PointDeleted,
    PointEmbedded,
    SourceAdvanced,
    decode_dead_letter,
    decode_log_entry,
)
from contract.settings import Settings
from contract.topics import DEAD_LETTER_TOPIC, embedding_log_topic, payload_key, rejection_key, vector_key
from streams.continuity import Continuity
from streams.duplicates import Duplicates
from streams.outcome import SourceEvent
from streams.pipeline import Acknowledge, Pipeline
from streams.redriven import ReadEvents
from tests.decoding import shared_decoder
from tests.unit.duplicates_fakes import FakeTable, LogShard
from tests.unit.ingest_fakes import (
    SPEC,
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


class Bench:
    """A pipeline and everything around it."""

    def __init__(self, objects: FakeObjects | None = None, **settings: int) -> None:
        self.objects = objects or FakeObjects()
        self.embedder = FakeEmbedder()
        self.log = FakeLog()
        self.clock = FakeClock()
        self.overtaken = FakeOvertaken()
        self.table = FakeTable()
        self.shard = LogShard(self.log)
        self.acked: list[tuple[int, int]] = []
        self.published_at_ack: list[int] = []
        self.settings = Settings(**settings)  # type: ignore[arg-type]

    async def run(self, events: Sequence[SourceEvent], batch: int = 4) -> None:
        """Feed the events in batches and wait for all."""

        def spec(name: str) -> CollectionSpec:
            if name != "images":
                raise NotFound(name)
            return SPEC

        pipeline = Pipeline(
            self.settings,
            collections=spec,
            objects=self.objects,
            embedder=lambda _: self.embedder,
            log=self.log,
            duplicates=Duplicates(self.table, lambda *_: [self.shard]),
            decoder=shared_decoder(),
            clock=self.clock,
            overtaken=self.overtaken,
            continuity=Continuity(every_offset),
        )
        for start in range(0, len(events), batch):
            await pipeline.submit([(event, self._ack(event)) for event in events[start : start + batch]])
        await pipeline.drain()

    def _ack(self, event: SourceEvent) -> Acknowledge:
        async def ack() -> None:
            self.acked.append((event.partition, event.offset))
            self.published_at_ack.append(len(self.log.records))

        return ack

    def entries(self) -> list[object]:
        """What the embedding log holds, decoded."""
        return [
            decode_log_entry(record.headers[DELETED_HEADER] if record.value is None else record.value)
            for record in self.log.of(LOG)
        ]

    def add(self, image_id: str, seed: int, **payload: object) -> ImageUploaded:
        """An upload whose bytes are in the object store."""
        self.objects.put(png(seed))
        return upload(image_id, png(seed), **payload)


async def test_nothing_is_acknowledged_behind_events_that_were_passed_over() -> None:
    """At a rebalance Faust may go on behind what it had buffered: an acknowledgement there would lose those events."""
    bench = Bench()
    events = source([b"?"] * 6, partition=0)
    with pytest.raises(Unavailable, match="goes on at 4, not at 2"):
        await bench.run([*events[:2], *events[4:]], batch=2)
    assert [offset for _, offset in bench.acked] in ([], [0], [0, 1])
    # A suffix that comes again is no hole.
    again = Bench()
    await again.run([*events[:4], *events[1:]], batch=2)
    assert again.acked[-1] == (0, 5)


def of_log(*offsets: int) -> ReadEvents:
    """Reads a log with events at these offsets, the first of which is the first that is kept."""

    def read(_collection: str, partition: int, start: int, most: int) -> list[LogRecord]:
        if start < offsets[0]:
            raise LogGap("gone")
        return [LogRecord(partition, n, b"", b"", {}, 0) for n in offsets if n >= start][:most]

    return read


async def test_offsets_without_an_event_are_no_hole() -> None:
    events = source([b"?"] * 6, partition=0)
    # Where a producer's transaction ended; the log has nothing to read there.
    await Continuity(of_log(0, 1, 4, 5)).check([*events[:2], *events[4:]])
    # Deleted by the topic's retention before they were read.
    await Continuity(of_log(4, 5)).check([*events[:2], *events[4:]])
    with pytest.raises(Unavailable, match="goes on at 4, not at 2"):
        await Continuity(of_log(0, 1, 3, 4)).check([*events[:2], *events[4:]])


async def test_an_upload_becomes_a_point_with_its_payload_and_source_offset() -> None:
    bench = Bench()
    await bench.run(source([bench.add("a", 1, caption="one")]))
    (point,) = bench.entries()
    assert isinstance(point, PointEmbedded)
    assert (point.image_id, point.payload, point.source_offset) == ("a", {"caption": "one"}, 0)
    assert (point.width, point.height, point.fingerprint) == (16, 16, SPEC.fingerprint)
    assert np.linalg.norm(np.frombuffer(point.vector, "<f4")) == pytest.approx(1.0)
    assert bench.log.of(LOG)[0].key == vector_key("a")


async def test_a_delete_becomes_three_tombstones_and_a_payload_change_embeds_nothing() -> None:
    bench = Bench()
    await bench.run(source([ImageDeleted("images", "a", 1), PayloadUpdated("images", "a", {"n": 2}, 1)]))
    *tombstones, changed = bench.entries()
    assert tombstones == [PointDeleted("a", 0, 1000)] * 3
    assert [r.key for r in bench.log.of(LOG)] == [
        vector_key("a"),
        payload_key("a"),
        rejection_key("a"),
        payload_key("a"),
    ]
    assert changed == PayloadChanged("a", {"n": 2}, 1, 1000)
    assert bench.embedder.calls == []


async def test_a_broken_picture_leaves_a_dead_letter_first_and_then_a_marker() -> None:
    bench = Bench()
    torn = png(3)[:40]
    bench.objects.put(torn)
    await bench.run(source([upload("torn", torn), bench.add("good", 1)]))
    letter = decode_dead_letter(bench.log.of(DEAD_LETTER_TOPIC)[0].value or b"")
    assert (letter.image_id, letter.stage, letter.code, letter.retryable) == ("torn", "decode", "invalid_image", False)
    assert bench.log.records[0].topic == DEAD_LETTER_TOPIC
    kinds = {type(entry) for entry in bench.entries()}
    assert kinds == {EventRejected, PointEmbedded}
    assert len(bench.acked) == 2


async def test_undecodable_and_misplaced_events_leave_a_marker_without_an_image() -> None:
    bench = Bench()
    events = source([b"not json", bench.add("a", 1)])
    misplaced = [SourceEvent("images", 1 - e.partition, 7, 1000, e.value) for e in events[1:]]
    await bench.run([events[0], *misplaced])
    assert [type(entry) for entry in bench.entries()] == [SourceAdvanced, SourceAdvanced]
    letters = [decode_dead_letter(record.value or b"") for record in bench.log.of(DEAD_LETTER_TOPIC)]
    assert {letter.code for letter in letters} == {"event_invalid"}
    assert b"not json" in {letter.event for letter in letters}


async def test_a_missing_object_is_rejected_at_once_and_a_failing_store_after_its_tries() -> None:
    bench = Bench()
    await bench.run(source([upload("missing", b"nowhere")]))
    assert bench.clock.slept == []
    flaky = Bench(FakeObjects(hiccups=2))
    await flaky.run(source([flaky.add("a", 1)]))
    assert isinstance(flaky.entries()[0], PointEmbedded)
    down = Bench(FakeObjects(hiccups=99), fetch_attempts=3)
    await down.run(source([down.add("a", 1)]))
    letter = decode_dead_letter(down.log.of(DEAD_LETTER_TOPIC)[0].value or b"")
    assert (letter.retryable, letter.attempts, letter.stage) == (True, 3, "fetch")


async def test_only_the_guilty_picture_of_a_batch_is_rejected() -> None:
    bench = Bench()
    bench.embedder.poison = lambda picture: bool(picture[0, 0, 0] == 2 * 37)
    await bench.run(source([bench.add("a", 1), bench.add("b", 2), bench.add("c", 3)]))
    kinds = {entry.image_id: type(entry) for entry in bench.entries()}  # type: ignore[attr-defined]
    assert kinds == {"a": PointEmbedded, "b": EventRejected, "c": PointEmbedded}


async def test_a_lost_embedder_or_broker_is_waited_for() -> None:
    bench = Bench()
    bench.embedder.outages = 3
    bench.log.refusals = 2
    await bench.run(source([bench.add("a", 1)]))
    assert len(bench.clock.slept) == 5
    assert isinstance(bench.entries()[0], PointEmbedded)


async def test_an_embedder_of_another_model_publishes_nothing() -> None:
    bench = Bench()
    bench.embedder.fingerprint = "another"
    original = bench.clock.sleep

    async def mend(seconds: float) -> None:
        assert bench.log.records == []
        bench.embedder.fingerprint = SPEC.fingerprint
        await original(seconds)

    bench.clock.sleep = mend  # type: ignore[method-assign]
    await bench.run(source([bench.add("a", 1)]))
    assert len(bench.clock.slept) == 1
    assert isinstance(bench.entries()[0], PointEmbedded)


async def test_a_partition_is_published_and_acknowledged_in_order_and_never_early() -> None:
    bench = Bench(ingest_batches_in_flight=4)
    events = source([bench.add(f"image-{n}", n) for n in range(40)])
    await bench.run(events, batch=3)
    for partition in (0, 1):
        offsets = [
            entry.source_offset
            for entry, record in zip(bench.entries(), bench.log.of(LOG), strict=True)
            if record.partition == partition and isinstance(entry, PointEmbedded)
        ]
        assert len(offsets) == sum(event.partition == partition for event in events)
        assert offsets == sorted(offsets)
        acked = [offset for p, offset in bench.acked if p == partition]
        assert acked == [e.offset for e in events if e.partition == partition]
    assert all(before >= number + 1 for number, before in enumerate(bench.published_at_ack))


async def test_events_of_a_dropped_collection_are_let_go() -> None:
    bench = Bench()
    await bench.run([SourceEvent("gone", 0, 0, 1000, source([upload("a", b"x")])[0].value)])
    assert bench.log.records == []
    assert bench.acked == [(0, 0)]
