"""Reads stretches of one partition on demand: from an offset on, so many records, within a time."""

from __future__ import annotations

import threading
import time

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from actors.log.connection import translated
from actors.log.reader import consumer_config, to_record, watermarks
from actors.log.records import LogRecord
from contract.errors import BrokerUnavailable
from contract.settings import Settings

_POLL_S = 0.2


class RangeReader:
    """Goes to any place of any partition. Thread-safe; connects at its first use.

    Reading on where the last call ended costs no new fetch. Every method raises BrokerUnavailable (retryable).
    """

    def __init__(self, settings: Settings, client_id: str) -> None:
        self._settings = settings
        self._client_id = client_id
        self._lock = threading.Lock()
        self._consumer: Consumer | None = None
        self._offsets: Consumer | None = None
        self._next: tuple[str, int, int] | None = None

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Lowest offset still there, and the offset after the last record."""
        with self._lock:
            return watermarks(self._connected()[1], topic, partition)

    def read(self, topic: str, partition: int, start: int, most: int, within_s: float) -> list[LogRecord]:
        """Up to `most` records from offset `start` on, in order; fewer at the end of the partition or of the time.

        Raises:
            LogGap: the partition does not hold `start`.
            NotFound: the topic is gone.
        """
        records: list[LogRecord] = []
        deadline = time.monotonic() + within_s
        with self._lock:
            consumer = self._connected()[0]
            try:
                if self._next != (topic, partition, start):
                    self._seek(consumer, topic, partition, start)
                # Until it is known again, after an error, where the consumer stands.
                self._next = None
                while len(records) < most and (left_s := deadline - time.monotonic()) > 0:
                    message = consumer.poll(min(_POLL_S, left_s))
                    if message is None:
                        continue
                    error = message.error()
                    if error is not None and error.code() == KafkaError._PARTITION_EOF:
                        break
                    record = to_record(message)
                    if record is not None and record.offset >= start:
                        records.append(record)
                self._next = (topic, partition, records[-1].offset + 1 if records else start)
            except KafkaException as error:
                raise BrokerUnavailable(f"reading {topic}/{partition}: {error}") from error
        return records

    def close(self) -> None:
        """Release the connections; the next use connects anew."""
        with self._lock:
            for client in (self._consumer, self._offsets):
                if client is not None:
                    client.close()
            self._consumer = self._offsets = self._next = None

    def _connected(self) -> tuple[Consumer, Consumer]:
        """A consumer that reads and one that asks for offsets; with the lock held."""
        if self._consumer is None or self._offsets is None:
            config = {
                **consumer_config(self._settings, self._client_id),
                "enable.partition.eof": True,
                # What was fetched ahead is thrown away when the next call reads elsewhere.
                "queued.max.messages.kbytes": 4 * 1024,
            }
            # Two connections: a question about offsets would wait behind a waiting fetch.
            self._consumer, self._offsets = Consumer(config), Consumer(config)
        return self._consumer, self._offsets

    @staticmethod
    def _seek(consumer: Consumer, topic: str, partition: int, start: int) -> None:
        place = TopicPartition(topic, partition, start)
        translated(lambda: consumer.assign([place]), f"going to {topic}/{partition} at {start}")
