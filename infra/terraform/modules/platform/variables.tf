variable "name" {
  description = "Name that every resource of the installation begins with."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,22}[a-z0-9]$", var.name))
    error_message = "The name has 3 to 24 characters: lower-case letters, digits and hyphens, a letter first and no hyphen last."
  }
}

variable "cidr" {
  description = "Address range of the network."
  type        = string
  default     = "10.40.0.0/16"

  validation {
    condition     = can(cidrhost(var.cidr, 0))
    error_message = "An IPv4 network is needed."
  }
}

variable "availability_zones" {
  description = "Three availability zones."
  type        = list(string)

  validation {
    condition     = length(distinct(var.availability_zones)) == 3
    error_message = "Three different availability zones are needed."
  }
}

variable "nat_gateway_per_zone" {
  description = "Whether each zone has a NAT gateway of its own."
  type        = bool
  default     = true
}

variable "api_server_cidrs" {
  description = "Address ranges from which the Kubernetes API is reached over the internet; empty for none."
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

variable "node_groups" {
  description = "Groups of machines, as the module `kubernetes` takes them."
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
    condition     = length(var.node_groups) > 0
    error_message = "There is one group at least."
  }
}

variable "kafka" {
  description = "Size of Kafka, as the module `kafka` takes it."
  type        = object({ broker_type = string, brokers_per_zone = number, disk_gib = number, disk_max_gib = number })

  validation {
    condition     = var.kafka.brokers_per_zone >= 1 && var.kafka.disk_max_gib >= var.kafka.disk_gib
    error_message = "One broker per zone at least, and disk_max_gib not below disk_gib."
  }
}

variable "image_tag" {
  description = "Tag of the container images that run; they are pushed before the application starts."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$", var.image_tag)) && var.image_tag != "latest"
    error_message = "A tag that means one image for ever; `latest` does not."
  }
}

variable "values_file" {
  description = "File with the sizes of the application."
  type        = string

  validation {
    condition     = fileexists(var.values_file)
    error_message = "There is no such file."
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

variable "alarm_emails" {
  description = "Addresses that get the alarms."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for email in var.alarm_emails : can(regex("@", email))])
    error_message = "Each is an e-mail address."
  }
}

variable "disposable" {
  description = "Whether the installation can be destroyed with its pictures, and its secrets after a week."
  type        = bool
  default     = false
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
