locals {
  tags = merge(var.tags, { "riverlens:installation" = var.name })
}

module "secrets" {
  source = "../secrets"

  name                 = var.name
  secret_version       = var.secret_version
  recovery_window_days = var.disposable ? 7 : 30
  tags                 = local.tags
}

module "network" {
  source = "../network"

  name                 = var.name
  cidr                 = var.cidr
  availability_zones   = var.availability_zones
  nat_gateway_per_zone = var.nat_gateway_per_zone
  kms_key_arn          = module.secrets.kms_key_arn
  tags                 = local.tags
}

module "object_store" {
  source = "../object-store"

  name          = var.name
  kms_key_arn   = module.secrets.kms_key_arn
  force_destroy = var.disposable
  tags          = local.tags
}

module "registry" {
  source = "../registry"

  name        = var.name
  kms_key_arn = module.secrets.kms_key_arn
  tags        = local.tags
}

module "kubernetes" {
  source = "../kubernetes"

  name             = var.name
  subnet_ids       = module.network.private_subnet_ids
  api_server_cidrs = var.api_server_cidrs
  admin_role_arns  = var.admin_role_arns
  kms_key_arn      = module.secrets.kms_key_arn
  repository_arns  = module.registry.repository_arns
  node_groups      = var.node_groups
  tags             = local.tags
}

module "kafka" {
  source = "../kafka"

  name                     = var.name
  vpc_id                   = module.network.vpc_id
  subnet_ids               = module.network.private_subnet_ids
  client_security_group_id = module.kubernetes.node_security_group_id
  secret_arn               = module.secrets.kafka_secret_arn
  kms_key_arn              = module.secrets.kms_key_arn
  broker_type              = var.kafka.broker_type
  brokers_per_zone         = var.kafka.brokers_per_zone
  disk_gib                 = var.kafka.disk_gib
  disk_max_gib             = var.kafka.disk_max_gib
  tags                     = local.tags
}

module "monitoring" {
  source = "../monitoring"

  name               = var.name
  kms_key_arn        = module.secrets.kms_key_arn
  kafka_cluster_name = module.kafka.cluster_name
  kafka_broker_count = 3 * var.kafka.brokers_per_zone
  alarm_emails       = var.alarm_emails
  storage_class      = module.kubernetes.storage_class
  tags               = local.tags
}

module "kuberay" {
  source = "../kuberay"

  name                 = var.name
  cluster_name         = module.kubernetes.cluster_name
  pod_trust_policy     = module.kubernetes.pod_trust_policy
  bootstrap_brokers    = module.kafka.bootstrap_brokers
  storage_class        = module.kubernetes.storage_class
  monitoring_namespace = module.monitoring.namespace
  values_file          = var.values_file
  tags                 = local.tags

  # Without a machine with a GPU, embedders run from the smaller image, too.
  images = {
    cpu = "${module.registry.repository_urls["cpu"]}:${var.image_tag}"
    gpu = "${module.registry.repository_urls[anytrue([for group in var.node_groups : group.gpu]) ? "gpu" : "cpu"]}:${var.image_tag}"
  }

  object_store = {
    bucket_arn = module.object_store.bucket_arn
    url        = module.object_store.url
  }

  secrets = {
    kafka_name  = module.secrets.kafka_secret_name
    kafka_arn   = module.secrets.kafka_secret_arn
    ray_name    = module.secrets.ray_secret_name
    ray_arn     = module.secrets.ray_secret_arn
    kms_key_arn = module.secrets.kms_key_arn
  }
}
