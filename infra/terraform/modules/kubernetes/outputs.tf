output "cluster_name" {
  description = "Name of the Kubernetes cluster."
  value       = aws_eks_cluster.this.name
}

output "cluster_endpoint" {
  description = "Address of the Kubernetes API."
  value       = aws_eks_cluster.this.endpoint
}

output "cluster_ca" {
  description = "Certificate authority of the Kubernetes API, as base64."
  value       = aws_eks_cluster.this.certificate_authority[0].data
}

output "node_security_group_id" {
  description = "Security group that EKS gives nodes and control plane."
  value       = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
}

output "storage_class" {
  description = "Storage class of the shards' volumes."
  value       = kubernetes_storage_class_v1.stores.metadata[0].name
}

output "pod_trust_policy" {
  description = "Trust policy of a role that pods take."
  value       = data.aws_iam_policy_document.pod_trust.json
}

output "ready" {
  description = "Known when nodes run and add-ons answer; what needs them depends on it."
  value       = [for addon in aws_eks_addon.after_nodes : addon.arn]
}
