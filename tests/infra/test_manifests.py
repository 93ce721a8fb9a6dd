"""The manifests fit Kubernetes and its custom resources, and what they run is what the code has."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from contract.settings import Settings
from tests.infra.chart import CHART, INFRA, faults, manifests, pods, render, values
from tests.infra.terraform_files import TERRAFORM, load_folder, plain

ROOT = INFRA.parent
SIZES = ["small", "100m"]
# Processors and GiB of the machines in use, from AWS's list of kinds of machine.
_MACHINES = {
    "m7i.large": (2, 8),
    "m7i.xlarge": (4, 16),
    "m7i.2xlarge": (8, 32),
    "c7i.xlarge": (4, 8),
    "c7i.2xlarge": (8, 16),
    "r7i.xlarge": (4, 32),
    "r7i.4xlarge": (16, 128),
    "g6.2xlarge": (8, 32),
}
# What Kubernetes and the daemons of a node keep for themselves, at most.
_KEPT_CPU, _KEPT_MEMORY_SHARE, _KEPT_MEMORY_GIB = 0.5, 0.06, 0.5


@pytest.fixture(params=[None, *SIZES], ids=str)
def installed(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return manifests(request.param)


def _one(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (one for one in objects if one["kind"] == kind)
    return found


def _cluster(objects: list[dict[str, Any]]) -> dict[str, Any]:
    cluster: dict[str, Any] = _one(objects, "RayService")["spec"]["rayClusterConfig"]
    return cluster


def _containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    containers: list[dict[str, Any]] = pod["spec"]["containers"]
    return containers


def test_every_object_fits_its_schema(installed: list[dict[str, Any]]) -> None:
    assert [fault for one in installed for fault in faults(one)] == []


def test_every_value_is_used_and_no_size_has_others() -> None:
    used = {
        name
        for file in (CHART / "templates").glob("*.yaml")
        for name in re.findall(r"\.Values\.(\w+)", file.read_text())
    }
    assert used == set(yaml.safe_load((CHART / "values.yaml").read_text()))
    for size in SIZES:
        assert set(yaml.safe_load((CHART / f"values-{size}.yaml").read_text())) <= used


def test_names_are_there_once(installed: list[dict[str, Any]]) -> None:
    names = [(one["kind"], one["metadata"]["name"]) for one in installed]
    assert len(names) == len(set(names))


def test_the_settings_are_settings_and_are_accepted(
    installed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _one(installed, "ConfigMap")["data"]
    for name, value in data.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RIVERLENS_KAFKA_SASL_USERNAME", "riverlens")
    settings = Settings()
    named = {name.removeprefix("RIVERLENS_").lower() for name in data if name.startswith("RIVERLENS_")}
    assert named <= set(Settings.model_fields)
    assert settings.model_fields_set >= named
    assert settings.asks_for_keys
    assert settings.kafka_security_protocol == "SASL_SSL"
    assert settings.snapshot_remote
    assert settings.objects_url.startswith("s3://")


def test_serve_takes_the_configuration_and_builds_the_application() -> None:
    installed = manifests("100m")
    spec = _one(installed, "RayService")["spec"]
    environment = {**os.environ, **_one(installed, "ConfigMap")["data"]}
    command = [sys.executable, "-m", "tests.infra.serve_configuration"]
    result = subprocess.run(
        command, input=spec["serveConfigV2"], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    understood = json.loads(result.stdout)
    (api,) = (group for group in spec["rayClusterConfig"]["workerGroupSpecs"] if group["groupName"] == "api")
    assert understood == {
        "proxy": "Disabled",
        "deployment": "api",
        "replicas": api["maxReplicas"],
        "resources": {"api": 1},
        "built": "api",
        "built_replicas": api["minReplicas"],
        "built_home": environment["RIVERLENS_HOME"],
        "refused": "the application takes its settings from the environment, not ['shards']",
    }
    assert _resources(api) == {"api"}


def _resources(group: dict[str, Any]) -> set[str]:
    """Custom resources of the nodes of a group, which KubeRay wants as JSON in JSON's quotes for a shell."""
    return set(re.findall(r'\\"(\w+)\\":', group["rayStartParams"].get("resources", "")))


def test_actors_run_on_the_nodes_that_are_meant_for_them(installed: list[dict[str, Any]]) -> None:
    data = _one(installed, "ConfigMap")["data"]
    groups = {group["groupName"]: _resources(group) for group in _cluster(installed)["workerGroupSpecs"]}
    assert groups["shards"] == {data["RIVERLENS_SHARD_NODE_RESOURCE"]}
    assert groups["embedders"] == {data["RIVERLENS_EMBEDDER_NODE_RESOURCE"]}
    assert groups["ingest"] == set()


