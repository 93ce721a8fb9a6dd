"""Whom a call is for travels from the caller's task into the actor's log lines."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog

from actors.call_context import add_request_ids, answering, current_request_ids, on_behalf_of
from actors.handles import ShardClient


class RecordingHandle:
    """Stands for a Ray actor: remembers the arguments of its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[object, ...], dict[str, object]]] = []

    def __getattr__(self, name: str) -> Any:
        handle = self

        class Method:
            async def remote(self, *arguments: object, **named: object) -> list[None]:
                handle.calls.append((name, arguments, named))
                return [None]

        return Method()


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> tuple[ShardClient, RecordingHandle]:
    handle = RecordingHandle()
    monkeypatch.setattr("ray.get_actor", lambda *_: handle)
    return ShardClient("images", "one", 0, 0), handle


async def test_a_call_says_which_request_it_is_for(client: tuple[ShardClient, RecordingHandle]) -> None:
    shard, handle = client
    with on_behalf_of("r1"):
        await shard.fetch(["a"])
        await asyncio.create_task(shard.wait_applied(0, 1, 1.0))
    await shard.status()
    assert [(name, named) for name, _, named in handle.calls] == [
        ("fetch", {"request_ids": ("r1",)}),
        ("wait_applied", {"request_ids": ("r1",)}),
        ("status", {}),
    ]


async def test_requests_that_run_side_by_side_keep_their_own_id() -> None:
    async def one(request_id: str) -> tuple[str, ...]:
        with on_behalf_of(request_id):
            await asyncio.sleep(0)
            return current_request_ids()

    assert list(await asyncio.gather(one("a"), one("b"))) == [("a",), ("b",)]
    assert current_request_ids() == ()


@pytest.mark.parametrize(
    ("request_ids", "fields"),
    [((), {}), (("a",), {"request_id": "a"}), (("a", "b"), {"request_ids": ["a", "b"]})],
)
def test_lines_of_an_actor_call_bear_the_ids(request_ids: tuple[str, ...], fields: dict[str, object]) -> None:
    lines: list[dict[str, Any]] = []

    def keep(_logger: object, _method: str, event: Any) -> Any:
        lines.append(dict(event))
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[add_request_ids, keep])
    try:
        with answering("search", request_ids):
            structlog.get_logger().warning("within")
        structlog.get_logger().warning("after")
    finally:
        structlog.configure(**before)
    assert [line.pop("duration_s", None) is not None for line in lines] == [False, True, False]
    call = {"event": "call", "call": "search", **fields}
    assert lines == [{"event": "within", **fields}, call, {"event": "after"}]


async def test_work_that_nobody_waits_for_is_cancelled_in_the_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[asyncio.Future[object]] = []
    cancelled: list[object] = []

    class SilentHandle:
        def __getattr__(self, _: str) -> Any:
            return self

        def remote(self, *_: object, **__: object) -> asyncio.Future[object]:
            answers.append(asyncio.get_running_loop().create_future())
            return answers[-1]

    monkeypatch.setattr("ray.get_actor", lambda *_: SilentHandle())
    monkeypatch.setattr("ray.cancel", cancelled.append)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await ShardClient("images", "one", 0, 0).status()
    assert cancelled == answers
