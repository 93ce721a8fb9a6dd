"""One call until it is answered: attempts, pauses between them, one deadline over all.

A flow is a generator that yields what to do next and is sent the outcome, so that one text drives
the client that blocks and the one that does not:

    Send(call, …)   → the Reply, or the exception that sending it ended in
    Pause(seconds)  → None
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import httpx
from msgspec import Struct

from serving.client.calls import Call, Reply, new_id
from serving.client.errors import (
    ApiError,
    ClientError,
    DeadlineExceeded,
    NotFound,
    ServerUnreachable,
    TooManyUploads,
    UnexpectedAnswer,
    error_of,
)

Result = TypeVar("Result")

# These fail before a byte of the request is on its way.
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
# Errors of the request itself: sending it again cannot help.
_HOPELESS = (httpx.LocalProtocolError, httpx.UnsupportedProtocol)
_TOO_MANY_REQUESTS = 429
# Beyond this the doubled pause is above any cap, and the power would overflow.
_DOUBLINGS_MAX = 32


class Retry(Struct, frozen=True):
    """How often and when a call is sent again; only after a retryable error, within its deadline.

    The n-th pause is drawn evenly from 0 to min(`cap_s`, `first_s`·2ⁿ⁻¹), on top of what the server
    asks for in `Retry-After`.

    Source: M. Brooker, Exponential Backoff And Jitter ("full jitter"), AWS Architecture Blog, 2015.
    """

    attempts: int = 5
    first_s: float = 0.2
    cap_s: float = 5.0

    def pause_s(self, attempt: int, drawn: float, asked_s: float | None) -> float:
        """Seconds between attempt number `attempt` (from 1) and the next; `drawn` is random in 0…1."""
        ceiling_s = min(self.cap_s, self.first_s * 2.0 ** min(attempt - 1, _DOUBLINGS_MAX))
        return (asked_s or 0.0) + drawn * ceiling_s


@dataclass(frozen=True, slots=True)
class Context:
    """What all requests of one call of the client have in common; made when the call begins."""

    base_url: str
    clock: Callable[[], float]
    random: Callable[[], float]
    retry: Retry
    deadline_s: float
    ends_at: float
    request_id: str = field(default_factory=new_id)

    def left_s(self) -> float:
        """Seconds until the deadline; negative beyond it."""
        return self.ends_at - self.clock()

    def exceeded(self, doing: str) -> DeadlineExceeded:
        """The error that says the time is over."""
        return DeadlineExceeded(f"{doing} within {self.deadline_s:g} s", request_id=self.request_id)


@dataclass(frozen=True, slots=True)
class Send:
    """Send the call; the answer must be whole within `left_s`."""

    call: Call[Any]
    context: Context
    left_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Let time pass."""

    seconds: float


Outcome: TypeAlias = Reply | Exception | None
Flow: TypeAlias = Generator[Send | Pause, Outcome, Result]


def perform(call: Call[Result], context: Context) -> Flow[Result]:
    """The answer to one call.

    It is sent again only after a retryable error, and only if it is repeatable or surely had no
    effect; never when the server says in a receipt that the event is logged already.

    An upload that back-pressure sent away is sent again until the deadline, however often.

    Raises ClientError: of the last attempt, or DeadlineExceeded when the deadline cut it off.
    """
    earlier: ClientError | None = None
    effect_possible = False
    for attempt in itertools.count(1):
        left_s = context.left_s()
        if left_s <= 0:
            raise context.exceeded("not done") from earlier
        outcome = yield Send(call, context, left_s)
        if isinstance(outcome, Reply) and 200 <= outcome.status < 300:
            try:
                return call.read(outcome)
            except UnexpectedAnswer as unexpected:
                unexpected.request_id = context.request_id
                raise
        error = _error_of(outcome, context)
        if isinstance(error, NotFound) and effect_possible and call.when_gone is not None:
            return call.when_gone()
        harmless = _had_no_effect(outcome)
        effect_possible = effect_possible or not harmless
        pause_s = context.retry.pause_s(attempt, context.random(), getattr(error, "retry_after_s", None))
        logged = isinstance(error, ApiError) and error.receipt is not None
        if (
            not error.retryable
            or isinstance(error, DeadlineExceeded)
            or logged
            or not (call.repeatable or harmless)
            or (attempt >= context.retry.attempts and not isinstance(error, TooManyUploads))
            or pause_s >= context.left_s()
        ):
            raise error from (outcome if isinstance(outcome, Exception) else earlier)
        earlier = error
        yield Pause(pause_s)
    raise AssertionError("unreachable: the count never ends")


def _error_of(outcome: Outcome, context: Context) -> ClientError:
    match outcome:
        case Reply():
            return error_of(outcome.status, outcome.headers, outcome.content, context.request_id)
        case httpx.ConnectTimeout() if context.left_s() > 0:
            # Connecting has a bound of its own below the deadline: another address may take it.
            return _unreachable(outcome, context)
        case httpx.TimeoutException() | TimeoutError():
            return context.exceeded(f"{context.base_url} did not answer")
        case httpx.DecodingError():
            return UnexpectedAnswer(f"the answer cannot be read: {outcome}", status=0, request_id=context.request_id)
        case Exception():
            error = _unreachable(outcome, context)
            error.retryable = not isinstance(outcome, _HOPELESS)
            return error
        case None:
            raise AssertionError("a call was sent, and there is no outcome")


def _unreachable(cause: Exception, context: Context) -> ServerUnreachable:
    detail = f"{context.base_url} does not answer ({type(cause).__name__})"
    return ServerUnreachable(detail, request_id=context.request_id)


def _had_no_effect(outcome: Outcome) -> bool:
    """Whether the request surely changed nothing: it was never sent, or turned away at the door."""
    return isinstance(outcome, _NEVER_SENT) or (isinstance(outcome, Reply) and outcome.status == _TOO_MANY_REQUESTS)
