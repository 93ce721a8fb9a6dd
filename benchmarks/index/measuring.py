"""What is measured of one system, inside its own process. Needs numpy alone."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index.pacing import Pacer
from benchmarks.index.resources import cpu_seconds
from benchmarks.index.systems import Floats, System
from benchmarks.index.truth import Neighbours, recall
from benchmarks.index.tuning import smallest_effort

K = 10
INSERT_BATCH = 64
TUNE_BATCH = 32
_EFFORT_MAX = 1000
_FOUND_WITHIN_S = 1.0


class RowFile:
    """A `.npy` of (n, d) float32 that is read in pieces, and so never counts as memory of the process."""

    def __init__(self, path: Path) -> None:
        mapped = np.load(path, mmap_mode="r")
        self._path = path
        self._offset = int(mapped.offset)
        self.shape: tuple[int, int] = mapped.shape

    def __len__(self) -> int:
        """Rows."""
        return self.shape[0]

    def rows(self, start: int, stop: int) -> Floats:
        """(stop - start, d) float32; less at the end."""
        stop = min(stop, len(self))
        width = self.shape[1]
        flat = np.fromfile(
            self._path, dtype=np.float32, count=(stop - start) * width, offset=self._offset + 4 * start * width
        )
        return flat.reshape(-1, width)


class Measuring:
    """One opened system and the files of its data set. Row r of `points` has the id r, arriving points follow."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system = system
        self._points = RowFile(folder / "points.npy")
        self._arriving = RowFile(folder / "arriving.npy")
        self._queries: Floats = np.load(folder / "queries.npy")
        self._neighbours: Neighbours = np.load(folder / "neighbours.npy")
        self._arrived = 0
        self._next_query = 0

    def load(self, limit_s: float) -> dict[str, float]:
        """Insert all points in batches, and wait until they are in the index.

        Only the system's own calls are timed, and the processor time of encoding is not counted. Raises
        TimeoutError when they take more than `limit_s`.
        """
        took, encoding, cpu = 0.0, 0.0, cpu_seconds(os.getpid())
        for start in range(0, len(self._points), INSERT_BATCH):
            encoding -= time.thread_time()
            rows = self._points.rows(start, start + INSERT_BATCH)
            batch = self.system.encode([str(start + i) for i in range(len(rows))], rows)
            encoding += time.thread_time()
            began = time.perf_counter()
            self.system.insert(batch)
            took += time.perf_counter() - began
            if took > limit_s:
                raise TimeoutError(f"{start + len(rows)} of {len(self._points)} points in {took:.0f} s")
        began = time.perf_counter()
        self.system.finish()
        finished = time.perf_counter() - began
        return {
            "points": len(self._points),
            "inserts_per_s": len(self._points) / (took + finished),
            "finish_s": finished,
            "cpu_ms_per_point": 1e3 * (cpu_seconds(os.getpid()) - cpu - encoding) / len(self._points),
        }

    def tune(self, target: float) -> dict[str, float]:
        """Set the smallest effort that reaches a recall on all queries."""

        def measure(effort: int) -> float:
            self.system.set_effort(effort)
            return self.recall()["recall"]

        tuned = smallest_effort(measure, target, K, _EFFORT_MAX)
        self.system.set_effort(tuned.effort)
        return {"effort": tuned.effort, "recall": tuned.recall, "reached": float(tuned.reached)}

    def recall(self) -> dict[str, float]:
        """Recall@10 of all queries at the present effort."""
        answers: list[Sequence[str]] = []
        for start in range(0, len(self._queries), TUNE_BATCH):
            answers += self.system.search(self._queries[start : start + TUNE_BATCH], K)
        return {"recall": recall(answers, self._neighbours, K)}

    def search(self, batch: int, seconds: float) -> dict[str, Any]:
        """Search in batches, one after another, for a time: seconds of each call, and queries per second."""
        return self._search_until(batch, time.perf_counter() + seconds)

    def _search_until(self, batch: int, deadline: float) -> dict[str, Any]:
        latencies = []
        cpu = cpu_seconds(os.getpid())
        began = now = time.perf_counter()
        for queries in self._query_batches(batch):
            self.system.search(queries, K)
            before, now = now, time.perf_counter()
            latencies.append(now - before)
            if now >= deadline:
                break
        return {
            "latencies_s": latencies,
            "qps": batch * len(latencies) / (now - began),
            "cpu_share": (cpu_seconds(os.getpid()) - cpu) / (now - began),
        }

    def _query_batches(self, batch: int) -> Iterator[Floats]:
        """All queries over and over, going on where the last call stopped."""
        while True:
            start = self._next_query
            self._next_query = start + batch if start + 2 * batch <= len(self._queries) else 0
            yield self._queries[start : start + batch]

    def ingest(self, per_s: float, seconds: float, look_up: bool) -> dict[str, Any]:
        """Search single queries in this thread while another inserts arriving points at a rate.

        Args:
            per_s: points per second to insert; ends early when no more points arrive.
            seconds: how long.
            look_up: whether the inserting thread looks for the last point of each of its batches, which
                tells how long an insert takes until it is searchable.
        """
        wanted = min(round(per_s * seconds), len(self._arriving) - self._arrived)
        batches = [self._next_arriving() for _ in range(wanted // INSERT_BATCH)]
        if not batches:
            raise RuntimeError("no point is left to arrive")
        seconds = min(seconds, len(batches) * INSERT_BATCH / per_s)
        state = _Inserted()
        began = time.perf_counter()
        thread = threading.Thread(
            target=self._insert_paced, args=(batches, Pacer(per_s, INSERT_BATCH), began + seconds, look_up, state)
        )
        thread.start()
        searched = self._search_until(1, began + seconds)
        thread.join()
        if state.failure is not None:
            raise state.failure
        return {
            **searched,
            "inserted": state.points,
            "inserted_per_s": state.points / (max(state.ended, began + seconds) - began),
            "searchable_s": state.searchable_s,
            "missed": state.missed,
        }

    def _next_arriving(self) -> tuple[str, Floats, Any]:
        """The next batch: id and vector (1, d) of its last point, and the batch, encoded."""
        rows = self._arriving.rows(self._arrived, self._arrived + INSERT_BATCH)
        first = len(self._points) + self._arrived
        ids = [str(first + i) for i in range(len(rows))]
        self._arrived += len(rows)
        return ids[-1], rows[-1:], self.system.encode(ids, rows)

    def _insert_paced(
        self, batches: list[tuple[str, Floats, Any]], pacer: Pacer, deadline: float, look_up: bool, state: _Inserted
    ) -> None:
        try:
            for last_id, last, batch in batches:
                pacer.wait(INSERT_BATCH)
                began = time.perf_counter()
                if began >= deadline:
                    break
                self.system.insert(batch)
                state.points += INSERT_BATCH
                if look_up:
                    self._await_searchable(last_id, last, began, state)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that measures
            state.failure = error
        state.ended = time.perf_counter()

    def _await_searchable(self, last_id: str, last: Floats, began: float, state: _Inserted) -> None:
        while last_id not in self.system.search(last, K)[0]:
            if time.perf_counter() - began > _FOUND_WITHIN_S:
                state.missed += 1
                return
        state.searchable_s.append(time.perf_counter() - began)

    def answers_rightly(self, row: int) -> bool:
        """Whether a point is found by its own vector."""
        return str(row) in self.system.search(self._points.rows(row, row + 1), K)[0]


class _Inserted:
    """What the inserting thread tells."""

    def __init__(self) -> None:
        self.points = 0
        self.missed = 0
        self.ended = 0.0
        self.searchable_s: list[float] = []
        self.failure: BaseException | None = None
