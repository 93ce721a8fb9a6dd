"""The walk over a graph, and the scan of the points that are in none.

A walk is bound by memory: every comparison reads the code of a point that no cache holds. So codes
are asked for before their turn comes, and of most points only the first components are read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from actors.index.kernels.compiled import (
    F32,
    FOUND,
    I32,
    INT,
    ROTATION,
    STORED,
    VECTORS,
    Bytes,
    Floats,
    Integers,
    Longs,
    U,
    array,
    compiled,
    compiled_for,
    prefetch,
)
from actors.index.kernels.distances import FARTHEST, Keys, distance_of, insert, limit_of, sampled_of, touch
from actors.index.kernels.encoding import encode
from actors.index.kernels.scoring import inner_product, score
from actors.messages import FloatMatrix

_BITS = array(types.uint8, 1, readonly=True)
_GRAPH = (array(types.uint8, 1), array(types.int32, 1), array(types.int64, 1), array(types.int64, 1), INT, INT)
_GROWING = (array(types.uint8, 1), array(F32, 2), array(types.bool_, 1, readonly=True))


def _walk_types(stored: Any) -> tuple[Any, ...]:
    return (*_GRAPH, INT, array(stored, 1), *ROTATION, VECTORS, INT, _BITS, *FOUND)


@compiled
def _near(
    codes: Bytes, width: np.uint64, query: Bytes, sampled: np.uint64, farthest: np.int32, labels: Keys, sums: Integers,
    count: np.uint64
) -> np.uint64:  # fmt: skip
    """Keep those of the first `count` labels that may be nearer than `farthest`; their distances are in `sums`."""
    limit, kept = limit_of(farthest, sampled, width), U(0)
    for j in range(count):
        label = labels[j]
        total = distance_of(codes, label, query, U(0), sampled)
        labels[kept] = label
        sums[kept] = total
        if total < limit:
            touch(codes, label, width, sampled, width)
            kept += U(1)
    for j in range(kept):
        sums[j] = I32(sums[j] + distance_of(codes, labels[j], query, sampled, width))
    return kept


@compiled
def _descend(
    codes: Bytes, width: np.uint64, neighbors: Integers, offsets: Longs, levels: Longs, entry: int, top: int,
    query: Bytes
) -> tuple[np.uint64, np.int32]:  # fmt: skip
    """From the graph's entry down to its lowest level, always to the nearest neighbor: a label and its distance."""
    nearest = U(entry)
    least = distance_of(codes, nearest, query, U(0), width)
    for level in range(top, 0, -1):
        moved = True
        while moved:
            moved = False
            begin, end = U(offsets[nearest] + levels[level]), U(offsets[nearest] + levels[level + 1])
            for j in range(begin, end):
                if neighbors[j] < 0:
                    break
                touch(codes, U(neighbors[j]), width, U(0), width)
            for j in range(begin, end):
                if neighbors[j] < 0:
                    break
                distance = distance_of(codes, U(neighbors[j]), query, U(0), width)
                if distance < least:
                    least, nearest, moved = distance, U(neighbors[j]), True
    return nearest, least


@compiled
def _unseen(neighbors: Integers, begin: np.uint64, degree: np.uint64, seen: Keys, labels: Keys) -> np.uint64:
    """Put the neighbors in this row that were not seen before into `labels`, mark them, and count them."""
    count = U(0)
    for j in range(begin, begin + degree):
        if neighbors[j] < 0:
            break
        label = U(neighbors[j])
        word = seen[label >> U(6)]
        labels[count] = label
        count += U(1) - ((word >> (label & U(63))) & U(1))
        seen[label >> U(6)] = word | (U(1) << (label & U(63)))
    return count


@compiled
def _is_in(bitmap: Bytes, label: np.uint64) -> bool:
    return bool((bitmap[label >> U(3)] >> np.uint8(label & U(7))) & np.uint8(1))


