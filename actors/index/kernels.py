"""The inner loops of a search, compiled: without Python's lock, and with as few reads of memory as they can.

A walk is bound by memory: every comparison reads the code of a point that no cache holds. So codes
are asked for before their turn comes, and of most points only the first components are read: after
a random rotation these tell, all but surely, that a point is too far away.
Source: Gao and Long, High-Dimensional Approximate Nearest Neighbor Search: with Reliable and
Efficient Distance Comparison Operations, 2023.

The functions take contiguous arrays and trust their caller: nobody notices an index out of bounds.
Numbers are unsigned, because for signed ones every access asks whether it counts from the end.
All of them are in one file, because what is kept of a compiled function is made anew only when its
own file has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import extending, types

from actors.messages import FloatMatrix

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
# Squared distance, label and a flag in one number each, so that they sort by distance, then by label.
Keys = npt.NDArray[np.uint64]
U = np.uint64
I32 = np.int32

# Components of a code that are compared before the others are read: two lines of the cache.
SAMPLED: Final = 128
# The share of the whole distance that the sampled components must exceed for a point to be passed
# over, relative to what is expected: two deviations.
_MARGIN: Final = np.float32(1.2)
_LINE: Final = 64
# Squared lengths this close to 1 are those of unit vectors in half precision.
_UNIT: Final = 1e-3
# Cutting the fraction off then rounds to the middle of 0…255.
_MIDDLE: Final = 128
_FARTHEST: Final = np.int32(2**31 - 1)

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _array(kind: Any, dimensions: int, readonly: bool = False) -> Any:
    return types.Array(kind, dimensions, "C", readonly=readonly)


_INT, _F32 = types.int64, types.float32
_VECTORS = _array(_F32, 2, readonly=True)
_ROTATION = (_array(_F32, 1), _array(_F32, 2), _array(_F32, 2))
_FOUND = (_array(types.int64, 2), _array(_F32, 2))
_GRAPH = (_array(types.uint8, 1), _array(types.int32, 1), _array(types.int64, 1), _array(types.int64, 1), _INT, _INT)
# What a vector file may hold: the bits of float16, and float32.
_STORED = (types.uint16, _F32)


def _compiled(function: _Function) -> _Function:
    """Compiled with whatever calls it."""
    return cast("_Function", numba.njit(nogil=True, error_model="numpy")(function))


def _compiled_loosely(function: _Function) -> _Function:
    """As `_compiled`; sums of floats may be taken in any order, which lets them be taken 16 at a time."""
    return cast("_Function", numba.njit(nogil=True, error_model="numpy", fastmath=True)(function))


def _compiled_for(*signatures: Any) -> Callable[[_Function], _Function]:
    """Compiled for this processor here and now, which takes seconds, and kept on the disk.

    With arguments of other types a call fails: it never compiles while a search waits.
    """

    def compiled(function: _Function) -> _Function:
        made = numba.njit([*signatures], nogil=True, error_model="numpy", cache=True)(function)
        return cast("_Function", made)

    return compiled


def _declare_prefetch(_context: Any, array: Any, index: Any) -> Any:

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        made = context.make_array(signature.args[0])(context, builder, arguments[0])
        byte = ir.IntType(8).as_pointer()
        word = ir.IntType(32)
        called = builder.module.globals.get("llvm.prefetch.p0")
        if called is None:
            kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
            called = ir.Function(builder.module, kind, "llvm.prefetch.p0")
        pointer = builder.bitcast(builder.gep(made.data, [arguments[1]]), byte)
        # To read, into every cache, and it holds data.
        builder.call(called, [pointer, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(array, index), generate


def _declare_as_float(_context: Any, value: Any) -> Any:

    def generate(_context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if signature.args[0] == types.uint16:
            return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())
        return arguments[0]

    return types.float32(value), generate


# ssize_t pread(int descriptor, void *buffer, size_t count, off_t offset) of POSIX.
_pread: Any = types.ExternalFunction("pread", types.int64(types.int32, types.voidptr, types.uint64, types.int64))
# Ask for the line of the cache that holds array[index].
_prefetch: Any = extending.intrinsic(_declare_prefetch)
# A component as float32: the 16 bits of a float16 are widened.
_as_float: Any = extending.intrinsic(_declare_as_float)


@_compiled
def _line_distance(codes: Bytes, start: np.uint64, query: Bytes, at: np.uint64) -> np.int32:
    total = I32(0)
    for i in range(U(_LINE)):
        difference = I32(codes[start + i]) - I32(query[at + i])
        total = I32(total + I32(difference * difference))
    return total


@_compiled
def _distance(codes: Bytes, label: np.uint64, query: Bytes, first: np.uint64, last: np.uint64) -> np.int32:
    """Squared Euclidean distance of a code and a query in components `first` to `last`."""
    start, total, at = label * U(query.shape[0]), I32(0), first
    while at + U(_LINE) <= last:
        total = I32(total + _line_distance(codes, start + at, query, at))
        at += U(_LINE)
    while at < last:
        difference = I32(codes[start + at]) - I32(query[at])
        total = I32(total + I32(difference * difference))
        at += U(1)
    return total


@_compiled
def _touch(codes: Bytes, label: np.uint64, width: np.uint64, first: np.uint64, last: np.uint64) -> None:
    start = label * width
    for at in range(first, last, U(_LINE)):
        _prefetch(codes, start + at)


@_compiled
def _insert(pool: Keys, size: np.uint64, capacity: np.uint64, key: np.uint64) -> np.uint64:
    """Put a key, which belongs here, into an ascending pool; the last falls out of a full one. Returns its place."""
    place, length = U(0), size
    while length > U(1):
        half = length >> U(1)
        # No branch: the processor could not foretell it.
        place = place + half if pool[place + half - U(1)] < key else place
        length -= half
    if size > U(0) and pool[place] < key:
        place += U(1)
    to = size if size < capacity else capacity - U(1)
    while to > place + U(4):
        a, b, c, d = pool[to - U(1)], pool[to - U(2)], pool[to - U(3)], pool[to - U(4)]
        pool[to], pool[to - U(1)], pool[to - U(2)], pool[to - U(3)] = a, b, c, d
        to -= U(4)
    while to > place:
        pool[to] = pool[to - U(1)]
        to -= U(1)
    pool[place] = key
    return place


@_compiled
def _limit(farthest: np.int32, sampled: np.uint64, width: np.uint64) -> np.int32:
    """What the distance in the sampled components must be below for the whole one to be below `farthest`."""
    if sampled == width or farthest == _FARTHEST:
        return farthest
    return I32(min(np.float64(_FARTHEST - 1), np.float64(farthest) * _MARGIN * sampled / width))


@_compiled
def _near(
    codes: Bytes, width: np.uint64, query: Bytes, sampled: np.uint64, farthest: np.int32, labels: Keys, sums: Integers,
    count: np.uint64
) -> np.uint64:  # fmt: skip
    """Keep those of the first `count` labels that may be nearer than `farthest`; their distances are in `sums`."""
    limit, kept = _limit(farthest, sampled, width), U(0)
    for j in range(count):
        label = labels[j]
        total = _distance(codes, label, query, U(0), sampled)
        labels[kept] = label
        sums[kept] = total
        if total < limit:
            _touch(codes, label, width, sampled, width)
            kept += U(1)
    for j in range(kept):
        sums[j] = I32(sums[j] + _distance(codes, labels[j], query, sampled, width))
    return kept


@_compiled
def _descend(
    codes: Bytes, width: np.uint64, neighbors: Integers, offsets: Longs, levels: Longs, entry: int, top: int,
    query: Bytes
) -> tuple[np.uint64, np.int32]:  # fmt: skip
    """From the graph's entry down to its lowest level, always to the nearest neighbor: a label and its distance."""
    nearest = U(entry)
    least = _distance(codes, nearest, query, U(0), width)
    for level in range(top, 0, -1):
        moved = True
        while moved:
            moved = False
            begin, end = U(offsets[nearest] + levels[level]), U(offsets[nearest] + levels[level + 1])
            for j in range(begin, end):
                if neighbors[j] < 0:
                    break
                _touch(codes, U(neighbors[j]), width, U(0), width)
            for j in range(begin, end):
                if neighbors[j] < 0:
                    break
                distance = _distance(codes, U(neighbors[j]), query, U(0), width)
                if distance < least:
                    least, nearest, moved = distance, U(neighbors[j]), True
    return nearest, least


