output "bucket" {
  description = "Name of the bucket."
  value       = aws_s3_bucket.this.bucket
}

output "bucket_arn" {
  description = "ARN of the bucket."
  value       = aws_s3_bucket.this.arn
}

output "url" {
  description = "Value of `RIVERLENS_OBJECT_STORE_URL`."
  value       = "s3://${aws_s3_bucket.this.bucket}"
}
