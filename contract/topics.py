"""Topic names, record keys, and the way from an image id to a partition to a shard."""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec import Struct

from contract.errors import InvalidRequest

COLLECTIONS_TOPIC = "riverlens-collections"
DEAD_LETTER_TOPIC = "dead-letter"
CLICKS_TOPIC = "result-clicks"
KEYS_TOPIC = "riverlens-keys"
KNOWN_BYTES_TOPIC = "known-bytes"

_COLLECTION_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")

# Tombstones outlive the longest time a shard may be away and still resume from its own offset.
TOMBSTONE_RETENTION_MS = 7 * 24 * 3600 * 1000

SHA256_BYTES = 32

# Records that wrap a whole event (a dead letter, a point) are larger than the event, whose own
# topic keeps Kafka's default limit of 1 MiB.
WRAPPED_RECORD_BYTES_MAX = 4 * 1024 * 1024


class TopicSpec(Struct, frozen=True):
    """The shape a topic must have. `config` holds Kafka topic settings by their Kafka names."""

    name: str
    partitions: int
    config: Mapping[str, str]


def check_collection_name(name: str) -> str:
    """Return `name` if it can name a collection; raises InvalidRequest otherwise."""
    if not _COLLECTION_NAME.fullmatch(name):
        raise InvalidRequest(
            f"collection name {name!r} must be 1 to 63 of a-z, 0-9, '_' and '-', and start with a letter or digit"
        )
    return name


def image_events_topic(collection: str) -> str:
    """Topic of the events of one collection; key = image id."""
    return f"image-events.{collection}"


def embedding_log_topic(collection: str) -> str:
    """Topic of the embedding log of one collection; co-partitioned with its image-events."""
    return f"embedding-log.{collection}"


def vector_key(image_id: str) -> bytes:
    """Key of the record that carries the vector (and the payload as uploaded)."""
    return b"vector/" + image_id.encode()


def payload_key(image_id: str) -> bytes:
    """Key of the record that carries a payload changed after the upload."""
    return b"payload/" + image_id.encode()


def rejection_key(image_id: str) -> bytes:
    """Key of the marker of a rejected upload; its own key, so that it displaces no good picture."""
    return b"rejection/" + image_id.encode()


def marker_key(partition: int) -> bytes:
    """Key of the marker of an event that names no image (undecodable)."""
    return b"marker/" + str(partition).encode()


def known_bytes_key(incarnation: str, fingerprint: str, sha256: str) -> bytes | None:
    """Key of what is known of certain bytes in one life of a collection; None if `sha256` is no SHA-256.

    A vector serves a second upload only under the encoder that made it, so the fingerprint is part of the key.
    """
    digest = digest_of(sha256)
    return None if digest is None else f"{incarnation}/{fingerprint}/".encode() + digest


def digest_of(sha256: str) -> bytes | None:
    """The 32 bytes of a SHA-256 in hexadecimal; None if it is none."""
    try:
        digest = bytes.fromhex(sha256)
    except ValueError:
        return None
    return digest if len(digest) == SHA256_BYTES else None


def incarnation_of_key(key: bytes) -> str | None:
    """The life of a collection a key of the known-bytes topic belongs to; None for a key of another kind."""
    incarnation, slash, _ = key.partition(b"/")
    return incarnation.decode(errors="replace") if slash else None


def murmur2(data: bytes) -> int:
    """32-bit Murmur2 as Kafka's default partitioner computes it, as an unsigned integer.

    Source: Austin Appleby's MurmurHash2; seed 0x9747b28c as in Apache Kafka's DefaultPartitioner.
    """
    mask = 0xFFFFFFFF
    m = 0x5BD1E995
    h = (0x9747B28C ^ len(data)) & mask
    whole = len(data) & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little")
        k = (k * m) & mask
        k ^= k >> 24
        k = (k * m) & mask
        h = ((h * m) & mask) ^ k
    tail = data[whole:]
    if tail:
        h ^= int.from_bytes(tail, "little")
        h = (h * m) & mask
    h ^= h >> 13
    h = (h * m) & mask
    h ^= h >> 15
    return h


def partition_of(image_id: str, partitions: int) -> int:
    """Partition of an image id in both co-partitioned topics.

    Equal to what Kafka's own default partitioner picks for the key, so that a producer in any
    language that keys by image id lands in the right partition.
    """
    return (murmur2(image_id.encode()) & 0x7FFFFFFF) % partitions


def shard_of_partition(partition: int, shards: int) -> int:
    """Shard that owns a partition."""
    return partition % shards


def partitions_of_shard(shard: int, shards: int, partitions: int) -> tuple[int, ...]:
    """Partitions a shard owns, ascending."""
    return tuple(p for p in range(partitions) if shard_of_partition(p, shards) == shard)


def image_events_spec(collection: str, partitions: int, retention_ms: int) -> TopicSpec:
    """Shape of `image-events`; retention bounds how far back a new model can be built."""
    return TopicSpec(
        image_events_topic(collection),
        partitions,
        {"cleanup.policy": "delete", "retention.ms": str(retention_ms)},
    )


def embedding_log_spec(collection: str, partitions: int) -> TopicSpec:
    """Shape of the embedding log: compacted, because it is the source of truth and kept for ever."""
    return TopicSpec(
        embedding_log_topic(collection),
        partitions,
        {
            "cleanup.policy": "compact",
            "delete.retention.ms": str(TOMBSTONE_RETENTION_MS),
            "max.message.bytes": str(WRAPPED_RECORD_BYTES_MAX),
        },
    )


def system_topic_specs(retention_ms: int) -> tuple[TopicSpec, ...]:
    """Shapes of the topics that belong to no single collection."""
    return (
        TopicSpec(COLLECTIONS_TOPIC, 1, {"cleanup.policy": "compact"}),
        TopicSpec(KEYS_TOPIC, 1, {"cleanup.policy": "compact"}),
        TopicSpec(
            DEAD_LETTER_TOPIC,
            1,
            {
                "cleanup.policy": "delete",
                "retention.ms": str(retention_ms),
                "max.message.bytes": str(WRAPPED_RECORD_BYTES_MAX),
            },
        ),
        TopicSpec(CLICKS_TOPIC, 1, {"cleanup.policy": "delete", "retention.ms": str(retention_ms)}),
        # One partition: every ingest process holds the whole table, and Faust reads it as one.
        TopicSpec(KNOWN_BYTES_TOPIC, 1, {"cleanup.policy": "compact"}),
    )