@compiled
def _walk(
    codes: Bytes, width: np.uint64, neighbors: Integers, offsets: Longs, levels: Longs, entry: int, top: int,
    query: Bytes, allowed: Bytes, pool: Keys, best: Keys, seen: Keys, labels: Keys, sums: Integers
) -> np.uint64:  # fmt: skip
    """Walk for one query; returns how many of `best` were found, nearest first.

    `pool` holds the nearest points that were met, which the walk goes on from; `best` the nearest
    of those that are allowed. Nothing in `allowed` means that all are.
    """
    filtered, degree = allowed.shape[0] > 0, U(levels[1])
    sampled = sampled_of(width)
    width_of_walk, wanted, one, low = U(pool.shape[0]), U(best.shape[0]), U(1), U(0xFFFFFFFF)
    label, distance = _descend(codes, width, neighbors, offsets, levels, entry, top, query)
    for j in range(U(seen.shape[0])):
        seen[j] = U(0)
    seen[label >> U(6)] = one << (label & U(63))
    # The lowest bit says that the walk has gone on from here.
    pool[0] = (U(distance) << U(32)) | (label << one)
    size, at, found = one, U(0), U(0)
    if filtered and _is_in(allowed, label):
        best[0] = pool[0]
        found = one
    while at < size:
        if pool[at] & one:
            at += one
            continue
        label = (pool[at] & low) >> one
        pool[at] |= one
        at += one
        count = _unseen(neighbors, U(offsets[label]), degree, seen, labels)
        for j in range(count):
            touch(codes, labels[j], width, U(0), sampled)
        if at < size:
            prefetch(neighbors, U(offsets[(pool[at] & low) >> one]))
        farthest = I32(pool[size - one] >> U(32)) if size == width_of_walk else I32(FARTHEST)
        if filtered:
            farthest = max(farthest, I32(best[found - one] >> U(32))) if found == wanted else I32(FARTHEST)
        count = _near(codes, width, query, sampled, farthest, labels, sums, count)
        for j in range(count):
            key = (U(sums[j]) << U(32)) | (labels[j] << one)
            if size < width_of_walk or key < pool[size - one]:
                at = min(at, insert(pool, size, width_of_walk, key))
                size = min(size + one, width_of_walk)
            if filtered and (found < wanted or key < best[found - one]) and _is_in(allowed, labels[j]):
                insert(best, found, wanted, key)
                found = min(found + one, wanted)
    if not filtered:
        found = min(size, wanted)
        for j in range(found):
            best[j] = pool[j]
    return found


@compiled_for(*(INT(*_walk_types(kind)) for kind in STORED))
def walk(
    codes: Bytes, neighbors: Integers, offsets: Longs, levels: Longs, entry: int, top: int, descriptor: int, row: Any,
    signs: Floats, left: FloatMatrix, right: FloatMatrix, queries: FloatMatrix, ef: int,
    allowed: Bytes, labels: Longs, scores: FloatMatrix
) -> int:  # fmt: skip
    """Search an HNSW graph over bytes, and `score` what was found.

    The graph is as FAISS keeps it: the neighbors of a label on level l are `neighbors[offsets[label]
    + levels[l] : offsets[label] + levels[l + 1]]`, up to the first -1.

    Args:
        codes: (n * w,) uint8, the code of each label.
        neighbors: int32.
        offsets: (n + 1,) int64.
        levels: int64.
        entry: The label where every walk begins, on level `top`.
        top: Highest level.
        descriptor: Of the file of the labels' rows.
        row: As in `score`.
        signs: (w,) float32, and `left` and `right`: how codes are made, see `encode`.
        left: (r, r) float32.
        right: (w / r, w / r) float32.
        queries: (q, d) float32.
        ef: Width of the walk; at least c.
        allowed: One bit per label that may be found, lowest first; empty for all.
        labels: (q, c) int64; written: what was found, -1 where fewer were.
        scores: (q, c) float32; written: inner products, highest first.

    Returns:
        How many of the rows the file lacks.
    """
    width, count = U(signs.shape[0]), offsets.shape[0] - 1
    encoded = np.empty((queries.shape[0], signs.shape[0]), dtype=np.uint8)
    encode(signs, left, right, queries, encoded)
    pool, best = np.empty(ef, dtype=np.uint64), np.empty(labels.shape[1], dtype=np.uint64)
    seen = np.empty((count >> 6) + 1, dtype=np.uint64)
    near, sums = np.empty(levels[1], dtype=np.uint64), np.empty(levels[1], dtype=np.int32)
    for i in range(U(encoded.shape[0])):
        found = _walk(
            codes, width, neighbors, offsets, levels, entry, top, encoded[i], allowed, pool, best, seen, near, sums
        )
        for j in range(U(labels.shape[1])):
            labels[i, j] = np.int64((best[j] & U(0xFFFFFFFF)) >> U(1)) if j < found else np.int64(-1)
    return score(descriptor, row, queries, labels, scores)


