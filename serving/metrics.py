"""Prometheus metrics of the API, under the names of contract.telemetry."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from types import TracebackType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from actors.decoding.metrics import DecodingMetrics
from actors.decoding.pool import DecodingLoad
from actors.messages import DelayHistogram, ShardStatus
from contract import telemetry
from contract.errors import ShardUnavailable
from contract.telemetry import Metric
from serving.schemas import EmbedderBody

# From a cached text on a small collection to a search that waits for its receipt.
_SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0)


class _Delays(Collector):
    """Histograms that the shards count, as they were last told."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, ...], DelayHistogram] = {}

    def set(self, labels: tuple[str, ...], histogram: DelayHistogram) -> None:
        self._told[labels] = histogram

    def clear(self) -> None:
        self._told.clear()

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """One family with a histogram per replica; Prometheus wants counts up to each bound."""
        metric = telemetry.UPLOAD_TO_SEARCHABLE_SECONDS
        family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, told in self._told.items():
            bounds = [*(str(bound) for bound in told.bounds_s), "+Inf"]
            family.add_metric(labels, list(zip(bounds, accumulate(told.counts), strict=True)), told.sum_s)
        return [family]


class FanOutMetrics:
    """What the fan-out of one collection tells; labels are looked up once."""

    def __init__(self, metrics: Metrics, collection: str, shards: int) -> None:
        self._calls = metrics.shard_calls
        self._collection = collection
        self._seconds = [metrics.shard_call_seconds.labels(collection, str(shard)) for shard in range(shards)]
        self._hedges = [metrics.shard_hedges.labels(collection, str(shard)) for shard in range(shards)]
        self._hedges_won = [metrics.shard_hedges_won.labels(collection, str(shard)) for shard in range(shards)]
        self.in_flight = metrics.shard_calls_in_flight.labels(collection)
        self._batches = metrics.fan_out_batches.labels(collection)
        self._queries = metrics.fan_out_queries.labels(collection)
        self._coverage = metrics.coverage.labels(collection)

    def batch(self, queries: int) -> None:
        """A batch of so many queries leaves."""
        self._batches.inc()
        self._queries.inc(queries)

    def covered(self, share: float, queries: int) -> None:
        """So many queries are answered from this share of the shards."""
        for _ in range(queries):
            self._coverage.observe(share)

    def call(self, shard: int) -> ShardCall:
        """Around one call to a shard: how long it took, and what became of it."""
        return ShardCall(self, shard)

    def ended(self, shard: int, seconds: float, outcome: str) -> None:
        """A call to a shard took this long and ended so."""
        self._seconds[shard].observe(seconds)
        self._calls.labels(self._collection, str(shard), outcome).inc()

    def hedge_sent(self, shard: int) -> None:
        """A second replica of a shard is asked because the first is slow."""
        self._hedges[shard].inc()

    def hedge_won(self, shard: int) -> None:
        """The second replica answered first."""
        self._hedges_won[shard].inc()


class ShardCall:
    """One call to a shard, as a context manager."""

    def __init__(self, metrics: FanOutMetrics, shard: int) -> None:
        self._metrics = metrics
        self._shard = shard
        self._started = 0.0
        self._abandoned = False

    def is_abandoned(self) -> None:
        """The call is cancelled because nobody waits for it, not because it is late."""
        self._abandoned = True

    def __enter__(self) -> ShardCall:
        self._metrics.in_flight.inc()
        self._started = time.perf_counter()
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        seconds = time.perf_counter() - self._started
        self._metrics.in_flight.dec()
        if error is None:
            outcome = "answered"
        elif isinstance(error, asyncio.CancelledError):
            outcome = "abandoned" if self._abandoned else "late"
        else:
            outcome = "unavailable" if isinstance(error, ShardUnavailable) else "failed"
        self._metrics.ended(self._shard, seconds, outcome)


