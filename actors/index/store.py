"""The durable half of a shard: one RocksDB with everything the shard cannot do without.

Column families: `ids` (image id → IdRow), `vectors` (image id → float32 little-endian) and the
default one with two keys, `header` (what the store is) and `progress` (how far it is).
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
from msgspec import Struct
from rocksdict import BlockBasedOptions, Cache, ChecksumType, DBCompressionType, Options, Rdict, WriteBatch

from actors.index.rows import IdRow, Position
from actors.log.records import LogIdentity
from actors.messages import FloatMatrix
from contract.errors import StoreIncompatible

FORMAT_VERSION = 1
_HEADER = b"header"
_PROGRESS = b"progress"
_IDS = "ids"
_VECTORS = "vectors"


class StoreHeader(Struct, frozen=True):
    """What a store is; a store with another header is refused, never guessed at."""

    format_version: int
    fingerprint: str
    dimension: int


class Progress(Struct, frozen=True):
    """How far a store is: its log, its positions there, its counts, and when it was last caught up."""

    log_identity: LogIdentity | None = None
    positions: dict[int, Position] = {}
    points: int = 0
    deleted: int = 0
    caught_up_at_ms: int = 0


class StoreBatch:
    """Changes that become durable together or not at all."""

    def __init__(self) -> None:
        self.rows: dict[str, IdRow] = {}
        self.vectors: dict[str, bytes | None] = {}


class ShardStore:
    """Rows, vectors and progress of one shard replica. Reads are thread-safe; there is one writer.

    A batch is not synced to the disk: after a power cut RocksDB recovers a prefix of the batches,
    and since each carries its log positions, the shard reads the rest again from the log, which is
    the source of truth. The death of the process alone loses nothing that was written.
    """

    def __init__(
        self, path: Path, fingerprint: str, dimension: int, *, cache_bytes: int, write_buffer_bytes: int
    ) -> None:
        """Open the store at `path`, making it if there is none.

        Raises:
            StoreIncompatible: of another format version, fingerprint or dimension, or no store at all.
        """
        self._path = path
        self._header = StoreHeader(FORMAT_VERSION, fingerprint, dimension)
        self._cache_bytes = cache_bytes
        self._write_buffer_bytes = write_buffer_bytes
        self._lock = threading.Lock()
        self._row_decoder = msgspec.msgpack.Decoder(IdRow)
        self._encoder = msgspec.msgpack.Encoder()
        self._open()

    def _open(self) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        self._closed = False
        cache = Cache(self._cache_bytes)
        options = _options(cache)
        options.create_if_missing(True)
        options.create_missing_column_families(True)
        # Bounds the memtables of all column families together.
        options.set_db_write_buffer_size(self._write_buffer_bytes)
        options.set_max_total_wal_size(4 * self._write_buffer_bytes)
        options.set_keep_log_file_num(2)
        families = {_IDS: _options(cache), _VECTORS: _options(cache)}
        self._db = Rdict(str(self._path), options, column_families=families)
        self._ids = self._db.get_column_family(_IDS)
        self._vectors = self._db.get_column_family(_VECTORS)
        self._ids_handle = self._db.get_column_family_handle(_IDS)
        self._vectors_handle = self._db.get_column_family_handle(_VECTORS)
        try:
            self._check_header()
            data = self._db.get(_PROGRESS)
            self._progress = msgspec.msgpack.decode(data, type=Progress) if data is not None else Progress()
        except BaseException:
            self.close()
            raise

    def _check_header(self) -> None:
        data = self._db.get(_HEADER)
        if data is None:
            batch = WriteBatch(raw_mode=True)
            batch.put(_HEADER, self._encoder.encode(self._header))
            self._db.write(batch)
            return
        try:
            found = msgspec.msgpack.decode(data, type=StoreHeader)
        except msgspec.MsgspecError as error:
            raise StoreIncompatible(f"{self._path}: its header cannot be read: {error}") from error
        if found != self._header:
            raise StoreIncompatible(f"{self._path} is {found}, and this shard needs {self._header}")

    @property
    def progress(self) -> Progress:
        """Progress as of the last written batch."""
        return self._progress

    def write(self, batch: StoreBatch, progress: Progress) -> None:
        """Write rows, vectors and progress in one atomic batch."""
        raw = WriteBatch(raw_mode=True)
        for image_id, row in batch.rows.items():
            raw.put(image_id.encode(), self._encoder.encode(row), self._ids_handle)
        for image_id, vector in batch.vectors.items():
            if vector is None:
                raw.delete(image_id.encode(), self._vectors_handle)
            else:
                raw.put(image_id.encode(), vector, self._vectors_handle)
        raw.put(_PROGRESS, self._encoder.encode(progress))
        self._db.write(raw)
        self._progress = progress

    def row(self, image_id: str) -> IdRow | None:
        """The row of one id."""
        data = self._ids.get(image_id.encode())
        return None if data is None else self._row_decoder.decode(data)

    def rows(self, image_ids: Sequence[str]) -> list[IdRow | None]:
        """The rows of many ids, in their order."""
        if not image_ids:
            return []
        found = cast("list[bytes | None]", self._ids.get([image_id.encode() for image_id in image_ids]))
        return [None if data is None else self._row_decoder.decode(data) for data in found]

    def vector_bytes(self, image_id: str) -> bytes | None:
        """The vector of one id as it came."""
        data = self._vectors.get(image_id.encode())
        return None if data is None else bytes(data)

    def vector(self, image_id: str) -> FloatMatrix | None:
        """(d,) float32, or None."""
        data = self.vector_bytes(image_id)
        return None if data is None else np.frombuffer(data, dtype="<f4").astype(np.float32)

    def scan(self, after: str | None, limit: int) -> list[tuple[str, IdRow]]:
        """Up to `limit` ids with a point, ascending by the bytes of the id, from the first above `after`."""
        found: list[tuple[str, IdRow]] = []
        start = None if after is None else after.encode() + b"\x00"
        for key, data in _pairs(self._ids, start):
            if len(found) >= limit:
                break
            row = self._row_decoder.decode(data)
            if row.point is not None:
                found.append((key.decode(), row))
        return found

    def vector_chunks(self, size: int) -> Iterator[tuple[list[str], FloatMatrix]]:
        """All vectors as of one moment, in id order: up to `size` ids and their (n, d) float32."""
        ids: list[str] = []
        chunk: list[bytes] = []
        for key, data in _pairs(self._vectors):
            ids.append(key.decode())
            chunk.append(data)
            if len(ids) == size:
                yield ids, self._matrix(chunk)
                ids, chunk = [], []
        if ids:
            yield ids, self._matrix(chunk)

    def _matrix(self, rows: Sequence[bytes]) -> FloatMatrix:
        return np.frombuffer(b"".join(rows), dtype="<f4").reshape(-1, self._header.dimension).astype(np.float32)

    def size_bytes(self) -> int:
        """Bytes of the store's files on disk."""
        total = 0
        for file in self._path.iterdir():
            try:
                total += file.stat().st_size
            except FileNotFoundError:
                continue  # RocksDB retires files at any time
        return total

    def reset(self) -> None:
        """Forget everything: close, remove, and open anew and empty."""
        self.close()
        shutil.rmtree(self._path)
        self._open()

    def close(self) -> None:
        """Close the store; idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            # RocksDB lets its lock go only when every reference to it is gone.
            self._ids.close()
            self._vectors.close()
            del self._ids_handle, self._vectors_handle
            self._db.close()


def _options(cache: Cache) -> Options:
    options = Options(raw_mode=True)
    table = BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_cache_index_and_filter_blocks(True)
    table.set_checksum_type(ChecksumType.xxh3())
    # Source: RocksDB tuning guide; 10 bits per key miss about 1 % of absent keys.
    table.set_bloom_filter(10, False)
    options.set_block_based_table_factory(table)
    # Vectors do not compress, and payloads are small.
    options.set_compression_type(DBCompressionType.none())
    return options


def _pairs(family: Rdict, start: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values as of one moment, from `start` on; in raw mode both are bytes."""
    return cast("Iterator[tuple[bytes, bytes]]", family.snapshot().items(from_key=start))
