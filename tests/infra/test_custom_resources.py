"""The RayService beside the operator's own definition of it, where that is at hand: `KUBERAY_CRDS=FOLDER make infra`.

The folder is `ray-operator/config/crd/bases` of KubeRay, or `crds` of its Helm chart. This repository keeps no
copy of it, only the fields it uses (infra/schemas/custom.json).
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.infra.chart import manifests


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    folder = os.environ.get("KUBERAY_CRDS")
    if folder is None:
        pytest.skip("KUBERAY_CRDS names no folder with KubeRay's definitions")
    definition = yaml.safe_load((Path(folder) / "ray.io_rayservices.yaml").read_text())
    (version,) = (one for one in definition["spec"]["versions"] if one["name"] == "v1")
    return Draft202012Validator(_strict(version["schema"]["openAPIV3Schema"]))


def _strict(schema: Any) -> Any:
    """Refuse what Kubernetes would drop without a word: fields that the definition does not have."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        strict["properties"] = {name: _strict(field) for name, field in schema["properties"].items()}
        if (
            not schema.get("x-kubernetes-preserve-unknown-fields")
            and schema.get("type") == "object"
            and "apiVersion" not in schema["properties"]
        ):
            strict["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        strict["type"] = ["integer", "string"]
    return strict


def _services() -> list[dict[str, Any]]:
    return [one for size in (None, "small", "100m") for one in manifests(size) if one["kind"] == "RayService"]


def test_the_operator_takes_the_ray_service(validator: Draft202012Validator) -> None:
    services = _services()
    assert len(services) == 3
    assert [
        f"{error.json_path}: {error.message[:200]}" for one in services for error in validator.iter_errors(one)
    ] == []


def test_a_field_that_the_operator_does_not_have_is_found(validator: Draft202012Validator) -> None:
    broken = copy.deepcopy(_services()[0])
    broken["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePolicy"] = "Always"
    assert list(validator.iter_errors(broken)) != []
