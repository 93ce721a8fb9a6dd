"""From vectors to bytes."""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import types

from actors.index.kernels.compiled import ROTATION, VECTORS, Bytes, Floats, U, array, compiled_for, compiled_loosely
from actors.messages import FloatMatrix

# Squared lengths this close to 1 are those of unit vectors in half precision.
_UNIT: Final = 1e-3
# Cutting the fraction off then rounds to the middle of 0…255.
_MIDDLE: Final = 128


@compiled_loosely
def _rotate(
    vector: Floats, signs: Floats, left: FloatMatrix, right: FloatMatrix,
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


@compiled_for(types.void(*ROTATION, VECTORS, array(types.uint8, 2)))
def encode(signs: Floats, left: FloatMatrix, right: FloatMatrix, vectors: FloatMatrix, encoded: Bytes) -> None:
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
