output "kms_key_arn" {
  description = "Key that encrypts everything the installation keeps."
  value       = aws_kms_key.this.arn
}

output "kafka_secret_arn" {
  description = "Secret with the user name and password for Kafka."
  value       = aws_secretsmanager_secret.kafka.arn

  # MSK reads the secret when it is told of it, so it has to have a value by then.
  depends_on = [aws_secretsmanager_secret_version.kafka]
}

output "kafka_secret_name" {
  description = "Name of the secret for Kafka."
  value       = aws_secretsmanager_secret.kafka.name
}

output "ray_secret_arn" {
  description = "Secret with the token of the Ray cluster."
  value       = aws_secretsmanager_secret.ray.arn
}

output "ray_secret_name" {
  description = "Name of the secret with the token of the Ray cluster."
  value       = aws_secretsmanager_secret.ray.name
}
