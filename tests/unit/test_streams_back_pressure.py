"""Events faster than they are embedded: what a stream worker holds in memory is bounded."""

from __future__ import annotations

import asyncio

import pytest

from actors.messages import FloatMatrix, Pixels
from streams.budget import ByteBudget
from tests.unit.ingest_fakes import FakeEmbedder, FakeObjects, source
from tests.unit.test_streams_pipeline import Bench

BATCH, IN_FLIGHT = 8, 3


class GatedEmbedder(FakeEmbedder):
    """Encodes nothing before it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.full = asyncio.Event()
        self.holding = 0
        self.most = 0

    async def encode_images(self, pixels: Pixels) -> FloatMatrix:
        self.holding += len(pixels)
        self.most = max(self.most, self.holding)
        if self.holding >= BATCH * IN_FLIGHT:
            self.full.set()
        await self.gate.wait()
        self.holding -= len(pixels)
        return await super().encode_images(pixels)


class CountingObjects(FakeObjects):
    """Counts what was fetched."""

    fetched = 0

    async def get(self, key: str, max_bytes: int | None = None) -> bytes:
        self.fetched += 1
        return await super().get(key, max_bytes)


async def test_a_slow_embedder_holds_up_the_stream_and_not_the_memory() -> None:
    objects, embedder = CountingObjects(), GatedEmbedder()
    bench = Bench(objects, ingest_batches_in_flight=IN_FLIGHT)
    bench.embedder = embedder
    # Two hundred pictures of different bytes come while not one is embedded.
    events = source([bench.add(f"image-{number}", number) for number in range(200)])
    driving = asyncio.create_task(bench.run(events, batch=BATCH))
    async with asyncio.timeout(60):
        await embedder.full.wait()
    for _ in range(200):
        await asyncio.sleep(0)
    assert objects.fetched == embedder.holding == BATCH * IN_FLIGHT
    assert bench.log.records == []
    assert bench.acked == []
    embedder.gate.set()
    await driving
    assert embedder.most == BATCH * IN_FLIGHT, "more decoded pictures were held at a time"
    assert len(bench.acked) == len(bench.entries()) == len(events)


async def test_a_budget_is_kept_in_order_and_given_back_whatever_happens() -> None:
    budget = ByteBudget(100)
    most, order = 0, []

    async def hold(name: int, size_bytes: int, *, fail: bool = False) -> None:
        nonlocal most
        async with budget.take(size_bytes):
            order.append(name)
            most = max(most, budget.held)
            await asyncio.sleep(0)
            if fail:
                raise ZeroDivisionError

    sizes = [60, 60, 10, 100, 1, 500, 40, 40, 40]
    tasks = [asyncio.create_task(hold(n, size, fail=n % 3 == 1)) for n, size in enumerate(sizes)]
    await asyncio.sleep(0)
    tasks[4].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(answer, ZeroDivisionError) for answer in answers) == 2
    assert order == [0, 1, 2, 3, 5, 6, 7, 8], "the one that is larger than all comes in its turn, alone"
    assert most == 500
    assert budget.held == 0
    async with budget.take(100):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(budget.take(1).__aenter__(), 0.01)
    assert budget.held == 0
