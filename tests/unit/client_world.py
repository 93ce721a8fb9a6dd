"""A network, a clock and chance for the client, in memory, and one way to drive both clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx

from serving.client import AsyncClient, Client, Retry

URL = "http://river.test"
KINDS = ("blocking", "asyncio")

Answer = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]


def problem(
    code: str, status: int, *, retryable: bool, headers: dict[str, str] | None = None, **members: Any
) -> httpx.Response:
    """A problem document as the API sends it."""
    body = {
        "type": f"urn:riverlens:problem:{code}",
        "title": code,
        "status": status,
        "detail": f"the detail of {code}",
        "code": code,
        "retryable": retryable,
        "request_id": "of-the-server",
        **members,
    }
    return httpx.Response(
        status, headers={"Content-Type": "application/problem+json", **(headers or {})}, content=json.dumps(body)
    )


def busy(**headers: str) -> httpx.Response:
    """A retryable problem."""
    return problem("shard_unavailable", 503, retryable=True, headers=headers)


class World:
    """Answers requests from a script, the last answer for ever; time passes only in pauses and in `took_s`."""

    def __init__(self, *script: Answer, took_s: float = 0.0) -> None:
        self.script = list(script)
        self.took_s = took_s
        self.now = 100.0
        self.pauses: list[float] = []
        self.requests: list[httpx.Request] = []
        self.drawn = 0.5

    def answer(self, request: httpx.Request) -> httpx.Response:
        """The next answer of the script."""
        self.requests.append(request)
        self.now += self.took_s
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            # A response is used up by reading it; the last one of a script is given again and again.
            return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)
        return answer(request)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.pauses.append(seconds)
        self.now += seconds

    async def sleep_async(self, seconds: float) -> None:
        """Let time pass, and others run."""
        self.sleep(seconds)
        await asyncio.sleep(0)

    def run(self, kind: str, do: Callable[[Any], Any], **options: Any) -> Any:
        """What `do` returns with a client of the kind; the coroutine of an asyncio client is awaited."""
        transport = httpx.MockTransport(self.answer)
        known: dict[str, Any] = {"clock": lambda: self.now, "random": lambda: self.drawn, **options}
        if kind == "blocking":
            with Client(URL, transport=transport, sleep=self.sleep, **known) as client:
                return do(client)

        async def main() -> Any:
            async with AsyncClient(URL, transport=transport, sleep=self.sleep_async, **known) as client:
                return await do(client)

        return asyncio.run(main())


NO_JITTER = Retry(attempts=5, first_s=0.0, cap_s=0.0)
