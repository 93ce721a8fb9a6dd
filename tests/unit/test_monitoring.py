"""Dashboards and alerts are what the metric names say, and whoever is woken finds what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from contract import telemetry
from contract.telemetry import METRICS
from infra.monitoring.__main__ import FOLDER, generated
from infra.monitoring.alerts import rule_file
from infra.monitoring.dashboards import NOT_SHOWN
from infra.monitoring.panels import Limits
from infra.monitoring.promql import SCRAPE_LABELS, select

ROOT = Path(__file__).parents[2]
DASHBOARDS = {path.stem: json.loads(text) for path, text in generated().items() if path.suffix == ".json"}
BY_NAME = {metric.name: metric for metric in METRICS}
RULES = [rule for group in rule_file()["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (panel for panel in dashboard["panels"] if panel["type"] != "row")


def expressions() -> Iterator[str]:
    for dashboard in DASHBOARDS.values():
        yield from (target["expr"] for panel in panels(dashboard) for target in panel["targets"])
    yield from (rule["expr"] for rule in RULES)


def metrics_of(expression: str) -> set[str]:
    """Names of the declared metrics in an expression; fails for any that is none."""
    found = set()
    for series in re.findall(r"\b(?:riverlens|process)_[a-z0-9_]+", expression):
        name = series if series in BY_NAME else re.sub(r"_(bucket|sum|count)$", "", series)
        assert name in BY_NAME, f"{series} is no metric: {expression}"
        assert (series != name) == (BY_NAME[name].kind == "histogram"), expression
        found.add(name)
    return found


def test_what_is_committed_is_what_is_generated() -> None:
    stale = [str(path) for path, text in generated().items() if not path.exists() or path.read_text() != text]
    assert stale == [], "run `make dashboards`"
    committed = {*(FOLDER / "grafana" / "dashboards").glob("*"), FOLDER / "prometheus" / "rules.yml"}
    assert committed == set(generated())


def test_every_metric_is_on_a_dashboard_or_named_with_the_reason() -> None:
    shown = {
        name for d in DASHBOARDS.values() for p in panels(d) for q in p["targets"] for name in metrics_of(q["expr"])
    }
    assert shown | NOT_SHOWN.keys() == set(BY_NAME)
    assert shown & NOT_SHOWN.keys() == set()
    assert all(NOT_SHOWN.values())


def test_expressions_ask_for_metrics_and_labels_that_exist() -> None:
    for expression in expressions():
        names = metrics_of(expression)
        recorded = set(re.findall(r"\briverlens:[a-z0-9_:]+", expression))
        assert recorded <= RECORDED
        assert names or recorded or re.fullmatch(r".*\bup\{.*", expression), expression
        known = {label for name in names for label in BY_NAME[name].labels} | SCRAPE_LABELS
        asked = {
            label for group in re.findall(r"\b(?:by|on) \(([a-z_, ]+)\)", expression) for label in group.split(", ")
        }
        assert asked <= known, expression


def test_a_label_or_part_that_a_metric_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="no label zone"):
        select(telemetry.POINTS, zone="a")
    with pytest.raises(ValueError, match="no series"):
        select(telemetry.POINTS, part="_bucket")
    with pytest.raises(ValueError, match="no series"):
        select(telemetry.SEARCH_STAGE_SECONDS)
    asked = select(telemetry.SHARD_CALLS, window="5m", offset="1d", collection="~a|b", outcome="!late", shard="1")
    assert asked == 'riverlens_shard_calls_total{collection=~"a|b", outcome!="late", shard="1"}[5m] offset 1d'


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_a_dashboard_is_whole(uid: str) -> None:
    dashboard = DASHBOARDS[uid]
    again = Dashboard.from_json(dashboard)
    assert json.loads(json.dumps(again, cls=JSONEncoder)) == dashboard, "the SDK reads what it wrote"
    assert dashboard["uid"] == uid
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "collection"]
    assert {panel["datasource"]["uid"] for panel in panels(dashboard)} == {"${datasource}"}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(titles) >= 15
    for panel in panels(dashboard):
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_panels_lie_side_by_side(uid: str) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARDS[uid]["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for place in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert place not in taken, f"{panel['title']} lies on {taken.get(place)}"
            taken[place] = panel["title"]


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_what_has_a_collection_follows_the_variable(uid: str) -> None:
    for panel in panels(DASHBOARDS[uid]):
        for target in panel["targets"]:
            for name, labels in re.findall(r"\b(riverlens_[a-z0-9_]+)(\{[^}]*\})?", target["expr"]):
                metric = BY_NAME.get(name) or BY_NAME[re.sub(r"_(bucket|sum|count)$", "", name)]
                if "collection" in metric.labels:
                    assert 'collection=~"$collection"' in labels, f"{panel['title']}: {name}"


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        (Limits(1, 2), [(None, "green"), (1, "orange"), (2, "red")]),
        (Limits(None, 2), [(None, "green"), (2, "red")]),
        (Limits(1, None), [(None, "green"), (1, "orange")]),
        (Limits(2, 1, falling=True), [(None, "red"), (1, "orange"), (2, "green")]),
        (Limits(None, 1, falling=True), [(None, "red"), (1, "green")]),
        (Limits(2, None, falling=True), [(None, "orange"), (2, "green")]),
    ],
)
def test_colours_change_where_the_limits_say(limits: Limits, steps: list[tuple[float | None, str]]) -> None:
    assert [(step.value, step.color) for step in limits.build().build().steps] == steps


def test_every_alert_leads_to_its_part_of_the_runbook_and_no_part_is_of_none() -> None:
    pages = set()
    for name, rule in ALERTS.items():
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        pages.add(page)
        headings = re.findall(r"^### (.+)$", (ROOT / page).read_text(), re.M)
        assert anchor in {heading.lower() for heading in headings}, name
    (page,) = pages
    assert set(re.findall(r"^### (.+)$", (ROOT / page).read_text(), re.M)) == set(ALERTS)
    for part in re.split(r"^### ", (ROOT / page).read_text(), flags=re.M)[1:]:
        assert all(f"**{word}**" in part for word in ("Means", "Look", "Do")), part.splitlines()[0]


def test_every_alert_says_what_it_is_and_how_bad() -> None:
    assert len(ALERTS) == len([rule for rule in RULES if "alert" in rule])
    assert {rule["labels"]["severity"] for rule in ALERTS.values()} == {"critical", "warning"}
    assert all(rule["annotations"]["summary"] for rule in ALERTS.values())


def test_every_alert_is_seen_firing_and_not_firing_by_promtool() -> None:
    fires: set[str] = set()
    for path in (FOLDER / "prometheus").glob("*.test.yml"):
        for test in yaml.safe_load(path.read_text())["tests"]:
            seen = [
                {re.sub(r'.*alertname="(\w+)".*', r"\1", sample["labels"]) for sample in check["exp_samples"]}
                for check in test["promql_expr_test"]
            ]
            fires |= set().union(*seen)
    assert fires == set(ALERTS)


def test_the_jobs_of_the_scrape_configurations_are_those_of_the_rules() -> None:
    jobs = {job for expression in expressions() for job in re.findall(r'up\{job="([a-z-]+)"', expression)}
    for name in ("prometheus.yml", "compose.yml"):
        config = yaml.safe_load((FOLDER / "prometheus" / name).read_text())
        assert {scrape["job_name"] for scrape in config["scrape_configs"]} == jobs
        assert config["rule_files"] == ["rules.yml"]


def test_compose_has_what_the_configurations_name() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    monitoring = {name for name, service in services.items() if service.get("profiles") == ["monitoring"]}
    assert monitoring == {"prometheus", "grafana"}
    scraped = yaml.safe_load((FOLDER / "prometheus" / "compose.yml").read_text())["scrape_configs"]
    hosts = [
        target.split(":") for scrape in scraped for entry in scrape["static_configs"] for target in entry["targets"]
    ]
    assert {host for host, _ in hosts} <= set(services)
    assert services["app"]["environment"]["RIVERLENS_INGEST_METRICS_PORT"] in {port for _, port in hosts}
    for name in monitoring:
        for volume in services[name]["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith("./") or (ROOT / source).is_dir(), volume
