locals {
  name = "riverlens-100m"
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
  values_file          = "${path.module}/../../../kuberay/values-100m.yaml"
  nat_gateway_per_zone = true

  kafka = {
    broker_type      = "kafka.m7g.xlarge"
    brokers_per_zone = 1
    disk_gib         = 1000
    disk_max_gib     = 4000
  }

  # A hundred million pictures in two replicas; the README says how the sizes follow from what was measured.
  node_groups = {
    system    = { role = "system", instance_types = ["m7i.xlarge"], min = 3, max = 6 }
    head      = { role = "head", instance_types = ["m7i.2xlarge"], min = 1, max = 1 }
    api       = { role = "api", instance_types = ["c7i.2xlarge"], min = 6, max = 12 }
    shards    = { role = "shards", instance_types = ["r7i.4xlarge"], min = 8, max = 16, disk_gib = 200 }
    embedders = { role = "embedders", instance_types = ["g6.2xlarge"], gpu = true, min = 2, max = 8, disk_gib = 200 }
  }
}
