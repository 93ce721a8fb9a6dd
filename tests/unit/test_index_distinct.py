"""Searches of an engine for pictures: against all points sorted by hand, and where copies crowd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from actors.index import distinct
from actors.index.engine import EngineParameters, ShardEngine
from actors.log.records import LogRecord
from actors.messages import Candidate, Distinct, FloatMatrix, ShardQuery
from contract.filters import Filter, Match, matches
from tests.engine_log import FINGERPRINT, IDENTITY, clustered, embedded, records_of

DIMENSION = 16


class Pictures:
    """An engine, and the images in it: (digest, vector, payload, moment) by id."""

    def __init__(self, engine: ShardEngine) -> None:
        self.engine = engine
        self.images: dict[str, tuple[str, FloatMatrix, dict[str, Any], int]] = {}
        self._offset = 0

    def put(self, image_id: str, picture: int, vector: FloatMatrix, at_ms: int, **payload: Any) -> None:
        sha256 = f"{picture:064x}"
        entry = msgspec.structs.replace(
            embedded(image_id, vector, self._offset, payload), sha256=sha256, event_at_ms=at_ms
        )
        records: list[LogRecord] = records_of(entry, self._offset)
        self._offset += 1
        self.images[image_id] = sha256, vector, payload, at_ms
        self.engine.apply(records)

    def expected(self, query: FloatMatrix, condition: Filter | None) -> list[tuple[str, int, list[str], float]]:
        """All pictures that have an image which the filter lets through: who stands, how many, whose ids, the score."""
        groups: dict[str, list[str]] = {}
        for image_id, (sha256, _, payload, _) in self.images.items():
            if condition is None or matches(condition, payload):
                groups.setdefault(sha256, []).append(image_id)
        found = []
        for some in groups.values():
            some.sort(key=lambda image_id: (self.images[image_id][3], image_id))
            found.append((some[0], len(some), some[:21], float(self.images[some[0]][1] @ query)))
        return sorted(found, key=lambda one: -one[3])

    def search(self, query: FloatMatrix, k: int, **asked: Any) -> list[tuple[str, int, list[str], float]]:
        allowed = Distinct(asked.pop("allowed", None))
        (found,) = self.engine.search(query[None], [ShardQuery(k, distinct=allowed, **asked)])
        return [_told(one) for one in found]


def _told(one: Candidate) -> tuple[str, int, list[str], float]:
    assert one.group is not None
    return one.image_id, one.group.count, [member.image_id for member in one.group.members], one.score


@pytest.fixture(params=["growing", "graph"])
def pictures(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pictures]:
    growing_max = 4096 if request.param == "growing" else 64
    engine = ShardEngine(
        tmp_path / "shard", EngineParameters(fingerprint=FINGERPRINT, dimension=DIMENSION, growing_max=growing_max)
    )
    engine.begin(IDENTITY, {0: 0}, 1)
    made = Pictures(engine)
    random = np.random.default_rng(7)
    vectors = clustered(60, DIMENSION)
    # One picture in six crowds.
    for n in range(400):
        picture = int(random.integers(10)) if random.random() < 0.7 else int(random.integers(60))
        made.put(f"{n:03d}", picture, vectors[picture], int(random.integers(50)), parity=n % 2, owner="bo")
    if request.param == "graph":
        engine.seal()
    yield made
    engine.close()


@pytest.mark.parametrize("exact", [True, False])
def test_as_many_pictures_as_are_asked_for_each_once_with_all_its_images(pictures: Pictures, exact: bool) -> None:
    odd = Filter(must=(Match("parity", (1,)),))
    for query in clustered(5, DIMENSION, seed=3):
        for k in (1, 5, 30, 100):
            for asked in ({}, {"filter": odd}, {"allowed": odd}):
                wanted = pictures.expected(query, next(iter(asked.values()), None))
                found = pictures.search(query, k, exact=exact, **asked)
                assert [one[:3] for one in found] == [one[:3] for one in wanted[:k]]
                np.testing.assert_allclose([one[3] for one in found], [one[3] for one in wanted[:k]], atol=1e-5)


def test_another_image_stands_when_the_first_is_gone(pictures: Pictures) -> None:
    query = clustered(1, DIMENSION)[0]
    first, count, ids, _ = pictures.search(query, 1)[0]
    # The first gets other bytes, which no image had before.
    pictures.put(first, 999, -query, 99)
    second = pictures.search(query, 1)[0]
    assert second[:2] == (ids[1], count - 1)
    assert first not in second[2]


def test_queries_for_points_and_for_pictures_share_a_batch(pictures: Pictures) -> None:
    queries = clustered(3, DIMENSION, seed=5)
    asked = [ShardQuery(4), ShardQuery(4, distinct=Distinct()), ShardQuery(4, exact=True)]
    found = pictures.engine.search(queries, asked, with_payload=False)
    for query, want, some in zip(queries, asked, found, strict=True):
        (lone,) = pictures.engine.search(query[None], [want], with_payload=False)
        np.testing.assert_allclose([one.score for one in some], [one.score for one in lone], atol=1e-5)
        assert [one.group is None for one in some] == [want.distinct is None] * 4
        assert {one.payload for one in some} == {None}


def test_the_bound_is_kept_and_what_is_found_within_it_is_told(
    pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distinct, "REACH_MAX", 24)
    monkeypatch.setattr(distinct, "_SPARE", 2)
    vector = clustered(1, DIMENSION, seed=11)[0]
    for n in range(40):
        pictures.put(f"copy-{n:02d}", 2**40, vector, n)
    for exact in (True, False):
        (only,) = pictures.search(vector, 3, exact=exact)
        assert only[1] == 24, "no more points were looked at than the bound says"
    assert len(pictures.search(vector, 60, exact=True)) > 1, "who asks for more is not held to less"
