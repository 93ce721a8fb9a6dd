"""The parts of the index benchmark that are no measurement."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.index import __main__ as command
from benchmarks.index.datasets import divided, names, save, synthetic
from benchmarks.index.engine_system import EngineSystem
from benchmarks.index.faiss_system import FaissSystem
from benchmarks.index.figures import headline, ratio_of_rounds, ratios, system_figures
from benchmarks.index.measuring import K, Measuring, RowFile
from benchmarks.index.pacing import Pacer, Turns
from benchmarks.index.resources import disk_bytes, family
from benchmarks.index.run import Measured, Plan
from benchmarks.index.systems import SPECS, Options, System, Unsupported, spec
from benchmarks.index.table import TARGETS, render
from benchmarks.index.truth import exact_neighbours, percentile_ms, recall
from benchmarks.index.tuning import Tuned, smallest_effort

ROOT = Path(__file__).parent.parent.parent


def test_neighbours_are_the_exact_ones_with_all_their_ties() -> None:
    points = np.array([[1, 0], [0.9, 0], [0.9 - 5e-7, 0], [0.5, 0], [0.9 - 1e-4, 0]], dtype=np.float32)
    found = exact_neighbours(points, np.array([[1, 0]], dtype=np.float32), 2)
    assert sorted(found[0].tolist()) == [0, 1, 2]


def test_queries_with_fewer_ties_are_filled_up_with_no_row() -> None:
    points = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)
    found = exact_neighbours(points, np.eye(2, dtype=np.float32), 1)
    assert [sorted(row) for row in found.tolist()] == [[0, 2], [-1, 1]]


def test_neighbours_are_found_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.index.truth._CHUNK", 7)
    rows = synthetic(60, 3, dimension=16)
    scores = rows[:5] @ rows[5:].T
    found = exact_neighbours(rows[5:], rows[:5], 4)
    assert [set(row) - {-1} for row in found.tolist()] == [set(row) for row in np.argsort(-scores)[:, :4].tolist()]


def test_a_tie_counts_as_a_hit_but_never_more_than_k() -> None:
    neighbours = np.array([[0, 1, 2]])
    assert recall([["1", "2"]], neighbours, 2) == 1.0
    assert recall([["1", "9"]], neighbours, 2) == 0.5
    assert recall([["0", "1", "2"]], neighbours, 2) == 1.0
    assert recall([["1", "1"]], neighbours, 2) == 0.5
    assert recall([["9", "8", "1"]], neighbours, 2) == 0.0
    assert recall([[]], np.array([[5, -1]]), 2) == 0.0


def test_percentiles_are_milliseconds() -> None:
    assert percentile_ms([0.001, 0.002, 0.003], 50) == pytest.approx(2.0)
    assert np.isnan(percentile_ms([], 99))


@pytest.mark.parametrize("needed", [10, 11, 12, 57, 400, 999, 1000])
def test_bisection_finds_the_smallest_effort_within_its_resolution(needed: int) -> None:
    tried: list[int] = []

    def measure(effort: int) -> float:
        tried.append(effort)
        return 0.95 if effort >= needed else 0.5

    tuned = smallest_effort(measure, 0.95, 10, 1000)
    assert tuned.reached
    assert needed <= tuned.effort <= needed + max(1, needed * 0.03)
    assert len(tried) == len(set(tried)) <= 16


def test_bisection_says_when_the_target_is_out_of_reach() -> None:
    assert smallest_effort(lambda effort: effort / 10_000, 0.95, 10, 100) == Tuned(100, 0.01, False)


class _Clock:
    """Time passes only by sleeping, or when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_pacer_keeps_its_rate() -> None:
    clock = _Clock()
    pacer = Pacer(64, 64, clock, clock.sleep)
    times = []
    for _ in range(4):
        pacer.wait(32)
        times.append(clock.now)
    assert times == pytest.approx([100.0, 100.5, 101.0, 101.5])


def test_a_pacer_catches_up_with_no_more_than_its_burst() -> None:
    clock = _Clock()
    pacer = Pacer(64, 64, clock, clock.sleep)
    pacer.wait(32)
    clock.now += 60
    times = []
    for _ in range(4):
        pacer.wait(32)
        times.append(clock.now - 160)
    assert times == pytest.approx([0.0, 0.0, 0.0, 0.5])


def test_turns_let_one_in_at_a_time() -> None:
    turns, inside, most = Turns(), [0], [0]

    def work() -> None:
        for _ in range(200):
            with turns:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_synthetic_vectors_are_the_same_for_the_same_seed_and_of_low_dimension() -> None:
    rows = synthetic(500, 1)
    assert rows.shape == (500, 512)
    assert rows.dtype == np.float32
    assert np.array_equal(rows, synthetic(500, 1))
    assert not np.array_equal(rows, synthetic(500, 2))
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    energy = np.linalg.svd(rows, compute_uv=False) ** 2
    assert energy[:64].sum() / energy.sum() > 0.85


