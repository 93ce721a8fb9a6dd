"""Checks of infra/: Terraform modules, Kubernetes manifests, container images."""
