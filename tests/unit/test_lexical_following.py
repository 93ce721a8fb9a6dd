"""The lexical index over points in a dictionary, and a clock that only the test moves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from actors.lexical import following
from actors.lexical.following import REFRESH_EVERY_S, LexicalFollower
from actors.messages import Distinct, Freshness, LexicalQuery, LexicalSearch, PointState
from contract.errors import InvalidRequest, ShardUnavailable
from contract.filters import Filter, Match, Range


class FakePoints:
    """Points by id; each change has the next source offset."""

    def __init__(self) -> None:
        self.states: dict[str, PointState] = {}
        self.offset = -1
        self.failing = False

    @property
    def points(self) -> int:
        return len(self.states)

    def fetch(self, image_ids: Sequence[str]) -> list[PointState | None]:
        if self.failing:
            raise OSError("no store")
        return [self.states.get(image_id) for image_id in image_ids]

    def scan(self, after: str | None, limit: int) -> list[PointState]:
        there = sorted(self.states)
        return [self.states[i] for i in there if after is None or i > after][:limit]


class Shard:
    """Points, and the index that follows them."""

    def __init__(self) -> None:
        self.points = FakePoints()
        self.now = 100.0
        self.follower = LexicalFollower(self.points, self.freshness, lambda: self.now)

    def freshness(self) -> Freshness:
        return Freshness({0: self.points.offset}, 0.0)

    def put(self, image_id: str, caption: str, *, sha256: str | None = None, **payload: Any) -> None:
        with self.follower.changing([image_id]):
            self.points.offset += 1
            self.points.states[image_id] = PointState(
                image_id=image_id,
                state="searchable",
                source_offset=self.points.offset,
                payload=json.dumps({"caption": caption, **payload}).encode(),
                sha256=sha256,
                uploaded_at_ms=self.points.offset,
            )

    def delete(self, image_id: str) -> None:
        with self.follower.changing([image_id]):
            self.points.offset += 1
            self.points.states[image_id] = PointState(
                image_id=image_id, state="deleted", source_offset=self.points.offset
            )

    def search(self, text: str, k: int = 50, wanted: Filter | None = None, *, fresh: bool = True) -> list[str]:
        query = LexicalQuery(text, k, wanted)
        return [hit.image_id for hit in self.follower.search(LexicalSearch((query,), fresh=fresh)).candidates[0]]

    def lagging(self) -> int:
        """The source offset that a search which does not insist covers."""
        return self.follower.search(LexicalSearch((LexicalQuery("x", 1),))).freshness.applied_offsets[0]


@pytest.fixture
def shard() -> Shard:
    one = Shard()
    one.follower.step()
    return one


def test_better_matches_stand_first_and_equal_ones_by_id(shard: Shard) -> None:
    for image_id, caption in (("c", "red bird"), ("b", "red bird"), ("a", "red tree"), ("d", "a blue house")):
        shard.put(image_id, caption)
    assert shard.search("a red bird") == ["b", "c", "a"]
    result = shard.follower.search(LexicalSearch((LexicalQuery("bird", 1), LexicalQuery("house", 3))))
    assert [[hit.image_id for hit in hits] for hits in result.candidates] == [["b"], ["d"]]
    assert all(hit.score > 0 for hits in result.candidates for hit in hits)


def test_the_k_best_of_many_equal_ones_are_the_first_by_id(shard: Shard) -> None:
    for n in reversed(range(200)):
        shard.put(f"{n:03}", "red")
    for k in (1, 7, 150, 200):
        assert shard.search("red", k) == [f"{n:03}" for n in range(k)]


def test_images_with_equal_bytes_take_one_place_and_the_best_of_them_decides_it(shard: Shard) -> None:
    for n in range(100):
        shard.put(f"copy-{n:02}", "red bird", sha256="ab" * 32, n=n)
    shard.put("copy-better", "bird", sha256="ab" * 32, n=100)
    for n in range(5):
        shard.put(f"other-{n}", "a bird upon a tree", sha256=f"{n:064x}", n=200)
    shard.put("odd", "bird in a house by the cold sea", n=200)

    def pictures(k: int, *, wanted: Filter | None = None, allowed: Filter | None = None) -> list[tuple[str, int]]:
        query = LexicalQuery("bird", k, wanted, Distinct(allowed))
        found = shard.follower.search(LexicalSearch((query,), fresh=True)).candidates[0]
        return [(hit.image_id, 0 if hit.group is None else hit.group.count) for hit in found]

    others = [(f"other-{n}", 1) for n in range(5)]
    assert pictures(10) == [("copy-00", 101), *others, ("odd", 0)]
    assert pictures(3) == [("copy-00", 101), *others[:2]]
    few = Filter(must=(Range("n", gte=98.0),))
    assert pictures(2, wanted=few) == pictures(2, allowed=few) == [("copy-98", 3), others[0]]


def test_a_question_without_words_finds_nothing(shard: Shard) -> None:
    shard.put("a", "red")
    assert shard.search("of the ?!") == []
    assert shard.search("green") == []


def test_what_the_index_has_not_been_told_yet_never_comes_back(shard: Shard) -> None:
    for image_id in ("gone", "renamed", "kept"):
        shard.put(image_id, "red")
    assert shard.search("red") == ["gone", "kept", "renamed"]
    shard.delete("gone")
    shard.put("renamed", "blue")
    shard.put("kept", "dark red")
    shard.put("new", "red")
    # The clock stands still, so this one does not wait for a commit, and says what it covers.
    assert shard.lagging() == 2
    assert shard.search("red", fresh=False) == ["kept"]
    assert shard.search("red") == ["new", "kept"]
    assert shard.lagging() == 6


def test_searches_beside_inserts_share_a_commit(shard: Shard) -> None:
    shard.put("a", "red")
    assert shard.search("red", fresh=False) == []
    shard.now += REFRESH_EVERY_S
    assert shard.search("red", fresh=False) == ["a"]
    shard.put("b", "red")
    shard.now += REFRESH_EVERY_S / 2
    result = shard.follower.search(LexicalSearch((LexicalQuery("red", 5),)))
    assert [hit.image_id for hit in result.candidates[0]] == ["a"]
    assert result.freshness.applied_offsets == {0: 0}
    assert result.freshness.staleness_s == pytest.approx(REFRESH_EVERY_S / 2)


def test_a_change_that_has_just_taken_effect_is_found_before_its_end_is_noted(shard: Shard) -> None:
    with shard.follower.changing(["a"]):
        assert shard.search("red") == []
        shard.points.offset += 1
        payload = b'{"caption": "red"}'
        shard.points.states["a"] = PointState(image_id="a", state="searchable", source_offset=0, payload=payload)
        assert shard.search("red") == ["a"]
    assert shard.search("red") == ["a"]


def test_step_says_whether_there_was_something_to_do(shard: Shard) -> None:
    assert not shard.follower.step()
    shard.put("a", "red")
    shard.put("wordless", "")
    assert shard.follower.step()
    assert not shard.follower.step()
    assert shard.follower.documents == 1
    shard.put("a", "")
    shard.follower.step()
    assert shard.follower.documents == 0


def test_filters_are_honoured_however_rare_what_they_let_through(shard: Shard) -> None:
    for n in range(300):
        shard.put(f"{n:03}", "red red red" if n < 299 else "a long caption with red in it", owner=f"{n % 100}")
    for owner in ("7", "99", "nobody"):
        expected = [f"{n:03}" for n in range(300) if str(n % 100) == owner]
        assert shard.search("red", 10, Filter(must=(Match("owner", (owner,)),))) == expected


def test_a_filtered_search_examines_a_bounded_number(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "EXAMINED_MAX", 50)
    for n in range(120):
        shard.put(f"{n:03}", "red" if n < 119 else "red in a long caption", owner="bob" if n < 119 else "ada")
    assert shard.search("red", 1, Filter(must=(Match("owner", ("ada",)),))) == []
    assert shard.search("red", 100) == [f"{n:03}" for n in range(100)]


def test_payloads_can_be_left_out(shard: Shard) -> None:
    shard.put("a", "red", owner="ada")
    for with_payload in (True, False):
        request = LexicalSearch((LexicalQuery("red", 1),), with_payload, fresh=True)
        (hit,) = shard.follower.search(request).candidates[0]
        assert (None if hit.payload is None else msgspec.json.decode(hit.payload)) == (
            {"caption": "red", "owner": "ada"} if with_payload else None
        )


def test_it_is_built_from_what_is_there_and_refuses_until_then() -> None:
    shard = Shard()
    for n in range(2500):
        shard.put(f"{n:04}", "red" if n % 2 else "blue")
    assert shard.follower.documents is None
    with pytest.raises(ShardUnavailable, match="being built: 0 of 2500 points"):
        shard.search("red")
    shard.follower.step()
    assert shard.follower.documents == 2500
    assert shard.search("red", 3) == ["0001", "0003", "0005"]
    assert not shard.follower.step() or shard.follower.documents == 2500


def test_other_points_take_the_place_of_all(shard: Shard) -> None:
    shard.put("old", "red")
    assert shard.search("red") == ["old"]
    shard.points.states = {}
    shard.follower.restart(shard.points)
    with pytest.raises(ShardUnavailable):
        shard.search("red")
    shard.put("new", "red")
    shard.follower.step()
    assert shard.search("red") == ["new"]


def test_a_build_that_is_overtaken_by_a_restart_is_thrown_away() -> None:
    shard = Shard()
    for n in range(1500):
        shard.put(f"{n:04}", "red")
    scan = shard.points.scan

    def overtaken(after: str | None, limit: int) -> list[PointState]:
        found = scan(after, limit)
        if after is None:
            shard.follower.restart()
        return found

    shard.points.scan = overtaken  # type: ignore[method-assign]
    shard.follower.step()
    assert shard.follower.documents is None
    shard.points.scan = scan  # type: ignore[method-assign]
    shard.follower.step()
    assert shard.follower.documents == 1500


def test_a_failure_of_the_store_loses_no_change(shard: Shard) -> None:
    shard.put("a", "red")
    shard.points.failing = True
    with pytest.raises(OSError, match="no store"):
        shard.follower.step()
    shard.points.failing = False
    assert shard.search("red") == ["a"]


def test_a_question_for_nothing_is_refused(shard: Shard) -> None:
    with pytest.raises(InvalidRequest):
        shard.search("red", 0)
