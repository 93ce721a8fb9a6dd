"""Concurrent calls share a batch; each gets its own rows, or the failure."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from actors.embedding.batching import TextBatcher
from actors.messages import FloatMatrix


async def test_calls_that_wait_are_encoded_together_and_get_their_own_rows() -> None:
    batches: list[int] = []
    go = threading.Event()

    def encode(texts: Sequence[str]) -> FloatMatrix:
        go.wait(10)
        batches.append(len(texts))
        return np.array([[float(text)] for text in texts], dtype=np.float32)

    with ThreadPoolExecutor(1) as executor:
        batcher = TextBatcher(encode, executor, max_batch=4)
        calls = [asyncio.create_task(batcher.encode([str(n), str(n + 0.5)])) for n in range(5)]
        await asyncio.sleep(0)
        go.set()
        rows = await asyncio.gather(*calls)
    assert [row.tolist() for row in rows] == [[[float(n)], [n + 0.5]] for n in range(5)]
    assert sum(batches) == 10
    assert max(batches) == 4


async def test_a_failure_reaches_every_caller_and_the_next_call_works() -> None:
    fail = True

    def encode(texts: Sequence[str]) -> FloatMatrix:
        if fail:
            raise RuntimeError("on purpose")
        return np.zeros((len(texts), 1), np.float32)

    with ThreadPoolExecutor(1) as executor:
        batcher = TextBatcher(encode, executor)
        answers = await asyncio.gather(batcher.encode(["a"]), batcher.encode(["b"]), return_exceptions=True)
        assert [type(answer) for answer in answers] == [RuntimeError, RuntimeError]
        fail = False
        assert (await batcher.encode(["c"])).shape == (1, 1)


@pytest.mark.parametrize("count", [0, 1, 200])
async def test_a_call_of_any_size_comes_back_whole(count: int) -> None:
    with ThreadPoolExecutor(1) as executor:
        batcher = TextBatcher(lambda texts: np.zeros((len(texts), 2), np.float32), executor, max_batch=8)
        assert (await batcher.encode(["x"] * count)).shape == (count, 2)
