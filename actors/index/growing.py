"""The growing segment: what just arrived, compared one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from actors.index.codes import Codec
from actors.index.kernels import walking
from actors.messages import FloatMatrix
from contract.events import Quantization

Numbers = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Slots = npt.NDArray[np.int64]

_FIRST_CAPACITY = 64
_CAPACITY_KEPT = 4096
_NONE: Mask = np.empty(0, dtype=np.bool_)


class Scan:
    """A comparison of queries with all codes of a view: scores (q, c), highest first, and slots (q, c) when it is done.

    It is run by itself, or by the walk over the graph that goes on at the same time.
    """

    def __init__(self, arrays: tuple[Bytes, FloatMatrix, Mask], codec: Codec, queries: int, count: int) -> None:
        self.is_done = False
        self.slots: Slots = np.empty((queries, count), dtype=np.int64)
        self.scores: FloatMatrix = np.empty((queries, count), dtype=np.float32)
        self.arguments = (*arrays, self.slots, self.scores)
        self._codec = codec

    def run(self, queries: FloatMatrix) -> None:
        """Compare."""
        walking.scan(*self.arguments, *self._codec.rotation, queries)
        self.is_done = True


class GrowingView(NamedTuple):
    """The growing segment as of one moment; rows that come later are beyond it.

    `rows` is (n, d) float32 and `numbers` (n,) uint32 ascending; `dead` is (n,) or None if all live.
    `codes` is (n, w) uint8, what `codec` makes of the rows, or None where rows alone are compared.
    """

    codec: Codec
    rows: FloatMatrix
    codes: Bytes | None
    numbers: Numbers
    image_ids: Sequence[str]
    dead: Mask | None
    living: int

    def search(self, queries: FloatMatrix, k: int, allowed: Mask | None = None) -> tuple[FloatMatrix, Slots]:
        """Best living rows of each query: scores (q, c), highest first, and slots (q, c), the best `k` among them.

        Scores are inner products with the rows. Where fewer are left than c, the last scores are
        -inf: the dead, and rows that are not `allowed` ((n,) bool), are not found.
        """
        scan = self.scan(len(queries), k, allowed)
        if scan is None:
            return self.compare(queries, k, allowed)
        scan.run(queries)
        return scan.scores, scan.slots

    def scan(self, queries: int, k: int, allowed: Mask | None = None) -> Scan | None:
        """As `search`, to be run; None where rows are compared in float32."""
        if self.codes is None:
            return None
        hidden = self._hidden(allowed)
        arrays = (self.codes.reshape(-1), self.rows, _NONE if hidden is None else hidden)
        return Scan(arrays, self.codec, queries, self.codec.candidates(k))

    def names(self, slots: Sequence[int]) -> list[str]:
        """The image ids of these slots."""
        return [self.image_ids[slot] for slot in slots]

    def compare(self, queries: FloatMatrix, k: int, allowed: Mask | None = None) -> tuple[FloatMatrix, Slots]:
        """As `search`, by comparison with every row in float32."""
        hidden, count = self._hidden(allowed), len(self.rows)
        scores = queries @ self.rows.T
        if hidden is not None:
            scores[:, hidden] = -np.inf
        if count <= k:
            return _descending(scores, np.broadcast_to(np.arange(count), scores.shape))
        # What equals the last of the best comes along: which of them is a hit, the id decides.
        least = np.partition(scores, count - k, axis=1)[:, count - k]
        wanted = int((scores >= least[:, None]).sum(axis=1).max())
        slots = np.argpartition(scores, count - wanted, axis=1)[:, -wanted:]
        return _descending(np.take_along_axis(scores, slots, axis=1), slots)

    def _hidden(self, allowed: Mask | None) -> Mask | None:
        if allowed is None:
            return self.dead
        return ~allowed if self.dead is None else self.dead | ~allowed


class GrowingSegment:
    """A first-in, first-out matrix of points. One writer; a view of it may be read by any thread."""

    def __init__(self, quantization: Quantization, dimension: int) -> None:
        """Rows of collections that keep bytes or less are compared by byte first."""
        self._codec = Codec("none" if quantization in ("none", "fp16") else "sq8", dimension)
        self._rows = np.empty((_FIRST_CAPACITY, dimension), dtype=np.float32)
        self._codes: Bytes | None = None
        if not self._codec.is_exact:
            self._codes = np.empty((_FIRST_CAPACITY, self._codec.width), dtype=np.uint8)
        self._numbers = np.empty(_FIRST_CAPACITY, dtype=np.uint32)
        self._image_ids: list[str] = []
        self._dead: Mask | None = None
        self._dead_count = 0

    @property
    def queued(self) -> int:
        """Rows, the dead among them too."""
        return len(self._image_ids)

    @property
    def living(self) -> int:
        """Points that live here."""
        return self.queued - self._dead_count

    def view(self) -> GrowingView:
        """The segment as it is now."""
        end = self.queued
        codes = None if self._codes is None else self._codes[:end]
        return GrowingView(
            self._codec, self._rows[:end], codes, self._numbers[:end], self._image_ids, self._dead, self.living
        )

    def append(self, numbers: Sequence[int], image_ids: Sequence[str], vectors: FloatMatrix) -> None:
        """Add points at the end; `numbers` ascend and are above all that are here."""
        start, end = self.queued, self.queued + len(numbers)
        if end > len(self._rows):
            self._move(0, max(2 * len(self._rows), end))
        self._rows[start:end] = vectors
        if self._codes is not None:
            self._codes[start:end] = self._codec.encode_bytes(vectors)
        self._numbers[start:end] = numbers
        # Views share the list and look no further than their own length.
        self._image_ids.extend(image_ids)
        if self._dead is not None:
            self._dead = np.concatenate([self._dead, np.zeros(end - start, dtype=np.bool_)])

    def kill(self, numbers: Numbers) -> int:
        """Mark the points of these numbers dead; returns how many lived here."""
        slots = positions(self._numbers[: self.queued], numbers)
        slots = slots[slots >= 0]
        if not len(slots):
            return 0
        # A copy: views of earlier moments keep theirs.
        dead = np.zeros(self.queued, dtype=np.bool_) if self._dead is None else self._dead.copy()
        killed = int(len(slots) - dead[slots].sum())
        dead[slots] = True
        self._dead = dead
        self._dead_count += killed
        return killed

    def drop_first(self, count: int) -> None:
        """Forget the first `count` rows; views keep them."""
        self._dead = None if self._dead is None else self._dead[count:].copy()
        self._dead_count = 0 if self._dead is None else int(self._dead.sum())
        # As many will come again before the next drop.
        self._move(count, max(_FIRST_CAPACITY, min(len(self._rows), _CAPACITY_KEPT)))

    def _move(self, first: int, capacity: int) -> None:
        """Put the rows from `first` on in new arrays with room for more, so that views of the old ones stay whole."""
        end = self.queued
        kept = end - first
        capacity = max(capacity, 2 * kept)
        rows = np.empty((capacity, self._codec.dimension), dtype=np.float32)
        numbers = np.empty(capacity, dtype=np.uint32)
        rows[:kept], numbers[:kept] = self._rows[first:end], self._numbers[first:end]
        self._image_ids = self._image_ids[first:end]
        if self._codes is not None:
            codes = np.empty((capacity, self._codec.width), dtype=np.uint8)
            codes[:kept] = self._codes[first:end]
            self._codes = codes
        self._rows, self._numbers = rows, numbers


def _descending(scores: FloatMatrix, slots: Slots) -> tuple[FloatMatrix, Slots]:
    order = np.argsort(-scores, axis=1)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(slots, order, axis=1)


def positions(ascending: Numbers, wanted: Numbers) -> npt.NDArray[np.int64]:
    """Where each wanted number stands in `ascending`; -1 where it does not."""
    found = np.searchsorted(ascending, wanted)
    inside = found < len(ascending)
    inside[inside] = ascending[found[inside]] == wanted[inside]
    return np.where(inside, found, -1)
