"""Prometheus metrics of the API, under the names of contract.telemetry."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from actors.messages import ShardStatus
from contract import telemetry
from contract.telemetry import Metric

# From a cached text on a small collection to a search that waits for its receipt.
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one app, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.uploads = self._counter(telemetry.UPLOADS)
        self.searches = self._counter(telemetry.SEARCHES)
        self.confidence = self._counter(telemetry.CONFIDENCE)
        self.query_cache = self._counter(telemetry.QUERY_CACHE)
        self.query_cache_entries = self._gauge(telemetry.QUERY_CACHE_ENTRIES)
        stages = telemetry.SEARCH_STAGE_SECONDS
        self.search_stage = Histogram(
            stages.name, stages.help, stages.labels, buckets=_BUCKETS_S, registry=self._registry
        )
        self._shards = self._gauge(telemetry.SHARDS_TOTAL)
        self._answering = self._gauge(telemetry.SHARDS_ANSWERING)
        self._points = self._gauge(telemetry.POINTS)
        self._staleness = self._gauge(telemetry.STALENESS_SECONDS)
        self._lag = self._gauge(telemetry.CONSUMER_LAG)
        self._applied = self._gauge(telemetry.APPLIED_OFFSET)
        self._snapshot_age = self._gauge(telemetry.SNAPSHOT_AGE_SECONDS)
        self._recall = self._gauge(telemetry.RECALL)
        self._recall_samples = self._gauge(telemetry.RECALL_SAMPLES)
        self._dead = self._gauge(telemetry.DEAD_POINTS)

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self._registry)

    def _gauge(self, metric: Metric) -> Gauge:
        return Gauge(metric.name, metric.help, metric.labels, registry=self._registry)

    def clear_shards(self) -> None:
        """Forget what was said of shards, so that a dropped collection leaves the page."""
        per_shard = (self._points, self._staleness, self._lag, self._applied, self._snapshot_age)
        of_index = (self._recall, self._recall_samples, self._dead)
        for gauge in (self._shards, self._answering, *per_shard, *of_index):
            gauge.clear()

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

    def render(self) -> bytes:
        """The page in Prometheus's text format."""
        return generate_latest(self._registry)