@_compiled
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


@_compiled
def _is_in(bitmap: Bytes, label: np.uint64) -> bool:
    return bool((bitmap[label >> U(3)] >> np.uint8(label & U(7))) & np.uint8(1))


@_compiled
def _walk(
    codes: Bytes, width: np.uint64, neighbors: Integers, offsets: Longs, levels: Longs, entry: int, top: int,
    query: Bytes, allowed: Bytes, pool: Keys, best: Keys, seen: Keys, labels: Keys, sums: Integers
) -> np.uint64:  # fmt: skip
    """Walk for one query; returns how many of `best` were found, nearest first.

    `pool` holds the nearest points that were met, which the walk goes on from; `best` the nearest
    of those that are allowed. Nothing in `allowed` means that all are.
    """
    filtered, degree = allowed.shape[0] > 0, U(levels[1])
    sampled = U(SAMPLED) if width >= U(2 * SAMPLED) else width
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
            _touch(codes, labels[j], width, U(0), sampled)
        if at < size:
            _prefetch(neighbors, U(offsets[(pool[at] & low) >> one]))
        farthest = I32(pool[size - one] >> U(32)) if size == width_of_walk else I32(_FARTHEST)
        if filtered:
            farthest = max(farthest, I32(best[found - one] >> U(32))) if found == wanted else I32(_FARTHEST)
        count = _near(codes, width, query, sampled, farthest, labels, sums, count)
        for j in range(count):
            key = (U(sums[j]) << U(32)) | (labels[j] << one)
            if size < width_of_walk or key < pool[size - one]:
                at = min(at, _insert(pool, size, width_of_walk, key))
                size = min(size + one, width_of_walk)
            if filtered and (found < wanted or key < best[found - one]) and _is_in(allowed, labels[j]):
                _insert(best, found, wanted, key)
                found = min(found + one, wanted)
    if not filtered:
        found = min(size, wanted)
        for j in range(found):
            best[j] = pool[j]
    return found


