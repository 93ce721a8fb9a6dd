output "alarm_topic_arn" {
  description = "Topic that every alarm goes to."
  value       = aws_sns_topic.alarms.arn
}

output "namespace" {
  description = "Namespace of Prometheus, from which the application lets itself be scraped."
  value       = helm_release.prometheus.namespace
}
