"""A worker that lost its partition and does not know it: what it still publishes has no effect on a shard.

Two workers publish events of the same partition, each in source order and at any pace; the first one stops
somewhere. Whatever stands in the log first, an image ends as if each event had been published once.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.index.rows import IdRow, apply_entry
from contract.events import EventRejected, LogEntry, PayloadChanged, PointDeleted
from tests.engine_log import FINGERPRINT, embedded

DIMENSION = 4
ENTRIES = st.lists(st.sampled_from(("upload", "patch", "delete", "reject")), min_size=1, max_size=8)


def _entry(kind: str, offset: int) -> LogEntry:
    match kind:
        case "upload":
            return embedded("a", np.full(DIMENSION, offset, np.float32), offset, {"version": offset})
        case "patch":
            return PayloadChanged("a", {"version": offset}, offset, 0)
        case "delete":
            return PointDeleted("a", offset, 0)
        case _:
            return EventRejected("a", "decode", "invalid_image", "no picture", offset, 0)


def _applied(entries: list[LogEntry]) -> tuple[IdRow | None, bytes | None]:
    """The row, and the vector that belongs to it."""
    row: IdRow | None = None
    vector: bytes | None = None
    for entry in entries:
        if (applied := apply_entry(row, entry, FINGERPRINT, DIMENSION)) is not None:
            row, vector = applied.row, applied.vector or vector
    return row, None if row is None or row.point is None else vector


@settings(max_examples=300, deadline=None)
@given(kinds=ENTRIES, data=st.data())
def test_late_records_of_a_zombie_change_nothing(kinds: list[str], data: st.DataObject) -> None:
    events = [_entry(kind, offset) for offset, kind in enumerate(kinds)]
    begins = data.draw(st.integers(0, len(events)), label="what the zombie had published when it fell asleep")
    ends = data.draw(st.integers(begins, len(events)), label="where what it had in hand ends")
    committed = data.draw(st.integers(0, begins), label="where its successor begins")
    log, zombie, successor = events[:begins], events[begins:ends], events[committed:]
    while zombie or successor:
        from_zombie = bool(zombie) and (not successor or data.draw(st.booleans(), label="from the zombie"))
        log.append((zombie if from_zombie else successor).pop(0))
    row, vector = _applied(log)
    expected, expected_vector = _applied(events)
    point, wanted = (None if one is None else one.point for one in (row, expected))
    assert (point is None) == (wanted is None)
    if point is not None and wanted is not None:
        assert (point.source_offset, point.payload, vector) == (wanted.source_offset, wanted.payload, expected_vector)
    assert row is not None or expected is None
    if row is not None and expected is not None:
        assert (row.rejection, row.deleted_at) == (expected.rejection, expected.deleted_at)
