"""The ingest process: `python -m streams.worker`.

The set of topics of a Faust app is fixed while it runs. When a collection comes or goes, the worker
drains what is in flight, commits, and starts itself anew in the same process id; events wait in
Kafka meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum, auto
from functools import lru_cache
from typing import NoReturn

import faust
import structlog
from prometheus_client import start_http_server

from actors.cluster import connect, leave
from actors.decoding.pool import DecodingPool
from actors.handles import EmbedderClient, ShardClient
from actors.log.admin import ensure_topic, topic_identity
from actors.log.connection import bootstrap_servers
from actors.log.producer import FLUSH_S, LogProducer
from actors.log.registry import CollectionRegistry
from actors.logs import configure
from actors.objects import ObjectStore
from contract.errors import BrokerUnavailable, NotFound, RiverlensError
from contract.events import CollectionSpec
from contract.settings import Settings, load_settings
from contract.telemetry import LogField
from contract.topics import KNOWN_BYTES_TOPIC, system_topic_specs
from streams import metrics
from streams.app import lease_s, make_app
from streams.continuity import Continuity
from streams.duplicates import Duplicates
from streams.known_bytes import KnownBytesTable, TableFolder
from streams.lease import Lease
from streams.outcome import SourceEvent
from streams.pipeline import Acknowledge, Pipeline
from streams.redriven import NewerEvents, events_reader

_log = structlog.get_logger()
_LOOK_EVERY_S = 1.0
_DRAIN_WITHIN_S = 20.0
_STOP_WITHIN_S = 10.0
_LEAVE_WITHIN_S = 10.0


class End(Enum):
    """Why a run of the worker ended."""

    STOPPED = auto()
    COLLECTIONS_CHANGED = auto()
    FAILED = auto()


class SystemClock:
    """The real clock."""

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return int(time.time() * 1000)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


class Collections:
    """The collections this run serves, refreshed in a thread so that look-ups never block."""

    def __init__(self, registry: CollectionRegistry) -> None:
        self._registry = registry
        self._served: dict[str, str] | None = None
        self.specs: dict[str, CollectionSpec] = {}

    def __call__(self, name: str) -> CollectionSpec:
        """The spec as last seen; raises NotFound, also for another collection that bears the name meanwhile."""
        spec = self.specs.get(name)
        if spec is None or (self._served is not None and self._served.get(name) != spec.incarnation):
            raise NotFound(f"there is no collection {name!r}")
        return spec

    def serve(self) -> dict[str, str]:
        """The collections of this run, with their incarnations: from here on no other is meant by a name."""
        self._served = self.incarnations()
        return self._served

    async def refresh(self) -> None:
        """See what is new; an unreachable broker leaves what is known."""
        try:
            self.specs = await asyncio.to_thread(self._registry.refresh)
        except BrokerUnavailable as error:
            _log.warning("collections cannot be read", **{LogField.ERROR: error.detail})

    def incarnations(self) -> dict[str, str]:
        """What a run depends on: names, and which life of each."""
        return {name: spec.incarnation for name, spec in self.specs.items()}


async def serve(settings: Settings, registry: CollectionRegistry, stopping: asyncio.Event) -> End:
    """Run until told to stop, until a collection comes or goes, or until a failure."""
    collections = Collections(registry)
    await collections.refresh()
    while not collections.specs:
        if await _stopped_within(stopping, _LOOK_EVERY_S):
            return End.STOPPED
        await collections.refresh()
    served = collections.serve()
    producer = LogProducer(settings, "riverlens-ingest", gapless=True)
    decoder = DecodingPool(settings)
    metrics.decoding.load = decoder.load
    read_events, close_reader = events_reader(settings)

    @lru_cache
    def embedder(model: str) -> EmbedderClient:
        return EmbedderClient(model, "ingest", settings.embedders)

    @lru_cache
    def shards(collection: str, incarnation: str, shard: int, replicas: int) -> tuple[ShardClient, ...]:
        return tuple(ShardClient(collection, incarnation, shard, replica) for replica in range(replicas))

    async def submit(batch: Sequence[tuple[SourceEvent, Acknowledge]]) -> None:
        await pipeline.submit(batch)

    tables = await asyncio.to_thread(Tables, settings, collections)
    app = make_app(settings, served, submit, tables.folder.path)
    table = tables.join(app)
    lease = Lease(lease_s(settings), time.monotonic)
    pipeline = Pipeline(
        settings,
        collections=collections,
        objects=ObjectStore(settings),
        embedder=embedder,
        log=producer,
        decoder=decoder,
        duplicates=Duplicates(table, lambda spec, shard: shards(spec.name, spec.incarnation, shard, spec.replicas)),
        clock=SystemClock(),
        overtaken=NewerEvents(read_events),
        continuity=Continuity(read_events),
        may_publish=lease.check,
    )
    app.finalize()
    keeping = asyncio.create_task(lease.keep())
    await app.start()
    _log.info("ingest is running", **{LogField.COLLECTION: ", ".join(sorted(served))})
    end = End.STOPPED
    while not await _stopped_within(stopping, _LOOK_EVERY_S):
        if _failed(pipeline, app, lease):
            end = End.FAILED
            break
        await collections.refresh()
        if collections.incarnations() != served:
            end = End.COLLECTIONS_CHANGED
            break
    await _end(keeping, lease)
    # A worker without its partitions must not send what it still has in hand.
    flush_s = FLUSH_S if lease.lost is None else 0.0
    if end is not End.FAILED:
        try:
            await asyncio.wait_for(pipeline.drain(), _DRAIN_WITHIN_S)
            # What is not confirmed by then is of collections that ended.
            flush_s = 0.0
        except TimeoutError:
            _log.warning("stopped with batches in flight; they are repeated at the next start")
    try:
        await asyncio.wait_for(app.stop(), _STOP_WITHIN_S)
    except TimeoutError:
        _log.warning("the Kafka client does not end; the process leaves it behind")
    await asyncio.to_thread(producer.close, flush_s)
    await asyncio.to_thread(decoder.close)
    await asyncio.to_thread(close_reader)
    await tables.close()
    return end


class Tables:
    """The known-bytes table of a run, with its folder, its producer and its sweep."""

    def __init__(self, settings: Settings, collections: Collections) -> None:
        """Blocks. Raises BrokerUnavailable (retryable), TopicShapeMismatch."""
        # The changelog is made here, too: a cluster of an earlier release has none.
        for spec in system_topic_specs(settings.kafka_retention_ms):
            if spec.name == KNOWN_BYTES_TOPIC:
                ensure_topic(settings, spec)
        self.folder = TableFolder(settings.home_path, topic_identity(settings, KNOWN_BYTES_TOPIC))
        self._collections = collections
        self._producer = LogProducer(settings, "riverlens-ingest-tables")
        self._sweeping: asyncio.Task[None] | None = None

    def join(self, app: faust.App) -> KnownBytesTable:
        """Make the table a part of an app that does not run yet."""
        table = KnownBytesTable(app, self._producer)
        self._sweeping = asyncio.create_task(self._sweep(table))
        return table

    async def _sweep(self, table: KnownBytesTable) -> None:
        """Once the table is restored, forget what belongs to collections that are gone."""
        await table.restored()
        removed = await table.sweep(set(self._collections.incarnations().values()))
        if removed:
            _log.info("known bytes of dropped collections are forgotten", **{LogField.COUNT: removed})

    async def close(self) -> None:
        """Release everything."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            (swept,) = await asyncio.gather(self._sweeping, return_exceptions=True)
            if isinstance(swept, Exception):
                _log.error("entries of dropped collections could not be removed", **{LogField.ERROR: repr(swept)})
        await asyncio.to_thread(self._producer.close, 0.0)
        self.folder.close()


