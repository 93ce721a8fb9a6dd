variable "name" {
  description = "Name that every resource of the installation begins with."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,22}[a-z0-9]$", var.name))
    error_message = "The name has 3 to 24 characters: lower-case letters, digits and hyphens, a letter first and no hyphen last."
  }
}

variable "kms_key_arn" {
  description = "KMS key that encrypts the images."
  type        = string

  validation {
    condition     = can(regex("^arn:aws[a-z-]*:kms:", var.kms_key_arn))
    error_message = "The ARN of a KMS key is needed."
  }
}

variable "images" {
  description = "Container images, each with a repository of its own: one per target of the Dockerfile."
  type        = set(string)
  default     = ["cpu", "gpu"]

  validation {
    condition     = length(var.images) > 0 && alltrue([for image in var.images : can(regex("^[a-z][a-z0-9-]*$", image))])
    error_message = "Names of images have lower-case letters, digits and hyphens."
  }
}

variable "keep_images" {
  description = "Images of each repository that are kept; older ones go."
  type        = number
  default     = 30

  validation {
    condition     = var.keep_images >= 2
    error_message = "A way back needs two images at least."
  }
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
