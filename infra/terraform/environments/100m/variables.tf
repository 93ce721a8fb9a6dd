variable "region" {
  description = "AWS region."
  type        = string
  default     = "eu-central-1"

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "A region such as eu-central-1."
  }
}

variable "availability_zones" {
  description = "Three availability zones of the region."
  type        = list(string)
  default     = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]

  validation {
    condition     = length(distinct(var.availability_zones)) == 3 && alltrue([for zone in var.availability_zones : startswith(zone, var.region)])
    error_message = "Three different zones of the region are needed."
  }
}

variable "image_tag" {
  description = "Tag of the container images that run."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$", var.image_tag)) && var.image_tag != "latest"
    error_message = "A tag that means one image for ever; `latest` does not."
  }
}

variable "api_server_cidrs" {
  description = "Address ranges from which the Kubernetes API is reached over the internet; empty needs a way into the network."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.api_server_cidrs : can(cidrhost(cidr, 0))])
    error_message = "Each is an IPv4 network."
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

variable "alarm_emails" {
  description = "Addresses that get the alarms."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for email in var.alarm_emails : can(regex("@", email))])
    error_message = "Each is an e-mail address."
  }
}

variable "secret_version" {
  description = "Counted up to have new passwords and tokens made."
  type        = number
  default     = 1

  validation {
    condition     = var.secret_version >= 1
    error_message = "The version begins at 1."
  }
}