def test_processes_beside_ray_are_those_of_the_procfile_and_share_its_node(installed: list[dict[str, Any]]) -> None:
    commands = {line.partition(": ")[2] for line in (ROOT / "Procfile").read_text().splitlines()}
    beside = {}
    for component, pod in pods(installed).items():
        if component == "ready-test":
            continue
        ray, *others = _containers(pod)
        assert "command" not in ray, "KubeRay writes the command that starts Ray"
        assert pod["spec"]["shareProcessNamespace"]
        for other in others:
            beside[component] = " ".join(other["command"])
            assert {"name": "ray", "mountPath": "/tmp/ray"} in other["volumeMounts"]
            assert other["volumeMounts"] == ray["volumeMounts"]
            assert other["envFrom"] == ray["envFrom"]
            assert other["env"] == ray["env"]
            assert other["image"] == ray["image"]
    assert beside == {"head": "python -m actors.supervisor", "ingest": "python -m streams.worker"}
    assert set(beside.values()) <= commands


def test_what_a_pod_refers_to_is_there(installed: list[dict[str, Any]]) -> None:
    keys = {
        one["spec"]["target"]["name"]: {data["secretKey"] for data in one["spec"]["data"]}
        for one in installed
        if one["kind"] == "ExternalSecret"
    }
    maps = {one["metadata"]["name"] for one in installed if one["kind"] == "ConfigMap"}
    accounts = {one["metadata"]["name"] for one in installed if one["kind"] == "ServiceAccount"}
    for pod in pods(installed).values():
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
        assert pod["spec"].get("serviceAccountName", "riverlens") in accounts
        for container in _containers(pod):
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
            assert {source["configMapRef"]["name"] for source in container.get("envFrom", [])} <= maps
            for entry in container.get("env", []):
                secret = entry["valueFrom"]["secretKeyRef"]
                assert secret["key"] in keys[secret["name"]]
    token = _cluster(installed)["authOptions"]["secretName"]
    assert keys[token] == {"auth_token"}


