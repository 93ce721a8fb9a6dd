"""Growing segment and graph together: whole, exact enough, and never caught between two states."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.index import codes
from actors.index.codes import Codec
from actors.index.engine import EngineParameters, ShardEngine
from actors.messages import FloatMatrix, ShardQuery
from contract.events import Quantization
from contract.filters import Filter, Match
from tests.engine_log import FINGERPRINT, IDENTITY, EngineLog, clustered, drained

DIMENSION = 24
QUANTIZATIONS: tuple[Quantization, ...] = ("none", "fp16", "sq8", "pq", "rabitq")
# Enough for the fewer centroids that the tests train.
TRAIN_MIN = 640

Open = Callable[..., EngineLog]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Makes engines; each on a store of its own."""
    engines: list[ShardEngine] = []

    def open_(**parameters: Any) -> EngineLog:
        given = EngineParameters(fingerprint=FINGERPRINT, **{"dimension": DIMENSION, **parameters})
        engine = ShardEngine(tmp_path / str(len(engines)), given)
        engine.begin(IDENTITY, {0: 0}, 1)
        engines.append(engine)
        return EngineLog(engine)

    yield open_
    for engine in engines:
        engine.close()


@pytest.fixture
def few_to_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """Product quantization of 16 centroids a part, and training from TRAIN_MIN points on."""
    monkeypatch.setattr(codes, "_PQ_BITS", 4)
    monkeypatch.setattr(codes, "_PQ_TRAIN_MIN", TRAIN_MIN)
    monkeypatch.setattr(codes, "_RABITQ_TRAIN_MIN", TRAIN_MIN)


def named(vectors: FloatMatrix, first: int = 0) -> dict[str, FloatMatrix]:
    return {f"{first + i:05d}": vector for i, vector in enumerate(vectors)}


def in_batches(log: EngineLog, vectors: FloatMatrix, size: int = 500) -> None:
    for start in range(0, len(vectors), size):
        log.upsert(named(vectors[start : start + size], start))


@pytest.mark.usefixtures("few_to_train")
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_recall_over_both_segments_keeps_its_floor(opened: Open, quantization: Quantization) -> None:
    log = opened(quantization=quantization, growing_max=500)
    in_batches(log, clustered(2400, DIMENSION), 480)
    drained(log.engine)
    log.upsert(named(clustered(450, DIMENSION, seed=3), 2400))
    assert log.engine.growing >= 450
    assert log.engine.quantization == quantization
    assert log.recall_at_10(clustered(50, DIMENSION, seed=1)) >= (0.9 if quantization in ("pq", "rabitq") else 0.97)


@pytest.mark.parametrize("quantization", ["none", "sq8"])
def test_recall_survives_churn_and_the_graph_is_rebuilt_without_its_dead(
    opened: Open, quantization: Quantization
) -> None:
    log = opened(quantization=quantization, growing_max=50, rebuild_dead_min=100)
    vectors = clustered(4000, DIMENSION)
    in_batches(log, vectors[:1000])
    drained(log.engine)
    for start in range(1000, 4000, 100):
        log.upsert(named(vectors[start : start + 100], start % 1000))
        log.engine.drain()
        assert log.engine.points == 1000
    drained(log.engine)
    assert log.engine.dead < 0.2 * 1250 + 100
    assert log.recall_at_10(clustered(50, DIMENSION, seed=1)) >= 0.97


@pytest.mark.parametrize("quantization", ["none", "sq8"])
def test_changes_during_a_rebuild_survive_the_swap(opened: Open, quantization: Quantization) -> None:
    log = opened(quantization=quantization, m=8, growing_max=1, rebuild_dead_min=1)
    vectors = clustered(4000, DIMENSION)
    in_batches(log, vectors[:2600])
    log.engine.seal()
    log.delete([f"{i:05d}" for i in range(600)])
    assert log.engine.dead == 600
    for step in range(4):
        assert log.engine.drain(), "the rebuild is under way"
        assert log.engine.dead >= 600
        # One that the successor has, one that it lacks yet, and one that is new to both.
        log.upsert({f"{600 + step:05d}": vectors[3000 + step], f"{2500 + step:05d}": vectors[3100 + step]})
        log.upsert({f"new-{step}": vectors[3200 + step]})
        log.delete([f"{700 + step:05d}", f"{2400 + step:05d}"])
        log.engine.seal()
    drained(log.engine)
    assert log.engine.dead < 20
    log.assert_whole(vectors[0])


def interfering(monkeypatch: pytest.MonkeyPatch, count: int, change: Callable[[], None]) -> list[int]:
    """`change` happens between two inserts of the builder: when it has encoded more than `count` points."""
    encode, seen, inside = Codec.encode, [0], [False]

    def hooked(codec: Codec, vectors: FloatMatrix) -> FloatMatrix:
        if not inside[0] and len(vectors) > 1:
            seen[0] += len(vectors)
            if seen[0] > count:
                seen[0] = -(10**9)
                inside[0] = True
                change()
                inside[0] = False
        return encode(codec, vectors)

    monkeypatch.setattr(Codec, "encode", hooked)
    return seen


