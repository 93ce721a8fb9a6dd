"""Vector searches measured: closed and open loop, while points arrive, and while a shard is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

import numpy as np

from benchmarks.load import LoadReport
from benchmarks.result_file import Result
from benchmarks.serving.outcome import Curve, Point, load_results
from benchmarks.serving.stage import COLLECTION, Stage, TimeIsUp, told_of
from serving.client import Unavailable

GOOD_SHARE: Final = 0.99
"""Share of all requests that must be answered, whole, within the bound: a failed one counts as too late."""

_KILL_AFTER_S = 3.0
_KILL_S = 12.0
_BACK_WITHIN_S = 90.0
_SETTLE_S = 60.0
_FOUND_WITHIN_S = 30.0

Answer = TypeVar("Answer")


def measure_load(stage: Stage) -> tuple[list[Result], Curve]:
    """Closed loop at several numbers of connections, then open loop at rates around what that came to."""
    results: list[Result] = []
    curve = Curve([], [])
    reports: list[LoadReport] = []
    for connections in stage.plan.connections:
        report = stage.closed(connections)
        print(f"closed loop, {connections} connections: {told_of(report)}", flush=True)
        results += load_results(f"vector_closed_{connections}", report)
        curve.closed.append(Point(float(connections), report))
        reports.append(report)
    stage.capacity = max(report.qps for report in reports)
    for share in stage.plan.rates:
        rate = share * stage.capacity
        report = stage.open(rate)
        print(f"open loop, {rate:.0f}/s ({share:.0%}): {told_of(report)}", flush=True)
        results += [Result(f"vector_open_{share:.0%}_offered_qps".replace("%", ""), rate, "1/s")]
        results += load_results(f"vector_open_{share:.0%}".replace("%", ""), report)
        curve.open.append(Point(rate, report))
        reports.append(report)
    best = best_qps(reports)
    print(f"vector searches at p99 ≤ 100 ms: {best:.0f}/s", flush=True)
    return [
        Result("vector_qps_at_p99_100ms", best, "1/s"),
        Result("vector_ef_search", float(stage.ef_search), "1"),
        Result("vector_recall_at_10", stage.recall, "1"),
        Result("vector_load_s", stage.load_s, "s"),
        *results,
    ], curve


def best_qps(reports: list[LoadReport]) -> float:
    """The most whole answers a second of the runs in which enough requests were answered in time; 0.0 of none."""
    good = [report for report in reports if report.within_bound >= GOOD_SHARE]
    return max((report.qps * (1 - report.partial / report.requests) for report in good), default=0.0)


def measure_ingest(stage: Stage) -> list[Result]:
    """The same load with and without points arriving, in turns, and how soon a new point is found."""
    rate = stage.plan.share_under_ingest * stage.capacity
    probes = [_probe(stage) for _ in range(stage.plan.probes)]
    print(f"vector known → searchable, idle: {_quantiles_told(probes)}", flush=True)
    idle: list[LoadReport] = []
    ingest: list[LoadReport] = []
    inserted: list[float] = []
    for _ in range(stage.plan.ingest_rounds):
        idle.append(stage.open(rate))
        print(f"{rate:.0f}/s, idle: {told_of(idle[-1])}", flush=True)
        report, per_s = _while_inserting(stage, lambda: stage.open(rate))
        ingest.append(report)
        inserted.append(per_s)
        print(f"{rate:.0f}/s, {per_s:.0f} points/s arriving: {told_of(report)}", flush=True)
        _settle(stage)
    closed, per_s = _while_inserting(stage, lambda: stage.closed(max(stage.plan.connections)))
    inserted.append(per_s)
    print(f"closed loop, {per_s:.0f} points/s arriving: {told_of(closed)}", flush=True)
    busy_probes, _ = _while_inserting(stage, lambda: _probes_beside_searches(stage, rate))
    print(f"vector known → searchable, under load and ingest: {_quantiles_told(busy_probes)}", flush=True)
    _settle(stage)
    p99, idle_p99 = (float(np.median([one.p99_ms for one in reports])) for reports in (ingest, idle))
    return [
        Result("p99_under_ingest_ratio", p99 / idle_p99, "1"),
        Result("under_ingest_offered_qps", rate, "1/s"),
        Result("under_ingest_p99_ms", p99, "ms"),
        Result("under_ingest_idle_p99_ms", idle_p99, "ms"),
        Result("under_ingest_failed", float(sum(one.failed for one in ingest)), "1"),
        Result("under_ingest_partial", float(sum(one.partial for one in ingest)), "1"),
        Result("under_ingest_inserts_per_s", float(np.mean(inserted)), "1/s"),
        *load_results("under_ingest_closed", closed),
        *_quantiles("upload_to_searchable", probes),
        *_quantiles("upload_to_searchable_under_load", busy_probes),
    ]


def _while_inserting(stage: Stage, doing: Callable[[], Answer]) -> tuple[Answer, float]:
    """Do something while points arrive; returns its answer and the points inserted a second."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        inserting: Future[float] = pool.submit(stage.writer.keep_rate, stage.arriving(), stage.plan.ingest_per_s, over)
        try:
            answer = doing()
        finally:
            over.set()
        return answer, inserting.result()


