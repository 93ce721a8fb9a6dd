"""Growing segment and graph together: every living point is in exactly one of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import faiss

from actors.index.growing import GrowingSegment
from actors.index.hnsw import HnswGraph
from actors.index.lock import ReadWriteLock
from actors.messages import FloatMatrix

# An add of one 512-d vector takes up to a millisecond, and searches wait for the step.
DRAIN_STEP = 4
_CHANGES_PER_HOLD = 64
# The dead cost memory and widen every walk.
_REBUILD_DEAD_SHARE = 0.2
_REBUILD_DEAD_MIN = 1024

Found = list[tuple[float, str]]


class Segments:
    """The search structure of a shard. Thread-safe: any number of searches, one writer, one drainer.

    A point appears in the growing segment and moves to the graph in steps of at most DRAIN_STEP.
    An upsert puts the new vector in and takes the old one out under one hold of the lock, so a
    search meets one of them, never both, never none.
    """

    def __init__(self, dimension: int, m: int, ef_construction: int, growing_max: int) -> None:
        # One search runs on one thread: several run side by side, and shards share the machine.
        faiss.omp_set_num_threads(1)
        self._lock = ReadWriteLock()
        self._draining = threading.Lock()
        self._growing_max = growing_max
        self._growing = GrowingSegment(dimension)
        self._graph = HnswGraph(dimension, m, ef_construction)
        self._successor: HnswGraph | None = None
        self._copied = 0

    @property
    def growing(self) -> int:
        """Points in the growing segment."""
        return len(self._growing)

    @property
    def dead(self) -> int:
        """Labels of the graph whose point is gone."""
        return self._graph.dead

    def __len__(self) -> int:
        """Living points."""
        return len(self._growing) + len(self._graph)

    def change(self, changes: Sequence[tuple[str, FloatMatrix | None]]) -> None:
        """Upsert (a (d,) float32 vector) or delete (None) points, in order.

        When the growing segment is far over its size, the caller drains twice what it added, so
        that it shrinks whoever writes; reading a store into an empty index goes through `load`.
        """
        for start in range(0, len(changes), _CHANGES_PER_HOLD):
            with self._lock.writing():
                for image_id, vector in changes[start : start + _CHANGES_PER_HOLD]:
                    self._graph.kill(image_id)
                    if vector is None:
                        self._growing.kill(image_id)
                    else:
                        self._growing.append(image_id, vector)
        if len(self._growing) > 4 * self._growing_max:
            for _ in range(0, 2 * len(changes), DRAIN_STEP):
                if len(self._growing) <= self._growing_max:
                    break
                self.drain_step()

    def load(self, image_ids: Sequence[str], vectors: FloatMatrix) -> None:
        """Take points from the store: searchable at once by exact scan, drained later."""
        with self._lock.writing():
            for image_id, vector in zip(image_ids, vectors, strict=True):
                self._growing.append(image_id, vector)

    def search(self, queries: FloatMatrix, ks: Sequence[int], efs: Sequence[int]) -> list[Found]:
        """The best `ks[i]` points per query as (score, id), best first, equal scores by id.

        Args:
            queries: (q, d) float32.
            ks: How many points per query; at least 1.
            efs: Width of the walk through the graph per query; at least k is taken.
        """
        with self._lock.reading():
            fresh = self._growing.search(queries, ks)
            sealed = self._graph.search(queries, ks, efs)
        return [best(a + b, k) for a, b, k in zip(fresh, sealed, ks, strict=True)]

    def drain(self) -> bool:
        """One bounded step of the writer's upkeep; False if there is nothing to do now.

        Drains while the growing segment is over its size, and rebuilds the graph once too many of
        its points are dead.
        """
        if len(self._growing) > self._growing_max:
            return self.drain_step()
        return self._rebuild_step()

    def drain_step(self) -> bool:
        """Move up to DRAIN_STEP points from the growing segment to the graph; False if it is empty."""
        with self._draining, self._lock.writing():
            image_ids, vectors = self._growing.oldest(DRAIN_STEP)
            self._graph.add(image_ids, vectors)
            for image_id in image_ids:
                self._growing.kill(image_id)
            return bool(image_ids)

    def _rebuild_step(self) -> bool:
        """Copy a few points into the successor of the graph, and swap once it has them all."""
        with self._draining:
            if self._successor is None:
                graph = self._graph
                if graph.dead < max(_REBUILD_DEAD_MIN, _REBUILD_DEAD_SHARE * graph.total):
                    return False
                self._successor, self._copied = HnswGraph(graph.dimension, graph.m, graph.ef_construction), 0
            with self._lock.reading():
                image_ids, vectors = self._graph.living(self._copied, DRAIN_STEP)
            self._copied += DRAIN_STEP
            # Nobody searches the successor yet, so this step holds no search up.
            self._successor.add(image_ids, vectors)
            if self._copied >= self._graph.total:
                with self._lock.writing():
                    self._successor.keep_only(self._graph)
                    self._graph, self._successor = self._successor, None
            return True


def best(candidates: Found, k: int) -> Found:
    """The best `k`, highest score first, equal scores by id."""
    return sorted(candidates, key=lambda c: (-c[0], c[1]))[:k]
