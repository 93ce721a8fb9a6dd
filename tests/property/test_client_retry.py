"""Whatever the server does and chance draws, a call keeps its deadline and repeats only what may be repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
from hypothesis import given
from hypothesis import strategies as st

from serving.client import calls
from serving.client.attempts import Context, Pause, Retry, Send, perform
from serving.client.calls import Reply
from serving.client.errors import ApiError, ClientError, DeadlineExceeded

MAY_PASS = (429, 502, 503, 504)
seconds = st.floats(0, 40, allow_nan=False)
policies = st.builds(Retry, attempts=st.integers(1, 8), first_s=st.floats(0, 10), cap_s=st.floats(0, 20))


@st.composite
def problems(draw: st.DrawFn) -> Reply:
    retryable = draw(st.booleans())
    body: dict[str, Any] = {"code": draw(st.sampled_from(["unavailable", "not_found", "new"])), "detail": "x"}
    if draw(st.booleans()):
        body["receipt"] = {"partition": 0, "offset": 1}
    headers = {"retry-after": str(draw(st.integers(0, 60)))} if draw(st.booleans()) else {}
    status = draw(st.sampled_from([400, 404, 429, 500, 503]))
    return Reply(status, headers, json.dumps({**body, "retryable": retryable}).encode())


foreign = st.builds(Reply, st.sampled_from([302, 404, 500, *MAY_PASS]), st.just({}), st.just(b"<html>"))
lost = st.sampled_from([httpx.ConnectError("x"), httpx.ReadError("x"), httpx.RemoteProtocolError("x")])
answered = st.just(Reply(200, {}, b'{"name": "images"}'))
outcomes = st.lists(st.tuples(st.one_of(problems(), foreign, lost, answered), seconds), min_size=1, max_size=12)


def _may_be_sent_again(outcome: Reply | Exception, *, repeatable: bool) -> bool:
    """The rule, said a second time."""
    if isinstance(outcome, Exception):
        return repeatable or isinstance(outcome, httpx.ConnectError)
    if not repeatable and outcome.status != 429:
        return False
    if outcome.content.startswith(b"{"):
        body = json.loads(outcome.content)
        return bool(body["retryable"]) and "receipt" not in body
    return outcome.status in MAY_PASS


@given(outcomes, policies, st.floats(0.01, 60), st.lists(st.floats(0, 1), min_size=12, max_size=12), st.booleans())
def test_the_schedule(
    script: list[tuple[Reply | Exception, float]],
    retry: Retry,
    deadline_s: float,
    draws: list[float],
    repeatable: bool,
) -> None:
    now, drawn = 1000.0, iter(draws * 10)
    clock: Callable[[], float] = lambda: now  # noqa: E731 — reads the variable below
    context = Context("http://x", clock, lambda: next(drawn), retry, deadline_s, now + deadline_s)
    call: calls.Call[Any] = calls.collection("images") if repeatable else calls.click("images", "r", "a", 0)
    flow = perform(call, context)
    ended_at, sent, last = now + deadline_s, 0, None
    answer: Reply | Exception | None = None
    try:
        while True:
            step = flow.send(answer)
            if isinstance(step, Pause):
                assert 0 <= step.seconds < ended_at - now, "a pause ends before the deadline"
                asked = last.headers.get("retry-after", "0") if isinstance(last, Reply) else "0"
                assert step.seconds >= float(asked), "the server's wish is a lower bound"
                now += step.seconds
                answer = None
                continue
            assert isinstance(step, Send)
            assert now < ended_at, "nothing is sent past the deadline"
            assert 0 < step.left_s <= ended_at - now + 1e-9
            if last is not None:
                assert _may_be_sent_again(last, repeatable=repeatable)
            last, took_s = script[sent % len(script)]
            sent += 1
            assert sent <= retry.attempts
            now += min(took_s, step.left_s)
            answer = last
    except StopIteration:
        assert isinstance(last, Reply)
        assert last.status == 200
    except DeadlineExceeded:
        assert now >= ended_at
    except ClientError as error:
        if isinstance(error, ApiError):
            assert isinstance(last, Reply)
            assert error.retryable == json.loads(last.content)["retryable"]
        if last is not None and _may_be_sent_again(last, repeatable=repeatable):
            asked_s = float(last.headers["retry-after"]) if isinstance(last, Reply) and last.headers else None
            pause_s = retry.pause_s(sent, (draws * 10)[sent - 1], asked_s)
            assert sent == retry.attempts or pause_s >= ended_at - now, "it gave up though another attempt fitted"


@given(policies, st.integers(1, 10**6), st.floats(0, 1), st.none() | st.floats(0, 1e6))
def test_a_pause_is_within_its_bounds(retry: Retry, attempt: int, drawn: float, asked_s: float | None) -> None:
    pause_s = retry.pause_s(attempt, drawn, asked_s)
    assert (asked_s or 0) <= pause_s <= (asked_s or 0) + retry.cap_s
