"""Filters on payloads: what a client writes, what it decodes to, and what it means.

    {"must": […], "should": […], "must_not": […]}

A condition is one of these, or a filter again:

    {"key": "owner", "match": {"value": "ada"}}
    {"key": "tags", "match": {"any": ["bird", "tree"]}}
    {"key": "taken_at", "range": {"gte": "2026-05-01T00:00:00Z", "lt": 1780272000}}
    {"key": "place", "geo_radius": {"center": {"lat": 52.52, "lon": 13.40}, "radius": 5000}}

Meaning, the same in `matches` and in a shard's index:

* A filter holds when all of `must` hold, at least one of `should` holds, and none of `must_not`
  does. A list that is empty or left out asks for nothing, so `{}` holds for every payload.
* A key is the names on the way to a value, joined by dots. A name in a payload may hold dots
  itself: `a.b` finds `{"a": {"b": 1}}` and `{"a.b": 1}`. A list stands for each of its elements,
  wherever it is on the way.
* A condition holds when at least one value at its key satisfies it. A field that is missing, null,
  an empty list or of another type has no such value: the condition does not hold, and under
  `must_not` that lets the payload through.
* `match`: strings are equal character by character; numbers by their value, so 1 equals 1.0;
  booleans equal only booleans, so neither 1 nor "true" equals true. `any` of nothing never holds.
* `range`: numbers and RFC 3339 date-times with an offset, both as one 64-bit float; a date-time
  counts as its Unix seconds, to the microsecond, so that either may be stored and either asked
  for. Booleans and other strings are outside every range.
* `geo_radius`: an object with `lat` (-90…90) and `lon` (-180…180) in degrees, taken to 1e-7 degree
  (about a centimetre), within `radius` metres along the great circle.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Struct

from contract.errors import InvalidRequest

MAX_DEPTH = 8
MAX_CONDITIONS = 64
MAX_VALUES = 1000
MAX_KEY_LENGTH = 256

# Source: mean radius R1 of GRS 80 (H. Moritz, Geodetic Reference System 1980, 2000), rounded to 0.1 m.
EARTH_RADIUS_M = 6_371_008.8

Scalar: TypeAlias = str | bool | int | float
Condition: TypeAlias = "Filter | Match | Range | GeoRadius"
# Latitude and longitude in units of 1e-7 degree.
Place: TypeAlias = tuple[int, int]

_DateTime = Annotated[datetime.datetime, msgspec.Meta(tz=True)]
_E7 = 1e7
_BOUNDS = ("gt", "gte", "lt", "lte")


class Match(Struct, frozen=True, tag="match"):
    """A value at `key` equals one of `values` or of `booleans`.

    They stand apart because Python takes True for 1, and filters that mean different things must
    differ: a batch of searches evaluates equal ones once.
    """

    key: str
    values: tuple[str | int | float, ...] = ()
    booleans: tuple[bool, ...] = ()

    @staticmethod
    def of(key: str, values: Sequence[Scalar]) -> Match:
        """The condition that a value at `key` equals one of these."""
        return Match(
            key,
            tuple(value for value in values if not isinstance(value, bool)),
            tuple(value for value in values if isinstance(value, bool)),
        )

    def holds(self, value: object) -> bool:
        """Whether a value of a payload equals one of these."""
        if isinstance(value, bool):
            return value in self.booleans
        return isinstance(value, str | int | float) and value in self.values


class Range(Struct, frozen=True, tag="range"):
    """A number or date-time at `key` is within every bound that is given; date-times are Unix seconds."""

    key: str
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None

    def holds(self, number: float) -> bool:
        """Whether a number, or a date-time as Unix seconds, is within the bounds."""
        return (
            (self.gt is None or number > self.gt)
            and (self.gte is None or number >= self.gte)
            and (self.lt is None or number < self.lt)
            and (self.lte is None or number <= self.lte)
        )


class GeoRadius(Struct, frozen=True, tag="geo_radius"):
    """A place at `key` is at most `radius_m` metres from `lat`, `lon` in degrees."""

    key: str
    lat: float
    lon: float
    radius_m: float

    @property
    def center(self) -> Place:
        """The centre in units of 1e-7 degree."""
        return (round(self.lat * _E7), round(self.lon * _E7))

    @property
    def max_haversine(self) -> float:
        """Haversine of the radius, the largest that is within; infinite if the circle is the globe."""
        angle = self.radius_m / EARTH_RADIUS_M
        return math.inf if angle >= math.pi else math.sin(angle / 2) ** 2

    def holds(self, place: Place) -> bool:
        """Whether a place is within the circle."""
        return haversine(self.center, place) <= self.max_haversine


class Filter(Struct, frozen=True, tag="filter"):
    """All of `must`, at least one of `should` unless it is empty, none of `must_not`."""

    must: tuple[Condition, ...] = ()
    should: tuple[Condition, ...] = ()
    must_not: tuple[Condition, ...] = ()


def matches(condition: Condition, payload: Mapping[str, Any]) -> bool:
    """Whether a payload, as decoded from JSON, satisfies a filter or a condition; see the module."""
    match condition:
        case Filter():
            return (
                all(matches(one, payload) for one in condition.must)
                and (not condition.should or any(matches(one, payload) for one in condition.should))
                and not any(matches(one, payload) for one in condition.must_not)
            )
        case Match():
            return any(condition.holds(value) for value in values_at(payload, condition.key))
        case Range():
            numbers = (number_of(value) for value in values_at(payload, condition.key))
            return any(number is not None and condition.holds(number) for number in numbers)
        case GeoRadius():
            places = (place_of(value) for value in values_at(payload, condition.key))
            return any(place is not None and condition.holds(place) for place in places)


def values_at(payload: Mapping[str, Any], key: str) -> Iterator[object]:
    """Scalars, nulls and objects at a key, in no particular order; lists are opened."""
    # A stack of its own: a payload may be nested more deeply than Python calls may be.
    rest: str | None
    stack: list[tuple[object, str | None]] = [(dict(payload), key)]
    while stack:
        node, rest = stack.pop()
        if isinstance(node, list | tuple):
            stack.extend((element, rest) for element in node)
        elif rest is None:
            yield node
        elif isinstance(node, dict):
            for name, child in node.items():
                if name == rest:
                    stack.append((child, None))
                elif rest.startswith(f"{name}."):
                    stack.append((child, rest[len(name) + 1 :]))


def number_of(value: object) -> float | None:
    """The number a range compares: of a number itself, of a date-time its Unix seconds, else None."""
    if isinstance(value, str):
        return unix_seconds(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def unix_seconds(text: str) -> float | None:
    """Unix seconds of an RFC 3339 date-time; None for any other text, also for one without an offset.

    Source: RFC 3339, section 5.6. A leap second (`:60`) is not taken.
    """
    # Most texts are no date-times; this spares them the cost of an error raised inside.
    if not 20 <= len(text) <= 40 or text[4] != "-" or text[13] != ":":
        return None
    try:
        return msgspec.convert(text, _DateTime).timestamp()
    except msgspec.ValidationError:
        return None


def place_of(value: object) -> Place | None:
    """The place an object with `lat` and `lon` in degrees names; None if it names none."""
    if not isinstance(value, dict):
        return None
    lat, lon = _degrees(value.get("lat"), 90), _degrees(value.get("lon"), 180)
    return None if lat is None or lon is None else (round(lat * _E7), round(lon * _E7))


def _degrees(value: object, limit: int) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -limit <= value <= limit:
        return None
    return float(value)


def haversine(one: Place, other: Place) -> float:
    """Haversine of the angle between two places, 0…1; it grows with their distance.

    Source: R. W. Sinnott, Virtues of the Haversine, Sky and Telescope 68 (1984).
    """
    # Differences of whole units are exact, so places side by side lose no digits.
    latitude = math.radians((other[0] - one[0]) / _E7)
    longitude = math.radians((other[1] - one[1]) / _E7)
    width = math.cos(math.radians(one[0] / _E7)) * math.cos(math.radians(other[0] / _E7))
    return math.sin(latitude / 2) ** 2 + width * math.sin(longitude / 2) ** 2


def decode_filter(data: object) -> Filter:
    """A filter from what JSON holds.

    Raises InvalidRequest, which says where the fault is and what belongs there, also for more than
    MAX_DEPTH filters inside each other, MAX_CONDITIONS conditions, or MAX_VALUES values of one.
    """
    return _Decoder().filter(data, "filter", 1)


def check_fields(condition: Condition, fields: Collection[str] | None) -> None:
    """Raise InvalidRequest, naming what is indexed, if a key is not among these fields; None is every field."""
    if fields is None:
        return
    if isinstance(condition, Filter):
        for one in (*condition.must, *condition.should, *condition.must_not):
            check_fields(one, fields)
    elif condition.key not in fields:
        indexed = ", ".join(sorted(fields)) or "none"
        raise InvalidRequest(f"filter: the field {condition.key!r} is not indexed; indexed fields: {indexed}")


class _Decoder:
    """Decodes one filter; `where` is the way to the part at hand, for messages."""

    def __init__(self) -> None:
        self._conditions = 0

    def filter(self, data: object, where: str, depth: int) -> Filter:
        fields = _object(data, where, "`must`, `should`, `must_not`", Filter.__struct_fields__)
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"{where}: filters lie inside each other; at most {MAX_DEPTH} deep")
        return Filter(**{name: self._list(value, f"{where}.{name}", depth) for name, value in fields.items()})

    def _list(self, data: object, where: str, depth: int) -> tuple[Condition, ...]:
        conditions = _array(data, where, "conditions")
        self._conditions += len(conditions)
        if self._conditions > MAX_CONDITIONS:
            raise InvalidRequest(f"{where}: a filter may hold {MAX_CONDITIONS} conditions; use `any` for many values")
        return tuple(self._condition(one, f"{where}[{i}]", depth) for i, one in enumerate(conditions))

    def _condition(self, data: object, where: str, depth: int) -> Condition:
        if isinstance(data, dict) and (not data or data.keys() & set(Filter.__struct_fields__)):
            return self.filter(data, where, depth + 1)
        fields = _object(data, where, "`key` and one of `match`, `range`, `geo_radius`", ("key", *_KINDS))
        key = fields.pop("key", None)
        if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY_LENGTH:
            raise InvalidRequest(f"{where}.key: must name a payload field with 1 to {MAX_KEY_LENGTH} characters")
        if len(fields) != 1:
            raise InvalidRequest(f"{where}: needs exactly one of `match`, `range`, `geo_radius` beside its `key`")
        ((kind, value),) = fields.items()
        return _KINDS[kind](key, value, f"{where}.{kind}")


def _match(key: str, data: object, where: str) -> Match:
    fields = _object(data, where, "either `value` or `any`", ("value", "any"))
    if len(fields) != 1:
        raise InvalidRequest(f"{where}: needs either `value` or `any`")
    if "value" in fields:
        return Match.of(key, [_scalar(fields["value"], f"{where}.value")])
    values = _array(fields["any"], f"{where}.any", "values")
    if len(values) > MAX_VALUES:
        raise InvalidRequest(f"{where}.any: holds {len(values)} values; at most {MAX_VALUES}")
    return Match.of(key, [_scalar(value, f"{where}.any[{i}]") for i, value in enumerate(values)])


def _range(key: str, data: object, where: str) -> Range:
    fields = _object(data, where, "bounds", _BOUNDS)
    if not fields:
        raise InvalidRequest(f"{where}: needs at least one of `gt`, `gte`, `lt`, `lte`")
    return Range(key, **{name: _bound(value, f"{where}.{name}") for name, value in fields.items()})


def _geo_radius(key: str, data: object, where: str) -> GeoRadius:
    fields = _object(data, where, "`center` and `radius`", ("center", "radius"))
    center = _object(fields.get("center"), f"{where}.center", "`lat` and `lon`", ("lat", "lon"))
    lat, lon = _degrees(center.get("lat"), 90), _degrees(center.get("lon"), 180)
    if lat is None or lon is None:
        raise InvalidRequest(f"{where}.center: needs `lat` from -90 to 90 and `lon` from -180 to 180, in degrees")
    radius = fields.get("radius")
    if isinstance(radius, str) or (metres := number_of(radius)) is None or metres < 0:
        raise InvalidRequest(f"{where}.radius: must be a number of metres from 0")
    return GeoRadius(key, lat, lon, metres)


_KINDS: dict[str, Callable[[str, object, str], Condition]] = {
    "match": _match,
    "range": _range,
    "geo_radius": _geo_radius,
}


def _object(data: object, where: str, of: str, known: tuple[str, ...]) -> dict[str, object]:
    if not isinstance(data, dict):
        raise InvalidRequest(f"{where}: must be an object with {of}")
    for name in data:
        if name not in known:
            raise InvalidRequest(f"{where}: has no {str(name)[:MAX_KEY_LENGTH]!r}; it takes {', '.join(known)}")
    return dict(data)


def _array(data: object, where: str, of: str) -> list[object] | tuple[object, ...]:
    if not isinstance(data, list | tuple):
        raise InvalidRequest(f"{where}: must be a list of {of}")
    return data


def _scalar(value: object, where: str) -> Scalar:
    if isinstance(value, str | bool):
        return value
    if isinstance(value, int | float) and number_of(value) is not None:
        return value
    raise InvalidRequest(f"{where}: must be a string, a finite number, true or false")


def _bound(value: object, where: str) -> float:
    number = number_of(value)
    if number is None:
        raise InvalidRequest(f"{where}: must be a number, or a date-time with its offset such as 2026-05-01T00:00:00Z")
    return number
