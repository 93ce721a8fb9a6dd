variable "name" {
  description = "Name that every resource of the installation begins with."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,22}[a-z0-9]$", var.name))
    error_message = "The name has 3 to 24 characters: lower-case letters, digits and hyphens, a letter first and no hyphen last."
  }
}

variable "kafka_user" {
  description = "Kafka user of the application."
  type        = string
  default     = "riverlens"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,62}$", var.kafka_user))
    error_message = "A Kafka user has lower-case letters, digits and hyphens."
  }
}

variable "secret_version" {
  description = "Counted up to have new passwords and tokens made; the workloads are restarted afterwards."
  type        = number
  default     = 1

  validation {
    condition     = var.secret_version >= 1 && floor(var.secret_version) == var.secret_version
    error_message = "The version is a whole number from 1 on."
  }
}

variable "recovery_window_days" {
  description = "Days in which a deleted secret or key can be brought back."
  type        = number
  default     = 30

  validation {
    condition     = var.recovery_window_days >= 7 && var.recovery_window_days <= 30
    error_message = "AWS keeps what was deleted for 7 to 30 days."
  }
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
