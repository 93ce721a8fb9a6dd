variable "name" {
  description = "Name that every resource of the installation begins with."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,22}[a-z0-9]$", var.name))
    error_message = "The name has 3 to 24 characters: lower-case letters, digits and hyphens, a letter first and no hyphen last."
  }
}

variable "kms_key_arn" {
  description = "KMS key that encrypts the alarms on their way."
  type        = string

  validation {
    condition     = can(regex("^arn:aws[a-z-]*:kms:", var.kms_key_arn))
    error_message = "The ARN of a KMS key is needed."
  }
}

variable "kafka_cluster_name" {
  description = "Kafka cluster that is watched."
  type        = string

  validation {
    condition     = length(var.kafka_cluster_name) > 0
    error_message = "The name of the Kafka cluster is needed."
  }
}

variable "kafka_broker_count" {
  description = "Brokers of the Kafka cluster."
  type        = number

  validation {
    condition     = var.kafka_broker_count >= 1
    error_message = "There is one broker at least."
  }
}

variable "alarm_emails" {
  description = "Addresses that get the alarms; each has to be confirmed by its owner."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for email in var.alarm_emails : can(regex("^[^@ ]+@[^@ ]+$", email))])
    error_message = "Each is an e-mail address."
  }
}

variable "storage_class" {
  description = "Storage class of Prometheus' volume."
  type        = string

  validation {
    condition     = length(var.storage_class) > 0
    error_message = "The name of a storage class is needed."
  }
}

variable "prometheus_retention_days" {
  description = "Days for which Prometheus keeps its samples."
  type        = number
  default     = 15

  validation {
    condition     = var.prometheus_retention_days >= 1
    error_message = "Samples are kept for a day at least."
  }
}

variable "prometheus_disk_gib" {
  description = "Volume of Prometheus, in GiB."
  type        = number
  default     = 50

  validation {
    condition     = var.prometheus_disk_gib >= 10
    error_message = "Prometheus needs 10 GiB at least."
  }
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
