"""Versioned records of every topic, and their one encoding.

`image-events`, `dead-letter`, `result-clicks` and `riverlens-collections` hold JSON, so that any
producer can write them and a person can read them. The embedding log holds MessagePack, because
most of it is vectors. The `type` tag ends in the version: a reader that meets an unknown tag
raises EventInvalid instead of guessing.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from contract.errors import BodyTooLarge, EventInvalid, InvalidRequest
from contract.payloads import check_payload

Payload: TypeAlias = dict[str, Any]

# How the vectors in memory stand for those in the store, from most to least bytes.
Quantization: TypeAlias = Literal["none", "fp16", "sq8", "pq", "rabitq"]
# How the store keeps vectors.
VectorType: TypeAlias = Literal["fp32", "fp16"]
# How searches show images with equal bytes: each as a hit of its own, or all of them as one.
Duplicates: TypeAlias = Literal["keep", "alias"]

# Header of a tombstone (a record without a value); its bytes are an encoded PointDeleted.
DELETED_HEADER = "riverlens-deleted"
# Header of an event that is sent again from its dead letter; its bytes are an encoded Redrive.
REDRIVE_HEADER = "riverlens-redrive"


class Receipt(Struct, frozen=True):
    """Where an event stands in `image-events`; `applied_offset >= offset` means it took effect."""

    partition: int
    offset: int


class ImageUploaded(Struct, frozen=True, tag_field="type", tag="image_uploaded.v1"):
    """A picture's bytes are in the object store under `object_key` and shall become searchable."""

    collection: str
    image_id: str
    object_key: str
    sha256: str
    size_bytes: int
    uploaded_at_ms: int
    content_type: str | None = None
    file_name: str | None = None
    payload: Payload = {}
    request_id: str | None = None


class ImageDeleted(Struct, frozen=True, tag_field="type", tag="image_deleted.v1"):
    """An image shall never be returned again."""

    collection: str
    image_id: str
    deleted_at_ms: int
    request_id: str | None = None


class PayloadUpdated(Struct, frozen=True, tag_field="type", tag="payload_updated.v1"):
    """The payload of an image is replaced as a whole; its vector stays."""

    collection: str
    image_id: str
    payload: Payload
    updated_at_ms: int
    request_id: str | None = None


ImageEvent: TypeAlias = ImageUploaded | ImageDeleted | PayloadUpdated


class PointEmbedded(Struct, frozen=True, tag_field="type", tag="point_embedded.v1", kw_only=True):
    """A searchable point. `vector` is (d,) float32 little-endian, L2-normalised, of `fingerprint`.

    `duplicate_of` is the image whose picture has the same bytes and came first, as far as was known then.
    """

    image_id: str
    vector: bytes
    fingerprint: str
    payload: Payload
    object_key: str
    sha256: str
    content_type: str | None = None
    file_name: str | None = None
    width: int
    height: int
    duplicate_of: str | None = None
    source_offset: int
    event_at_ms: int


class PayloadChanged(Struct, frozen=True, tag_field="type", tag="payload_changed.v1"):
    """A payload that replaces the one of an existing point; without that point it has no effect."""

    image_id: str
    payload: Payload
    source_offset: int
    event_at_ms: int


class EventRejected(Struct, frozen=True, tag_field="type", tag="event_rejected.v1"):
    """Marker: this event led to no point, and why. The full record is in the dead-letter topic."""

    image_id: str
    stage: str
    code: str
    reason: str
    source_offset: int
    event_at_ms: int


class SourceAdvanced(Struct, frozen=True, tag_field="type", tag="source_advanced.v1"):
    """Marker: the event at `source_offset` named no image or changed nothing."""

    source_offset: int
    event_at_ms: int


class PointDeleted(Struct, frozen=True, tag_field="type", tag="point_deleted.v1"):
    """Travels in the DELETED_HEADER of a tombstone, since a tombstone has no value."""

    image_id: str
    source_offset: int
    event_at_ms: int


LogEntry: TypeAlias = PointEmbedded | PayloadChanged | EventRejected | SourceAdvanced | PointDeleted


class DeadLetter(Struct, frozen=True, tag_field="type", tag="dead_letter.v1", kw_only=True):
    """An event that led to nothing, whole enough to be sent again. `event` is its exact bytes.

    `incarnation` is that of its collection; None in letters of earlier releases. `attempts` counts all tries,
    over `redrives` redrives. An event too large to be wrapped is left out: it lies where it was read.
    """

    collection: str
    image_id: str | None
    stage: str
    code: str
    reason: str
    retryable: bool
    attempts: int
    source_topic: str
    source_partition: int
    source_offset: int
    event: bytes
    failed_at_ms: int
    incarnation: str | None = None
    redrives: int = 0
    event_left_out: bool = False


class LetterSettled(Struct, frozen=True, tag_field="type", tag="dead_letter_settled.v1", kw_only=True):
    """What an operator did with a dead letter; follows it in the same topic, which only ever grows.

    `source_partition` and `source_offset` name the letter. `receipt` is of the event that was sent again.
    """

    collection: str
    incarnation: str
    source_partition: int
    source_offset: int
    how: Literal["redriven", "dropped"]
    receipt: Receipt | None = None
    settled_at_ms: int
    request_id: str | None = None


class Redrive(Struct, frozen=True, tag_field="type", tag="redrive.v1", kw_only=True):
    """Travels in the REDRIVE_HEADER of an event that is sent again.

    `source_offset` is where the event stood when it failed, `attempts` and `redrives` what it went through so far.
    Up to `newer_from`, the offset before which everything was looked at, its image has no newer event; from there on
    the ingest worker looks.
    """

    source_offset: int
    newer_from: int
    attempts: int
    redrives: int


