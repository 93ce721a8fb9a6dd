"""The short fixed selection of `make chaos`, on a system of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.faults import faults
from tests.chaos.run import run_chaos
from tests.chaos.target import Target
from tests.integration.system import RunningSystem, kafka_can_run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.mark.skipif(not kafka_can_run(), reason="Apache Kafka needs Java 17 and Maven")
def test_nothing_acknowledged_is_lost_while_parts_are_killed(
    fresh_system: Callable[..., RunningSystem], tmp_path: Path
) -> None:
    running = fresh_system("chaos", "kafka", RIVERLENS_LOG_FORMAT="json")
    running.start()
    selection = [faults()[name] for name in ("kill-ingest", "kill-shard")]
    verdict = run_chaos(Target(running), selection, tmp_path / "history.jsonl", seed=1, calm_s=2.0)
    assert verdict.problems == []
    assert len(verdict.results) == len(selection)
    assert verdict.counts["writes acknowledged"] > 20
    assert verdict.counts["searches whole"] > 20
