"""`riverlens plan`: what it prints, what it refuses, and that every figure says where it comes from."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.capacity.page import PAGE, renewed
from contract.errors import InvalidRequest
from serving.cli import app
from serving.planning.choosing import Plan, plan
from serving.planning.quantities import parse_bytes, parse_count, parse_seconds, show
from serving.planning.workload import ASSUMPTIONS, Workload, assumed

HARD_S = 0.03
SMALL = ("plan", "--images", "1M", "--qps", "20")


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "160", "NO_COLOR": "1"})
    assert result.exit_code == 0, result.output
    return result.output


def _json(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_run(*arguments, "--json"))
    return found


@pytest.fixture(scope="module")
def small() -> Plan:
    return plan(Workload(images=1e6, qps=20, p99_s=0.1))


def test_the_page_is_what_the_command_prints() -> None:
    """Also the largest plans: docs/capacity.md cannot say what the command does not."""
    assert renewed(PAGE.read_text()) == PAGE.read_text(), "run python -m benchmarks.capacity.page"


def test_the_page_lists_every_assumption() -> None:
    page = PAGE.read_text()
    assert [name for name in ASSUMPTIONS if f"`{name}`" not in page] == []


def test_every_figure_says_how_it_came_about(small: Plan) -> None:
    for figure in small.figures:
        assert figure.how, figure.name
        assert figure.group, figure.name
    names = [figure.name for figure in small.figures]
    assert len(names) == len(set(names))
    origins = [origin for figure in small.figures for origin in figure.measured]
    assert origins
    assert all("benchmarks/results/" in origin and " @ " in origin for origin in origins)


def test_explain_shows_sources_and_assumptions() -> None:
    output = _run(*SMALL, "--explain")
    assert "benchmarks/results/index.json: engine_sq8_synthetic_resident_bytes_per_point" in " ".join(output.split())
    assert "gpu_images_per_s = 1,500/s" in " ".join(output.split())
    assert "measured" in output
    assert "assumed" in output


def test_the_table_and_the_json_tell_the_same(small: Plan) -> None:
    content = _json(*SMALL)
    assert [one["name"] for one in content["figures"]] == [one.name for one in small.figures]
    assert {one["name"]: one["value"] for one in content["figures"]}["shards per cell"] == 1
    text = _run(*SMALL)
    for figure in small.figures:
        assert figure.name in text
        assert figure.shown in text


def test_a_plan_holds_its_tail(small: Plan) -> None:
    assert 0 < small.value("p99 of a cell") < small.value("p99 with margin") <= 0.1
    assert small.value("replicas") == 2


def test_an_assumption_is_replaced() -> None:
    slow = _json(*SMALL, "--assume", "gpu_images_per_s=150", "--assume", "rows_cached=50%")
    figures = {one["name"]: one for one in slow["figures"]}
    assert figures["GPU hours of a backfill"]["value"] == pytest.approx(1e6 / 150 / 3600)
    assert any("(given)" in origin for origin in figures["embedders of images"]["assumed"])
    assert figures["reads of stored vectors per node"]["value"] > 0
    assert any("read from the disk" in limit["what"] for limit in slow["limits"])


def test_a_shorter_tail_takes_emptier_machines_or_smaller_shards() -> None:
    easy, hard = (plan(Workload(images=2e7, qps=2_000, p99_s=p99_s, ef_search=200)) for p99_s in (0.1, HARD_S))
    assert hard.value("p99 with margin") <= HARD_S < easy.value("p99 with margin")
    assert hard.value("cost a month") > easy.value("cost a month")


def test_cells_are_asked_in_part() -> None:
    made = plan(Workload(images=1e8, qps=100, p99_s=0.2, cells=5, cells_asked=2))
    assert made.value("searches a second per cell") == pytest.approx(40)
    assert made.value("p99") > made.value("p99 of a cell")
    assert {limit.kind for limit in made.limits} >= {"not built", "not measured"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--images", "many"), "write it like 1000, 250k, 100M or 1.5B"),
        (("--p99", "100"), "write it like 100ms"),
        (("--images", "0"), "--images must be at least 1"),
        (("--qps", "0"), "--qps must be above 0"),
        (("--p99", "1ms"), "raise --p99"),
        (("--dim", "3"), "--dim must be between"),
        (("--quantization", "int4"), "none, fp16, sq8, pq, rabitq"),
        (("--assume", "node_memory_bytes=300MB"), "lower --points-per-shard"),
        (("--assume", "node_disk_bytes=100MB"), "assume larger disks"),
        (("--uploads", "1M"), "lower --points-per-shard or --uploads"),
        (("--cells", "2", "--cells-asked", "3"), "leave it out, or raise --cells"),
        (("--assume", "gpu"), "must be NAME=VALUE"),
        (("--assume", "gpus=3"), "there is no such assumption"),
        (("--assume", "node_cores=0"), "it must be above 0"),
        (("--assume", "node_cores=1"), "needs 2 cores at least"),
        (("--assume", "memory_headroom=100%"), "at most 0.9"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_what_to_do(arguments: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(app, [*SMALL, *arguments])
    assert isinstance(result.exception, InvalidRequest)
    assert said in result.exception.detail


def test_quantities_are_read() -> None:
    assert [parse_count(text) for text in ("100M", "1B", "150B", "1_000", "2.5k")] == [1e8, 1e9, 1.5e11, 1000, 2500]
    assert [parse_seconds(text) for text in ("100ms", "0.1s", "30d")] == [0.1, 0.1, 2_592_000]
    assert [parse_bytes(text) for text in ("400kB", "64GiB", "2TB")] == [4e5, 64 * 2**30, 2e12]
    assert assumed({"event_retention_s": "30d"})["event_retention_s"].value == 2_592_000
    assert show(1.5e11, "1") == "150 B"
    assert show(0.0217, "s") == "21.7 ms"
    assert show(5.63e9, "bytes") == "5.63 GB"
    assert show(12_345, "1") == "12,345"
