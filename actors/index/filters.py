"""Which points satisfy a filter: an index over the fields of their payloads, in memory."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping
from typing import Any, Self

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct
from pyroaring import BitMap

from actors.index.columns import ColumnDump, KeywordColumn, SortedColumn, bitmap_nbytes, bitmap_of, union_of
from contract.filters import (
    EARTH_RADIUS_M,
    Condition,
    Filter,
    GeoRadius,
    Match,
    Place,
    Range,
    check_fields,
    number_of,
    place_of,
    unix_seconds,
)

_DUMP_MAGIC = b"riverlens filter index 1\n"
_CHECKSUM_BYTES = 16
# From here on not every integer is a float, so equality of numbers goes by a hash of the integer.
_FLOAT_EXACT = 2**53
_LAT_SHIFT, _LON_SHIFT = 900_000_000, 1_800_000_000
_LON_TURN = 3_600_000_000
_E7_PER_RADIAN = 1e7 * 180 / math.pi

_SHORT_TEXT = 32
# As a name, because a union written at the call is made anew each time.
_CONTAINERS = (list, tuple, dict)

# Kinds of columns.
_WORDS, _NUMBERS, _TIMES, _PLACES = "words", "numbers", "times", "places"
_DTYPES: dict[str, type[np.uint64 | np.float64]] = {_NUMBERS: np.float64, _TIMES: np.float64, _PLACES: np.uint64}

Entry = tuple[SortedColumn, float]


class _Field(dict[str, SortedColumn]):
    """The columns of one field by kind, each made when a value of its kind is met.

    Numbers and date-times stand apart: a range asks both, equality never finds a text by a number.
    """

    __slots__ = ()

    def __missing__(self, kind: str) -> SortedColumn:
        column = self[kind] = KeywordColumn() if kind == _WORDS else SortedColumn(_DTYPES[kind])
        return column


class _Dump(Struct):
    """Everything an index holds; columns by field and kind."""

    fields: tuple[str, ...] | None
    live: bytes
    columns: dict[str, dict[str, ColumnDump]]


class FilterIndex:
    """Maps filters to the internal numbers of the points whose payload satisfies them.

    Says exactly what `contract.filters.matches` says, save that texts are compared by a 64-bit hash.
    Not thread-safe: its owner lets one thread in at a time. Questions change it too, because they
    sort in what came before them.
    """

    def __init__(self, fields: tuple[str, ...] | None) -> None:
        """An empty index of these fields (keys such as `camera.model`), or of every field if None."""
        self._wanted = None if fields is None else frozenset(fields)
        self._fields: dict[str, _Field] = {}
        self._live = BitMap()

    @property
    def fields(self) -> tuple[str, ...] | None:
        """The indexed fields by name; None if all are."""
        return None if self._wanted is None else tuple(sorted(self._wanted))

    @property
    def numbers(self) -> BitMap:
        """The numbers that were put and not removed; a new bitmap."""
        return self._live.copy()

    def __len__(self) -> int:
        """Points that were put and not removed."""
        return len(self._live)

    def put(self, number: int, payload: Mapping[str, Any]) -> None:
        """Index a point. Raises ValueError if the number is there already, or is not below 2^32."""
        if not 0 <= number < 2**32 or number in self._live:
            raise ValueError(f"number {number} is in the index already, or no 32-bit number")
        entries = self._entries(payload)
        self._live.add(number)
        for column, key in entries:
            column.add(key, number)

    def remove(self, number: int, payload: Mapping[str, Any]) -> None:
        """Take out a point with the payload it was put with. Raises ValueError if it is not there."""
        if number not in self._live:
            raise ValueError(f"number {number} is not in the index")
        entries = self._entries(payload)
        self._live.remove(number)
        for column, key in entries:
            column.discard(key, number)

    def replace(self, number: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Change the payload of a point; only what differs costs. Raises ValueError if it is not there."""
        if number not in self._live:
            raise ValueError(f"number {number} is not in the index")
        old, new = set(self._entries(before)), set(self._entries(after))
        for column, key in old - new:
            column.discard(key, number)
        for column, key in new - old:
            column.add(key, number)

    def matching(self, wanted: Filter) -> BitMap:
        """Numbers of the points whose payload satisfies the filter; a new bitmap.

        Raises:
            InvalidRequest: a field that is not indexed; the detail names those that are.
        """
        check_fields(wanted, self._wanted)
        return self._evaluate(wanted)

    def _evaluate(self, condition: Condition) -> BitMap:
        if isinstance(condition, Filter):
            return self._combine(condition)
        field = self._fields.get(condition.key)
        if field is None:
            return BitMap()
        match condition:
            case Match():
                return _equal(field, condition)
            case Range():
                return _within(field, condition)
            case GeoRadius():
                return _near(field[_PLACES], condition) if _PLACES in field else BitMap()

    def _combine(self, wanted: Filter) -> BitMap:
        found: BitMap | None = None
        for one in wanted.must:
            some = self._evaluate(one)
            found = some if found is None else found & some
            if not found:
                return found
        if wanted.should:
            some = union_of(self._evaluate(one) for one in wanted.should)
            found = some if found is None else found & some
        if found is None:
            found = self._live.copy()
        for one in wanted.must_not:
            found -= self._evaluate(one)
        return found

    def _entries(self, payload: Mapping[str, Any]) -> list[Entry]:
        """The pairs of column and key that a payload stands for; columns are made as needed."""
        entries: list[Entry] = []
        # A stack of its own: a payload may be nested more deeply than Python calls may be.
        stack: list[tuple[str, Any]] = list(payload.items())
        while stack:
            path, value = stack.pop()
            if isinstance(value, _CONTAINERS):
                if not isinstance(value, dict):
                    stack += [(path, element) for element in value]
                    continue
                stack += [(f"{path}.{name}", child) for name, child in value.items()]
            if value is None or (self._wanted is not None and path not in self._wanted):
                continue
            field = self._fields.get(path)
            if field is None:
                field = self._fields[path] = _Field()
            _add_entries(entries, field, value)
        return entries

    def nbytes(self) -> int:
        """Bytes in memory, roughly."""
        columns = sum(
            500 + len(path) + sum(column.nbytes() for column in field.values()) for path, field in self._fields.items()
        )
        return bitmap_nbytes(self._live) + columns

    def dump(self) -> bytes:
        """The whole index with a checksum, for `load`."""
        columns = {
            path: {kind: column.dump() for kind, column in field.items()} for path, field in self._fields.items()
        }
        body = msgspec.msgpack.encode(_Dump(self.fields, self._live.serialize(), columns))
        return _DUMP_MAGIC + _checksum(body) + body

    @classmethod
    def load(cls, data: bytes) -> Self:
        """The index that was dumped. Raises ValueError if the bytes are torn or of another format."""
        start = len(_DUMP_MAGIC) + _CHECKSUM_BYTES
        body = memoryview(data)[start:]
        if not data.startswith(_DUMP_MAGIC) or data[len(_DUMP_MAGIC) : start] != _checksum(body):
            raise ValueError("the filter index is torn, or of another format")
        dump = msgspec.msgpack.decode(body, type=_Dump)
        index = cls(dump.fields)
        index._live = BitMap.deserialize(dump.live)
        for path, columns in dump.columns.items():
            field = index._fields[path] = _Field()
            for kind, column in columns.items():
                field[kind].restore(column)
        return index


