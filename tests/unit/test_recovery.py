"""A shard that lost its store, or cannot go on with it, and the snapshots it leaves and finds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from actors.index.engine import EngineParameters, ShardEngine
from actors.index.manifest import Manifest
from actors.index.snapshots import Snapshots
from actors.log.records import LogIdentity, LogRecord
from actors.recovery import LogState, Recovery, SnapshotKeeper, is_damage, refusal
from actors.replica import Replica
from contract.errors import LogGap, ObjectStoreUnavailable
from contract.topics import TOMBSTONE_RETENTION_MS
from tests.unit.snapshot_fakes import Bucket, FakeFolder
from tests.unit.test_replica_follows_log import ONE, PARAMETERS, TWO, Clock, FakeLog, FakeReader
from tests.unit.test_replica_follows_log import Shard as PlainShard

DAY_S = 24 * 3600.0


class Shard(PlainShard):
    """A replica with snapshots, as the shard actor wires it."""

    def __init__(self, folder: Path, log: FakeLog, bucket: Bucket, clock: Clock) -> None:
        self.folder = folder
        self.log = log
        self.clock = clock
        self.remote = FakeFolder(bucket)
        self.local = folder.parent / f"{folder.name}-snapshots"
        self.asked = 0
        self.pauses: list[float] = []
        self.start()

    def start(self) -> None:
        self.snapshots = Snapshots(self.local, 2, self.remote)
        self.recovery = Recovery(self.folder, PARAMETERS, self.snapshots, self.clock, self.pauses.append)
        self.engine = self.recovery.open(self.ask)
        self.keeper = SnapshotKeeper(self.snapshots, self.clock)
        self.replica = Replica(self.engine, lambda: FakeReader(self.log), (0,), self.clock, heal=self.heal)

    def ask(self) -> LogState | None:
        self.asked += 1
        log = self.log
        return None if log.away else LogState(log.log_identity, {0: log.first}, {0: log.end})

    def heal(self, log: LogState) -> ShardEngine | None:
        healed = self.recovery.heal(self.engine, log)
        if healed is not None:
            self.engine = healed
        return healed

    def snapshot(self) -> Manifest:
        self.keeper.step(self.engine)
        newest = self.snapshots.newest()
        assert newest is not None
        return newest

    def lose_store(self) -> None:
        self.end()
        shutil.rmtree(self.folder)

    def lose_all(self) -> None:
        self.lose_store()
        shutil.rmtree(self.local)

    def read(self) -> list[int]:
        """Offsets that are read from the log while the shard catches up."""
        read: list[int] = []
        apply = self.engine.apply

        def noted(records: Sequence[LogRecord]) -> None:
            read.extend(record.offset for record in records)
            apply(records)

        self.engine.apply = noted  # type: ignore[method-assign]
        self.catch_up()
        return read


@pytest.fixture
def log() -> FakeLog:
    return FakeLog()


@pytest.fixture
def shards(tmp_path: Path, log: FakeLog) -> Iterator[Callable[[str], Shard]]:
    bucket, clock, made = Bucket(), Clock(), dict[str, Shard]()

    def make(name: str = "store") -> Shard:
        made[name] = Shard(tmp_path / name, log, bucket, clock)
        return made[name]

    yield make
    for one in made.values():
        one.end()


@pytest.fixture
def shard(shards: Callable[[str], Shard]) -> Shard:
    """With three points in a snapshot, and two more after it."""
    one = shards("store")
    for n in range(3):
        one.log.upsert(f"a-{n}", n)
    one.catch_up()
    one.snapshot()
    for n in range(3, 5):
        one.log.upsert(f"b-{n}", n)
    one.catch_up()
    return one


ALL = ["a-0", "a-1", "a-2", "b-3", "b-4"]


@pytest.mark.parametrize("lose", [Shard.lose_store, Shard.lose_all])
def test_a_lost_store_comes_back_from_the_snapshot_and_reads_only_the_tail(
    shard: Shard, lose: Callable[[Shard], None]
) -> None:
    lose(shard)
    shard.start()
    assert shard.found() == ["a-0", "a-1", "a-2"]
    assert shard.read() == [3, 4]
    assert shard.found() == ALL
    assert shard.replica.applied_offset(0) == 4


def test_a_new_replica_starts_from_the_snapshot_of_another(shard: Shard, shards: Callable[[str], Shard]) -> None:
    new = shards("another")
    assert new.read() == [3, 4]
    assert new.found() == ALL


def test_without_snapshots_a_store_begins_empty_and_the_log_is_not_asked(shards: Callable[[str], Shard]) -> None:
    assert shards("store").asked == 0


def _truncate_tables(folder: Path) -> None:
    for table in folder.glob("*.sst"):
        data = table.read_bytes()
        table.unlink()
        table.write_bytes(data[:-7])


@pytest.mark.parametrize(
    "spoil",
    [
        _truncate_tables,
        lambda folder: [table.unlink() for table in folder.glob("*.sst")],
        lambda folder: [manifest.write_bytes(b"junk") for manifest in folder.glob("MANIFEST-*")],
        lambda folder: [manifest.unlink() for manifest in folder.glob("MANIFEST-*")],
        lambda folder: (folder / "CURRENT").write_bytes(b"junk"),
    ],
)
def test_a_damaged_store_is_replaced_by_the_snapshot(shard: Shard, spoil: Callable[[Path], object]) -> None:
    shard.end()
    spoil(shard.folder)
    with capture_logs() as logs:
        shard.start()
    assert "the store is damaged; looking for a snapshot" in [line["event"] for line in logs]
    assert shard.found() == ["a-0", "a-1", "a-2"]
    assert shard.read() == [3, 4]
    shard.restart()
    assert shard.found() == ALL


def test_damage_that_shows_only_while_reading_is_replaced_at_the_next_start(shard: Shard) -> None:
    shard.recovery.condemn("Corruption: block checksum mismatch")
    shard.restart()
    assert shard.found() == ["a-0", "a-1", "a-2"]
    shard.catch_up()
    shard.restart()
    assert shard.found() == ALL, "it is condemned once"


def test_a_damaged_store_without_a_snapshot_is_kept_aside_and_built_from_the_log(
    shards: Callable[[str], Shard],
) -> None:
    shard = shards("store")
    shard.log.upsert("a", 0)
    shard.catch_up()
    shard.end()
    (shard.folder / "CURRENT").write_bytes(b"junk")
    with capture_logs() as logs:
        shard.start()
    assert [line["log_level"] for line in logs].count("error") == 2
    assert shard.found() == []
    shard.catch_up()
    assert shard.found() == ["a"]
    assert (shard.folder.parent / "store.damaged" / "CURRENT").read_bytes() == b"junk"


def test_a_damaged_snapshot_gives_way_to_the_one_before(shard: Shard) -> None:
    newest = shard.snapshot()
    assert newest.facts.points == 5
    shard.lose_store()
    for table in (shard.local / newest.snapshot_id / "files").iterdir():
        table.unlink()
    for key in [key for key in shard.remote.bucket.objects if newest.snapshot_id in key]:
        del shard.remote.bucket.objects[key]
    with capture_logs() as logs:
        shard.start()
    assert {line["snapshot"] for line in logs if line["log_level"] == "error"} == {newest.snapshot_id}
    assert shard.found() == ["a-0", "a-1", "a-2"]
    assert shard.read() == [3, 4]


def test_a_snapshot_of_another_log_is_passed_over_and_the_log_read_from_its_start(shard: Shard) -> None:
    shard.lose_store()
    shard.log = FakeLog(TWO)
    shard.log.upsert("new", 0)
    with capture_logs() as logs:
        shard.start()
    assert [line["error"] for line in logs if "no use" in line["event"]]
    shard.catch_up()
    assert shard.found() == ["new"]


def test_a_snapshot_older_than_tombstones_is_passed_over(shard: Shard) -> None:
    shard.lose_store()
    shard.clock.now += TOMBSTONE_RETENTION_MS / 1000 + 1
    shard.start()
    assert shard.found() == []
    assert shard.read() == [0, 1, 2, 3, 4]


def test_a_gap_in_the_log_is_bridged_by_the_snapshot_of_another_replica(
    shard: Shard, shards: Callable[[str], Shard]
) -> None:
    behind = shards("behind")
    behind.catch_up()
    behind.end()
    for n in range(5, 8):
        shard.log.upsert(f"c-{n}", n)
    shard.catch_up()
    shard.snapshot()
    shard.log.first = 7
    behind.start()
    with capture_logs() as logs:
        behind.catch_up()
    assert [line["log_level"] for line in logs if "replaced by a snapshot" in line["event"]] == ["error"]
    assert behind.replica.state == "ready"
    assert behind.found() == [*ALL, "c-5", "c-6", "c-7"]
    assert behind.replica.applied_offset(0) == 7


def test_a_gap_that_no_snapshot_bridges_fails_and_keeps_what_there_is(shard: Shard) -> None:
    shard.restart()
    shard.log.first = shard.log.end = 9
    with pytest.raises(LogGap, match=r"begins at 9.*replay"):
        shard.catch_up()
    assert shard.replica.state == "failed"
    assert shard.found() == ALL


def test_a_store_of_another_log_is_replaced_by_a_snapshot_of_this_one(
    shard: Shard, shards: Callable[[str], Shard]
) -> None:
    strange = shards("strange")
    strange.engine.reset()
    strange.engine.begin(TWO, {0: 0}, 1)
    with capture_logs() as logs:
        strange.catch_up()
    assert not [line for line in logs if "wiping" in line["event"]]
    assert strange.engine.log_identity == ONE
    assert strange.found() == ALL


def test_an_object_store_that_is_away_stops_nobody_whose_log_is_whole(shard: Shard) -> None:
    shard.lose_all()
    shard.remote.away = True
    shard.start()
    assert len(shard.pauses) == 2
    assert shard.read() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("log_is_away", [False, True])
def test_without_the_beginning_of_the_log_the_object_store_is_waited_for(shard: Shard, log_is_away: bool) -> None:
    shard.lose_all()
    shard.remote.away = True
    shard.log.first = 2
    shard.log.away = log_is_away
    with pytest.raises(ObjectStoreUnavailable):
        shard.start()
    shard.remote.away = shard.log.away = False
    shard.start()
    assert shard.read() == [3, 4]


def test_a_snapshot_is_taken_when_something_changed_and_before_it_grows_old(shard: Shard) -> None:
    first = shard.snapshot()
    assert first.facts.positions[0].log_offset == 5
    assert shard.snapshot() == first
    shard.restart()
    assert shard.snapshot() == first, "a start alone changes nothing"
    shard.catch_up()
    assert shard.snapshot() == first
    shard.clock.now += 2 * DAY_S
    shard.catch_up()
    later = shard.snapshot()
    assert later.facts.positions[0].log_offset == 5
    assert later.facts.caught_up_at_ms > first.facts.caught_up_at_ms
    shard.log.upsert("c", 5)
    shard.catch_up()
    assert shard.snapshot().facts.points == 6


def test_a_failed_upload_is_tried_again_and_a_failed_snapshot_stops_nobody(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard.remote.away = True
    taken = shard.snapshot()
    assert taken.facts.points == 5
    shard.remote.away = False
    shard.snapshot()
    assert f"manifests/{taken.snapshot_id}.json" in shard.remote.bucket.objects
    shard.log.upsert("c", 5)
    shard.catch_up()

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard.engine, "checkpoint", full)
    with capture_logs() as logs:
        assert shard.snapshot() == taken
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["no snapshot was taken"]


def test_damage_is_told_from_other_errors() -> None:
    assert is_damage(Exception("Corruption: block checksum mismatch"))
    assert not is_damage(Exception("IO error: lock hold by current process"))
    assert not is_damage(ValueError("Corruption"))


@pytest.mark.parametrize(
    ("changed", "state", "reason"),
    [
        ({}, None, None),
        ({}, LogState(ONE, {0: 3}, {0: 9}), None),
        ({}, LogState(ONE, {0: 5}, {0: 9}), None),
        ({}, LogState(ONE, {0: 6}, {0: 9}), "begins at 6"),
        ({}, LogState(ONE, {0: 0}, {0: 4}), "ends at 4"),
        ({}, LogState(ONE, {0: 0, 1: 1}, {0: 9, 1: 9}), "partition 1 begins at 1"),
        ({}, LogState(LogIdentity("c", "t"), {0: 0}, {0: 9}), "was made from the log"),
        ({"fingerprint": "g"}, None, "encoder g"),
        ({"dimension": 3}, None, "dimension 3"),
        ({"caught_up_at_ms": 0}, None, "tombstones"),
    ],
)
def test_a_snapshot_is_refused_for_a_reason(
    shard: Shard, changed: dict[str, object], state: LogState | None, reason: str | None
) -> None:
    taken = shard.snapshot()
    manifest = msgspec.structs.replace(taken, facts=msgspec.structs.replace(taken.facts, **changed))
    told = refusal(manifest, EngineParameters(fingerprint="f", dimension=2), int(shard.clock.now * 1000), state)
    assert (told is None) == (reason is None)
    assert reason is None or reason in (told or "")
