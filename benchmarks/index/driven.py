"""The engine without threads of its own: what is due is done when the benchmark says so, so runs repeat exactly."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from actors.index.engine import EngineParameters, ShardEngine
from actors.log.records import LogIdentity, LogRecord
from actors.messages import FloatMatrix, ShardQuery
from benchmarks.index.engine_system import FINGERPRINT
from contract.events import DELETED_HEADER, PointDeleted, PointEmbedded, Quantization, encode_log_entry
from contract.filters import Filter
from contract.topics import vector_key

_BATCH = 500


class DrivenEngine:
    """A ShardEngine that is fed with records of the embedding log, and drained between two batches."""

    def __init__(self, folder: Path, dimension: int, quantization: Quantization | None = None) -> None:
        """Make a store in `folder`; without a quantization the engine's default is taken."""
        parameters = EngineParameters(fingerprint=FINGERPRINT, dimension=dimension, vector_type="fp16")
        if quantization is not None:
            parameters = msgspec.structs.replace(parameters, quantization=quantization)
        self._engine = ShardEngine(folder, parameters)
        self._engine.begin(LogIdentity("benchmark", "benchmark"), {0: 0}, 1)
        self._offset = 0

    def upsert(
        self, ids: Sequence[str], vectors: FloatMatrix, payloads: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Insert points, or replace those of the same ids: (n, d) float32, and a payload for each."""
        for start in range(0, len(ids), _BATCH):
            some = range(start, min(start + _BATCH, len(ids)))
            self._engine.apply([self._upserted(ids[i], vectors[i], payloads[i] if payloads else {}) for i in some])
            self._engine.drain()

    def delete(self, ids: Sequence[str]) -> None:
        """Delete points."""
        for start in range(0, len(ids), _BATCH):
            self._engine.apply([self._deleted(image_id) for image_id in ids[start : start + _BATCH]])
            self._engine.drain()

    def _upserted(self, image_id: str, vector: FloatMatrix, payload: Mapping[str, Any]) -> LogRecord:
        entry = PointEmbedded(
            image_id=image_id,
            vector=vector.tobytes(),
            fingerprint=FINGERPRINT,
            payload=dict(payload),
            object_key=f"images/{image_id}",
            sha256="0" * 64,
            width=640,
            height=480,
            source_offset=self._offset,
            event_at_ms=1,
        )
        return self._record(image_id, encode_log_entry(entry), {})

    def _deleted(self, image_id: str) -> LogRecord:
        return self._record(image_id, None, {DELETED_HEADER: encode_log_entry(PointDeleted(image_id, self._offset, 1))})

    def _record(self, image_id: str, value: bytes | None, headers: dict[str, bytes]) -> LogRecord:
        self._offset += 1
        return LogRecord(0, self._offset - 1, vector_key(image_id), value, headers, 1)

    def settle(self) -> None:
        """Do all work that is due, and bring the rest of the growing segment to the graph."""
        while self._engine.drain():
            pass
        self._engine.seal()

    @property
    def dead_share(self) -> float:
        """Share of the graph's points that are dead."""
        dead = self._engine.dead
        return dead / max(1, dead + self._engine.points - self._engine.growing)

    def search(self, queries: FloatMatrix, k: int, wanted: Filter | None = None) -> tuple[list[list[str]], float]:
        """Ids of the best `k` per query of (q, d) float32, one query at a time, and searches per second."""
        answers = []
        start = time.perf_counter()
        for query in queries:
            hits = self._engine.search(query[None], [ShardQuery(k, filter=wanted)], with_payload=False)[0]
            answers.append([hit.image_id for hit in hits])
        return answers, len(queries) / (time.perf_counter() - start)

    def close(self) -> None:
        """Close the store."""
        self._engine.close()
