"""How searches and inserts share a graph: the ways that were weighed for the engine, side by side.

    python -m benchmarks.index.concurrency --points 50000

Every way keeps the same FAISS graph (bytes, m 16, ef_construction 100) and differs only in how a
search is kept apart from FAISS's `add`. One thread searches, one inserts at a fixed rate.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import faiss

from actors.index.codes import Codec
from actors.index.graph import use_threads
from actors.index.growing import GrowingSegment
from actors.messages import FloatMatrix
from benchmarks.index.datasets import synthetic
from benchmarks.index.truth import percentile_ms

K: Final = 10
EF: Final = 128
GROWING: Final = 1024
DRAIN_STEP: Final = 4
SECONDS: Final = 10.0
_faiss: Any = faiss


class Way(Protocol):
    """One way to keep them apart."""

    copies: str

    def search(self, query: FloatMatrix) -> None:
        """One query, (1, d) float32."""

    def insert(self, vector: FloatMatrix) -> None:
        """One point, (1, d) float32; it may wait for upkeep."""

    def upkeep(self) -> bool:
        """One step of a background thread; False if there is nothing to do."""


class _Common:
    def __init__(self, codec: Codec, graph: Any) -> None:
        self.codec = codec
        self.graph = graph
        self.growing = GrowingSegment("sq8", codec.dimension)
        self.lock = threading.Lock()
        self.next = 0

    def walk(self, graph: Any, query: FloatMatrix) -> None:
        use_threads(1)
        parameters = _faiss.SearchParametersHNSW(efSearch=EF)
        graph.search(self.codec.encode(query), self.codec.candidates(K), params=parameters)

    def scan(self, query: FloatMatrix) -> None:
        view = self.growing.view()
        if len(view.rows):
            view.search(query, K)

    def append(self, vector: FloatMatrix) -> None:
        self.growing.append([self.next], [""], vector)
        self.next += 1

    def insert(self, vector: FloatMatrix) -> None:
        with self.lock:
            self.append(vector)

    def add(self, graph: Any, rows: FloatMatrix) -> None:
        use_threads(1)
        graph.add(self.codec.encode(rows))

    def waiting(self) -> FloatMatrix:
        return self.growing.view().rows


class LockedDrains(_Common):
    """Searches and drains of a few points exclude each other by a lock."""

    copies = "1"

    def search(self, query: FloatMatrix) -> None:
        """One query."""
        with self.lock:
            self.scan(query)
            self.walk(self.graph, query)

    def upkeep(self) -> bool:
        """One step of what the background thread does."""
        if self.growing.queued <= GROWING:
            return False
        with self.lock:
            self.add(self.graph, self.waiting()[:DRAIN_STEP])
            self.growing.drop_first(DRAIN_STEP)
        # A plain lock goes to whoever asks first; let the search be that.
        time.sleep(0)
        return True


class LeftRight(_Common):
    """Two graphs: every point is inserted into the one that is not searched, then into the other."""

    copies = "2"

    def __init__(self, codec: Codec, graph: Any) -> None:
        super().__init__(codec, graph)
        self.other = _faiss.clone_index(graph)
        self.behind: list[FloatMatrix] = []
        self.reading = threading.Lock()

    def search(self, query: FloatMatrix) -> None:
        """One query."""
        self.scan(query)
        # Held by the searches of one side; the writer takes it once to see them out.
        with self.reading:
            self.walk(self.graph, query)

    def upkeep(self) -> bool:
        """One step of what the background thread does."""
        if self.growing.queued <= GROWING:
            return False
        rows = self.waiting()[:GROWING].copy()
        for late in self.behind:
            self.add(self.other, late)
        self.add(self.other, rows)
        self.behind = [rows]
        with self.reading:
            self.graph, self.other = self.other, self.graph
        with self.lock:
            self.growing.drop_first(len(rows))
        return True


class SealedSegments(_Common):
    """Small graphs are sealed one after the other, all are searched, and a background merge joins them."""

    copies = "1, and the merged segments again during a merge"

    def __init__(self, codec: Codec, graph: Any) -> None:
        super().__init__(codec, graph)
        self.sealed: list[Any] = [graph]
        self.rows: list[FloatMatrix] = []

    def search(self, query: FloatMatrix) -> None:
        """One query."""
        self.scan(query)
        for graph in self.sealed:
            self.walk(graph, query)

    def upkeep(self) -> bool:
        """One step of what the background thread does."""
        if self.growing.queued <= GROWING:
            return False
        rows = self.waiting()[:GROWING].copy()
        small = self.codec.new_index(16, 100)
        self.add(small, rows)
        self.rows.append(rows)
        sealed = [*self.sealed, small]
        if len(self.rows) == 4:
            merged = self.codec.new_index(16, 100)
            for some in self.rows:
                self.add(merged, some)
            sealed = [*sealed[:-4], merged]
            self.rows = []
        self.sealed = sealed
        with self.lock:
            self.growing.drop_first(len(rows))
        return True


class CopyOnWrite(_Common):
    """A copy of the graph takes what is new and is published in one assignment."""

    copies = "1, and 2 during a merge"

    def search(self, query: FloatMatrix) -> None:
        """One query."""
        self.scan(query)
        self.walk(self.graph, query)

    def upkeep(self) -> bool:
        """One step of what the background thread does."""
        if self.growing.queued <= GROWING:
            return False
        rows = self.waiting()[:GROWING].copy()
        graph = _faiss.clone_index(self.graph)
        self.add(graph, rows)
        with self.lock:
            self.graph = graph
            self.growing.drop_first(len(rows))
        return True


def _run(body: Callable[[], bool], stopping: threading.Event) -> threading.Thread:
    def loop() -> None:
        while not stopping.is_set():
            if not body():
                stopping.wait(0.002)

    thread = threading.Thread(target=loop)
    thread.start()
    return thread


def _searches(way: Way, queries: FloatMatrix, seconds: float) -> list[float]:
    took = []
    end = time.perf_counter() + seconds
    i = 0
    while (start := time.perf_counter()) < end:
        way.search(queries[i % len(queries)][None])
        took.append(time.perf_counter() - start)
        i += 1
    return took


def measure(way: Way, queries: FloatMatrix, arriving: FloatMatrix, rate: float, seconds: float) -> list[str]:
    """Percentiles alone and beside `rate` inserts a second, and the rate that was reached."""
    alone = _searches(way, queries, seconds / 2)
    stopping = threading.Event()
    inserted = [0]
    start = time.perf_counter()

    def insert() -> bool:
        due = start + inserted[0] / rate
        if time.perf_counter() < due or inserted[0] >= len(arriving):
            return False
        way.insert(arriving[inserted[0]][None])
        inserted[0] += 1
        return True

    threads = [_run(insert, stopping), _run(way.upkeep, stopping)]
    beside = _searches(way, queries, seconds)
    took = time.perf_counter() - start
    stopping.set()
    for thread in threads:
        thread.join()
    p50, p99 = (percentile_ms(beside, percent) for percent in (50, 99))
    idle = percentile_ms(alone, 99)
    return [
        f"{percentile_ms(alone, 50):.2f} / {idle:.2f}",
        f"{p50:.2f} / {p99:.2f} / {max(beside) * 1000:.1f}",
        f"{p99 / idle:.1f}",
        f"{inserted[0] / took:.0f}",
        way.copies,
    ]


def main() -> None:
    """Measure every way and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--rate", type=float, default=800.0, help="inserts per second")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.setswitchinterval(0.0005)
    rows = synthetic(arguments.points + 21_000, arguments.seed)
    queries, arriving, points = rows[:1000], rows[1000:21_000], rows[21_000:]
    codec = Codec("sq8", rows.shape[1])
    graph = codec.new_index(16, 100)
    use_threads(os.cpu_count() or 1)
    graph.add(codec.encode(points))
    print("| way | alone p50 / p99 ms | beside inserts p50 / p99 / max ms | p99 ratio | inserts/s | graphs in memory |")
    print("|---|---|---|---|---|---|")
    for kind in (LockedDrains, LeftRight, SealedSegments, CopyOnWrite):
        way = kind(codec, _faiss.clone_index(graph))
        cells = measure(way, queries, arriving, arguments.rate, SECONDS)
        print(f"| {kind.__name__} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
