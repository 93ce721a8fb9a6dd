"""Produces records from an asyncio program and tells when the broker has confirmed them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from msgspec import Struct

from actors.log.connection import Config, confluent_config, is_unavailable
from contract.errors import BrokerUnavailable, InvalidRequest
from contract.settings import Settings
from contract.telemetry import LogField
from contract.topics import WRAPPED_RECORD_BYTES_MAX

_log = structlog.get_logger()

DELIVERY_TIMEOUT_S = 30.0
# What waits for the broker; beyond it a record is refused as BrokerUnavailable, and its caller waits.
QUEUE_BYTES_MAX = 128 * 1024 * 1024
_POLL_S = 0.1
FLUSH_S = 10.0
# What says "never" of this very record.
_REFUSED = frozenset(
    {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD, KafkaError.INVALID_MSG, KafkaError._INVALID_ARG}
)


class OutgoingRecord(Struct, frozen=True):
    """One record to send; `value` None is a tombstone."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes] = {}


class LogProducer:
    """An idempotent producer (acks=all) whose `send` returns once the record is durable.

    Records sent one after another to one partition stand there in that order. With `gapless`, a
    record that fails fails all that follow it, so that a later record never overtakes it; the next
    `send` after that starts a new underlying producer.

    Used from any number of asyncio loops; thread-safe.
    """

    def __init__(self, settings: Settings, client_id: str, *, gapless: bool = False) -> None:
        self._config: Config = {
            **confluent_config(settings),
            "client.id": client_id,
            "acks": "all",
            "enable.idempotence": True,
            "enable.gapless.guarantee": gapless,
            "linger.ms": 1,
            "delivery.timeout.ms": int(DELIVERY_TIMEOUT_S * 1000),
            "message.max.bytes": WRAPPED_RECORD_BYTES_MAX,
            "queue.buffering.max.kbytes": QUEUE_BYTES_MAX // 1024,
        }
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._failed = False
        self._producer = Producer(self._config)
        self._thread = threading.Thread(target=self._poll, name=f"kafka-producer-{client_id}", daemon=True)
        self._thread.start()

    async def send(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Mapping[str, bytes] | None = None,
    ) -> int:
        """Send one record and return its offset once the broker has confirmed it.

        The record is queued before the first suspension, so the order of calls is the order in
        the partition. Cancelling the caller does not call the record back.

        Raises:
            BrokerUnavailable: not confirmed in time; it may be in the log all the same (retryable).
            InvalidRequest: the topic does not take such a record (too large, no key in a compacted topic).
        """
        return (await self.send_all([OutgoingRecord(topic, partition, key, value, headers or {})]))[0]

    async def send_all(self, records: Sequence[OutgoingRecord]) -> list[int]:
        """Send records in order and return their offsets once the broker has confirmed all of them.

        With `gapless`, none of them is in the log without those before it. Raises as `send` does,
        with the first error, once the fate of every record is known.
        """
        loop = asyncio.get_running_loop()
        confirmed: list[asyncio.Future[int]] = []
        failure: Exception | None = None
        with self._lock:
            if self._failed:
                self._replace()
            for record in records:
                future: asyncio.Future[int] = loop.create_future()
                try:
                    self._queue(record, loop, future)
                except (BrokerUnavailable, InvalidRequest) as error:
                    failure = error
                    break
                confirmed.append(future)
        answers = await asyncio.gather(*confirmed, return_exceptions=True)
        offsets = [answer for answer in answers if isinstance(answer, int)]
        failure = next((answer for answer in answers if isinstance(answer, Exception)), failure)
        if failure is not None:
            raise failure
        return offsets

    def close(self, flush_s: float = FLUSH_S) -> None:
        """Wait up to `flush_s` seconds for what was sent, then release the connection."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join()
        left = self._producer.flush(flush_s)
        if left:
            _log.warning("records left unsent at close", **{LogField.COUNT: left})

    def _queue(self, record: OutgoingRecord, loop: asyncio.AbstractEventLoop, confirmed: asyncio.Future[int]) -> None:
        """Hand one record to the underlying producer; called with the lock held."""
        producer = self._producer

        def resolve(error: KafkaError | None, offset: int) -> None:
            if confirmed.done():
                return
            if error is None:
                confirmed.set_result(offset)
            else:
                confirmed.set_exception(_translate(error, record.topic))

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self._note(producer, error)
            # The loop of a caller that has gone away takes no more answers.
            if not loop.is_closed():
                loop.call_soon_threadsafe(resolve, error, message.offset() or 0)

        if self._closed.is_set():
            raise BrokerUnavailable("the producer is closed")
        try:
            producer.produce(
                record.topic,
                key=record.key,
                value=record.value,
                partition=record.partition,
                headers=list(record.headers.items()),
                on_delivery=on_delivery,
            )
        except KafkaException as exception:
            error = exception.args[0]
            self._note(producer, error)
            raise _translate(error, record.topic) from exception
        except BufferError as error:
            raise BrokerUnavailable("the producer's queue is full") from error

    def _replace(self) -> None:
        """Start a new underlying producer after a fatal error; called with the lock held."""
        old, self._producer, self._failed = self._producer, Producer(self._config), False
        # What the old one still holds must fail now, not arrive late behind newer records.
        old.purge()
        deadline = time.monotonic() + FLUSH_S
        while len(old) and time.monotonic() < deadline:
            self._serve(old, _POLL_S)
        _log.warning("producer restarted after a fatal error")

    def _note(self, producer: Producer, error: KafkaError) -> None:
        """A fatal error ends a producer for good; one that is replaced already is no news."""
        if _ends_producer(error) and producer is self._producer and not self._failed:
            self._failed = True
            _log.error("the producer met a fatal error", **{LogField.ERROR: error.str()})

    def _poll(self) -> None:
        while not self._closed.is_set():
            self._serve(self._producer, _POLL_S)

    def _serve(self, producer: Producer, timeout_s: float) -> None:
        """Run delivery callbacks; a fatal error, which polling raises anew every time, is noted."""
        try:
            producer.poll(timeout_s)
        except KafkaException as exception:
            self._note(producer, exception.args[0])
            self._closed.wait(_POLL_S)


def _ends_producer(error: KafkaError) -> bool:
    return error.fatal() or error.code() in {KafkaError._FATAL, KafkaError._GAPLESS_GUARANTEE}


def _translate(error: KafkaError, topic: str) -> Exception:
    """The error of this house for a record that was not confirmed."""
    if error.code() in _REFUSED:
        return InvalidRequest(f"{topic} does not take the record: {error.str()}")
    if is_unavailable(error) or _ends_producer(error):
        return BrokerUnavailable(f"{topic} did not confirm a record: {error.str()}")
    return KafkaException(error)
