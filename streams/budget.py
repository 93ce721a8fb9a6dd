"""A bound on the bytes that are held at a time, in the order they are asked for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ByteBudget:
    """Hands out `most` bytes; who asks for more than there are waits, and all behind him too. For one event loop.

    One that asks for more than `most` gets them when nobody else holds any.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.held = 0

    @asynccontextmanager
    async def take(self, size_bytes: int) -> AsyncIterator[None]:
        """Around the life of so many bytes."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size_bytes, turn))
        self._hand_out()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(size_bytes)
            raise
        try:
            yield
        finally:
            self._give_back(size_bytes)

    def _give_back(self, size_bytes: int) -> None:
        self.held -= size_bytes
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting:
            size_bytes, turn = self._waiting[0]
            if turn.cancelled():
                self._waiting.popleft()
                continue
            if self.held and self.held + size_bytes > self._most:
                return
            self._waiting.popleft()
            self.held += size_bytes
            turn.set_result(None)
