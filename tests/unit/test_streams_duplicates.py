"""Equal bytes are embedded once, and a second image of them stands on its own feet."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from structlog.testing import capture_logs

from contract.events import ImageDeleted, ImageUploaded, KnownBytes, PointEmbedded, decode_known_bytes, decode_log_entry
from contract.topics import embedding_log_topic, incarnation_of_key, known_bytes_key
from streams.outcome import SourceEvent
from tests.unit.ingest_fakes import SPEC, png, source, upload
from tests.unit.test_streams_pipeline import Bench

LOG = embedding_log_topic("images")
A, B = png(1), png(2)


def _bench(*data: bytes) -> Bench:
    bench = Bench()
    for one in data:
        bench.objects.put(one)
    return bench


def _points(bench: Bench) -> dict[str, PointEmbedded]:
    entries = [decode_log_entry(record.value) for record in bench.log.of(LOG) if record.value is not None]
    return {entry.image_id: entry for entry in entries if isinstance(entry, PointEmbedded)}


def _later(events: Sequence[SourceEvent], seen: int) -> list[SourceEvent]:
    return list(events)[seen:]


async def test_a_second_upload_of_the_same_bytes_takes_the_vector_that_stands() -> None:
    bench = _bench(A)
    events = source([upload("first", A), upload("second", A, caption="mine")])
    await bench.run(events[:1])
    fetched = bench.objects.asked(upload("first", A).object_key)
    await bench.run(events[1:])  # another pipeline: nothing is in its memory
    first, second = _points(bench)["first"], _points(bench)["second"]
    assert bench.embedder.calls == [1]
    assert bench.objects.asked(first.object_key) == fetched, "known bytes are not fetched again"
    assert second.vector == first.vector
    assert (second.duplicate_of, first.duplicate_of) == ("first", None)
    assert second.payload == {"caption": "mine"}
    assert (second.width, second.height, second.sha256) == (first.width, first.height, first.sha256)


async def test_equal_bytes_in_one_batch_and_in_flight_are_embedded_once() -> None:
    bench = _bench(A, B)
    events = source([upload("a", A), upload("b", A), upload("c", B), upload("d", A), upload("e", B), upload("f", A)])
    await bench.run(events, batch=2)
    assert sum(bench.embedder.calls) == 2
    first = {"a": None, "b": "a", "c": None, "d": "a", "e": "c", "f": "a"}
    assert {image_id: point.duplicate_of for image_id, point in _points(bench).items()} == first
    vectors = {sha: {p.vector for p in _points(bench).values() if p.sha256 == sha} for sha in map(_sha, (A, B))}
    assert all(len(found) == 1 for found in vectors.values())


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_an_id_uploaded_again_with_its_own_bytes_is_no_duplicate_of_itself() -> None:
    bench = _bench(A)
    events = source([upload("a", A, n=1), upload("a", A, n=2)])
    await bench.run(events[:1])
    await bench.run(events[1:])
    assert bench.embedder.calls == [1]
    assert (_points(bench)["a"].payload, _points(bench)["a"].duplicate_of) == ({"n": 2}, None)


async def test_without_the_first_the_next_one_that_stands_gives_the_vector_and_the_name() -> None:
    bench = _bench(A)
    events = source([upload("a", A), upload("b", A), ImageDeleted("images", "a", 5), upload("c", A)])
    for event in events:
        await bench.run([event])
    assert bench.embedder.calls == [1]
    assert _points(bench)["c"].duplicate_of == "b"
    # The table forgets who is gone with the next entry.
    key = known_bytes_key(SPEC.incarnation, SPEC.fingerprint, _sha(A))
    assert key is not None
    known = decode_known_bytes(bench.table.entries[key])
    assert [holder.image_id for holder in known.holders] == ["b", "c"]


async def test_a_stale_entry_costs_an_embedding_and_nothing_else() -> None:
    bench = _bench(A, B)
    for event in source([upload("a", A), upload("a", B), upload("c", A)]):
        await bench.run([event])
    assert bench.embedder.calls == [1, 1, 1]
    point = _points(bench)["c"]
    assert (point.duplicate_of, point.sha256) == (None, _sha(A))


@pytest.mark.parametrize("fault", ["shard", "table", "broken", "garbage"])
async def test_nothing_of_it_is_needed_for_a_point(fault: str) -> None:
    bench = _bench(A)
    events = source([upload("a", A), upload("b", A)])
    bench.table.broken = fault == "broken"
    with capture_logs() as lines:
        await bench.run(events[:1])
    assert any("not remembered" in line["event"] for line in lines) == (fault == "broken")
    bench.shard.gone = fault == "shard"
    bench.table.lags = fault == "table"
    if fault == "garbage":
        bench.table.entries = dict.fromkeys(bench.table.entries, b"\x00nonsense")
    await bench.run(events[1:])
    assert bench.embedder.calls == [1, 1]
    assert set(_points(bench)) == {"a", "b"}
    assert len(bench.acked) == 2


async def test_a_first_image_that_its_shard_has_not_applied_yet_is_named_all_the_same() -> None:
    bench = _bench(A)
    events = source([upload("a", A), upload("b", A)])
    await bench.run(events[:1])
    bench.shard.lag = 1
    await bench.run(events[1:])
    assert bench.embedder.calls == [1, 1]  # nobody has the vector, and waiting would cost more
    assert _points(bench)["b"].duplicate_of == "a"


async def test_rejected_bytes_are_not_remembered_and_each_upload_of_them_is_rejected() -> None:
    torn = A[:30]
    bench = _bench(torn)
    await bench.run(source([upload("a", torn), upload("b", torn), upload("c", torn)]), batch=3)
    await bench.run(_later(source([upload("a", torn), upload("a", torn)]), 1))
    assert _points(bench) == {}
    assert bench.table.entries == {}
    assert len(bench.acked) == 4


async def test_an_event_that_lies_about_its_bytes_neither_takes_nor_gives_a_vector() -> None:
    bench = _bench(A, B)
    honest = upload("a", A)
    await bench.run(source([honest]))
    # It claims A's hash, and its object holds B.
    liar = ImageUploaded("images", "liar", upload("x", B).object_key, honest.sha256, len(B), 1)
    await bench.run(source([liar]))
    assert set(_points(bench)) == {"a"}
    letters = [record for record in bench.log.records if record.topic == "dead-letter"]
    assert len(letters) == 1
    assert b"object_damaged" in (letters[0].value or b"")


async def test_the_same_bytes_under_another_object_key_are_read_and_hashed_but_not_embedded() -> None:
    bench = _bench(A)
    bench.objects.data["elsewhere/a.png"] = A
    await bench.run(source([upload("a", A)]))
    other = ImageUploaded("images", "b", "elsewhere/a.png", _sha(A), len(A), 1)
    await bench.run(source([other]))
    assert bench.embedder.calls == [1]
    assert bench.objects.asked("elsewhere/a.png") == 1
    assert _points(bench)["b"].object_key == "elsewhere/a.png"


async def test_a_vector_of_another_encoder_is_not_taken() -> None:
    key = known_bytes_key(SPEC.incarnation, SPEC.fingerprint, _sha(A))
    other = known_bytes_key(SPEC.incarnation, "another", _sha(A))
    assert key != other
    assert known_bytes_key(SPEC.incarnation, SPEC.fingerprint, "no hash") is None
    assert known_bytes_key(SPEC.incarnation, SPEC.fingerprint, "abcd") is None
    assert key is not None
    assert incarnation_of_key(key) == SPEC.incarnation


async def test_of_very_many_holders_the_first_and_the_newest_are_remembered() -> None:
    bench = _bench(A)
    for event in source([upload(f"i{n:02}", A) for n in range(12)]):
        await bench.run([event])
    (value,) = bench.table.entries.values()
    known: KnownBytes = decode_known_bytes(value)
    assert [holder.image_id for holder in known.holders] == ["i00", *(f"i{n:02}" for n in range(5, 12))]
    assert {point.duplicate_of for point in _points(bench).values()} == {None, "i00"}
    assert np.unique([point.vector for point in _points(bench).values()]).size == 1
