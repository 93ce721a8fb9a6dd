variable "name" {
  description = "Name that every resource of the installation begins with."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,22}[a-z0-9]$", var.name))
    error_message = "The name has 3 to 24 characters: lower-case letters, digits and hyphens, a letter first and no hyphen last."
  }
}

variable "kubernetes_version" {
  description = "Version of Kubernetes."
  type        = string
  default     = "1.34"

  validation {
    condition     = can(regex("^1\\.[0-9]{2}$", var.kubernetes_version))
    error_message = "A version such as 1.34."
  }
}

variable "subnet_ids" {
  description = "Private subnets of nodes and pods, one per zone."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) == 3
    error_message = "The nodes need three subnets in three zones."
  }
}

variable "api_server_cidrs" {
  description = "Address ranges from which the Kubernetes API is reached over the internet; empty for none."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.api_server_cidrs : can(cidrhost(cidr, 0)) && try(tonumber(split("/", cidr)[1]) >= 8, false)])
    error_message = "Each is an IPv4 network of /8 or smaller; the whole internet is refused."
  }
}

variable "admin_role_arns" {
  description = "Roles of people and pipelines that administer the cluster."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.admin_role_arns : can(regex("^arn:aws[a-z-]*:iam::[0-9]{12}:role/", arn))])
    error_message = "Each is the ARN of an IAM role."
  }
}

variable "kms_key_arn" {
  description = "KMS key that encrypts Kubernetes secrets, disks and logs."
  type        = string

  validation {
    condition     = can(regex("^arn:aws[a-z-]*:kms:", var.kms_key_arn))
    error_message = "The ARN of a KMS key is needed."
  }
}

variable "repository_arns" {
  description = "Image repositories from which nodes pull."
  type        = list(string)

  validation {
    condition     = length(var.repository_arns) > 0 && alltrue([for arn in var.repository_arns : can(regex(":ecr:", arn))])
    error_message = "The ARNs of the image repositories are needed."
  }
}

variable "addon_registry_account" {
  description = "AWS account whose registry holds the images of the EKS add-ons; it differs between regions."
  type        = string
  default     = "602401143452"

  validation {
    condition     = can(regex("^[0-9]{12}$", var.addon_registry_account))
    error_message = "An account has twelve digits."
  }
}

variable "node_groups" {
  description = "Groups of machines. `role` becomes the label and taint `riverlens.io/role`; `system` has no taint. `gpu` takes the NVIDIA image."
  type = map(object({
    role           = string
    instance_types = list(string)
    gpu            = optional(bool, false)
    min            = number
    max            = number
    disk_gib       = optional(number, 100)
    spot           = optional(bool, false)
  }))

  validation {
    condition     = length([for group in var.node_groups : group if group.role == "system" && group.min >= 2]) >= 1
    error_message = "A group with the role `system` and two machines at least is needed."
  }

  validation {
    condition     = alltrue([for group in var.node_groups : contains(["system", "head", "api", "shards", "embedders"], group.role)])
    error_message = "A role is system, head, api, shards or embedders."
  }

  validation {
    condition     = alltrue([for group in var.node_groups : group.min >= 0 && group.max >= 1 && group.min <= group.max])
    error_message = "A group has from `min` to `max` machines."
  }

  validation {
    condition     = alltrue([for group in var.node_groups : group.disk_gib >= 30 && length(group.instance_types) > 0])
    error_message = "A group names its kinds of machine and has disks of 30 GiB at least: the images take ten."
  }
}

variable "log_retention_days" {
  description = "Days for which the logs of the control plane are kept."
  type        = number
  default     = 30

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 180, 365], var.log_retention_days)
    error_message = "CloudWatch keeps logs for 1, 3, 5, 7, 14, 30, 60, 90, 180 or 365 days."
  }
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