def _add_entries(entries: list[Entry], field: _Field, value: object) -> None:
    """Add what one value, which is no list, stands for."""
    if isinstance(value, str):
        entries.append((field[_WORDS], _text_key(value)))
        seconds = unix_seconds(value)
        if seconds is not None:
            entries.append((field[_TIMES], seconds))
    elif isinstance(value, bool):
        entries.append((field[_WORDS], _BOOLEAN_KEYS[value]))
    elif isinstance(value, int | float):
        number = number_of(value)
        if number is not None:
            entries.append((field[_NUMBERS], number))
            if not -_FLOAT_EXACT < value < _FLOAT_EXACT:
                entries.append((field[_WORDS], _integer_key(int(value))))
    elif (place := place_of(value)) is not None:
        entries.append((field[_PLACES], _place_key(place)))


def _hash(data: bytes) -> int:
    # Stable between processes, unlike Python's own hash, and nobody can make texts that collide.
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _text_key(text: str) -> int:
    # Owners, tags and the like come again and again; captions would only push them out.
    return _short_text_key(text) if len(text) <= _SHORT_TEXT else _hash(text.encode("utf-8", "surrogatepass"))


@functools.lru_cache(maxsize=4096)
def _short_text_key(text: str) -> int:
    return _hash(text.encode("utf-8", "surrogatepass"))


