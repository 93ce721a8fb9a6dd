"""The tools that people use on these files, where they are: OpenTofu, Helm, kubeconform.

`make infra-full` builds and demands them. The providers are stand-ins with the real ones' schemas
(tests/infra/stand_in): validation is real, and a plan is not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.chart import CHART, DEPLOYED, INFRA, definitions, manifests
from tests.infra.terraform_files import TERRAFORM

ROOT = INFRA.parent
BUILT = ROOT / "build" / "infra"
SCHEMAS = INFRA / "schemas" / "providers.json"
FOLDERS = sorted({path.parent.relative_to(TERRAFORM) for path in TERRAFORM.rglob("*.tf")})


def _tool(name: str) -> str:
    found = shutil.which(name, path=f"{BUILT / 'bin'}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        reason = f"{name} is not installed; `make infra-full` builds it"
        if os.environ.get("INFRA_TOOLS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def _run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    result = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-6000:]
    return result.stdout


def _namespace(home: Path) -> str:
    """The host and namespace that OpenTofu takes HashiCorp's providers from, as it says itself."""
    folder = home / "asked"
    folder.mkdir()
    (folder / "main.tf").write_text(
        'terraform {\n  required_providers {\n    random = { source = "hashicorp/random" }\n  }\n}\n'
    )
    (home / "empty.rc").touch()
    said = _run([_tool("tofu"), "providers"], folder, {"TF_CLI_CONFIG_FILE": str(home / "empty.rc")})
    found = re.search(r"provider\[(.+)/random\]", said)
    assert found is not None, said
    return found[1]


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A copy of infra/terraform to initialise, and an environment in which OpenTofu finds the stand-ins alone."""
    stand_in = _tool("terraform-stand-in")
    home = tmp_path_factory.mktemp("tofu")
    namespace = _namespace(home)
    for provider, version in json.loads(SCHEMAS.read_text())["versions"].items():
        folder = home / "mirror" / namespace / provider / version / "linux_amd64"
        folder.mkdir(parents=True)
        (folder / f"terraform-provider-{provider}_v{version}").symlink_to(stand_in)
    (home / "tofu.rc").write_text(
        f'provider_installation {{\n  filesystem_mirror {{\n    path = "{home / "mirror"}"\n  }}\n}}\n'
    )
    shutil.copytree(INFRA, home / "infra")
    return home / "infra" / "terraform", {"TF_CLI_CONFIG_FILE": str(home / "tofu.rc"), "PROVIDER_SCHEMAS": str(SCHEMAS)}


def test_terraform_is_formatted(tmp_path: Path) -> None:
    (tmp_path / "tofu.rc").touch()
    environment = {"TF_CLI_CONFIG_FILE": str(tmp_path / "tofu.rc")}
    assert _run([_tool("tofu"), "fmt", "-check", "-recursive", str(TERRAFORM)], ROOT, environment) == ""


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_terraform_is_valid(folder: Path, terraform: tuple[Path, dict[str, str]]) -> None:
    root, environment = terraform
    tofu = _tool("tofu")
    _run([tofu, "init", "-backend=false", "-input=false"], root / folder, environment)
    assert json.loads(_run([tofu, "validate", "-json"], root / folder, environment))["valid"]


def test_the_environments_come_up_with_mocks(terraform: tuple[Path, dict[str, str]]) -> None:
    root, environment = terraform
    tofu = _tool("tofu")
    _run([tofu, "init", "-backend=false", "-input=false"], root / "tests", environment)
    assert "0 failed" in _run([tofu, "test", "-no-color"], root / "tests", environment)


@pytest.mark.parametrize("size", ["small", "100m"])
def test_helm_renders_what_was_checked(size: str) -> None:
    given = [
        argument
        for name, value in DEPLOYED.items()
        for argument in ("--set-string", f"{name}={value.replace(',', chr(92) + ',')}")
    ]
    command = [
        _tool("helm"),
        "template",
        "riverlens",
        str(CHART),
        "--values",
        str(CHART / f"values-{size}.yaml"),
        *given,
    ]
    rendered = [one for one in yaml.safe_load_all(_run(command, ROOT)) if one is not None]
    assert sorted(rendered, key=_name) == sorted(manifests(size), key=_name)


def _name(one: dict[str, Any]) -> tuple[str, str]:
    return one["kind"], one["metadata"]["name"]


@pytest.mark.parametrize("size", ["small", "100m"])
def test_kubeconform_accepts_every_object(size: str, tmp_path: Path) -> None:
    objects = manifests(size)
    for name in definitions():
        kind = name.rpartition(".")[2]
        if kind in {one["kind"] for one in objects}:
            (tmp_path / f"{kind.lower()}.json").write_text(
                json.dumps({"$ref": f"#/$defs/{name}", "$defs": definitions()})
            )
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(objects))
    command = [
        _tool("kubeconform"),
        "-strict",
        "-output",
        "json",
        "-summary",
        "-schema-location",
        f"{tmp_path}/{{{{ .ResourceKind }}}}.json",
    ]
    summary = json.loads(_run([*command, str(tmp_path / "all.yaml")], ROOT))["summary"]
    assert summary == {"valid": len(objects), "invalid": 0, "errors": 0, "skipped": 0}
