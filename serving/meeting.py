"""A point that several tasks reach before any of them goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager


class Meeting:
    """Tasks that wait for each other once, each in a `seat`. Who leaves its seat is not waited for."""

    def __init__(self, seats: int) -> None:
        self._missing = seats
        self._complete = asyncio.Event()

    @contextmanager
    def seat(self) -> Iterator[Callable[[], Awaitable[None]]]:
        """Take part; gives what waits until every other task has come to the same point or left its seat."""
        is_counted = False

        def count() -> None:
            nonlocal is_counted
            if not is_counted:
                is_counted = True
                self._missing -= 1
            if self._missing == 0:
                self._complete.set()

        async def arrive() -> None:
            count()
            await self._complete.wait()

        try:
            yield arrive
        finally:
            count()
