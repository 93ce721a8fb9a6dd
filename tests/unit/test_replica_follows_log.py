"""A replica against a log made of lists, and a clock that only the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from actors.index.engine import EngineParameters, ShardEngine
from actors.log.records import LogIdentity, LogRecord
from actors.messages import ShardQuery
from actors.replica import IDENTITY_EVERY_S, AppliedWaiters, Replica
from contract.errors import BrokerUnavailable, EventInvalid, FingerprintMismatch, LogGap
from contract.events import (
    DELETED_HEADER,
    PayloadChanged,
    PointDeleted,
    PointEmbedded,
    SourceAdvanced,
    encode_log_entry,
)
from contract.topics import TOMBSTONE_RETENTION_MS, marker_key, payload_key, vector_key

PARAMETERS = EngineParameters(fingerprint="f", dimension=2)
ONE = LogIdentity("cluster", "one")
TWO = LogIdentity("cluster", "two")


class FakeLog:
    """Both topics of one partition, as a broker would hold them."""

    def __init__(self, identity: LogIdentity = ONE) -> None:
        self.log_identity = identity
        self.records: dict[int, LogRecord] = {}
        self.first = 0
        self.end = 0
        self.source_end = 0
        self.away = False
        self.readers = 0

    def append(self, key: bytes, value: bytes | None, headers: Mapping[str, bytes] | None = None) -> None:
        self.records[self.end] = LogRecord(0, self.end, key, value, headers or {}, 0)
        self.end += 1

    def upsert(
        self, image_id: str, source_offset: int, payload: int = 0, fingerprint: str = "f", event_at_s: float = 0.0
    ) -> None:
        entry = PointEmbedded(
            image_id=image_id,
            vector=np.array([1, 0], dtype=np.float32).tobytes(),
            fingerprint=fingerprint,
            payload={"n": payload},
            object_key="o",
            sha256="s",
            width=1,
            height=1,
            source_offset=source_offset,
            event_at_ms=int(event_at_s * 1000),
        )
        self.append(vector_key(image_id), encode_log_entry(entry))
        self.source_end = max(self.source_end, source_offset + 1)

    def change(self, image_id: str, source_offset: int, payload: int) -> None:
        entry = PayloadChanged(image_id, {"n": payload}, source_offset, 0)
        self.append(payload_key(image_id), encode_log_entry(entry))
        self.source_end = max(self.source_end, source_offset + 1)

    def delete(self, image_id: str, source_offset: int) -> None:
        header = encode_log_entry(PointDeleted(image_id, source_offset, 0))
        for key in (vector_key(image_id), payload_key(image_id)):
            self.append(key, None, {DELETED_HEADER: header})
        self.source_end = max(self.source_end, source_offset + 1)

    def compact(self) -> None:
        """Keep the last record per key, as Kafka does."""
        last = {record.key: offset for offset, record in self.records.items()}
        self.records = {offset: record for offset, record in self.records.items() if last[record.key] == offset}


class FakeReader:
    """Implements `LogReader` over a FakeLog."""

    def __init__(self, log: FakeLog) -> None:
        self.log = log
        self.log.readers += 1
        self.position = 0

    def _reach(self) -> FakeLog:
        if self.log.away:
            raise BrokerUnavailable("away")
        return self.log

    def identity(self) -> LogIdentity:
        return self._reach().log_identity

    def start(self, positions: Mapping[int, int]) -> None:
        self.position = positions[0]

    def poll(self, max_records: int, timeout_s: float) -> Sequence[LogRecord]:
        log = self._reach()
        if not log.first <= self.position <= log.end:
            raise LogGap("out of range")
        found = [log.records[o] for o in sorted(log.records) if o >= self.position][:max_records]
        if found:
            self.position = found[-1].offset + 1
        return found

    def first_offsets(self) -> dict[int, int]:
        return {0: self._reach().first}

    def end_offsets(self) -> dict[int, int]:
        return {0: self._reach().end}

    def source_end_offsets(self) -> dict[int, int]:
        return {0: self._reach().source_end}

    def close(self) -> None:
        self.log.readers -= 1


class Clock:
    """Unix seconds that stand still until the test moves them."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Shard:
    """One life of a replica after the other, on one store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = FakeLog()
        self.clock = Clock()
        self.start()

    def start(self) -> None:
        self.engine = ShardEngine(self.folder, PARAMETERS)
        self.replica = Replica(self.engine, lambda: FakeReader(self.log), (0,), self.clock)

    def restart(self) -> None:
        self.end()
        self.start()

    def end(self) -> None:
        self.replica.close()
        self.engine.close()

    def catch_up(self) -> None:
        for _ in range(10):
            self.replica.step(0.0)

    def found(self) -> list[str]:
        hits = self.engine.search(np.array([[1, 0]], dtype=np.float32), [ShardQuery(100, exact=True)])[0]
        return [hit.image_id for hit in hits]


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    one = Shard(tmp_path / "store")
    yield one
    one.end()
    assert one.log.readers == 0


def test_it_applies_what_comes_and_resumes_where_it_was(shard: Shard) -> None:
    shard.log.upsert("a", 0)
    shard.catch_up()
    assert shard.replica.state == "ready"
    assert shard.replica.freshness().applied_offsets == {0: 0}
    shard.restart()
    assert shard.found() == ["a"]
    assert shard.replica.applied_offset(0) == 0
    shard.log.upsert("b", 1)
    shard.catch_up()
    assert shard.found() == ["a", "b"]
    assert shard.replica.applied_offset(0) == 1


def test_an_empty_log_makes_a_ready_shard(shard: Shard) -> None:
    shard.catch_up()
    assert shard.replica.state == "ready"
    assert shard.replica.applied_offset(0) == -1
    shard.log.append(marker_key(0), encode_log_entry(SourceAdvanced(0, 0)))
    shard.catch_up()
    assert shard.replica.applied_offset(0) == 0


def test_a_log_with_another_identity_wipes_the_store_and_is_read_from_its_start(shard: Shard) -> None:
    for n in range(3):
        shard.log.upsert(f"old-{n}", n)
    shard.catch_up()
    shard.restart()
    shard.log = FakeLog(TWO)
    shard.log.upsert("new", 0)
    with capture_logs() as logs:
        shard.catch_up()
    assert [line["log_level"] for line in logs if "wiping" in line["event"]] == ["error"]
    assert shard.found() == ["new"]
    assert shard.engine.log_identity == TWO
    assert shard.replica.applied_offset(0) == 0


def test_a_topic_made_anew_under_a_living_shard_is_noticed(shard: Shard) -> None:
    shard.log.upsert("old", 0)
    shard.catch_up()
    shard.log.log_identity, shard.log.records, shard.log.end = TWO, {}, 0
    shard.log.upsert("new", 0)  # the log is as long as before: only its identity tells
    shard.catch_up()
    shard.clock.now += IDENTITY_EVERY_S
    shard.catch_up()
    shard.clock.now += 1
    shard.catch_up()
    assert shard.found() == ["new"]


def test_a_log_that_ends_before_the_position_is_read_from_its_start(shard: Shard) -> None:
    for n in range(3):
        shard.log.upsert(f"a-{n}", n)
    shard.catch_up()
    shard.restart()
    del shard.log.records[2]
    shard.log.end = 2
    shard.catch_up()
    assert shard.found() == ["a-0", "a-1"]
    assert shard.replica.applied_offset(0) == 1


def test_an_absence_longer_than_tombstones_are_kept_wipes_the_store(shard: Shard) -> None:
    shard.log.upsert("a", 0)
    shard.log.upsert("deleted-meanwhile", 1)
    shard.catch_up()
    shard.end()
    shard.log.records = {0: shard.log.records[0]}  # the delete and its tombstone came and went
    shard.log.end = 5
    shard.log.upsert("b", 3)
    shard.clock.now += TOMBSTONE_RETENTION_MS / 1000 + 1
    shard.start()
    shard.catch_up()
    assert shard.found() == ["a", "b"]


def test_a_short_absence_keeps_the_store(shard: Shard) -> None:
    shard.log.upsert("a", 0)
    shard.catch_up()
    shard.end()
    shard.clock.now += TOMBSTONE_RETENTION_MS / 1000 - 1
    shard.start()
    with capture_logs() as logs:
        shard.catch_up()
    assert not [line for line in logs if "wiping" in line["event"]]
    assert shard.found() == ["a"]


def test_a_log_whose_beginning_is_gone_fails_and_keeps_what_there_is(shard: Shard) -> None:
    shard.log.upsert("a", 0)
    shard.catch_up()
    shard.restart()
    shard.log.first = shard.log.end = 7
    with pytest.raises(LogGap, match="begins at 7"):
        shard.replica.step(0.0)
    assert shard.replica.state == "failed"
    assert (shard.replica.error or "").startswith("log_gap")
    assert shard.found() == ["a"]


def test_a_beginning_that_is_gone_does_not_matter_to_who_is_past_it(shard: Shard) -> None:
    shard.log.upsert("a", 0)
    shard.log.upsert("b", 1)
    shard.catch_up()
    shard.restart()
    shard.log.first = 2
    shard.catch_up()
    assert shard.replica.state == "ready"


def test_holes_from_compaction_are_normal(shard: Shard) -> None:
    shard.log.upsert("a", 0, payload=1)
    shard.log.upsert("a", 1, payload=2)
    shard.log.delete("b", 2)
    shard.log.upsert("a", 3, payload=3)
    shard.log.compact()
    shard.catch_up()
    assert shard.found() == ["a"]
    assert shard.replica.applied_offset(0) == 3


def test_nothing_is_claimed_before_the_log_end_of_the_start_is_reached(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compacted, with repeats: source offset 3 stands before source offset 1 in the log."""
    shard.log.upsert("a", 0)
    shard.log.upsert("b", 1)
    shard.log.upsert("c", 3)
    shard.log.upsert("a", 0)  # published again after a crash
    shard.log.upsert("b", 1)
    shard.log.compact()
    monkeypatch.setattr("actors.replica._POLL_RECORDS", 1)
    seen = []
    while shard.replica.state != "ready":
        shard.replica.step(0.0)
        seen.append((shard.replica.applied_offset(0), shard.found()))
    assert seen == [(-1, ["c"]), (-1, ["a", "c"]), (3, ["a", "b", "c"])]