@pytest.mark.parametrize("quantization", ["none", "sq8"])
def test_deletes_and_upserts_during_a_merge_are_not_undone_by_it(
    opened: Open, quantization: Quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(quantization=quantization, growing_max=100_000)
    vectors = clustered(3000, DIMENSION)
    in_batches(log, vectors[:700])
    log.engine.seal()
    in_batches(log, vectors[700:1400], 700)
    log.upsert(named(vectors[700:1400], 700))
    log.delete(["00001", "00701"])

    def change() -> None:
        log.delete(["00002", "00703", "01390"])
        log.upsert({"00003": vectors[2003], "00704": vectors[2704], "01391": vectors[2705], "new": vectors[2000]})
        log.delete(["00704"])
        log.upsert({"00704": vectors[2999]})
        log.assert_whole(vectors[5])

    seen = interfering(monkeypatch, 600, change)
    log.engine.seal()
    assert seen[0] < 0, "the changes came in the middle"
    log.assert_whole(vectors[5])
    assert log.engine.growing == 4
    log.engine.seal()
    assert log.engine.growing == 0
    log.assert_whole(vectors[5])


def test_a_merge_of_nothing_but_the_dead_is_no_merge(opened: Open) -> None:
    log = opened(growing_max=1)
    log.upsert(named(clustered(5, DIMENSION)))
    log.delete([f"{i:05d}" for i in range(5)])
    drained(log.engine)
    log.engine.seal()
    assert (log.engine.growing, log.engine.quantization) == (0, None)
    log.upsert(named(clustered(3, DIMENSION), 10))
    log.engine.seal()
    log.delete([f"{i:05d}" for i in range(10, 13)])
    log.assert_whole(np.ones(DIMENSION, dtype=np.float32))


def test_equal_scores_come_in_the_order_of_their_ids(opened: Open) -> None:
    log = opened(dimension=2, m=8, growing_max=100)
    same = np.array([1, 0], dtype=np.float32)
    log.upsert(dict.fromkeys("dba", same))
    log.engine.seal()
    log.upsert(dict.fromkeys("ce", same))
    for exact in (False, True):
        hits = log.engine.search(same[None], [ShardQuery(5, exact=exact)])[0]
        assert [hit.image_id for hit in hits] == list("abcde")


@pytest.mark.parametrize("quantization", ["none", "sq8"])
def test_a_search_beside_upserts_sees_each_point_exactly_once(opened: Open, quantization: Quantization) -> None:
    log = opened(quantization=quantization, m=8, growing_max=8, rebuild_dead_min=30)
    vectors = clustered(128, DIMENSION)
    log.upsert(named(vectors[:32]))
    everything = sorted(log.vectors)
    stopping = threading.Event()
    failures: list[object] = []
    counts = {"walked": 0, "exact": 0, "built": 0, "rebuilt": 0}

    def until_stopped(name: str, body: Callable[[], bool]) -> None:
        while not stopping.is_set():
            try:
                counts[name] += body()
            except Exception as error:  # noqa: BLE001 - what fails in a thread fails the test
                failures.append(error)
                return

    def search(exact: bool) -> bool:
        hits = log.engine.search(vectors[:1], [ShardQuery(100, exact=exact)])[0]
        if sorted(hit.image_id for hit in hits) != everything:
            failures.append((exact, [hit.image_id for hit in hits]))
        return True

    def build() -> bool:
        before = log.engine.dead
        worked = log.engine.drain()
        counts["rebuilt"] += log.engine.dead < before
        return worked

    bodies: dict[str, Callable[[], bool]] = {
        "walked": lambda: search(exact=False),
        "exact": lambda: search(exact=True),
        "built": build,
    }
    workers = [threading.Thread(target=until_stopped, args=item) for item in bodies.items()]
    for worker in workers:
        worker.start()
    try:
        random = np.random.default_rng(0)
        writes = 0
        while not failures and (writes < 300 or (min(counts.values()) < 20 and writes < 20_000)):
            log.upsert({f"{random.integers(32):05d}": vectors[random.integers(128)]})
            writes += 1
            if writes % 100 == 0:
                log.engine.seal()
    finally:
        stopping.set()
        for worker in workers:
            worker.join()
    assert failures == []
    assert min(counts.values()) > 0, counts
    log.assert_whole(vectors[0])


@pytest.mark.parametrize("quantization", ["none", "sq8"])
@pytest.mark.parametrize("exact", [False, True])
def test_a_search_whose_points_change_after_it_took_its_view_misses_none(
    opened: Open, quantization: Quantization, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(quantization=quantization, growing_max=10_000)
    vectors = clustered(1400, DIMENSION)
    in_batches(log, vectors[:1200])
    log.engine.seal()
    in_batches(log, vectors[:40])
    segments, before = log.engine._segments, dict(log.vectors)
    take_view = segments.view_for

    def change_after(*given: Any) -> Any:
        taken = take_view(*given)
        monkeypatch.undo()
        log.upsert({f"{i:05d}": vectors[1200 + i] for i in range(50, 60)})
        log.delete([f"{i:05d}" for i in range(60, 65)])
        log.engine.seal()
        return taken

    monkeypatch.setattr(segments, "view_for", change_after)
    query = vectors[55] + vectors[62]
    hits = log.engine.search(query[None], [ShardQuery(1300, exact=exact)])[0]
    assert sorted(hit.image_id for hit in hits) == sorted(log.vectors)
    for hit in hits:
        scores = [float(of[hit.image_id] @ query) for of in (before, log.vectors)]
        assert min(abs(hit.score - score) for score in scores) < 1e-5


def test_a_point_that_dies_in_the_store_first_lives_in_the_graph_until_its_successor_is_searchable(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rebuild comes to its end between a batch that is written to the store and searches that know of it."""
    log = opened(m=8, growing_max=1, rebuild_dead_min=1)
    vectors = clustered(64, DIMENSION)
    log.upsert(named(vectors[:32]))
    drained(log.engine)
    log.delete([f"{i:05d}" for i in range(8)])
    segments = log.engine._segments
    change = segments.change

    def swap_first(*given: Any) -> None:
        for _ in range(5):
            log.engine.drain()
        hits = log.engine.search(vectors[:1], [ShardQuery(100)])[0]
        assert sorted(hit.image_id for hit in hits) == [f"{i:05d}" for i in range(8, 32)], "neither both nor none"
        change(*given)

    monkeypatch.setattr(segments, "change", swap_first)
    log.upsert({"00009": vectors[40]})
    monkeypatch.undo()
    log.assert_whole(vectors[0])
    assert log.engine.dead == 1


@pytest.mark.usefixtures("few_to_train")
@pytest.mark.parametrize("quantization", ["pq", "rabitq"])
def test_a_trained_quantization_takes_its_place_without_a_pause(
    opened: Open, quantization: Quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(quantization=quantization, growing_max=64, rebuild_dead_min=64)
    vectors = clustered(2000, DIMENSION)
    queries = clustered(30, DIMENSION, seed=1)
    in_batches(log, vectors[: TRAIN_MIN - 1])
    drained(log.engine)
    log.engine.seal()
    drained(log.engine)
    assert log.engine.quantization == "sq8", "too few to train on"
    assert log.recall_at_10(queries) >= 0.97
    log.upsert(named(vectors[TRAIN_MIN - 1 : 1200], TRAIN_MIN - 1))
    log.engine.seal()
    encode = Codec.encode
    beside = [0]

    def search_beside(codec: Codec, rows: FloatMatrix) -> FloatMatrix:
        # The builder encodes hundreds at once, a search only its queries.
        if len(rows) > 300:
            assert log.recall_at_10(queries) >= 0.97
            beside[0] += 1
            log.upsert({"00005": vectors[1500 + beside[0]], f"new-{beside[0]}": vectors[1600 + beside[0]]})
            log.delete([f"{100 + beside[0]:05d}"])
        return encode(codec, rows)

    monkeypatch.setattr(Codec, "encode", search_beside)
    drained(log.engine)
    monkeypatch.undo()
    assert beside[0] >= 2, "for the training, and for every step of the building"
    assert log.engine.quantization == quantization
    assert log.recall_at_10(queries) >= 0.9
    log.assert_whole(queries[0])


@pytest.mark.usefixtures("few_to_train")
@pytest.mark.parametrize("quantization", ["pq", "rabitq"])
@pytest.mark.parametrize("left", [0, 3, 700])
def test_after_many_deletions_none_trains_on_too_few(opened: Open, quantization: Quantization, left: int) -> None:
    log = opened(quantization=quantization, growing_max=64, rebuild_dead_min=64)
    in_batches(log, clustered(2000, DIMENSION))
    drained(log.engine)
    log.engine.seal()
    drained(log.engine)
    assert log.engine.quantization == quantization
    log.delete([f"{i:05d}" for i in range(2000 - left)])
    drained(log.engine)
    assert log.engine.dead == 0
    assert log.engine.quantization == (quantization if left >= TRAIN_MIN else "sq8")
    log.assert_whole(clustered(1, DIMENSION)[0])


def test_a_payload_that_changes_under_a_filtered_search_is_not_shown(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store knows the new payload first; searches see it with the next view."""
    log = opened()
    log.upsert(named(clustered(8, DIMENSION)), {"colour": "red"})
    wanted = ShardQuery(10, filter=Filter(must=(Match("colour", ("red",)),)))
    query = clustered(1, DIMENSION)
    segments = log.engine._segments
    change = segments.change

    def search_first(*given: Any) -> None:
        hits = log.engine.search(query, [wanted])[0]
        assert [hit.payload for hit in hits] == [b'{"colour":"red"}'] * 7
        change(*given)

    monkeypatch.setattr(segments, "change", search_first)
    log.change_payload("00003", {"colour": "blue"})
    assert len(log.engine.search(query, [wanted])[0]) == 7
