# Pods get their roles from the Pod Identity agent: a role names the one service account that takes it, and no pod the node's.
data "aws_iam_policy_document" "pod_trust" {
  statement {
    actions = ["sts:AssumeRole", "sts:TagSession"]

    principals {
      type        = "Service"
      identifiers = ["pods.eks.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "network_addon" {
  name               = "${var.name}-vpc-cni"
  assume_role_policy = data.aws_iam_policy_document.pod_trust.json
  tags               = local.tags
}

resource "aws_iam_role_policy_attachment" "network_addon" {
  role       = aws_iam_role.network_addon.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/AmazonEKS_CNI_Policy"
}

resource "aws_iam_role" "disk_addon" {
  name               = "${var.name}-ebs-csi"
  assume_role_policy = data.aws_iam_policy_document.pod_trust.json
  tags               = local.tags
}

resource "aws_iam_role_policy_attachment" "disk_addon" {
  role       = aws_iam_role.disk_addon.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/service-role/AmazonEBSCSIDriverPolicy"
}

data "aws_iam_policy_document" "disk_key" {
  statement {
    sid       = "EncryptDisks"
    actions   = ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom", "kms:ReEncryptTo"]
    resources = [var.kms_key_arn]
  }

  statement {
    sid       = "HandTheKeyToDisks"
    actions   = ["kms:CreateGrant"]
    resources = [var.kms_key_arn]

    condition {
      test     = "Bool"
      variable = "kms:GrantIsForAWSResource"
      values   = ["true"]
    }
  }
}

resource "aws_iam_role_policy" "disk_key" {
  name   = "encrypt-disks"
  role   = aws_iam_role.disk_addon.id
  policy = data.aws_iam_policy_document.disk_key.json
}

# Before the first node: without a network no node becomes ready, and the network asks the agent for its role.
resource "aws_eks_addon" "before_nodes" {
  for_each = {
    "eks-pod-identity-agent" = { account = null, role = null, configuration = null }
    "kube-proxy"             = { account = null, role = null, configuration = null }
    # Network policies do nothing without this.
    "vpc-cni" = {
      account       = "aws-node"
      role          = aws_iam_role.network_addon.arn
      configuration = jsonencode({ enableNetworkPolicy = "true", env = { ENABLE_PREFIX_DELEGATION = "true" } })
    }
  }

  cluster_name                = aws_eks_cluster.this.name
  addon_name                  = each.key
  configuration_values        = each.value.configuration
  resolve_conflicts_on_create = "OVERWRITE"
  resolve_conflicts_on_update = "OVERWRITE"
  tags                        = local.tags

  dynamic "pod_identity_association" {
    for_each = each.value.role == null ? [] : [each.value]

    content {
      role_arn        = pod_identity_association.value.role
      service_account = pod_identity_association.value.account
    }
  }

  depends_on = [aws_iam_role_policy_attachment.network_addon]
}

resource "aws_eks_addon" "after_nodes" {
  for_each = {
    "coredns" = { account = null, role = null }
    "aws-ebs-csi-driver" = {
      account = "ebs-csi-controller-sa"
      role    = aws_iam_role.disk_addon.arn
    }
  }

  cluster_name                = aws_eks_cluster.this.name
  addon_name                  = each.key
  resolve_conflicts_on_create = "OVERWRITE"
  resolve_conflicts_on_update = "OVERWRITE"
  tags                        = local.tags

  dynamic "pod_identity_association" {
    for_each = each.value.role == null ? [] : [each.value]

    content {
      role_arn        = pod_identity_association.value.role
      service_account = pod_identity_association.value.account
    }
  }

  depends_on = [
    aws_eks_node_group.this,
    aws_iam_role_policy.disk_key,
    aws_iam_role_policy_attachment.disk_addon,
  ]
}

# Stores of shards: a volume lives as long as its pod, since a shard is a view of the log and starts from a snapshot.
resource "kubernetes_storage_class_v1" "stores" {
  metadata {
    name = "riverlens-stores"
  }

  storage_provisioner    = "ebs.csi.aws.com"
  reclaim_policy         = "Delete"
  volume_binding_mode    = "WaitForFirstConsumer"
  allow_volume_expansion = true

  parameters = {
    type       = "gp3"
    encrypted  = "true"
    kmsKeyId   = var.kms_key_arn
    iops       = "6000"
    throughput = "500"
  }

  depends_on = [aws_eks_addon.after_nodes]
}

resource "helm_release" "nvidia_device_plugin" {
  count = anytrue([for group in var.node_groups : group.gpu]) ? 1 : 0

  name       = "nvidia-device-plugin"
  namespace  = "kube-system"
  repository = "https://nvidia.github.io/k8s-device-plugin"
  chart      = "nvidia-device-plugin"
  version    = "0.17.4"

  values = [yamlencode({
    nodeSelector = { "riverlens.io/role" = "embedders" }
    tolerations  = [{ key = "riverlens.io/role", operator = "Exists", effect = "NoSchedule" }]
    affinity     = null
  })]

  depends_on = [aws_eks_node_group.this]
}
