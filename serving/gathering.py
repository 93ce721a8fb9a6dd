"""Gathers questions that come at about the same time into batches, because a call costs far more than a row in it.

A lone question leaves at once, together with those of the same turn of the event loop. While a batch is
under way, questions gather for `window_s`. While `under_way_max` are, they gather until one returns: more
calls side by side would only wait in the shards, and be small. A full batch never waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

WINDOW_S = 0.0015
BATCH_MAX = 64
UNDER_WAY_MAX = 1
# A batch that waits for a shard out of order may return only at its deadline: the next ones wait no longer than this.
GATHER_MAX_S = 0.025

Question = TypeVar("Question")
Answer = TypeVar("Answer")


@dataclass(eq=False, slots=True)
class _Waiting(Generic[Question, Answer]):
    question: Question
    done: asyncio.Future[Answer]
    batch: _Batch | None = None


@dataclass(eq=False, slots=True)
class _Batch:
    callers: int
    task: asyncio.Task[None] | None = None


class Gathering(Generic[Question, Answer]):
    """Sends questions in batches. For one event loop.

    A question whose caller goes away before its batch left is not sent, and a batch without a caller left is cancelled.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Question]], Awaitable[Sequence[Answer]]],
        *,
        window_s: float = WINDOW_S,
        batch_max: int = BATCH_MAX,
        under_way_max: int = UNDER_WAY_MAX,
    ) -> None:
        """`send` answers a batch in its order; what it raises, every caller of the batch gets."""
        self._send = send
        self._window_s = window_s
        self._batch_max = batch_max
        self._under_way_max = under_way_max
        self._waiting: list[_Waiting[Question, Answer]] = []
        self._timer: asyncio.TimerHandle | None = None
        # The loop holds tasks weakly; these are the batches under way.
        self._under_way: set[asyncio.Task[None]] = set()

    async def ask(self, question: Question) -> Answer:
        """The answer to one question."""
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Question, Answer] = _Waiting(question, loop.create_future())
        self._waiting.append(waiting)
        if len(self._waiting) >= self._batch_max:
            self._leave()
        elif self._timer is None:
            self._timer = loop.call_later(self._wait_s(), self._leave)
        try:
            return await waiting.done
        except asyncio.CancelledError:
            self._forget(waiting)
            raise

    def _wait_s(self) -> float:
        if not self._under_way:
            # Even then, what became runnable in this same turn of the loop joins.
            return 0.0
        return self._window_s if len(self._under_way) < self._under_way_max else max(self._window_s, GATHER_MAX_S)

    def _forget(self, waiting: _Waiting[Question, Answer]) -> None:
        batch = waiting.batch
        if batch is not None:
            batch.callers -= 1
            if batch.callers == 0 and batch.task is not None:
                batch.task.cancel()
        elif waiting in self._waiting:
            self._waiting.remove(waiting)

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # A caller that was cancelled in this very turn has not run since, and could not say so.
        gathered, self._waiting = [one for one in self._waiting if not one.done.cancelled()], []
        if not gathered:
            return
        batch = _Batch(len(gathered))
        for waiting in gathered:
            waiting.batch = batch
        batch.task = task = asyncio.get_running_loop().create_task(self._run(gathered, batch))
        self._under_way.add(task)
        # A task that is cancelled before its first step runs nothing of its own.
        task.add_done_callback(self._returned)

    async def _run(self, gathered: Sequence[_Waiting[Question, Answer]], batch: _Batch) -> None:
        try:
            answers = await self._send([waiting.question for waiting in gathered])
        except asyncio.CancelledError:
            for waiting in gathered:
                waiting.done.cancel()
            raise
        # Whatever went wrong belongs to the callers that wait, not to this task.
        except BaseException as error:
            self._returned(batch.task)
            for waiting in gathered:
                if not waiting.done.done():
                    waiting.done.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            # Before a caller wakes: its next question then leaves at once.
            self._returned(batch.task)
            for waiting, answer in zip(gathered, answers, strict=True):
                if not waiting.done.done():
                    waiting.done.set_result(answer)

    def _returned(self, task: asyncio.Task[None] | None) -> None:
        if task in self._under_way:
            self._under_way.remove(task)
            if self._waiting:
                self._leave()