@compiled_for(types.void(*_GROWING, *FOUND, *ROTATION, VECTORS))
def scan(
    codes: Bytes, rows: FloatMatrix, hidden: npt.NDArray[np.bool_], places: Longs, scores: FloatMatrix,
    signs: Floats, left: FloatMatrix, right: FloatMatrix, queries: FloatMatrix
) -> None:  # fmt: skip
    """As `walk`, by comparison with the code of every row that is not hidden.

    Args:
        codes: (n * w,) uint8.
        rows: (n, d) float32.
        hidden: (n,) bool; empty if none is.
        places: (q, c) int64; written.
        scores: (q, c) float32; written.
        signs: (w,) float32, and `left` and `right`: how codes are made, see `encode`.
        left: (r, r) float32.
        right: (w / r, w / r) float32.
        queries: (q, d) float32.
    """
    width, wanted = U(signs.shape[0]), U(places.shape[1])
    encoded = np.empty((queries.shape[0], signs.shape[0]), dtype=np.uint8)
    encode(signs, left, right, queries, encoded)
    sampled = sampled_of(width)
    best = np.empty(places.shape[1], dtype=np.uint64)
    for i in range(U(encoded.shape[0])):
        query, found, limit = encoded[i], U(0), I32(FARTHEST)
        for each in range(U(rows.shape[0])):
            row = U(each)
            if hidden.shape[0] > 0 and hidden[row]:
                continue
            total = distance_of(codes, row, query, U(0), sampled)
            if total >= limit:
                continue
            total = I32(total + distance_of(codes, row, query, sampled, width))
            key = (U(total) << U(32)) | row
            if found < wanted or key < best[found - U(1)]:
                insert(best, found, wanted, key)
                found = min(found + U(1), wanted)
                if found == wanted:
                    limit = limit_of(I32(best[found - U(1)] >> U(32)), sampled, width)
        for j in range(wanted):
            at, place, score = U(j), np.int64(-1), np.float32(-np.inf)
            if at < found:
                place = np.int64(best[at] & U(0xFFFFFFFF))
                score = inner_product(rows[place], queries[i])
            while at > U(0) and scores[i, at - U(1)] < score:
                scores[i, at], places[i, at] = scores[i, at - U(1)], places[i, at - U(1)]
                at -= U(1)
            scores[i, at], places[i, at] = score, place


@compiled_for(*(INT(*_walk_types(kind), *_GROWING, *FOUND) for kind in STORED))
def walk_and_scan(
    codes: Bytes, neighbors: Integers, offsets: Longs, levels: Longs, entry: int, top: int, descriptor: int, row: Any,
    signs: Floats, left: FloatMatrix, right: FloatMatrix, queries: FloatMatrix, ef: int,
    allowed: Bytes, labels: Longs, scores: FloatMatrix,
    growing_codes: Bytes, rows: FloatMatrix, hidden: npt.NDArray[np.bool_], places: Longs,
    growing_scores: FloatMatrix
) -> int:  # fmt: skip
    """`walk` and `scan` in one: Python's lock is waited for once, and not twice, while records are applied."""
    scan(growing_codes, rows, hidden, places, growing_scores, signs, left, right, queries)
    return walk(
        codes, neighbors, offsets, levels, entry, top, descriptor, row, signs, left, right, queries, ef, allowed,
        labels, scores
    )  # fmt: skip
