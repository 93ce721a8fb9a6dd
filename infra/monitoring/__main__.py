"""Writes the dashboards and the alert rules into this folder: `make dashboards`."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from infra.monitoring.alerts import rule_file
from infra.monitoring.dashboards import overview
from infra.monitoring.ingest_dashboard import ingest_and_shards
from infra.monitoring.search_dashboard import searches

FOLDER = Path(__file__).parent
_HEADER = "# Generated from contract/telemetry.py and infra/monitoring/alerts.py by `make dashboards`.\n"


def generated() -> dict[Path, str]:
    """Every generated file, with what belongs into it."""
    files = {}
    for built in (overview(), searches(), ingest_and_shards()):
        text = json.dumps(built, cls=JSONEncoder, sort_keys=True, indent=2)
        files[FOLDER / "grafana" / "dashboards" / f"{built.uid}.json"] = f"{text}\n"
    rules = yaml.safe_dump(rule_file(), sort_keys=False, width=1000, allow_unicode=True)
    files[FOLDER / "prometheus" / "rules.yml"] = _HEADER + rules
    return files


def main() -> None:
    """Write them all."""
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
