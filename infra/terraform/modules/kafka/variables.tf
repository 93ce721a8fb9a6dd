variable "name" {
  description = "Name that every resource of the installation begins with."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,22}[a-z0-9]$", var.name))
    error_message = "The name has 3 to 24 characters: lower-case letters, digits and hyphens, a letter first and no hyphen last."
  }
}

variable "vpc_id" {
  description = "Network of the brokers."
  type        = string

  validation {
    condition     = startswith(var.vpc_id, "vpc-")
    error_message = "The id of a VPC is needed."
  }
}

variable "subnet_ids" {
  description = "Private subnets, one per zone."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) == 3
    error_message = "The brokers need three subnets in three zones."
  }
}

variable "client_security_group_id" {
  description = "Security group of those who may connect: the nodes of the cluster."
  type        = string

  validation {
    condition     = startswith(var.client_security_group_id, "sg-")
    error_message = "The id of a security group is needed."
  }
}

variable "secret_arn" {
  description = "Secret with the SCRAM user; its name begins with AmazonMSK_."
  type        = string

  validation {
    condition     = can(regex(":secret:AmazonMSK_", var.secret_arn))
    error_message = "MSK takes only secrets whose names begin with AmazonMSK_."
  }
}

variable "kms_key_arn" {
  description = "KMS key that encrypts the brokers' disks and logs."
  type        = string

  validation {
    condition     = can(regex("^arn:aws[a-z-]*:kms:", var.kms_key_arn))
    error_message = "The ARN of a KMS key is needed."
  }
}

variable "kafka_version" {
  description = "Version of Apache Kafka."
  type        = string
  default     = "3.9.x"

  validation {
    condition     = can(regex("^[34]\\.[0-9]+\\.(x|[0-9]+)(\\.kraft)?$", var.kafka_version))
    error_message = "A version as MSK names it, such as 3.9.x."
  }
}

variable "broker_type" {
  description = "Kind of machine of a broker."
  type        = string
  default     = "kafka.m7g.large"

  validation {
    condition     = can(regex("^kafka\\.(t3|m5|m7g)\\.[0-9a-z]+$", var.broker_type))
    error_message = "A kind of broker such as kafka.m7g.large."
  }
}

variable "brokers_per_zone" {
  description = "Brokers in each of the three zones."
  type        = number
  default     = 1

  validation {
    condition     = var.brokers_per_zone >= 1 && var.brokers_per_zone <= 10
    error_message = "One to ten brokers per zone."
  }
}

variable "disk_gib" {
  description = "Disk of each broker at the start, in GiB. The embedding log is the source of truth, so it is never cut by time."
  type        = number
  default     = 100

  validation {
    condition     = var.disk_gib >= 10 && var.disk_gib <= 16384
    error_message = "A broker's disk has 10 to 16384 GiB."
  }
}

variable "disk_max_gib" {
  description = "Size up to which the disks grow by themselves, in GiB; they never shrink."
  type        = number
  default     = 1000

  validation {
    condition     = var.disk_max_gib >= 10 && var.disk_max_gib <= 16384
    error_message = "A broker's disk has 10 to 16384 GiB."
  }
}

variable "log_retention_days" {
  description = "Days for which the brokers' own logs are kept."
  type        = number
  default     = 14

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
