"""How a batch of queries is answered from one view of the segments and the stored vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from actors.index.graph import Bitmap, Labels, SealedGraph, bitmap_of
from actors.index.growing import Mask, Numbers, positions
from actors.index.segments import View
from actors.index.store import ShardStore
from actors.messages import FloatMatrix

# Score and image id of what was found, best first, equal scores by id.
Found = list[tuple[float, str]]

_CHUNK = 1024
# So few vectors are read and compared faster than a graph is prepared for a filtered walk.
_FEW = 512
# Costs in comparisons of two codes, measured at 512 dimensions: a walk makes about 65 per unit of
# its width, and a scan spends a seventh of one on each code that it passes over.
_WALK_COST = 65
_PASS_COST = 1 / 7
# Reading vectors one by one costs several times what a walk over all of them costs for each.
_FEW_SHARE = 4


class SupportsIds(Protocol):
    """Image ids by place."""

    def __getitem__(self, place: int, /) -> str: ...


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
            mask = np.zeros(len(graph), dtype=np.bool_)
            labels = graph.labels(numbers)
            mask[labels[labels >= 0]] = True
            if view.alive is not None:
                mask &= np.unpackbits(view.alive, count=len(graph), bitorder="little").view(np.bool_)
            self.labels = bitmap_of(mask)
            self.in_graph = int(mask.sum())


class Search:
    """Searches over one view. Any number of threads may have their own."""

    def __init__(self, store: ShardStore, view: View) -> None:
        self._store = store
        self._view = view

    def nearest(self, vectors: FloatMatrix, want: Want, allowed: Allowed) -> list[Found]:
        """The best `want.k` allowed points per query, by graph and growing segment.

        Args:
            vectors: (q, d) float32.
            want: How many, and how wide to walk.
            allowed: Which points.
        """
        found = self._in_growing(vectors, want.k, allowed)
        if self._view.graph is not None and allowed.in_graph:
            for mine, more in zip(found, self._in_graph(self._view.graph, vectors, want, allowed), strict=True):
                mine.extend(more)
        return [best(some, want.k) for some in found]

    def _in_growing(self, vectors: FloatMatrix, k: int, allowed: Allowed) -> list[Found]:
        growing = self._view.growing
        if not growing.living:
            return [[] for _ in vectors]
        scores, slots = growing.search(vectors, k, allowed.growing)
        return _named(scores, slots, k, growing.image_ids)

    def _in_graph(self, graph: SealedGraph, vectors: FloatMatrix, want: Want, allowed: Allowed) -> list[Found]:
        codec, matching = graph.codec, allowed.in_graph
        if matching <= _FEW and matching < len(graph):
            return self._compare(graph, vectors, want.k, _labels_of(allowed, graph))
        count = min(codec.candidates(want.k), matching)
        # A wider walk makes up for what it meets and may not return.
        ef = -(-max(want.ef, count) * len(graph) // matching)
        if ef * _WALK_COST > matching + len(graph) * _PASS_COST:
            return self._scan(graph, vectors, want.k, count, allowed)
        scores, labels = graph.search(codec.encode(vectors), count, ef, allowed.labels)
        found = self._score(graph, vectors, want.k, scores, labels)
        short = [i for i, some in enumerate(found) if len(some) < min(want.k, matching)]
        if short:
            for i, some in zip(short, self._scan(graph, vectors[short], want.k, count, allowed), strict=True):
                found[i] = some
        return found

    def _scan(self, graph: SealedGraph, vectors: FloatMatrix, k: int, count: int, allowed: Allowed) -> list[Found]:
        if not graph.codec.scans_codes:
            return self._compare(graph, vectors, k, _labels_of(allowed, graph))
        bitmap = allowed.labels if allowed.labels is not None else bitmap_of(np.ones(len(graph), dtype=np.bool_))
        scores, labels = graph.scan(graph.codec.encode(vectors), count, bitmap)
        return self._score(graph, vectors, k, scores, labels)

    def _compare(self, graph: SealedGraph, vectors: FloatMatrix, k: int, labels: Labels) -> list[Found]:
        """Compare with the stored vectors of all these labels."""
        found: list[Found] = [[] for _ in vectors]
        for start in range(0, len(labels), _CHUNK):
            some = np.broadcast_to(labels[start : start + _CHUNK], (len(vectors), len(labels[start : start + _CHUNK])))
            for i, more in enumerate(self._rescored(graph, vectors, k, some)):
                found[i] = best(found[i] + more, k)
        return found

    def _score(
        self, graph: SealedGraph, vectors: FloatMatrix, k: int, scores: FloatMatrix, labels: Labels
    ) -> list[Found]:
        """The best `k` by stored vector of what the graph returned; fewer where its labels are -1."""
        if not graph.codec.is_exact:
            return self._rescored(graph, vectors, k, labels)
        scores[labels < 0] = -np.inf
        return _named(scores, labels, k, graph.image_ids)

    def _rescored(self, graph: SealedGraph, vectors: FloatMatrix, k: int, labels: Labels) -> list[Found]:
        """The best `k` by inner product of queries (q, d) with the stored vectors of their labels (q, c)."""
        valid = labels >= 0
        there, rows = self._store.vectors(graph.numbers[labels[valid]])
        scores = np.full(labels.shape, -np.inf, dtype=np.float32)
        valid[valid] = there
        scores[valid] = np.einsum("ij,ij->i", rows, vectors[np.nonzero(valid)[0]])
        found = _named(scores, labels, k, graph.image_ids)
        if not there.all():
            owners, lost = np.nonzero((labels >= 0) & ~valid)
            ids = [graph.image_ids[label] for label in labels[owners, lost].tolist()]
            for owner, score, image_id in self._replaced(vectors, owners.tolist(), ids):
                found[owner].append((score, image_id))
        return found

    def _replaced(
        self, vectors: FloatMatrix, owners: Sequence[int], image_ids: Sequence[str]
    ) -> list[tuple[int, float, str]]:
        """Scores of points that have another vector since the view was taken; the deleted are left out.

        The view knows only the vector that is gone, so without this an image would be missing from
        an answer for the moment of its upsert.
        """
        found: list[tuple[int, float, str]] = []
        for owner, image_id, known in zip(owners, image_ids, self._store.rows(image_ids), strict=True):
            row = known
            while row is not None and row.point is not None:
                there, now = self._store.vectors(np.array([row.point.number], dtype=np.uint32))
                if there.all():
                    found.append((owner, float(now[0] @ vectors[owner]), image_id))
                    break
                # Replaced once more between the two reads.
                (row,) = self._store.rows([image_id])
        return found

    def exact(self, vectors: FloatMatrix, k: int, wanted: BitMap | None) -> list[Found]:
        """The best `k` points per query by comparison with every stored vector that the view holds.

        Args:
            vectors: (q, d) float32.
            k: How many.
            wanted: Numbers of the points that may be returned; None for all.
        """
        numbers = living_numbers(self._view)
        total = len(numbers)
        if wanted is not None:
            numbers = numbers[positions(np.array(wanted.to_array(), dtype=np.uint32), numbers) >= 0]
        found: list[Found] = [[] for _ in vectors]
        seen = np.zeros(len(numbers), dtype=np.bool_)
        chunks = self._store.vector_chunks(_CHUNK) if len(numbers) * _FEW_SHARE > total else self._chunks_of(numbers)
        for stored, rows in chunks:
            places = positions(numbers, stored)
            inside = places >= 0
            seen[places[inside]] = True
            some = stored[inside]
            scores = vectors @ rows[inside].T
            for i, mine in enumerate(found):
                least = mine[-1][0] if len(mine) >= k else -np.inf
                if len(some) > k:
                    least = max(least, np.partition(scores[i], -k)[-k])
                better = np.flatnonzero(scores[i] >= least)
                ids = self._image_ids(some[better])
                found[i] = best([*mine, *zip(scores[i, better].tolist(), ids, strict=True)], k)
        lost = self._image_ids(numbers[~seen])
        for i in range(len(vectors)):
            found[i] += [(score, image_id) for _, score, image_id in self._replaced(vectors, [i] * len(lost), lost)]
        return [best(mine, k) for mine in found]

    def _chunks_of(self, numbers: Numbers) -> Iterator[tuple[Numbers, FloatMatrix]]:
        for start in range(0, len(numbers), _CHUNK):
            some = numbers[start : start + _CHUNK]
            there, rows = self._store.vectors(some)
            yield some[there], rows

    def _image_ids(self, numbers: Numbers) -> list[str]:
        """Image ids of living points of the view."""
        view = self._view
        slots = positions(view.growing.numbers, numbers).tolist()
        if view.graph is None:
            return [view.growing.image_ids[slot] for slot in slots]
        ids, labels = view.graph.image_ids, view.graph.labels(numbers).tolist()
        return [
            view.growing.image_ids[slot] if slot >= 0 else ids[label] for slot, label in zip(slots, labels, strict=True)
        ]


def living_numbers(view: View) -> Numbers:
    """Numbers of all living points of a view, ascending."""
    growing = view.growing
    fresh = growing.numbers if growing.dead is None else growing.numbers[~growing.dead]
    if view.graph is None:
        return fresh
    sealed = view.graph.numbers
    if view.alive is not None:
        sealed = sealed[np.unpackbits(view.alive, count=len(sealed), bitorder="little").view(np.bool_)]
    return np.concatenate([sealed, fresh])


def _labels_of(allowed: Allowed, graph: SealedGraph) -> npt.NDArray[np.int64]:
    if allowed.labels is None:
        return np.arange(len(graph))
    return np.flatnonzero(np.unpackbits(allowed.labels, count=len(graph), bitorder="little"))


def _named(scores: FloatMatrix, places: Labels, k: int, image_ids: SupportsIds) -> list[Found]:
    """The best `k` of each row, and what equals the last of them, with their ids; a score of -inf is none."""
    found = []
    for row, whereabouts in zip(cast("list[list[float]]", scores.tolist()), places.tolist(), strict=True):
        ranked = sorted(zip(row, whereabouts, strict=True), reverse=True)
        least = ranked[k - 1][0] if len(ranked) > k else -np.inf
        found.append([(score, image_ids[place]) for score, place in ranked if score >= least and score > -np.inf])
    return found


def best(candidates: Found, k: int) -> Found:
    """The best `k`, highest score first, equal scores by id."""
    candidates.sort(key=lambda c: (-c[0], c[1]))
    return candidates[:k]
