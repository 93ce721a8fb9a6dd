"""What a batch of log entries does: to the store, to the segments and to the filter index."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from actors.index.filters import FilterIndex
from actors.index.rows import IdRow, PointRow, apply_entry
from actors.index.store import NUMBER_MAX, ShardStore, StoreBatch
from actors.messages import FloatMatrix
from contract.errors import StoreIncompatible
from contract.events import LogEntry, SourceAdvanced


class Effect:
    """The net effect of entries that are applied together. `vectors` is (n, d) float32, a row per number."""

    def __init__(self, next_number: int) -> None:
        self.batch = StoreBatch()
        self.next_number = next_number
        self.points = 0
        self.deleted = 0
        self.numbers: list[int] = []
        self.image_ids: list[str] = []
        self.vectors: list[FloatMatrix] = []
        self._payloads: list[tuple[PointRow | None, PointRow | None]] = []

    @property
    def killed(self) -> list[int]:
        """Numbers of points that were deleted or replaced."""
        return self.batch.gone

    def matrix(self, dimension: int) -> FloatMatrix:
        """The new vectors, (n, d) float32."""
        return np.array(self.vectors, dtype=np.float32).reshape(-1, dimension)

    def index_payloads(self, index: FilterIndex) -> None:
        """Bring a filter index from the points before to the points after."""
        for before, after in self._payloads:
            if before is not None and after is not None and before.number == after.number:
                if before.payload != after.payload:
                    index.replace(after.number, _decoded(before), _decoded(after))
                continue
            if before is not None:
                index.remove(before.number, _decoded(before))
            if after is not None:
                index.put(after.number, _decoded(after))

    def change(
        self, image_id: str, before: IdRow | None, after: IdRow, vector: bytes | None, store: ShardStore
    ) -> None:
        """One id goes from the row before to the row after, with the vector that came last, if one did."""
        old, new = None if before is None else before.point, after.point
        if new is not None and vector is not None:
            floats = np.frombuffer(vector, dtype="<f4")
            stored = store.encode(floats)
            # A repeated event brings the same vector, and the graph need not learn it again.
            if old is None or store.vector_bytes([old.number])[0] != stored:
                new = msgspec.structs.replace(new, number=self._take_number())
                self.batch.vectors[new.number] = (image_id, stored)
                self.numbers.append(new.number)
                self.image_ids.append(image_id)
                # What is searched is what is stored.
                self.vectors.append(floats if len(stored) == len(vector) else store.decode(stored))
            else:
                new = msgspec.structs.replace(new, number=old.number)
        if old is not None and (new is None or new.number != old.number):
            self.batch.gone.append(old.number)
        self.batch.rows[image_id] = msgspec.structs.replace(after, point=new)
        self._payloads.append((old, new))
        self.points += (new is not None) - (old is not None)
        self.deleted += _is_deleted(after) - _is_deleted(before)

    def _take_number(self) -> int:
        if self.next_number > NUMBER_MAX:
            raise StoreIncompatible(
                "the store has given all of its 2^32 numbers to vectors; remove it, and the shard reads its log anew"
            )
        self.next_number += 1
        return self.next_number - 1


def effect_of(
    entries: Sequence[LogEntry], store: ShardStore, next_number: int, fingerprint: str, dimension: int
) -> Effect:
    """What entries do, one after the other, to the rows as they are stored.

    Raises:
        EventInvalid: a vector of the wrong length, or with a value that is no number.
        FingerprintMismatch: a vector of another encoder.
        StoreIncompatible: no number is left for a new vector.
    """
    named = [entry for entry in entries if not isinstance(entry, SourceAdvanced)]
    image_ids = list(dict.fromkeys(entry.image_id for entry in named))
    before = dict(zip(image_ids, store.rows(image_ids), strict=True))
    after: dict[str, IdRow] = {}
    vectors: dict[str, bytes] = {}
    for entry in named:
        image_id = entry.image_id
        applied = apply_entry(after.get(image_id, before[image_id]), entry, fingerprint, dimension)
        if applied is None:
            continue
        after[image_id] = applied.row
        if applied.vector is not None:
            vectors[image_id] = applied.vector
    effect = Effect(next_number)
    for image_id, row in after.items():
        effect.change(image_id, before[image_id], row, vectors.get(image_id), store)
    return effect


def _decoded(point: PointRow) -> dict[str, object]:
    payload: dict[str, object] = msgspec.json.decode(point.payload)
    return payload


def _is_deleted(row: IdRow | None) -> bool:
    return row is not None and row.point is None and row.deleted_at >= 0
