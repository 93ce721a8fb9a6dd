"""Raw FAISS HNSW in one process: the limit of what the engine can reach."""

# ruff: noqa: D102 - the protocol in systems.py documents the methods
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.index.pacing import Turns
from benchmarks.index.systems import Floats, Options, Unsupported

_faiss: Any = faiss
_TRAINING = 10_000


class FaissSystem:
    """IndexHNSWFlat (`none`) or IndexHNSWSQ with 8 bits (`sq8`), inner product, in memory.

    FAISS allows no `add` beside `search`, so a lock is held in both. The scalar quantizer is trained
    on the first points that come; they wait until there are enough.
    """

    def __init__(self, options: Options) -> None:
        faiss.omp_set_num_threads(options.build_threads)
        self._file = Path(options.folder) / "index.faiss"
        self._lock = Turns()
        self._ids: list[str] = []
        self._waiting: list[Floats] = []
        if options.existing:
            self._index = _faiss.read_index(str(self._file))
            self._ids = (self._file.with_suffix(".ids")).read_text().split()
        elif options.variant == "none":
            self._index = _faiss.IndexHNSWFlat(options.dimension, options.m, faiss.METRIC_INNER_PRODUCT)
        elif options.variant == "sq8":
            kind = _faiss.ScalarQuantizer.QT_8bit
            self._index = _faiss.IndexHNSWSQ(options.dimension, kind, options.m, faiss.METRIC_INNER_PRODUCT)
        else:
            raise Unsupported(f"no raw index for {options.variant}")
        self._index.hnsw.efConstruction = options.ef_construction
        self._parameters = _faiss.SearchParametersHNSW(efSearch=64)

    def versions(self) -> str:
        return f"faiss {faiss.__version__}"

    def encode(self, ids: Sequence[str], vectors: Floats) -> tuple[Sequence[str], Floats]:
        return ids, np.ascontiguousarray(vectors)

    def insert(self, batch: tuple[Sequence[str], Floats]) -> None:
        ids, vectors = batch
        with self._lock:
            if self._index.is_trained:
                self._index.add(vectors)
            else:
                self._waiting.append(vectors)
                if sum(map(len, self._waiting)) >= _TRAINING:
                    self._train()
            self._ids.extend(ids)

    def _train(self) -> None:
        rows = np.concatenate(self._waiting)
        self._index.train(rows)
        self._index.add(rows)
        self._waiting = []

    def finish(self) -> None:
        with self._lock:
            if self._waiting:
                self._train()

    def set_effort(self, effort: int) -> None:
        self._parameters.efSearch = effort

    def search(self, queries: Floats, k: int) -> list[list[str]]:
        with self._lock:
            _, labels = self._index.search(queries, k, params=self._parameters)
        ids = self._ids
        return [[ids[label] for label in row] for row in labels.tolist()]

    def delete(self, ids: Sequence[str]) -> None:
        raise Unsupported("FAISS removes nothing from an HNSW index")

    def close(self) -> None:
        _faiss.write_index(self._index, str(self._file))
        self._file.with_suffix(".ids").write_text("\n".join(self._ids))