def _probe(stage: Stage) -> float:
    """Seconds from a vector that is known to an HTTP answer that has it as its first hit.

    The record is written to the log, then its own vector is searched with its receipt as `min_receipt`;
    again, if the answer lacks it and did not cover every shard. The client's own retries count, too.

    Raises:
        RuntimeError: a whole answer does not have it first.
        TimeIsUp: it is not found in time.
    """
    image_id, vector = next(stage.arriving())
    began = time.perf_counter()
    receipt = stage.writer.write([image_id], vector[None])[0]
    while (took := time.perf_counter() - began) < _FOUND_WITHIN_S:
        answer = stage.client.search(COLLECTION, vector=vector, min_receipt=receipt, limit=1, ef_search=stage.ef_search)
        took = time.perf_counter() - began
        if answer.hits and answer.hits[0].id == image_id:
            return took
        if not answer.coverage.degraded:
            raise RuntimeError(f"point {image_id} is not the first hit of its own vector: {answer}")
    raise TimeIsUp(f"point {image_id} is not found within {took:.0f} s")


def _probes_beside_searches(stage: Stage, rate: float) -> list[float]:
    with ThreadPoolExecutor(1) as pool:
        searching = pool.submit(stage.open, rate)
        probes: list[float] = []
        while not searching.done() and len(probes) < stage.plan.probes:
            probes.append(_probe(stage))
        searching.result()
    return probes


def _settle(stage: Stage) -> None:
    """Let the shards finish what arrived, so that the next turn begins idle."""
    try:
        stage.await_drained(len(stage.dataset.points), time.monotonic() + _SETTLE_S)
    except TimeIsUp as error:
        print(f"  not idle yet: {error}", flush=True)


def _quantiles(name: str, seconds: list[float]) -> list[Result]:
    milliseconds = 1e3 * np.array(seconds)
    return [
        *(Result(f"{name}_p{q}_ms", float(np.percentile(milliseconds, q)), "ms") for q in (50, 99)),
        Result(f"{name}_max_ms", float(milliseconds.max()), "ms"),
        Result(f"{name}_samples", float(len(seconds)), "1"),
    ]


def _quantiles_told(seconds: list[float]) -> str:
    return ", ".join(f"{one.name.removeprefix('_')} {one.value:.0f}" for one in _quantiles("", seconds))


def measure_kill(stage: Stage) -> list[Result]:
    """Kill the process of one shard under load; count what failed and what was partial, and time its return."""
    rate = stage.plan.share_under_ingest * stage.capacity
    victim = next(one for one in stage.shards() if one["pid"])
    killed_at: list[float] = []

    def kill() -> None:
        killed_at.append(time.monotonic())
        os.kill(int(victim["pid"]), signal.SIGKILL)

    timer = threading.Timer(stage.plan.warm_s + _KILL_AFTER_S, kill)
    print(f"{rate:.0f}/s; shard {victim['shard']} (process {victim['pid']}) is killed meanwhile", flush=True)
    timer.start()
    try:
        report = stage.open(rate, _KILL_S)
    finally:
        timer.cancel()
    print(f"a shard killed: {told_of(report)}", flush=True)
    if not killed_at:
        raise RuntimeError("the load was over before the shard was killed")
    back_s = _back_after(stage, int(victim["shard"]), int(victim["pid"]), killed_at[0])
    print(f"the shard is ready again {back_s:.1f} s after its end, as the status says", flush=True)
    disturbed_s = 0.0
    if report.disturbed_from_s is not None and report.disturbed_until_s is not None:
        disturbed_s = report.disturbed_until_s - report.disturbed_from_s
    return [
        Result("kill_failed_requests", float(report.failed), "1"),
        *(Result(f"kill_failed_{why.replace(' ', '_')}", float(n), "1") for why, n in sorted(report.failures.items())),
        Result("kill_partial_answers", float(report.partial), "1"),
        Result("kill_requests", float(report.requests + report.failed), "1"),
        Result("kill_p99_ms", report.p99_ms, "ms"),
        Result("kill_max_ms", report.max_ms, "ms"),
        Result("kill_not_whole_s", disturbed_s, "s"),
        Result("kill_shard_ready_again_s", back_s, "s"),
    ]


def _back_after(stage: Stage, shard: int, pid: int, killed_at: float) -> float:
    """Seconds from the kill until another process of the shard is ready."""
    while time.monotonic() < killed_at + _BACK_WITHIN_S:
        try:
            now = stage.shards()[shard]
        except Unavailable:
            now = {"state": "unavailable", "pid": None}
        if now["state"] == "ready" and now["pid"] not in {None, pid}:
            return time.monotonic() - killed_at
        time.sleep(0.2)
    raise TimeIsUp(f"shard {shard} is not back {_BACK_WITHIN_S:.0f} s after it was killed")
