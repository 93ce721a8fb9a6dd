"""The engine inside a shard: applies records of the embedding log, and answers searches over them."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from actors.index import filter_files, graph_files
from actors.index.answering import Answering
from actors.index.applying import effect_of
from actors.index.codes import Codec
from actors.index.filters import FilterIndex
from actors.index.graph_files import Saved
from actors.index.linking import link
from actors.index.manifest import SnapshotFacts
from actors.index.recall import RecallSampler
from actors.index.rows import Position
from actors.index.segments import SegmentParameters, Segments
from actors.index.store import ShardStore, StoreBatch
from actors.index.upgrade import upgrade
from actors.index.vector_file import VectorFile, remove_others
from actors.log.records import LogIdentity, LogRecord
from actors.messages import Candidate, FloatMatrix, PointState, ShardQuery
from contract.errors import EventInvalid
from contract.events import DELETED_HEADER, LogEntry, Quantization, VectorType, decode_log_entry

_CHUNK = 1024
# RocksDB writes with Python's lock held, some 4 microseconds per record, and searches wait for it:
# whoever applies many gives them by so few.
APPLY_AT_ONCE = 16
# A graph file is written anew when the graph has gained this share of points, within these bounds:
# what it lacks is inserted again at the next start.
_SAVE_SHARE, _SAVE_MIN, _SAVE_MAX = 0.1, 8192, 32_768


class EngineParameters(Struct, frozen=True, kw_only=True):
    """What a shard is made for.

    `fingerprint`, `dimension` and `vector_type` of an existing store must be equal; the others may
    change between two lives of a shard. `filter_fields` are the payload fields that filters may
    name; None for all. `build_threads` of 0 means all processors.
    """

    fingerprint: str
    dimension: int
    m: int = 16
    ef_construction: int = 100
    ef_search: int = 64
    quantization: Quantization = "none"
    vector_type: VectorType = "fp32"
    filter_fields: tuple[str, ...] | None = None
    growing_max: int = 1024
    build_threads: int = 0
    rebuild_dead_min: int = 1024
    recall_share: float = 0.0
    store_cache_bytes: int = 32 * 1024 * 1024
    store_write_buffer_bytes: int = 16 * 1024 * 1024


class ShardEngine:
    """One shard replica's points: durable in a ShardStore, searchable in Segments.

    Threads: any number may search and read; one applies; one drains.
    """

    def __init__(self, path: Path, parameters: EngineParameters) -> None:
        """Open the store at `path` and make all its points searchable.

        The graph comes from its file. What that lacks is compared exactly until `drain` has
        inserted it, or inserted here, on all processors, where it is too much for that.

        Raises:
            StoreIncompatible: the store is of another format version, fingerprint, dimension or
                vector type.
        """
        self.parameters = parameters
        self._path = path
        self._codec = Codec(parameters.quantization, parameters.dimension)
        upgrade(path, parameters.fingerprint, parameters.dimension, self._new_store)
        self._store = self._new_store(path)
        self._applying = threading.Lock()
        self._saving = threading.Lock()
        self._sampler = RecallSampler(parameters.recall_share)
        self._positions = dict(self._store.progress.positions)
        self._load()

    def _new_store(self, path: Path) -> ShardStore:
        p = self.parameters
        return ShardStore(
            path,
            p.fingerprint,
            p.dimension,
            vector_type=p.vector_type,
            cache_bytes=p.store_cache_bytes,
            write_buffer_bytes=p.store_write_buffer_bytes,
        )

    def _new_vector_file(self) -> VectorFile:
        return VectorFile.new_in(self._path, self.parameters.vector_type, self.parameters.dimension)

    def _begin_empty(self) -> None:
        """Segments without points, and who answers from them."""
        p = self.parameters
        segments = SegmentParameters(
            m=p.m,
            ef_construction=p.ef_construction,
            growing_max=p.growing_max,
            build_threads=p.build_threads or os.cpu_count() or 1,
            rebuild_dead_min=p.rebuild_dead_min,
        )
        self._segments = Segments(self._codec, segments, self._new_vector_file, FilterIndex(p.filter_fields))
        self._answering = Answering(self._store, self._segments, p.dimension, p.ef_search, self._sampler)

    def _load(self) -> None:
        """Make segments and filter index from what is on the disk."""
        p = self.parameters
        self._begin_empty()
        graph = graph_files.load(self._graph_file, self._store, p.m, p.ef_construction)
        if graph is None:
            # Nobody knows which numbers it holds, so nothing keeps the store from giving them again.
            self._graph_file.unlink(missing_ok=True)
        remove_others(self._path, None if graph is None or graph.file is None else graph.file.path)
        self._saved = None if graph is None else Saved.of(graph)
        if graph is not None and len(graph):
            # After a power cut the graph may know numbers that the store has lost; they are never given again.
            used = int(graph.numbers[-1]) + 1
            progress = self._store.progress
            self._store.resume(msgspec.structs.replace(progress, next_number=max(progress.next_number, used)))
        alive, image_ids = self._store.numbers()
        lacking = self._segments.open(graph, alive)
        places = np.searchsorted(alive, lacking)
        for start in range(0, len(lacking), _CHUNK):
            some = places[start : start + _CHUNK]
            names = [image_ids[place] for place in some]
            self._segments.load(alive[some], names, self._store.vectors(alive[some]))
            self._segments.wait_for_room()
        saved = filter_files.load(self._filters_file, self._store.progress.positions)
        # Good for one start: after a power cut the same positions may come again with other numbers.
        self._filters_file.unlink(missing_ok=True)
        if saved is not None and saved.fields == self._segments.filters.fields:
            self._segments.filters = saved
            return
        for _, row in self._store.points():
            if row.point is not None:
                self._segments.filters.put(row.point.number, msgspec.json.decode(row.point.payload))

    @property
    def _graph_file(self) -> Path:
        return self._path / "graph"

    @property
    def _filters_file(self) -> Path:
        return self._path / "filters"

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
        return self._segments.view.growing.living

    @property
    def dead(self) -> int:
        """Points in the graph that were deleted or replaced, and wait for its rebuild."""
        return self._segments.view.dead

    @property
    def quantization(self) -> Quantization | None:
        """Quantization of the graph as it is now; None without a graph."""
        graph = self._segments.view.graph
        return None if graph is None else graph.codec.quantization

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
        with self._applying:
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
        with self._applying:
            self._store.write(StoreBatch(), msgspec.structs.replace(self._store.progress, caught_up_at_ms=now_ms))

    def reset(self) -> None:
        """Forget every point and position; the next `begin` starts a new life."""
        with self._applying, self._saving:
            self._segments.stop()
            self._store.reset()
            self._positions = {}
            self._saved = None
            self._begin_empty()

    def close(self) -> None:
        """Save the graph and the filter index, and close the store. Idempotent."""
        self._segments.stop()
        with self._applying, self._saving:
            if self._store.is_closed:
                return
            self._save_graph()
            filter_files.save(self._filters_file, self._segments.dump_filters(), self._store.progress.positions)
            self._store.close()

    def apply(self, records: Sequence[LogRecord]) -> None:
        """Apply records in their order, atomically: all of them with the new positions, or none.

        A record below the stored position of its partition has no effect, so delivery may repeat.
        When this returns, searches find what the records brought. Waits while the graph cannot keep up.

        Raises:
            EventInvalid: a record that is no log entry; nothing is applied.
            FingerprintMismatch: a vector of another encoder; nothing is applied.
        """
        with self._applying:
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
            p = self.parameters
            effect = effect_of(entries, self._store, progress.next_number, p.fingerprint, p.dimension)
            # 1. Durable, together with the positions.
            progress = msgspec.structs.replace(
                progress,
                positions=positions,
                points=progress.points + effect.points,
                deleted=progress.deleted + effect.deleted,
                next_number=effect.next_number,
            )
            self._store.write(effect.batch, progress)
            # 2. Searchable.
            self._segments.change(effect, effect.matrix(p.dimension))
            # 3. Only now may a reader who waits for a receipt look.
            self._positions = positions
        self._segments.wait_for_room()

    def search(
        self, vectors: FloatMatrix, queries: Sequence[ShardQuery], with_payload: bool = True
    ) -> tuple[tuple[Candidate, ...], ...]:
        """Candidates of each query, best first, equal scores by id.

        Args:
            vectors: (q, d) float32, one row per query.
            queries: What each of them wants; `exact` compares with every stored vector.
            with_payload: Whether candidates carry their payload.

        Raises:
            InvalidRequest: vectors of another shape, a k below 1, or a filter on a field that is
                not indexed.
        """
        return self._answering.search(vectors, queries, with_payload)

    def measure_recall(self) -> bool:
        """Search one sampled query exactly and compare; False if none waits.

        A query whose hits have changed since it was answered is passed over.
        """
        return self._answering.measure_recall()

    def recall_at_10(self) -> tuple[float | None, int]:
        """Mean recall@10 of recent sampled queries (None before the first), and how many were measured."""
        return self._sampler.result()

    def fetch(self, image_ids: Sequence[str], with_vector: bool = False) -> list[PointState | None]:
        """What is known of each id; None for an id that was never met."""
        rows = self._store.rows(image_ids)
        states = [None if row is None else row.state(image_id) for image_id, row in zip(image_ids, rows, strict=True)]
        if not with_vector:
            return states
        found: list[PointState | None] = []
        for state, row in zip(states, rows, strict=True):
            if state is None or row is None or row.point is None:
                found.append(state)
                continue
            stored = self._store.vector_bytes([row.point.number])[0]
            found.append(state if stored is None else msgspec.structs.replace(state, vector=self._store.decode(stored)))
        return found

    def scan(self, after: str | None, limit: int) -> list[PointState]:
        """Up to `limit` searchable points in the order of their ids' UTF-8 bytes, from the first above `after`."""
        states = [row.state(image_id) for image_id, row in self._store.scan(after, limit)]
        return [state for state in states if state is not None]

    def drain(self) -> bool:
        """One step of bringing points to the graph, and of its upkeep; False if none is due."""
        if not self._segments.drain():
            return False
        with self._saving:
            if self._save_is_due():
                self._save_graph()
        return True

    def _save_is_due(self) -> bool:
        graph, saved = self._segments.view.graph, self._saved
        if graph is None:
            return False
        if saved is None or not saved.points:
            return len(graph) >= _SAVE_MIN
        unsaved = len(graph) - int(np.searchsorted(graph.numbers, saved.last_number, side="right"))
        # A rebuilt graph has a vector file of its own; until it is saved, both are on the disk.
        rebuilt = graph.file is not saved.file or len(graph) < saved.points
        return rebuilt or unsaved >= min(max(_SAVE_MIN, int(_SAVE_SHARE * saved.points)), _SAVE_MAX)

    def seal(self) -> None:
        """Bring all points from the growing segment to the graph now."""
        self._segments.seal()

    def checkpoint(self, folder: Path) -> SnapshotFacts:
        """Write store, graph and filter index, as of one moment, to `folder`, which must not be there.

        Files that never change are hard links, or copies on another file system; these are not synced to the disk.
        Opening it as an engine's path gives this engine back, without building its graph.
        """
        with self._saving:
            self._save_graph()
            # Whatever numbers the graph has, the store has given them before.
            with self._applying:
                self._store.checkpoint(folder)
                progress = self._store.progress
                filter_files.save(folder / self._filters_file.name, self._segments.dump_filters(), progress.positions)
            if self._graph_file.exists():
                link(self._graph_file, folder / self._graph_file.name)
        return SnapshotFacts(
            fingerprint=self.parameters.fingerprint,
            dimension=self.parameters.dimension,
            log_identity=progress.log_identity,
            positions=progress.positions,
            points=progress.points,
            caught_up_at_ms=progress.caught_up_at_ms,
        )

    def _save_graph(self) -> None:
        graph = self._segments.view.graph
        before = self._saved
        if graph is None or self._store.is_closed or (before is not None and before.graph() is graph):
            return
        graph_files.save(self._graph_file, graph, self.parameters.m, self.parameters.ef_construction)
        self._saved = Saved.of(graph)
        if before is not None and before.file is not None and before.file is not graph.file:
            before.file.path.unlink(missing_ok=True)

    def store_bytes(self) -> int:
        """Bytes of the store on disk."""
        return self._store.size_bytes()


def entry_of(record: LogRecord) -> LogEntry:
    """The entry a record of the embedding log carries; raises EventInvalid if it carries none."""
    if record.value is not None:
        return decode_log_entry(record.value)
    header = record.headers.get(DELETED_HEADER)
    if header is None:
        raise EventInvalid(f"the tombstone at {record.partition}/{record.offset} does not say what it deletes")
    return decode_log_entry(header)
