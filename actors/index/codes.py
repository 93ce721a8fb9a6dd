"""How vectors stand in the graph: the quantizations, and what searching each of them costs in accuracy."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from actors.index.kernels.encoding import encode
from actors.messages import FloatMatrix
from contract.events import Quantization

# Bytes are compared 16 at a time only where the dimension divides by that.
_LANES = 16
# A rotated unit vector's components are close to normal with deviation 1/sqrt(d); one in 150,000
# lies outside of this many deviations, and is cut there.
_CLIP_DEVIATIONS = 4.5
_ROTATION_SEED = 7
_PQ_BITS = 8
_PQ_SUB_DIMENSION = 4
# Source: FAISS, Clustering parameters; fewer than 39 points per centroid train badly.
_PQ_TRAIN_MIN = 39 * 2**_PQ_BITS
_RABITQ_TRAIN_MIN = 1024


class Codec:
    """One quantization of vectors of one dimension. Immutable.

    `none` and `fp16` compare inner products. The others compare Euclidean distances of vectors
    brought to length 1, which rank like inner products because the points of a collection have
    equal length; their candidates are re-scored from the stored vectors.

    - `sq8`: a random rotation spreads the information evenly over all components, so one scale
      fits every one of them without training, and both sides are compared as bytes.
    - `pq`: product quantization, trained. Source: Jégou et al., Product Quantization for Nearest
      Neighbor Search, 2011.
    - `rabitq`: one bit per component after the same rotation, trained (a mean). Source: Gao and
      Long, RaBitQ: Quantizing High-Dimensional Vectors with a Theoretical Error Bound, 2024.
    """

    def __init__(self, quantization: Quantization, dimension: int) -> None:
        self.quantization: Quantization = quantization
        self.dimension = dimension
        self._rotation: Rotation | None = None
        if quantization in ("sq8", "rabitq"):
            width = -(-dimension // _LANES) * _LANES
            scale = 127.5 * width**0.5 / _CLIP_DEVIATIONS if quantization == "sq8" else 1.0
            self._rotation = Rotation(dimension, width, scale)
        self.train_min = {"pq": _PQ_TRAIN_MIN, "rabitq": _RABITQ_TRAIN_MIN}.get(quantization, 0)

    @property
    def is_exact(self) -> bool:
        """Whether the scores of the graph are those of the stored vectors."""
        return self.quantization == "none"

    @property
    def scans_codes(self) -> bool:
        """Whether FAISS can scan a selection of the codes; product quantization cannot."""
        return self.quantization != "pq"

    @property
    def compares_bytes(self) -> bool:
        """Whether a code is one byte per component, and near codes have a small Euclidean distance."""
        return self.quantization == "sq8"

    def candidates(self, k: int) -> int:
        """How many to take by code so that the `k` best by stored vector are among them.

        More bits order better by themselves; the coarse codes need many to choose from.
        """
        match self.quantization:
            case "none":
                return k
            case "fp16":
                return k + 2
            case "sq8":
                return k + max(4, k // 8)
            case "pq" | "rabitq":
                return max(8 * k, 64)

    def new_index(self, m: int, ef_construction: int) -> Any:
        """An empty FAISS HNSW index; `train` comes first where `train_min` is not 0."""
        index: Any
        module: Any = faiss
        match self.quantization:
            case "none":
                index = module.IndexHNSWFlat(self.dimension, m, module.METRIC_INNER_PRODUCT)
            case "fp16":
                index = module.IndexHNSWSQ(
                    self.dimension, module.ScalarQuantizer.QT_fp16, m, module.METRIC_INNER_PRODUCT
                )
            case "sq8":
                index = module.IndexHNSWSQ(self.width, module.ScalarQuantizer.QT_8bit_direct, m, module.METRIC_L2)
            case "pq":
                parts = max(p for p in range(1, self.dimension // _PQ_SUB_DIMENSION + 1) if self.dimension % p == 0)
                index = module.IndexHNSWPQ(self.dimension, parts, m, _PQ_BITS, module.METRIC_L2)
            case "rabitq":
                index = module.IndexHNSWRaBitQ(self.width, m, module.METRIC_L2)
        index.hnsw.efConstruction = ef_construction
        # The scalar quantizers in use have nothing to learn, but FAISS marks them so only by a train call.
        if not self.train_min and not index.is_trained:
            index.train(np.zeros((1, index.d), dtype=np.float32))
        return index

    @property
    def width(self) -> int:
        """Components of an encoded vector."""
        return self.dimension if self._rotation is None else self._rotation.width

    def encode(self, vectors: FloatMatrix) -> FloatMatrix:
        """Points or queries, (n, d) float32, as the FAISS index takes them: (n, width) float32."""
        if self.compares_bytes:
            return self.encode_bytes(vectors).astype(np.float32)
        if self.quantization in ("none", "fp16"):
            return np.ascontiguousarray(vectors, dtype=np.float32)
        squares = np.einsum("ij,ij->i", vectors, vectors)
        unit = (vectors / np.sqrt(np.where(squares > 0, squares, 1))[:, None]).astype(np.float32, copy=False)
        return np.ascontiguousarray(unit) if self._rotation is None else self._rotation.apply(unit)

    def encode_bytes(self, vectors: FloatMatrix) -> npt.NDArray[np.uint8]:
        """As `encode`, (n, width) uint8, where `compares_bytes`."""
        encoded = np.empty((len(vectors), self.width), dtype=np.uint8)
        encode(*self.rotation, np.ascontiguousarray(vectors, dtype=np.float32), encoded)
        return encoded

    @property
    def rotation(self) -> tuple[npt.NDArray[np.float32], FloatMatrix, FloatMatrix]:
        """Signs and the two factors of the rotation, as `encode` takes them, where there is one."""
        assert self._rotation is not None  # noqa: S101 - callers ask `compares_bytes` first
        return self._rotation.factors


class Rotation:
    """A fixed random rotation from `dimension` to `width`, and a stretch by `scale`.

    A Kronecker product of two small rotations after random signs: every component of the result
    depends on all components, and a vector costs a few microseconds instead of a whole matrix that
    has left the cache when the next query comes.
    """

    def __init__(self, dimension: int, width: int, scale: float) -> None:
        self.dimension = dimension
        self.width = width
        rows = max(n for n in range(1, int(self.width**0.5) + 1) if self.width % n == 0)
        random = np.random.Generator(np.random.PCG64(_ROTATION_SEED))
        self._signs = random.choice([-1.0, 1.0], self.width).astype(np.float32)
        self._left, self._right = (_orthogonal(random, n) for n in (rows, self.width // rows))
        self._left *= np.float32(scale)

    @property
    def factors(self) -> tuple[npt.NDArray[np.float32], FloatMatrix, FloatMatrix]:
        """Signs (width,), and the factors on the left and on the right of the grid of a vector's components."""
        return self._signs, self._left, self._right

    def apply(self, vectors: FloatMatrix) -> FloatMatrix:
        """(n, d) float32 to (n, width) float32; angles stay, lengths times `scale`."""
        if self.width != self.dimension:
            vectors = np.pad(vectors, ((0, 0), (0, self.width - self.dimension)))
        grid = (vectors * self._signs).reshape(-1, len(self._left), len(self._right)) @ self._right
        rotated: FloatMatrix = np.matmul(self._left, grid).reshape(len(vectors), self.width)
        return rotated


def _orthogonal(random: np.random.Generator, size: int) -> FloatMatrix:
    orthogonal, triangle = np.linalg.qr(random.standard_normal((size, size)))
    # Signs of a QR decomposition are the library's choice; with a positive diagonal it is unique.
    unique: FloatMatrix = (orthogonal * np.sign(np.diag(triangle))).astype(np.float32)
    return unique
