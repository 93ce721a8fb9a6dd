"""A replica keeps its lexical index in step with its points: through changes, restarts, wipes and healing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from actors.index.engine import EngineParameters, ShardEngine
from actors.lexical.following import LexicalFollower
from actors.messages import Freshness, LexicalQuery, LexicalSearch
from actors.recovery import LogState
from actors.replica import Replica
from contract.events import LogEntry, PayloadChanged, PointDeleted, SourceAdvanced
from tests.engine_log import FINGERPRINT, embedded, records_of
from tests.unit.test_replica_follows_log import ONE, TWO, Clock, FakeLog, FakeReader

PARAMETERS = EngineParameters(fingerprint=FINGERPRINT, dimension=2)


class WordShard:
    """One life of a replica with its lexical index after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = FakeLog()
        self.clock = Clock()
        self.other: ShardEngine | None = None
        self.start()

    def start(self) -> None:
        self.engine = ShardEngine(self.folder, PARAMETERS)
        self.follower = LexicalFollower(self.engine, self.freshness, self.clock)
        self.replica = Replica(
            self.engine, lambda: FakeReader(self.log), (0,), self.clock, heal=self.heal, follower=self.follower
        )

    def freshness(self) -> Freshness:
        return self.replica.freshness()

    def heal(self, log: LogState) -> ShardEngine | None:
        if self.other is not None:
            self.engine.close()
            self.engine, self.other = self.other, None
            return self.engine
        return None

    def end(self) -> None:
        self.replica.close()
        self.engine.close()

    def publish(self, entry: LogEntry) -> None:
        for record in records_of(entry, self.log.end):
            self.log.append(record.key or b"", record.value, record.headers)
        self.log.source_end = max(self.log.source_end, entry.source_offset + 1)

    def upload(self, image_id: str, caption: str, source_offset: int) -> None:
        vector = np.array([1, 0], np.float32)
        self.publish(embedded(image_id, vector, source_offset, {"caption": caption}))

    def catch_up(self) -> None:
        for _ in range(5):
            self.replica.step(0.0)
        while self.follower.step():
            pass

    def found(self, text: str) -> list[str]:
        result = self.follower.search(LexicalSearch((LexicalQuery(text, 50),), fresh=True))
        return sorted(hit.image_id for hit in result.candidates[0])


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[WordShard]:
    one = WordShard(tmp_path / "store")
    yield one
    one.end()


def test_it_follows_uploads_changes_and_deletions(shard: WordShard) -> None:
    shard.upload("a", "red bird", 0)
    shard.upload("b", "red tree", 1)
    shard.publish(SourceAdvanced(2, 0))
    shard.catch_up()
    assert shard.found("red") == ["a", "b"]
    shard.publish(PayloadChanged("a", {"caption": "blue bird"}, 3, 0))
    shard.publish(PointDeleted("b", 4, 0))
    shard.replica.step(0.0)
    assert (shard.found("red"), shard.found("blue")) == ([], ["a"])
    result = shard.follower.search(LexicalSearch((LexicalQuery("blue", 1),)))
    assert result.freshness.applied_offsets == {0: 4}


def test_repeats_and_restarts_change_nothing(shard: WordShard) -> None:
    shard.upload("a", "red", 0)
    shard.publish(PointDeleted("a", 1, 0))
    shard.upload("b", "blue", 2)
    shard.publish(PayloadChanged("b", {"caption": "green"}, 3, 0))
    shard.catch_up()
    # Published again after a crash of the ingest path: the same source offsets at higher log offsets.
    shard.upload("a", "red", 0)
    shard.upload("b", "blue", 2)
    shard.catch_up()
    for _ in range(2):
        assert (shard.found("red blue"), shard.found("green")) == ([], ["b"])
        shard.end()
        shard.start()
        shard.catch_up()


def test_another_log_takes_all_words_with_it(shard: WordShard) -> None:
    shard.upload("old", "red", 0)
    shard.catch_up()
    shard.end()
    shard.start()
    shard.follower.step()
    assert shard.found("red") == ["old"]
    shard.log = FakeLog(TWO)
    shard.upload("new", "red", 0)
    shard.catch_up()
    assert shard.found("red") == ["new"]


def test_a_snapshot_that_replaces_the_store_brings_its_own_words(shard: WordShard, tmp_path: Path) -> None:
    shard.upload("a", "red", 0)
    shard.catch_up()
    shard.end()
    shard.start()
    shard.follower.step()
    assert shard.found("red") == ["a"]
    other = WordShard(tmp_path / "other")
    other.upload("restored", "red", 0)
    for number in range(1, 9):
        other.publish(SourceAdvanced(number, 0))
    other.catch_up()
    other.replica.close()
    assert other.engine.log_identity == ONE
    # The log begins after the next offset of the store, and not after that of the snapshot.
    shard.other, shard.log = other.engine, other.log
    shard.log.first = 5
    shard.catch_up()
    assert shard.found("red") == ["restored"]
