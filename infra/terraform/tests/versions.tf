# A root for the tests beside it; it makes nothing.
terraform {
  required_version = ">= 1.11"
}
