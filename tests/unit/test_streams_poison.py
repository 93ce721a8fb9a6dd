"""No event stops its partition: what cannot be used becomes a dead letter, and the next event is served."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from prometheus_client import REGISTRY

from actors.log.producer import OutgoingRecord
from contract import telemetry
from contract.errors import InvalidRequest, RedriveRefused
from contract.events import (
    REDRIVE_HEADER,
    DeadLetter,
    EventRejected,
    ImageUploaded,
    PointEmbedded,
    Redrive,
    SourceAdvanced,
    decode_dead_letter,
    encode_json,
)
from contract.telemetry import Metric
from contract.topics import DEAD_LETTER_TOPIC, WRAPPED_RECORD_BYTES_MAX, partition_of, vector_key
from streams.outcome import LETTER_EVENT_BYTES_MAX, SourceEvent
from tests.unit.duplicates_fakes import LogShard
from tests.unit.ingest_fakes import PARTITIONS, FakeLog, FakeObjects, source, upload
from tests.unit.test_streams_pipeline import Bench


def letters(bench: Bench) -> list[DeadLetter]:
    return [decode_dead_letter(record.value or b"") for record in bench.log.of(DEAD_LETTER_TOPIC)]


GOOD = encode_json(upload("x", b"bytes"))
POISON = {
    "no JSON": b"\x80\x04\x95",
    "half of an event": GOOD[: len(GOOD) // 2],
    "no value": b"",
    "a list": b"[1, 2, 3]",
    "an unknown version": GOOD.replace(b"image_uploaded.v1", b"image_uploaded.v9"),
    "no tag": GOOD.replace(b'"type":"image_uploaded.v1",', b""),
    "a number for an id": GOOD.replace(b'"image_id":"x"', b'"image_id":7'),
    "half of a surrogate pair": GOOD.replace(b'"image_id":"x"', b'"image_id":"\\ud800"'),
    "bytes that are no UTF-8": GOOD.replace(b'"image_id":"x"', b'"image_id":"\xff\xfe"'),
    "another collection": encode_json(ImageUploaded("others", "x", "k", "0" * 64, 1, 1)),
    "deep nesting": GOOD.replace(b'"payload":{}', b'"payload":' + b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "megabytes of nothing": b"\0" * (3 * 1024 * 1024),
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON.keys())
async def test_a_poison_event_is_a_dead_letter_and_the_next_one_is_served(poison: bytes) -> None:
    bench = Bench()
    good = bench.add("good", 1)
    place = partition_of("good", PARTITIONS)
    await bench.run(
        [SourceEvent("images", place, 0, 1000, poison), SourceEvent("images", place, 1, 1000, encode_json(good))]
    )
    marker, point = bench.entries()
    assert (type(marker), type(point)) == (SourceAdvanced, PointEmbedded)
    assert bench.acked == [(place, 0), (place, 1)]
    (letter,) = letters(bench)
    assert (letter.stage, letter.code, letter.retryable, letter.source_offset) == ("read", "event_invalid", False, 0)
    assert (letter.event, letter.event_left_out) == (
        (b"", True) if len(poison) > LETTER_EVENT_BYTES_MAX else (poison, False)
    )
    assert letter.incarnation == "one"
    assert len(letter.reason) <= 2000


async def test_every_letter_fits_into_its_topic() -> None:
    bench = Bench()
    padded = b" " * (LETTER_EVENT_BYTES_MAX - len(GOOD)) + GOOD
    await bench.run([SourceEvent("images", 1 - partition_of("x", PARTITIONS), 0, 1000, padded)])
    (record,) = bench.log.of(DEAD_LETTER_TOPIC)
    assert len(record.value or b"") < WRAPPED_RECORD_BYTES_MAX
    assert not letters(bench)[0].event_left_out


async def test_a_picture_that_fails_unexpectedly_is_a_dead_letter_alone() -> None:
    class Broken(FakeObjects):
        async def get(self, key: str, max_bytes: int | None = None) -> bytes:
            if key == "broken":
                raise ZeroDivisionError
            return await super().get(key, max_bytes)

    bench = Bench(Broken())
    broken = msgspec.structs.replace(upload("broken", b"x"), object_key="broken")
    await bench.run(source([broken, bench.add("good", 1)]))
    kinds = {entry.image_id: type(entry) for entry in bench.entries()}  # type: ignore[attr-defined]
    assert kinds == {"broken": EventRejected, "good": PointEmbedded}
    (letter,) = letters(bench)
    assert (letter.code, letter.stage, letter.retryable) == ("internal", "fetch", False)


async def test_what_no_broker_takes_is_a_dead_letter_and_counts_as_one() -> None:
    class Narrow(FakeLog):
        async def send_all(self, records: Sequence[OutgoingRecord]) -> list[int]:
            if any(record.key == vector_key("large") for record in records):
                raise InvalidRequest("too large for the broker")
            return await super().send_all(records)

    def counted(metric: Metric, **labels: str) -> float:
        return REGISTRY.get_sample_value(metric.name, labels) or 0.0

    refused = {"stage": "publish", "code": InvalidRequest.code, "retryable": "false"}
    counters: tuple[tuple[Metric, dict[str, str]], ...] = (
        (telemetry.EVENTS, {"outcome": "published"}),
        (telemetry.EVENTS, {"outcome": "rejected"}),
        (telemetry.DEAD_LETTERS, refused),
    )
    before = [counted(metric, **labels) for metric, labels in counters]
    bench = Bench()
    bench.log = Narrow()
    bench.shard = LogShard(bench.log)
    await bench.run(source([bench.add("large", 1), bench.add("good", 2), bench.add("fine", 3)]))
    assert [(letter.stage, letter.code, letter.image_id) for letter in letters(bench)] == [
        ("publish", InvalidRequest.code, "large")
    ]
    after = [counted(metric, **labels) for metric, labels in counters]
    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 1, 1]


def redriven(event: SourceEvent, attempts: int = 5, redrives: int = 1) -> SourceEvent:
    header = Redrive(source_offset=0, newer_from=2, attempts=attempts, redrives=redrives)
    return msgspec.structs.replace(event, offset=9, headers={REDRIVE_HEADER: encode_json(header)})


async def test_a_redriven_event_takes_effect_and_its_attempts_add_up() -> None:
    bench = Bench()
    await bench.run([redriven(source([bench.add("a", 1)])[0])])
    (point,) = bench.entries()
    assert isinstance(point, PointEmbedded)
    assert point.source_offset == 9
    assert [(offset, image_id) for offset, _, image_id in bench.overtaken.checked] == [(9, "a")]

    failing = Bench(FakeObjects(hiccups=99), fetch_attempts=3)
    await failing.run([redriven(source([failing.add("a", 1)])[0])])
    (letter,) = letters(failing)
    assert (letter.attempts, letter.redrives, letter.source_offset) == (8, 1, 9)


async def test_a_redriven_event_that_was_overtaken_changes_nothing() -> None:
    bench = Bench()
    bench.overtaken.newer = {"a"}
    bench.overtaken.outages = 2
    await bench.run([redriven(source([bench.add("a", 1)])[0])])
    (marker,) = bench.entries()
    assert isinstance(marker, SourceAdvanced), "a marker with the image's id would change what is known of it"
    (letter,) = letters(bench)
    assert (letter.code, letter.stage, letter.image_id) == (RedriveRefused.code, "redrive", "a")
    assert len(bench.clock.slept) == 2
    assert bench.embedder.calls == []


async def test_a_redrive_header_that_says_nonsense_is_a_dead_letter() -> None:
    bench = Bench()
    (event,) = source([bench.add("a", 1)])
    await bench.run([msgspec.structs.replace(event, headers={REDRIVE_HEADER: b"whatever"})])
    assert isinstance(bench.entries()[0], SourceAdvanced)
    assert letters(bench)[0].code == "event_invalid"
