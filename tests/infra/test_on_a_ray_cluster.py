"""What infra/kuberay starts, on a Ray cluster of several nodes that somebody else started: `make infra-full`.

Ray is started as the operator starts it (`ray start`, a token, nodes with custom resources). The Serve configuration of
the manifests goes to the dashboard as the operator sends it. The supervisor and the ingest worker join by its address.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.infra.chart import INFRA, manifests
from tests.integration.local_broker import BrokerProcess
from tests.integration.pictures import sample_pictures
from tests.integration.system import eventually, free_port

ROOT = INFRA.parent
RAY = str(Path(sys.executable).parent / "ray")
pytestmark = pytest.mark.skipif(
    os.environ.get("INFRA_TOOLS") != "required", reason="starts a whole system; `make infra-full` runs it"
)


class Cluster:
    """Nodes and processes of one installation, and the environment they share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gcs, self.dashboard, self.http = free_port(), free_port(), free_port()
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "RAY_enable_worker_prestart": "0",
            "RIVERLENS_HOME": str(folder / "home"),
            "RIVERLENS_HTTP_PORT": str(self.http),
            "RIVERLENS_RAY_ADDRESS": f"127.0.0.1:{self.gcs}",
            "RIVERLENS_SHARDS": "2",
            "RIVERLENS_PARTITIONS": "2",
            "RIVERLENS_SHARD_NODE_RESOURCE": "shards",
            "RIVERLENS_EMBEDDER_NODE_RESOURCE": "embedders",
            "RIVERLENS_SEARCH_DEADLINE_MS": "5000",
            "RIVERLENS_ENCODE_DEADLINE_MS": "20000",
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.agents: dict[str, int] = {}

    def node(self, name: str, *arguments: str) -> None:
        """A Ray node, which says its name in a resource."""
        self.agents[name] = free_port()
        own = ["--node-ip-address", "127.0.0.1", "--object-store-memory", str(128 * 1024 * 1024), "--block"]
        own += ["--dashboard-agent-listen-port", str(self.agents[name]), "--disable-usage-stats"]
        self.start(name, RAY, "start", *arguments, *own)
        # Nodes of one machine take their ports from one range, so that one starts after the other.
        log = self.folder / f"{name}.log"
        eventually(lambda: "Ray runtime started" in log.read_text(errors="replace"), 90, 0.2)

    def worker(self, name: str, processors: str, resource: str) -> None:
        """A node that joins the head's, with one custom resource."""
        address, resources = f"127.0.0.1:{self.gcs}", f'{{"{resource}": 1}}'
        self.node(name, "--address", address, "--num-cpus", processors, "--resources", resources)

    def start(self, name: str, *command: str) -> None:
        """A process in a group of its own."""
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def lose(self, name: str) -> None:
        """A node's machine goes: all its processes are killed at once."""
        process = self.processes.pop(name)
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            one.kill()
        process.wait()

    def call(self, method: str, path: str, **rest: Any) -> httpx.Response | None:
        """A call of Ray's dashboard with the token; None while it is not there."""
        token = self.environment["RAY_AUTH_TOKEN"]
        with contextlib.suppress(httpx.TransportError):
            return httpx.request(
                method,
                f"http://127.0.0.1:{self.dashboard}{path}",
                headers={"Authorization": f"Bearer {token}"},
                timeout=30,
                **rest,
            )
        return None

    def logs(self) -> str:
        """The ends of what the processes printed."""
        return "\n".join(
            f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in self.folder.glob("*.log")
        )

    def end(self) -> None:
        """End everything, the last one first."""
        for process in reversed(self.processes.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    # Ray's socket paths are long, so the folder's has to be short.
    folder = Path(tempfile.mkdtemp(prefix="rlk-", dir="/tmp"))
    made = Cluster(folder)
    broker = BrokerProcess(folder / "home", "memory", {"RIVERLENS_RAY_ADDRESS": ""})
    broker.environment.pop("RIVERLENS_RAY_ADDRESS")
    try:
        broker.start()
        yield made
    finally:
        made.end()
        if broker.process is not None:
            os.killpg(broker.process.pid, signal.SIGTERM)
            broker.process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(420)
def test_the_manifests_processes_make_a_system_of_a_cluster(cluster: Cluster) -> None:
    cluster.node(
        "head", "--head", "--num-cpus", "0", "--port", str(cluster.gcs), "--dashboard-host", "127.0.0.1",
        "--dashboard-port", str(cluster.dashboard), "--ray-client-server-port", str(free_port()),
        "--temp-dir", str(cluster.folder / "ray"),
    )  # fmt: skip
    eventually(
        lambda: (answer := cluster.call("GET", "/api/version")) is not None and answer.status_code == 200, 120, 0.5
    )
    for name, processors in [("api", "0"), ("shards", "4"), ("embedders", "4")]:
        cluster.worker(name, processors, name)
    cluster.start("supervisor", sys.executable, "-m", "actors.supervisor")
    cluster.start("ingest", sys.executable, "-m", "streams.worker")
    (service,) = (one for one in manifests("small") if one["kind"] == "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    sent = eventually(lambda: cluster.call("PUT", "/api/serve/applications/", json=config), 60, 1)
    assert sent.status_code == 200, sent.text
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{cluster.http}", timeout=60) as client:
            _serves(client)
            _stands_where_it_should(cluster)
            _outlives_a_node(cluster, client)
    except AssertionError:
        sys.stderr.write(cluster.logs())
        raise


def _ready(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get("/readyz").status_code == 200
    return False


def _serves(client: httpx.Client) -> None:
    eventually(lambda: _ready(client), 240, 1)
    assert client.get("/healthz").status_code == 200
    caption, data = sample_pictures()[0]
    uploaded = client.post(
        "/v1/collections/images/images",
        params={"wait": "searchable"},
        files={"file": ("one.png", data)},
        data={"id": "one"},
    )
    assert uploaded.status_code in (200, 201), uploaded.text
    found = client.post("/v1/collections/images/search", json={"text": caption}).json()
    assert [hit["id"] for hit in found["hits"]] == ["one"]
    assert found["coverage"] == {"shards_total": 2, "shards_answered": 2, "degraded": False}


def _stands_where_it_should(cluster: Cluster) -> None:
    script = (
        "import json, ray; from ray.util.state import list_actors; "
        f"ray.init('127.0.0.1:{cluster.gcs}', logging_level='ERROR', log_to_driver=False); "
        "kind = lambda has: next((r for r in ('api', 'shards', 'embedders') if r in has), 'head'); "
        "nodes = {n['NodeID']: kind(n['Resources']) for n in ray.nodes()}; "
        "alive = list_actors(filters=[('state', '=', 'ALIVE')]); "
        "print(json.dumps(sorted({(a.class_name.split(':')[-1], nodes[a.node_id]) for a in alive})))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], env=cluster.environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    placed = {tuple(one) for one in yaml.safe_load(result.stdout.splitlines()[-1])}
    assert {("Shard", "shards"), ("Embedder", "embedders")} <= placed
    assert {node for kind, node in placed if kind in ("Shard",)} == {"shards"}
    assert {node for kind, node in placed if kind in ("Embedder",)} == {"embedders"}
    assert {node for kind, node in placed if "api" in kind} == {"api"}
    # What the readiness probes of the manifests ask, without a token.
    for name in ("api", "shards", "embedders"):
        assert (
            httpx.get(f"http://127.0.0.1:{cluster.agents[name]}/api/local_raylet_healthz", timeout=30).status_code
            == 200
        )


def _outlives_a_node(cluster: Cluster, client: httpx.Client) -> None:
    """The machine of all shards is lost with everything on it that ran, and another one comes."""
    cluster.lose("shards")
    _, data = sample_pictures()[1]
    logged = client.post(
        "/v1/collections/images/images",
        params={"wait": "logged"},
        files={"file": ("two.png", data)},
        data={"id": "two"},
    )
    assert logged.status_code == 202, logged.text
    eventually(lambda: not _ready(client), 60, 0.5)
    answer = client.post("/v1/collections/images/search", json={"image_id": "one"})
    assert answer.status_code == 503, answer.text
    assert answer.json()["retryable"]
    cluster.worker("more-shards", "4", "shards")
    eventually(lambda: _ready(client), 180, 1)
    receipt = logged.json()["receipt"]
    found = client.post("/v1/collections/images/search", json={"image_id": "one", "min_receipt": receipt})
    assert found.status_code == 200, found.text
    assert {hit["id"] for hit in found.json()["hits"]} == {"one", "two"}
    assert found.json()["coverage"] == {"shards_total": 2, "shards_answered": 2, "degraded": False}
