"""A real Prometheus with the configuration of infra/monitoring, scraping a running system."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from infra.monitoring.__main__ import FOLDER
from infra.monitoring.promql import API_JOB, INGEST_JOB
from tests.integration.system import RunningSystem, eventually, free_port


def tool(name: str) -> str:
    """Path of `prometheus` or `promtool`. Continuous integration installs them; a person's run skips without them."""
    found = shutil.which(name)
    if found is None:
        assert os.environ.get("CI") != "true", f"{name} must be there in CI"
        pytest.skip(f"needs {name}: Debian's package `prometheus` has it")
    return found


class Prometheus:
    """One server of its own, which looks every two seconds."""

    def __init__(self, folder: Path, system: RunningSystem, **more_targets: str) -> None:
        """Scrapes the system, and of each job in `more_targets` (dashes as underscores) one more address."""
        binary = tool("prometheus")
        self.url = f"http://127.0.0.1:{free_port()}"
        self._folder = folder
        self._http = httpx.Client(base_url=f"{self.url}/api/v1", timeout=30)
        targets = {
            API_JOB: [f"127.0.0.1:{system.port}"],
            INGEST_JOB: [f"127.0.0.1:{system.ingest_metrics_port}"],
        }
        for job, address in more_targets.items():
            targets[job.replace("_", "-")].append(address)
        config = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(FOLDER / "prometheus" / name) for name in config["rule_files"]]
        for scrape in config["scrape_configs"]:
            scrape["static_configs"] = [{"targets": targets[scrape["job_name"]]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with (folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    binary,
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def start(self) -> None:
        """Return when it answers."""

        def ready() -> bool:
            assert self._process.poll() is None, (self._folder / "prometheus.log").read_text()
            try:
                return httpx.get(f"{self.url}/-/ready").is_success
            except httpx.TransportError:
                return False

        eventually(ready, 60)

    def end(self) -> None:
        """Stop it."""
        self._http.close()
        self._process.terminate()
        self._process.wait(30)

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of one question to its API; fails with its error."""
        answer = self._http.get(path, params=parameters).json()
        assert answer["status"] == "success", f"{parameters}: {answer}"
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """An instant vector as of now."""
        return list(self.ask("/query", query=expression)["result"])

    def targets(self) -> dict[str, dict[str, str]]:
        """Health of every address, by job."""
        found: dict[str, dict[str, str]] = {}
        for target in self.ask("/targets")["activeTargets"]:
            labels = target["labels"]
            found.setdefault(labels["job"], {})[labels["instance"]] = target["health"]
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Every rule, with its health and, of an alert, its state."""
        return [rule for group in self.ask("/rules")["groups"] for rule in group["rules"]]
