"""Loads Milvus Lite's server, and searches it under load, over gRPC; run by `.venv-peers-milvus`.

`python -m benchmarks.serving.milvus_client` reads a MilvusJob as JSON from standard input and prints
its answer as JSON. Requests are serialized beforehand, and every connection is a channel of its own
with one request on its way, so that the client takes as little as it can.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from benchmarks.load import LOST, LoadPlan, LoadReport, LoadRequest, Sample, report_of

_COLLECTION = "benchmark"
_BATCH = 1000
_SEARCH = "/milvus.proto.milvus.MilvusService/Search"
_OK = 200
_REFUSED = 500


class MilvusJob(Struct, frozen=True, kw_only=True):
    """`folder` holds points and queries as `.npy`. With `load`, insert and index; else search in closed loop."""

    host: str
    port: int
    folder: str
    load: bool = False
    m: int = 16
    ef_construction: int = 100
    k: int = 10
    effort: int = 64
    connections: int = 1
    seconds: float = 1.0
    warm_s: float = 0.0
    once: bool = False


class MilvusAnswer(Struct, frozen=True, kw_only=True):
    """Of a search: the report, and with `once` the ids of the hits of every query."""

    report: LoadReport | None = None
    hits: tuple[tuple[str, ...], ...] = ()


def _load(job: MilvusJob) -> MilvusAnswer:
    pymilvus = importlib.import_module("pymilvus")
    points = np.load(Path(job.folder) / "points.npy")
    client = pymilvus.MilvusClient(f"http://{job.host}:{job.port}")
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", pymilvus.DataType.INT64, is_primary=True)
    schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=points.shape[1])
    client.create_collection(_COLLECTION, schema=schema)
    for start in range(0, len(points), _BATCH):
        rows = points[start : start + _BATCH]
        client.insert(_COLLECTION, [{"id": start + i, "vector": row} for i, row in enumerate(rows)])
    client.flush(_COLLECTION)
    index = client.prepare_index_params()
    graph = {"M": job.m, "efConstruction": job.ef_construction}
    index.add_index("vector", index_type="HNSW_SQ", metric_type="IP", params=graph)
    client.create_index(_COLLECTION, index)
    client.load_collection(_COLLECTION)
    return MilvusAnswer()


async def _search(job: MilvusJob) -> MilvusAnswer:
    aio = importlib.import_module("grpc.aio")
    answers = importlib.import_module("pymilvus.grpc_gen.milvus_pb2").SearchResults
    requests = _requests(job)
    samples: list[Sample] = []
    hits: list[tuple[str, ...]] = [()] * len(requests)
    numbers = iter(range(len(requests)) if job.once else range(sys.maxsize))
    began = 0.0

    async def connection() -> None:
        # Channels to one address share a connection unless they are told apart.
        async with aio.insecure_channel(
            f"{job.host}:{job.port}", options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            call = channel.unary_unary(_SEARCH)
            await channel.channel_ready()
            ready.release()
            await start.wait()
            while (sent := time.perf_counter() - began) < job.seconds and (number := next(numbers, None)) is not None:
                row = number % len(requests)
                try:
                    answer = answers.FromString(await call(requests[row]))
                    status = _OK if answer.status.code == 0 else _REFUSED
                except aio.AioRpcError:
                    status = LOST
                samples.append(Sample(sent, sent, time.perf_counter() - began, status, status == _OK))
                if job.once and status == _OK:
                    hits[row] = tuple(map(str, answer.results.ids.int_id.data))

    ready, start = asyncio.Semaphore(0), asyncio.Event()
    tasks = [asyncio.create_task(connection()) for _ in range(job.connections)]
    for _ in tasks:
        await ready.acquire()
    cpu_s, began = time.process_time(), time.perf_counter()
    start.set()
    await asyncio.gather(*tasks)
    plan = LoadPlan(
        host=job.host,
        port=job.port,
        requests=(LoadRequest(_SEARCH),),
        connections=job.connections,
        seconds=job.seconds,
        warm_s=job.warm_s,
    )
    share = (time.process_time() - cpu_s) / (time.perf_counter() - began)
    return MilvusAnswer(report=report_of(samples, plan, share), hits=tuple(hits) if job.once else ())


def _requests(job: MilvusJob) -> list[bytes]:
    prepare = importlib.import_module("pymilvus.client.prepare").Prepare
    queries = np.load(Path(job.folder) / "queries.npy")
    parameters: dict[str, Any] = {"metric_type": "IP", "params": {"ef": job.effort}}
    return [
        prepare.search_requests_with_expr(_COLLECTION, "vector", parameters, job.k, data=[row]).SerializeToString()
        for row in queries
    ]


def main() -> None:
    """Carry out one job."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=MilvusJob)
    answer = _load(job) if job.load else asyncio.run(_search(job))
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    main()
