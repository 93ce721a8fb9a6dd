variable "name" {
  description = "Name that every resource of the installation begins with."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,22}[a-z0-9]$", var.name))
    error_message = "The name has 3 to 24 characters: lower-case letters, digits and hyphens, a letter first and no hyphen last."
  }
}

variable "cidr" {
  description = "Address range of the network, from /16 to /20; every pod takes an address of it."
  type        = string
  default     = "10.40.0.0/16"

  validation {
    condition     = can(cidrhost(var.cidr, 0)) && try(tonumber(split("/", var.cidr)[1]) >= 16 && tonumber(split("/", var.cidr)[1]) <= 20, false)
    error_message = "The range is an IPv4 network from /16 to /20."
  }
}

variable "availability_zones" {
  description = "Three availability zones: Kafka keeps a broker, and the collections keep their replicas, in different ones."
  type        = list(string)

  validation {
    condition     = length(var.availability_zones) == 3 && length(distinct(var.availability_zones)) == 3
    error_message = "Three different availability zones are needed."
  }
}

variable "nat_gateway_per_zone" {
  description = "Whether each zone has a NAT gateway of its own; otherwise the one of the first zone serves all, and takes all with it."
  type        = bool
  default     = true
}

variable "flow_log_retention_days" {
  description = "Days for which flow logs are kept."
  type        = number
  default     = 30

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 180, 365], var.flow_log_retention_days)
    error_message = "CloudWatch keeps logs for 1, 3, 5, 7, 14, 30, 60, 90, 180 or 365 days."
  }
}

variable "kms_key_arn" {
  description = "KMS key that encrypts the flow logs."
  type        = string

  validation {
    condition     = can(regex("^arn:aws[a-z-]*:kms:", var.kms_key_arn))
    error_message = "The ARN of a KMS key is needed."
  }
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
