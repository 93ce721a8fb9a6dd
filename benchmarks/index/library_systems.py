"""Index libraries without a store: hnswlib and usearch. In memory; saved when closed."""

# ruff: noqa: D102 - the protocol in systems.py documents the methods
from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.index.pacing import Turns
from benchmarks.index.systems import Floats, Options

Batch = tuple[npt.NDArray[np.int64], Floats]


class _Library:
    """What both have in common: numbers as ids, and a lock, since neither documents `add` beside `search` as safe."""

    def __init__(self, options: Options) -> None:
        self._lock = Turns()
        self._threads = options.build_threads
        self._file = str(Path(options.folder) / "index")

    def encode(self, ids: Sequence[str], vectors: Floats) -> Batch:
        return np.array([int(one) for one in ids]), np.ascontiguousarray(vectors)

    def finish(self) -> None:
        """Everything is in the index when `insert` returns."""


class HnswlibSystem(_Library):
    """hnswlib over float32."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._index: Any = importlib.import_module("hnswlib").Index("ip", options.dimension)
        if options.existing:
            self._index.load_index(self._file, max_elements=options.capacity)
        else:
            self._index.init_index(options.capacity, M=options.m, ef_construction=options.ef_construction)
        self._index.set_num_threads(1)

    def versions(self) -> str:
        return f"hnswlib {importlib.metadata.version('hnswlib')}"

    def insert(self, batch: Batch) -> None:
        with self._lock:
            self._index.add_items(batch[1], batch[0], num_threads=self._threads)

    def set_effort(self, effort: int) -> None:
        self._index.set_ef(effort)

    def search(self, queries: Floats, k: int) -> list[list[str]]:
        with self._lock:
            labels, _ = self._index.knn_query(queries, k, num_threads=1)
        return [[str(label) for label in row] for row in labels.tolist()]

    def delete(self, ids: Sequence[str]) -> None:
        with self._lock:
            for one in ids:
                self._index.mark_deleted(int(one))

    def close(self) -> None:
        self._index.save_index(self._file)


class UsearchSystem(_Library):
    """usearch with float32, float16 or int8 components; int8 is not re-scored."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._index: Any = importlib.import_module("usearch.index").Index(
            ndim=options.dimension,
            metric="ip",
            dtype=options.variant,
            connectivity=options.m,
            expansion_add=options.ef_construction,
        )
        if options.existing:
            self._index.load(self._file)

    def versions(self) -> str:
        return f"usearch {importlib.metadata.version('usearch')} ({self._index.hardware_acceleration})"

    def insert(self, batch: Batch) -> None:
        with self._lock:
            self._index.add(batch[0], batch[1], threads=self._threads)

    def set_effort(self, effort: int) -> None:
        self._index.expansion_search = effort

    def search(self, queries: Floats, k: int) -> list[list[str]]:
        with self._lock:
            keys = self._index.search(queries, k, threads=1).keys
        return [[str(key) for key in row] for row in np.atleast_2d(keys).tolist()]

    def delete(self, ids: Sequence[str]) -> None:
        with self._lock:
            self._index.remove(np.array([int(one) for one in ids]), threads=self._threads)

    def close(self) -> None:
        self._index.save(self._file)
