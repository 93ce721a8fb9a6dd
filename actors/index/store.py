"""The durable half of a shard: one RocksDB with everything the shard cannot do without.

Column families: `ids` (image id → IdRow), `numbers` (number → image id), `vectors` (number →
little-endian floats) and the default one with two keys, `header` (what the store is) and
`progress` (how far it is). Numbers are 4 bytes, big-endian, so that they are kept in order.
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
from rocksdict import BlockBasedOptions, Cache, Checkpoint, ChecksumType, DBCompressionType, Options, Rdict, WriteBatch

from actors.index.growing import Numbers
from actors.index.rows import IdRow, Position
from actors.index.vector_file import DTYPES
from actors.log.records import LogIdentity
from actors.messages import FloatMatrix
from contract.errors import StoreIncompatible
from contract.events import VectorType

FORMAT_VERSION = 2
NUMBER_MAX = 2**32 - 1
_HEADER = b"header"
_PROGRESS = b"progress"
_IDS = "ids"
_NUMBERS = "numbers"
_VECTORS = "vectors"


class StoreHeader(Struct, frozen=True):
    """What a store is; a store with another header is refused, never guessed at."""

    format_version: int
    fingerprint: str
    dimension: int
    vector_type: str = "fp32"


class Progress(Struct, frozen=True):
    """How far a store is: its log, its positions there, its counts, and when it was last caught up.

    `next_number` is above every number that was ever given to a vector.
    """

    log_identity: LogIdentity | None = None
    positions: dict[int, Position] = {}
    points: int = 0
    deleted: int = 0
    caught_up_at_ms: int = 0
    next_number: int = 0


class StoreBatch:
    """Changes that become durable together or not at all."""

    def __init__(self) -> None:
        self.rows: dict[str, IdRow] = {}
        self.vectors: dict[int, tuple[str, bytes]] = {}
        self.gone: list[int] = []


class ShardStore:
    """Rows, vectors and progress of one shard replica. Reads are thread-safe; there is one writer.

    A batch is not synced to the disk: after a power cut RocksDB recovers a prefix of the batches,
    and since each carries its log positions, the shard reads the rest again from the log, which is
    the source of truth. The death of the process alone loses nothing that was written.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: str,
        dimension: int,
        *,
        vector_type: VectorType = "fp32",
        cache_bytes: int,
        write_buffer_bytes: int,
    ) -> None:
        """Open the store at `path`, making it if there is none.

        Raises:
            StoreIncompatible: of another format version, fingerprint, dimension or vector type, or
                no store at all.
        """
        self._path = path
        self._gone = path.with_name(f"{path.name}.gone")
        self._header = StoreHeader(FORMAT_VERSION, fingerprint, dimension, vector_type)
        self._vector_type: VectorType = vector_type
        self._dtype = np.dtype(DTYPES[vector_type])
        self._cache_bytes = cache_bytes
        self._write_buffer_bytes = write_buffer_bytes
        self._lock = threading.Lock()
        self._row_decoder = msgspec.msgpack.Decoder(IdRow)
        self._encoder = msgspec.msgpack.Encoder()
        self._open()

    def _open(self) -> None:
        shutil.rmtree(self._gone, ignore_errors=True)
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
        families = {name: _options(cache) for name in (_IDS, _NUMBERS, _VECTORS)}
        self._db = Rdict(str(self._path), options, column_families=families)
        self._ids, self._numbers, self._vectors = (self._db.get_column_family(name) for name in families)
        self._handles = {name: self._db.get_column_family_handle(name) for name in families}
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
        found = decode_header(self._path, data)
        if found != self._header:
            raise StoreIncompatible(f"{self._path} is {found}, and this shard needs {self._header}")

    @property
    def dimension(self) -> int:
        """Dimension of the vectors."""
        return self._header.dimension

    @property
    def vector_type(self) -> VectorType:
        """How vectors are stored."""
        return self._vector_type

    @property
    def folder(self) -> Path:
        """Where the store lies; its owner may keep files beside those of RocksDB."""
        return self._path

    @property
    def progress(self) -> Progress:
        """Progress as of the last written batch."""
        return self._progress

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def resume(self, progress: Progress) -> None:
        """Correct the progress that was read at the opening; the next batch writes it."""
        self._progress = progress

    def write(self, batch: StoreBatch, progress: Progress) -> None:
        """Write rows, vectors and progress in one atomic batch."""
        raw = WriteBatch(raw_mode=True)
        ids, numbers, vectors = (self._handles[name] for name in (_IDS, _NUMBERS, _VECTORS))
        for image_id, row in batch.rows.items():
            raw.put(image_id.encode(), self._encoder.encode(row), ids)
        for number, (image_id, vector) in batch.vectors.items():
            key = number.to_bytes(4, "big")
            raw.put(key, image_id.encode(), numbers)
            raw.put(key, vector, vectors)
        for number in batch.gone:
            key = number.to_bytes(4, "big")
            raw.delete(key, numbers)
            raw.delete(key, vectors)
        raw.put(_PROGRESS, self._encoder.encode(progress))
        self._db.write(raw)
        self._progress = progress

    def rows(self, image_ids: Sequence[str]) -> list[IdRow | None]:
        """The rows of many ids, in their order."""
        if not image_ids:
            return []
        found = cast("list[bytes | None]", self._ids.get([image_id.encode() for image_id in image_ids]))
        decode = self._row_decoder.decode
        return [None if data is None else decode(data) for data in found]

    def encode(self, vector: FloatMatrix) -> bytes:
        """A (d,) float32 vector as it is stored."""
        return vector.astype(self._dtype).tobytes()

    def decode(self, stored: bytes) -> FloatMatrix:
        """(d,) float32 of a stored vector."""
        return np.frombuffer(stored, dtype=self._dtype).astype(np.float32)

    def vector_bytes(self, numbers: Sequence[int]) -> list[bytes | None]:
        """The vectors of these numbers as they are stored; None where there is none."""
        if not numbers:
            return []
        return cast("list[bytes | None]", self._vectors.get([int(n).to_bytes(4, "big") for n in numbers]))

    def vectors(self, numbers: Numbers) -> FloatMatrix:
        """The vectors of these numbers, (n, d) float32. Raises KeyError for a number that is not there."""
        found = self.vector_bytes(numbers.tolist())
        there = [data for data in found if data is not None]
        if len(there) < len(found):
            raise KeyError(int(numbers[found.index(None)]))
        return self._matrix(there)

    def scan(self, after: str | None, limit: int) -> list[tuple[str, IdRow]]:
        """Up to `limit` ids with a point, ascending by the bytes of the id, from the first above `after`."""
        found: list[tuple[str, IdRow]] = []
        for image_id, row in self.points(after):
            if len(found) >= limit:
                break
            found.append((image_id, row))
        return found

    def points(self, after: str | None = None) -> Iterator[tuple[str, IdRow]]:
        """All ids with a point as of one moment, ascending by the bytes of the id, from the first above `after`."""
        for key, data in _pairs(self._ids, None if after is None else after.encode() + b"\x00"):
            row = self._row_decoder.decode(data)
            if row.point is not None:
                yield key.decode(), row

    def numbers(self) -> tuple[Numbers, list[str]]:
        """All numbers that have a vector, ascending, and their image ids."""
        keys: list[bytes] = []
        image_ids: list[str] = []
        for key, data in _pairs(self._numbers):
            keys.append(key)
            image_ids.append(data.decode())
        return np.frombuffer(b"".join(keys), dtype=">u4").astype(np.uint32), image_ids

    def vector_chunks(self, size: int) -> Iterator[tuple[Numbers, FloatMatrix]]:
        """All vectors as of one moment, ascending by number: up to `size` numbers and their (n, d) float32."""
        keys: list[bytes] = []
        chunk: list[bytes] = []
        for key, data in _pairs(self._vectors):
            keys.append(key)
            chunk.append(data)
            if len(keys) == size:
                yield np.frombuffer(b"".join(keys), dtype=">u4").astype(np.uint32), self._matrix(chunk)
                keys, chunk = [], []
        if keys:
            yield np.frombuffer(b"".join(keys), dtype=">u4").astype(np.uint32), self._matrix(chunk)

    def _matrix(self, rows: Sequence[bytes]) -> FloatMatrix:
        return np.frombuffer(b"".join(rows), dtype=self._dtype).reshape(-1, self._header.dimension).astype(np.float32)

    def checkpoint(self, folder: Path) -> None:
        """Write the store as of now to `folder`, which must not be there: table files are hard links."""
        Checkpoint(self._db).create_checkpoint(str(folder))

    def sync(self) -> None:
        """Bring everything that was written to the disk, so that a power cut cannot take it."""
        self._db.flush_wal(True)

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
        # Half a store could not be opened.
        shutil.rmtree(self._gone, ignore_errors=True)
        self._path.rename(self._gone)
        self._open()

    def close(self) -> None:
        """Close the store; idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            # RocksDB lets its lock go only when every reference to it is gone.
            self._handles = {}
            for family in (self._ids, self._numbers, self._vectors):
                family.close()
            self._db.close()


def decode_header(path: Path, data: bytes) -> StoreHeader:
    """The header of the store at `path`; raises StoreIncompatible if these bytes are none."""
    try:
        return msgspec.msgpack.decode(data, type=StoreHeader)
    except msgspec.MsgspecError as error:
        raise StoreIncompatible(f"{path}: its header cannot be read: {error}") from error


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
