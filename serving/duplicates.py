"""Which image had the same bytes first, as far as the caller may know."""

from __future__ import annotations

from typing import Any

import msgspec
import structlog

from actors.messages import PointState
from contract.errors import ShardUnavailable
from contract.telemetry import LogField
from serving.catalog import ServedCollection

_log = structlog.get_logger()


async def first_with_these_bytes(collection: ServedCollection, point: PointState) -> str | None:
    """The image that `point` is a duplicate of; None if it is none, or of one that may not be named.

    What was known when the picture was embedded is checked anew: an image that has been deleted since, or
    that has got other bytes, is no first one. While its shard does not answer, nothing is said of it.
    """
    first_id = point.duplicate_of
    if first_id is None or point.state != "searchable":
        return None
    try:
        (first,) = await collection.ask(collection.partition(first_id), lambda shard: shard.fetch([first_id]))
    except ShardUnavailable as error:
        _log.info("whether an image is a duplicate is not known", **{LogField.ERROR: error.detail})
        return None
    if first is None or first.state != "searchable" or first.sha256 != point.sha256:
        return None
    return first_id if may_be_named(first, point) else None


def may_be_named(first: PointState, point: PointState) -> bool:
    """Whether someone who sees `point` may learn that `first` has the same bytes.

    A private picture is not betrayed by a copy of it, except to its own owner.
    """
    theirs, own = _payload(first), _payload(point)
    if theirs.get("visibility") != "private":
        return True
    return theirs.get("owner") is not None and theirs.get("owner") == own.get("owner")


def _payload(point: PointState) -> dict[str, Any]:
    payload: dict[str, Any] = {} if point.payload is None else msgspec.json.decode(point.payload)
    return payload
