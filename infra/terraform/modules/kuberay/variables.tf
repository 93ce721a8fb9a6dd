variable "name" {
  description = "Name that every resource of the installation begins with."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,22}[a-z0-9]$", var.name))
    error_message = "The name has 3 to 24 characters: lower-case letters, digits and hyphens, a letter first and no hyphen last."
  }
}

variable "namespace" {
  description = "Kubernetes namespace of the application."
  type        = string
  default     = "riverlens"

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.namespace))
    error_message = "A namespace has lower-case letters, digits and hyphens."
  }
}

variable "cluster_name" {
  description = "Kubernetes cluster."
  type        = string

  validation {
    condition     = length(var.cluster_name) > 0
    error_message = "The name of the cluster is needed."
  }
}

variable "pod_trust_policy" {
  description = "Trust policy of a role that pods take."
  type        = string

  validation {
    condition     = can(jsondecode(var.pod_trust_policy))
    error_message = "The policy is JSON."
  }
}

variable "images" {
  description = "Container images with their tags: `cpu` for everything, `gpu` for the embedders of a GPU group."
  type        = object({ cpu = string, gpu = string })

  validation {
    condition     = alltrue([for image in values(var.images) : can(regex("(:[A-Za-z0-9_][A-Za-z0-9_.-]*|@sha256:[0-9a-f]{64})$", image)) && !endswith(image, ":latest")])
    error_message = "Each image bears a tag other than latest, or a digest."
  }
}

variable "bootstrap_brokers" {
  description = "Kafka brokers for SCRAM over TLS."
  type        = string

  validation {
    condition     = can(regex(":[0-9]+", var.bootstrap_brokers))
    error_message = "Addresses with ports are needed."
  }
}

variable "object_store" {
  description = "Bucket of pictures and snapshots: its ARN and its URL."
  type        = object({ bucket_arn = string, url = string })

  validation {
    condition     = startswith(var.object_store.url, "s3://")
    error_message = "The URL begins with s3://."
  }
}

variable "secrets" {
  description = "Secrets the application reads: their names and ARNs, and the key that encrypts them and the bucket."
  type        = object({ kafka_name = string, kafka_arn = string, ray_name = string, ray_arn = string, kms_key_arn = string })

  validation {
    condition     = can(regex("^arn:aws[a-z-]*:kms:", var.secrets.kms_key_arn))
    error_message = "The ARN of a KMS key is needed."
  }
}

variable "monitoring_namespace" {
  description = "Namespace from which Prometheus scrapes."
  type        = string
  default     = "monitoring"

  validation {
    condition     = length(var.monitoring_namespace) > 0
    error_message = "The name of a namespace is needed."
  }
}

variable "storage_class" {
  description = "Storage class of the shards' volumes."
  type        = string

  validation {
    condition     = length(var.storage_class) > 0
    error_message = "The name of a storage class is needed."
  }
}

variable "values_file" {
  description = "File with the sizes of the installation, in the form of infra/kuberay/values.yaml."
  type        = string

  validation {
    condition     = fileexists(var.values_file)
    error_message = "There is no such file."
  }
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
