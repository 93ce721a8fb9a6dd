"""Columns of the payload index: pairs of a key and a point's internal number, answered by key.

Arrays instead of a tree or a dict, because most keys belong to one point only (captions, times,
places), and a pair costs 12 bytes here where a dict entry of two Python integers costs over 100.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from pyroaring import BitMap

Keys = npt.NDArray[Any]
Numbers = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]

# Changes that wait unsorted; bounds how long the next question or the next change can take.
LOG_MAX = 4096
# The small run is merged into the large one beyond this many pairs and an eighth of the large one.
RECENT_MIN = 4096
# From this many points on, a key has a bitmap, at 2 bytes per point or less.
COMMON_MIN = 128
# Fewer numbers than this are sorted to make a bitmap; more are spread over a mask.
SORTED_MAX = 4096
_NO_NUMBERS: Numbers = np.empty(0, np.uint32)


class ColumnDump(Struct, frozen=True, array_like=True):
    """A column as little-endian bytes: sorted pairs, and the bitmaps of common keys."""

    keys: bytes
    numbers: bytes
    common: dict[int, bytes]


class _Run:
    """Pairs sorted by key, then number. Pairs that were taken out stay, marked, until the next merge."""

    __slots__ = ("dead", "dead_count", "keys", "numbers")

    def __init__(self, keys: Keys, numbers: Numbers) -> None:
        self.keys = keys
        self.numbers = numbers
        self.dead: Mask | None = None
        self.dead_count = 0

    def place(self, keys: Keys, numbers: Numbers) -> npt.NDArray[np.intp]:
        """Per pair, the first position that is not before it; a binary search for all at once."""
        low = np.searchsorted(self.keys, keys, "left")
        high = np.searchsorted(self.keys, keys, "right")
        while (open_ := low < high).any():
            middle = (low + high) // 2
            before = np.zeros(len(low), np.bool_)
            before[open_] = self.numbers[middle[open_]] < numbers[open_]
            low = np.where(before, middle + 1, low)
            high = np.where(open_ & ~before, middle, high)
        return low

    def settle(self, keys: Keys, numbers: Numbers, present: Mask) -> Mask:
        """Revive or mark the pairs that are here; returns which ones are."""
        if not len(self.keys):
            return np.zeros(len(keys), np.bool_)
        at = self.place(keys, numbers)
        inside = np.minimum(at, len(self.keys) - 1)
        here: Mask = (at < len(self.keys)) & (self.keys[inside] == keys) & (self.numbers[inside] == numbers)
        if self.dead is None:
            if present[here].all():
                return here
            self.dead = np.zeros(len(self.keys), np.bool_)
        self.dead[at[here]] = ~present[here]
        self.dead_count = int(np.count_nonzero(self.dead))
        return here

    def living(self, low: int = 0, high: int | None = None) -> tuple[Keys, Numbers]:
        """The pairs of a range of positions that are not taken out."""
        keys, numbers = self.keys[low:high], self.numbers[low:high]
        if self.dead_count and self.dead is not None:
            alive = ~self.dead[low:high]
            return keys[alive], numbers[alive]
        return keys, numbers

    def merged(self, keys: Keys, numbers: Numbers) -> _Run:
        """A run with these sorted pairs, none of which is here, and without what was taken out."""
        base = _Run(*self.living()) if self.dead_count else self
        at = base.place(keys, numbers)
        return _Run(np.insert(base.keys, at, keys), np.insert(base.numbers, at, numbers))

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.numbers.nbytes + (0 if self.dead is None else self.dead.nbytes)


class SortedColumn:
    """A set of pairs (key, number) with keys that have an order. Not thread-safe.

    A change is appended to a log and costs the same however many pairs there are. A question first
    sorts the log into a small run, which is merged into the large one once it has grown to a share
    of it, so that a pair is copied a bounded number of times.
    """

    __slots__ = ("_dtype", "_log", "_log_keys", "_main", "_recent")

    def __init__(self, dtype: type[np.uint64 | np.float64]) -> None:
        self._dtype = np.dtype(dtype)
        self._main = self._recent = _Run(np.empty(0, self._dtype), _NO_NUMBERS)
        self._start_log()

    def _start_log(self) -> None:
        self._log_keys: array[Any] = array("d" if self._dtype.kind == "f" else "Q")
        # number + 1 for a pair that comes, its negative for one that goes.
        self._log: array[int] = array("q")

    def add(self, key: float, number: int) -> None:
        """Put a pair in; no effect if it is there."""
        self._log_keys.append(key)
        self._log.append(number + 1)
        if len(self._log) >= LOG_MAX:
            self.settle()

    def discard(self, key: float, number: int) -> None:
        """Take a pair out; no effect if it is not there."""
        self._log_keys.append(key)
        self._log.append(-number - 1)
        if len(self._log) >= LOG_MAX:
            self.settle()

    def settle(self) -> None:
        """Sort the log into the runs. The last change of a pair counts."""
        if not self._log:
            return
        keys = np.array(self._log_keys, self._dtype)
        codes = np.array(self._log, np.int64)
        self._start_log()
        numbers, present = (np.abs(codes) - 1).astype(np.uint32), codes > 0
        order = np.lexsort((numbers, keys))
        keys, numbers, present = keys[order], numbers[order], present[order]
        last = np.ones(len(keys), np.bool_)
        last[:-1] = (keys[1:] != keys[:-1]) | (numbers[1:] != numbers[:-1])
        keys, numbers, present = keys[last], numbers[last], present[last]
        for run in (self._main, self._recent):
            elsewhere = ~run.settle(keys, numbers, present)
            keys, numbers, present = keys[elsewhere], numbers[elsewhere], present[elsewhere]
        if present.any():
            self._recent = self._recent.merged(keys[present], numbers[present])
        if len(self._recent.keys) + self._main.dead_count > max(RECENT_MIN, len(self._main.keys) // 8):
            self._compact()

    def _compact(self) -> None:
        self._main = self._main.merged(*self._recent.living())
        self._recent = _Run(np.empty(0, self._dtype), _NO_NUMBERS)

    def members(self, keys: Sequence[float]) -> BitMap:
        """Numbers of the pairs with one of these keys; a new bitmap."""
        self.settle()
        wanted = np.unique(np.array(keys, self._dtype))
        parts = [_NO_NUMBERS]
        for run in (self._main, self._recent):
            lows = np.searchsorted(run.keys, wanted, "left")
            highs = np.searchsorted(run.keys, wanted, "right")
            parts += [run.living(lows[i], highs[i])[1] for i in np.flatnonzero(lows < highs)]
        return bitmap_of(np.concatenate(parts))

    def between(self, low: float, high: float, *, above: bool = False, below: bool = False) -> tuple[Keys, Numbers]:
        """Pairs with a key from `low` to `high`; `above` and `below` leave the bound itself out."""
        self.settle()
        first, last = np.array(low, self._dtype), np.array(high, self._dtype)
        parts = []
        for run in (self._main, self._recent):
            start = int(np.searchsorted(run.keys, first, "right" if above else "left"))
            end = int(np.searchsorted(run.keys, last, "left" if below else "right"))
            parts.append(run.living(start, max(start, end)))
        keys, numbers = zip(*parts, strict=True)
        return np.concatenate(keys), np.concatenate(numbers)

    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self._main.nbytes + self._recent.nbytes + 16 * len(self._log)

    def dump(self) -> ColumnDump:
        """The pairs, to be read by `restore`."""
        self.settle()
        self._compact()
        keys, numbers = self._main.living()
        return ColumnDump(
            keys.astype(self._dtype.newbyteorder("<"), copy=False).tobytes(), numbers.astype("<u4").tobytes(), {}
        )

    def restore(self, dump: ColumnDump) -> None:
        """Take over the pairs of a dump; raises ValueError if it cannot be one."""
        keys = np.frombuffer(dump.keys, self._dtype.newbyteorder("<")).astype(self._dtype, copy=False)
        numbers = np.frombuffer(dump.numbers, "<u4").astype(np.uint32, copy=False)
        if len(keys) != len(numbers):
            raise ValueError(f"a column has {len(keys)} keys and {len(numbers)} numbers")
        self._main = _Run(keys, numbers)


class KeywordColumn(SortedColumn):
    """A set of pairs (64-bit key, number) asked for by equality; keys of many points have a bitmap."""

    __slots__ = ("_common",)

    def __init__(self) -> None:
        super().__init__(np.uint64)
        self._common: dict[float, BitMap] = {}

    def add(self, key: float, number: int) -> None:
        """Put a pair in; no effect if it is there."""
        common = self._common.get(key)
        if common is not None:
            common.add(number)
            return
        # What the base does, without the price of a second call: this is the hot path of every put.
        self._log_keys.append(key)
        self._log.append(number + 1)
        if len(self._log) >= LOG_MAX:
            self.settle()

    def discard(self, key: float, number: int) -> None:
        """Take a pair out; no effect if it is not there."""
        common = self._common.get(key)
        if common is None:
            super().discard(key, number)
            return
        common.discard(number)
        if not common:
            del self._common[key]

    def _compact(self) -> None:
        super()._compact()
        keys, numbers = self._main.keys, self._main.numbers
        edges = np.concatenate(([0], np.flatnonzero(keys[1:] != keys[:-1]) + 1, [len(keys)]))
        starts, ends = edges[:-1], edges[1:]
        rare = np.ones(len(keys), np.bool_)
        for i in np.flatnonzero(ends - starts >= COMMON_MIN):
            start, end = starts[i], ends[i]
            self._common[int(keys[start])] = _ascending(numbers[start:end])
            rare[start:end] = False
        if not rare.all():
            self._main = _Run(keys[rare], numbers[rare])

    def members(self, keys: Sequence[float]) -> BitMap:
        """Numbers of the pairs with one of these keys; a new bitmap."""
        # First, because it may turn keys into common ones.
        self.settle()
        common = [bitmap for key in keys if (bitmap := self._common.get(key)) is not None]
        rare = [key for key in keys if key not in self._common]
        return union_of([super().members(rare), *common] if rare else common)

    def nbytes(self) -> int:
        """Bytes of the arrays and of the bitmaps, roughly."""
        return super().nbytes() + sum(bitmap_nbytes(bitmap) for bitmap in self._common.values())

    def dump(self) -> ColumnDump:
        """The pairs, to be read by `restore`."""
        rare = super().dump()
        return ColumnDump(
            rare.keys, rare.numbers, {int(key): bitmap.serialize() for key, bitmap in self._common.items()}
        )

    def restore(self, dump: ColumnDump) -> None:
        """Take over the pairs of a dump; raises ValueError if it cannot be one."""
        super().restore(dump)
        self._common = {key: BitMap.deserialize(data) for key, data in dump.common.items()}


def bitmap_of(numbers: Numbers) -> BitMap:
    """A bitmap of numbers in any order; CRoaring takes ascending ones about ten times as fast."""
    if len(numbers) <= SORTED_MAX:
        return _ascending(np.sort(numbers))
    lowest, highest = int(numbers.min()), int(numbers.max())
    if highest - lowest > 64 * len(numbers):
        return _ascending(np.sort(numbers))
    mask = np.zeros(highest - lowest + 1, np.bool_)
    mask[numbers - np.uint32(lowest)] = True
    return _ascending((np.flatnonzero(mask) + lowest).astype(np.uint32))


def _ascending(numbers: Numbers) -> BitMap:
    # A numpy array would be read number by number through Python objects.
    return BitMap(array("I", numbers.tobytes()), optimize=False)


def union_of(bitmaps: Iterable[BitMap]) -> BitMap:
    """A new bitmap of all their numbers."""
    found = list(bitmaps)
    return BitMap.union(*found) if len(found) > 1 else BitMap(found[0]) if found else BitMap()


def bitmap_nbytes(bitmap: BitMap) -> int:
    """Bytes of a bitmap in memory, roughly: its containers, and what the objects around them take."""
    statistics = bitmap.get_statistics()
    containers = sum(statistics[f"n_bytes_{kind}_containers"] for kind in ("array", "run", "bitset"))  # type: ignore[literal-required]
    return int(containers) + 32 * statistics["n_containers"] + 120
