"""The sealed segment: a FAISS HNSW graph that is never changed, and the builder of the next one."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from actors.index.codes import Codec
from actors.index.growing import Numbers, Scan, positions
from actors.index.image_ids import PackedIds
from actors.index.kernels import walking
from actors.index.vector_file import VectorFile
from actors.messages import FloatMatrix

Labels = npt.NDArray[np.int64]
# One bit per label, lowest first, as FAISS reads it.
Bitmap = npt.NDArray[np.uint8]

_LESS_URGENT = 10
_EVERYTHING = np.empty(0, dtype=np.uint8)
# Source: Linux, madvise(2). The second moves now what the first lets be moved some day.
_HUGE_PAGE = 2 * 1024 * 1024
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25
_libc = ctypes.CDLL(None)
_threads = threading.local()
# Its type stubs lack much of what SWIG generates.
_faiss: Any = faiss


def use_threads(count: int) -> None:
    """Let FAISS calls of this Python thread run on `count` processor threads.

    OpenMP keeps the number per calling thread, and starts with all processors: several searches
    side by side would each ask for the whole machine.
    """
    if getattr(_threads, "count", 0) != count:
        faiss.omp_set_num_threads(count)
        _threads.count = count


def give_way() -> None:
    """Let this thread run only where searches leave a processor free. Where the system cannot do that, nothing.

    Linux keeps the priority per thread; elsewhere it is that of the whole process.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _LESS_URGENT))


class SealedGraph:
    """Points under labels 0, 1, 2 … in ascending order of their numbers. Immutable, so any thread may search it.

    Source: Malkov and Yashunin, Efficient and robust approximate nearest neighbor search using
    Hierarchical Navigable Small World graphs, 2018; m and the two ef are its parameters.
    """

    def __init__(
        self, codec: Codec, index: Any, numbers: Numbers, image_ids: PackedIds, file: VectorFile | None
    ) -> None:
        """`file` holds the vectors by label; None where the index itself holds them exactly."""
        self.codec = codec
        self.index = index
        self.numbers = numbers
        self.image_ids = image_ids
        self.file = file
        self._storage: Any = _faiss.downcast_index(index.storage)
        self._links: _Links | None = None
        if codec.compares_bytes and file is not None and len(numbers):
            self._links = _Links(index.hnsw, self._storage, file)

    def __len__(self) -> int:
        """Labels, the dead among them too."""
        return len(self.numbers)

    def labels(self, numbers: Numbers) -> Labels:
        """Label of each number; -1 where it is not here."""
        return positions(self.numbers, numbers)

    def vectors(self, labels: Labels) -> FloatMatrix:
        """(n, d) float32: the vectors of (n,) labels, which must be 0 or more."""
        if self.file is not None:
            return self.file.read(labels)
        vectors: FloatMatrix = self.index.reconstruct_batch(labels)
        return vectors

    def search(
        self, queries: FloatMatrix, k: int, ef: int, allowed: Bitmap | None = None, beside: Scan | None = None
    ) -> tuple[FloatMatrix, Labels]:
        """Walk the graph: scores by stored vector, highest first, and labels, both (q, k).

        Where fewer were met, the last labels are -1 and their scores -inf.

        Args:
            queries: (q, d) float32.
            k: How many to return.
            ef: Width of the walk; at least k is taken.
            allowed: Labels that may be returned; None for all. The walk passes through the others.
            beside: To be run with the same queries by the way, where that is possible.
        """
        if self._links is not None:
            return self._links.walk(self.codec, queries, k, max(ef, k), allowed, beside)
        use_threads(1)
        if allowed is None:
            parameters = _faiss.SearchParametersHNSW(efSearch=max(ef, k))
        else:
            selector = _faiss.IDSelectorBitmap(allowed)
            parameters = _faiss.SearchParametersHNSW(efSearch=max(ef, k), sel=selector)
        scores, labels = self.index.search(self.codec.encode(queries), k, params=parameters)
        return self._scored(queries, scores, labels)

    def scan(self, queries: FloatMatrix, k: int, allowed: Bitmap) -> tuple[FloatMatrix, Labels]:
        """As `search`, by comparison with the code of every allowed label."""
        use_threads(1)
        parameters = _faiss.SearchParameters(sel=_faiss.IDSelectorBitmap(allowed))
        scores, labels = self._storage.search(self.codec.encode(queries), k, params=parameters)
        return self._scored(queries, scores, labels)

    def _scored(self, queries: FloatMatrix, scores: FloatMatrix, labels: Labels) -> tuple[FloatMatrix, Labels]:
        if self.file is None:
            scores[labels < 0] = -np.inf
        else:
            self.file.score(queries, labels, scores)
        return scores, labels


