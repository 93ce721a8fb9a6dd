locals {
  name = "riverlens-small"
}

module "platform" {
  source = "../../modules/platform"

  name                 = local.name
  availability_zones   = var.availability_zones
  api_server_cidrs     = var.api_server_cidrs
  admin_role_arns      = var.admin_role_arns
  alarm_emails         = var.alarm_emails
  image_tag            = var.image_tag
  secret_version       = var.secret_version
  values_file          = "${path.module}/../../../kuberay/values-small.yaml"
  nat_gateway_per_zone = false
  disposable           = true

  kafka = {
    broker_type      = "kafka.t3.small"
    brokers_per_zone = 1
    disk_gib         = 20
    disk_max_gib     = 200
  }

  # A million pictures, encoded on processors.
  node_groups = {
    system    = { role = "system", instance_types = ["m7i.large"], min = 2, max = 3 }
    head      = { role = "head", instance_types = ["m7i.large"], min = 1, max = 1 }
    api       = { role = "api", instance_types = ["c7i.xlarge"], min = 2, max = 4 }
    shards    = { role = "shards", instance_types = ["r7i.xlarge"], min = 2, max = 4 }
    embedders = { role = "embedders", instance_types = ["c7i.2xlarge"], min = 1, max = 4 }
  }
}