@_compiled_loosely
def _rotate(
    vector: npt.NDArray[np.float32], signs: npt.NDArray[np.float32], left: FloatMatrix, right: FloatMatrix,
    grid: FloatMatrix, turned: FloatMatrix
) -> None:  # fmt: skip
    """Turned = scale * left @ grid @ right, where grid is a vector (d,), brought to length 1, after signs."""
    squares = np.float32(0)
    for i in range(U(vector.shape[0])):
        squares += vector[i] * vector[i]
    # Float16 of a unit vector is as good as one.
    factor = np.float32(1) if abs(squares - 1) <= _UNIT or squares <= 0 else np.float32(1 / np.sqrt(squares))
    rows, columns = U(left.shape[0]), U(right.shape[0])
    for i in range(rows):
        for j in range(columns):
            at = i * columns + j
            grid[i, j] = vector[at] * factor * signs[at] if at < U(vector.shape[0]) else np.float32(0)
            turned[i, j] = 0
    for i in range(rows):
        for k in range(columns):
            for j in range(columns):
                turned[i, j] += grid[i, k] * right[k, j]
    for i in range(rows):
        for j in range(columns):
            grid[i, j] = 0
        for k in range(rows):
            for j in range(columns):
                grid[i, j] += left[i, k] * turned[k, j]


@_compiled_for(types.void(*_ROTATION, _VECTORS, _array(types.uint8, 2)))
def encode(
    signs: npt.NDArray[np.float32], left: FloatMatrix, right: FloatMatrix, vectors: FloatMatrix, encoded: Bytes
) -> None:
    """Fill `encoded` (n, w) with vectors (n, d) of any length, rotated and each component made a byte.

    The rotation is a Kronecker product: see Rotation. Its scale is in `left`.
    """
    rows, columns = U(left.shape[0]), U(right.shape[0])
    grid, turned = np.empty((rows, columns), dtype=np.float32), np.empty((rows, columns), dtype=np.float32)
    for n in range(U(vectors.shape[0])):
        _rotate(vectors[n], signs, left, right, grid, turned)
        for i in range(rows):
            for j in range(columns):
                value = min(max(grid[i, j] + np.float32(_MIDDLE), np.float32(0)), np.float32(255))
                encoded[n, i * columns + j] = np.uint8(value)


@_compiled_loosely
def _inner_product(row: Any, query: npt.NDArray[np.float32]) -> np.float32:
    total = np.float32(0)
    for i in range(U(query.shape[0])):
        total += _as_float(row[i]) * query[i]
    return total