class BytesHolder(Struct, frozen=True, array_like=True):
    """An image whose upload at `source_offset` had certain bytes; it may have been deleted or replaced since."""

    image_id: str
    source_offset: int


class KnownBytes(Struct, frozen=True, tag_field="type", tag="known_bytes.v1"):
    """Images that were uploaded with the same bytes, first one first. A hint: the shards know what stands."""

    holders: tuple[BytesHolder, ...]


class ResultClicked(Struct, frozen=True, tag_field="type", tag="result_clicked.v1"):
    """A person chose the hit at `rank` (from 0) of the search answer `request_id`."""

    collection: str
    request_id: str
    image_id: str
    rank: int
    clicked_at_ms: int


class CollectionSpec(Struct, frozen=True, tag_field="type", tag="collection_spec.v1", kw_only=True):
    """Desired state of one collection; the last record per name counts.

    `partitions` and `vector_type` are fixed for the life of the collection. `incarnation` differs
    between two collections that bore the same name one after the other. `filter_fields` are the
    payload fields that filters may name; None for all. `duplicates` is how searches show images with
    equal bytes; each is a point of its own either way. `dropped` ends it. The defaults are what the
    records of earlier releases mean.
    """

    name: str
    incarnation: str
    partitions: int
    shards: int
    replicas: int
    model: str
    fingerprint: str
    dimension: int
    m: int = 16
    ef_construction: int = 100
    ef_search: int = 64
    quantization: Quantization = "none"
    vector_type: VectorType = "fp32"
    filter_fields: tuple[str, ...] | None = None
    duplicates: Duplicates = "keep"
    created_at_ms: int
    dropped: bool = False


_event_decoder: msgspec.json.Decoder[ImageEvent] = msgspec.json.Decoder(ImageUploaded | ImageDeleted | PayloadUpdated)
_letter_decoder: msgspec.json.Decoder[DeadLetter | LetterSettled] = msgspec.json.Decoder(DeadLetter | LetterSettled)
_log_decoder: msgspec.msgpack.Decoder[LogEntry] = msgspec.msgpack.Decoder(
    PointEmbedded | PayloadChanged | EventRejected | SourceAdvanced | PointDeleted
)
_json_encoder = msgspec.json.Encoder()
_msgpack_encoder = msgspec.msgpack.Encoder()


class EventStamp(Struct, frozen=True):
    """What every log entry says of the event it came from; `type` is its tag."""

    type: str
    source_offset: int
    event_at_ms: int

    @property
    def is_upload(self) -> bool:
        """Whether it is of a PointEmbedded."""
        return self.type == PointEmbedded.__struct_config__.tag


_stamp_decoder = msgspec.msgpack.Decoder(EventStamp)


def encode_json(record: Struct) -> bytes:
    """JSON bytes of a record of `image-events`, `dead-letter`, clicks or the collections topic."""
    return _json_encoder.encode(record)


def decode_event(data: bytes) -> ImageEvent:
    """Decode a record of `image-events`; raises EventInvalid with the place of the fault."""
    try:
        event = _event_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EventInvalid(f"not an image event: {error}") from error
    if not isinstance(event, ImageDeleted):
        try:
            check_payload(event.payload)
        except (BodyTooLarge, InvalidRequest) as error:
            raise EventInvalid(error.detail) from error
    return event


def decode_letter_entry(data: bytes) -> DeadLetter | LetterSettled:
    """Decode a record of the dead-letter topic; raises EventInvalid."""
    try:
        return _letter_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EventInvalid(f"not a record of the dead-letter topic: {error}") from error


def decode_dead_letter(data: bytes) -> DeadLetter:
    """Decode a dead letter; raises EventInvalid."""
    entry = decode_letter_entry(data)
    if not isinstance(entry, DeadLetter):
        raise EventInvalid(f"not a dead letter: a {type(entry).__name__}")
    return entry


def decode_redrive(data: bytes) -> Redrive:
    """Decode the REDRIVE_HEADER; raises EventInvalid."""
    try:
        return msgspec.json.decode(data, type=Redrive)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EventInvalid(f"the header {REDRIVE_HEADER} is none: {error}") from error


def decode_collection(data: bytes) -> CollectionSpec:
    """Decode a record of the collections topic; raises EventInvalid."""
    try:
        return msgspec.json.decode(data, type=CollectionSpec)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EventInvalid(f"not a collection: {error}") from error


def encode_known_bytes(known: KnownBytes) -> bytes:
    """MessagePack bytes of a record of the known-bytes topic."""
    return _msgpack_encoder.encode(known)


def decode_known_bytes(data: bytes) -> KnownBytes:
    """Decode a record of the known-bytes topic; raises EventInvalid."""
    try:
        return msgspec.msgpack.decode(data, type=KnownBytes)
    except msgspec.MsgspecError as error:
        raise EventInvalid(f"not a record of known bytes: {error}") from error


def encode_log_entry(entry: LogEntry) -> bytes:
    """MessagePack bytes of an embedding-log entry (of a PointDeleted: for the tombstone's header)."""
    return _msgpack_encoder.encode(entry)


def decode_stamp(data: bytes) -> EventStamp:
    """The stamp of an embedding-log entry, quicker than the whole of it; raises EventInvalid."""
    try:
        return _stamp_decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise EventInvalid(f"not an embedding-log entry: {error}") from error


def decode_log_entry(data: bytes) -> LogEntry:
    """Decode an embedding-log entry; raises EventInvalid."""
    try:
        return _log_decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise EventInvalid(f"not an embedding-log entry: {error}") from error
