locals {
  tags = merge(var.tags, { "riverlens:module" = "kafka" })

  # Where clients with SCRAM over TLS connect, and where the brokers show their metrics.
  client_ports = { scram = 9096, jmx_exporter = 11001, node_exporter = 11002 }
}

resource "aws_security_group" "this" {
  name        = "${var.name}-kafka"
  description = "Brokers of ${var.name}"
  vpc_id      = var.vpc_id
  tags        = merge(local.tags, { Name = "${var.name}-kafka" })
}

resource "aws_vpc_security_group_ingress_rule" "clients" {
  for_each = local.client_ports

  security_group_id            = aws_security_group.this.id
  description                  = "Nodes to ${each.key}"
  referenced_security_group_id = var.client_security_group_id
  from_port                    = each.value
  to_port                      = each.value
  ip_protocol                  = "tcp"
  tags                         = local.tags
}

resource "aws_cloudwatch_log_group" "brokers" {
  name              = "/${var.name}/kafka/brokers"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
  tags              = local.tags
}

resource "aws_msk_configuration" "this" {
  name           = var.name
  kafka_versions = [var.kafka_version]

  # Riverlens makes its topics itself, with their number of partitions. A write counts when two of three replicas have it.
  # Without a rule of access the one user may do everything; docs on narrowing that are in this module's README.
  server_properties = <<-PROPERTIES
    auto.create.topics.enable=false
    default.replication.factor=3
    min.insync.replicas=2
    unclean.leader.election.enable=false
    message.max.bytes=1048588
    allow.everyone.if.no.acl.found=true
  PROPERTIES

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_msk_cluster" "this" {
  cluster_name           = var.name
  kafka_version          = var.kafka_version
  number_of_broker_nodes = 3 * var.brokers_per_zone
  enhanced_monitoring    = "PER_TOPIC_PER_BROKER"
  tags                   = local.tags

  broker_node_group_info {
    instance_type   = var.broker_type
    client_subnets  = var.subnet_ids
    security_groups = [aws_security_group.this.id]

    storage_info {
      ebs_storage_info {
        volume_size = var.disk_gib
      }
    }
  }

  configuration_info {
    arn      = aws_msk_configuration.this.arn
    revision = aws_msk_configuration.this.latest_revision
  }

  client_authentication {
    unauthenticated = false

    sasl {
      scram = true
      iam   = false
    }
  }

  encryption_info {
    encryption_at_rest_kms_key_arn = var.kms_key_arn

    encryption_in_transit {
      client_broker = "TLS"
      in_cluster    = true
    }
  }

  open_monitoring {
    prometheus {
      jmx_exporter {
        enabled_in_broker = true
      }

      node_exporter {
        enabled_in_broker = true
      }
    }
  }

  logging_info {
    broker_logs {
      cloudwatch_logs {
        enabled   = true
        log_group = aws_cloudwatch_log_group.brokers.name
      }
    }
  }

  lifecycle {
    # Disks grow by themselves; the size here is only their first one.
    ignore_changes = [broker_node_group_info[0].storage_info[0].ebs_storage_info[0].volume_size]

    precondition {
      condition     = var.disk_max_gib >= var.disk_gib
      error_message = "disk_max_gib is less than disk_gib."
    }
  }
}

data "aws_iam_policy_document" "secret" {
  statement {
    sid       = "BrokersReadTheUser"
    actions   = ["secretsmanager:GetSecretValue"]
    resources = [var.secret_arn]

    principals {
      type        = "Service"
      identifiers = ["kafka.amazonaws.com"]
    }
  }
}

resource "aws_secretsmanager_secret_policy" "this" {
  secret_arn = var.secret_arn
  policy     = data.aws_iam_policy_document.secret.json
}

resource "aws_msk_scram_secret_association" "this" {
  cluster_arn     = aws_msk_cluster.this.arn
  secret_arn_list = [var.secret_arn]

  depends_on = [aws_secretsmanager_secret_policy.this]
}

resource "aws_appautoscaling_target" "disk" {
  service_namespace  = "kafka"
  scalable_dimension = "kafka:broker-storage:VolumeSize"
  resource_id        = aws_msk_cluster.this.arn
  min_capacity       = 1
  max_capacity       = var.disk_max_gib
  tags               = local.tags
}

resource "aws_appautoscaling_policy" "disk" {
  name               = "${var.name}-kafka-disk"
  policy_type        = "TargetTrackingScaling"
  service_namespace  = aws_appautoscaling_target.disk.service_namespace
  scalable_dimension = aws_appautoscaling_target.disk.scalable_dimension
  resource_id        = aws_appautoscaling_target.disk.resource_id

  target_tracking_scaling_policy_configuration {
    target_value     = 60
    disable_scale_in = true

    predefined_metric_specification {
      predefined_metric_type = "KafkaBrokerStorageUtilization"
    }
  }
}
