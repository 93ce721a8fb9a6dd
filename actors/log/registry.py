"""Which collections exist: the last record per name in the compacted topic `riverlens-collections`."""

from __future__ import annotations

import threading
import time

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition

from actors.log.connection import confluent_config, translated
from actors.log.reader import consumer_config, to_record, watermarks
from contract.errors import BrokerUnavailable, EventInvalid, NotFound
from contract.events import CollectionSpec, decode_collection, encode_json
from contract.settings import Settings
from contract.telemetry import LogField
from contract.topics import COLLECTIONS_TOPIC

_log = structlog.get_logger()
_READ_TIMEOUT_S = 15.0
_WRITE_TIMEOUT_S = 15.0


class CollectionRegistry:
    """A view of the collections topic, and the way to write to it. Thread-safe.

    Connects at its first use. Every method but `dropped` raises BrokerUnavailable (retryable).
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._consumer: Consumer | None = None
        self._offsets: Consumer | None = None
        self._position = 0
        self._specs: dict[str, CollectionSpec] = {}

    def refresh(self) -> dict[str, CollectionSpec]:
        """Read to the current end and return the live collections; one request if nothing is new."""
        with self._lock:
            self._read()
            return {name: spec for name, spec in self._specs.items() if not spec.dropped}

    def get(self, name: str) -> CollectionSpec:
        """The live collection of this name; reads on if it is unknown. Raises NotFound."""
        with self._lock:
            spec = self._specs.get(name)
        if spec is None or spec.dropped:
            spec = self.refresh().get(name)
        if spec is None:
            raise NotFound(f"there is no collection {name!r}")
        return spec

    def latest(self, name: str) -> CollectionSpec | None:
        """The last record of this name, dropped or not, as of now; None if there never was one."""
        with self._lock:
            self._read()
            return self._specs.get(name)

    def dropped(self) -> list[CollectionSpec]:
        """Collections that were dropped and not made anew, as of the last reading."""
        with self._lock:
            return [spec for spec in self._specs.values() if spec.dropped]

    def put(self, spec: CollectionSpec) -> None:
        """Write a record and return once it is durable; the last one per name counts."""
        failures: list[KafkaError] = []
        producer = Producer(
            {
                **confluent_config(self._settings),
                "client.id": "riverlens-registry",
                # Not idempotent, which takes half a second to set up: a repeated record changes nothing.
                "acks": "all",
                "delivery.timeout.ms": int(_WRITE_TIMEOUT_S * 1000),
            }
        )
        producer.produce(
            COLLECTIONS_TOPIC,
            key=spec.name.encode(),
            value=encode_json(spec),
            partition=0,
            on_delivery=lambda error, _: failures.append(error) if error is not None else None,
        )
        left = producer.flush(_WRITE_TIMEOUT_S)
        if failures or left:
            reason = failures[0].str() if failures else "no answer"
            raise BrokerUnavailable(f"collection {spec.name!r} was not confirmed: {reason}")

    def close(self) -> None:
        """Release the connection."""
        with self._lock:
            for client in (self._consumer, self._offsets):
                if client is not None:
                    client.close()
            self._consumer = self._offsets = None

    def _read(self) -> None:
        """Bring the view up to the end of the topic as it is now; called with the lock held."""
        if self._consumer is None or self._offsets is None:
            config = {**consumer_config(self._settings, "riverlens-registry"), "enable.partition.eof": True}
            # Two connections: a question about offsets would wait behind a waiting fetch.
            self._consumer, self._offsets = Consumer(config), Consumer(config)
            self._rewind()
        low, end = watermarks(self._offsets, COLLECTIONS_TOPIC, 0)
        if end < self._position:
            # Another log under the same name: what was known came from one that is gone.
            _log.error("the collections topic was made anew; reading it from its start")
            self._specs.clear()
            self._rewind()
        self._position = max(self._position, low)
        deadline = time.monotonic() + _READ_TIMEOUT_S
        while self._position < end:
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"{COLLECTIONS_TOPIC} could not be read to its end in {_READ_TIMEOUT_S:.0f} s")
            self._take_one()

    def _take_one(self) -> None:
        assert self._consumer is not None  # noqa: S101
        message = self._consumer.poll(0.5)
        if message is None:
            return
        error = message.error()
        if error is not None and error.code() == KafkaError._PARTITION_EOF:
            self._position = max(self._position, message.offset() or 0)
            return
        record = to_record(message)
        if record is None:
            return
        self._position = record.offset + 1
        if record.value is None:
            self._specs.pop((record.key or b"").decode(errors="replace"), None)
            return
        try:
            spec = decode_collection(record.value)
        except EventInvalid as invalid:
            _log.error("skipped a record that is no collection", **{LogField.ERROR: invalid.detail})
            return
        self._specs[spec.name] = spec

    def _rewind(self) -> None:
        assert self._consumer is not None  # noqa: S101
        self._position = 0
        place = TopicPartition(COLLECTIONS_TOPIC, 0, OFFSET_BEGINNING)
        translated(lambda: self._assign(place), "reading the collections")

    def _assign(self, place: TopicPartition) -> None:
        assert self._consumer is not None  # noqa: S101
        try:
            self._consumer.assign([place])
        except KafkaException as error:
            raise BrokerUnavailable(f"reading the collections: {error}") from error
