"""A bounded load generator: keep-alive connections, each sending its next request when it has its answer.

`python -m benchmarks.load` reads a LoadPlan as JSON from standard input and prints a LoadReport as
JSON. It runs as a process of its own, so that it shares no interpreter with what it measures.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator

import msgspec
import numpy as np
from msgspec import Struct


class LoadPlan(Struct, frozen=True):
    """`paths` are requested in order, from the start again after the last, for `seconds` at most."""

    host: str
    port: int
    paths: tuple[str, ...]
    connections: int
    seconds: float
    repeat: bool


class LoadReport(Struct, frozen=True):
    """Latencies are of successful requests, in milliseconds; `failed` counts all other answers."""

    requests: int
    failed: int
    seconds: float
    qps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


async def _connection(plan: LoadPlan, paths: Iterator[str], deadline: float, latencies: list[float]) -> int:
    """One keep-alive connection; returns how many answers were no 200."""
    failed = 0
    reader, writer = await asyncio.open_connection(plan.host, plan.port)
    try:
        while time.perf_counter() < deadline and (path := next(paths, None)) is not None:
            began = time.perf_counter()
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {plan.host}\r\nConnection: keep-alive\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":", 1)[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length:")
            )
            await reader.readexactly(length)
            if head.split(b" ", 2)[1] == b"200":
                latencies.append(time.perf_counter() - began)
            else:
                failed += 1
    finally:
        writer.close()
        await writer.wait_closed()
    return failed


async def run(plan: LoadPlan) -> LoadReport:
    """Send the load and report it."""

    def path_stream() -> Iterator[str]:
        while True:
            yield from plan.paths
            if not plan.repeat:
                return

    latencies: list[float] = []
    paths = path_stream()
    began = time.perf_counter()
    failures = await asyncio.gather(
        *(_connection(plan, paths, began + plan.seconds, latencies) for _ in range(plan.connections))
    )
    seconds = time.perf_counter() - began
    milliseconds = np.array(latencies or [float("nan")]) * 1e3
    p50, p95, p99 = (float(value) for value in np.percentile(milliseconds, (50, 95, 99)))
    return LoadReport(
        requests=len(latencies),
        failed=sum(failures),
        seconds=seconds,
        qps=len(latencies) / seconds,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        max_ms=float(milliseconds.max()),
    )


if __name__ == "__main__":
    report = asyncio.run(run(msgspec.json.decode(sys.stdin.buffer.read(), type=LoadPlan)))
    sys.stdout.buffer.write(msgspec.json.encode(report))
