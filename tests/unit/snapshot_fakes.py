"""A real RocksDB store that writes checkpoints, and an object store made of a dictionary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rocksdict import Checkpoint, DBCompressionType, Options, Rdict

from actors.index.manifest import SnapshotFacts
from actors.index.remote_snapshots import RemoteObject
from actors.index.rows import Position
from actors.log.records import LogIdentity
from contract.errors import ObjectMissing, ObjectStoreUnavailable

IDENTITY = LogIdentity("cluster", "topic")


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_compression_type(DBCompressionType.none())
    # Every checkpoint then adds one table, and none disappears.
    options.set_disable_auto_compactions(True)
    return options


class Store:
    """Keys and values in RocksDB; `checkpoint` is what a snapshot is taken with."""

    def __init__(self, path: Path) -> None:
        self._db = Rdict(str(path), _options())
        self.count = 0

    def fill(self, count: int, size: int = 200) -> None:
        """Add more keys with incompressible values of `size` bytes."""
        noise = np.random.default_rng(self.count)
        for n in range(self.count, self.count + count):
            self._db[f"{n:08d}".encode()] = noise.bytes(size)
        self.count += count

    def checkpoint(self, folder: Path) -> SnapshotFacts:
        Checkpoint(self._db).create_checkpoint(str(folder))
        (folder / "graph").mkdir()
        (folder / "graph" / "hnsw").write_bytes(f"graph of {self.count}".encode())
        return facts(self.count)

    def close(self) -> None:
        self._db.close()


def facts(count: int, fingerprint: str = "f") -> SnapshotFacts:
    """Facts of a store that has applied `count` records."""
    return SnapshotFacts(
        fingerprint=fingerprint,
        dimension=2,
        log_identity=IDENTITY,
        positions={0: Position(count, count - 1, count - 1, count)},
        points=count,
        caught_up_at_ms=1,
    )


def keys_of(path: Path) -> int:
    """Keys of a restored store, each of which is read."""
    db = Rdict(str(path), _options())
    try:
        return sum(1 for value in db.values() if len(value) > 0)
    finally:
        db.close()


class Bucket:
    """Objects that several replicas see; its clock stands still until a test moves it."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.written_ms: dict[str, int] = {}
        self.now_ms = 1_000_000


class FakeFolder:
    """Implements `RemoteFolder` over a Bucket, and counts what goes through it."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.away = False
        self.puts: list[str] = []
        self.gets: list[str] = []
        # Called before each operation with its name and key, so that a test can come between.
        self.before: Callable[[str, str], None] = lambda _operation, _key: None

    def _reach(self, operation: str, key: str) -> None:
        self.before(operation, key)
        if self.away:
            raise ObjectStoreUnavailable("away")

    def list(self, prefix: str) -> list[RemoteObject]:
        self._reach("list", prefix)
        bucket = self.bucket
        return [
            RemoteObject(k, len(d), bucket.written_ms[k]) for k, d in bucket.objects.items() if k.startswith(prefix)
        ]

    def put(self, key: str, chunks: Iterator[bytes]) -> None:
        self._reach("put", key)
        data = b"".join(chunks)
        self.puts.append(key)
        self.bucket.objects[key] = data
        self.bucket.written_ms[key] = self.bucket.now_ms

    def size(self, key: str) -> int:
        return len(self.read(key))

    def get(self, key: str, start: int, length: int) -> bytes:
        self.gets.append(key)
        return self.read(key)[start : start + length]

    def read(self, key: str) -> bytes:
        self._reach("read", key)
        if key not in self.bucket.objects:
            raise ObjectMissing(key)
        return self.bucket.objects[key]

    def delete(self, key: str) -> None:
        self._reach("delete", key)
        self.bucket.objects.pop(key, None)
        self.bucket.written_ms.pop(key, None)