def test_clustered_vectors_lie_together() -> None:
    rows = synthetic(400, 1, clusters=4)
    nearest = np.sort(rows @ rows.T, axis=1)[:, -60]
    loose = synthetic(400, 1)
    assert nearest.mean() > np.sort(loose @ loose.T, axis=1)[:, -60].mean() + 0.2


def test_the_parts_of_a_data_set_share_no_vector() -> None:
    rows = synthetic(400, 1, dimension=32)
    dataset = divided("some", rows)
    assert len(dataset.queries) == 100
    assert len(dataset.arriving) == 50
    assert len(dataset.points) == 250
    assert np.array_equal(np.concatenate([dataset.queries, dataset.points, dataset.arriving]), rows)
    assert dataset.sha256 == divided("other", rows.copy()).sha256
    assert dataset.sha256 != divided("some", rows[::-1]).sha256


def test_a_row_file_is_read_in_pieces(tmp_path: Path) -> None:
    rows = synthetic(10, 1, dimension=8)
    np.save(tmp_path / "rows.npy", rows)
    file = RowFile(tmp_path / "rows.npy")
    assert len(file) == 10
    assert np.array_equal(file.rows(3, 6), rows[3:6])
    assert np.array_equal(file.rows(8, 99), rows[8:])


def test_disk_bytes_count_a_file_of_two_names_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    once = disk_bytes(tmp_path)
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    assert disk_bytes(tmp_path) == once >= 100_000


def test_init_is_everybodys_ancestor() -> None:
    assert len(family(1)) >= 1


def options(folder: Path, variant: str, *, existing: bool = False) -> Options:
    """A small index of 32 dimensions."""
    return Options(str(folder), variant, 32, 600, 8, 40, 1, existing)


@pytest.mark.parametrize("make", [FaissSystem, EngineSystem])
def test_a_system_is_loaded_tuned_searched_beside_inserts_and_opened_again(
    tmp_path: Path, make: Callable[[Options], System]
) -> None:
    dataset = divided("small", synthetic(650, 2, dimension=32))
    save(dataset, tmp_path)
    folder = tmp_path / "system"
    folder.mkdir()
    system = make(options(folder, "none"))
    measuring = Measuring(system, tmp_path)
    assert measuring.load(60.0)["points"] == len(dataset.points)
    tuned = measuring.tune(0.95)
    assert tuned["recall"] >= 0.95
    assert measuring.recall()["recall"] == pytest.approx(tuned["recall"], abs=0.02)
    for batch in (1, 32):
        searched = measuring.search(batch, 0.02)
        assert searched["qps"] > 0
        assert searched["latencies_s"]
    busy = measuring.ingest(2000, 0.05, look_up=True)
    assert busy["inserted"] == 64
    assert busy["missed"] == 0
    assert len(busy["searchable_s"]) == 1
    with pytest.raises(RuntimeError, match="no point is left"):
        measuring.ingest(2000, 0.05, look_up=False)
    system.finish()
    system.close()
    again = Measuring(make(options(folder, "none", existing=True)), tmp_path)
    again.system.set_effort(int(tuned["effort"]))
    assert sum(map(again.answers_rightly, range(50))) >= 48
    again.system.close()


def test_loading_ends_at_its_limit(tmp_path: Path) -> None:
    dataset = divided("small", synthetic(200, 2, dimension=32))
    save(dataset, tmp_path)
    with pytest.raises(TimeoutError, match="64 of 125 points"):
        Measuring(FaissSystem(options(tmp_path, "none")), tmp_path).load(0.0)


def test_the_engine_deletes_and_raw_faiss_says_that_it_cannot(tmp_path: Path) -> None:
    rows = synthetic(20, 2, dimension=32)
    engine = EngineSystem(options(tmp_path / "engine", "none"))
    engine.insert(engine.encode([str(i) for i in range(20)], rows))
    engine.delete(["7"])
    assert engine.search(rows[7:8], 20)[0].count("7") == 0
    engine.close()
    with pytest.raises(Unsupported):
        FaissSystem(options(tmp_path, "none")).delete(["7"])


def measured(name: str, qps: list[float], *, inserts: float = 1000.0, p99_s: float = 0.001) -> Measured:
    """A system that was measured whole."""
    busy = {
        "qps": qps[0] / 2,
        "latencies_s": [p99_s * 2] * 100,
        "inserted_per_s": inserts / 2,
        "inserted": 64,
        "searchable_s": [0.004],
        "missed": 0,
    }
    return Measured(
        spec(name),
        versions=f"{name} 1.0",
        load={"points": 1000, "inserts_per_s": inserts, "finish_s": 0.0, "cpu_ms_per_point": 0.1},
        tuned={"effort": 64, "recall": 0.951, "reached": 1.0},
        qps={1: [rate / 2 for rate in qps], 32: qps},
        latencies_s={1: [p99_s] * 100, 32: [p99_s] * 100},
        cpu_share=[1.0],
        empty={"resident": 1000, "anonymous": 500},
        full={"resident": 801_000, "anonymous": 700_500},
        idle=[p99_s] * 100,
        ingest=busy,
        look_up=busy,
        disk_bytes=2_000_000,
        restart_s=0.5,
    )


