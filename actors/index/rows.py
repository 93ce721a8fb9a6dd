"""What the shard store keeps per image id and per partition, and the rule that applies a log entry."""

from __future__ import annotations

import msgspec
import numpy as np
from msgspec import Struct

from actors.messages import PointState
from contract.errors import EventInvalid, FingerprintMismatch
from contract.events import EventRejected, LogEntry, PayloadChanged, PointDeleted, PointEmbedded, SourceAdvanced


class PointRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A searchable point without its vector.

    `source_offset` is that of the upload, `payload_offset` that of the event the payload came with.
    `number` names its vector in this store, and no other one ever.
    """

    source_offset: int
    payload_offset: int
    payload: bytes
    object_key: str
    sha256: str
    content_type: str | None
    file_name: str | None
    width: int
    height: int
    event_at_ms: int
    number: int = -1
    duplicate_of: str | None = None


class RejectionRow(Struct, frozen=True):
    """The last upload of this id that led to no point."""

    stage: str
    code: str
    reason: str
    source_offset: int


class PendingPayload(Struct, frozen=True):
    """A payload that came before the point it belongs to; a compacted log may be in that order."""

    payload: bytes
    payload_offset: int


class IdRow(Struct, frozen=True):
    """Everything known of one image id. `deleted_at` is the source offset of its last delete, or -1."""

    point: PointRow | None = None
    deleted_at: int = -1
    rejection: RejectionRow | None = None
    pending: PendingPayload | None = None

    def state(self, image_id: str) -> PointState | None:
        """What callers see; None if all that is known has no effect."""
        told = PointState(image_id=image_id, state="searchable", source_offset=-1, last_offset=self._last_offset())
        if self.rejection is not None:
            told = msgspec.structs.replace(
                told,
                state="rejected",
                source_offset=self.rejection.source_offset,
                rejection_code=self.rejection.code,
                rejection_reason=self.rejection.reason,
                rejection_offset=self.rejection.source_offset,
            )
        elif self.deleted_at >= 0:
            told = msgspec.structs.replace(told, state="deleted", source_offset=self.deleted_at)
        elif self.point is None:
            return None
        if self.point is None:
            return told
        return msgspec.structs.replace(
            told,
            state="searchable",
            source_offset=max(self.point.source_offset, self.point.payload_offset),
            payload=self.point.payload,
            object_key=self.point.object_key,
            sha256=self.point.sha256,
            content_type=self.point.content_type,
            file_name=self.point.file_name,
            width=self.point.width,
            height=self.point.height,
            duplicate_of=self.point.duplicate_of,
            uploaded_at_ms=self.point.event_at_ms,
        )

    def _last_offset(self) -> int:
        """Source offset of the newest event of any kind; -1 for none."""
        return max(
            self.deleted_at,
            -1 if self.point is None else max(self.point.source_offset, self.point.payload_offset),
            -1 if self.rejection is None else self.rejection.source_offset,
            -1 if self.pending is None else self.pending.payload_offset,
        )


class Position(Struct, frozen=True):
    """How far a partition is applied.

    `log_offset` is the next one to read in the embedding log, `source_offset` the highest seen, and
    `clean_source_offset` the one up to which everything took effect. A compacted log with
    duplicates can hold lower source offsets after higher ones, so the clean one rests until the log
    is read up to `complete_from`, its end at the start; from there on the two are equal.
    """

    log_offset: int = 0
    source_offset: int = -1
    clean_source_offset: int = -1
    complete_from: int = 0

    @property
    def is_partial(self) -> bool:
        """Whether the points come from a log that was never read to an end: a deletion may still lie ahead."""
        return self.clean_source_offset < 0 and self.log_offset < self.complete_from

    def advanced(self, log_offset: int, source_offset: int) -> Position:
        """After a record: the next offset to read, and the record's source offset."""
        highest = max(self.source_offset, source_offset)
        clean = highest if log_offset >= self.complete_from else self.clean_source_offset
        return Position(log_offset, highest, clean, self.complete_from)

    def started(self, log_end: int) -> Position:
        """At a start of the shard, with the end of the log as it is now."""
        clean = self.source_offset if self.log_offset >= log_end else self.clean_source_offset
        return Position(self.log_offset, self.source_offset, clean, log_end)


