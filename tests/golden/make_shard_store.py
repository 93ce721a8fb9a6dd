"""Makes the golden store: `python -m tests.golden.make_shard_store FOLDER`, once per format version."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from actors.index.engine import EngineParameters, ShardEngine
from actors.log.records import LogIdentity, LogRecord
from contract.events import (
    DELETED_HEADER,
    EventRejected,
    LogEntry,
    PayloadChanged,
    PointDeleted,
    PointEmbedded,
    encode_log_entry,
)
from contract.topics import payload_key, rejection_key, vector_key

PARAMETERS = EngineParameters(fingerprint="golden", dimension=3)


def upsert(image_id: str, offset: int, source_offset: int | None = None) -> LogRecord:
    """A point whose vector follows from its offset."""
    vector = np.eye(3, dtype=np.float32)[offset % 3]
    entry = PointEmbedded(
        image_id=image_id,
        vector=vector.tobytes(),
        fingerprint="golden",
        payload={"colour": "first"},
        object_key=f"images/{image_id}",
        sha256="0" * 64,
        width=8,
        height=8,
        source_offset=offset if source_offset is None else source_offset,
        event_at_ms=1,
    )
    return LogRecord(0, offset, vector_key(image_id), encode_log_entry(entry), {}, 1)


def other(key: bytes, offset: int, entry: LogEntry) -> LogRecord:
    """A record of an entry that carries no vector."""
    value = encode_log_entry(entry)
    if isinstance(entry, PointDeleted):
        return LogRecord(0, offset, key, None, {DELETED_HEADER: value}, 1)
    return LogRecord(0, offset, key, value, {}, 1)


def make(folder: Path) -> None:
    """Points a and b, c deleted, d rejected, a's payload changed; a, b and c are in the graph."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as home:
        engine = ShardEngine(Path(home) / "store", PARAMETERS)
        fill(engine)
        # Without the lock and the logs of a store in use.
        engine.checkpoint(folder)
        engine.close()


def fill(engine: ShardEngine) -> None:
    """Apply the log of the golden stores."""
    engine.begin(LogIdentity("golden-cluster", "golden-topic"), {0: 0}, 1)
    deleted = PointDeleted("c", 4, 1)
    engine.apply([upsert("a", 0), upsert("b", 1), upsert("c", 2)])
    engine.seal()
    engine.apply(
        [
            other(payload_key("a"), 3, PayloadChanged("a", {"colour": "changed"}, 3, 1)),
            other(vector_key("c"), 4, deleted),
            other(payload_key("c"), 5, deleted),
            other(rejection_key("c"), 6, deleted),
            other(rejection_key("d"), 7, EventRejected("d", "decode", "invalid_image", "no picture", 5, 1)),
            other(rejection_key("b"), 8, EventRejected("b", "decode", "invalid_image", "no picture", 6, 1)),
        ]
    )
    engine.mark_caught_up(2)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
