"""The collections as the API serves them: specs from the registry, with clients of their shards.

Reads are answered from memory and refreshed in the background about once a second, so that a
search neither waits for Kafka nor fails with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from contract.errors import NotFound, RiverlensError, ShardUnavailable, Unavailable
from contract.events import CollectionSpec
from contract.telemetry import LogField
from contract.topics import partition_of, shard_of_partition
from serving.dependencies import Dependencies, Embedder, Shard
from serving.fan_out import FanOut
from serving.lexical import LexicalFanOut
from serving.metrics import Metrics

_log = structlog.get_logger()

REFRESH_S = 1.0
# Pause between tries while a shard is being started again.
_RETRY_S = 0.1

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class ServedCollection:
    """One collection with the clients of its shards: `shards[s][r]` is replica r of shard s."""

    spec: CollectionSpec
    shards: tuple[tuple[Shard, ...], ...]
    fan_out: FanOut
    lexical: LexicalFanOut
    embedder: Embedder

    def partition(self, image_id: str) -> int:
        """Partition of an image id."""
        return partition_of(image_id, self.spec.partitions)

    def replicas(self, partition: int) -> tuple[Shard, ...]:
        """Replicas of the shard that owns a partition."""
        return self.shards[shard_of_partition(partition, self.spec.shards)]

    def check_complete(self) -> None:
        """Raise Unavailable (retryable) while the supervisor has not started the encoder yet."""
        if not self.spec.fingerprint:
            raise Unavailable(f"collection {self.spec.name!r} is being created: its encoder is starting")

    async def ask(self, partition: int, call: Callable[[Shard], Awaitable[Answer]]) -> Answer:
        """The answer of the first replica of the owner of `partition` that gives one.

        Raises ShardUnavailable (retryable) when none does.
        """
        refusal: ShardUnavailable | None = None
        for shard in self.replicas(partition):
            try:
                return await call(shard)
            except ShardUnavailable as error:
                refusal = error
        raise refusal or ShardUnavailable(f"partition {partition} has no shard")

    async def wait_applied(self, partition: int, source_offset: int, timeout_s: float) -> bool:
        """Whether every replica that answers has applied `source_offset` within `timeout_s` seconds.

        A shard that is being started again is asked anew until the time is over; with none left
        then, raises ShardUnavailable (retryable).
        """
        deadline = time.monotonic() + timeout_s
        while True:
            remaining_s = max(0.0, deadline - time.monotonic())
            answers = await asyncio.gather(
                *(shard.wait_applied(partition, source_offset, remaining_s) for shard in self.replicas(partition)),
                return_exceptions=True,
            )
            unexpected = [a for a in answers if isinstance(a, BaseException) and not isinstance(a, ShardUnavailable)]
            if unexpected:
                raise unexpected[0]
            verdicts = [answer for answer in answers if isinstance(answer, bool)]
            if verdicts:
                return all(verdicts)
            if time.monotonic() + _RETRY_S >= deadline:
                raise ShardUnavailable(f"no replica of the shard of partition {partition} answers")
            await asyncio.sleep(_RETRY_S)


class Catalog:
    """Looks collections up by name."""

    def __init__(
        self,
        dependencies: Dependencies,
        clock: Callable[[], float] = time.monotonic,
        metrics: Metrics | None = None,
    ) -> None:
        self._dependencies = dependencies
        self._metrics = metrics or Metrics()
        self._clock = clock
        self._served: dict[str, ServedCollection] = {}
        self._embedders: dict[str, Embedder] = {}
        self._refreshed_at = -1e9
        self._running: asyncio.Task[None] | None = None

    def embedder(self, model: str) -> Embedder:
        """The embedders that encode queries of a model."""
        if model not in self._embedders:
            count = self._dependencies.settings.query_embedders
            self._embedders[model] = self._dependencies.make_embedder(model, "query", count)
        return self._embedders[model]

    async def refresh(self) -> None:
        """Read the registry now. Concurrent calls share one read. Raises BrokerUnavailable (retryable)."""
        if self._running is None:
            self._running = asyncio.create_task(self._refresh())
            self._running.add_done_callback(self._refresh_ended)
        await asyncio.shield(self._running)

    def _refresh_ended(self, task: asyncio.Task[None]) -> None:
        self._running = None
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, RiverlensError):
            _log.warning("collections not refreshed", **{LogField.CODE: error.code, LogField.ERROR: error.detail})
        elif error is not None:
            _log.error("collections not refreshed", exc_info=error)

    async def _refresh(self) -> None:
        # Stamped first: a registry that fails is asked again after REFRESH_S, not at every request.
        self._refreshed_at = self._clock()
        specs = await asyncio.to_thread(self._dependencies.registry.refresh)
        self._served = {name: self._serve(spec) for name, spec in specs.items()}

    def _serve(self, spec: CollectionSpec) -> ServedCollection:
        known = self._served.get(spec.name)
        if known is not None and known.spec == spec:
            return known
        make = self._dependencies.make_shard
        shards = tuple(tuple(make(spec, shard, r) for r in range(spec.replicas)) for shard in range(spec.shards))
        settings = self._dependencies.settings
        deadline_s = settings.search_deadline_ms / 1000
        fan_out = FanOut(
            shards,
            spec.fingerprint,
            deadline_s,
            metrics=self._metrics.fan_out(spec.name, spec.shards),
            under_way_max=settings.search_batches_in_flight,
        )
        lexical = LexicalFanOut(shards, deadline_s)
        return ServedCollection(spec, shards, fan_out, lexical, self.embedder(spec.model))

    def _refresh_in_background(self) -> None:
        if self._running is None and self._clock() - self._refreshed_at >= REFRESH_S:
            self._running = asyncio.create_task(self._refresh())
            self._running.add_done_callback(self._refresh_ended)

    async def get(self, name: str) -> ServedCollection:
        """A collection by name; raises NotFound after looking anew."""
        if name in self._served:
            self._refresh_in_background()
            return self._served[name]
        await self.refresh()
        if name not in self._served:
            raise NotFound(f"there is no collection {name!r}")
        return self._served[name]

    async def list(self) -> list[ServedCollection]:
        """All collections, by name."""
        if self._served:
            self._refresh_in_background()
        else:
            await self.refresh()
        return [self._served[name] for name in sorted(self._served)]
