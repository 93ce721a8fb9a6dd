"""Ways to reach the shards of one machine, side by side: `python -m benchmarks.ways` (`make bench-ways`).

Four shards hold the points; batches of queries go to all of them, two batches under way. Each way runs the same engine
over the same files: `actor` calls Ray actors, `handle` calls Serve deployments, `port` asks the search ports of Ray
actors, and `inside` has the engines in the caller's own process. It writes benchmarks/results/ways.json.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import ray
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.schema import LoggingConfig

from actors.index.engine import EngineParameters, ShardEngine
from actors.messages import FloatMatrix, Freshness, ShardQuery, ShardSearch, ShardSearchResult
from actors.search_port.caller import SearchCaller
from actors.search_port.frames import SearchAddress
from actors.search_port.server import SearchPort
from benchmarks.index.engine_system import FINGERPRINT, EngineSystem
from benchmarks.index.systems import Options
from benchmarks.result_file import Result, write
from benchmarks.serving import data

SEED: Final = 20
SHARDS: Final = 4
WAYS: Final = ("actor", "handle", "port", "inside")

_M, _EF, _K, _EF_SEARCH, _UNDER_WAY = 16, 100, 10, 80, 2
_BATCHES = (1, 8, 32)
_THREADS = 4
_HOST = "127.0.0.1"

Ask = Callable[[ShardSearch], Awaitable[ShardSearchResult]]


class Host:
    """One shard's engine, opened from its files, and the ways to it."""

    def __init__(self, folder: str, dimension: int) -> None:
        self._engine = ShardEngine(
            Path(folder),
            EngineParameters(
                fingerprint=FINGERPRINT,
                dimension=dimension,
                m=_M,
                ef_construction=_EF,
                quantization="sq8",
                vector_type="fp16",
            ),
        )
        self._pool = ThreadPoolExecutor(_THREADS)
        self._port: SearchPort | None = None

    async def search(self, request: ShardSearch) -> ShardSearchResult:
        """Search in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.answer, request)

    def answer(self, request: ShardSearch) -> ShardSearchResult:
        """Search in this thread."""
        return ShardSearchResult(
            self._engine.search(request.vectors, request.queries, request.with_payload), Freshness({0: 0}, 0.0)
        )

    async def address(self) -> SearchAddress:
        """Open a search port."""
        self._port = SearchPort(_HOST, self.answer, _THREADS)
        return self._port.address

    async def close(self) -> None:
        """Release the files."""
        if self._port is not None:
            self._port.close()
        self._pool.shutdown()
        self._engine.close()


def _build(folder: str, rows: range, points: FloatMatrix) -> None:
    """The files of one shard with some of the points."""
    options = Options(
        folder=folder,
        variant="sq8",
        dimension=points.shape[1],
        capacity=len(rows),
        m=_M,
        ef_construction=_EF,
        build_threads=0,
        existing=False,
    )
    system = EngineSystem(options)
    system.insert(system.encode([str(row) for row in rows], points[list(rows)]))
    system.finish()
    system.close()


@asynccontextmanager
async def _reached(way: str, folders: Sequence[str], dimension: int) -> AsyncIterator[list[Ask]]:
    """The shards, each as something to ask."""
    if way == "inside":
        hosts = [Host(folder, dimension) for folder in folders]
        yield [host.search for host in hosts]
        for host in hosts:
            await host.close()
    elif way == "handle":
        quiet = LoggingConfig(enable_access_log=False, log_level="ERROR")
        serve.start(proxy_location=ProxyLocation.Disabled, logging_config=quiet)
        deployment: Any = serve.deployment(Host, max_ongoing_requests=100, ray_actor_options={"num_cpus": 0})
        handles: list[Any] = [
            serve.run(deployment.bind(folder, dimension), name=Path(folder).name, route_prefix=None)
            for folder in folders
        ]

        async def by_handle(handle: Any, request: ShardSearch) -> ShardSearchResult:
            answer: ShardSearchResult = await handle.search.remote(request)
            return answer

        yield [lambda request, handle=handle: by_handle(handle, request) for handle in handles]  # type: ignore[misc]
        for handle in handles:
            await handle.close.remote()
        serve.shutdown()  # type: ignore[no-untyped-call]
    else:
        remote: Any = cast(Any, ray).remote(num_cpus=0, max_concurrency=100)(Host)
        actors: list[Any] = [remote.remote(folder, dimension) for folder in folders]
        if way == "actor":

            async def by_call(actor: Any, request: ShardSearch) -> ShardSearchResult:
                answer: ShardSearchResult = await actor.search.remote(request)
                return answer

            yield [lambda request, actor=actor: by_call(actor, request) for actor in actors]  # type: ignore[misc]
        else:
            callers = [SearchCaller("shard", lambda actor=actor: actor.address.remote()) for actor in actors]  # type: ignore[misc]

            async def by_port(caller: SearchCaller, request: ShardSearch) -> ShardSearchResult:
                answer = await caller.search(request)
                assert answer is not None  # noqa: S101
                return answer

            yield [lambda request, caller=caller: by_port(caller, request) for caller in callers]  # type: ignore[misc]
            for caller in callers:
                caller.close()
        for actor in actors:
            await actor.close.remote()
            ray.kill(actor)


def _busy_s() -> float:
    """Seconds that all processors of the machine have worked; of Linux, else 0.0."""
    source = Path("/proc/stat")
    if not source.exists():
        return 0.0
    user, nice, system, _idle, _wait, irq, softirq, *_ = map(int, source.read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + softirq) / 100


async def _measure(
    asks: Sequence[Ask], queries: FloatMatrix, batch: int, under_way: int, seconds: float
) -> list[float]:
    """Seconds of every fan-out; `under_way` of them at a time."""
    wanted = (ShardQuery(_K, ef_search=_EF_SEARCH),) * batch
    took: list[float] = []
    until = time.perf_counter() + seconds

    async def keep_asking(row: int) -> None:
        while (began := time.perf_counter()) < until:
            rows = np.arange(row, row + batch) % len(queries)
            request = ShardSearch(FINGERPRINT, queries[rows], wanted, with_payload=False)
            await asyncio.gather(*(ask(request) for ask in asks))
            took.append(time.perf_counter() - began)
            row += batch

    await asyncio.gather(*(keep_asking(97 * one) for one in range(under_way)))
    return took


async def _way(way: str, folders: Sequence[str], queries: FloatMatrix, seconds: float) -> list[Result]:
    results = []
    async with _reached(way, folders, queries.shape[1]) as asks:
        await _measure(asks, queries, 8, _UNDER_WAY, 1.0)
        lone = np.array(await _measure(asks, queries, 1, 1, seconds))
        results.append(Result(f"{way}_lone_p50_ms", 1e3 * float(np.median(lone)), "ms"))
        for batch in _BATCHES:
            busy, began = _busy_s(), time.perf_counter()
            took = await _measure(asks, queries, batch, _UNDER_WAY, seconds)
            count = batch * len(took)
            results += [
                Result(f"{way}_batch_{batch}_qps", count / (time.perf_counter() - began), "1/s"),
                Result(f"{way}_batch_{batch}_p99_ms", 1e3 * float(np.percentile(took, 99)), "ms"),
                Result(f"{way}_batch_{batch}_cpu_ms_per_query", 1e3 * (_busy_s() - busy) / count, "ms"),
            ]
    for one in results:
        print(f"{one.name:36} {one.value:10.2f} {one.unit}", flush=True)
    return results


def main() -> int:
    """Entry of the process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ways", description=__doc__)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--ways", type=lambda text: tuple(text.split(",")), default=WAYS)
    parser.add_argument("--round-s", type=float, default=4.0, help="seconds of each measurement")
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    if unknown := set(arguments.ways) - set(WAYS):
        parser.error(f"no way {', '.join(sorted(unknown))}; there are {', '.join(WAYS)}")
    started_at = datetime.now(UTC)
    dataset = data.make(arguments.points, 0, arguments.seed)
    with tempfile.TemporaryDirectory(prefix="rl-ways-") as home:
        folders = [str(Path(home) / f"shard-{number}") for number in range(SHARDS)]
        for number, folder in enumerate(folders):
            _build(folder, range(number, len(dataset.points), SHARDS), dataset.points)
        ray.init(num_cpus=SHARDS, include_dashboard=False, log_to_driver=False, _temp_dir=f"{home}/ray")
        results = []
        for way in arguments.ways:
            results += asyncio.run(_way(way, folders, dataset.queries, arguments.round_s))
        ray.shutdown()
    print(write("ways", results, arguments.seed, dataset.sha256, started_at))
    return 0


if __name__ == "__main__":
    sys.exit(main())
