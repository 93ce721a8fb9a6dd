"""The known-bytes table: a global Faust table on RocksDB, whose changelog is the topic `known-bytes`.

Every ingest process holds the whole of it, because uploads of equal bytes under different ids lie in
different partitions. It is written in one way only: to its changelog, with this house's producer, so that
an entry is durable when the upload is acknowledged; Faust brings it from there into every process's store.
A folder that is lost is read again from the changelog; one of another broker is thrown away.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import faust
import structlog
from faust.stores import rocksdb
from faust.tables.globaltable import GlobalTable
from yarl import URL

from actors.log.producer import LogProducer, OutgoingRecord
from actors.log.records import LogIdentity
from contract.errors import BrokerUnavailable
from contract.telemetry import LogField
from contract.topics import KNOWN_BYTES_TOPIC, incarnation_of_key

_log = structlog.get_logger()

_PARTITION = 0
STORE = "rocksdb://"
# Keys are SHA-256, so nothing is near anything: a Bloom filter answers for what is not there, most of the time.
_OPTIONS = {
    "write_buffer_size": 8 * 1024 * 1024,
    "max_write_buffer_number": 2,
    "block_cache_size": 32 * 1024 * 1024,
    "bloom_filter_size": 10,
    "max_open_files": 256,
}
_SLOTS_MAX = 64
_SWEEP_BATCH = 500


class _Store(rocksdb.Store):
    """Faust's RocksDB store, for one partition, which rather begins anew than not at all."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **{**named, "options": dict(_OPTIONS)}, driver="rocksdict")

    def _open_for_partition(self, partition: int) -> Any:
        try:
            return super()._open_for_partition(partition)
        except Exception as error:
            if "lock" in repr(error).lower():
                raise
            _log.warning(
                "the known-bytes table is damaged and is read anew from its changelog",
                **{LogField.ERROR: repr(error)},
            )
            shutil.rmtree(self.partition_path(partition), ignore_errors=True)
            return super()._open_for_partition(partition)

    def revoke_partitions(self, table: Any, tps: Any) -> None:
        """Close what is revoked: Faust leaves that to the garbage collector, and the lock with it."""
        for tp in tps:
            if tp.topic in table.changelog_topic.topics and (db := self._dbs.pop(tp.partition, None)) is not None:
                db.close()

    def value(self, key: bytes) -> bytes | None:
        """The value of a key; None while the store is not open."""
        db = self._dbs.get(_PARTITION)
        return None if db is None else db.get(key)

    def keys_from(self, key: bytes, count: int) -> list[bytes]:
        """Up to `count` keys in order, from `key` on."""
        db = self._dbs.get(_PARTITION)
        found: list[bytes] = []
        if db is None:
            return found
        for one in db.keys(from_key=key):
            if one != self.offset_key:
                found.append(one)
            if len(found) >= count:
                break
        return found


class _Table(GlobalTable):
    """A global table whose changelog has the name and the shape that contract/topics.py gives it."""

    def _changelog_topic_name(self) -> str:
        return KNOWN_BYTES_TOPIC

    def _new_store_by_url(self, url: str | URL) -> _Store:
        return _Store(
            url,
            self.app,
            self,
            table_name=self.name,
            key_type=self.key_type,
            key_serializer=self.key_serializer,
            value_serializer=self.value_serializer,
            value_type=self.value_type,
        )


TABLE_CLASS = _Table


class KnownBytesTable:
    """The table as the pipeline uses it."""

    def __init__(self, app: faust.App, producer: LogProducer) -> None:
        """`app` must have been made with `GlobalTable=TABLE_CLASS`, and must not run yet."""
        self._producer = producer
        self._table = app.GlobalTable(
            KNOWN_BYTES_TOPIC,
            partitions=1,
            key_type=bytes,
            value_type=bytes,
            # An entry of another process counts as soon as it comes, not when a buffer is full.
            recovery_buffer_size=1,
            on_recover=self._recovered,
        )
        self._began = time.monotonic()

    def get(self, key: bytes) -> bytes | None:
        """The newest value that came through the changelog; None while the table is being restored."""
        return self._store.value(key)

    async def put(self, pairs: Mapping[bytes, bytes | None]) -> None:
        """Write entries (None removes one) to the changelog; returns once durable. Raises BrokerUnavailable."""
        await self._producer.send_all(
            [OutgoingRecord(KNOWN_BYTES_TOPIC, _PARTITION, key, value) for key, value in pairs.items()]
        )

    async def restored(self) -> None:
        """Return once the table holds what its changelog held at the start."""
        await cast(Any, self._table.app.tables).recovery.completed.wait()

    async def sweep(self, incarnations: Collection[str]) -> int:
        """Remove the entries of collections that are none of `incarnations`; how many there were.

        Idempotent; two processes may do it at once.
        """
        removed, key = 0, b""
        while True:
            keys = self._store.keys_from(key, _SWEEP_BATCH)
            if not keys:
                return removed
            incarnation = incarnation_of_key(keys[0]) or ""
            prefix = f"{incarnation}/".encode()
            if incarnation in incarnations:
                # '0' follows '/': the first key beyond this collection's.
                key = incarnation.encode() + b"0"
                continue
            dead = [one for one in keys if one.startswith(prefix)] or keys[:1]
            try:
                await self.put(dict.fromkeys(dead))
            except BrokerUnavailable as error:
                _log.warning(
                    "entries of dropped collections stay until the next start", **{LogField.ERROR: error.detail}
                )
                return removed
            removed += len(dead)
            key = dead[-1] + b"\x00"
            await asyncio.sleep(0)

    @property
    def _store(self) -> _Store:
        return cast(_Store, self._table.data)

    async def _recovered(self) -> None:
        _log.info(
            "the known-bytes table is restored",
            **{LogField.DURATION_S: round(time.monotonic() - self._began, 3), LogField.PLACE: str(self._store.path)},
        )


class TableFolder:
    """A folder for the table of one process, of one log: two processes of one home never share one."""

    def __init__(self, home: Path, identity: LogIdentity) -> None:
        """Take the first folder nobody uses; folders of other logs in it are removed."""
        name = blake2b(f"{identity.cluster_id}/{identity.topic_id}".encode(), digest_size=8).hexdigest()
        for slot in _slots(home / "ingest-tables"):
            lock = os.open(slot / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            self._lock = lock
            for other in slot.iterdir():
                if other.is_dir() and other.name != name:
                    shutil.rmtree(other)
            self.path = slot / name
            self.path.mkdir(exist_ok=True)
            return
        raise OSError(f"all {_SLOTS_MAX} folders for tables under {home} are in use")

    def close(self) -> None:
        """Let another process have it; idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _slots(folder: Path) -> Iterator[Path]:
    for number in range(_SLOTS_MAX):
        slot = folder / str(number)
        slot.mkdir(parents=True, exist_ok=True)
        yield slot
