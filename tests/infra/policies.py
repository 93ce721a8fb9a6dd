"""What a reviewer of Terraform looks for first: who may do what, what is open, what is encrypted, what bears tags."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.infra.terraform_files import Block, plain

# AWS lets these actions name no resource (Service Authorization Reference).
_OF_NO_RESOURCE = {
    "autoscaling:DescribeAutoScalingGroups",
    "autoscaling:DescribeAutoScalingInstances",
    "autoscaling:DescribeLaunchConfigurations",
    "autoscaling:DescribeScalingActivities",
    "ec2:DescribeImages",
    "ec2:DescribeInstanceTypes",
    "ec2:DescribeLaunchTemplateVersions",
    "ec2:GetInstanceTypesFromInstanceRequirements",
    "ecr:GetAuthorizationToken",
}
_INTERNET = ("0.0.0.0/0", "::/0")
# What has to stand somewhere within a resource of a type for its data to be encrypted.
_ENCRYPTION = {
    "aws_cloudwatch_log_group": "kms_key_id",
    "aws_ecr_repository": '"encryption_type": "\\"KMS\\""',
    "aws_eks_cluster": "encryption_config",
    "aws_launch_template": '"encrypted": "true"',
    "aws_msk_cluster": '"client_broker": "\\"TLS\\""',
    "aws_secretsmanager_secret": "kms_key_id",
    "aws_sns_topic": "kms_master_key_id",
}
_OF_A_BUCKET = ("aws_s3_bucket_server_side_encryption_configuration", "aws_s3_bucket_public_access_block")


def statements(block: Block) -> list[dict[str, Any]]:
    """The statements of a policy document; none for another block."""
    found: list[dict[str, Any]] = block.body.get("statement", [])
    return found if block.labels[:1] == ("aws_iam_policy_document",) else []


def excessive(block: Block) -> list[str]:
    """Allowances that are too wide: wildcards in actions, every resource where one could be named, anybody."""
    wrong = []
    for statement in statements(block):
        if '"Deny"' in str(statement.get("effect")):
            continue
        actions = plain(statement["actions"])
        if '"*"' in str(statement.get("principals")) and "condition" not in statement:
            wrong.append(f"{block.address}: anybody may {actions}")
        wrong += [f"{block.address}: {action}" for action in actions if "*" in action]
        # With principals it is a resource's own policy: there "*" is that resource.
        if "*" in plain(statement.get("resources", [])) and "principals" not in statement:
            wrong += [f"{block.address}: {action} on everything" for action in sorted(set(actions) - _OF_NO_RESOURCE)]
    return wrong


def closed_for_the_internet(blocks: Sequence[Block]) -> list[str]:
    """Resources that let everybody in. A route to a gateway lets nobody in."""
    wrong = []
    for block in blocks:
        inbound: Any = None
        match block.labels[:1]:
            case ("aws_vpc_security_group_ingress_rule",):
                inbound = block.body
            case ("aws_security_group" | "aws_default_security_group",):
                inbound = block.body.get("ingress")
            case ("aws_eks_cluster",):
                inbound = block.body.get("vpc_config")
        if inbound is not None and any(network in json.dumps(inbound) for network in _INTERNET):
            wrong.append(f"{block.address} is open to the internet")
    return wrong


def encrypted(blocks: Sequence[Block]) -> list[str]:
    """Resources that keep data as it is; a bucket is encrypted by a resource of its own."""
    wrong = []
    resources = [block for block in blocks if block.kind == "resource"]
    for block in resources:
        sign = _ENCRYPTION.get(block.labels[0])
        if sign is not None and sign not in _as_text(block.body):
            wrong.append(f"{block.address} is not encrypted")
        if block.labels[0] == "aws_s3_bucket":
            wrong += [f"{block.address} has no {kind}" for kind in _OF_A_BUCKET if not _guards(resources, kind, block)]
    return wrong


def _guards(resources: Sequence[Block], kind: str, bucket: Block) -> bool:
    return any(b.labels[0] == kind and f"{bucket.address}.id" in str(b.body.get("bucket")) for b in resources)


def _as_text(body: dict[str, Any]) -> str:
    """JSON in which `true` of HCL looks alike as a value and as an expression."""
    return json.dumps(body).replace(": true", ': "true"').replace("${true}", "true")


def untagged(blocks: Sequence[Block], schemas: dict[str, Any]) -> list[str]:
    """Resources whose type takes tags and that have none."""
    resources = [block for block in blocks if block.kind == "resource"]
    return [b.address for b in resources if "tags" in schemas[b.labels[0]]["arguments"] and "tags" not in b.body]
