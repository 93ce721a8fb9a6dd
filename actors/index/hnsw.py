"""The graph: FAISS HNSW over float32 vectors, with the dead filtered at search."""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np

from actors.messages import FloatMatrix

_FIRST_CAPACITY_BYTES = 1024


class HnswGraph:
    """Points under labels 0, 1, 2 … in the order they came. Not thread-safe: its owner holds a lock.

    `add` must never run beside `search`: FAISS reallocates its vectors. Scores are inner products.
    Source: Malkov and Yashunin, Efficient and robust approximate nearest neighbor search using
    Hierarchical Navigable Small World graphs, 2018; m and the two ef are its parameters.
    """

    def __init__(self, dimension: int, m: int, ef_construction: int) -> None:
        self.dimension = dimension
        self.m = m
        self.ef_construction = ef_construction
        self._index = faiss.IndexHNSWFlat(dimension, m, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = ef_construction
        self._ids: list[str] = []
        self._labels: dict[str, int] = {}
        # One bit per label; FAISS reads it through a selector.
        self._alive = np.zeros(_FIRST_CAPACITY_BYTES, dtype=np.uint8)

    def __len__(self) -> int:
        """Points that live here."""
        return len(self._labels)

    def __contains__(self, image_id: str) -> bool:
        """Whether this id lives here."""
        return image_id in self._labels

    @property
    def total(self) -> int:
        """Labels given, the dead among them too."""
        return len(self._ids)

    @property
    def dead(self) -> int:
        """Labels whose point was replaced or deleted."""
        return len(self._ids) - len(self._labels)

    def add(self, image_ids: Sequence[str], vectors: FloatMatrix) -> None:
        """Add points; what their ids had here before dies in the same step."""
        if not image_ids:
            return
        self._index.add(np.ascontiguousarray(vectors))
        for image_id in image_ids:
            self.kill(image_id)
            label = len(self._ids)
            self._ids.append(image_id)
            self._labels[image_id] = label
            if label >> 3 >= len(self._alive):
                self._alive = np.concatenate([self._alive, np.zeros_like(self._alive)])
            self._alive[label >> 3] |= 1 << (label & 7)

    def kill(self, image_id: str) -> bool:
        """Mark a point dead; False if it is not here."""
        label = self._labels.pop(image_id, None)
        if label is None:
            return False
        self._alive[label >> 3] &= 0xFF ^ (1 << (label & 7))
        return True

    def living(self, first: int, count: int) -> tuple[list[str], FloatMatrix]:
        """The living of labels `first` to `first + count`, in order, with copies of their vectors."""
        labels = [
            label
            for label in range(first, min(first + count, len(self._ids)))
            if self._labels.get(self._ids[label]) == label
        ]
        rows = np.empty((len(labels), self.dimension), dtype=np.float32)
        for i, label in enumerate(labels):
            self._index.reconstruct(label, rows[i])
        return [self._ids[label] for label in labels], rows

    def keep_only(self, other: HnswGraph) -> None:
        """Kill what does not live in `other`, from which this graph was copied."""
        for image_id in [image_id for image_id in self._labels if image_id not in other]:
            self.kill(image_id)

    def search(self, queries: FloatMatrix, ks: Sequence[int], efs: Sequence[int]) -> list[list[tuple[float, str]]]:
        """The best `ks[i]` living points of query i as (score, id), by a walk of width `efs[i]`."""
        found: list[list[tuple[float, str]]] = [[] for _ in ks]
        if not self._labels:
            return found
        groups: dict[tuple[int, int], list[int]] = {}
        for i, (k, ef) in enumerate(zip(ks, efs, strict=True)):
            k_here = min(k, len(self._labels))
            groups.setdefault((k_here, self._width(max(ef, k_here))), []).append(i)
        for (k, ef), members in groups.items():
            rows = np.ascontiguousarray(queries[members])
            if self.dead:
                selector = faiss.IDSelectorBitmap(self._alive)  # type: ignore[call-arg,arg-type]
                parameters = faiss.SearchParametersHNSW(efSearch=ef, sel=selector)  # type: ignore[attr-defined]
            else:
                parameters = faiss.SearchParametersHNSW(efSearch=ef)  # type: ignore[attr-defined]
            scores, labels = self._index.search(rows, k, params=parameters)
            for i, row_scores, row_labels in zip(members, scores, labels, strict=True):
                found[i] = [
                    (float(score), self._ids[label])
                    for score, label in zip(row_scores, row_labels, strict=True)
                    if label >= 0
                ]
        return found

    def _width(self, ef: int) -> int:
        """A wider walk makes up for the dead that it meets and may not return."""
        return -(-ef * len(self._ids) // len(self._labels))