def _integer_key(value: int) -> int:
    # 0xff is in no UTF-8, so that an integer is never taken for a text.
    return _hash(b"\xff" + value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))


_BOOLEAN_KEYS = {False: _hash(b"\xfffalse"), True: _hash(b"\xfftrue")}


def _equal(field: _Field, wanted: Match) -> BitMap:
    words: list[float] = [_BOOLEAN_KEYS[value] for value in wanted.booleans]
    numbers: list[float] = []
    for value in wanted.values:
        if isinstance(value, str):
            words.append(_text_key(value))
        elif -_FLOAT_EXACT < value < _FLOAT_EXACT:
            numbers.append(float(value))
        else:
            words.append(_integer_key(int(value)))
    asked = ((_WORDS, words), (_NUMBERS, numbers))
    return union_of(field[kind].members(keys) for kind, keys in asked if keys and kind in field)


def _within(field: _Field, wanted: Range) -> BitMap:
    low, above = max(
        (-math.inf if wanted.gte is None else wanted.gte, False), (-math.inf if wanted.gt is None else wanted.gt, True)
    )
    high, not_below = min(
        (math.inf if wanted.lte is None else wanted.lte, True), (math.inf if wanted.lt is None else wanted.lt, False)
    )
    return union_of(
        bitmap_of(field[kind].between(low, high, above=above, below=not not_below)[1])
        for kind in (_NUMBERS, _TIMES)
        if kind in field
    )


def _place_key(place: Place) -> int:
    """Latitude in the high, longitude in the low half: keys ascend from south to north."""
    return (place[0] + _LAT_SHIFT) << 32 | (place[1] + _LON_SHIFT)


def _near(places: SortedColumn, wanted: GeoRadius) -> BitMap:
    """Numbers with a place within the circle: first a box around it, then the distance itself."""
    lat, lon = wanted.center
    # Rounded up, because the box must not cut what the distance lets in.
    reach = math.ceil(wanted.radius_m / EARTH_RADIUS_M * _E7_PER_RADIAN * (1 + 1e-9)) + 1
    south, north = max(lat - reach, -_LAT_SHIFT), min(lat + reach, _LAT_SHIFT)
    keys, numbers = places.between(_place_key((south, -_LON_SHIFT)), _place_key((north, _LON_SHIFT)))
    lats = (keys >> np.uint64(32)).astype(np.int64) - _LAT_SHIFT
    lons = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64) - _LON_SHIFT
    if south > -_LAT_SHIFT and north < _LAT_SHIFT:
        # Source: J. P. Matuschek, Finding Points Within a Distance of a Latitude/Longitude, 3.3.
        sine = math.sin(reach / _E7_PER_RADIAN) / math.cos(lat / _E7_PER_RADIAN)
        width = math.asin(min(1.0, sine)) * _E7_PER_RADIAN * (1 + 1e-9) + 1
        apart = np.abs(lons - lon)
        near = np.minimum(apart, _LON_TURN - apart) <= width
        lats, lons, numbers = lats[near], lons[near], numbers[near]
    return bitmap_of(numbers[_within_circle(lats, lons, wanted)])


def _within_circle(
    lats: npt.NDArray[np.int64], lons: npt.NDArray[np.int64], wanted: GeoRadius
) -> npt.NDArray[np.bool_]:
    """`wanted.holds` of many places, given in units of 1e-7 degree.

    Source: R. W. Sinnott, Virtues of the Haversine, Sky and Telescope 68 (1984).
    """
    lat, lon = wanted.center
    width = math.cos(lat / _E7_PER_RADIAN) * np.cos(lats / _E7_PER_RADIAN)
    found = np.sin((lats - lat) / _E7_PER_RADIAN / 2) ** 2 + width * np.sin((lons - lon) / _E7_PER_RADIAN / 2) ** 2
    limit = wanted.max_haversine
    inside: npt.NDArray[np.bool_] = found <= limit
    # On the line itself the last digit decides, and a vectorised sine may round it differently.
    if math.isfinite(limit):
        for i in np.flatnonzero(np.abs(found - limit) <= 1e-12 * limit):
            inside[i] = wanted.holds((int(lats[i]), int(lons[i])))
    return inside


def _checksum(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECKSUM_BYTES).digest()