class Applied(Struct, frozen=True):
    """What an entry does to its id: the new row, and the vector (None: unchanged or gone with the point).

    The row's point has the number of the one before it, or -1; the engine gives a new vector its own.
    """

    row: IdRow
    vector: bytes | None = None


_NOTHING = IdRow()


def apply_entry(row: IdRow | None, entry: LogEntry, fingerprint: str, dimension: int) -> Applied | None:
    """The effect of an entry on what is known of its id; None if it has none.

    Idempotent: an entry whose source offset is below what the id has already seen of its kind
    changes nothing, so repeated suffixes of the log, compacted in any way, end in the same row.

    Raises:
        FingerprintMismatch: a vector of another encoder.
        EventInvalid: a vector of the wrong length, or with a value that is no number.
    """
    row = row or _NOTHING
    match entry:
        case PointEmbedded():
            return _embedded(row, entry, fingerprint, dimension)
        case PayloadChanged():
            changed = _payload_changed(row, entry)
        case PointDeleted():
            changed = _deleted(row, entry)
        case EventRejected():
            changed = _rejected(row, entry)
        case SourceAdvanced():
            changed = None
    return None if changed is None or changed.row == row else changed


def _embedded(row: IdRow, entry: PointEmbedded, fingerprint: str, dimension: int) -> Applied | None:
    if entry.fingerprint != fingerprint:
        raise FingerprintMismatch(f"{entry.image_id} is of encoder {entry.fingerprint}, the shard of {fingerprint}")
    if len(entry.vector) != dimension * 4 or not np.isfinite(np.frombuffer(entry.vector, dtype="<f4")).all():
        raise EventInvalid(f"the vector of {entry.image_id} is not {dimension} finite float32")
    at = entry.source_offset
    if at < row.deleted_at or (row.point is not None and at < row.point.source_offset):
        return None
    payload, payload_offset = msgspec.json.encode(entry.payload), at
    if row.point is not None and row.point.payload_offset > at:
        payload, payload_offset = row.point.payload, row.point.payload_offset
    elif row.pending is not None and row.pending.payload_offset > at:
        payload, payload_offset = row.pending.payload, row.pending.payload_offset
    point = PointRow(
        source_offset=at,
        payload_offset=payload_offset,
        payload=payload,
        object_key=entry.object_key,
        sha256=entry.sha256,
        content_type=entry.content_type,
        file_name=entry.file_name,
        width=entry.width,
        height=entry.height,
        event_at_ms=entry.event_at_ms,
        duplicate_of=entry.duplicate_of,
        number=row.point.number if row.point is not None else -1,
    )
    later = row.rejection if row.rejection is not None and row.rejection.source_offset > at else None
    return Applied(IdRow(point, row.deleted_at, later), entry.vector)


def _payload_changed(row: IdRow, entry: PayloadChanged) -> Applied | None:
    at = entry.source_offset
    payload = msgspec.json.encode(entry.payload)
    if row.point is not None:
        if at < row.point.payload_offset:
            return None
        point = msgspec.structs.replace(row.point, payload=payload, payload_offset=at)
        return Applied(msgspec.structs.replace(row, point=point))
    if at < row.deleted_at or (row.pending is not None and at < row.pending.payload_offset):
        return None
    return Applied(msgspec.structs.replace(row, pending=PendingPayload(payload, at)))


def _deleted(row: IdRow, entry: PointDeleted) -> Applied | None:
    at = entry.source_offset
    if at < row.deleted_at or (row.point is not None and at < row.point.source_offset):
        return None
    later = row.rejection if row.rejection is not None and row.rejection.source_offset > at else None
    pending = row.pending if row.pending is not None and row.pending.payload_offset > at else None
    return Applied(IdRow(None, at, later, pending))


def _rejected(row: IdRow, entry: EventRejected) -> Applied | None:
    at = entry.source_offset
    seen = max(
        row.deleted_at,
        row.point.source_offset if row.point is not None else -1,
        row.rejection.source_offset if row.rejection is not None else -1,
    )
    if at < seen:
        return None
    return Applied(msgspec.structs.replace(row, rejection=RejectionRow(entry.stage, entry.code, entry.reason, at)))
