"""On whose behalf a process works: the ids of the requests, carried with every call to an actor.

The caller binds them with `on_behalf_of`; the clients in `actors.handles` send them with each call; an
actor's method binds what it was sent with `answering`; `add_request_ids` puts them into every line that is logged.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import structlog

from contract.telemetry import LogField

_log = structlog.get_logger()
_request_ids: ContextVar[tuple[str, ...]] = ContextVar("request_ids", default=())


def current_request_ids() -> tuple[str, ...]:
    """Ids of the requests that the running task works for; several where requests share a call."""
    return _request_ids.get()


@contextmanager
def on_behalf_of(*request_ids: str) -> Iterator[None]:
    """Work for these requests, in this task and in those it starts; their ids stand in every log line."""
    token = _request_ids.set(request_ids)
    try:
        yield
    finally:
        _request_ids.reset(token)


@contextmanager
def answering(call: str, request_ids: Sequence[str]) -> Iterator[None]:
    """Around the body of an actor's method: work for these requests, and tell at DEBUG how long the call took."""
    started = time.perf_counter()
    with on_behalf_of(*request_ids):
        yield
        _log.debug("call", **{LogField.CALL: call, LogField.DURATION_S: round(time.perf_counter() - started, 6)})


def add_request_ids(_logger: object, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """For structlog: one id as `request_id`, several as `request_ids`; both are found by searching for an id."""
    request_ids = _request_ids.get()
    if len(request_ids) == 1:
        event.setdefault(LogField.REQUEST_ID, request_ids[0])
    elif request_ids:
        event.setdefault(LogField.REQUEST_IDS, list(request_ids))
    return event
