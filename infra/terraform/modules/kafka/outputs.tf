output "bootstrap_brokers" {
  description = "Value of `RIVERLENS_KAFKA_BOOTSTRAP`: brokers for SCRAM over TLS."
  value       = aws_msk_cluster.this.bootstrap_brokers_sasl_scram

  # Nobody can log in before the brokers know the user.
  depends_on = [aws_msk_scram_secret_association.this]
}

output "cluster_name" {
  description = "Name of the Kafka cluster, as its metrics bear it."
  value       = aws_msk_cluster.this.cluster_name
}

output "broker_count" {
  description = "Number of brokers."
  value       = aws_msk_cluster.this.number_of_broker_nodes
}
