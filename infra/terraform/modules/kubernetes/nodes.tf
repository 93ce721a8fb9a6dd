data "aws_iam_policy_document" "node_trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "node" {
  name               = "${var.name}-node"
  assume_role_policy = data.aws_iam_policy_document.node_trust.json
  tags               = local.tags
}

resource "aws_iam_role_policy_attachment" "node" {
  role       = aws_iam_role.node.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/AmazonEKSWorkerNodePolicy"
}

data "aws_iam_policy_document" "node_pull" {
  # AWS lets this action name no resource.
  statement {
    sid       = "LogInToTheRegistry"
    actions   = ["ecr:GetAuthorizationToken"]
    resources = ["*"]
  }

  statement {
    sid     = "PullImages"
    actions = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
    resources = concat(
      var.repository_arns,
      ["arn:${data.aws_partition.current.partition}:ecr:${data.aws_region.current.region}:${var.addon_registry_account}:repository/*"],
    )
  }
}

resource "aws_iam_role_policy" "node_pull" {
  name   = "pull-images"
  role   = aws_iam_role.node.id
  policy = data.aws_iam_policy_document.node_pull.json
}

resource "aws_launch_template" "node" {
  for_each = var.node_groups

  name_prefix            = "${var.name}-${each.key}-"
  update_default_version = true
  tags                   = local.tags

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_type           = "gp3"
      volume_size           = each.value.disk_gib
      encrypted             = true
      kms_key_id            = var.kms_key_arn
      delete_on_termination = true
    }
  }

  # One hop: a pod does not reach the credentials of its node.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  tag_specifications {
    resource_type = "instance"
    tags          = merge(local.tags, { Name = "${var.name}-${each.key}" })
  }

  tag_specifications {
    resource_type = "volume"
    tags          = merge(local.tags, { Name = "${var.name}-${each.key}" })
  }
}

resource "aws_eks_node_group" "this" {
  for_each = var.node_groups

  cluster_name    = aws_eks_cluster.this.name
  node_group_name = each.key
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = var.subnet_ids
  instance_types  = each.value.instance_types
  ami_type        = each.value.gpu ? "AL2023_x86_64_NVIDIA" : "AL2023_x86_64_STANDARD"
  capacity_type   = each.value.spot ? "SPOT" : "ON_DEMAND"
  labels          = { "riverlens.io/role" = each.value.role }
  tags            = local.tags

  launch_template {
    id      = aws_launch_template.node[each.key].id
    version = aws_launch_template.node[each.key].latest_version
  }

  scaling_config {
    min_size     = each.value.min
    max_size     = each.value.max
    desired_size = each.value.min
  }

  update_config {
    max_unavailable = 1
  }

  dynamic "taint" {
    for_each = each.value.role == "system" ? [] : [each.value.role]

    content {
      key    = "riverlens.io/role"
      value  = taint.value
      effect = "NO_SCHEDULE"
    }
  }

  lifecycle {
    # The cluster autoscaler decides.
    ignore_changes = [scaling_config[0].desired_size]
  }

  depends_on = [
    aws_eks_addon.before_nodes,
    aws_iam_role_policy.node_pull,
    aws_iam_role_policy_attachment.node,
  ]
}

locals {
  # What a group without a machine would offer; the autoscaler cannot look at one.
  group_tags = merge([
    for key, group in var.node_groups : merge(
      {
        "${key}/label" = { group = key, key = "k8s.io/cluster-autoscaler/node-template/label/riverlens.io/role", value = group.role }
      },
      group.role == "system" ? {} : {
        "${key}/taint" = { group = key, key = "k8s.io/cluster-autoscaler/node-template/taint/riverlens.io/role", value = "${group.role}:NoSchedule" }
      },
      group.gpu ? {
        "${key}/gpu" = { group = key, key = "k8s.io/cluster-autoscaler/node-template/resources/nvidia.com/gpu", value = "1" }
      } : {},
    )
  ]...)
}

resource "aws_autoscaling_group_tag" "node" {
  for_each = local.group_tags

  autoscaling_group_name = aws_eks_node_group.this[each.value.group].resources[0].autoscaling_groups[0].name

  tag {
    key                 = each.value.key
    value               = each.value.value
    propagate_at_launch = false
  }
}
