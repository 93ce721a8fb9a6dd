"""The shard actor: one replica of one shard, a view of its partitions of the embedding log."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import ray
import structlog
from ray.util import get_node_ip_address
from rocksdict import DbClosedError

from actors.call_context import answering
from actors.index.engine import EngineParameters, ShardEngine
from actors.index.graph import give_way
from actors.index.snapshots import Snapshots
from actors.lexical.following import LexicalFollower
from actors.log.reader import KafkaLogReader
from actors.logs import configure
from actors.machine import machine_state
from actors.messages import (
    Freshness,
    LexicalSearch,
    PointState,
    ShardScan,
    ShardScanResult,
    ShardSearch,
    ShardSearchResult,
    ShardStatus,
)
from actors.recovery import LogState, Recovery, SnapshotKeeper, is_damage
from actors.replica import AppliedWaiters, Replica
from actors.scanning import scan
from actors.search_port.frames import SearchAddress
from actors.search_port.server import SearchPort
from actors.snapshot_objects import SnapshotObjects, snapshots_prefix
from contract.errors import FingerprintMismatch, InvalidRequest, ShardUnavailable, Unavailable
from contract.events import CollectionSpec
from contract.settings import Settings
from contract.telemetry import LogField
from contract.topics import partitions_of_shard

_log = structlog.get_logger()
_POLL_S = 0.05
_DRAIN_PAUSE_S = 0.02
_SEARCH_THREADS = 4
_STOP_S = 10.0
_LAST_SNAPSHOT_S = 8.0
_LEXICAL_PAUSE_S = 0.2
_LEXICAL_RETRY_S = 10.0
_RECALL_PAUSE_S = 0.5
# Share of one processor that measuring recall may take.
_RECALL_LOAD = 0.02
# Threads that wait for Python's lock ask for it after this long: a search is then held up by less
# than its own length when records are being applied.
_SWITCH_S = 0.0001

Answer = TypeVar("Answer")


def shard_folder(settings: Settings, collection: str, incarnation: str, shard: int, replica: int) -> Path:
    """Where a shard replica keeps its store."""
    return settings.home_path / "shards" / collection / incarnation / f"{shard}-{replica}"


def snapshot_folder(settings: Settings, collection: str, incarnation: str, shard: int, replica: int) -> Path:
    """Where a shard replica keeps its snapshots: beside the stores, so that a lost store leaves them."""
    return settings.home_path / "snapshots" / collection / incarnation / f"{shard}-{replica}"


# A small claim: on a shared machine a shard mostly waits. One that died is started anew by the supervisor.
@ray.remote(num_cpus=0.25, max_restarts=0, max_task_retries=0)
class Shard:
    """Tails the log in one thread, keeps graph, words and snapshots in others, and answers in a pool of threads.

    Methods are those of `handles.ShardClient`. All but `status`, `wait_applied` and `close` raise
    ShardUnavailable (retryable) until the store is open, and while it is built from a log that is
    read from its start: a deleted image must not come back until its deletion is read.
    """

    def __init__(self, settings: Settings, spec: CollectionSpec, shard: int, replica: int) -> None:
        configure(settings, f"shard-{shard}-{replica}", **{LogField.COLLECTION: spec.name})
        sys.setswitchinterval(_SWITCH_S)
        self._started_at_ms = int(time.time() * 1000)
        self._settings = settings
        self._spec = spec
        self._shard = shard
        self._replica_number = replica
        self._partitions = partitions_of_shard(shard, spec.shards, spec.partitions)
        self._pool = ThreadPoolExecutor(_SEARCH_THREADS, thread_name_prefix="search")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiters = AppliedWaiters(self._applied_offset)
        self._engine: ShardEngine | None = None
        self._replica: Replica | None = None
        self._recovery: Recovery | None = None
        self._keeper: SnapshotKeeper | None = None
        self._lexical: LexicalFollower | None = None
        self._port: SearchPort | None = None
        self._error: str | None = None
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._run("tail", self._tail)

    def _run(self, name: str, body: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._guard, args=(body,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _guard(self, body: Callable[[], None]) -> None:
        """Run the body of a thread; what ends it early is the state of the shard."""
        try:
            body()
        except Exception as error:  # noqa: BLE001 - told by `status`, and the supervisor starts the shard anew
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Be `failed` from now on; a damaged store is not opened again."""
        self._error = f"{type(error).__name__}: {error}"
        _log.error(
            "shard failed", exc_info=error, **{LogField.SHARD: self._shard, LogField.REPLICA: self._replica_number}
        )
        if self._recovery is not None and is_damage(error):
            self._recovery.condemn(self._error)

    def _tail(self) -> None:
        spec, settings = self._spec, self._settings
        parameters = EngineParameters(
            fingerprint=spec.fingerprint,
            dimension=spec.dimension,
            m=spec.m,
            ef_construction=spec.ef_construction,
            ef_search=spec.ef_search,
            quantization=spec.quantization,
            vector_type=spec.vector_type,
            filter_fields=spec.filter_fields,
            growing_max=settings.growing_max,
            build_threads=settings.build_threads,
            recall_share=settings.recall_sample_share,
            store_cache_bytes=settings.store_cache_bytes,
            store_write_buffer_bytes=settings.store_write_buffer_bytes,
        )
        place = (spec.name, spec.incarnation, self._shard, self._replica_number)
        snapshots = self._snapshots()
        store = shard_folder(settings, *place)
        recovery = self._recovery = Recovery(store, parameters, snapshots, time.time, self._stopping.wait)
        self._engine = recovery.open(self._log_state)
        # Before the replica, so that no record passes it by.
        lexical = self._lexical = LexicalFollower(self._engine, self._freshness, time.monotonic)
        replica = self._replica = Replica(
            self._engine,
            self._reader,
            self._partitions,
            time.time,
            self._wake_waiters,
            self._heal,
            lexical,
        )
        self._run("drain", self._drain)
        self._run("lexical", self._follow_words)
        if settings.recall_sample_share > 0:
            self._run("recall", self._measure_recall)
        if settings.snapshot_interval_s > 0:
            self._keeper = SnapshotKeeper(snapshots, time.time)
            self._run("snapshots", self._snapshot)
        while not self._stopping.is_set():
            if not replica.step(_POLL_S) and not replica.attached:
                self._stopping.wait(_POLL_S)
        replica.close()

    def _reader(self) -> KafkaLogReader:
        return KafkaLogReader(self._settings, self._spec.name, self._partitions)

    def _log_state(self) -> LogState | None:
        try:
            with contextlib.closing(self._reader()) as reader:
                return LogState(reader.identity(), reader.first_offsets(), reader.end_offsets())
        except Unavailable:
            return None

    def _snapshots(self) -> Snapshots:
        settings, spec = self._settings, self._spec
        folder = snapshot_folder(settings, spec.name, spec.incarnation, self._shard, self._replica_number)
        prefix = f"{snapshots_prefix(spec.name, spec.incarnation)}{self._shard}/"
        remote = SnapshotObjects(settings, prefix) if settings.snapshot_remote else None
        return Snapshots(folder, settings.snapshot_keep, remote)

    def _heal(self, log: LogState) -> ShardEngine | None:
        assert self._recovery is not None  # noqa: S101
        healed = self._recovery.heal(self._opened(), log)
        if healed is not None:
            self._engine = healed
        return healed

    def _drain(self) -> None:
        give_way()
        while not self._stopping.is_set():
            engine = self._opened()
            try:
                drained = engine.drain()
            except DbClosedError:
                # Replaced by a snapshot meanwhile, or about to be.
                drained = False
            if not drained:
                self._stopping.wait(_DRAIN_PAUSE_S)

    def _follow_words(self) -> None:
        give_way()
        pause_s = 0.0
        while self._lexical is not None and not self._stopping.wait(pause_s):
            try:
                pause_s = 0.0 if self._lexical.step() else _LEXICAL_PAUSE_S
            except DbClosedError:
                pause_s = _LEXICAL_PAUSE_S  # replaced by a snapshot meanwhile, or about to be
            except Exception as error:
                if is_damage(error):
                    raise
                # Searches by vector need no words, so they go on; those by words say that they wait.
                _log.exception("the lexical index failed; building it again")
                self._lexical.restart()
                pause_s = _LEXICAL_RETRY_S

    def _measure_recall(self) -> None:
        give_way()
        pause_s = _RECALL_PAUSE_S
        while not self._stopping.wait(pause_s):
            started = time.monotonic()
            try:
                self._opened().measure_recall()
            except DbClosedError:
                continue  # replaced by a snapshot meanwhile, or about to be
            pause_s = max(_RECALL_PAUSE_S, (time.monotonic() - started) / _RECALL_LOAD)

    def _snapshot(self) -> None:
        spec, interval_s = self._spec, self._settings.snapshot_interval_s
        # Shards of one machine start together, and would all write at the same moments.
        turn = self._shard * spec.replicas + self._replica_number + 1
        wait_s = interval_s * turn / (spec.shards * spec.replicas)
        while not self._stopping.wait(wait_s):
            self._take_snapshot()
            wait_s = interval_s

    def _take_snapshot(self) -> None:
        # One that lags behind would push better snapshots of other replicas out.
        if self._keeper is not None and self._replica is not None and self._replica.state == "ready":
            self._keeper.step(self._opened())

    def _wake_waiters(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._waiters.wake)

    def _applied_offset(self, partition: int) -> int:
        return -1 if self._replica is None else self._replica.applied_offset(partition)

    def _opened(self) -> ShardEngine:
        if self._engine is None:
            raise ShardUnavailable(f"shard {self._shard} is opening its store" if self._error is None else self._error)
        return self._engine

    def _answering(self) -> ShardEngine:
        """The engine, for calls that return images."""
        engine = self._opened()
        if self._replica is None or self._replica.rebuilding:
            raise ShardUnavailable(f"shard {self._shard} reads its log from the start")
        return engine

    async def _in_pool(self, work: Callable[[], Answer]) -> Answer:
        # The context says which requests the work is for.
        run = contextvars.copy_context().run
        return await asyncio.get_running_loop().run_in_executor(self._pool, run, self._guarded, work)

    def _guarded(self, work: Callable[[], Answer]) -> Answer:
        """What `work` returns; a store that is closed or damaged makes the shard unavailable."""
        try:
            return work()
        except DbClosedError as error:
            raise ShardUnavailable(f"shard {self._shard} is replacing or closing its store") from error
        except Exception as error:
            if not is_damage(error):
                raise
            self._fail(error)
            raise ShardUnavailable(f"the store of shard {self._shard} is damaged") from error

    async def search_address(self) -> SearchAddress | None:
        """Where this replica takes searches by vector; None where its calls must be encrypted, which Ray's are."""
        if self._port is None and os.environ.get("RAY_USE_TLS", "0") == "0":
            self._port = SearchPort(str(get_node_ip_address()), self._search, _SEARCH_THREADS)  # type: ignore[no-untyped-call]
        return None if self._port is None else self._port.address

    async def search(self, request: ShardSearch) -> ShardSearchResult:
        """One batch of queries, for callers without a search port.

        Raises FingerprintMismatch, InvalidRequest, ShardUnavailable (retryable).
        """
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._search, request)

    def _search(self, request: ShardSearch) -> ShardSearchResult:
        if request.fingerprint != self._spec.fingerprint:
            raise FingerprintMismatch(
                f"the query is of encoder {request.fingerprint}, the collection of {self._spec.fingerprint}"
            )
        engine = self._answering()

        def work() -> ShardSearchResult:
            # Read before the search: what it covers is then surely in the answer.
            freshness = self._freshness()
            return ShardSearchResult(engine.search(request.vectors, request.queries, request.with_payload), freshness)

        with answering("search", request.request_ids):
            return self._guarded(work)

    async def search_lexical(self, request: LexicalSearch) -> ShardSearchResult:
        """One batch of queries by words. Raises InvalidRequest, ShardUnavailable (retryable)."""
        self._answering()
        lexical = self._lexical
        if lexical is None:
            raise ShardUnavailable(f"shard {self._shard} is opening its store")
        with answering("search_lexical", request.request_ids):
            return await self._in_pool(lambda: lexical.search(request))

    async def fetch(
        self, image_ids: Sequence[str], with_vector: bool = False, request_ids: Sequence[str] = ()
    ) -> list[PointState | None]:
        """What the shard knows of each id. Raises ShardUnavailable (retryable)."""
        engine = self._answering()
        with answering("fetch", request_ids):
            return await self._in_pool(lambda: engine.fetch(image_ids, with_vector))

    async def scan(self, request: ShardScan, request_ids: Sequence[str] = ()) -> ShardScanResult:
        """Searchable points in id order. Raises ShardUnavailable (retryable)."""
        engine = self._answering()
        with answering("scan", request_ids):
            return await self._in_pool(lambda: scan(engine.scan, request))

    async def wait_applied(
        self, partition: int, source_offset: int, timeout_s: float, request_ids: Sequence[str] = ()
    ) -> bool:
        """True once the source offset is applied; False after the time-out. Takes no search thread.

        Raises InvalidRequest for a partition of another shard.
        """
        if partition not in self._partitions:
            raise InvalidRequest(f"partition {partition} is not of shard {self._shard}")
        self._loop = asyncio.get_running_loop()
        with answering("wait_applied", request_ids):
            return await self._waiters.wait(partition, source_offset, timeout_s)

    async def status(self, request_ids: Sequence[str] = ()) -> ShardStatus:
        """State, positions and counts; answers while the store is opened, too."""
        with answering("status", request_ids):
            return await self._in_pool(self._status)

    def _freshness(self) -> Freshness:
        if self._replica is None:
            return Freshness(dict.fromkeys(self._partitions, -1), 0.0)
        return self._replica.freshness()

    def _status(self) -> ShardStatus:
        engine, replica = self._engine, self._replica
        snapshot = self._keeper.newest if self._keeper is not None else None
        recall, recall_samples = engine.recall_at_10() if engine is not None else (None, 0)
        state = "failed" if self._error is not None else "recovering" if replica is None else replica.state
        return ShardStatus(
            collection=self._spec.name,
            shard=self._shard,
            replica=self._replica_number,
            state=state,
            error=self._error or (replica.error if replica is not None else None),
            pid=os.getpid(),
            points=engine.points if engine is not None else 0,
            deleted=engine.deleted if engine is not None else 0,
            growing=engine.growing if engine is not None else 0,
            fingerprint=self._spec.fingerprint,
            log_offsets={p: at.log_offset for p, at in replica.positions().items()} if replica is not None else {},
            high_watermarks=replica.high_watermarks() if replica is not None else {},
            freshness=self._freshness(),
            consumer_lag=replica.consumer_lag() if replica is not None else 0,
            store_bytes=engine.store_bytes() if engine is not None else 0,
            snapshot_at_ms=snapshot.created_at_ms if snapshot is not None else None,
            snapshot_bytes=snapshot.bytes if snapshot is not None else None,
            dead=engine.dead if engine is not None else 0,
            quantization=engine.quantization if engine is not None else None,
            recall_at_10=recall,
            recall_samples=recall_samples,
            upload_to_searchable=replica.delays() if replica is not None else None,
            lexical_points=self._lexical.documents if self._lexical is not None else None,
            started_at_ms=self._started_at_ms,
            machine=machine_state(self._settings.home_path),
        )

    async def close(self) -> None:
        """End the threads, take a last snapshot and close the store; the actor is killed after this."""
        self._stopping.set()
        if self._port is not None:
            await asyncio.to_thread(self._port.close)
        if self._lexical is not None:
            self._lexical.restart()  # a build that is under way ends
        for thread in self._threads:
            await asyncio.to_thread(thread.join, _STOP_S)
        try:
            await asyncio.wait_for(asyncio.to_thread(self._take_snapshot), _LAST_SNAPSHOT_S)
        except TimeoutError:
            _log.warning("the last snapshot takes too long and is given up")
        if self._engine is not None:
            await self._in_pool(self._engine.close)
