"""A running system with a collection that is loaded, drained and tuned: what the measurements stand on."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.index.datasets import Dataset
from benchmarks.index.tuning import Tuned, smallest_effort
from benchmarks.load import LoadReport, LoadRequest
from benchmarks.running import Running
from benchmarks.serving.asking import WHOLE, Floats, K, recall_of, send, vector_requests
from benchmarks.serving.writing import LogWriter
from contract.settings import Settings
from serving.client import Client, Collection

COLLECTION: Final = "benchmark"
SHARDS: Final = 4
RECALL: Final = 0.95

_READY_WITHIN_S = 120.0
_LOOK_EVERY_S = 0.5
_TUNING_CONNECTIONS = 8
_TUNING_ATTEMPTS = 3
_TUNING_S = 60.0
_CAPACITY_CONNECTIONS = 32


class TimeIsUp(Exception):
    """A phase did not end within its time."""


@dataclass(frozen=True)
class Plan:
    """Durations and sizes of one run. `rates` are shares of the capacity in closed loop."""

    connections: tuple[int, ...] = (16, 32, 64)
    open_connections: int = 256
    rates: tuple[float, ...] = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1)
    round_s: float = 8.0
    warm_s: float = 1.0
    ingest_per_s: float = 500.0
    ingest_rounds: int = 3
    share_under_ingest: float = 0.5
    probes: int = 200
    uploads: int = 200
    load_limit_s: float = 300.0
    peer_load_limit_s: float = 900.0

    @property
    def arriving(self) -> int:
        """Points that the phases insert under load, with room for what takes longer than planned."""
        ingest_s = (self.ingest_rounds + 2) * (self.round_s + self.warm_s + 10) + 60
        return int(ingest_s * self.ingest_per_s) + 2 * self.probes


class Stage:
    """The system under measurement. `prepare` loads and tunes; the phases then ask it."""

    def __init__(self, running: Running, dataset: Dataset, plan: Plan) -> None:
        self.client: Client = running.client
        self.dataset = dataset
        self.plan = plan
        self.ef_search = 0
        self.recall = 0.0
        self.load_s = 0.0
        self.collection = self._make()
        self.writer = LogWriter(Settings(home=running.home), self.collection)
        self._arriving = itertools.count()
        self._capacity: float | None = None

    def close(self) -> None:
        """Release the connection to the log."""
        self.writer.close()

    def _make(self) -> Collection:
        self.client.create_collection(COLLECTION, shards=SHARDS, partitions=SHARDS)
        until = time.monotonic() + _READY_WITHIN_S
        while (made := self.client.collection(COLLECTION)).state != "ready":
            if time.monotonic() > until:
                raise TimeIsUp(f"the collection is {made.state} after {_READY_WITHIN_S:.0f} s")
            time.sleep(_LOOK_EVERY_S)
        wanted = self.dataset.points.shape[1]
        if made.dimension != wanted:
            raise ValueError(f"model {made.model} has {made.dimension} dimensions, the vectors have {wanted}")
        return made

    def prepare(self) -> None:
        """Load the points, wait until every shard has them in its graph, and tune ef_search.

        Raises:
            TimeIsUp: loading takes longer than the plan allows.
            ValueError: the recall is not reached.
        """
        points = self.dataset.points
        print(f"loading {len(points)} points through the embedding log", flush=True)
        began = time.monotonic()
        self.writer.load([str(row) for row in range(len(points))], points, self._applied)
        self.await_drained(len(points), began + self.plan.load_limit_s)
        self.load_s = time.monotonic() - began
        print(f"loaded and drained in {self.load_s:.0f} s", flush=True)
        tuned = self._tune()
        self.ef_search, self.recall = tuned.effort, tuned.recall
        print(f"recall@{K} {tuned.recall:.4f} over HTTP at ef_search {tuned.effort}", flush=True)
        if not tuned.reached:
            raise ValueError(f"recall@{K} of {RECALL} is not reached")

    def _applied(self) -> Mapping[int, int]:
        return self.client.collection(COLLECTION).applied_offsets

    def shards(self) -> list[dict[str, Any]]:
        """Every shard replica as the status endpoint has it, by number."""
        return sorted(self.client.collection(COLLECTION).raw["shards"], key=lambda one: int(one["shard"]))

    def await_drained(self, points: int, until: float) -> None:
        """Return once at least `points` points are searchable and each shard has brought to its graph what it will.

        A shard at rest leaves an eighth of `growing_max` in its growing segment, rather than copy its graph for so few.
        """
        at_rest = max(1, Settings().growing_max // 8)
        told = time.monotonic()
        while True:
            shards = self.shards()
            ready = all(one["state"] == "ready" for one in shards)
            loaded, growing = sum(one["points"] for one in shards), sum(one["growing"] for one in shards)
            if ready and loaded >= points and all(one["growing"] < at_rest for one in shards):
                return
            if time.monotonic() > until:
                raise TimeIsUp(f"{loaded} of {points} points are there, {growing} of them not in the graph")
            if time.monotonic() - told > 10:
                told = time.monotonic()
                print(f"  {loaded} of {points} points searchable, {growing} of them growing", flush=True)
            time.sleep(_LOOK_EVERY_S)

    def _tune(self) -> Tuned:
        limit = Settings().ef_search_max
        return smallest_effort(self._measured_recall, RECALL, K, limit)

    def _measured_recall(self, ef_search: int) -> float:
        requests = vector_requests(COLLECTION, self.dataset.queries, ef_search)
        for _ in range(_TUNING_ATTEMPTS):
            report = self.send(requests, _TUNING_CONNECTIONS, _TUNING_S, repeat=False, keep=True)
            if not report.failed and not report.partial and report.requests == len(requests):
                found = recall_of(report.answers, self.dataset.neighbours)
                print(f"  ef_search {ef_search}: recall@{K} {found:.4f}", flush=True)
                return found
            print(f"  ef_search {ef_search}: {told_of(report)}; once more", flush=True)
        raise ValueError(f"no whole answer to every query at {_TUNING_CONNECTIONS} connections")

    def requests(self) -> tuple[LoadRequest, ...]:
        """The queries as requests at the tuned ef_search."""
        return vector_requests(COLLECTION, self.dataset.queries, self.ef_search)

    def send(
        self, requests: tuple[LoadRequest, ...], connections: int, seconds: float, whole: str = WHOLE, **more: Any
    ) -> LoadReport:
        """One run of the load generator against the system."""
        return send(self.client.base_url, requests, connections, seconds, whole=whole, **more)

    def closed(self, connections: int) -> LoadReport:
        """One round of vector searches in closed loop."""
        seconds = self.plan.round_s + self.plan.warm_s
        return self.send(self.requests(), connections, seconds, warm_s=self.plan.warm_s)

    def open(self, rate: float, seconds: float | None = None) -> LoadReport:
        """Vector searches at a fixed rate, for a round unless `seconds` says otherwise."""
        length = (self.plan.round_s if seconds is None else seconds) + self.plan.warm_s
        connections = self.plan.open_connections
        return self.send(self.requests(), connections, length, warm_s=self.plan.warm_s, rate=rate)

    @property
    def capacity(self) -> float:
        """Vector searches per second in closed loop; measured when nobody has told."""
        if self._capacity is None:
            self._capacity = self.closed(_CAPACITY_CONNECTIONS).qps
            print(f"capacity in closed loop: {self._capacity:.0f}/s", flush=True)
        return self._capacity

    @capacity.setter
    def capacity(self, qps: float) -> None:
        self._capacity = qps

    def arriving(self) -> Iterator[tuple[str, Floats]]:
        """Points that were not inserted yet, with their ids."""
        for row in self._arriving:
            if row >= len(self.dataset.arriving):
                return
            yield str(len(self.dataset.points) + row), self.dataset.arriving[row]


def told_of(report: LoadReport) -> str:
    """One line for a person."""
    line = (
        f"{report.qps:.0f}/s, p50 {report.p50_ms:.1f} ms, p95 {report.p95_ms:.1f} ms, p99 {report.p99_ms:.1f} ms, "
        f"{report.failed} failed, {report.partial} partial, generator {report.cpu_share:.0%} of a core"
    )
    return line if not report.failed else f"{line}, {report.failures}"
