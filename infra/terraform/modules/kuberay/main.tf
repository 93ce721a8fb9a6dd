data "aws_region" "current" {}

locals {
  tags             = merge(var.tags, { "riverlens:module" = "kuberay" })
  service_accounts = { application = "riverlens", secrets = "riverlens-secrets" }
}

resource "kubernetes_namespace_v1" "this" {
  metadata {
    name   = var.namespace
    labels = { "pod-security.kubernetes.io/enforce" = "baseline", "pod-security.kubernetes.io/warn" = "restricted" }
  }
}

# What the application may do: its three kinds of objects, and nothing else in the bucket.
data "aws_iam_policy_document" "application" {
  statement {
    sid     = "ReadAndWriteObjects"
    actions = ["s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:PutObject"]
    resources = [
      "${var.object_store.bucket_arn}/images/*",
      "${var.object_store.bucket_arn}/snapshots/*",
      "${var.object_store.bucket_arn}/thumbnails/*",
    ]
  }

  # Without it a missing object looks like a forbidden one.
  statement {
    sid       = "ListTheBucket"
    actions   = ["s3:ListBucket"]
    resources = [var.object_store.bucket_arn]
  }

  statement {
    sid       = "EncryptObjects"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [var.secrets.kms_key_arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${data.aws_region.current.region}.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "application" {
  name               = "${var.name}-application"
  assume_role_policy = var.pod_trust_policy
  tags               = local.tags
}

resource "aws_iam_role_policy" "application" {
  name   = "objects"
  role   = aws_iam_role.application.id
  policy = data.aws_iam_policy_document.application.json
}

resource "aws_eks_pod_identity_association" "application" {
  cluster_name    = var.cluster_name
  namespace       = kubernetes_namespace_v1.this.metadata[0].name
  service_account = local.service_accounts.application
  role_arn        = aws_iam_role.application.arn
  tags            = local.tags
}

# Brings the two secrets into the namespace, and can read no other.
data "aws_iam_policy_document" "secrets" {
  statement {
    sid       = "ReadSecrets"
    actions   = ["secretsmanager:DescribeSecret", "secretsmanager:GetSecretValue"]
    resources = [var.secrets.kafka_arn, var.secrets.ray_arn]
  }

  statement {
    sid       = "DecryptSecrets"
    actions   = ["kms:Decrypt"]
    resources = [var.secrets.kms_key_arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["secretsmanager.${data.aws_region.current.region}.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "secrets" {
  name               = "${var.name}-secrets"
  assume_role_policy = var.pod_trust_policy
  tags               = local.tags
}

resource "aws_iam_role_policy" "secrets" {
  name   = "read-secrets"
  role   = aws_iam_role.secrets.id
  policy = data.aws_iam_policy_document.secrets.json
}

resource "aws_eks_pod_identity_association" "secrets" {
  cluster_name    = var.cluster_name
  namespace       = "external-secrets"
  service_account = local.service_accounts.secrets
  role_arn        = aws_iam_role.secrets.arn
  tags            = local.tags
}

resource "helm_release" "external_secrets" {
  name             = "external-secrets"
  namespace        = "external-secrets"
  create_namespace = true
  repository       = "https://charts.external-secrets.io"
  chart            = "external-secrets"
  version          = "0.20.4"

  values = [yamlencode({
    serviceAccount = { name = local.service_accounts.secrets }
  })]

  depends_on = [aws_eks_pod_identity_association.secrets]
}

resource "helm_release" "operator" {
  name             = "kuberay-operator"
  namespace        = "kuberay"
  create_namespace = true
  repository       = "https://ray-project.github.io/kuberay-helm"
  chart            = "kuberay-operator"
  version          = "1.7.0"

  values = [yamlencode({
    singleNamespaceInstall = false
    crNamespacedRbacEnable = true
    watchNamespace         = [kubernetes_namespace_v1.this.metadata[0].name]
  })]
}

resource "helm_release" "application" {
  name      = "riverlens"
  namespace = kubernetes_namespace_v1.this.metadata[0].name
  chart     = "${path.module}/../../../kuberay"
  # The first start fetches weights and builds shards; Kubernetes goes on with that by itself.
  wait = false

  values = [
    file(var.values_file),
    yamlencode({
      image               = var.images.cpu
      gpuImage            = var.images.gpu
      kafkaBootstrap      = var.bootstrap_brokers
      objectStoreUrl      = var.object_store.url
      region              = data.aws_region.current.region
      kafkaSecret         = var.secrets.kafka_name
      raySecret           = var.secrets.ray_name
      storageClass        = var.storage_class
      monitoringNamespace = var.monitoring_namespace
    }),
  ]

  depends_on = [
    aws_eks_pod_identity_association.application,
    aws_iam_role_policy.application,
    helm_release.external_secrets,
    helm_release.operator,
  ]
}