def test_a_payload_before_its_point_is_not_lost(shard: Shard) -> None:
    shard.log.upsert("a", 0, payload=1)
    shard.log.change("a", 1, payload=2)
    shard.log.upsert("a", 0, payload=1)  # published again; compaction then leaves the payload first
    shard.log.compact()
    shard.catch_up()
    assert [state.payload for state in shard.engine.scan(None, 9)] == [b'{"n":2}']


def test_a_broker_that_is_away_is_waited_for_while_searches_go_on(shard: Shard) -> None:
    shard.log.upsert("a", 0)
    shard.catch_up()
    shard.log.away = True
    with capture_logs() as logs:
        shard.catch_up()
    assert {line["log_level"] for line in logs} == {"warning"}
    assert not shard.replica.attached
    assert shard.found() == ["a"]
    assert shard.replica.state == "ready"
    shard.log.away = False
    shard.log.upsert("b", 1)
    shard.catch_up()
    assert shard.found() == ["a"], "it does not hammer a broker that was away"
    shard.clock.now += 60
    shard.catch_up()
    assert shard.found() == ["a", "b"]


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda log: log.append(b"x", b"\xc1 no message"), EventInvalid),
        (lambda log: log.append(b"x", None), EventInvalid),
        (lambda log: log.upsert("b", 1, fingerprint="other"), FingerprintMismatch),
    ],
)
def test_what_must_not_be_in_the_log_is_told_and_nothing_of_its_batch_applied(
    shard: Shard, spoil: Callable[[FakeLog], None], error: type[Exception]
) -> None:
    shard.log.upsert("a", 0)
    spoil(shard.log)
    with pytest.raises(error):
        shard.catch_up()
    assert shard.found() == []
    assert shard.replica.applied_offset(0) == -1