def test_every_selector_selects_and_every_port_is_open(installed: list[dict[str, Any]]) -> None:
    labels = {component: pod["metadata"]["labels"] for component, pod in pods(installed).items()}
    ports = {
        component: {
            port["name"]: port["containerPort"] for container in _containers(pod) for port in container.get("ports", [])
        }
        for component, pod in pods(installed).items()
    }
    data = _one(installed, "ConfigMap")["data"]
    assert ports["api"]["http"] == int(data["RIVERLENS_HTTP_PORT"])
    assert ports["ingest"]["metrics"] == int(data["RIVERLENS_INGEST_METRICS_PORT"])
    for one in installed:
        spec = one.get("spec", {})
        if one["kind"] == "Service":
            selected = _selected(labels, spec["selector"])
            assert selected
            assert all(port["targetPort"] in ports[component] for component in selected for port in spec["ports"])
        elif one["kind"] == "PodDisruptionBudget":
            assert len(_selected(labels, spec["selector"]["matchLabels"])) == 1
        elif one["kind"] == "NetworkPolicy" and spec["podSelector"]:
            assert _selected(labels, spec["podSelector"]["matchLabels"])
    budgets = {
        one["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]
        for one in installed
        if one["kind"] == "PodDisruptionBudget"
    }
    assert budgets == set(labels) - {"ready-test"}


def _selected(labels: dict[str, dict[str, str]], wanted: dict[str, str]) -> set[str]:
    return {component for component, own in labels.items() if wanted.items() <= own.items()}


def test_what_comes_in_from_outside_is_the_api_its_metrics_and_the_operator(installed: list[dict[str, Any]]) -> None:
    outside = {}
    for one in installed:
        if one["kind"] == "NetworkPolicy":
            for rule in one["spec"].get("ingress", []):
                foreign = [peer for peer in rule["from"] if "namespaceSelector" in peer]
                assert not [peer for peer in rule["from"] if "ipBlock" in peer]
                if foreign:
                    outside[one["metadata"]["name"]] = [port["port"] for port in rule["ports"]]
    assert outside == {"riverlens-api": [8000], "riverlens-ingest": [9100], "riverlens-operator": [8265]}
    default = next(one for one in installed if one["metadata"]["name"] == "riverlens-default")
    assert default["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_pods_are_no_root_and_are_bounded(installed: list[dict[str, Any]]) -> None:
    for pod in pods(installed).values():
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"])
        assert not [volume for volume in pod["spec"].get("volumes", []) if "hostPath" in volume]
        for container in _containers(pod):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert re.search(r":[^:/]+$", container["image"])
            assert not container["image"].endswith(":latest")


def test_probes_ask_for_what_is_served(installed: list[dict[str, Any]]) -> None:
    found = pods(installed)
    (api,) = _containers(found["api"])
    assert api["readinessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    ready = _containers(found["ready-test"])[0]["command"]
    assert ready[-1] == "http://riverlens/readyz"
    routes = (ROOT / "serving" / "routes_system.py").read_text()
    assert '"/healthz"' in routes
    assert '"/readyz"' in routes
    # KubeRay asks workers without a probe of their own for Serve's proxy.
    assert all(
        "readinessProbe" in _containers(found[component])[0] for component in ("api", "ingest", "shards", "embedders")
    )


def test_ray_is_the_one_in_the_image() -> None:
    versions = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert _cluster(manifests(None))["rayVersion"] == versions["ray"]


@pytest.mark.parametrize("size", SIZES)
def test_the_pods_hold_the_actors(size: str) -> None:
    given = values(size)
    assert given["shards"] * given["replicas"] * given["shardCpus"] <= given["shardPods"] * float(given["shardCpu"])
    embedders = given["embedders"] + given["queryEmbedders"]
    if given["embedderGpus"]:
        on_one = int(given["embedderGpu"] / given["embedderGpus"])
        assert math.ceil(embedders / on_one) <= given["embedderPods"]
        assert on_one * given["embedderThreads"] <= float(given["embedderCpu"])
    else:
        assert embedders * given["embedderThreads"] <= given["embedderPods"] * float(given["embedderCpu"])
    assert given["shards"] <= given["partitions"]
    assert given["ingestPods"] <= given["partitions"]
    # No shard without its replica when a pod goes.
    assert given["shardPods"] > given["replicas"]


@pytest.mark.parametrize("size", SIZES)
def test_the_machines_hold_the_pods(size: str) -> None:
    (call,) = load_folder(TERRAFORM / "environments" / size).of("module")
    groups = {group["role"].strip('"'): group for group in call.body["node_groups"].values()}
    cluster = _cluster(manifests(size))
    counts = {
        group["groupName"]: (group["minReplicas"], group["maxReplicas"]) for group in cluster["workerGroupSpecs"]
    } | {"head": (1, 1)}
    needed: dict[str, list[int]] = {}
    for component, pod in pods(manifests(size)).items():
        if component == "ready-test":
            continue
        role = pod["spec"]["nodeSelector"]["riverlens.io/role"]
        assert pod["spec"]["tolerations"] == [
            {"key": "riverlens.io/role", "operator": "Equal", "value": role, "effect": "NoSchedule"}
        ]
        cpu, memory = _requested(pod)
        if component == "head":
            own = cluster["autoscalerOptions"]["resources"]["requests"]
            cpu, memory = cpu + _cpu(own["cpu"]), memory + _gib(own["memory"])
        (machine,) = plain(groups[role]["instance_types"])
        machine_cpu, machine_gib = _MACHINES[machine]
        fit_cpu = (machine_cpu - _KEPT_CPU) / cpu
        fit_memory = (machine_gib * (1 - _KEPT_MEMORY_SHARE) - _KEPT_MEMORY_GIB) / memory
        on_one = math.floor(min(fit_cpu, fit_memory))
        assert on_one >= 1, f"{component} does not fit a {machine}"
        least, most = needed.get(role, [0, 0])
        needed[role] = [
            least + math.ceil(counts[component][0] / on_one),
            most + math.ceil(counts[component][1] / on_one),
        ]
    for role, (least, most) in needed.items():
        assert groups[role]["min"] == least, f"{role}: {least} machines run all the time"
        assert groups[role]["max"] >= most, f"{role}: {most} machines at the most"


def _requested(pod: dict[str, Any]) -> tuple[float, float]:
    asked = [container["resources"]["requests"] for container in _containers(pod)]
    return sum(_cpu(one["cpu"]) for one in asked), sum(_gib(one["memory"]) for one in asked)


def _cpu(text: str) -> float:
    return float(text.removesuffix("m")) / 1000 if text.endswith("m") else float(text)


def _gib(text: str) -> float:
    return float(text.removesuffix("Mi")) / 1024 if text.endswith("Mi") else float(text.removesuffix("Gi"))


# The checks can fail


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        (
            "RayService",
            ("spec", "rayClusterConfig", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "imagePolicy"),
            "Always",
        ),
        ("RayService", ("spec", "rayClusterConfig", "workerGroupSpecs", 0, "minReplicas"), "two"),
        ("RayService", ("spec", "rayClusterConfig", "headGroup"), {}),
        ("Job", ("spec", "backofLimit"), 3),
        ("ConfigMap", ("data", "RIVERLENS_SHARDS"), 8),
        ("ServiceAccount", ("apiVersion",), "v2"),
    ],
)
def test_what_kubernetes_refuses_is_found(kind: str, path: tuple[str | int, ...], value: object) -> None:
    broken = copy.deepcopy(_one(manifests("small"), kind))
    at: Any = broken
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    assert faults(broken) != []


def test_other_template_language_and_unknown_values_are_refused() -> None:
    with pytest.raises(ValueError, match="only"):
        render('a: {{ include "b" . }}', {})
    with pytest.raises(KeyError):
        render("a: {{ .Values.nothing }}", {})
