"""What one event leads to: records of the embedding log, and a dead letter if it was rejected."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from actors.messages import FloatMatrix
from contract.errors import RiverlensError
from contract.events import (
    DELETED_HEADER,
    DeadLetter,
    EventRejected,
    ImageDeleted,
    ImageUploaded,
    PayloadChanged,
    PayloadUpdated,
    PointDeleted,
    PointEmbedded,
    SourceAdvanced,
    encode_log_entry,
)
from contract.topics import image_events_topic, marker_key, payload_key, rejection_key, vector_key


class SourceEvent(Struct, frozen=True):
    """One record of `image-events`, as it was read."""

    collection: str
    partition: int
    offset: int
    timestamp_ms: int
    value: bytes


class KeyedRecord(Struct, frozen=True):
    """A record of the embedding log without its place: the partition is that of the event."""

    key: bytes
    value: bytes | None
    headers: Mapping[str, bytes] = {}


class Outcome(Struct, frozen=True):
    """`dead_letter` must be durable before `records` are published."""

    records: tuple[KeyedRecord, ...]
    dead_letter: DeadLetter | None = None


def accepted(
    event: SourceEvent, upload: ImageUploaded, vector: FloatMatrix, fingerprint: str, width: int, height: int
) -> Outcome:
    """A point: `vector` is (d,) float32; `width` and `height` are of the decoded picture, in pixels."""
    point = PointEmbedded(
        image_id=upload.image_id,
        vector=vector.astype("<f4", copy=False).tobytes(),
        fingerprint=fingerprint,
        payload=upload.payload,
        object_key=upload.object_key,
        sha256=upload.sha256,
        content_type=upload.content_type,
        file_name=upload.file_name,
        width=width,
        height=height,
        source_offset=event.offset,
        event_at_ms=event.timestamp_ms,
    )
    return Outcome((KeyedRecord(vector_key(upload.image_id), encode_log_entry(point)),))


def payload_changed(event: SourceEvent, update: PayloadUpdated) -> Outcome:
    """A payload that replaces the one before it."""
    entry = PayloadChanged(update.image_id, update.payload, event.offset, event.timestamp_ms)
    return Outcome((KeyedRecord(payload_key(update.image_id), encode_log_entry(entry)),))


def deleted(event: SourceEvent, delete: ImageDeleted) -> Outcome:
    """Three tombstones; the vector's comes first, since it alone takes the image out of every search."""
    header = {DELETED_HEADER: encode_log_entry(PointDeleted(delete.image_id, event.offset, event.timestamp_ms))}
    keys = (vector_key(delete.image_id), payload_key(delete.image_id), rejection_key(delete.image_id))
    return Outcome(tuple(KeyedRecord(key, None, header) for key in keys))


def rejected(
    event: SourceEvent, image_id: str | None, stage: str, error: RiverlensError, attempts: int, now_ms: int
) -> Outcome:
    """A dead letter with its reason, and the marker that lets a reader waiting for the receipt know."""
    letter = DeadLetter(
        collection=event.collection,
        image_id=image_id,
        stage=stage,
        code=error.code,
        reason=error.detail,
        retryable=error.retryable,
        attempts=attempts,
        source_topic=image_events_topic(event.collection),
        source_partition=event.partition,
        source_offset=event.offset,
        event=event.value,
        failed_at_ms=now_ms,
    )
    if image_id is None:
        marker = KeyedRecord(
            marker_key(event.partition), encode_log_entry(SourceAdvanced(event.offset, event.timestamp_ms))
        )
    else:
        entry = EventRejected(image_id, stage, error.code, error.detail, event.offset, event.timestamp_ms)
        marker = KeyedRecord(rejection_key(image_id), encode_log_entry(entry))
    return Outcome((marker,), letter)
