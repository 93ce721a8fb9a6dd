"""Which image had the same bytes first, as far as the caller may know."""

from __future__ import annotations

import structlog

from actors.messages import PointState
from contract.errors import ShardUnavailable
from contract.telemetry import LogField
from serving.access.caller import current_caller
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
    # A copy betrays no private picture: who may not see it does not learn that it is there.
    return first_id if current_caller().sees(first.payload) else None
