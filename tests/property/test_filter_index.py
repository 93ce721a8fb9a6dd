"""The payload index against `matches` on every payload, through any order of changes."""

from __future__ import annotations

from typing import Any
from unittest import mock

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pyroaring import BitMap

from actors.index.filters import FilterIndex
from contract.filters import Filter, decode_filter, matches

# So that a few points already fill the log, both runs and the bitmaps of common keys.
limits = st.fixed_dictionaries(
    {
        "LOG_MAX": st.sampled_from([1, 7, 100]),
        "RECENT_MIN": st.sampled_from([0, 5, 20]),
        "COMMON_MIN": st.sampled_from([2, 3, 100]),
        "SORTED_MAX": st.sampled_from([0, 2, 100]),
    }
)

names = st.sampled_from(["a", "b", "a.b", ""])
keys = st.sampled_from(["a", "b", "a.b", "b.a", "a.b.b", "a.lat", "b..a", "missing"])
texts = st.sampled_from(["", "x", "1", "true", "1970-01-01T00:00:01Z", "1970-01-01T01:00:00+01:00", "1970-01-01"])
integers = st.integers(-2, 2) | st.sampled_from([2**53 - 1, 2**53, 2**53 + 1, -(2**53) - 1, 2**64, 10**400])
floats = st.sampled_from([0.0, -0.0, 0.5, 1.0, -2.5, 2.0**53, 2.0**64, 1e300, float("inf"), float("nan")])
finite = st.integers(-2, 2) | st.sampled_from([2**53, 2**53 + 1, -(2**53) - 1, 2**64, 0.5, -0.0, 2.0**53, 1e300])
degrees = st.sampled_from([-180, -179.99999, -90, -89.9999, -0.001, 0, 0.0005, 0.001, 45, 89.9999, 90, 179.99999, 180])
latitudes = degrees.filter(lambda value: -90 <= value <= 90)
places = st.fixed_dictionaries({"lat": degrees, "lon": degrees})
values = st.recursive(
    st.none() | st.booleans() | integers | floats | texts | places,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=2),
    max_leaves=6,
)

scalars = st.booleans() | finite | texts
# Most payloads hold what filters ask for; the others hold what they had better survive.
common = st.lists(scalars | places, min_size=1, max_size=3)
payloads = st.dictionaries(st.sampled_from(["a", "b", "a.b"]), common, max_size=3) | st.dictionaries(
    names, values, max_size=3
)

bounds = finite | st.sampled_from(["1970-01-01T00:00:00Z", "1970-01-01T00:00:01Z"])
radii = st.sampled_from([0, 1, 60, 111.2, 111_195, 5e6, 10_007_557, 15e6, 20_015_114.4, 1e9])
leaves = st.one_of(
    st.fixed_dictionaries({"key": keys, "match": st.fixed_dictionaries({"value": scalars})}),
    st.fixed_dictionaries({"key": keys, "match": st.fixed_dictionaries({"any": st.lists(scalars, max_size=4)})}),
    st.fixed_dictionaries(
        {"key": keys, "range": st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), bounds, min_size=1)}
    ),
    st.fixed_dictionaries(
        {
            "key": keys,
            "geo_radius": st.fixed_dictionaries(
                {"center": st.fixed_dictionaries({"lat": latitudes, "lon": degrees}), "radius": radii}
            ),
        }
    ),
)


