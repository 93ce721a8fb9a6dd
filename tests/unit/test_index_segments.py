"""Growing segment, graph and lock together."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from actors.index import segments as segments_module
from actors.index.lock import ReadWriteLock
from actors.index.segments import Segments
from actors.messages import FloatMatrix
from tests.integration.system import eventually

DIMENSION = 24


def clustered(count: int, seed: int = 0) -> FloatMatrix:
    """(count, d) float32, L2-normalised, of latent dimension 6."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((count, 6)) @ random.standard_normal((6, DIMENSION))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def drain(segments: Segments) -> None:
    while segments.drain():
        pass


def recall_at_10(segments: Segments, vectors: FloatMatrix, queries: FloatMatrix) -> float:
    found = segments.search(queries, [10] * len(queries), [64] * len(queries))
    shares = []
    for hits, scores in zip(found, queries @ vectors.T, strict=True):
        tenth = np.sort(scores)[-10]
        shares.append(sum(score >= tenth - 1e-6 for score, _ in hits) / 10)
    return float(np.mean(shares))


def test_recall_over_both_segments_keeps_its_floor() -> None:
    vectors = clustered(3000)
    segments = Segments(DIMENSION, m=16, ef_construction=100, growing_max=500)
    segments.change([(str(i), vector) for i, vector in enumerate(vectors)])
    drain(segments)
    assert 490 <= segments.growing <= 500
    assert len(segments) == 3000
    assert recall_at_10(segments, vectors, clustered(50, seed=1)) >= 0.97


def test_recall_survives_churn_and_the_graph_is_rebuilt_without_its_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments_module, "_REBUILD_DEAD_MIN", 100)
    vectors = clustered(4000)
    segments = Segments(DIMENSION, m=16, ef_construction=100, growing_max=50)
    segments.change([(str(i % 1000), vectors[i]) for i in range(1000)])
    drain(segments)
    for start in range(1000, 4000, 100):
        segments.change([(str(i % 1000), vectors[i]) for i in range(start, start + 100)])
        segments.drain()
    drain(segments)
    assert len(segments) == 1000
    assert segments.dead < 300
    assert recall_at_10(segments, vectors[3000:], clustered(50, seed=1)) >= 0.97


def test_changes_during_a_rebuild_survive_the_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments_module, "_REBUILD_DEAD_MIN", 10)
    vectors = clustered(400)
    segments = Segments(DIMENSION, m=8, ef_construction=40, growing_max=1)
    segments.change([(str(i), vectors[i]) for i in range(100)])
    drain(segments)
    segments.change([(str(i), None) for i in range(40)])
    for step in range(12):
        assert segments.drain(), "the rebuild is under way"
        segments.change([(str(40 + step), vectors[200 + step]), (str(80 + step), None)])
    drain(segments)
    expected = {str(i): vectors[i] for i in [*range(52, 80), *range(92, 100)]}
    expected |= {str(40 + step): vectors[200 + step] for step in range(12)}
    hits = segments.search(vectors[:1], [200], [200])[0]
    assert sorted(image_id for _, image_id in hits) == sorted(expected)
    assert all(np.isclose(score, expected[image_id] @ vectors[0], atol=1e-5) for score, image_id in hits)


def test_equal_scores_come_in_the_order_of_their_ids() -> None:
    segments = Segments(2, m=8, ef_construction=40, growing_max=2)
    same = np.array([1, 0], dtype=np.float32)
    segments.change([(image_id, same) for image_id in "dbace"])
    drain(segments)
    hits = segments.search(same[None], [5], [16])[0]
    assert [image_id for _, image_id in hits] == list("abcde")


def test_a_search_beside_upserts_sees_each_point_exactly_once() -> None:
    segments = Segments(DIMENSION, m=8, ef_construction=40, growing_max=8)
    vectors = clustered(64)
    segments.change([(str(i), vectors[i]) for i in range(32)])
    stopping = threading.Event()
    failures: list[list[str]] = []
    searches = [0, 0]

    def search(worker: int) -> None:
        while not stopping.is_set():
            hits = segments.search(vectors[:1], [100], [200])[0]
            searches[worker] += 1
            if sorted(image_id for _, image_id in hits) != sorted(str(i) for i in range(32)):
                failures.append([image_id for _, image_id in hits])

    workers = [threading.Thread(target=search, args=(worker,)) for worker in range(2)]
    for worker in workers:
        worker.start()
    try:
        random = np.random.default_rng(0)
        for _ in range(300):
            image_id = str(random.integers(32))
            segments.change([(image_id, vectors[random.integers(64)])])
            segments.drain()
    finally:
        stopping.set()
        for worker in workers:
            worker.join()
    assert failures == []
    assert min(searches) > 0


def test_the_lock_lets_readers_in_between_two_writers() -> None:
    lock = ReadWriteLock()
    order: list[str] = []
    first_writes, second_waits = threading.Event(), threading.Event()

    def first_writer() -> None:
        with lock.writing():
            first_writes.set()
            second_waits.wait(30)
            eventually(lambda: lock._readers_waiting == 1 and lock._writers_waiting == 1)
            order.append("first writer")

    def second_writer() -> None:
        with lock.writing():
            order.append("second writer")

    def reader() -> None:
        with lock.reading():
            order.append("reader")

    threads = [threading.Thread(target=body) for body in (first_writer, second_writer, reader)]
    threads[0].start()
    assert first_writes.wait(30)
    threads[1].start()
    eventually(lambda: lock._writers_waiting == 1)
    threads[2].start()
    second_waits.set()
    for thread in threads:
        thread.join(30)
    assert order == ["first writer", "reader", "second writer"]
