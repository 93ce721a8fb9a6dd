"""Makes and drops collections: the two topics, then the record that says so."""

from __future__ import annotations

import msgspec
import structlog

from actors.log.admin import delete_topics, ensure_topic
from actors.log.registry import CollectionRegistry
from contract.errors import CollectionExists, InvalidRequest
from contract.events import CollectionSpec
from contract.settings import Settings
from contract.telemetry import LogField
from contract.topics import (
    check_collection_name,
    embedding_log_spec,
    embedding_log_topic,
    image_events_spec,
    image_events_topic,
)

_log = structlog.get_logger()
# What tells two incarnations of one collection apart, but not two wishes for the same one.
_OWN_FIELDS = {"incarnation": "", "created_at_ms": 0}


def create_collection(settings: Settings, registry: CollectionRegistry, wanted: CollectionSpec) -> CollectionSpec:
    """Make a collection's topics and register it; idempotent when an equal one exists.

    `wanted.incarnation` must be new; it counts only if no equal collection exists. Without a
    fingerprint the collection waits for the supervisor, which learns it from the encoder.

    Raises:
        InvalidRequest: a name that cannot be, or more shards than partitions.
        CollectionExists: one of this name exists with other parameters.
        TopicShapeMismatch: topics of this name exist in another shape.
        BrokerUnavailable: retryable; the same call finishes what was begun.
    """
    name, partitions = check_collection_name(wanted.name), wanted.partitions
    if not 1 <= wanted.shards <= partitions:
        raise InvalidRequest(f"{wanted.shards} shards need at least as many partitions, and there are {partitions}")
    before = registry.latest(name)
    if before is not None and not before.dropped:
        return _same(before, wanted)
    if before is not None:
        # Topics that a drop left behind hold the pictures of the collection that is gone.
        delete_topics(settings, [image_events_topic(name), embedding_log_topic(name)])
    ensure_topic(settings, image_events_spec(name, partitions, settings.kafka_retention_ms))
    ensure_topic(settings, embedding_log_spec(name, partitions))
    registry.put(wanted)
    _log.info("collection created", **{LogField.COLLECTION: name, LogField.COUNT: partitions})
    # Of two who create at once, both go on with the record that came last.
    return _same(registry.latest(name) or wanted, wanted)


def drop_collection(settings: Settings, registry: CollectionRegistry, name: str) -> None:
    """Register the end of a collection, then delete its topics and with them every event.

    Raises:
        NotFound: there is no such collection.
        BrokerUnavailable: retryable; topics that are left go when the name is used again.
    """
    spec = registry.get(name)
    registry.put(msgspec.structs.replace(spec, dropped=True))
    delete_topics(settings, [image_events_topic(name), embedding_log_topic(name)])
    _log.info("collection dropped", **{LogField.COLLECTION: name})


def _same(existing: CollectionSpec, wanted: CollectionSpec) -> CollectionSpec:
    """Return `existing` if it is what is wanted; raises CollectionExists naming the differences."""
    differing = [
        f"{field}={getattr(existing, field)} (wanted {getattr(wanted, field)})"
        for field in CollectionSpec.__struct_fields__
        if field not in _OWN_FIELDS and getattr(existing, field) != getattr(wanted, field)
    ]
    if differing:
        raise CollectionExists(f"collection {wanted.name!r} exists with {', '.join(differing)}")
    return existing
