"""Faust's Kafka transport with fetches that the in-memory cluster answers promptly.

Kafka answers a fetch that waits for records as soon as one arrives. librdkafka's in-memory cluster
lets the whole waiting time pass first, and Faust fixes that time at 1.5 s.
"""

from __future__ import annotations

from typing import Any, ClassVar

from faust.transport.drivers import aiokafka as driver

_FETCH_WAIT_MS = 20


class PromptThread(driver.AIOKafkaConsumerThread):
    """The thread that owns the aiokafka consumer."""

    logger = driver.logger

    def _create_worker_consumer(self, transport: driver.Transport) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Read once, when the consumer starts; no setting of Faust leads there.
        consumer._fetch_max_wait_ms = _FETCH_WAIT_MS
        return consumer


class PromptConsumer(driver.Consumer):
    """A consumer on such a thread."""

    logger = driver.logger

    def _new_consumer_thread(self) -> PromptThread:
        return PromptThread(self, loop=self.loop, beacon=self.beacon)


class PromptTransport(driver.Transport):
    """A transport with such consumers."""

    Consumer: ClassVar[Any] = PromptConsumer