class _Links:
    """What a walk reads of a FAISS graph over bytes, as arrays in FAISS's own memory, and the vectors' file."""

    def __init__(self, hnsw: Any, storage: Any, file: VectorFile) -> None:
        """The index must outlive this object, and never change."""
        codes = _faiss.rev_swig_ptr(storage.codes.data(), storage.codes.size())
        neighbors = _faiss.rev_swig_ptr(hnsw.neighbors.data(), hnsw.neighbors.size())
        offsets = _faiss.rev_swig_ptr(hnsw.offsets.data(), hnsw.offsets.size()).view(np.int64)
        levels = _faiss.vector_to_array(hnsw.cum_nneighbor_per_level).astype(np.int64)
        for array in (codes, neighbors):
            _use_huge_pages(array)
        self._arrays = (codes, neighbors, offsets, levels, int(hnsw.entry_point), int(hnsw.max_level))
        self._file = file

    def walk(
        self, codec: Codec, queries: FloatMatrix, k: int, ef: int, allowed: Bitmap | None, beside: Scan | None
    ) -> tuple[FloatMatrix, Labels]:
        """As SealedGraph.search."""
        labels, scores = np.empty((len(queries), k), dtype=np.int64), np.empty((len(queries), k), dtype=np.float32)
        some = _EVERYTHING if allowed is None else allowed
        arguments = (*self._arrays, *self._file.source(), *codec.rotation, queries, ef, some, labels, scores)
        if beside is None:
            missing = walking.walk(*arguments)
        else:
            missing = walking.walk_and_scan(*arguments, *beside.arguments)
            beside.is_done = True
        self._file.check(missing)
        return scores, labels


def _use_huge_pages(array: npt.NDArray[Any]) -> None:
    """Put an array in huge pages where Linux does so: a walk jumps about, and looks up fewer of them.

    What the system answers does not matter: without them a walk is a tenth slower.
    """
    if sys.platform == "linux":
        begin = -(-array.ctypes.data // _HUGE_PAGE) * _HUGE_PAGE
        length = (array.ctypes.data + array.nbytes - begin) // _HUGE_PAGE * _HUGE_PAGE
        if length > 0:
            for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE):
                _libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), advice)


class GraphBuilder:
    """A graph in the making, which nobody searches. One thread."""

    def __init__(
        self,
        codec: Codec,
        index: Any,
        file: VectorFile | None,
        numbers: Numbers | None = None,
        image_ids: PackedIds | None = None,
    ) -> None:
        self.codec = codec
        self.index = index
        self._file = file
        self._numbers = [np.empty(0, dtype=np.uint32) if numbers is None else numbers]
        self._image_ids = PackedIds() if image_ids is None else image_ids
        self._added: list[str] = []

    @classmethod
    def empty(cls, codec: Codec, m: int, ef_construction: int, file: VectorFile | None) -> GraphBuilder:
        """A builder without points, and the file for their vectors; training comes before the first `add`."""
        return cls(codec, codec.new_index(m, ef_construction), file)

    @classmethod
    def copy_of(cls, graph: SealedGraph) -> GraphBuilder:
        """A builder that goes on from a sealed graph: memory is copied, nothing is inserted again."""
        return cls(graph.codec, _faiss.clone_index(graph.index), graph.file, graph.numbers, graph.image_ids)

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def train(self, vectors: FloatMatrix, threads: int) -> None:
        """Learn the codec's parameters from (n, d) float32."""
        use_threads(threads)
        self.index.train(self.codec.encode(vectors))

    def add(self, numbers: Numbers, image_ids: Sequence[str], vectors: FloatMatrix, threads: int) -> None:
        """Insert points; `numbers` ascend and are above all that are here."""
        if not len(numbers):
            return
        if self._file is not None:
            self._file.write(len(self), vectors)
        use_threads(threads)
        self.index.add(self.codec.encode(vectors))
        self._numbers.append(np.array(numbers, dtype=np.uint32))
        self._added.extend(image_ids)

    def seal(self) -> SealedGraph:
        """The graph as it is now; the builder is not used after this."""
        return SealedGraph(
            self.codec, self.index, np.concatenate(self._numbers), self._image_ids.extended(self._added), self._file
        )


def mask_of(bitmap: Bitmap, count: int) -> npt.NDArray[np.bool_]:
    """(count,) bool: the first bits of a bitmap."""
    return np.unpackbits(bitmap, count=count, bitorder="little").view(np.bool_)


def bitmap_of(mask: npt.NDArray[np.bool_]) -> Bitmap:
    """One bit per entry of an (n,) bool mask."""
    return np.packbits(mask, bitorder="little")