def test_a_ratio_is_the_median_of_those_of_rounds() -> None:
    assert ratio_of_rounds([10, 5, 8], [10, 10, 10]) == pytest.approx(0.8)


def test_the_engine_is_compared_with_the_limit_of_its_quantization_and_with_the_best_peer() -> None:
    found = ratios(
        [
            measured("engine_none", [900, 900], inserts=800),
            measured("faiss_none", [1000, 1000]),
            measured("engine_sq8", [3000, 3000]),
            measured("faiss_sq8", [4000, 4000]),
            measured("hnswlib", [450, 450]),
            measured("chromadb", [100, 100]),
        ],
        "none",
    )
    assert found["engine_search_ratio"] == pytest.approx(0.9)
    assert found["engine_search_ratio_single"] == pytest.approx(0.9)
    assert found["engine_search_ratio_sq8"] == pytest.approx(0.75)
    assert found["engine_insert_ratio"] == pytest.approx(0.8)
    assert found["search_vs_best_peer"] == pytest.approx(2.0)
    assert found["search_vs_best_store"] == pytest.approx(9.0)
    assert found["search_p99_under_ingest_ratio"] == pytest.approx(2.0)
    assert found["insert_to_searchable_p99_ms"] == pytest.approx(4.0)
    assert found["bytes_per_point_sq8"] == pytest.approx(800.0)


def test_a_peer_below_the_recall_and_a_failed_one_do_not_count_as_best() -> None:
    below, failed = measured("usearch_i8", [9000, 9000]), Measured(spec("hnswlib"), failure="load: it broke")
    below.tuned["reached"] = 0.0
    found = ratios([measured("engine_none", [900, 900]), below, failed], "none")
    assert not [name for name in found if name.startswith("search_vs")]
    assert system_figures(failed, "some") == []


def test_over_several_data_sets_the_worst_value_stands_and_bytes_are_of_the_largest() -> None:
    small = {"engine_search_ratio": 0.8, "search_p99_under_ingest_ratio": 1.2, "bytes_per_point_sq8": 2000.0}
    large = {"engine_search_ratio": 0.9, "search_p99_under_ingest_ratio": 1.4, "bytes_per_point_sq8": 800.0}
    values = {result.name: result.value for result in headline([("a", 10, small), ("b", 100, large)])}
    assert values["engine_search_ratio"] == 0.8
    assert values["search_p99_under_ingest_ratio"] == 1.4
    assert values["bytes_per_point_sq8"] == 800.0
    assert values["engine_search_ratio_b"] == 0.9


def test_the_page_shows_targets_systems_and_failures() -> None:
    whole = measured("hnswlib", [450, 450])
    results = [*headline([("some", 1000, {"engine_search_ratio": 0.8, "bytes_per_point_sq8": 812.0})])]
    results += system_figures(whole, "some")
    systems = [
        {"name": "hnswlib", "versions": "hnswlib 1", "quantization": "f32", "durable": "no", "failure": None},
        {"name": "lancedb", "versions": "", "quantization": "sq8", "durable": "yes", "failure": "load: a|b\nc"},
    ]
    page = render(
        {
            "commit": "abc",
            "hardware": "one core",
            "seed": 1,
            "started_at": "today",
            "results": [result._asdict() for result in results],
            "method": command.method(Plan()),
            "datasets": [{"name": "some", "points": 1000, "dimension": 512, "systems": systems}],
        }
    )
    assert "| `engine_search_ratio` | 0.800 | ≥ 0.9 | **no** |" in page
    assert "| `bytes_per_point_sq8` | 812 | ≤ 900 | yes |" in page
    assert "| hnswlib | 0.951 | 64 | 1,000 | 0.100 |" in page
    assert "- **lancedb** failed: load: a\\|b c" in page
    widths = {line.count("|") for line in page.splitlines() if line.startswith(("| hnswlib | 0", "| lancedb | –"))}
    assert len(widths) == 1


def test_every_peer_stands_with_its_version_in_the_list_of_packages() -> None:
    lines = (ROOT / "benchmarks" / "index" / "peers.txt").read_text().splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in packages if not re.match(r"[A-Za-z0-9_.-]+==\S+( +# .+)?$", line)] == []
    named = {one.partition("==")[0].replace("-", "_").removesuffix("_py") for one in packages}
    used = {package.partition(".")[0] for one in SPECS for package in one.packages}
    assert used - named == set()


def test_targets_are_figures_that_are_measured() -> None:
    found = ratios([measured("engine_sq8", [9, 9]), measured("faiss_sq8", [9, 9]), measured("hnswlib", [9, 9])], "sq8")
    assert set(TARGETS) - set(found) == {"recall_after_churn_ratio"}
    assert {"shobdo", "synthetic"} <= set(names())
    assert K == 10
