output "namespace" {
  description = "Namespace of the application."
  value       = kubernetes_namespace_v1.this.metadata[0].name
}

output "application_role_arn" {
  description = "Role of the application's pods."
  value       = aws_iam_role.application.arn
}
