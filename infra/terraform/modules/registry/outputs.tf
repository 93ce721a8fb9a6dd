output "repository_urls" {
  description = "Repository of each image, to push to and to pull from."
  value       = { for image, repository in aws_ecr_repository.this : image => repository.repository_url }
}

output "repository_arns" {
  description = "ARNs of the repositories."
  value       = [for repository in aws_ecr_repository.this : repository.arn]
}
