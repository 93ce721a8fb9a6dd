"""This repository's engine, fed as the shard actor feeds it."""

# ruff: noqa: D102 - the protocol in systems.py documents the methods
from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from actors.index.engine import APPLY_AT_ONCE, EngineParameters, ShardEngine
from actors.index.graph import give_way
from actors.log.records import LogIdentity, LogRecord
from actors.messages import ShardQuery
from benchmarks.index.systems import Floats, Options
from contract.events import DELETED_HEADER, PointDeleted, PointEmbedded, Quantization, encode_log_entry
from contract.topics import vector_key

FINGERPRINT = "benchmark"
_PARTITION = 0
# As in the shard actor, and so is the type of the stored vectors in a new collection.
_DRAIN_PAUSE_S = 0.02


class EngineSystem:
    """ShardEngine over its store, with a thread that drains.

    Points come as records of the embedding log, so decoding and the store are part of an insert. The
    records are encoded beforehand, as a producer does.
    """

    def __init__(self, options: Options) -> None:
        self._next = 0
        self._ef = 64
        self._applied = 0
        self._settled = 0
        self._idle = threading.Condition()
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._engine = ShardEngine(
            Path(options.folder),
            EngineParameters(
                fingerprint=FINGERPRINT,
                dimension=options.dimension,
                m=options.m,
                ef_construction=options.ef_construction,
                quantization=cast("Quantization", options.variant),
                vector_type="fp16",
                build_threads=options.build_threads,
            ),
        )
        if options.existing:
            self._next = self._engine.positions()[_PARTITION].log_offset
        else:
            self._engine.begin(LogIdentity("benchmark", "benchmark"), {_PARTITION: 0}, 1)
        self._builder = threading.Thread(target=self._drain, name="drain", daemon=True)
        self._builder.start()

    def versions(self) -> str:
        return "riverlens, this commit"

    def _drain(self) -> None:
        give_way()
        try:
            while not self._stopping.is_set():
                before = self._applied
                if not self._engine.drain():
                    with self._idle:
                        self._settled = before
                        self._idle.notify_all()
                    self._stopping.wait(_DRAIN_PAUSE_S)
        except BaseException as error:
            self._failure = error
            raise
        finally:
            with self._idle:
                self._idle.notify_all()

    def encode(self, ids: Sequence[str], vectors: Floats) -> list[LogRecord]:
        records = []
        for image_id, vector in zip(ids, vectors, strict=True):
            offset, self._next = self._next, self._next + 1
            entry = PointEmbedded(
                image_id=image_id,
                vector=vector.tobytes(),
                fingerprint=FINGERPRINT,
                payload={},
                object_key=f"images/{image_id}",
                sha256="0" * 64,
                content_type="image/jpeg",
                file_name=f"{image_id}.jpg",
                width=640,
                height=480,
                source_offset=offset,
                event_at_ms=1,
            )
            records.append(LogRecord(_PARTITION, offset, vector_key(image_id), encode_log_entry(entry), {}, 1))
        return records

    def insert(self, batch: list[LogRecord]) -> None:
        for start in range(0, len(batch), APPLY_AT_ONCE):
            self._engine.apply(batch[start : start + APPLY_AT_ONCE])
        self._applied += 1

    def finish(self) -> None:
        """Wait for the builder, then bring the rest of the growing segment to the graph."""
        with self._idle:
            self._idle.wait_for(lambda: self._settled >= self._applied or self._failure is not None)
        if self._failure is not None:
            raise RuntimeError("the builder has ended") from self._failure
        self._engine.seal()

    def set_effort(self, effort: int) -> None:
        self._ef = effort

    def search(self, queries: Floats, k: int) -> list[list[str]]:
        wanted = (ShardQuery(k, ef_search=self._ef),) * len(queries)
        return [[hit.image_id for hit in hits] for hits in self._engine.search(queries, wanted, with_payload=False)]

    def delete(self, ids: Sequence[str]) -> None:
        records = []
        for image_id in ids:
            offset, self._next = self._next, self._next + 1
            header = {DELETED_HEADER: encode_log_entry(PointDeleted(image_id, offset, 1))}
            records.append(LogRecord(_PARTITION, offset, vector_key(image_id), None, header, 1))
        self._engine.apply(records)
        self._applied += 1

    def close(self) -> None:
        self._stopping.set()
        self._builder.join()
        self._engine.close()
