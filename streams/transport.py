"""Faust's Kafka transport, with commits that end and, for the in-memory cluster, with prompt fetches.

Faust's Kafka client repeats a commit until the broker takes all of it. With a topic among the partitions
that is deleted meanwhile, that is for ever: no other partition is committed either, and the worker cannot stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

from faust.transport.drivers import aiokafka as driver
from faust.types import TP

# Many times what a broker in order takes; a worker that stops commits once or twice.
_COMMIT_WITHIN_S = 2.0
_FETCH_WAIT_MS = 20


class CommittingThread(driver.AIOKafkaConsumerThread):
    """The thread that owns the aiokafka consumer."""

    logger = driver.logger

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit within a bound; what was not committed is read again by the next worker, and has no effect then."""
        try:
            return await asyncio.wait_for(super()._commit(offsets), _COMMIT_WITHIN_S)
        except TimeoutError:
            topics = ", ".join(sorted({place.topic for place in offsets}))
            self.log.warning("offsets not committed within %g s: %s", _COMMIT_WITHIN_S, topics)
            return False


class CommittingConsumer(driver.Consumer):
    """A consumer on such a thread."""

    logger = driver.logger

    def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
        return CommittingThread(self, loop=self.loop, beacon=self.beacon)


class CommittingTransport(driver.Transport):
    """A transport with such consumers."""

    Consumer: ClassVar[Any] = CommittingConsumer


class PromptThread(CommittingThread):
    """A thread whose fetches the in-memory cluster answers promptly.

    Kafka answers a fetch that waits for records as soon as one arrives. librdkafka's in-memory cluster
    lets the whole waiting time pass first, and Faust fixes that time at 1.5 s.
    """

    logger = driver.logger

    def _create_worker_consumer(self, transport: driver.Transport) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Read once, when the consumer starts; no setting of Faust leads there.
        consumer._fetch_max_wait_ms = _FETCH_WAIT_MS
        return consumer


class PromptConsumer(CommittingConsumer):
    """A consumer on such a thread."""

    logger = driver.logger

    def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
        return PromptThread(self, loop=self.loop, beacon=self.beacon)


class PromptTransport(CommittingTransport):
    """A transport with such consumers."""

    Consumer: ClassVar[Any] = PromptConsumer
