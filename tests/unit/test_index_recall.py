"""Small runs of the churn and filter benchmarks, with their floors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actors.index import searching
from actors.index.growing import Numbers
from benchmarks.index import churn, filters
from benchmarks.index.datasets import synthetic
from contract.events import Quantization

DIMENSION = 32
ROWS = synthetic(4900, 1, dimension=DIMENSION)
QUERIES, POINTS = ROWS[:100], ROWS[100:]


def test_a_runbook_replaces_most_of_the_points_and_keeps_their_number() -> None:
    rows = churn.arrival(POINTS, "clustered", 0)
    assert sorted(rows.tolist()) == list(range(4800))
    living: set[int] = set()
    come, gone = 0, 0
    for step in churn.runbook(rows, "clustered", 0):
        assert set(step.delete.tolist()) <= living
        living -= set(step.delete.tolist())
        assert set(step.upsert) <= living
        living |= set(step.insert.tolist())
        come += len(step.insert) + len(step.upsert)
        gone += len(step.delete) + len(step.upsert)
        assert len(living) == 3000
    assert (come, gone) == (4800, 1800)


def test_a_clustered_arrival_brings_near_points_together() -> None:
    def nearness(order: churn.Order) -> float:
        rows = POINTS[churn.arrival(POINTS, order, 0)]
        return float(np.mean(np.einsum("ij,ij->i", rows[1:], rows[:-1])))

    assert nearness("clustered") > nearness("random") + 0.1


@pytest.mark.parametrize("quantization", ["none", "sq8"])
def test_recall_after_churn_is_that_of_a_fresh_engine(
    tmp_path: Path, quantization: Quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So few points would be compared one by one otherwise.
    monkeypatch.setattr(searching, "_WALK_COST", 0)
    monkeypatch.setattr(searching, "_FEW", 0)
    result = churn.run(POINTS, QUERIES, 0, tmp_path, quantization=quantization)
    assert {one.order for one in result.orders} == {"random", "clustered"}
    for one in result.orders:
        assert len(one.steps) == 13
        assert one.steps[-1].dead_share > 0.05, "no rebuild has just made it a fresh one"
    assert min(one.fresh_recall for one in result.orders) >= 0.9
    assert float(result) >= 0.99


@pytest.mark.parametrize("quantization", ["none", "sq8"])
@pytest.mark.parametrize("walk_cost", [0, searching._WALK_COST])
def test_filtered_searches_return_all_hits_they_may_and_the_best(
    tmp_path: Path, quantization: Quantization, walk_cost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: tuple[float, ...] = filters.SHARES
    if not walk_cost:
        # So few points would be compared one by one otherwise.
        shares = shares[:2]
        monkeypatch.setattr(searching, "_FEW", 0)
    monkeypatch.setattr(searching, "_WALK_COST", walk_cost)
    found = filters.measure(POINTS, QUERIES, 0, tmp_path, quantization=quantization, shares=shares)
    counts = [2400, 480, 48, 5][: len(shares)]
    assert [(one.kind, one.matching) for one in found[1 : 1 + len(shares)]] == [("random", count) for count in counts]
    for one in found:
        assert one.complete == 1.0, one
        assert one.recall >= 0.95, one
    assert filters.table(found).count("\n") == 2 + 2 * len(shares)


def test_members_of_a_set_are_the_same_by_a_table_and_by_looking_for_each() -> None:
    random = np.random.default_rng(0)

    def ascending() -> Numbers:
        return np.unique(random.integers(0, random.choice([5, 50, 5000, 2**32]), random.integers(0, 60))).astype(
            np.uint32
        )

    for _ in range(1000):
        numbers, wanted = ascending(), ascending()
        assert np.array_equal(searching._members(numbers, wanted), np.isin(numbers, wanted))
