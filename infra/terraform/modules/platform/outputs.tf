output "cluster_name" {
  description = "Name of the Kubernetes cluster: `aws eks update-kubeconfig --name NAME`."
  value       = module.kubernetes.cluster_name
}

output "cluster_endpoint" {
  description = "Address of the Kubernetes API."
  value       = module.kubernetes.cluster_endpoint
}

output "cluster_ca" {
  description = "Certificate authority of the Kubernetes API, as base64."
  value       = module.kubernetes.cluster_ca
}

output "repository_urls" {
  description = "Where images are pushed to."
  value       = module.registry.repository_urls
}

output "bootstrap_brokers" {
  description = "Kafka brokers for SCRAM over TLS."
  value       = module.kafka.bootstrap_brokers
}

output "object_store_url" {
  description = "URL of pictures and snapshots."
  value       = module.object_store.url
}

output "namespace" {
  description = "Namespace of the application."
  value       = module.kuberay.namespace
}

output "alarm_topic_arn" {
  description = "Topic that every alarm goes to."
  value       = module.monitoring.alarm_topic_arn
}
