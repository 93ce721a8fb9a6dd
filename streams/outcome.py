"""What one event leads to: records of the embedding log, and a dead letter if it was rejected."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from actors.messages import FloatMatrix
from contract.errors import EventInvalid, RedriveRefused, RiverlensError
from contract.events import (
    DELETED_HEADER,
    REDRIVE_HEADER,
    BytesHolder,
    DeadLetter,
    EventRejected,
    ImageDeleted,
    ImageUploaded,
    PayloadChanged,
    PayloadUpdated,
    PointDeleted,
    PointEmbedded,
    Redrive,
    SourceAdvanced,
    decode_redrive,
    encode_log_entry,
)
from contract.topics import image_events_topic, marker_key, payload_key, rejection_key, vector_key

# In JSON, bytes take a third more room; the letter around them shall fit into WRAPPED_RECORD_BYTES_MAX.
LETTER_EVENT_BYTES_MAX = 2 * 1024 * 1024
_REASON_MAX = 2000


class SourceEvent(Struct, frozen=True):
    """One record of `image-events`, as it was read; a record without a value has an empty one."""

    collection: str
    partition: int
    offset: int
    timestamp_ms: int
    value: bytes
    headers: Mapping[str, bytes] = {}


class KeyedRecord(Struct, frozen=True):
    """A record of the embedding log without its place: the partition is that of the event."""

    key: bytes
    value: bytes | None
    headers: Mapping[str, bytes] = {}


class Outcome(Struct, frozen=True):
    """`dead_letter` must be durable before `records` are published.

    `known_bytes` is the key under which `image_id` is remembered once the records are durable.
    """

    records: tuple[KeyedRecord, ...]
    dead_letter: DeadLetter | None = None
    known_bytes: bytes | None = None
    image_id: str | None = None


class Embedding(Struct, frozen=True):
    """What decoding and embedding make of a picture: (d,) float32, and the picture's size in pixels."""

    vector: FloatMatrix
    width: int
    height: int


def accepted(
    event: SourceEvent,
    upload: ImageUploaded,
    embedding: Embedding,
    fingerprint: str,
    known_bytes: bytes | None = None,
    duplicate_of: str | None = None,
) -> Outcome:
    """A point, and under which key its bytes are remembered."""
    point = PointEmbedded(
        image_id=upload.image_id,
        vector=embedding.vector.astype("<f4", copy=False).tobytes(),
        fingerprint=fingerprint,
        payload=upload.payload,
        object_key=upload.object_key,
        sha256=upload.sha256,
        content_type=upload.content_type,
        file_name=upload.file_name,
        width=embedding.width,
        height=embedding.height,
        duplicate_of=duplicate_of,
        source_offset=event.offset,
        event_at_ms=event.timestamp_ms,
    )
    record = KeyedRecord(vector_key(upload.image_id), encode_log_entry(point))
    return Outcome((record,), known_bytes=known_bytes, image_id=upload.image_id)


def bytes_holder(event: SourceEvent, outcome: Outcome) -> tuple[bytes, BytesHolder] | None:
    """Who is remembered as a holder of which bytes, once the outcome is durable."""
    if outcome.known_bytes is None or outcome.image_id is None:
        return None
    return outcome.known_bytes, BytesHolder(outcome.image_id, event.offset)


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
    """A dead letter with its reason, and the marker that lets a reader waiting for the receipt know.

    A redriven event that came too late leaves its image as it is: its marker names none.
    """
    redrive = redrive_of(event)
    large = len(event.value) > LETTER_EVENT_BYTES_MAX
    letter = DeadLetter(
        collection=event.collection,
        image_id=image_id,
        stage=stage,
        code=error.code,
        reason=error.detail[:_REASON_MAX],
        retryable=error.retryable,
        attempts=attempts + (redrive.attempts if redrive else 0),
        source_topic=image_events_topic(event.collection),
        source_partition=event.partition,
        source_offset=event.offset,
        event=b"" if large else event.value,
        failed_at_ms=now_ms,
        redrives=redrive.redrives if redrive else 0,
        event_left_out=large,
    )
    if image_id is None or isinstance(error, RedriveRefused):
        marker = KeyedRecord(
            marker_key(event.partition), encode_log_entry(SourceAdvanced(event.offset, event.timestamp_ms))
        )
    else:
        entry = EventRejected(image_id, stage, error.code, letter.reason, event.offset, event.timestamp_ms)
        marker = KeyedRecord(rejection_key(image_id), encode_log_entry(entry))
    return Outcome((marker,), letter)


def redrive_of(event: SourceEvent) -> Redrive | None:
    """What a redriven event went through so far; None for an event that is no redriven one, or says nonsense of it."""
    try:
        return decode_redrive(event.headers[REDRIVE_HEADER]) if REDRIVE_HEADER in event.headers else None
    except EventInvalid:
        return None