class Metrics:
    """The metrics of one app, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.uploads = self._counter(telemetry.UPLOADS)
        self.uploads_refused = self._counter(telemetry.UPLOADS_REFUSED)
        self.uploads_in_flight = self._gauge(telemetry.UPLOADS_IN_FLIGHT)
        self.upload_bytes_in_flight = self._gauge(telemetry.UPLOAD_BYTES_IN_FLIGHT)
        self.searches = self._counter(telemetry.SEARCHES)
        self.search_bytes_in_flight = self._gauge(telemetry.SEARCH_BYTES_IN_FLIGHT)
        self.confidence = self._counter(telemetry.CONFIDENCE)
        self.query_cache = self._counter(telemetry.QUERY_CACHE)
        self.query_cache_entries = self._gauge(telemetry.QUERY_CACHE_ENTRIES)
        self.search_stage = self._histogram(telemetry.SEARCH_STAGE_SECONDS)
        self.coverage = self._histogram(telemetry.COVERAGE_RATIO, _SHARES)
        self.shard_calls = self._counter(telemetry.SHARD_CALLS)
        self.shard_call_seconds = self._histogram(telemetry.SHARD_CALL_SECONDS)
        self.shard_calls_in_flight = self._gauge(telemetry.SHARD_CALLS_IN_FLIGHT)
        self.shard_hedges = self._counter(telemetry.SHARD_HEDGES)
        self.shard_hedges_won = self._counter(telemetry.SHARD_HEDGES_WON)
        self.search_admissions = self._counter(telemetry.SEARCH_ADMISSIONS)
        self.searches_in_flight = self._gauge(telemetry.SEARCHES_IN_FLIGHT)
        self.fan_out_batches = self._counter(telemetry.FAN_OUT_BATCHES)
        self.fan_out_queries = self._counter(telemetry.FAN_OUT_QUERIES)
        self.http_requests = self._counter(telemetry.HTTP_REQUESTS)
        self.http_seconds = self._histogram(telemetry.HTTP_REQUEST_SECONDS)
        self.http_in_flight = self._gauge(telemetry.HTTP_IN_FLIGHT)
        self._delays = _Delays()
        self._registry.register(self._delays)
        self._shards = self._gauge(telemetry.SHARDS_TOTAL)
        self._answering = self._gauge(telemetry.SHARDS_ANSWERING)
        self._points = self._gauge(telemetry.POINTS)
        self._staleness = self._gauge(telemetry.STALENESS_SECONDS)
        self._lag = self._gauge(telemetry.CONSUMER_LAG)
        self._lag_messages = self._gauge(telemetry.LAG_MESSAGES)
        self._drain = self._gauge(telemetry.DRAIN_SECONDS)
        self._applied = self._gauge(telemetry.APPLIED_OFFSET)
        self._snapshot_age = self._gauge(telemetry.SNAPSHOT_AGE_SECONDS)
        self._recall = self._gauge(telemetry.RECALL)
        self._recall_samples = self._gauge(telemetry.RECALL_SAMPLES)
        self._dead = self._gauge(telemetry.DEAD_POINTS)
        self._ready = self._gauge(telemetry.REPLICA_READY)
        self._started = self._gauge(telemetry.SHARD_START_TIME)
        self._memory = self._gauge(telemetry.SHARD_MEMORY)
        self._store = self._gauge(telemetry.STORE_BYTES)
        self._machine_memory = self._gauge(telemetry.MACHINE_MEMORY)
        self._machine_memory_available = self._gauge(telemetry.MACHINE_MEMORY_AVAILABLE)
        self._disk = self._gauge(telemetry.DISK)
        self._disk_free = self._gauge(telemetry.DISK_FREE)
        self._embedders = self._gauge(telemetry.EMBEDDER_READY)

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self._registry)

    def _gauge(self, metric: Metric) -> Gauge:
        return Gauge(metric.name, metric.help, metric.labels, registry=self._registry)

    def _histogram(self, metric: Metric, buckets: Sequence[float] = _BUCKETS_S) -> Histogram:
        return Histogram(metric.name, metric.help, metric.labels, buckets=buckets, registry=self._registry)

    def fan_out(self, collection: str, shards: int) -> FanOutMetrics:
        """What the fan-out of one collection tells."""
        return FanOutMetrics(self, collection, shards)

    def watch_decoding(self, load: Callable[[], DecodingLoad]) -> None:
        """Tell of a decoding pool, too."""
        self._registry.register(DecodingMetrics(load))

    def clear_parts(self) -> None:
        """Forget what was said of shards and embedders, so that a dropped collection leaves the page."""
        per_shard = (self._points, self._staleness, self._lag, self._applied, self._snapshot_age)
        of_index = (self._recall, self._recall_samples, self._dead)
        per_replica = (self._ready, self._started, self._memory, self._store)
        of_machine = (self._machine_memory, self._machine_memory_available, self._disk, self._disk_free)
        of_collection = (self._shards, self._answering, self._lag_messages, self._drain)
        for gauge in (*of_collection, *per_shard, *of_index, *per_replica, *of_machine, self._embedders):
            gauge.clear()
        self._delays.clear()

    def observe_replica(self, collection: str, shard: int, replica: int, status: ShardStatus | None) -> None:
        """Take over what one replica has counted; None for one that does not answer."""
        labels = (collection, str(shard), str(replica))
        self._ready.labels(*labels).set(status is not None and status.state == "ready")
        if status is None:
            return
        if status.upload_to_searchable is not None:
            self._delays.set(labels, status.upload_to_searchable)
        if status.started_at_ms is not None:
            self._started.labels(*labels).set(status.started_at_ms / 1000)
        self._store.labels(*labels).set(status.store_bytes)
        if (machine := status.machine) is not None:
            self._memory.labels(*labels).set(machine.resident_bytes)
            self._machine_memory.labels(*labels).set(machine.memory_bytes)
            self._machine_memory_available.labels(*labels).set(machine.memory_available_bytes)
            self._disk.labels(*labels).set(machine.disk_bytes)
            self._disk_free.labels(*labels).set(machine.disk_free_bytes)

    def observe_embedders(self, embedders: Iterable[EmbedderBody]) -> None:
        """Set which embedders answer."""
        for one in embedders:
            self._embedders.labels(one.model, one.role, str(one.index)).set(one.state == "ready")

    def observe_shards(self, collection: str, shards_total: int, answering: dict[int, ShardStatus]) -> None:
        """Set the gauges of one collection; `answering` holds one status per shard that answered."""
        self._shards.labels(collection).set(shards_total)
        self._answering.labels(collection).set(len(answering))
        for shard, status in answering.items():
            self._points.labels(collection, str(shard)).set(status.points)
            self._staleness.labels(collection, str(shard)).set(status.freshness.staleness_s)
            self._lag.labels(collection, str(shard)).set(status.consumer_lag)
            self._dead.labels(collection, str(shard)).set(status.dead)
            self._recall_samples.labels(collection, str(shard)).set(status.recall_samples)
            if status.recall_at_10 is not None:
                self._recall.labels(collection, str(shard)).set(status.recall_at_10)
            if status.snapshot_at_ms is not None:
                age_s = max(0.0, time.time() - status.snapshot_at_ms / 1000)
                self._snapshot_age.labels(collection, str(shard)).set(age_s)
            for partition, offset in status.freshness.applied_offsets.items():
                self._applied.labels(collection, str(partition)).set(offset)

    def observe_lag(self, collection: str, messages: int, drain_s: float | None) -> None:
        """Set what one collection is behind by."""
        self._lag_messages.labels(collection).set(messages)
        if drain_s is not None:
            self._drain.labels(collection).set(drain_s)

    def render(self) -> bytes:
        """The page in Prometheus's text format."""
        return generate_latest(self._registry)
