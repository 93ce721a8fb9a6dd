"""The engine inside a shard: applies records of the embedding log, and answers searches over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from actors.index.rows import IdRow, Position, apply_entry
from actors.index.segments import Found, Segments, best
from actors.index.store import ShardStore, StoreBatch
from actors.log.records import LogIdentity, LogRecord
from actors.messages import Candidate, FloatMatrix, PointState, ShardQuery
from contract.errors import EventInvalid, InvalidRequest
from contract.events import DELETED_HEADER, LogEntry, SourceAdvanced, decode_log_entry

_CHUNK = 1024


class EngineParameters(Struct, frozen=True, kw_only=True):
    """What a shard is made for. `fingerprint` and `dimension` of an existing store must be equal."""

    fingerprint: str
    dimension: int
    m: int = 16
    ef_construction: int = 100
    ef_search: int = 64
    growing_max: int = 1024
    store_cache_bytes: int = 32 * 1024 * 1024
    store_write_buffer_bytes: int = 16 * 1024 * 1024


class ShardEngine:
    """One shard replica's points: durable in a ShardStore, searchable in Segments.

    Threads: any number may search and read; one applies; one drains.
    """

    def __init__(self, path: Path, parameters: EngineParameters) -> None:
        """Open the store at `path` and make all its points searchable.

        They are searched exactly until `drain` has moved them to the graph.

        Raises:
            StoreIncompatible: the store is of another format version, fingerprint or dimension.
        """
        self.parameters = parameters
        self._store = ShardStore(
            path,
            parameters.fingerprint,
            parameters.dimension,
            cache_bytes=parameters.store_cache_bytes,
            write_buffer_bytes=parameters.store_write_buffer_bytes,
        )
        self._positions = dict(self._store.progress.positions)
        self._segments = self._empty_segments()
        for image_ids, vectors in self._store.vector_chunks(_CHUNK):
            self._segments.load(image_ids, vectors)

    def _empty_segments(self) -> Segments:
        p = self.parameters
        return Segments(p.dimension, p.m, p.ef_construction, p.growing_max)

    @property
    def points(self) -> int:
        """Searchable points."""
        return self._store.progress.points

    @property
    def deleted(self) -> int:
        """Deleted ids that are remembered."""
        return self._store.progress.deleted

    @property
    def growing(self) -> int:
        """Points in the growing segment."""
        return self._segments.growing

    @property
    def log_identity(self) -> LogIdentity | None:
        """The log the positions belong to; None in a new store."""
        return self._store.progress.log_identity

    @property
    def caught_up_at_ms(self) -> int:
        """When the shard last was at the end of its log, in Unix milliseconds; 0 if never."""
        return self._store.progress.caught_up_at_ms

    def positions(self) -> dict[int, Position]:
        """Position per partition that the shard has met; what they cover is durable and searchable."""
        return dict(self._positions)

    def begin(self, identity: LogIdentity, log_ends: dict[int, int], now_ms: int) -> None:
        """Bind the store to its log and set `complete_from` of each partition to the log's end.

        A new store counts as caught up `now_ms` (Unix milliseconds): what it reads from here on
        makes it whole unless it stays away for longer than the log keeps tombstones.
        """
        before = self._store.progress.positions
        positions = before | {p: before.get(p, Position()).started(end) for p, end in log_ends.items()}
        progress = msgspec.structs.replace(
            self._store.progress,
            positions=positions,
            log_identity=identity,
            caught_up_at_ms=self._store.progress.caught_up_at_ms or now_ms,
        )
        self._store.write(StoreBatch(), progress)
        self._positions = positions

    def mark_caught_up(self, now_ms: int) -> None:
        """Remember that everything in the log as of `now_ms` (Unix milliseconds) is applied."""
        self._store.write(StoreBatch(), msgspec.structs.replace(self._store.progress, caught_up_at_ms=now_ms))

    def reset(self) -> None:
        """Forget every point and position; the next `begin` starts a new life."""
        self._store.reset()
        self._positions = {}
        self._segments = self._empty_segments()

    def close(self) -> None:
        """Close the store. Idempotent."""
        self._store.close()

    def apply(self, records: Sequence[LogRecord]) -> None:
        """Apply records in their order, atomically: all of them with the new positions, or none.

        A record below the stored position of its partition has no effect, so delivery may repeat.
        When this returns, searches find what the records brought.

        Raises:
            EventInvalid: a record that is no log entry; nothing is applied.
            FingerprintMismatch: a vector of another encoder; nothing is applied.
        """
        progress = self._store.progress
        positions = dict(progress.positions)
        entries: list[LogEntry] = []
        for record in records:
            position = positions.get(record.partition, Position())
            if record.offset >= position.log_offset:
                entries.append(entry := entry_of(record))
                positions[record.partition] = position.advanced(record.offset + 1, entry.source_offset)
        if not entries:
            return
        effect = self._effect(entries)
        # 1. Durable, together with the positions.
        progress = msgspec.structs.replace(
            progress,
            positions=positions,
            points=progress.points + effect.points,
            deleted=progress.deleted + effect.deleted,
        )
        self._store.write(effect.batch, progress)
        # 2. Searchable.
        self._segments.change(effect.changes)
        # 3. Only now may a reader who waits for a receipt look.
        self._positions = positions

    def _effect(self, entries: Sequence[LogEntry]) -> _Effect:
        """What entries do, one after the other, to the rows as they are stored."""
        named = [entry for entry in entries if not isinstance(entry, SourceAdvanced)]
        image_ids = list(dict.fromkeys(entry.image_id for entry in named))
        rows = dict(zip(image_ids, self._store.rows(image_ids), strict=True))
        effect = _Effect()
        vectors = effect.batch.vectors
        for entry in named:
            image_id = entry.image_id
            before = rows[image_id]
            applied = apply_entry(before, entry, self.parameters.fingerprint, self.parameters.dimension)
            if applied is None:
                continue
            rows[image_id] = effect.batch.rows[image_id] = applied.row
            effect.points += _has_point(applied.row) - _has_point(before)
            effect.deleted += _is_deleted(applied.row) - _is_deleted(before)
            if applied.vector is not None:
                now = vectors[image_id] if image_id in vectors else self._store.vector_bytes(image_id)
                # A repeated event brings the same vector, and the graph need not learn it again.
                if now != applied.vector:
                    vectors[image_id] = applied.vector
                    effect.changes.append((image_id, np.frombuffer(applied.vector, dtype="<f4")))
            elif _has_point(before) and not _has_point(applied.row):
                vectors[image_id] = None
                effect.changes.append((image_id, None))
        return effect

    def search(
        self, vectors: FloatMatrix, queries: Sequence[ShardQuery], with_payload: bool = True
    ) -> tuple[tuple[Candidate, ...], ...]:
        """Candidates of each query, best first, equal scores by id.

        Args:
            vectors: (q, d) float32, one row per query.
            queries: What each of them wants; `exact` compares with every vector of the store.
            with_payload: Whether candidates carry their payload.

        Raises:
            InvalidRequest: vectors of another shape, or a k below 1.
        """
        if vectors.shape != (len(queries), self.parameters.dimension):
            raise InvalidRequest(
                f"{len(queries)} queries of dimension {self.parameters.dimension} came with vectors {vectors.shape}"
            )
        if any(query.k < 1 for query in queries):
            raise InvalidRequest("k must be at least 1")
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        found: list[Found] = [[] for _ in queries]
        walks = [i for i, query in enumerate(queries) if not query.exact]
        if walks:
            ks = [queries[i].k for i in walks]
            efs = [max(queries[i].ef_search or self.parameters.ef_search, queries[i].k) for i in walks]
            for i, result in zip(walks, self._segments.search(vectors[walks], ks, efs), strict=True):
                found[i] = result
        scans = [i for i, query in enumerate(queries) if query.exact]
        if scans:
            for i, result in zip(scans, self._scan_all(vectors[scans], [queries[i].k for i in scans]), strict=True):
                found[i] = result
        return tuple(self._candidates(result, with_payload) for result in found)

    def _scan_all(self, vectors: FloatMatrix, ks: Sequence[int]) -> list[Found]:
        """Compare with every vector of the store as of one moment."""
        found: list[Found] = [[] for _ in ks]
        for image_ids, rows in self._store.vector_chunks(_CHUNK):
            scores = vectors @ rows.T
            for i, k in enumerate(ks):
                worst = found[i][-1][0] if len(found[i]) >= k else -np.inf
                better = np.flatnonzero(scores[i] >= worst)
                found[i] = best(found[i] + [(float(scores[i, j]), image_ids[j]) for j in better], k)
        return found

    def _candidates(self, found: Found, with_payload: bool) -> tuple[Candidate, ...]:
        if not with_payload:
            return tuple(Candidate(image_id, score, None) for score, image_id in found)
        rows = self._store.rows([image_id for _, image_id in found])
        return tuple(
            Candidate(image_id, score, row.point.payload)
            for (score, image_id), row in zip(found, rows, strict=True)
            # Without a point it was deleted after the search found it.
            if row is not None and row.point is not None
        )

    def fetch(self, image_ids: Sequence[str], with_vector: bool = False) -> list[PointState | None]:
        """What is known of each id; None for an id that was never met."""
        states = [
            None if row is None else row.state(image_id)
            for image_id, row in zip(image_ids, self._store.rows(image_ids), strict=True)
        ]
        if not with_vector:
            return states
        return [
            msgspec.structs.replace(state, vector=self._store.vector(state.image_id))
            if state is not None and state.state == "searchable"
            else state
            for state in states
        ]

    def scan(self, after: str | None, limit: int) -> list[PointState]:
        """Up to `limit` searchable points in the order of their ids' UTF-8 bytes, from the first above `after`."""
        states = [row.state(image_id) for image_id, row in self._store.scan(after, limit)]
        return [state for state in states if state is not None]

    def drain(self) -> bool:
        """One bounded step of moving points from the growing segment to the graph; False if there is none to do."""
        return self._segments.drain()

    def store_bytes(self) -> int:
        """Bytes of the store on disk."""
        return self._store.size_bytes()


class _Effect:
    """What a batch of entries does: to the store, to the segments, and to the counts."""

    def __init__(self) -> None:
        self.batch = StoreBatch()
        self.changes: list[tuple[str, FloatMatrix | None]] = []
        self.points = 0
        self.deleted = 0


def entry_of(record: LogRecord) -> LogEntry:
    """The entry a record of the embedding log carries; raises EventInvalid if it carries none."""
    if record.value is not None:
        return decode_log_entry(record.value)
    header = record.headers.get(DELETED_HEADER)
    if header is None:
        raise EventInvalid(f"the tombstone at {record.partition}/{record.offset} does not say what it deletes")
    return decode_log_entry(header)


def _has_point(row: IdRow | None) -> bool:
    return row is not None and row.point is not None


def _is_deleted(row: IdRow | None) -> bool:
    return row is not None and row.point is None and row.deleted_at >= 0
