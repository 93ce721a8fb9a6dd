"""The growing segment: what just arrived, searched exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actors.messages import FloatMatrix

_FIRST_CAPACITY = 64


class GrowingSegment:
    """A first-in, first-out matrix of points. Not thread-safe: its owner holds a lock."""

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._rows = np.empty((_FIRST_CAPACITY, dimension), dtype=np.float32)
        self._ids: list[str | None] = [None] * _FIRST_CAPACITY
        self._slots: dict[str, int] = {}
        self._start = 0
        self._end = 0

    def __len__(self) -> int:
        """Points that live here."""
        return len(self._slots)

    def __contains__(self, image_id: str) -> bool:
        """Whether this id lives here."""
        return image_id in self._slots

    @property
    def queued(self) -> int:
        """Rows between the first and the last, the dead among them too."""
        return self._end - self._start

    def append(self, image_id: str, vector: FloatMatrix) -> None:
        """Add a point at the end; what this id had here before dies in the same step."""
        self.kill(image_id)
        if self._end == len(self._rows):
            self._make_room()
        self._rows[self._end] = vector
        self._ids[self._end] = image_id
        self._slots[image_id] = self._end
        self._end += 1

    def kill(self, image_id: str) -> bool:
        """Remove a point; False if it is not here."""
        slot = self._slots.pop(image_id, None)
        if slot is None:
            return False
        self._ids[slot] = None
        return True

    def oldest(self, count: int) -> tuple[list[str], FloatMatrix]:
        """Up to `count` of the oldest living points, which stay here; drops the dead before them."""
        while self._start < self._end and self._ids[self._start] is None:
            self._start += 1
        if self._start > len(self._rows) // 2:
            self._make_room()
        slots = [s for s in range(self._start, min(self._start + count, self._end)) if self._ids[s] is not None]
        return [str(self._ids[s]) for s in slots], self._rows[slots].copy()

    def search(self, queries: FloatMatrix, ks: Sequence[int]) -> list[list[tuple[float, str]]]:
        """The best `ks[i]` living points of query i as (score, id), in no particular order."""
        if not self._slots:
            return [[] for _ in ks]
        scores = queries @ self._rows[self._start : self._end].T
        found = []
        for row, k in zip(scores, ks, strict=True):
            # As many more as may be dead.
            wanted = k + self.queued - len(self._slots)
            best = np.argpartition(-row, wanted - 1)[:wanted] if wanted < len(row) else np.arange(len(row))
            alive = [
                (float(row[i]), image_id) for i in best if (image_id := self._ids[self._start + int(i)]) is not None
            ]
            found.append(alive)
        return found

    def _make_room(self) -> None:
        """Move the living to the front of a matrix with room for as many again."""
        slots = [s for s in range(self._start, self._end) if self._ids[s] is not None]
        rows = np.empty((max(_FIRST_CAPACITY, 2 * len(slots)), self._dimension), dtype=np.float32)
        rows[: len(slots)] = self._rows[slots]
        ids = [self._ids[s] for s in slots]
        self._rows = rows
        self._ids = ids + [None] * (len(rows) - len(ids))
        self._slots = {str(image_id): slot for slot, image_id in enumerate(ids)}
        self._start, self._end = 0, len(slots)
