"""Searches over a shard's points: which way each query goes, and what its candidates carry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pyroaring import BitMap

from actors.index.distinct import distinct, lets_through
from actors.index.recall import RECALL_K, RecallSampler, Sampled, recall
from actors.index.searching import Allowed, Found, Search, Want
from actors.index.segments import Segments, View
from actors.index.store import ShardStore
from actors.messages import Candidate, FloatMatrix, ShardQuery
from contract.errors import InvalidRequest


class Answering:
    """Answers batches of queries. Thread-safe."""

    def __init__(
        self, store: ShardStore, segments: Segments, dimension: int, ef_search: int, sampler: RecallSampler
    ) -> None:
        self._store = store
        self._segments = segments
        self._dimension = dimension
        self._ef_search = ef_search
        self._sampler = sampler

    def search(
        self, vectors: FloatMatrix, queries: Sequence[ShardQuery], with_payload: bool = True
    ) -> tuple[tuple[Candidate, ...], ...]:
        """As ShardEngine.search, which says what it takes and raises."""
        if vectors.shape != (len(queries), self._dimension):
            raise InvalidRequest(
                f"{len(queries)} queries of dimension {self._dimension} came with vectors {vectors.shape}"
            )
        if any(query.k < 1 for query in queries):
            raise InvalidRequest("k must be at least 1")
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        view, wanted = self._segments.view_for({query.filter for query in queries})
        search = Search(view)
        groups: dict[ShardQuery, list[int]] = {}
        for i, query in enumerate(queries):
            groups.setdefault(query, []).append(i)
        found: list[Found] = [[] for _ in queries]
        pictures: dict[int, tuple[Candidate, ...]] = {}
        for query, members in groups.items():
            rows = vectors if len(members) == len(queries) else vectors[members]
            allowed = Allowed(view, wanted[query.filter])

            def best(
                rows: FloatMatrix, k: int, query: ShardQuery = query, allowed: Allowed = allowed
            ) -> Sequence[Found]:
                if query.exact:
                    return search.exact(rows, k, allowed)
                return search.nearest(rows, Want(k, query.ef_search or self._ef_search), allowed)

            if query.distinct is None:
                for i, result in zip(members, best(rows, query.k), strict=True):
                    found[i] = result
                continue
            answers = distinct(best, self._store.rows, rows, query, with_payload)
            for i, (result, candidates) in zip(members, answers, strict=True):
                found[i], pictures[i] = result, candidates
        self._sample(view, vectors, queries, found)
        changed = view is not self._segments.view
        if not pictures:
            return self._candidates(found, queries, with_payload, changed)
        others = [i for i in range(len(queries)) if i not in pictures]
        points = self._candidates([found[i] for i in others], [queries[i] for i in others], with_payload, changed)
        answered = pictures | dict(zip(others, points, strict=True))
        return tuple(answered[i] for i in range(len(queries)))

    def _candidates(
        self, found: Sequence[Found], queries: Sequence[ShardQuery], with_payload: bool, changed: bool
    ) -> tuple[tuple[Candidate, ...], ...]:
        if not with_payload and not (changed and any(query.filter is not None for query in queries)):
            return tuple(tuple(Candidate(image_id, score, None) for score, image_id in some) for some in found)
        rows = iter(self._store.rows([image_id for some in found for _, image_id in some]))
        answers = []
        for some, query in zip(found, queries, strict=True):
            candidates = []
            for score, image_id in some:
                row = next(rows)
                # Without a point it was deleted after the search found it, and a payload that
                # changed since may be one that the filter keeps out. The store is ahead of the view.
                if row is None or row.point is None or not lets_through(query.filter, row.point.payload):
                    continue
                candidates.append(Candidate(image_id, score, row.point.payload if with_payload else None))
            answers.append(tuple(candidates))
        return tuple(answers)

    def _sample(self, view: View, vectors: FloatMatrix, queries: Sequence[ShardQuery], found: Sequence[Found]) -> None:
        for i, query in enumerate(queries):
            if not query.exact and self._sampler.chooses(query.k):
                top = found[i][:RECALL_K]
                # Not the view itself, which would keep a whole graph in memory.
                self._sampler.keep(Sampled(vectors[i].copy(), query.filter, top, view.next_number))

    def measure_recall(self) -> bool:
        """Search one sampled query exactly and compare; False if none waits.

        A query whose hits have changed since it was answered is passed over.
        """
        sample = self._sampler.take()
        if sample is None:
            return False
        view, wanted = self._segments.view_for({sample.wanted})
        then = BitMap(range(sample.next_number))
        numbers = then if (allowed := wanted[sample.wanted]) is None else allowed & then
        truth = Search(view).exact(sample.vector[None], RECALL_K, Allowed(view, numbers))[0]
        rows = self._store.rows([image_id for _, image_id in sample.found])
        if all(row is not None and row.point is not None and row.point.number < sample.next_number for row in rows):
            self._sampler.note(recall(sample.found, truth))
        return True
