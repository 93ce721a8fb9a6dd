"""The last record per key of a compacted topic of one partition, read to its end whenever somebody asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition

from actors.log.connection import confluent_config, translated
from actors.log.reader import consumer_config, to_record, watermarks
from contract.errors import BrokerUnavailable, EventInvalid
from contract.settings import Settings
from contract.telemetry import LogField

_log = structlog.get_logger()

_READ_TIMEOUT_S = 15.0
_WRITE_TIMEOUT_S = 15.0

Value = TypeVar("Value")


class LatestRecords(Generic[Value]):
    """A view of such a topic, and the way to write to it. Thread-safe; connects at its first use."""

    def __init__(self, settings: Settings, topic: str, client_id: str, decode: Callable[[bytes], Value]) -> None:
        """`decode` raises EventInvalid for a record that is none; such a record is logged and passed over."""
        self._settings = settings
        self._topic = topic
        self._client_id = client_id
        self._decode = decode
        self._lock = threading.Lock()
        self._consumer: Consumer | None = None
        self._offsets: Consumer | None = None
        self._position = 0
        self._values: dict[str, Value] = {}

    def read(self) -> dict[str, Value]:
        """Values by key as of now; one request if nothing is new. Raises BrokerUnavailable (retryable)."""
        with self._lock:
            self._read()
            return dict(self._values)

    def known(self) -> dict[str, Value]:
        """Values by key as of the last reading."""
        with self._lock:
            return dict(self._values)

    def put(self, key: str, value: bytes) -> None:
        """Write a record and return once it is durable. Raises BrokerUnavailable (retryable)."""
        failures: list[KafkaError] = []
        producer = Producer(
            {
                **confluent_config(self._settings),
                "client.id": self._client_id,
                # Not idempotent, which takes half a second to set up: a repeated record changes nothing.
                "acks": "all",
                "delivery.timeout.ms": int(_WRITE_TIMEOUT_S * 1000),
            }
        )
        producer.produce(
            self._topic,
            key=key.encode(),
            value=value,
            partition=0,
            on_delivery=lambda error, _: failures.append(error) if error is not None else None,
        )
        left = producer.flush(_WRITE_TIMEOUT_S)
        if failures or left:
            reason = failures[0].str() if failures else "no answer"
            raise BrokerUnavailable(f"{self._topic}: the record of {key!r} was not confirmed: {reason}")

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
            config = {**consumer_config(self._settings, self._client_id), "enable.partition.eof": True}
            # Two connections: a question about offsets would wait behind a waiting fetch.
            self._consumer, self._offsets = Consumer(config), Consumer(config)
            self._rewind()
        low, end = watermarks(self._offsets, self._topic, 0)
        if end < self._position:
            # Another log under the same name: what was known came from one that is gone.
            _log.error("a topic was made anew; reading it from its start", topic=self._topic)
            self._values.clear()
            self._rewind()
        self._position = max(self._position, low)
        deadline = time.monotonic() + _READ_TIMEOUT_S
        while self._position < end:
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"{self._topic} could not be read to its end in {_READ_TIMEOUT_S:.0f} s")
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
        key = (record.key or b"").decode(errors="replace")
        if record.value is None:
            self._values.pop(key, None)
            return
        try:
            self._values[key] = self._decode(record.value)
        except EventInvalid as invalid:
            _log.error("skipped a record that is none", topic=self._topic, **{LogField.ERROR: invalid.detail})

    def _rewind(self) -> None:
        assert self._consumer is not None  # noqa: S101
        self._position = 0
        place = TopicPartition(self._topic, 0, OFFSET_BEGINNING)
        translated(lambda: self._assign(place), f"reading {self._topic}")

    def _assign(self, place: TopicPartition) -> None:
        assert self._consumer is not None  # noqa: S101
        try:
            self._consumer.assign([place])
        except KafkaException as error:
            raise BrokerUnavailable(f"reading {self._topic}: {error}") from error