@_compiled
def _reads(descriptor: int, buffer: Any, size: int, offset: int) -> bool:
    return bool(_pread(I32(descriptor), buffer.ctypes, U(size), np.int64(offset)) == size)


@_compiled_for(*(_INT(_INT, _array(types.int64, 1, readonly=True), _array(kind, 2)) for kind in _STORED))
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


@_compiled
def _score(descriptor: int, row: Any, query: npt.NDArray[np.float32], labels: Longs, scores: Any) -> int:
    """As `score`, for one query; `row` has room for one row."""
    size, missing = row.shape[0] * row.itemsize, 0
    for j in range(U(labels.shape[0])):
        label, score, place = labels[j], np.float32(-np.inf), U(j)
        if label >= 0:
            if not _reads(descriptor, row, size, label * size):
                missing += 1
            score = _inner_product(row, query)
        while place > U(0) and scores[place - U(1)] < score:
            scores[place], labels[place] = scores[place - U(1)], labels[place - U(1)]
            place -= U(1)
        scores[place], labels[place] = score, label
    return missing


@_compiled_for(*(_INT(_INT, _array(kind, 1), _VECTORS, *_FOUND) for kind in _STORED))
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


@_compiled_for(
    *(
        _INT(*_GRAPH, _INT, _array(kind, 1), *_ROTATION, _VECTORS, _INT, _array(types.uint8, 1, readonly=True), *_FOUND)
        for kind in _STORED
    )
)
def walk(
    codes: Bytes, neighbors: Integers, offsets: Longs, levels: Longs, entry: int, top: int, descriptor: int, row: Any,
    signs: npt.NDArray[np.float32], left: FloatMatrix, right: FloatMatrix, queries: FloatMatrix, ef: int,
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


@_compiled_for(
    types.void(
        _array(types.uint8, 1), _array(_F32, 2), _array(types.bool_, 1, readonly=True), *_ROTATION, _VECTORS, *_FOUND
    )
)
def scan(
    codes: Bytes, rows: FloatMatrix, hidden: npt.NDArray[np.bool_], signs: npt.NDArray[np.float32],
    left: FloatMatrix, right: FloatMatrix, queries: FloatMatrix, places: Longs, scores: FloatMatrix
) -> None:  # fmt: skip
    """As `walk`, by comparison with the code of every row that is not hidden.

    Args:
        codes: (n * w,) uint8.
        rows: (n, d) float32.
        hidden: (n,) bool; empty if none is.
        signs: (w,) float32, and `left` and `right`: how codes are made, see `encode`.
        left: (r, r) float32.
        right: (w / r, w / r) float32.
        queries: (q, d) float32.
        places: (q, c) int64; written.
        scores: (q, c) float32; written.
    """
    width, wanted = U(signs.shape[0]), U(places.shape[1])
    encoded = np.empty((queries.shape[0], signs.shape[0]), dtype=np.uint8)
    encode(signs, left, right, queries, encoded)
    sampled = U(SAMPLED) if width >= U(2 * SAMPLED) else width
    best = np.empty(places.shape[1], dtype=np.uint64)
    for i in range(U(encoded.shape[0])):
        query, found, limit = encoded[i], U(0), I32(_FARTHEST)
        for each in range(U(rows.shape[0])):
            row = U(each)
            if hidden.shape[0] > 0 and hidden[row]:
                continue
            total = _distance(codes, row, query, U(0), sampled)
            if total >= limit:
                continue
            total = I32(total + _distance(codes, row, query, sampled, width))
            key = (U(total) << U(32)) | row
            if found < wanted or key < best[found - U(1)]:
                _insert(best, found, wanted, key)
                found = min(found + U(1), wanted)
                if found == wanted:
                    limit = _limit(I32(best[found - U(1)] >> U(32)), sampled, width)
        for j in range(wanted):
            at, place, score = U(j), np.int64(-1), np.float32(-np.inf)
            if at < found:
                place = np.int64(best[at] & U(0xFFFFFFFF))
                score = _inner_product(rows[place], queries[i])
            while at > U(0) and scores[i, at - U(1)] < score:
                scores[i, at], places[i, at] = scores[i, at - U(1)], places[i, at - U(1)]
                at -= U(1)
            scores[i, at], places[i, at] = score, place