def filters_of(conditions: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    clauses = st.sampled_from(["must", "should", "must_not"])
    return st.dictionaries(clauses, st.lists(conditions, max_size=3), max_size=3)


# Every value and a choice of ranges and circles, at every key: what one index entry too many or too few shows in.
CONDITIONS: list[dict[str, Any]] = [
    *({"match": {"value": value}} for value in (True, False, "", "x", "1970-01-01T00:00:01Z")),
    *({"match": {"value": value}} for value in (-2, -1, 0, 1, 2, 0.5, 2**53, 2**53 + 1, -(2**53) - 1, 2**64, 1e300)),
    {"match": {"any": [2**53, 0, "x", True]}},
    *({"range": {bound: value}} for bound in ("gt", "gte", "lt", "lte") for value in (-1, 0, 1, 2**53)),
    *({"range": {low: 0, high: 1}} for low in ("gt", "gte") for high in ("lt", "lte")),
    *(
        {"geo_radius": {"center": {"lat": lat, "lon": lon}, "radius": radius}}
        for lat, lon in ((0, 0), (0, 179.99999), (45, -180), (89.9999, 45), (-90, 0))
        for radius in (0, 60, 111_195, 10_007_557)
    ),
]
EVERYTHING = [
    decode_filter({"must": [{"key": key, **condition}]}) for key in ("a", "b", "a.b") for condition in CONDITIONS
]

filters = filters_of(leaves | filters_of(leaves)).map(decode_filter)


class FilterIndexStates(RuleBasedStateMachine):
    """A dictionary of payloads beside the index."""

    def __init__(self) -> None:
        super().__init__()
        self.small: Any = None
        self.index = FilterIndex(None)
        self.expected: dict[int, dict[str, Any]] = {}

    @initialize(small=limits)
    def limit(self, small: dict[str, Any]) -> None:
        self.small = mock.patch.multiple("actors.index.columns", **small)
        self.small.start()

    def teardown(self) -> None:
        if self.small is not None:
            self.small.stop()

    @rule(number=st.integers(0, 15) | st.sampled_from([2**31, 2**32 - 1]), payload=payloads)
    def put_or_replace(self, number: int, payload: dict[str, Any]) -> None:
        if number in self.expected:
            self.index.replace(number, self.expected[number], payload)
        else:
            self.index.put(number, payload)
        self.expected[number] = payload

    @rule(first=st.integers(100, 120), count=st.integers(2, 8), payload=payloads)
    def put_alike(self, first: int, count: int, payload: dict[str, Any]) -> None:
        for number in range(first, first + count):
            self.put_or_replace(number, payload)

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), step=st.integers(1, 3))
    def remove_alike(self, data: st.DataObject, step: int) -> None:
        payload = self.expected[data.draw(st.sampled_from(sorted(self.expected)))]
        for number in sorted(n for n, other in self.expected.items() if other is payload)[::step]:
            self.index.remove(number, self.expected.pop(number))

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.expected)))
        self.index.remove(number, self.expected.pop(number))

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), payload=payloads)
    def put_again(self, data: st.DataObject, payload: dict[str, Any]) -> None:
        number = data.draw(st.sampled_from(sorted(self.expected)))
        self.index.remove(number, self.expected.pop(number))
        self.put_or_replace(number, payload)

    @rule()
    def restart(self) -> None:
        self.index = FilterIndex.load(self.index.dump())

    @rule(wanted=filters)
    def ask_one(self, wanted: Filter) -> None:
        self.ask(wanted)

    def ask(self, wanted: Filter) -> None:
        found = self.index.matching(wanted)
        assert set(found) == {number for number, payload in self.expected.items() if matches(wanted, payload)}
        found.clear()

    @rule()
    def ask_everything(self) -> None:
        for wanted in EVERYTHING:
            self.ask(wanted)

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.index) == len(self.expected)
        assert set(self.index.numbers) == set(self.expected)


TestFilterIndexStates = FilterIndexStates.TestCase
TestFilterIndexStates.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)


@given(limits, st.lists(payloads, max_size=12), st.lists(filters, min_size=1, max_size=5))
@settings(deadline=None, max_examples=50)
def test_the_index_says_what_matches_says(
    small: dict[str, Any], stored: list[dict[str, Any]], asked: list[Filter]
) -> None:
    with mock.patch.multiple("actors.index.columns", **small):
        index = FilterIndex(None)
        for number, payload in enumerate(stored):
            index.put(number, payload)
        again = FilterIndex.load(index.dump())
        for wanted in (*asked, *EVERYTHING):
            expected = BitMap(number for number, payload in enumerate(stored) if matches(wanted, payload))
            assert index.matching(wanted) == again.matching(wanted) == expected
