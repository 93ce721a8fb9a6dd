# Both environments with providers that make nothing: what the modules hand each other, and what they refuse.

# What AWS would have given, in its form: the modules check each other's arguments.
mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = {
      account_id = "123456789012"
    }
  }

  mock_data "aws_partition" {
    defaults = {
      partition = "aws"
    }
  }

  mock_data "aws_region" {
    defaults = {
      region = "eu-central-1"
    }
  }

  mock_data "aws_iam_policy_document" {
    defaults = {
      json = "{\"Version\":\"2012-10-17\",\"Statement\":[]}"
    }
  }

  mock_resource "aws_vpc" {
    defaults = {
      id = "vpc-0123456789abcdef0"
    }
  }

  mock_resource "aws_kms_key" {
    defaults = {
      arn = "arn:aws:kms:eu-central-1:123456789012:key/mock"
    }
  }

  mock_resource "aws_secretsmanager_secret" {
    defaults = {
      arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:AmazonMSK_mock"
    }
  }

  mock_resource "aws_ecr_repository" {
    defaults = {
      arn            = "arn:aws:ecr:eu-central-1:123456789012:repository/mock"
      repository_url = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/mock"
    }
  }

  mock_resource "aws_eks_cluster" {
    defaults = {
      certificate_authority = [{ data = "bW9jaw==" }]
      vpc_config            = { cluster_security_group_id = "sg-0123456789abcdef0" }
    }
  }

  mock_resource "aws_eks_node_group" {
    defaults = {
      resources = [{ autoscaling_groups = [{ name = "eks-mock" }], remote_access_security_group_id = "" }]
    }
  }

  mock_resource "aws_msk_cluster" {
    defaults = {
      bootstrap_brokers_sasl_scram = "b-1.example:9096,b-2.example:9096,b-3.example:9096"
    }
  }
}

mock_provider "kubernetes" {}

mock_provider "helm" {}

mock_provider "random" {}

variables {
  image_tag = "1.0.0"
}

run "small_installation" {
  command = apply

  module {
    source = "../environments/small"
  }

  assert {
    condition     = output.cluster_name == "riverlens-small"
    error_message = "The cluster bears another name."
  }

  assert {
    condition     = output.object_store_url == "s3://riverlens-small-objects-123456789012"
    error_message = "The bucket bears another name."
  }

  assert {
    condition     = output.bootstrap_brokers == "b-1.example:9096,b-2.example:9096,b-3.example:9096"
    error_message = "Clients are sent elsewhere than to the brokers for SCRAM over TLS."
  }

  assert {
    condition     = toset(keys(output.repository_urls)) == toset(["cpu", "gpu"])
    error_message = "There is not a repository for each target of the Dockerfile."
  }
}

run "small_a_tag_that_moves_is_refused" {
  command = plan

  module {
    source = "../environments/small"
  }

  variables {
    image_tag = "latest"
  }

  expect_failures = [var.image_tag]
}

run "small_zones_of_another_region_are_refused" {
  command = plan

  module {
    source = "../environments/small"
  }

  variables {
    availability_zones = ["us-east-1a", "us-east-1b", "us-east-1c"]
  }

  expect_failures = [var.availability_zones]
}

run "hundred_million_installation" {
  command = apply

  module {
    source = "../environments/100m"
  }

  assert {
    condition     = output.cluster_name == "riverlens-100m"
    error_message = "The cluster bears another name."
  }

  assert {
    condition     = output.namespace == "riverlens"
    error_message = "The application is in another namespace."
  }
}

run "hundred_million_too_few_zones_are_refused" {
  command = plan

  module {
    source = "../environments/100m"
  }

  variables {
    availability_zones = ["eu-central-1a", "eu-central-1b"]
  }

  expect_failures = [var.availability_zones]
}
