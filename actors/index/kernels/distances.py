"""Distances of codes, and how most of them are not computed to the end.

After a random rotation the first components of a code tell, all but surely, that a point is too far
away. Source: Gao and Long, High-Dimensional Approximate Nearest Neighbor Search: with Reliable and
Efficient Distance Comparison Operations, 2023.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from actors.index.kernels.compiled import I32, Bytes, U, compiled, inlined, prefetch

# Squared distance, label and perhaps a flag in one number each, so that they sort by distance, then by label.
Keys = npt.NDArray[np.uint64]

FARTHEST: Final = np.int32(2**31 - 1)
_SAMPLED: Final = 128
# The share of the whole distance that the sampled components must exceed for a point to be passed
# over, relative to what is expected: two deviations.
_MARGIN: Final = np.float32(1.2)
_LINE: Final = 64


@inlined
def _block_distance(codes: Bytes, start: np.uint64, query: Bytes, at: np.uint64) -> np.int32:
    """In as many components as are sampled: the number is known to the compiler, which unrolls the loop."""
    total = I32(0)
    for i in range(U(_SAMPLED)):
        difference = I32(codes[start + i]) - I32(query[at + i])
        total = I32(total + I32(difference * difference))
    return total


@compiled
def distance_of(codes: Bytes, label: np.uint64, query: Bytes, first: np.uint64, last: np.uint64) -> np.int32:
    """Squared Euclidean distance of a code and a query in components `first` to `last`."""
    start, total, at = label * U(query.shape[0]), I32(0), first
    while at + U(_SAMPLED) <= last:
        total = I32(total + _block_distance(codes, start + at, query, at))
        at += U(_SAMPLED)
    while at < last:
        difference = I32(codes[start + at]) - I32(query[at])
        total = I32(total + I32(difference * difference))
        at += U(1)
    return total


@inlined
def touch(codes: Bytes, label: np.uint64, width: np.uint64, first: np.uint64, last: np.uint64) -> None:
    """Ask for components `first` to `last` of a code before they are read."""
    start = label * width
    for at in range(first, last, U(_LINE)):
        prefetch(codes, start + at)


@compiled
def insert(pool: Keys, size: np.uint64, capacity: np.uint64, key: np.uint64) -> np.uint64:
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


@compiled
def limit_of(farthest: np.int32, sampled: np.uint64, width: np.uint64) -> np.int32:
    """What the distance in the sampled components must be below for the whole one to be below `farthest`."""
    if sampled == width or farthest == FARTHEST:
        return farthest
    return I32(min(np.float64(FARTHEST - 1), np.float64(farthest) * _MARGIN * sampled / width))


@compiled
def sampled_of(width: np.uint64) -> np.uint64:
    """How many components of a code of this width are compared first; all of them where that saves little."""
    return U(_SAMPLED) if width >= U(2 * _SAMPLED) else width
