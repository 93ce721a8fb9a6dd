"""Collections as the API makes and drops them, and the ends of their event logs."""

from __future__ import annotations

import threading

from confluent_kafka import Consumer

from actors.log.collections import create_collection, drop_collection
from actors.log.reader import consumer_config, watermarks
from actors.log.registry import CollectionRegistry
from contract.events import CollectionSpec
from contract.settings import Settings
from contract.topics import image_events_topic


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
        return create_collection(self._settings, self._registry, spec)

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
