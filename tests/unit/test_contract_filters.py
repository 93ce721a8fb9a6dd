"""What a filter may say, and what it means."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest

from contract.errors import InvalidRequest
from contract.filters import (
    EARTH_RADIUS_M,
    MAX_CONDITIONS,
    MAX_DEPTH,
    MAX_VALUES,
    Filter,
    GeoRadius,
    Match,
    Range,
    decode_filter,
    matches,
    number_of,
    place_of,
)

BERLIN = {"lat": 52.52, "lon": 13.405}


def holds(condition: dict[str, Any], payload: dict[str, Any]) -> bool:
    return matches(decode_filter({"must": [condition]}), payload)


def test_a_filter_decodes_to_its_parts() -> None:
    data = {
        "must": [{"key": "owner", "match": {"value": "ada"}}, {"key": "tags", "match": {"any": ["bird", 1, True]}}],
        "should": [{"must_not": [{"key": "year", "range": {"gt": 2000, "lte": 2026.5}}]}],
        "must_not": [{"key": "place", "geo_radius": {"center": BERLIN, "radius": 1000}}],
    }
    wanted = Filter(
        must=(Match("owner", ("ada",)), Match("tags", ("bird", 1), (True,))),
        should=(Filter(must_not=(Range("year", gt=2000.0, lte=2026.5),)),),
        must_not=(GeoRadius("place", 52.52, 13.405, 1000.0),),
    )
    assert decode_filter(data) == wanted
    assert pickle.loads(pickle.dumps(wanted)) == wanted


def test_filters_that_mean_different_things_differ() -> None:
    """They are keys of dictionaries, where Python would take True for 1."""
    different = [True, 1, "1", "true", False, 0]
    filters = {decode_filter({"must": [{"key": "a", "match": {"value": value}}]}) for value in different}
    assert len(filters) == len(different)
    assert decode_filter({"must": [{"key": "a", "match": {"value": 1.0}}]}) in filters


def nested(depth: int) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for _ in range(depth - 1):
        data = {"must": [data]}
    return data


ONE = {"key": "a", "match": {"value": 1}}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], ["filter:", "object", "`must`"]),
        ("owner = ada", ["filter:", "object"]),
        ({"most": []}, ["filter:", "'most'", "must_not"]),
        ({"must": ONE}, ["filter.must:", "list"]),
        ({"must": [ONE, 3]}, ["filter.must[1]:", "`key`"]),
        ({"must": [{"match": {"value": 1}}]}, ["filter.must[0].key:", "name"]),
        ({"must": [{"key": "", "match": {"value": 1}}]}, ["filter.must[0].key:"]),
        ({"must": [{"key": "a" * 257, "match": {"value": 1}}]}, ["filter.must[0].key:", "256"]),
        ({"must": [{"key": "a"}]}, ["filter.must[0]:", "exactly one of", "`range`"]),
        ({"must": [{"key": "a", "match": {"value": 1}, "range": {"gt": 1}}]}, ["exactly one of"]),
        ({"must": [{"key": "a", "equals": 1}]}, ["filter.must[0]:", "'equals'", "geo_radius"]),
        ({"should": [{"must_not": [{"key": "a", "match": 3}]}]}, ["filter.should[0].must_not[0].match:", "`value`"]),
        ({"must": [{"key": "a", "match": {}}]}, ["either `value` or `any`"]),
        ({"must": [{"key": "a", "match": {"value": 1, "any": []}}]}, ["either `value` or `any`"]),
        ({"must": [{"key": "a", "match": {"value": None}}]}, ["match.value:", "true or false"]),
        ({"must": [{"key": "a", "match": {"value": math.nan}}]}, ["match.value:", "finite"]),
        ({"must": [{"key": "a", "match": {"any": "bird"}}]}, ["match.any:", "list"]),
        ({"must": [{"key": "a", "match": {"any": ["x", {}]}}]}, ["match.any[1]:"]),
        ({"must": [{"key": "a", "match": {"any": [0] * (MAX_VALUES + 1)}}]}, ["match.any:", str(MAX_VALUES)]),
        ({"must": [{"key": "a", "range": {}}]}, ["range:", "at least one of", "`gte`"]),
        ({"must": [{"key": "a", "range": {"from": 1}}]}, ["range:", "'from'", "gte"]),
        ({"must": [{"key": "a", "range": {"gt": True}}]}, ["range.gt:", "number"]),
        ({"must": [{"key": "a", "range": {"gt": 10**400}}]}, ["range.gt:", "number"]),
        ({"must": [{"key": "a", "range": {"lt": "2026-05-01"}}]}, ["range.lt:", "2026-05-01T00:00:00Z"]),
        ({"must": [{"key": "a", "range": {"lt": "2026-05-01T00:00:00"}}]}, ["range.lt:", "offset"]),
        ({"must": [{"key": "a", "geo_radius": {"radius": 1}}]}, ["geo_radius.center:", "`lat`"]),
        ({"must": [{"key": "a", "geo_radius": {"center": BERLIN}}]}, ["geo_radius.radius:", "metres"]),
        ({"must": [{"key": "a", "geo_radius": {"center": BERLIN, "radius": -1}}]}, ["geo_radius.radius:"]),
        ({"must": [{"key": "a", "geo_radius": {"center": {"lat": 91, "lon": 0}, "radius": 1}}]}, ["-90 to 90"]),
        ({"must": [{"key": "a", "geo_radius": {"center": {"lat": 9, "lon": "0"}, "radius": 1}}]}, ["-180 to 180"]),
        ({"must": [{"key": "a", "geo_radius": {"center": {**BERLIN, "z": 0}, "radius": 1}}]}, ["center:", "'z'"]),
        ({"must": [ONE] * (MAX_CONDITIONS + 1)}, ["filter.must:", str(MAX_CONDITIONS), "any"]),
        ({"must": [ONE] * MAX_CONDITIONS, "should": [ONE]}, ["filter.should:", str(MAX_CONDITIONS)]),
        (nested(MAX_DEPTH + 1), [str(MAX_DEPTH), "deep"]),
    ],
)
def test_a_filter_that_cannot_be_says_where_and_what_belongs_there(data: object, words: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_filter(data)
    assert [word for word in words if word not in caught.value.detail] == []


def test_what_is_at_the_limits_is_taken() -> None:
    decode_filter(nested(MAX_DEPTH))
    decode_filter({"must": [ONE] * MAX_CONDITIONS})
    decode_filter({"must": [{"key": "a" * 256, "match": {"any": list(range(MAX_VALUES))}}]})


def test_an_empty_filter_holds_for_everything() -> None:
    empty: list[dict[str, Any]] = [{}, {"must": [], "should": [], "must_not": []}, {"must": [{}]}]
    for data in empty:
        assert matches(decode_filter(data), {})
    assert not matches(decode_filter({"must_not": [{}]}), {"a": 1})


def test_must_should_and_must_not() -> None:
    def has(key: str) -> dict[str, Any]:
        return {"key": key, "match": {"value": True}}

    wanted = decode_filter({"must": [has("a")], "should": [has("b"), has("c")], "must_not": [has("d")]})
    assert matches(wanted, {"a": True, "b": True})
    assert matches(wanted, {"a": True, "c": True, "d": False})
    assert not matches(wanted, {"a": True})
    assert not matches(wanted, {"b": True, "c": True})
    assert not matches(wanted, {"a": True, "b": True, "d": True})


@pytest.mark.parametrize(
    ("value", "stored", "expected"),
    [
        ("ada", "ada", True),
        ("ada", "Ada", False),
        (1, 1.0, True),
        (1.5, 1.5, True),
        (0, -0.0, True),
        (2**60 + 1, 2**60 + 1, True),
        (2**60 + 1, 2**60, False),
        (2.0**60, 2**60, True),
        (1, True, False),
        (True, 1, False),
        (True, True, True),
        (False, 0, False),
        ("1", 1, False),
        ("true", True, False),
        (1767225600, "2026-01-01T00:00:00Z", False),
        (1, None, False),
        (1, [], False),
        (1, [[0], [2, [1]]], True),
        ("a", {"a": "a"}, False),
    ],
)
def test_equality(value: object, stored: object, expected: bool) -> None:
    assert holds({"key": "x", "match": {"value": value}}, {"x": stored}) is expected
    assert holds({"key": "x", "match": {"any": ["other", value]}}, {"x": stored}) is expected


def test_any_of_nothing_never_holds() -> None:
    assert not holds({"key": "x", "match": {"any": []}}, {"x": 1})


def test_a_missing_field_holds_only_under_must_not() -> None:
    condition = {"key": "x.y", "match": {"value": 1}}
    without: list[dict[str, Any]] = [{}, {"x": 1}, {"x": {}}, {"x": {"y": None}}, {"x": {"y": []}}]
    for payload in without:
        assert not holds(condition, payload)
        assert matches(decode_filter({"must_not": [condition]}), payload)


@pytest.mark.parametrize(
    "payload",
    [
        {"a": {"b": {"c": 1}}},
        {"a.b": {"c": 1}},
        {"a": {"b.c": 1}},
        {"a.b.c": 1},
        {"a": [{"b": {"c": 0}}, {"b": [{"c": [2, 1]}]}]},
        {"a": {"b": 3}, "a.b": {"c": 1}},
    ],
)
def test_a_dotted_key_walks_into_objects_and_lists(payload: dict[str, Any]) -> None:
    assert holds({"key": "a.b.c", "match": {"value": 1}}, payload)
    assert not holds({"key": "a.c", "match": {"value": 1}}, payload)
    assert not holds({"key": "b.c", "match": {"value": 1}}, payload)


def test_a_payload_may_be_nested_beyond_what_calls_may_be() -> None:
    payload: Any = 1
    for _ in range(20_000):
        payload = [payload]
    assert holds({"key": "x", "match": {"value": 1}}, {"x": payload})


@pytest.mark.parametrize(
    ("bounds", "stored", "expected"),
    [
        ({"gt": 1}, 1, False),
        ({"gte": 1}, 1, True),
        ({"lt": 1}, 1.0, False),
        ({"lte": 1}, 1.0, True),
        ({"gt": 1, "gte": 0}, 1, False),
        ({"gte": 1, "lt": 2}, [0, 1.5, 3], True),
        # One value has to be within all bounds.
        ({"gte": 1, "lt": 2}, [0, 3], False),
        ({"gt": 5, "lt": 1}, 3, False),
        ({"gte": 0}, True, False),
        ({"gte": 0}, "7", False),
        ({"gte": 0}, math.inf, False),
        ({"gte": "2026-01-01T00:00:00Z"}, "2026-01-01T01:00:00+01:00", True),
        ({"gt": "2026-01-01T00:00:00Z"}, "2026-01-01T01:00:00+01:00", False),
        ({"gt": "2026-01-01T00:00:00Z"}, "2026-01-01T00:00:00.001Z", True),
        ({"gte": "2026-01-01T00:00:00Z"}, "2026-01-01", False),
        ({"gte": 1767225600, "lte": 1767225600}, "2026-01-01T00:00:00Z", True),
        ({"gte": "2026-01-01T00:00:00Z", "lte": "2026-01-01T00:00:00Z"}, 1767225600, True),
    ],
)
def test_ranges(bounds: dict[str, object], stored: object, expected: bool) -> None:
    assert holds({"key": "x", "range": bounds}, {"x": stored}) is expected


def near(center: tuple[float, float], radius: float, *places: tuple[float, float]) -> bool:
    condition = {"key": "at", "geo_radius": {"center": {"lat": center[0], "lon": center[1]}, "radius": radius}}
    return holds(condition, {"at": [{"lat": lat, "lon": lon} for lat, lon in places]})


def test_geo_radius_measures_along_the_great_circle() -> None:
    degree = math.pi / 180 * EARTH_RADIUS_M
    assert near((0, 0), degree + 1, (0, 1))
    assert not near((0, 0), degree - 1, (0, 1))
    # Berlin to Paris, about 877.5 km on a sphere.
    berlin, paris = (52.5200, 13.4050), (48.8566, 2.3522)
    assert near(berlin, 878_500, paris)
    assert not near(berlin, 876_500, paris)
    assert near(berlin, 878_500, (0, 0), paris)


def test_geo_radius_across_the_date_line_the_poles_and_the_globe() -> None:
    assert near((0, 179.9), 30_000, (0, -179.9))
    assert near((89.9, 0), 30_000, (89.9, 180))
    assert near((10, 20), 0, (10, 20))
    assert not near((10, 20), 0.5, (10, 20.00001))
    assert near((0, 0), math.pi * EARTH_RADIUS_M, (0, 180))
    assert not near((0, 0), math.pi * EARTH_RADIUS_M - 100, (0, 180))


def test_what_is_no_place_is_near_nothing() -> None:
    for place in ({"lat": 1}, {"lat": 1, "lon": "1"}, {"lat": True, "lon": 1}, {"lat": 91, "lon": 0}, [1, 2], "1,2", 3):
        assert place_of(place) is None
        condition = {"key": "at", "geo_radius": {"center": BERLIN, "radius": 1e9}}
        assert not holds(condition, {"at": place})
    # The numbers of a place are fields as well.
    assert holds({"key": "at.lat", "range": {"gt": 50}}, {"at": BERLIN})


def test_only_date_times_with_an_offset_are_numbers() -> None:
    assert number_of("1970-01-01T00:00:01.5Z") == 1.5
    assert number_of("1970-01-01T01:00:00+01:00") == 0.0
    for text in ("1970-01-01T00:00:00", "1970-01-01", "1970-13-01T00:00:00Z", "no date-time at all, but long", ""):
        assert number_of(text) is None
    others: list[object] = [True, None, 10**400, math.nan, {}, 3]
    assert [number_of(value) for value in others] == [None] * 5 + [3.0]