async def test_a_waiter_is_woken_when_its_offset_is_applied() -> None:
    applied = {0: 4}
    waiters = AppliedWaiters(applied.__getitem__)
    assert await waiters.wait(0, 4, 0.0)
    assert not await waiters.wait(0, 5, 0.0)

    waiting = asyncio.ensure_future(waiters.wait(0, 6, 30.0))
    for offset in (5, 6):
        await asyncio.sleep(0)
        assert not waiting.done()
        applied[0] = offset
        waiters.wake()
    assert await waiting


def test_a_store_built_from_the_start_of_the_log_is_not_shown_before_the_deletions_in_it(shard: Shard) -> None:
    shard.log.upsert("deleted since", 0)
    for n in range(1, 300):
        shard.log.upsert(f"kept-{n}", n)
    shard.log.delete("deleted since", 300)
    shard.replica.step(0.0)
    assert "deleted since" in shard.found(), "one step must stop before the deletion"
    assert shard.replica.rebuilding
    shard.restart()
    assert shard.replica.rebuilding
    shard.catch_up()
    assert not shard.replica.rebuilding
    assert "deleted since" not in shard.found()


def test_a_shard_that_catches_up_after_a_restart_is_shown_at_once(shard: Shard) -> None:
    shard.log.upsert("a", 0)
    shard.catch_up()
    for n in range(1, 300):
        shard.log.upsert(f"later-{n}", n)
    shard.restart()
    shard.replica.step(0.0)
    assert shard.replica.state == "recovering"
    assert not shard.replica.rebuilding
