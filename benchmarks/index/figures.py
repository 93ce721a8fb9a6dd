"""From what was measured to the figures of the result file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from benchmarks.index.run import Measured
from benchmarks.index.truth import percentile_ms
from benchmarks.result_file import Result

# The fan-out brings queries in batches, so that is how a shard is compared.
_BATCH = 32


def system_figures(one: Measured, dataset: str) -> list[Result]:
    """All that is known of one system, named SYSTEM_DATASET_metric; of one that failed, what it came to."""
    found: list[tuple[str, float, str]] = []
    if one.tuned:
        found += [
            ("inserts_per_s", one.load["inserts_per_s"], "1/s"),
            ("insert_cpu_ms_per_point", one.load["cpu_ms_per_point"], "ms"),
            ("recall_at_10", one.tuned["recall"], "1"),
            ("effort", one.tuned["effort"], "1"),
        ]
    if one.qps[_BATCH]:
        found += [
            ("search_qps", median(one.qps[1]), "1/s"),
            ("search_p50_ms", percentile_ms(one.latencies_s[1], 50), "ms"),
            ("search_p99_ms", percentile_ms(one.latencies_s[1], 99), "ms"),
            ("search_batch32_qps", median(one.qps[_BATCH]), "1/s"),
            ("search_cpu_share", median(one.cpu_share), "1"),
        ]
    if one.full:
        points = one.load["points"]
        found += [
            ("resident_bytes_per_point", (one.full["resident"] - one.empty["resident"]) / points, "bytes"),
            ("anonymous_bytes_per_point", (one.full["anonymous"] - one.empty["anonymous"]) / points, "bytes"),
        ]
    if one.look_up:
        found += [
            ("idle_p99_ms", percentile_ms(one.idle, 99), "ms"),
            ("under_ingest_qps", one.ingest["qps"], "1/s"),
            ("under_ingest_p50_ms", percentile_ms(one.ingest["latencies_s"], 50), "ms"),
            ("under_ingest_p99_ms", percentile_ms(one.ingest["latencies_s"], 99), "ms"),
            ("under_ingest_inserts_per_s", one.ingest["inserted_per_s"], "1/s"),
            ("insert_to_searchable_missed", one.look_up["missed"], "1"),
        ]
        if one.look_up["searchable_s"]:
            found.append(("insert_to_searchable_p99_ms", percentile_ms(one.look_up["searchable_s"], 99), "ms"))
    if one.disk_bytes:
        points = one.load["points"] + one.ingest["inserted"] + one.look_up["inserted"]
        found.append(("disk_bytes_per_point", one.disk_bytes / points, "bytes"))
    if one.restart_s:
        found.append(("restart_s", one.restart_s, "s"))
    return [Result(f"{one.spec.name}_{dataset}_{name}", round(value, 6), unit) for name, value, unit in found]


def ratio_of_rounds(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios of rounds, which the two went through in turns."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def ratios(measured: Sequence[Measured], default: str) -> dict[str, float]:
    """Ratios within one data set; one whose sides are not there is missing.

    Names without a quantization are of the engine's default. `search_vs_best_peer` is the lower one of
    idle and while inserting; a peer counts if it reached the recall.

    Args:
        measured: all systems on one data set.
        default: the engine's default quantization.
    """
    systems = {one.spec.name: one for one in measured}
    found: dict[str, float] = {}
    for one in measured:
        if one.spec.kind != "engine":
            continue
        suffix = f"_{one.spec.variant}"
        limit = systems.get(f"faiss_{one.spec.variant}")
        found |= {f"{name}{suffix}": value for name, value in _against_limit(one, limit).items()}
        if one.look_up:
            under = percentile_ms(one.ingest["latencies_s"], 99)
            found[f"search_p99_under_ingest_ratio{suffix}"] = under / percentile_ms(one.idle, 99)
            found[f"insert_to_searchable_p99_ms{suffix}"] = percentile_ms(one.look_up["searchable_s"], 99)
        if one.full:
            grown = one.full["resident"] - one.empty["resident"]
            found[f"bytes_per_point{suffix}"] = grown / one.load["points"]
        peers = [peer for peer in measured if peer.spec.kind == "peer"]
        stores = [peer for peer in peers if peer.spec.durable != "no"]
        found |= {f"search_vs_best_peer{name}{suffix}": value for name, value in _against_peers(one, peers).items()}
        found |= {f"search_vs_best_store{name}{suffix}": value for name, value in _against_peers(one, stores).items()}
    for name, value in list(found.items()):
        if name.endswith(f"_{default}") and not name.startswith("bytes"):
            found[name.removesuffix(f"_{default}")] = value
    return found


def _against_limit(one: Measured, limit: Measured | None) -> dict[str, float]:
    found: dict[str, float] = {}
    if limit is None:
        return found
    if one.load and limit.load:
        found["engine_insert_ratio"] = one.load["inserts_per_s"] / limit.load["inserts_per_s"]
    if _searched(one) and _searched(limit):
        found["engine_search_ratio"] = ratio_of_rounds(one.qps[_BATCH], limit.qps[_BATCH])
        found["engine_search_ratio_single"] = ratio_of_rounds(one.qps[1], limit.qps[1])
    return found


def _against_peers(one: Measured, peers: Sequence[Measured]) -> dict[str, float]:
    """Against the peer that leaves the least."""
    found: dict[str, float] = {}
    if not _searched(one):
        return found
    idle = [peer for peer in peers if _searched(peer)]
    if idle:
        found["_idle"] = min(ratio_of_rounds(one.qps[_BATCH], peer.qps[_BATCH]) for peer in idle)
        found["_idle_single"] = min(ratio_of_rounds(one.qps[1], peer.qps[1]) for peer in idle)
    busy = [peer for peer in idle if peer.look_up]
    if busy and one.look_up:
        found["_while_inserting"] = min(one.ingest["qps"] / peer.ingest["qps"] for peer in busy)
        found[""] = min(found["_idle"], found["_while_inserting"])
    return found


def _searched(one: Measured) -> bool:
    """Whether it was searched in all rounds, at the recall that was asked for."""
    return bool(one.full) and bool(one.tuned["reached"])


# Which of the values of several data sets stands for all: the worse one, in each case.
_WORST: dict[str, Callable[[Sequence[float]], float]] = {
    "search_p99_under_ingest_ratio": max,
    "insert_to_searchable_p99_ms": max,
}


def headline(by_dataset: Sequence[tuple[str, int, dict[str, float]]]) -> list[Result]:
    """Ratios over all data sets: the worst of each, then each data set's own as NAME_DATASET.

    Bytes per point are of the data set with the most points, because a part of them is fixed.

    Args:
        by_dataset: name, number of points and ratios of each data set.
    """
    names = list(dict.fromkeys(name for _, _, found in by_dataset for name in found))
    results = []
    for name in names:
        having = [(points, found[name]) for _, points, found in by_dataset if name in found]
        worst = next((pick for prefix, pick in _WORST.items() if name.startswith(prefix)), min)
        value = max(having)[1] if name.startswith("bytes") else worst([value for _, value in having])
        results.append(Result(name, round(value, 4), _unit(name)))
    if len(by_dataset) > 1:
        for dataset, _, found in by_dataset:
            results += [Result(f"{name}_{dataset}", round(value, 4), _unit(name)) for name, value in found.items()]
    return results


def _unit(name: str) -> str:
    return "bytes" if name.startswith("bytes") else "ms" if "_ms" in name else "1"
