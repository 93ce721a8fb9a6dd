"""Reads the points of one shard in the order of their ids, a bounded piece at a time. Plain Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from actors.messages import PointState, ShardScan, ShardScanResult
from contract.filters import matches

_CHUNK = 512
# Points that one call passes over in search of those that a filter lets through.
PASSED_MAX = 5_000

# Up to so many searchable points in the order of their ids' UTF-8 bytes, from the first above an id.
Source = Callable[[str | None, int], Sequence[PointState]]


def scan(source: Source, request: ShardScan) -> ShardScanResult:
    """The next points that the filter lets through.

    Ends with the first of: `limit` points found, PASSED_MAX looked at, no point left.
    """
    found: list[PointState] = []
    after, passed = request.after, 0
    while passed < PASSED_MAX:
        wanted = min(_CHUNK, PASSED_MAX - passed)
        if request.filter is None:
            wanted = min(wanted, request.limit - len(found))
        chunk = source(after, wanted)
        for point in chunk:
            after = point.image_id
            if request.filter is None or matches(request.filter, msgspec.json.decode(point.payload or b"{}")):
                found.append(point if request.with_payload else msgspec.structs.replace(point, payload=None))
                if len(found) == request.limit:
                    return ShardScanResult(tuple(found), after)
        passed += len(chunk)
        if len(chunk) < wanted:
            return ShardScanResult(tuple(found), None)
    return ShardScanResult(tuple(found), after)
