"""Stand-ins for what `streams.duplicates` asks: the known-bytes table, and a shard that reads the fake log."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from actors.index.rows import IdRow, apply_entry
from actors.messages import FloatMatrix, PointState
from contract.errors import BrokerUnavailable, ShardUnavailable
from contract.events import DELETED_HEADER, SourceAdvanced, decode_log_entry
from contract.topics import embedding_log_topic
from tests.unit.ingest_fakes import SPEC, FakeLog


class FakeTable:
    """A table whose entries show at once, or never while it `lags`."""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}
        self.lags = False
        self.broken = False

    def get(self, key: bytes) -> bytes | None:
        """The entry."""
        return None if self.lags else self.entries.get(key)

    async def put(self, pairs: Mapping[bytes, bytes]) -> None:
        """Note the entries."""
        await asyncio.sleep(0)
        if self.broken:
            raise BrokerUnavailable("broken on purpose")
        self.entries.update(pairs)


class LogShard:
    """Applies the fake log by the very rules of a shard's store, up to `lag` records behind its end."""

    def __init__(self, log: FakeLog) -> None:
        self._log = log
        self.lag = 0
        self.gone = False
        self.asked = 0

    async def fetch(self, image_ids: Sequence[str], with_vector: bool = False) -> list[PointState | None]:
        """What the log says of each id."""
        await asyncio.sleep(0)
        self.asked += 1
        if self.gone:
            raise ShardUnavailable("gone on purpose")
        rows, vectors = self.applied()
        states: list[PointState | None] = []
        for image_id in image_ids:
            state = rows[image_id].state(image_id) if image_id in rows else None
            if state is not None and state.state == "searchable" and with_vector:
                state = msgspec.structs.replace(state, vector=vectors[image_id])
            states.append(state)
        return states

    def applied(self) -> tuple[dict[str, IdRow], dict[str, FloatMatrix]]:
        """Rows and vectors by image id."""
        records = self._log.of(embedding_log_topic(SPEC.name))
        rows: dict[str, IdRow] = {}
        vectors: dict[str, FloatMatrix] = {}
        for record in records[: len(records) - self.lag]:
            entry = decode_log_entry(record.headers[DELETED_HEADER] if record.value is None else record.value)
            if isinstance(entry, SourceAdvanced):
                continue
            applied = apply_entry(rows.get(entry.image_id), entry, SPEC.fingerprint, SPEC.dimension)
            if applied is not None:
                rows[entry.image_id] = applied.row
                if applied.vector is not None:
                    vectors[entry.image_id] = np.frombuffer(applied.vector, "<f4")
        return rows, vectors
