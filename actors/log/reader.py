"""Tails the partitions of one shard, without a consumer group: the shard keeps its own offsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from actors.log.admin import topic_identity
from actors.log.connection import (
    REQUEST_TIMEOUT_S,
    Config,
    confluent_config,
    is_unavailable,
    read_local_broker,
    translated,
)
from actors.log.records import LogIdentity, LogRecord
from contract.errors import BrokerUnavailable, LogGap, NotFound
from contract.settings import Settings
from contract.topics import embedding_log_topic, image_events_topic

# Kafka answers a waiting fetch as soon as a record arrives; the in-memory cluster waits the time out.
_FETCH_WAIT_MS = 500
_MEMORY_FETCH_WAIT_MS = 20


class KafkaLogReader:
    """Implements `LogReader` on Kafka.

    `start` and `poll` are for one thread; the questions about offsets may come from another.
    """

    def __init__(self, settings: Settings, collection: str, partitions: Sequence[int]) -> None:
        self._settings = settings
        self._topic = embedding_log_topic(collection)
        self._source_topic = image_events_topic(collection)
        self._partitions = tuple(partitions)
        self._consumer = Consumer(consumer_config(settings, "riverlens-shard"))
        # A broker answers one request of a connection at a time, so a question about offsets would
        # wait behind the fetch that waits for new records.
        self._offsets = Consumer(consumer_config(settings, "riverlens-shard-offsets"))

    def identity(self) -> LogIdentity:
        """Identity of the embedding log's topic. Raises NotFound, BrokerUnavailable (retryable)."""
        return topic_identity(self._settings, self._topic)

    def start(self, positions: Mapping[int, int]) -> None:
        """Read each partition from its given offset on; a partition without one from the start."""
        self._consumer.assign([TopicPartition(self._topic, p, positions.get(p, 0)) for p in self._partitions])

    def poll(self, max_records: int, timeout_s: float) -> Sequence[LogRecord]:
        """Up to `max_records` next records, in order within a partition; empty after the time-out.

        Raises:
            LogGap: the log no longer holds the position (retention, another log).
            NotFound: the topic is gone.
            BrokerUnavailable: retryable.
        """
        first = self._consumer.poll(timeout_s)
        if first is None:
            return ()
        messages = [first]
        if max_records > 1:
            # Without a time-out: `consume` would wait for the whole number.
            messages += self._consumer.consume(max_records - 1, timeout=0)
        return [record for message in messages if (record := to_record(message)) is not None]

    def first_offsets(self) -> dict[int, int]:
        """Lowest offset still in the log, per partition. Raises BrokerUnavailable (retryable)."""
        return {p: low for p, (low, _) in self._watermarks(self._topic).items()}

    def end_offsets(self) -> dict[int, int]:
        """Offset after the last record of the log, per partition. Raises BrokerUnavailable (retryable)."""
        return {p: high for p, (_, high) in self._watermarks(self._topic).items()}

    def source_end_offsets(self) -> dict[int, int]:
        """High watermark of image-events, per partition. Raises BrokerUnavailable (retryable)."""
        return {p: high for p, (_, high) in self._watermarks(self._source_topic).items()}

    def close(self) -> None:
        """Release the connections."""
        self._consumer.close()
        self._offsets.close()

    def _watermarks(self, topic: str) -> dict[int, tuple[int, int]]:
        return {p: watermarks(self._offsets, topic, p) for p in self._partitions}


def consumer_config(settings: Settings, client_id: str) -> Config:
    """A consumer that is assigned its partitions, commits nothing and never skips on its own."""
    local = read_local_broker(settings)
    memory = local is not None and local.kind == "memory"
    return {
        **confluent_config(settings),
        "client.id": client_id,
        # librdkafka demands a group id; nothing joins or commits under it.
        "group.id": "riverlens-unused",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # A position outside the log is an error to be told, never a silent jump.
        "auto.offset.reset": "error",
        "fetch.wait.max.ms": _MEMORY_FETCH_WAIT_MS if memory else _FETCH_WAIT_MS,
        "fetch.error.backoff.ms": 50,
        # Bounds memory per consumer: a shard that replays reads far faster than it indexes.
        "queued.max.messages.kbytes": 16 * 1024,
        "queued.min.messages": 1000,
        # After the queue was full: how soon fetching goes on.
        "fetch.queue.backoff.ms": 20,
    }


def watermarks(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
    """Lowest offset and offset after the last, asked of the broker; raises BrokerUnavailable."""
    place = TopicPartition(topic, partition)
    answer = translated(
        lambda: consumer.get_watermark_offsets(place, timeout=REQUEST_TIMEOUT_S), f"offsets of {topic}/{partition}"
    )
    if answer is None:
        raise BrokerUnavailable(f"no answer about the offsets of {topic}/{partition}")
    low, high = answer
    return low, high


def to_record(message: Message) -> LogRecord | None:
    """The record of a message; None for an error that librdkafka heals itself.

    Raises LogGap, NotFound, BrokerUnavailable as `KafkaLogReader.poll` says.
    """
    error = message.error()
    if error is None:
        return LogRecord(
            partition=message.partition() or 0,
            offset=message.offset() or 0,
            key=message.key(),
            value=message.value(),
            headers=_headers(message),
            timestamp_ms=message.timestamp()[1],
        )
    if error.code() == KafkaError._PARTITION_EOF:
        return None
    if error.code() == KafkaError._AUTO_OFFSET_RESET:
        raise LogGap(f"{message.topic()}/{message.partition()} does not hold the wanted offset: {error.str()}")
    if error.code() in {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}:
        raise NotFound(f"{message.topic()}/{message.partition()} is gone: {error.str()}")
    if is_unavailable(error):
        raise BrokerUnavailable(f"reading {message.topic()}: {error.str()}")
    raise LogGap(f"reading {message.topic()}/{message.partition()}: {error.str()}")


def _headers(message: Message) -> dict[str, bytes]:
    # librdkafka hands headers back as a list, though its types allow a mapping for producing.
    pairs = cast("list[tuple[str, bytes | None]]", message.headers() or [])
    return {name: value or b"" for name, value in pairs}
