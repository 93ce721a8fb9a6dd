"""Write infra/schemas from published packages: `python -m tests.infra.make_schemas providers|kubernetes FOLDER …`.

`providers` takes unpacked npm packages `@cdktf/provider-*`, whose typed bindings were generated from the providers' own
schemas, and keeps the resources that infra/terraform uses. `kubernetes` takes a folder `v*-local` of the PyPI package
`kubernetes-validate` and keeps the kinds that infra/kuberay uses. infra/terraform/README.md has the versions.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from tests.infra.terraform_files import TERRAFORM, Block, load_folder

SCHEMAS = Path(__file__).parent.parent.parent / "infra" / "schemas"
KINDS = (
    "io.k8s.api.core.v1.ConfigMap",
    "io.k8s.api.core.v1.Service",
    "io.k8s.api.core.v1.ServiceAccount",
    "io.k8s.api.core.v1.PodTemplateSpec",
    "io.k8s.api.core.v1.ResourceRequirements",
    "io.k8s.api.batch.v1.Job",
    "io.k8s.api.policy.v1.PodDisruptionBudget",
    "io.k8s.api.networking.v1.NetworkPolicy",
)

_INTERFACE = re.compile(r"^export interface (\w+)[^{]*\{\n(.*?)^\}", re.M | re.S)
_PROPERTY = re.compile(
    r"/\*\*(?P<text>.*?)\*/\s*readonly (?P<name>\w+)(?P<optional>\??): (?P<type>[^;{]+|\{[^}]*\})", re.S
)
_TERRAFORM_NAME = re.compile(r"#(\w+)\}")
_GETTER = re.compile(r"^    get (\w+)\(\): ([^;]+);", re.M)
_CLASS = re.compile(r"^export declare class (\w+) [^{]*\{\n(.*?)^\}", re.M | re.S)
_SIMPLE = {
    "string": "string",
    "number": "number",
    "cdktf.IResolvable": "bool",
    "boolean | cdktf.IResolvable": "bool",
    "string[]": ["list", "string"],
    "number[]": ["list", "number"],
    "cdktf.StringMap": ["map", "string"],
    "{ [key: string]: string; }": ["map", "string"],
}
# The bindings leave out what is never kept in a state.
_EPHEMERAL = {
    "ephemeral.random_password": {
        "arguments": {"length": {"required": True, "type": "number"}, "special": {"required": False, "type": "bool"}},
        "exports": {"result": "string"},
    }
}


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])|(?<=[A-Z])([A-Z])(?=[a-z])", lambda m: "_" + m[0], name).lower()


def _body(interface: str, interfaces: dict[str, str], classes: dict[str, str]) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for found in _PROPERTY.finditer(interfaces[interface]):
        named = _TERRAFORM_NAME.search(found["text"])
        kind = found["type"].replace("cdktf.IResolvable", "").strip(" |")
        entry: dict[str, Any] = {"required": not found["optional"]}
        nested = kind.removesuffix("[]")
        if nested in interfaces:
            is_block = f"{named[1] if named else ''} block" in found["text"]
            entry["block" if is_block else "object"] = inner = _body(nested, interfaces, classes)
            entry["many"] = kind.endswith("[]")
            if f"{nested}OutputReference" in classes:
                read = _exports(f"{nested}OutputReference", classes)
                entry["exports"] = {name: of for name, of in read.items() if name not in inner}
        else:
            entry["type"] = "map" if kind.startswith("{") else kind.replace("boolean", "bool").strip()
        body[named[1] if named else _snake(found["name"])] = entry
    return body


def read_binding(text: str) -> dict[str, Any]:
    """A resource from its TypeScript declaration: arguments (with blocks in blocks) and what others may read of it."""
    interfaces = dict(_INTERFACE.findall(text))
    config = next(
        name
        for name in interfaces
        if re.search(rf"{name} extends cdktf.TerraformMeta|{name} (?={{)", text) and name.endswith("Config")
    )
    classes = dict(_CLASS.findall(text))
    arguments = _body(config, interfaces, classes)
    (*_, main) = classes
    exports = {name: kind for name, kind in _exports(main, classes).items() if name not in arguments}
    return {"arguments": arguments, "exports": exports}


def _exports(name: str, classes: dict[str, str]) -> dict[str, Any]:
    """What can be read of an object, with types as Terraform writes them in JSON."""
    read: dict[str, Any] = {}
    for getter, written in _GETTER.findall(classes[name]):
        kind = " ".join(written.split())
        nested = kind.removesuffix("List") + "OutputReference"
        if getter.endswith("Input") or getter in ("internalValue", "fqn"):
            continue
        if kind in _SIMPLE:
            read[_snake(getter)] = _SIMPLE[kind]
        elif kind.endswith("List") and nested in classes:
            read[_snake(getter)] = ["list", ["object", _exports(nested, classes)]]
        else:
            read[_snake(getter)] = "dynamic"
    return read


def _used() -> set[str]:
    """Types of all resources and data sources in infra/terraform, data sources as `data.TYPE`."""
    used = set()
    for folder in {path.parent for path in TERRAFORM.rglob("*.tf")}:
        for block in load_folder(folder).blocks:
            if block.kind in ("resource", "data"):
                used.add(_address(block))
    return used


def _address(block: Block) -> str:
    return block.labels[0] if block.kind == "resource" else f"data.{block.labels[0]}"


def providers(packages: list[Path]) -> dict[str, Any]:
    """The schemas of all types in use that the packages know."""
    schemas: dict[str, Any] = dict(_EPHEMERAL)
    versions = {}
    for package in packages:
        provider = json.loads((package / "package.json").read_text())["name"].rpartition("-")[2]
        versions[provider] = re.findall(r"provider version (\S+)", (package / "README.md").read_text())[0]
        schemas[f"provider.{provider}"] = read_binding((package / "lib" / "provider" / "index.d.ts").read_text())
        for used in _used():
            data, name = used.startswith("data."), used.removeprefix("data.")
            if name.startswith(f"{provider}_"):
                folder = ("data-" if data else "") + (name if data else name.removeprefix(f"{provider}_")).replace(
                    "_", "-"
                )
                schemas[used] = read_binding((package / "lib" / folder / "index.d.ts").read_text())
    return {"versions": versions, "schemas": schemas}


def kubernetes(folder: Path) -> dict[str, Any]:
    """The definitions of KINDS and of all they refer to, without prose; fields that are not named are refused."""
    all_of_them = json.loads((folder / "_definitions.json").read_text())["$defs"]
    kept: dict[str, Any] = {}
    waiting = list(KINDS)
    while waiting:
        name = waiting.pop()
        if name not in kept:
            kept[name] = _slim(all_of_them[name])
            waiting.extend(re.findall(r'"#/\$defs/([^"]+)"', json.dumps(kept[name])))
    return {"version": folder.name.removesuffix("-local"), "$defs": kept}


def _slim(schema: Any) -> Any:
    """A schema without prose and without the extensions of Kubernetes, strict where it names its fields."""
    if isinstance(schema, list):
        return [_slim(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    slim: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            slim[key] = {name: _slim(field) for name, field in value.items()}
        elif key != "description" and not key.startswith("x-kubernetes"):
            slim[key] = _slim(value)
    if "properties" in slim:
        slim["additionalProperties"] = False
    return slim


def main() -> int:
    """Write the file; 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["providers", "kubernetes"])
    parser.add_argument("folders", nargs="+", type=Path)
    asked = parser.parse_args()
    made = providers(asked.folders) if asked.what == "providers" else kubernetes(asked.folders[0])
    (SCHEMAS / f"{asked.what}.json").write_text(json.dumps(made, sort_keys=True, separators=(",", ":")) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
