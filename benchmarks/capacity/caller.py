"""Processor time that a fan-out costs its caller, by the number of shards and of queries in a batch.

The shards are search ports of another process that answer at once, always the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Final

import msgspec
import numpy as np

from actors.messages import Candidate, Freshness, ShardQuery, ShardSearch, ShardSearchResult
from actors.search_port.caller import SearchCaller
from actors.search_port.frames import SearchAddress
from actors.search_port.server import SearchPort
from benchmarks.capacity.records import PAYLOAD
from benchmarks.result_file import Result
from serving.fan_out import FanOut
from serving.merge import merge

SHARDS: Final = (1, 4, 16, 64)
BATCHES: Final = (1, 4, 16)
K: Final = 10

_DIMENSION = 512
_SECONDS = 1.0
_FINGERPRINT = "9f86d081884c7d65"


def _serve(number: int, pipe: Connection) -> None:
    payload = msgspec.json.encode(PAYLOAD)

    def answer(shard: int, request: ShardSearch) -> ShardSearchResult:
        hits = tuple(Candidate(f"image-{shard}-{row:032d}", 0.9 - 0.01 * row, payload) for row in range(K))
        return ShardSearchResult((hits,) * len(request.queries), Freshness({shard: 12_345_678}, 0.1))

    ports = [SearchPort("127.0.0.1", lambda request, shard=one: answer(shard, request), 1) for one in range(number)]  # type: ignore[misc]
    pipe.send([port.address for port in ports])
    pipe.recv()
    for port in ports:
        port.close()


class _Replica:
    """The one method of a shard that a fan-out by vector calls."""

    def __init__(self, address: SearchAddress) -> None:
        async def found() -> SearchAddress:
            return address

        self._caller = SearchCaller("shard", found)

    async def search(self, request: ShardSearch) -> ShardSearchResult:
        answer = await self._caller.search(request)
        assert answer is not None  # noqa: S101
        return answer

    def close(self) -> None:
        self._caller.close()


async def _cost_ms(addresses: list[SearchAddress], batch: int) -> float:
    """Processor milliseconds of this process per batch, merging included."""
    replicas = [_Replica(address) for address in addresses]
    fan_out = FanOut([[one] for one in replicas], _FINGERPRINT, deadline_s=5.0)  # type: ignore[list-item]
    vector, query = np.zeros(_DIMENSION, np.float32), ShardQuery(K, ef_search=80)

    async def once() -> None:
        answers = await asyncio.gather(*(fan_out.search(vector, query, request_id="r") for _ in range(batch)))
        for answer in answers:
            merge(answer.candidates, limit=K)

    for _ in range(5):
        await once()
    count, began, until = 0, time.process_time(), time.perf_counter() + _SECONDS
    while time.perf_counter() < until:
        await once()
        count += 1
    cost = 1e3 * (time.process_time() - began) / count
    for one in replicas:
        one.close()
    return cost


def measure(seed: int) -> tuple[list[Result], str]:
    """A result per number of shards and of queries in a batch; the data are constants."""
    del seed
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(max(SHARDS), there))
    process.start()
    try:
        addresses: list[SearchAddress] = here.recv()
        results = [
            Result(f"shards_{shards}_batch_{batch}_cpu_ms", asyncio.run(_cost_ms(addresses[:shards], batch)), "ms")
            for shards in SHARDS
            for batch in BATCHES
        ]
        here.send(None)
        process.join(10)
    finally:
        process.kill()
    return results, hashlib.sha256(msgspec.json.encode(PAYLOAD)).hexdigest()
