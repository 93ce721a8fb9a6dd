variable "name" {
  description = "Name that every resource of the installation begins with."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,22}[a-z0-9]$", var.name))
    error_message = "The name has 3 to 24 characters: lower-case letters, digits and hyphens, a letter first and no hyphen last."
  }
}

variable "kms_key_arn" {
  description = "KMS key that encrypts every object."
  type        = string

  validation {
    condition     = can(regex("^arn:aws[a-z-]*:kms:", var.kms_key_arn))
    error_message = "The ARN of a KMS key is needed."
  }
}

variable "thumbnail_days" {
  description = "Days after which a thumbnail is removed; the next reader has it made again."
  type        = number
  default     = 90

  validation {
    condition     = var.thumbnail_days >= 1
    error_message = "Thumbnails live for a day at least."
  }
}

variable "noncurrent_days" {
  description = "Days for which replaced or deleted pictures can be brought back."
  type        = number
  default     = 30

  validation {
    condition     = var.noncurrent_days >= 1
    error_message = "Replaced objects are kept for a day at least."
  }
}

variable "force_destroy" {
  description = "Whether `destroy` also deletes the pictures; for installations that are thrown away."
  type        = bool
  default     = false
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
