"""Vectors of a graph in the order of its labels, in a file.

Re-scoring reads a dozen vectors here and there per query; from this file that costs a quarter of
what it costs from the store. It is derived: written along with the graph, and made anew from the
store where it is missing.
"""

from __future__ import annotations

import os
import secrets
import weakref
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from actors.index.kernels import scoring
from actors.messages import FloatMatrix
from contract.events import VectorType

DTYPES: dict[VectorType, npt.DTypeLike] = {"fp32": "<f4", "fp16": "<f2"}
_PREFIX = "rows-"


class VectorFile:
    """Rows of one dimension and type. One writer; rows that were written once are never changed.

    The file goes with the last user of this object, unless a graph file names it: see `keep`.
    """

    def __init__(self, path: Path, vector_type: VectorType, dimension: int) -> None:
        """Open the file at `path`, or make it."""
        self.path = path
        self._dtype = np.dtype(DTYPES[vector_type])
        self._dimension = dimension
        self._bits = np.dtype(np.uint16) if self._dtype == np.float16 else self._dtype
        self._row_bytes = dimension * self._dtype.itemsize
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._end = weakref.finalize(self, _discard, self._descriptor, path)

    @classmethod
    def new_in(cls, folder: Path, vector_type: VectorType, dimension: int) -> Self:
        """An empty file of a name of its own."""
        return cls(folder / f"{_PREFIX}{secrets.token_hex(8)}", vector_type, dimension)

    def keep(self) -> None:
        """Let the file outlive this object; idempotent."""
        if self._end.detach() is not None:
            weakref.finalize(self, os.close, self._descriptor)

    def write(self, first: int, vectors: FloatMatrix) -> None:
        """Put (n, d) float32 into rows `first` to `first + n`."""
        data = memoryview(np.ascontiguousarray(vectors, dtype=self._dtype).tobytes())
        offset = first * self._row_bytes
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            data, offset = data[written:], offset + written

    def read(self, labels: npt.NDArray[np.int64]) -> FloatMatrix:
        """(n, d) float32: the rows that (n,) labels name. Raises OSError if the file lacks one of them."""
        rows = np.empty((len(labels), self._dimension), dtype=self._bits)
        self.check(scoring.read(self._descriptor, np.ascontiguousarray(labels, dtype=np.int64), rows))
        return rows.view(self._dtype).astype(np.float32, copy=False)

    def score(self, queries: FloatMatrix, labels: npt.NDArray[np.int64], scores: FloatMatrix) -> None:
        """See scoring.score. Raises OSError if the file lacks a row."""
        self.check(scoring.score(*self.source(), queries, labels, scores))

    def source(self) -> tuple[int, npt.NDArray[Any]]:
        """What compiled functions read rows by: the descriptor, and room for a row; they know float16 by its bits."""
        return self._descriptor, np.empty(self._dimension, dtype=self._bits)

    def check(self, missing: int) -> None:
        """Raise OSError if a compiled function missed rows."""
        if missing:
            raise OSError(f"{self.path} lacks {missing} vectors of its graph; it is made anew when the shard restarts")

    def holds(self, count: int) -> bool:
        """Whether the file is long enough for `count` rows."""
        return os.fstat(self._descriptor).st_size >= count * self._row_bytes

    def sync(self) -> None:
        """Return when what was written is on the disk."""
        os.fsync(self._descriptor)


def _discard(descriptor: int, path: Path) -> None:
    os.close(descriptor)
    path.unlink(missing_ok=True)


def remove_others(folder: Path, kept: Path | None) -> None:
    """Delete the vector files in a folder that no graph file names any more."""
    for path in folder.glob(f"{_PREFIX}*"):
        if path != kept:
            path.unlink()
