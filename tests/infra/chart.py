"""The manifests of infra/kuberay as Helm would render them, and the schemas they have to fit.

The templates use one thing of Helm's language alone, `{{ .Values.name }}`, so that what is checked here is what is
installed; whatever else stands in double braces is refused.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

INFRA = Path(__file__).parent.parent.parent / "infra"
CHART = INFRA / "kuberay"
# What infra/terraform fills in; here in the form that it has.
DEPLOYED = {
    "image": "registry.example/riverlens/cpu:1.0.0",
    "gpuImage": "registry.example/riverlens/gpu:1.0.0",
    "kafkaBootstrap": "b-1.example:9096,b-2.example:9096,b-3.example:9096",
    "objectStoreUrl": "s3://riverlens-objects",
    "region": "eu-central-1",
    "kafkaSecret": "AmazonMSK_riverlens",
    "raySecret": "riverlens/ray-token",
}
_VALUE = re.compile(r"\{\{ \.Values\.(\w+) \}\}")
_GROUP_OF_KIND = {
    "ConfigMap": "io.k8s.api.core.v1",
    "Service": "io.k8s.api.core.v1",
    "ServiceAccount": "io.k8s.api.core.v1",
    "Job": "io.k8s.api.batch.v1",
    "PodDisruptionBudget": "io.k8s.api.policy.v1",
    "NetworkPolicy": "io.k8s.api.networking.v1",
}


def values(size: str | None) -> dict[str, Any]:
    """The values of an installation; `size` is the middle of `values-SIZE.yaml`, None for the defaults."""
    merged: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    if size is not None:
        merged |= yaml.safe_load((CHART / f"values-{size}.yaml").read_text())
    return merged | DEPLOYED


def render(template: str, given: dict[str, Any]) -> str:
    """A template with its values. Raises KeyError for one that is not given, ValueError for other template language."""
    rendered = _VALUE.sub(lambda found: str(given[found[1]]), template)
    if "{{" in rendered:
        raise ValueError(
            f"only {{{{ .Values.name }}}} may stand in a template: {rendered[rendered.index('{{') :][:60]}"
        )
    return rendered


def manifests(size: str | None) -> list[dict[str, Any]]:
    """Every object of an installation."""
    given = values(size)
    files = sorted((CHART / "templates").glob("*.yaml"))
    return [one for file in files for one in yaml.safe_load_all(render(file.read_text(), given))]


@lru_cache
def definitions() -> dict[str, Any]:
    """The schemas of Kubernetes and of the custom resources, by name."""
    files = ("kubernetes.json", "custom.json")
    return {
        name: one for file in files for name, one in json.loads((INFRA / "schemas" / file).read_text())["$defs"].items()
    }


def faults(manifest: dict[str, Any]) -> list[str]:
    """Where an object differs from its schema; empty for one that fits."""
    kind = manifest["kind"]
    name = f"{_GROUP_OF_KIND[kind]}.{kind}" if kind in _GROUP_OF_KIND else kind
    schema = {"$ref": f"#/$defs/{name}", "$defs": definitions()}
    label = f"{kind}/{manifest['metadata']['name']}"
    return [
        f"{label}: {error.json_path}: {error.message[:200]}"
        for error in Draft202012Validator(schema).iter_errors(manifest)
    ]


def pods(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every pod template, by its component."""
    found: dict[str, dict[str, Any]] = {}
    for one in objects:
        match one["kind"]:
            case "RayService":
                cluster = one["spec"]["rayClusterConfig"]
                templates = [group["template"] for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]]
            case "Job":
                templates = [one["spec"]["template"]]
            case _:
                templates = []
        found |= {template["metadata"]["labels"]["app.kubernetes.io/component"]: template for template in templates}
    return found
