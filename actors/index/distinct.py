"""Searches for pictures instead of points: images with equal bytes stand as one candidate. Plain Python.

Equal bytes have the same vector, so they lie side by side in a ranking. Where some are met, the search is made
again for more points, until enough pictures are there and the next one after them is seen: then the groups are
whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec
import numpy as np

from actors.duplicates import alone, join
from actors.index.rows import IdRow
from actors.index.searching import Found
from actors.messages import Candidate, FloatMatrix, ShardQuery
from contract.filters import Filter, matches

REACH_MAX: Final = 4096
"""Points that are looked at for one query, or one more than the pictures asked for if that is more."""
# Most often so few are copies that the first search is enough.
_SPARE = 16
_GROWTH = 4

# The best so many points per row of a matrix of queries, and what the store has of image ids, in their order.
Best = Callable[[FloatMatrix, int], Sequence[Found]]
Rows = Callable[[Sequence[str]], Sequence[IdRow | None]]


def distinct(
    best: Best, rows: Rows, vectors: FloatMatrix, query: ShardQuery, with_payload: bool
) -> list[tuple[Found, tuple[Candidate, ...]]]:
    """Per vector, the points that were looked at and the best `query.k` pictures among them.

    Fewer pictures than there are come back where some have so many copies that REACH_MAX points hold no more.

    Args:
        best: searches for points.
        rows: reads them.
        vectors: (q, d) float32.
        query: what every one of them wants; it has a `distinct`.
        with_payload: whether candidates carry their payload.
    """
    known: dict[str, IdRow | None] = {}
    answers: dict[int, tuple[Found, tuple[Candidate, ...]]] = {}
    most = max(REACH_MAX, query.k + 1)
    left, reach = list(range(len(vectors))), min(query.k + _SPARE, most)
    while left:
        results = best(vectors[np.array(left)], reach)
        unknown = list(dict.fromkeys(image_id for some in results for _, image_id in some if image_id not in known))
        known.update(zip(unknown, rows(unknown), strict=True))
        short = []
        for i, some in zip(left, results, strict=True):
            pictures = join(_living(some, known, query, with_payload))
            answers[i] = some, tuple(pictures[: query.k])
            if len(pictures) <= query.k and len(some) >= reach < most:
                short.append(i)
        left, reach = short, min(reach * _GROWTH, most)
    return [answers[i] for i in range(len(vectors))]


def _living(found: Found, known: dict[str, IdRow | None], query: ShardQuery, with_payload: bool) -> Iterator[Candidate]:
    """The points that stand and that the query lets through, each a group of itself."""
    allowed = None if query.distinct is None else query.distinct.allowed
    for score, image_id in found:
        row = known[image_id]
        # The store is ahead of what was searched: a point may be gone, or its payload another.
        if row is None or row.point is None:
            continue
        point = row.point
        if lets_through(query.filter, point.payload) and lets_through(allowed, point.payload):
            yield alone(
                image_id,
                score,
                point.payload if with_payload else None,
                sha256=point.sha256,
                duplicate_of=point.duplicate_of,
                uploaded_at_ms=point.event_at_ms,
            )


def lets_through(condition: Filter | None, payload: bytes) -> bool:
    """Whether a filter holds of a payload, as JSON bytes; None lets everything through."""
    return condition is None or matches(condition, msgspec.json.decode(payload))
