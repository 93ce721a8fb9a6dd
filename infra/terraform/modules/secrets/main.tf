data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  tags    = merge(var.tags, { "riverlens:module" = "secrets" })
  account = data.aws_caller_identity.current.account_id

  # The service-linked role of groups of machines, the same in every account.
  autoscaling_role = "arn:${data.aws_partition.current.partition}:iam::${local.account}:role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling"

  logs = [for group in ["/${var.name}", "/aws/eks/${var.name}"] : "arn:${data.aws_partition.current.partition}:logs:${data.aws_region.current.region}:${local.account}:log-group:${group}/*"]
}

# In a key's policy the resource "*" is this key and no other.
data "aws_iam_policy_document" "key" {
  statement {
    sid = "AccountAdministersTheKey"
    actions = [
      "kms:CancelKeyDeletion", "kms:CreateAlias", "kms:CreateGrant", "kms:Decrypt", "kms:DeleteAlias", "kms:DescribeKey", "kms:DisableKey", "kms:EnableKey", "kms:EnableKeyRotation",
      "kms:Encrypt", "kms:GenerateDataKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:GetKeyPolicy", "kms:GetKeyRotationStatus",
      "kms:ListGrants", "kms:ListKeyPolicies", "kms:ListResourceTags", "kms:PutKeyPolicy", "kms:ReEncryptFrom", "kms:ReEncryptTo",
      "kms:RetireGrant", "kms:RevokeGrant", "kms:ScheduleKeyDeletion", "kms:TagResource", "kms:UntagResource", "kms:UpdateAlias", "kms:UpdateKeyDescription",
    ]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = ["arn:${data.aws_partition.current.partition}:iam::${local.account}:root"]
    }
  }

  statement {
    sid       = "LogsOfThisInstallation"
    actions   = ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey", "kms:ReEncryptFrom", "kms:ReEncryptTo"]
    resources = ["*"]

    principals {
      type        = "Service"
      identifiers = ["logs.${data.aws_region.current.region}.amazonaws.com"]
    }

    condition {
      test     = "ArnLike"
      variable = "kms:EncryptionContext:aws:logs:arn"
      values   = local.logs
    }
  }

  # Alarms of CloudWatch go through an encrypted topic.
  statement {
    sid       = "AlarmsOfThisAccount"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = ["*"]

    principals {
      type        = "Service"
      identifiers = ["cloudwatch.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [local.account]
    }
  }

  # Groups of nodes with encrypted disks: the role that starts their machines uses the key, and hands it on to the disks alone.
  # It is named by conditions, because a policy cannot name a role that a new account does not have yet.
  statement {
    sid       = "DisksOfNodes"
    actions   = ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom", "kms:ReEncryptTo"]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = ["*"]
    }

    condition {
      test     = "StringEquals"
      variable = "kms:CallerAccount"
      values   = [local.account]
    }

    condition {
      test     = "ArnEquals"
      variable = "aws:PrincipalArn"
      values   = [local.autoscaling_role]
    }
  }

  statement {
    sid       = "GrantsForDisksOfNodes"
    actions   = ["kms:CreateGrant"]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = ["*"]
    }

    condition {
      test     = "StringEquals"
      variable = "kms:CallerAccount"
      values   = [local.account]
    }

    condition {
      test     = "ArnEquals"
      variable = "aws:PrincipalArn"
      values   = [local.autoscaling_role]
    }

    condition {
      test     = "Bool"
      variable = "kms:GrantIsForAWSResource"
      values   = ["true"]
    }
  }
}

resource "aws_kms_key" "this" {
  description             = "Everything that ${var.name} keeps"
  enable_key_rotation     = true
  deletion_window_in_days = var.recovery_window_days
  policy                  = data.aws_iam_policy_document.key.json
  tags                    = local.tags
}

resource "aws_kms_alias" "this" {
  name          = "alias/${var.name}"
  target_key_id = aws_kms_key.this.key_id
}

# Ephemeral: neither the plan nor the state ever holds these values.
ephemeral "random_password" "kafka" {
  length  = 40
  special = false
}

ephemeral "random_password" "ray" {
  length  = 64
  special = false
}

# MSK takes only secrets whose names begin like this, under a key of one's own.
resource "aws_secretsmanager_secret" "kafka" {
  name                    = "AmazonMSK_${var.name}"
  description             = "Kafka user of ${var.name}"
  kms_key_id              = aws_kms_key.this.arn
  recovery_window_in_days = var.recovery_window_days
  tags                    = local.tags
}

resource "aws_secretsmanager_secret_version" "kafka" {
  secret_id                = aws_secretsmanager_secret.kafka.id
  secret_string_wo         = jsonencode({ username = var.kafka_user, password = ephemeral.random_password.kafka.result })
  secret_string_wo_version = var.secret_version
}

# Whoever reaches Ray with this token can run code in the cluster.
resource "aws_secretsmanager_secret" "ray" {
  name                    = "${var.name}/ray-token"
  description             = "Token that every process of the Ray cluster shows"
  kms_key_id              = aws_kms_key.this.arn
  recovery_window_in_days = var.recovery_window_days
  tags                    = local.tags
}

resource "aws_secretsmanager_secret_version" "ray" {
  secret_id                = aws_secretsmanager_secret.ray.id
  secret_string_wo         = jsonencode({ auth_token = ephemeral.random_password.ray.result })
  secret_string_wo_version = var.secret_version
}
