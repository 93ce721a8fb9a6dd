"""Replicas of one machine share a port, and each has one where nobody else answers."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from contract.errors import Unavailable
from serving.listener import Listener, start_on_first_free
from tests.integration.system import free_port


def app(name: bytes, lives: list[str]) -> ASGIApp:
    """Answers with its name, and notes when it is started or ended."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for stage in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{stage}"
                lives.append(stage)
                await send({"type": f"lifespan.{stage}.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": name})

    return answer


def listeners(name: bytes, lives: list[str], *, alone: bool) -> Callable[[int], Listener]:
    return lambda port: Listener(app(name, lives), "127.0.0.1", port, 1.0, alone=alone)


async def test_each_replica_gets_a_port_of_its_own() -> None:
    shared, first = free_port(), free_port()
    lives: list[str] = []
    started = []
    for name in (b"a", b"b"):
        main = listeners(name, lives, alone=False)(shared)
        await main.start()
        alone = await start_on_first_free(listeners(name, lives, alone=True), [first, free_port()])
        assert alone is not None
        started += [main, alone]
    assert lives == ["startup", "startup"], "only the shared listener starts its app"
    async with httpx.AsyncClient() as http:
        answered = {
            (await http.get(f"http://127.0.0.1:{first}", headers={"Connection": "close"})).content for _ in range(8)
        }
    assert answered == {b"a"}
    assert await start_on_first_free(listeners(b"c", lives, alone=True), [first]) is None
    for one in started:
        await one.stop()
    assert lives == ["startup", "startup", "shutdown", "shutdown"]


async def test_a_port_of_ones_own_is_not_taken_from_anybody() -> None:
    lives: list[str] = []
    port = free_port()
    holder = listeners(b"a", lives, alone=True)(port)
    await holder.start()
    with pytest.raises(Unavailable, match="is taken"):
        await listeners(b"b", lives, alone=True)(port).start()
    await holder.stop()
