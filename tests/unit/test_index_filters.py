"""The payload index at its usual sizes, at its limits, and when it is told something wrong."""

from __future__ import annotations

import random
from typing import Any

import pytest

from actors.index.filters import FilterIndex
from contract.errors import InvalidRequest
from contract.filters import EARTH_RADIUS_M, Filter, decode_filter, matches

PEOPLE = [{"owner": "ada", "year": 2024}, {"owner": "bob", "year": 2025}, {"owner": "ada", "year": 2026}]


def index_of(payloads: list[dict[str, Any]], fields: tuple[str, ...] | None = None) -> FilterIndex:
    index = FilterIndex(fields)
    for number, payload in enumerate(payloads):
        index.put(number, payload)
    return index


def must(key: str, **condition: Any) -> Filter:
    return decode_filter({"must": [{"key": key, **condition}]})


def test_many_points_go_through_every_level() -> None:
    chance = random.Random(5)
    colours = ["red", "green", "blue"]
    payloads: dict[int, dict[str, Any]] = {}
    index = FilterIndex(None)
    asked = [
        must("colour", match={"value": "red"}),
        must("caption", match={"any": ["picture 77", "picture 12000", "none"]}),
        must("tags", match={"any": [3, 5]}),
        must("size", range={"gte": 100, "lt": 600}),
        must("size", match={"value": 500}),
        must("at", range={"lt": "2026-01-01T12:00:00Z"}),
        must("place", geo_radius={"center": {"lat": 10, "lon": 179.5}, "radius": 400_000}),
        Filter(must_not=must("colour", match={"value": "red"}).must),
    ]

    def payload(number: int) -> dict[str, Any]:
        return {
            "caption": f"picture {number}",
            "colour": chance.choice(colours),
            "tags": chance.sample(range(40), 3),
            "size": chance.randrange(1000),
            "at": f"2026-01-{chance.randrange(1, 3):02d}T{chance.randrange(24):02d}:00:00Z",
            "place": {"lat": chance.uniform(0, 20), "lon": chance.choice([1, -1]) * chance.uniform(170, 180)},
        }

    for step in range(4):
        for number in range(step * 5000, (step + 1) * 5000):
            index.put(number, payloads.setdefault(number, payload(number)))
        for number in chance.sample(sorted(payloads), 1500):
            index.remove(number, payloads.pop(number))
        for number in chance.sample(sorted(payloads), 1500):
            index.replace(number, payloads[number], after := payload(number))
            payloads[number] = after
        for wanted in asked:
            expected = {number for number, stored in payloads.items() if matches(wanted, stored)}
            assert set(index.matching(wanted)) == expected
            assert 0 < len(expected) < len(payloads)
    again = FilterIndex.load(index.dump())
    assert [again.matching(wanted) for wanted in asked] == [index.matching(wanted) for wanted in asked]
    assert len(again) == len(index) == len(payloads)


def test_unique_texts_cost_little_more_than_their_hash() -> None:
    index = index_of([{"caption": f"a caption that no other picture has, number {i}"} for i in range(40_000)])
    wanted = must("caption", match={"value": "a caption that no other picture has, number 7"})
    assert set(index.matching(wanted)) == {7}
    assert index.nbytes() < 20 * len(index)


def test_a_common_value_costs_a_bitmap() -> None:
    index = index_of([{"visibility": "public"}] * 40_000)
    assert len(index.matching(must("visibility", match={"value": "public"}))) == 40_000
    assert index.nbytes() < 2 * len(index)


def test_what_is_returned_belongs_to_the_caller() -> None:
    index = index_of(PEOPLE * 100)
    for wanted in (Filter(), must("owner", match={"value": "ada"}), must("year", range={"gt": 0})):
        before = index.matching(wanted)
        index.matching(wanted).clear()
        assert index.matching(wanted) == before
    index.numbers.clear()
    assert len(index) == 300


def test_only_the_named_fields_are_indexed() -> None:
    index = index_of([{"owner": "ada", "camera": {"model": "x", "lens": 3}}], ("owner", "camera.model"))
    assert index.fields == ("camera.model", "owner")
    assert set(index.matching(must("camera.model", match={"value": "x"}))) == {0}
    for wanted in (
        must("camera.lens", match={"value": 3}),
        Filter(must=must("owner", match={"value": "nobody"}).must + must("camera.lens", range={"gt": 0}).must),
        Filter(must_not=(must("camera.lens", range={"gt": 0}),)),
    ):
        with pytest.raises(
            InvalidRequest, match=r"'camera\.lens' is not indexed; indexed fields: camera\.model, owner"
        ):
            index.matching(wanted)
    with pytest.raises(InvalidRequest, match="none"):
        FilterIndex(()).matching(must("a", match={"value": 1}))
    assert FilterIndex.load(index.dump()).fields == index.fields
    assert not FilterIndex(None).matching(must("never.seen", match={"value": 1}))


def test_circles_across_the_date_line_and_on_their_very_edge() -> None:
    places = [(0, 179.9), (0, -179.9), (0, 179.0), (89.95, 10), (89.95, -170), (0, 0), (0, 180), (-90, 3)]
    payloads: list[dict[str, Any]] = [{"at": {"lat": lat, "lon": lon}} for lat, lon in places]
    index = index_of(payloads)

    def near(lat: float, lon: float, radius: float) -> set[int]:
        wanted = must("at", geo_radius={"center": {"lat": lat, "lon": lon}, "radius": radius})
        found = set(index.matching(wanted))
        assert found == {number for number, payload in enumerate(payloads) if matches(wanted, payload)}
        return found

    assert near(0, -179.95, 20_000) == {0, 1, 6}
    assert near(89.9, 60, 25_000) == {3, 4}
    assert near(0, 0, 0) == {5}
    assert near(0, 0, 4 * EARTH_RADIUS_M) == set(range(len(places)))
    degree = EARTH_RADIUS_M * 3.141592653589793 / 180
    for radius in (degree, degree * (1 - 1e-15), degree * (1 + 1e-15), degree * 0.999, 180 * degree, 90 * degree):
        near(0, 178.0, radius)
        near(0, 0, radius)


def test_a_wrong_number_changes_nothing() -> None:
    index = index_of(PEOPLE)
    for number in (0, -1, 2**32):
        with pytest.raises(ValueError, match=f"number {number} "):
            index.put(number, {"owner": "eve"})
    with pytest.raises(ValueError, match="number 9 "):
        index.remove(9, {"owner": "ada"})
    with pytest.raises(ValueError, match="number 9 "):
        index.replace(9, {}, {"owner": "ada"})
    assert set(index.matching(must("owner", match={"any": ["ada", "eve"]}))) == {0, 2}
    index.put(2**32 - 1, {"owner": "eve"})
    assert set(index.matching(must("owner", match={"value": "eve"}))) == {2**32 - 1}


def test_a_payload_may_be_nested_beyond_what_calls_may_be() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    assert set(index_of([{"a": deep}]).matching(must("a", match={"value": "x"}))) == {0}


def test_a_torn_dump_is_refused() -> None:
    data = index_of(PEOPLE).dump()
    assert set(FilterIndex.load(data).matching(must("owner", match={"value": "ada"}))) == {0, 2}
    flipped = bytearray(data)
    flipped[-5] ^= 1
    for torn in (b"", data[:-1], data[:20], data + b"\0", bytes(flipped), b"x" + data[1:]):
        with pytest.raises(ValueError, match="torn"):
            FilterIndex.load(torn)
