"""Joins calls that wait for the encoder into one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np

from actors.messages import FloatMatrix


class TextBatcher:
    """Encodes texts of concurrent callers together; a lone caller does not wait.

    While the encoder works on one batch, new calls gather; they form the next batch. For one event
    loop; `encode` runs in `executor`, which must have a single thread.
    """

    def __init__(self, encode: Callable[[Sequence[str]], FloatMatrix], executor: Executor, max_batch: int = 64) -> None:
        self._encode = encode
        self._executor = executor
        self._max_batch = max_batch
        self._waiting: list[tuple[list[str], asyncio.Future[FloatMatrix]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def encode(self, texts: Sequence[str]) -> FloatMatrix:
        """(n, d) float32 for n texts. A failure of the encoder reaches every caller of the batch."""
        answer: asyncio.Future[FloatMatrix] = asyncio.get_running_loop().create_future()
        self._waiting.append((list(texts), answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await answer

    def _take(self) -> list[tuple[list[str], asyncio.Future[FloatMatrix]]]:
        """Whole calls up to the size of a batch, at least one."""
        taken: list[tuple[list[str], asyncio.Future[FloatMatrix]]] = []
        size = 0
        while self._waiting and (not taken or size + len(self._waiting[0][0]) <= self._max_batch):
            taken.append(self._waiting.pop(0))
            size += len(taken[-1][0])
        return taken

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = [(texts, answer) for texts, answer in self._take() if not answer.cancelled()]
            together = [text for texts, _ in batch for text in texts]
            try:
                rows = await loop.run_in_executor(self._executor, self._encode, together)
            except Exception as error:  # noqa: BLE001 - handed to every caller that waits for it
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            parts = np.split(rows, np.cumsum([len(texts) for texts, _ in batch])[:-1])
            for (_, answer), part in zip(batch, parts, strict=True):
                if not answer.done():
                    answer.set_result(part)
