output "cluster_name" {
  description = "Name of the Kubernetes cluster."
  value       = module.platform.cluster_name
}

output "repository_urls" {
  description = "Where images are pushed to."
  value       = module.platform.repository_urls
}

output "bootstrap_brokers" {
  description = "Kafka brokers for SCRAM over TLS."
  value       = module.platform.bootstrap_brokers
}

output "object_store_url" {
  description = "URL of pictures and snapshots."
  value       = module.platform.object_store_url
}

output "namespace" {
  description = "Namespace of the application."
  value       = module.platform.namespace
}
