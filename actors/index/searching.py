"""How a batch of queries is answered from one view of the segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from actors.index.graph import Bitmap, Labels, SealedGraph, bitmap_of, mask_of
from actors.index.growing import Mask, Numbers, Scan, positions
from actors.index.segments import View
from actors.messages import FloatMatrix

# Score and image id of what was found, best first, equal scores by id.
Found = list[tuple[float, str]]
# Image ids of places in a segment.
Named = Callable[[Sequence[int]], list[str]]

_NONE = float("-inf")

_CHUNK = 4096
# So few vectors are read and compared faster than a graph is prepared for a filtered walk.
_FEW = 512
# Costs in comparisons of two codes, measured at 512 dimensions: a walk makes about 65 per unit of
# its width, and a scan spends a seventh of one on each code that it passes over.
_WALK_COST = 65
_PASS_COST = 1 / 7
# To find a number by bisection costs as much as to pass over this many places of a table.
_TABLE_SHARE = 16


class Want(NamedTuple):
    """What queries that are answered together have in common."""

    k: int
    ef: int


class Allowed:
    """The points of a view that a search may return."""

    def __init__(self, view: View, wanted: BitMap | None) -> None:
        """All living points, or those of them whose numbers are `wanted`."""
        graph = view.graph
        self.growing: Mask | None = None
        self.labels: Bitmap | None = view.alive
        self.in_graph = 0 if graph is None else len(graph) - view.dead
        if wanted is None:
            return
        numbers = np.array(wanted.to_array(), dtype=np.uint32)
        self.growing = positions(numbers, view.growing.numbers) >= 0
        if graph is not None:
            mask = _members(graph.numbers, numbers)
            if view.alive is not None:
                mask &= mask_of(view.alive, len(graph))
            self.labels = bitmap_of(mask)
            self.in_graph = int(mask.sum())


class Search:
    """Searches over one view. Any number of threads may have their own."""

    def __init__(self, view: View) -> None:
        self._view = view

    def nearest(self, vectors: FloatMatrix, want: Want, allowed: Allowed) -> list[Found]:
        """The best `want.k` allowed points per query, by graph and growing segment.

        Args:
            vectors: (q, d) float32.
            want: How many, and how wide to walk.
            allowed: Which points.
        """
        growing, graph, k = self._view.growing, self._view.graph, want.k
        scan = growing.scan(len(vectors), k, allowed.growing) if growing.living else None
        found: list[Found] = [[] for _ in vectors]
        if graph is not None and allowed.in_graph:
            found = self._in_graph(graph, vectors, want, allowed, scan)
        if growing.living:
            if scan is None:
                scores, slots = growing.compare(vectors, k, allowed.growing)
            else:
                if not scan.is_done:
                    scan.run(vectors)
                scores, slots = scan.scores, scan.slots
            # Most often nothing that just arrived is among the best, and needs no name.
            better = [
                i
                for i, (some, most) in enumerate(zip(found, scores[:, 0].tolist(), strict=True))
                if len(some) < k or most >= some[k - 1][0]
            ]
            for i, more in zip(better, _named(scores[better], slots[better], k, growing.names), strict=True):
                found[i].extend(more)
        return [best(some, k) for some in found]

    def _in_graph(
        self, graph: SealedGraph, vectors: FloatMatrix, want: Want, allowed: Allowed, beside: Scan | None
    ) -> list[Found]:
        codec, matching = graph.codec, allowed.in_graph
        if matching <= _FEW and matching < len(graph):
            return self._compare(graph, vectors, want.k, _labels_of(allowed, graph))
        count = min(codec.candidates(want.k), matching)
        # A wider walk makes up for what it meets and may not return.
        ef = -(-max(want.ef, count) * len(graph) // matching)
        if ef * _WALK_COST > matching + len(graph) * _PASS_COST:
            return self._scan(graph, vectors, want.k, count, allowed)
        scores, labels = graph.search(vectors, count, ef, allowed.labels, beside)
        found = _named(scores, labels, want.k, graph.image_ids.of)
        short = [i for i, some in enumerate(found) if len(some) < min(want.k, matching)]
        if short:
            for i, some in zip(short, self._scan(graph, vectors[short], want.k, count, allowed), strict=True):
                found[i] = some
        return found

    def _scan(self, graph: SealedGraph, vectors: FloatMatrix, k: int, count: int, allowed: Allowed) -> list[Found]:
        if not graph.codec.scans_codes:
            return self._compare(graph, vectors, k, _labels_of(allowed, graph))
        bitmap = allowed.labels if allowed.labels is not None else bitmap_of(np.ones(len(graph), dtype=np.bool_))
        scores, labels = graph.scan(vectors, count, bitmap)
        return _named(scores, labels, k, graph.image_ids.of)

    def _compare(self, graph: SealedGraph, vectors: FloatMatrix, k: int, labels: Labels) -> list[Found]:
        """The best `k` of these labels by comparison with all of their vectors."""
        found: list[Found] = [[] for _ in vectors]
        for start in range(0, len(labels), _CHUNK):
            some = labels[start : start + _CHUNK]
            scores = vectors @ graph.vectors(some).T
            for i, mine in enumerate(found):
                least = mine[-1][0] if len(mine) >= k else -np.inf
                if len(some) > k:
                    least = max(least, np.partition(scores[i], -k)[-k])
                better = np.flatnonzero(scores[i] >= least)
                ids = graph.image_ids.of(some[better].tolist())
                found[i] = best([*mine, *zip(scores[i, better].tolist(), ids, strict=True)], k)
        return found

    def exact(self, vectors: FloatMatrix, k: int, allowed: Allowed) -> list[Found]:
        """The best `k` allowed points per query by comparison with every vector, as it is stored.

        Args:
            vectors: (q, d) float32.
            k: How many.
            allowed: Which points.
        """
        growing, graph = self._view.growing, self._view.graph
        found: list[Found] = [[] for _ in vectors]
        if growing.living:
            scores, slots = growing.compare(vectors, k, allowed.growing)
            found = _named(scores, slots, k, growing.names)
        if graph is not None and allowed.in_graph:
            for mine, more in zip(found, self._compare(graph, vectors, k, _labels_of(allowed, graph)), strict=True):
                mine.extend(more)
        return [best(some, k) for some in found]


def _members(numbers: Numbers, wanted: Numbers) -> Mask:
    """Which of the numbers are wanted; both ascend."""
    mask = np.zeros(len(numbers), dtype=np.bool_)
    if not len(numbers):
        return mask
    first, last = int(numbers[0]), int(numbers[-1])
    wanted = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, last, "right")]
    if _TABLE_SHARE * len(wanted) > last - first:
        # Faster than to look for so many one by one.
        table = np.zeros(last - first + 1, dtype=np.bool_)
        table[wanted - np.uint32(first)] = True
        mask = table[numbers - np.uint32(first)]
    else:
        found = positions(numbers, wanted)
        mask[found[found >= 0]] = True
    return mask


def _labels_of(allowed: Allowed, graph: SealedGraph) -> npt.NDArray[np.int64]:
    if allowed.labels is None:
        return np.arange(len(graph))
    return np.flatnonzero(mask_of(allowed.labels, len(graph)))


def _named(scores: FloatMatrix, places: Labels, k: int, image_ids: Named) -> list[Found]:
    """The first `k` of each row, and what equals the last of them, with their ids; a score of -inf is none."""
    cuts, chosen = [], []
    rows = cast("list[list[float]]", scores.tolist())
    for row, whereabouts in zip(rows, places.tolist(), strict=True):
        cut = min(k, len(row))
        while cut and row[cut - 1] == _NONE:
            cut -= 1
        # Most often nothing equals the last of them.
        while 0 < cut < len(row) and row[cut] == row[cut - 1]:
            cut += 1
        cuts.append(cut)
        chosen += whereabouts[:cut]
    names = iter(image_ids(chosen))
    return [list(zip(row[:cut], islice(names, cut), strict=True)) for row, cut in zip(rows, cuts, strict=True)]


def best(candidates: Found, k: int) -> Found:
    """The best `k`, highest score first, equal scores by id."""
    candidates.sort(key=lambda c: (-c[0], c[1]))
    return candidates[:k]
