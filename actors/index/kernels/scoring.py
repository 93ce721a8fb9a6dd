"""Inner products with vectors that a file holds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from actors.index.kernels.compiled import (
    FOUND,
    I32,
    INT,
    STORED,
    VECTORS,
    Floats,
    Longs,
    U,
    array,
    as_float,
    compiled,
    compiled_for,
    compiled_loosely,
    pread,
)
from actors.messages import FloatMatrix


@compiled_loosely
def inner_product(row: Any, query: Floats) -> np.float32:
    """Of a row (d,) of float32 or the bits of float16 with a query (d,)."""
    total = np.float32(0)
    for i in range(U(query.shape[0])):
        total += as_float(row[i]) * query[i]
    return total


@compiled
def _reads(descriptor: int, buffer: Any, size: int, offset: int) -> bool:
    return bool(pread(I32(descriptor), buffer.ctypes, U(size), np.int64(offset)) == size)


@compiled_for(*(INT(INT, array(types.int64, 1, readonly=True), array(kind, 2)) for kind in STORED))
def read(descriptor: int, labels: Longs, rows: Any) -> int:
    """Fill `rows` (n, d) with those rows of a file that (n,) `labels` name; neighbors in the file are read at once.

    Returns how many of them the file lacks.
    """
    size, begin, missing = rows.shape[1] * rows.itemsize, 0, 0
    while begin < labels.shape[0]:
        end = begin + 1
        while end < labels.shape[0] and labels[end] == labels[end - 1] + 1:
            end += 1
        wanted = (end - begin) * size
        if not _reads(descriptor, rows[begin:], wanted, labels[begin] * size):
            missing += end - begin
        begin = end
    return missing


@compiled
def _score(descriptor: int, row: Any, query: Floats, labels: Longs, scores: Any) -> int:
    """As `score`, for one query; `row` has room for one row."""
    size, missing = row.shape[0] * row.itemsize, 0
    for j in range(U(labels.shape[0])):
        label, score, place = labels[j], np.float32(-np.inf), U(j)
        if label >= 0:
            if not _reads(descriptor, row, size, label * size):
                missing += 1
            score = inner_product(row, query)
        while place > U(0) and scores[place - U(1)] < score:
            scores[place], labels[place] = scores[place - U(1)], labels[place - U(1)]
            place -= U(1)
        scores[place], labels[place] = score, label
    return missing


@compiled_for(*(INT(INT, array(kind, 1), VECTORS, *FOUND) for kind in STORED))
def score(descriptor: int, row: Any, queries: FloatMatrix, labels: Longs, scores: FloatMatrix) -> int:
    """Fill `scores` (q, c) with the inner products of queries (q, d) and the rows that `labels` (q, c) name.

    Each row of `scores` and `labels` is then sorted, highest score first; a label of -1 has the score -inf.

    Args:
        descriptor: An open file of rows of d components. Read, and not mapped: its pages are not the
            process's, and a file that is too short is an error instead of the end of the process.
        row: (d,), to be overwritten, of the file's type: float32, or uint16 for the bits of float16.
        queries: (q, d) float32.
        labels: int64; changed.
        scores: float32; written.

    Returns:
        How many of the rows the file lacks.
    """
    missing = 0
    for i in range(U(queries.shape[0])):
        missing += _score(descriptor, row, queries[i], labels[i], scores[i])
    return missing
