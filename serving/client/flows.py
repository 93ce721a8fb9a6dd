"""Calls that take more than one request: a change that is waited for, a wait for receipts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from contract.events import Receipt
from serving.client import calls
from serving.client.answers import Changed, Image, Readiness, Uploaded
from serving.client.attempts import Context, Flow, Pause, perform
from serving.client.calls import Call
from serving.client.errors import (
    ApiError,
    ClientError,
    DeadlineExceeded,
    ImageRejected,
    NotFound,
    NotSearchableInTime,
    ServerUnreachable,
)

# How often the shards are asked how far they are: soon after the start, then less and less.
_POLL_FIRST_S = 0.05
_POLL_GROWTH = 1.5
_POLL_CAP_S = 0.5

AppliedProgress = Callable[[int, int], None]
"""Called with the receipts applied so far and all of them."""


def upload(
    call: Call[Uploaded], collection: str, image_id: str, data: bytes | None, context: Context
) -> Flow[Uploaded]:
    """Upload; where the server's own wait ends first, wait on for the receipt instead of sending it again.

    `data` are the uploaded bytes; None where they lie in the object store.

    Raises ClientError; NotSearchableInTime with its receipt when the deadline comes first, ImageRejected.
    """
    try:
        return (yield from perform(call, context))
    except NotSearchableInTime as late:
        if late.receipt is None:
            raise
        yield from _settle(collection, late, late.receipt, context)
        found = yield from check_rejection(collection, image_id, late.receipt, context)
        if data is not None:
            sha256 = hashlib.sha256(data).hexdigest()
        else:
            sha256 = (found.sha256 if found is not None else None) or ""
        first = found.duplicate_of if found is not None else None
        status = "searchable" if first is None else "duplicate"
        return Uploaded(id=image_id, sha256=sha256, status=status, receipt=late.receipt, duplicate_of=first)


def change(call: Call[Changed], collection: str, image_id: str, context: Context) -> Flow[Changed]:
    """Delete or change a payload; waits on where the server's own wait ends first."""
    try:
        return (yield from perform(call, context))
    except NotSearchableInTime as late:
        if late.receipt is None:
            raise
        yield from _settle(collection, late, late.receipt, context)
        return Changed(id=image_id, status="applied", receipt=late.receipt)


def _settle(collection: str, late: NotSearchableInTime, receipt: Receipt, context: Context) -> Flow[None]:
    try:
        yield from wait_applied(collection, [receipt], context)
    except DeadlineExceeded as error:
        # The server's problem carries the receipt, with which the caller can go on waiting.
        raise late from error


def applied_offsets(collection: str, context: Context) -> Flow[dict[int, int]]:
    """Per partition, the offset that every replica which answers has applied."""
    return (yield from perform(calls.collection(collection), context)).applied_offsets


def wait_applied(
    collection: str, receipts: Iterable[Receipt], context: Context, progress: AppliedProgress | None = None
) -> Flow[None]:
    """Return once every event has taken effect: searchable, rejected, deleted or changed.

    Raises ClientError; DeadlineExceeded says how many are left.
    """
    waiting = list(receipts)
    pause_s = _POLL_FIRST_S
    while True:
        offsets = yield from applied_offsets(collection, context)
        left = sum(1 for receipt in waiting if offsets.get(receipt.partition, -1) < receipt.offset)
        if progress is not None:
            progress(len(waiting) - left, len(waiting))
        if not left:
            return
        if context.left_s() <= pause_s:
            raise context.exceeded(f"{left} of {len(waiting)} events not applied")
        yield Pause(pause_s)
        pause_s = min(pause_s * _POLL_GROWTH, _POLL_CAP_S)


def check_rejection(collection: str, image_id: str, receipt: Receipt, context: Context) -> Flow[Image | None]:
    """The image once the upload at `receipt` is applied; None if it was deleted since.

    Raises ImageRejected if that upload led to no point.
    """
    try:
        found = yield from perform(calls.image(collection, image_id), context)
    except NotFound:
        return None
    rejection = found.rejection
    if found.state == "rejected" or (rejection is not None and rejection.offset == receipt.offset):
        members: dict[str, Any] = {
            "id": image_id,
            "receipt": {"partition": receipt.partition, "offset": receipt.offset},
        }
        detail = "rejected"
        if rejection is not None:
            detail, members["reason"] = f"{rejection.code}: {rejection.reason}", rejection.reason
        raise ImageRejected(detail, request_id=context.request_id, members=members)
    return found


def readiness(context: Context) -> Flow[Readiness]:
    """Whether every part is ready; a server that does not answer is not."""
    try:
        yield from perform(calls.readiness(), context)
    except ApiError as problem:
        missing = problem.members.get("missing")
        sentences = tuple(map(str, missing)) if isinstance(missing, list) and missing else (problem.detail,)
        return Readiness(ready=False, missing=sentences)
    except (ServerUnreachable, DeadlineExceeded):
        return Readiness(ready=False, missing=("the HTTP server does not answer yet",))
    except ClientError as error:
        return Readiness(ready=False, missing=(error.detail,))
    return Readiness(ready=True)
