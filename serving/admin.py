"""Collections as the API makes and drops them, and the ends of their event logs."""

from __future__ import annotations

import threading

from confluent_kafka import Consumer

from actors.log.collections import create_collection, drop_collection
from actors.log.reader import consumer_config, watermarks
from actors.log.registry import CollectionRegistry
from actors.messages import EncoderDescription, PreprocessSpec
from contract.events import CollectionSpec
from contract.settings import Settings
from contract.topics import image_events_topic

# Stands where an encoder is not known yet; the supervisor starts it and completes the collection.
_UNKNOWN_PREPROCESS = PreprocessSpec(
    size=0,
    resize="squash",
    interpolation="bilinear",
    padding=0.0,
    background=(0, 0, 0),
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)


class KafkaCollectionAdmin:
    """Implements `CollectionAdmin`. Thread-safe; connects at its first use."""

    def __init__(self, settings: Settings, registry: CollectionRegistry) -> None:
        self._settings = settings
        self._registry = registry
        self._lock = threading.Lock()
        self._consumer: Consumer | None = None

    def create(self, spec: CollectionSpec) -> CollectionSpec:
        """Ensure the topics, then register the collection.

        Raises CollectionExists, TopicShapeMismatch, BrokerUnavailable (retryable).
        """
        description = EncoderDescription(spec.model, spec.fingerprint, spec.dimension, _UNKNOWN_PREPROCESS, "")
        return create_collection(
            self._settings,
            self._registry,
            spec.name,
            description,
            partitions=spec.partitions,
            shards=spec.shards,
            replicas=spec.replicas,
            m=spec.m,
            ef_construction=spec.ef_construction,
            ef_search=spec.ef_search,
        )

    def drop(self, name: str) -> None:
        """Register the end of the collection, then delete its topics. Raises NotFound."""
        drop_collection(self._settings, self._registry, name)

    def source_end(self, collection: str, partition: int) -> int:
        """High watermark of one partition of `image-events`. Raises BrokerUnavailable (retryable)."""
        with self._lock:
            if self._consumer is None:
                self._consumer = Consumer(consumer_config(self._settings, "riverlens-api"))
            return watermarks(self._consumer, image_events_topic(collection), partition)[1]

    def close(self) -> None:
        """Release the connection."""
        with self._lock:
            if self._consumer is not None:
                self._consumer.close()
                self._consumer = None
