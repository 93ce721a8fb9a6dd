"""Faust's Kafka transport, with commits that end and say whose they are, and prompt fetches from the in-memory cluster.

Faust's Kafka client repeats a commit until the broker takes all of it. With a topic among the partitions
that is deleted meanwhile, that is for ever: no other partition is committed either, and the worker cannot stop.
And where a topic of the same name is made meanwhile, it takes the offset of the one before it, and events would be
passed over. So an offset is committed with the incarnation of its collection; one of another incarnation means nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, cast

from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

# Many times what a broker in order takes; a worker that stops commits once or twice.
_COMMIT_WITHIN_S = 2.0
_FETCH_WAIT_MS = 20


class CommittingThread(driver.AIOKafkaConsumerThread):
    """The thread that owns the aiokafka consumer."""

    logger = driver.logger

    @property
    def _incarnations(self) -> Mapping[str, str]:
        return cast(CommittingTransport, self.transport).incarnations

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit within a bound; what was not committed is read again by the next worker, and has no effect then."""
        try:
            return await asyncio.wait_for(super()._commit(offsets), _COMMIT_WITHIN_S)
        except TimeoutError:
            topics = ", ".join(sorted({place.topic for place in offsets}))
            self.log.warning("offsets not committed within %g s: %s", _COMMIT_WITHIN_S, topics)
            return False

    def _create_worker_consumer(self, transport: driver.Transport) -> Any:
        consumer = super()._create_worker_consumer(transport)
        commit = consumer.commit

        async def commit_with_incarnation(offsets: Mapping[Any, OffsetAndMetadata]) -> None:
            named = {
                place: OffsetAndMetadata(at.offset, self._incarnations.get(place.topic, ""))
                for place, at in offsets.items()
            }
            await commit(named)

        consumer.commit = commit_with_incarnation
        return consumer

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Go on where the group has committed; at the beginning, where that was another topic of the same name."""
        return cast("Mapping[TP, int]", await self.call_thread(self._seek))

    async def _seek(self) -> dict[Any, int | None]:
        consumer = self._ensure_consumer()
        offsets: dict[Any, int | None] = dict(await consumer.seek_to_committed())
        # The public call tells the offset without what was written beside it.
        committed = await consumer._coordinator.fetch_committed_offsets(list(offsets))
        for place, at in committed.items():
            # Offsets of earlier releases name no incarnation.
            if at.offset >= 0 and at.metadata and at.metadata != self._incarnations.get(place.topic, at.metadata):
                self.log.warning("%s begins anew: its offset is of another incarnation", place)
                await consumer.seek_to_beginning(place)
                offsets[place] = None
        return offsets


def _kept(deliver: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    """The same delivery, which ends although its caller is cancelled, and one after another.

    Faust gives up the message that waits for room in its stream when the flow is suspended, as at every
    rebalance, and may go on behind it.
    """
    under_way: asyncio.Future[None] | None = None

    async def delivered(message: Any) -> None:
        nonlocal under_way
        if under_way is not None and not under_way.done():
            await asyncio.shield(under_way)
        under_way = asyncio.ensure_future(deliver(message))
        await asyncio.shield(under_way)

    return delivered


class CommittingConsumer(driver.Consumer):
    """A consumer on such a thread."""

    logger = driver.logger

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.callback = _kept(self.callback)

    def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
        return CommittingThread(self, loop=self.loop, beacon=self.beacon)


class CommittingTransport(driver.Transport):
    """A transport with such consumers; `incarnations` are those of the collections, by the topic of their events."""

    incarnations: Mapping[str, str] = MappingProxyType({})
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
