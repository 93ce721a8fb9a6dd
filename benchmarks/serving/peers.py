"""The same searches against servers of others, over their own APIs, at equal recall."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.index.datasets import Dataset
from benchmarks.index.truth import recall
from benchmarks.index.tuning import smallest_effort
from benchmarks.load import LoadReport
from benchmarks.result_file import Result
from benchmarks.serving.asking import K
from benchmarks.serving.chroma_peer import ChromaPeer
from benchmarks.serving.milvus_peer import MilvusPeer
from benchmarks.serving.outcome import load_results
from benchmarks.serving.peer import Peer, PeerFailed
from benchmarks.serving.stage import RECALL, Plan, told_of
from benchmarks.serving.under_load import best_qps

PEERS: Final[tuple[Callable[[Path], Peer], ...]] = (ChromaPeer, MilvusPeer)
_EF_MAX = 1000
# A server that has p99 above the bound at the system's connections may keep it with fewer.
_FEW_CONNECTIONS = (1, 4)
_RATES = (0.8, 0.9, 1.0)


def measure_peers(dataset: Dataset, plan: Plan) -> tuple[list[Result], dict[str, Any]]:
    """One server after another; one that cannot be had, or fails, is listed with its reason."""
    results: list[Result] = []
    notes: dict[str, Any] = {}
    for make in PEERS:
        with tempfile.TemporaryDirectory(prefix="rl-bench-") as folder:
            peer = make(Path(folder))
            try:
                found = _measure(peer, dataset, plan)
                notes[peer.name] = peer.versions()
            except PeerFailed as error:
                print(f"{peer.name} failed: {error}", flush=True)
                notes[peer.name] = f"failed: {error}"
            else:
                results += found
            finally:
                peer.stop()
    return results, {"peers": notes}


def _measure(peer: Peer, dataset: Dataset, plan: Plan) -> list[Result]:
    name = peer.name.replace("-", "_")
    print(f"{peer.name}: {peer.versions()}", flush=True)
    peer.start()
    began = time.monotonic()
    peer.load(dataset, began + plan.peer_load_limit_s)
    load_s = time.monotonic() - began
    print(f"{peer.name}: loaded in {load_s:.0f} s", flush=True)

    def found(effort: int) -> float:
        value = recall(peer.answers(effort), dataset.neighbours, K)
        print(f"  ef {effort}: recall@{K} {value:.4f}", flush=True)
        return value

    tuned = smallest_effort(found, RECALL, K, _EF_MAX)
    if not tuned.reached:
        raise PeerFailed(f"recall@{K} is {tuned.recall:.4f} at ef {tuned.effort}, the largest that was tried")
    reports: list[LoadReport] = []
    results: list[Result] = []
    for connections in (*_FEW_CONNECTIONS, *plan.connections):
        report = peer.search(tuned.effort, connections, plan.round_s + plan.warm_s, warm_s=plan.warm_s)
        print(f"{peer.name}, {connections} connections: {told_of(report)}", flush=True)
        results += load_results(f"{name}_closed_{connections}", report)
        reports.append(report)
    if isinstance(peer, ChromaPeer):
        capacity = max(report.qps for report in reports)
        reports += [_open(peer, tuned.effort, share * capacity, plan) for share in _RATES]
    return [
        Result(f"{name}_peer_qps_at_p99_100ms", best_qps(reports), "1/s"),
        Result(f"{name}_recall_at_10", tuned.recall, "1"),
        Result(f"{name}_ef_search", float(tuned.effort), "1"),
        Result(f"{name}_load_s", load_s, "s"),
        *results,
    ]


def _open(peer: Peer, effort: int, rate: float, plan: Plan) -> LoadReport:
    seconds = plan.round_s + plan.warm_s
    report = peer.search(effort, plan.open_connections, seconds, warm_s=plan.warm_s, rate=rate)
    print(f"{peer.name}, open loop at {rate:.0f}/s: {told_of(report)}", flush=True)
    return report
