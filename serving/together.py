"""Joins look-ups that become runnable in one turn of the event loop into one call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

from actors.call_context import current_request_ids, on_behalf_of

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Together(Generic[Key, Value]):
    """Look-ups of one group that begin in the same turn share a call; equal keys that wait share an answer.

    A lone look-up leaves in the same turn. A caller that goes away leaves the others alone. For one event loop.
    """

    def __init__(self) -> None:
        self._gathering: dict[Hashable, dict[Key, str | None]] = {}
        self._answers: dict[tuple[Hashable, Key], asyncio.Future[Value]] = {}
        # The loop holds tasks weakly; these are the calls under way.
        self._calls: set[asyncio.Task[None]] = set()

    async def get(
        self, group: Hashable, key: Key, call: Callable[[Sequence[Key]], Awaitable[Sequence[Value]]]
    ) -> Value:
        """The value of `key`; `call` answers several keys of `group` in their order.

        Raises what the call raised, as does every other caller that shares it.
        """
        answer = self._answers.get((group, key))
        if answer is None:
            loop = asyncio.get_running_loop()
            answer = self._answers[group, key] = loop.create_future()
            # A failure that nobody waits for any more is nobody's.
            answer.add_done_callback(lambda done: done.cancelled() or done.exception())
            if group not in self._gathering:
                self._gathering[group] = {}
                loop.call_soon(self._leave, group, call)
            self._gathering[group][key] = next(iter(current_request_ids()), None)
        return await asyncio.shield(answer)

    def _leave(self, group: Hashable, call: Callable[[Sequence[Key]], Awaitable[Sequence[Value]]]) -> None:
        gathered = self._gathering.pop(group)
        request_ids = dict.fromkeys(request_id for request_id in gathered.values() if request_id is not None)
        with on_behalf_of(*request_ids):
            task = asyncio.get_running_loop().create_task(self._call(group, list(gathered), call))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _call(
        self, group: Hashable, keys: Sequence[Key], call: Callable[[Sequence[Key]], Awaitable[Sequence[Value]]]
    ) -> None:
        answers = [self._answers[group, key] for key in keys]
        try:
            values = await call(keys)
            for answer, value in zip(answers, values, strict=True):
                answer.set_result(value)
        # Whatever went wrong belongs to the callers that wait, not to this task.
        except BaseException as error:
            for answer in answers:
                if not answer.done():
                    answer.set_exception(error)
            if not isinstance(error, Exception):
                raise
        finally:
            for key in keys:
                del self._answers[group, key]
