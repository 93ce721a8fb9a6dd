"""A real Prometheus scrapes the running system: the dashboards have data and the alerts are as they should be."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from contract import telemetry
from infra.monitoring.__main__ import FOLDER, generated
from infra.monitoring.promql import API_JOB, INGEST_JOB
from tests.integration.pictures import new_picture
from tests.integration.prometheus import Prometheus, tool
from tests.integration.system import RunningSystem, eventually, free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
# What a healthy system of one replica with a handful of pictures has nothing to say of.
MAY_BE_EMPTY = {
    "Dead letters in an hour",
    "Dead letters",
    "Answers that failed",
    "Degraded answers",
    "Shard calls that did not answer",
    "Recall@10",
    "Age of the newest snapshot",
    "Time until they are searchable",
}


def expressions() -> dict[tuple[str, str, int], list[str]]:
    """By dashboard, title and id of every panel: its expressions as Grafana would ask them, for all collections."""
    found = {}
    for path, text in generated().items():
        for panel in json.loads(text)["panels"] if path.suffix == ".json" else []:
            asked = [target["expr"] for target in panel.get("targets", [])]
            found[path.stem, panel["title"], panel["id"]] = [
                one.replace("$__rate_interval", "1m").replace("$collection", ".*") for one in asked
            ]
    return {panel: asked for panel, asked in found.items() if asked}


@pytest.fixture(scope="module")
def prometheus(system: RunningSystem, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scrapes the system and, as if it were one more ingest process, an address where nobody is."""
    nobody = f"127.0.0.1:{free_port()}"
    running = Prometheus(tmp_path_factory.mktemp("prometheus"), system, riverlens_ingest=nobody)
    try:
        running.start()
        yield running
    finally:
        running.end()


def test_targets_are_up_and_an_upload_and_a_search_are_seen(system: RunningSystem, prometheus: Prometheus) -> None:
    api, ingest = f"127.0.0.1:{system.port}", f"127.0.0.1:{system.ingest_metrics_port}"

    def are_up() -> bool:
        found = prometheus.targets()
        return found.get(API_JOB) == {api: "up"} and found.get(INGEST_JOB, {}).get(ingest) == "up"

    eventually(are_up)

    def seen(expression: str) -> float:
        return sum(float(sample["value"][1]) for sample in prometheus.query(expression))

    searchable = f"{telemetry.UPLOAD_TO_SEARCHABLE_SECONDS.name}_count"
    before = eventually(lambda: seen(telemetry.POINTS.name) + 1)
    uploads, searches, delays = (seen(name) for name in (telemetry.UPLOADS.name, telemetry.SEARCHES.name, searchable))
    assert system.upload(new_picture(8800), id="monitored").is_success
    for _ in range(2):
        system.search(text="a monitored picture")
    eventually(lambda: seen(telemetry.POINTS.name) == before)
    eventually(lambda: seen(telemetry.SEARCHES.name) >= searches + 2)
    assert seen(telemetry.UPLOADS.name) == uploads + 1
    assert seen(searchable) == delays + 1
    eventually(lambda: seen(telemetry.EVENTS.name) >= 1)
    replicas = prometheus.query(telemetry.SHARD_MEMORY.name)
    assert len(replicas) == seen(telemetry.SHARDS_TOTAL.name)
    assert all(20e6 < float(one["value"][1]) < 20e9 for one in replicas), "resident bytes of real processes"


def test_every_panel_has_data(system: RunningSystem, prometheus: Prometheus) -> None:
    """Every query of every dashboard is one that Prometheus understands; nearly every panel shows something."""
    assert system.upload(new_picture(8801), id="shown").is_success
    for _ in range(2):
        system.search(text="a shown picture")

    def empty() -> set[tuple[str, str, int]]:
        shown = {panel: [prometheus.query(one) for one in asked] for panel, asked in expressions().items()}
        return {panel for panel, found in shown.items() if not any(found) and panel[1] not in MAY_BE_EMPTY}

    last: set[tuple[str, str, int]] = set()

    def all_shown() -> bool:
        nonlocal last
        last = empty()
        return not last

    try:
        eventually(all_shown, 60, 1.0)
    except AssertionError as error:
        raise AssertionError(f"panels without data: {sorted(last)}") from error


def test_the_rules_are_loaded_and_say_what_is_so(prometheus: Prometheus) -> None:
    def state() -> dict[str, str]:
        return {rule["name"]: rule["state"] for rule in prometheus.rules() if rule["type"] == "alerting"}

    # The address where nobody is.
    eventually(lambda: state()["IngestIsDown"] in ("pending", "firing"))
    rules = prometheus.rules()
    assert {rule["name"]: rule["lastError"] for rule in rules if rule.get("lastError")} == {}
    assert {rule["health"] for rule in rules} == {"ok"}
    pending = [alert for rule in rules for alert in rule.get("alerts", []) if rule["name"] == "IngestIsDown"]
    assert [alert["labels"]["severity"] for alert in pending] == ["critical"]
    assert pending[0]["annotations"]["runbook"] == "docs/runbook.md#ingestisdown"
    # Of a healthy system; how quick it is depends on what else the machine does.
    whole = ("ApiIsDown", "ShardIsMissing", "ReplicaIsDown", "EmbedderIsDown", "DiskIsNearlyFull", "IngestStandsStill")
    assert {name: state()[name] for name in whole} == dict.fromkeys(whole, "inactive")


@pytest.mark.parametrize("command", re.findall(r"^promtool .*$", (ROOT / "docs" / "monitoring.md").read_text(), re.M))
def test_the_commands_of_the_page_check_and_test_the_rules(command: str) -> None:
    binary, *arguments = shlex.split(command)
    done = subprocess.run([tool(binary), *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_a_rule_that_is_wrong_fails_its_unit_tests(tmp_path: Path) -> None:
    rules = (FOLDER / "prometheus" / "rules.yml").read_text()
    told = f"max by (collection, shard) ({telemetry.STALENESS_SECONDS.name}) > 60"
    assert told in rules
    (tmp_path / "rules.yml").write_text(rules.replace(told, f"{told}0"))
    tests = yaml.safe_load((FOLDER / "prometheus" / "rules.test.yml").read_text())
    tests["tests"] = [test for test in tests["tests"] if telemetry.STALENESS_SECONDS.name in str(test)]
    (tmp_path / "rules.test.yml").write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        [tool("promtool"), "test", "rules", "rules.test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "SearchesAreStale" in done.stdout + done.stderr