def _failed(pipeline: Pipeline, app: faust.App, lease: Lease) -> bool:
    """Whether the run cannot go on; says why in the log."""
    if lease.lost is not None:
        _log.warning("ingest gives its partitions up", **{LogField.ERROR: lease.lost.detail})
        return True
    if pipeline.failure is not None or app.crashed:
        _log.error("ingest failed", **{LogField.ERROR: repr(pipeline.failure or app.crash_reason)})
        return True
    return False


async def _end(keeping: asyncio.Task[None], lease: Lease) -> None:
    """End the task that keeps the lease; raises what it failed with beside a lost lease, which `serve` knows of."""
    keeping.cancel()
    await asyncio.wait({keeping})
    if not keeping.cancelled() and (error := keeping.exception()) is not lease.lost and error is not None:
        raise error


async def _stopped_within(stopping: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(stopping.wait(), seconds)
    except TimeoutError:
        return False
    return True


async def _run(settings: Settings) -> End:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    on_signal: Callable[[], None] = stopping.set
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    registry = CollectionRegistry(settings)
    end = End.FAILED
    try:
        end = await serve(settings, registry, stopping)
        # Told to stop while it was about to start anew.
        if end is End.COLLECTIONS_CHANGED and stopping.is_set():
            end = End.STOPPED
    finally:
        _leave_within(_LEAVE_WITHIN_S, 0 if end is End.STOPPED else 1)
        registry.close()
    return end


def _leave_within(seconds: float, status: int) -> None:
    """End the process after that time if it has not ended by itself.

    The event loop waits for every task to take its cancellation; some of the Kafka client never do while their broker
    is away.
    """
    watchdog = threading.Timer(seconds, os._exit, (status,))
    watchdog.daemon = True
    watchdog.start()


def _leave_when_told() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)


def _leave(*_: object) -> NoReturn:
    raise SystemExit(0)


def _show_metrics(settings: Settings) -> None:
    if not settings.ingest_metrics_port:
        return
    try:
        start_http_server(settings.ingest_metrics_port, settings.http_host)
    except OSError as error:
        # Another worker of this machine has it, with the same settings; to ingest matters more.
        _log.warning("the port of the metrics is taken; this worker shows none", **{LogField.ERROR: str(error)})


def main() -> int:
    """Run the `ingest` process of the Procfile; the exit status."""
    settings = load_settings()
    configure(settings, "ingest")
    # Before and after the event loop has the signals: a stop while waiting for the broker or for Ray is clean, too.
    _leave_when_told()
    try:
        _show_metrics(settings)
        bootstrap_servers(settings)
        connect(settings)
        end = asyncio.run(_run(settings))
        _leave_when_told()
        leave(settings)
    except RiverlensError as error:
        _log.error("ingest stops", **{LogField.CODE: error.code, LogField.ERROR: error.detail})
        return 1
    if end is End.COLLECTIONS_CHANGED:
        _log.info("collections changed; starting anew")
        os.execv(sys.executable, [sys.executable, "-m", "streams.worker"])  # noqa: S606
    _log.info("ingest stopped")
    return 0 if end is End.STOPPED else 1


if __name__ == "__main__":
    sys.exit(main())
