"""For tests of the engine: a log of one partition, as the ingest path publishes it, and vectors to put there."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.index.engine import ShardEngine
from actors.log.records import LogIdentity, LogRecord
from actors.messages import FloatMatrix, ShardQuery
from contract.events import (
    DELETED_HEADER,
    EventRejected,
    LogEntry,
    PayloadChanged,
    PointDeleted,
    PointEmbedded,
    SourceAdvanced,
    encode_log_entry,
)
from contract.filters import Filter, Match, matches
from contract.topics import marker_key, payload_key, rejection_key, vector_key

FINGERPRINT = "f"
IDENTITY = LogIdentity("cluster", "topic")


def records_of(entry: LogEntry, first_offset: int) -> list[LogRecord]:
    """The log records of one event."""
    value = encode_log_entry(entry)
    match entry:
        case PointDeleted():
            keys = [vector_key(entry.image_id), payload_key(entry.image_id), rejection_key(entry.image_id)]
            return [LogRecord(0, first_offset + i, key, None, {DELETED_HEADER: value}, 0) for i, key in enumerate(keys)]
        case PointEmbedded():
            key = vector_key(entry.image_id)
        case PayloadChanged():
            key = payload_key(entry.image_id)
        case EventRejected():
            key = rejection_key(entry.image_id)
        case SourceAdvanced():
            key = marker_key(0)
    return [LogRecord(0, first_offset, key, value, {}, 0)]


def embedded(image_id: str, vector: FloatMatrix, source_offset: int, payload: Mapping[str, Any]) -> PointEmbedded:
    """An upload that was embedded."""
    return PointEmbedded(
        image_id=image_id,
        vector=np.asarray(vector, dtype="<f4").tobytes(),
        fingerprint=FINGERPRINT,
        payload=dict(payload),
        object_key="o",
        sha256="s",
        width=1,
        height=1,
        source_offset=source_offset,
        event_at_ms=0,
    )


class Expected:
    """The same events, in source order, on plain dictionaries."""

    def __init__(self, events: list[LogEntry]) -> None:
        self.vectors: dict[str, FloatMatrix] = {}
        self.payloads: dict[str, Any] = {}
        self.deleted: set[str] = set()
        self.rejected: dict[str, str] = {}
        for event in events:
            match event:
                case PointEmbedded():
                    self.vectors[event.image_id] = np.frombuffer(event.vector, dtype=np.float32)
                    self.payloads[event.image_id] = event.payload
                    self.deleted.discard(event.image_id)
                    self.rejected.pop(event.image_id, None)
                case PayloadChanged() if event.image_id in self.vectors:
                    self.payloads[event.image_id] = event.payload
                case PointDeleted():
                    self.vectors.pop(event.image_id, None)
                    self.payloads.pop(event.image_id, None)
                    self.rejected.pop(event.image_id, None)
                    self.deleted.add(event.image_id)
                case EventRejected():
                    self.rejected[event.image_id] = event.code
                case _:
                    pass

    def state(self, image_id: str) -> str | None:
        if image_id in self.vectors:
            return "searchable"
        if image_id in self.rejected:
            return "rejected"
        return "deleted" if image_id in self.deleted else None


class EngineLog:
    """Applies events to an engine, and remembers what must be searchable after them.

    `vectors` and `payloads` are of the living points, by image id; `records` is the whole log.
    """

    def __init__(self, engine: ShardEngine) -> None:
        self.engine = engine
        self.records: list[LogRecord] = []
        self.events = 0
        self.vectors: dict[str, FloatMatrix] = {}
        self.payloads: dict[str, Mapping[str, Any]] = {}

    def as_of_now(self, engine: ShardEngine) -> EngineLog:
        """The log and its points as they are now, with another engine that holds them."""
        copy = EngineLog(engine)
        copy.records, copy.events = list(self.records), self.events
        copy.vectors, copy.payloads = dict(self.vectors), dict(self.payloads)
        return copy

    def replay(self, engine: ShardEngine, batch: int) -> None:
        """Let an engine read the rest of this log, `batch` records at a time."""
        while (start := engine.positions()[0].log_offset) < len(self.records):
            engine.apply(self.records[start : start + batch])

    def _records(self, entry: LogEntry) -> list[LogRecord]:
        records = records_of(entry, len(self.records))
        self.records += records
        self.events += 1
        return records

    def upsert(self, points: Mapping[str, FloatMatrix], payload: Mapping[str, Any] | None = None) -> None:
        """Upload these points, all in one batch and with one payload."""
        self.upsert_all([(image_id, vector, payload or {}) for image_id, vector in points.items()])

    def upsert_all(self, points: Iterable[tuple[str, FloatMatrix, Mapping[str, Any]]]) -> None:
        """Upload these points in their order, all in one batch; an id may be there twice."""
        records: list[LogRecord] = []
        for image_id, vector, payload in points:
            records += self._records(embedded(image_id, vector, self.events, payload))
            self.vectors[image_id], self.payloads[image_id] = vector, payload
        self.engine.apply(records)

    def delete(self, image_ids: Sequence[str]) -> None:
        """Delete these points, all in one batch."""
        records: list[LogRecord] = []
        for image_id in image_ids:
            records += self._records(PointDeleted(image_id, self.events, 0))
            self.vectors.pop(image_id, None)
            self.payloads.pop(image_id, None)
        self.engine.apply(records)

    def change_payload(self, image_id: str, payload: dict[str, Any]) -> None:
        """Change the payload of a living point."""
        self.payloads[image_id] = payload
        self.engine.apply(self._records(PayloadChanged(image_id, payload, self.events, 0)))

    def assert_whole(self, query: FloatMatrix, tolerance: float = 1e-5) -> None:
        """Every living point is found exactly once and with its score, and nothing else; small numbers of points only.

        Args:
            query: (d,) float32.
            tolerance: of scores, in which the type of the stored vectors differs from the sent ones.
        """
        for exact in (True, False):
            hits = self.engine.search(query[None], [ShardQuery(len(self.vectors) + 50, exact=exact)])[0]
            assert sorted(hit.image_id for hit in hits) == sorted(self.vectors)
            scores = np.array([self.vectors[hit.image_id] @ query for hit in hits])
            np.testing.assert_allclose([hit.score for hit in hits], scores, atol=tolerance)
        assert self.engine.points == len(self.vectors)

    def assert_filtered(self, key: str, values: Iterable[str | int]) -> None:
        """A search for each of these values returns exactly the points whose payload has it at the key."""
        query = np.ones((1, self.engine.parameters.dimension), dtype=np.float32)
        for value in values:
            condition = Filter(must=(Match(key, (value,)),))
            wanted = sorted(image_id for image_id, payload in self.payloads.items() if matches(condition, payload))
            for exact in (True, False):
                hits = self.engine.search(query, [ShardQuery(len(wanted) + 50, filter=condition, exact=exact)])[0]
                assert sorted(hit.image_id for hit in hits) == wanted

    def recall_at_10(self, queries: FloatMatrix) -> float:
        """Mean recall@10 of queries (q, d) float32 by graph; ties within 1e-6 count."""
        vectors = np.array(list(self.vectors.values()), dtype=np.float32)
        shares = []
        answers = self.engine.search(queries, [ShardQuery(10)] * len(queries))
        for hits, query, scores in zip(answers, queries, queries @ vectors.T, strict=True):
            tenth = np.sort(scores)[-10] - 1e-6
            shares.append(sum(self.vectors[hit.image_id] @ query >= tenth for hit in hits) / 10)
        return float(np.mean(shares))


def clustered(count: int, dimension: int, seed: int = 0, latent: int = 6) -> FloatMatrix:
    """(count, dimension) float32, L2-normalised, of latent dimension `latent`; the space is that of the dimension."""
    view = np.random.default_rng(1).standard_normal((latent, dimension))
    rows = np.random.default_rng(seed).standard_normal((count, latent)) @ view
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def kill(engine: ShardEngine, path: Path, target: Path) -> None:
    """End an engine at `path` and put its files at `target`, as a killed process leaves them."""
    store = engine._store
    # Only compaction ends, which removes files while they are copied; nothing is flushed or closed.
    store._db.cancel_all_background(True)
    shutil.copytree(path, target, ignore=shutil.ignore_patterns("LOCK"))
    engine._segments.stop()
    store._closed = True


def drained(engine: ShardEngine) -> None:
    """Let the engine do all the work that is due."""
    while engine.drain():
        pass
