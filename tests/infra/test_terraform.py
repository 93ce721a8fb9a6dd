"""The rules that every Terraform module keeps, and that the checks of them can fail."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from actors.objects import image_key, thumbnail_key
from actors.snapshot_objects import snapshots_prefix
from tests.infra.chart import CHART, DEPLOYED, INFRA, values
from tests.infra.policies import closed_for_the_internet, encrypted, excessive, statements, untagged
from tests.infra.terraform_files import (
    TERRAFORM,
    Block,
    Folder,
    against_schema,
    load_folder,
    parse,
    plain,
    references,
    texts,
    unresolved,
    wrong_calls,
)

FOLDERS = sorted({path.parent for path in TERRAFORM.rglob("*.tf")})
MODULES = [folder for folder in FOLDERS if folder.parent.name == "modules"]
SCHEMAS: dict[str, Any] = json.loads((INFRA / "schemas" / "providers.json").read_text())["schemas"]


def _name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


@pytest.fixture(params=FOLDERS, ids=_name)
def folder(request: pytest.FixtureRequest) -> Folder:
    return load_folder(request.param)


def test_the_modules_that_a_cluster_needs_are_there() -> None:
    assert {folder.name for folder in MODULES} == {
        "kafka",
        "kuberay",
        "kubernetes",
        "monitoring",
        "network",
        "object-store",
        "platform",
        "registry",
        "secrets",
    }
    assert {folder.name for folder in FOLDERS if folder.parent.name == "environments"} == {"small", "100m"}


def test_every_resource_fits_the_schema_of_its_provider(folder: Folder) -> None:
    checked = [block for block in folder.blocks if block.kind in ("resource", "data")]
    assert [fault for block in checked for fault in against_schema(block, _schema(block))] == []


def _schema(block: Block) -> dict[str, Any]:
    schema: dict[str, Any] = SCHEMAS[block.labels[0] if block.kind == "resource" else f"data.{block.labels[0]}"]
    return schema


def test_every_reference_leads_somewhere(folder: Folder) -> None:
    assert unresolved(folder, SCHEMAS) == []


def test_every_call_of_a_module_gives_what_it_declares(folder: Folder) -> None:
    assert wrong_calls(folder) == []


def test_every_variable_says_what_it_is_and_refuses_what_it_is_not(folder: Folder) -> None:
    lacking = []
    for variable in folder.of("variable"):
        name, body = variable.labels[0], variable.body
        lacking += [f"{name}: no {part}" for part in ("description", "type") if part not in body]
        # Of a truth value and of tags nothing can be wrong but the type.
        if body.get("type") not in ("bool", "${bool}") and name != "tags" and "validation" not in body:
            lacking.append(f"{name}: no validation")
    assert lacking == []


def test_every_variable_and_local_is_used(folder: Folder) -> None:
    used = {".".join(reference.split(".")[:2]) for block in folder.blocks for reference in _outside_itself(block)}
    declared = {f"var.{block.labels[0]}" for block in folder.of("variable")} | {
        f"local.{name}" for name in folder.local_names
    }
    assert sorted(declared - used) == []


def _outside_itself(block: Block) -> set[str]:
    return (
        {reference for reference in references(block) if reference != block.address}
        if block.kind == "variable"
        else references(block)
    )


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_every_module_is_described_and_priced(path: Path) -> None:
    page = (path / "README.md").read_text()
    assert "## Cost" in page
    module = load_folder(path)
    undocumented = [
        block.labels[0]
        for kind in ("variable", "output")
        for block in module.of(kind)
        if f"`{block.labels[0]}`" not in page
    ]
    assert undocumented == []
    assert module.of("output")
    assert [block.labels[0] for block in module.of("output") if "description" not in block.body] == []


def test_versions_are_pinned(folder: Folder) -> None:
    for terraform in folder.of("terraform"):
        for providers in terraform.body.get("required_providers", []):
            loose = [
                name
                for name, wanted in providers.items()
                if isinstance(wanted, dict) and "~>" not in str(wanted["version"])
            ]
            assert loose == []
    charts = [
        block for block in folder.of("resource") if block.labels[0] == "helm_release" and "repository" in block.body
    ]
    assert [
        chart.address
        for chart in charts
        if not re.fullmatch(r'"[0-9]+\.[0-9]+\.[0-9]+"', chart.body.get("version", ""))
    ] == []


def test_nothing_is_open_to_the_internet(folder: Folder) -> None:
    assert closed_for_the_internet(folder.blocks) == []


def test_roles_may_do_what_they_need_and_no_more(folder: Folder) -> None:
    assert [fault for block in folder.blocks for fault in excessive(block)] == []


def test_everything_that_keeps_data_is_encrypted(folder: Folder) -> None:
    assert encrypted(folder.blocks) == []


def test_everything_that_can_bear_tags_does(folder: Folder) -> None:
    assert untagged(folder.blocks, SCHEMAS) == []


def test_no_secret_is_kept_in_the_state(folder: Folder) -> None:
    kept = [
        block.address
        for block in folder.of("resource")
        if block.labels[0] == "random_password" or "secret_string" in block.body
    ]
    assert kept == []


def test_the_application_reaches_the_keys_it_writes_and_no_other() -> None:
    policy = next(b for b in load_folder(TERRAFORM / "modules" / "kuberay").of("data") if b.labels[1] == "application")
    objects = next(s for s in statements(policy) if "s3:PutObject" in plain(s["actions"]))
    allowed = {resource.rpartition("}/")[2].removesuffix("*") for resource in plain(objects["resources"])}
    written = {image_key("c", "a" * 64), thumbnail_key("c", "a" * 64, 256), snapshots_prefix("c", "1")}
    assert {key.partition("/")[0] + "/" for key in written} == allowed


def test_the_chart_gets_every_value_it_has_no_default_for() -> None:
    release = next(
        b
        for b in load_folder(TERRAFORM / "modules" / "kuberay").of("resource")
        if b.address == "helm_release.application"
    )
    (encoded,) = (text for text in texts(release.body["values"]) if "yamlencode" in text)
    given = set(re.findall(r"(\w+) = ", encoded))
    assert set(DEPLOYED) <= given <= set(values(None))


@pytest.mark.parametrize("size", ["small", "100m"])
def test_an_environment_names_a_file_of_values(size: str) -> None:
    (call,) = load_folder(TERRAFORM / "environments" / size).of("module")
    (path,) = re.findall(r"kuberay/(values-[a-z0-9]+\.yaml)", call.body["values_file"])
    assert path == f"values-{size}.yaml"
    assert (CHART / path).exists()


# The checks can fail


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('resource "aws_kms_alias" "x" {\n  nam = "a"\n}', "nam does not exist"),
        ('resource "aws_kms_alias" "x" {\n  name = "a"\n}', "target_key_id is missing"),
        ('resource "aws_eks_cluster" "x" {\n  vpc_config = {}\n}', "vpc_config is a block"),
        ('resource "aws_s3_bucket_versioning" "x" {\n  bucket = "b"\n}', "versioning_configuration is missing"),
        (
            'resource "aws_kms_key" "x" {\n  deletion_window_in_days = "soon"\n}',
            'deletion_window_in_days is "\\"soon\\"", not a number',
        ),
    ],
)
def test_what_a_provider_refuses_is_found(text: str, fault: str) -> None:
    (block,) = parse(text)
    assert f"{block.address}: {fault}" in against_schema(block, SCHEMAS[block.labels[0]])


@pytest.mark.parametrize(
    "expression",
    [
        "var.nothing",
        "local.nothing",
        "module.nothing.id",
        "data.aws_region.nothing.region",
        "aws_vpc.nothing.id",
        "aws_vpc.here.colour",
    ],
)
def test_a_reference_to_nothing_is_found(expression: str) -> None:
    text = f'resource "aws_vpc" "here" {{}}\nresource "aws_kms_alias" "x" {{\n  name = "a-${{upper({expression})}}"\n}}'
    assert [wrong.rpartition(" ")[2] for wrong in unresolved(Folder(Path(), parse(text)), SCHEMAS)] == [expression]


_STATEMENT = 'data "aws_iam_policy_document" "x" {\n  statement {\n    actions = [%s]\n    resources = [%s]\n%s  }\n}'


@pytest.mark.parametrize(
    ("actions", "resources", "rest", "wrong"),
    [
        ('"s3:GetObject"', '"arn:aws:s3:::b/*"', "", False),
        ('"s3:*"', '"arn:aws:s3:::b/*"', "", True),
        ('"s3:Get*"', '"arn:aws:s3:::b/*"', "", True),
        ('"s3:GetObject"', '"*"', "", True),
        ('"ecr:GetAuthorizationToken"', '"*"', "", False),
        ('"s3:*"', '"arn:aws:s3:::b/*"', '    effect = "Deny"\n', False),
        ('"kms:Encrypt"', '"*"', '    principals {\n      identifiers = ["*"]\n    }\n', True),
        ('"kms:Encrypt"', '"*"', '    principals {\n      identifiers = ["arn:aws:iam::1:root"]\n    }\n', False),
    ],
)
def test_a_policy_that_allows_too_much_is_found(actions: str, resources: str, rest: str, wrong: bool) -> None:
    (block,) = parse(_STATEMENT % (actions, resources, rest))
    assert bool(excessive(block)) is wrong


@pytest.mark.parametrize(
    "text",
    [
        'resource "aws_vpc_security_group_ingress_rule" "x" {\n  cidr_ipv4 = "0.0.0.0/0"\n}',
        'resource "aws_security_group" "x" {\n  ingress {\n    cidr_blocks = ["0.0.0.0/0"]\n  }\n}',
        'resource "aws_eks_cluster" "x" {\n  vpc_config {\n    public_access_cidrs = ["0.0.0.0/0"]\n  }\n}',
    ],
)
def test_what_is_open_to_the_internet_is_found(text: str) -> None:
    assert closed_for_the_internet(parse(text)) != []


@pytest.mark.parametrize(
    "text",
    [
        'resource "aws_s3_bucket" "x" {}',
        'resource "aws_launch_template" "x" {\n  block_device_mappings {\n    ebs {}\n  }\n}',
        'resource "aws_sns_topic" "x" {}',
        'resource "aws_msk_cluster" "x" {\n  encryption_info {\n    encryption_in_transit {}\n  }\n}',
    ],
)
def test_a_store_without_encryption_is_found(text: str) -> None:
    assert encrypted(parse(text)) != []
    assert untagged(parse(text), SCHEMAS) != []
