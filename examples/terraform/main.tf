# The function alone: an image in ECR, an alias, and a Function URL for callers with AWS's signature.
#
#     make image
#     docker tag clip-image-encoder 123456789012.dkr.ecr.eu-north-1.amazonaws.com/clip:1
#     docker push 123456789012.dkr.ecr.eu-north-1.amazonaws.com/clip:1
#     terraform apply -var image_uri=123456789012.dkr.ecr.eu-north-1.amazonaws.com/clip:1
#     clip-encoder health --deep --sigv4 --url "$(terraform output -raw url)"
#
# The repository must be private and in the function's region. API keys, quotas, alarms and the batch
# engines are in the SAM templates; here are none of them.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.32, < 7.0" # which knows logging_config
    }
  }
}

variable "image_uri" {
  description = "The image in ECR, with a tag or digest; a new one makes a new version"
  type        = string
}

variable "name" {
  description = "The function's name"
  type        = string
  default     = "clip-image-encoder"
}

variable "architecture" {
  description = "That of the machine that the image was built on: x86_64 or arm64"
  type        = string
  default     = "x86_64"
}

variable "memory_size" {
  description = "MB; CPU comes with it, one vCPU per 1,769 MB"
  type        = number
  default     = 3008
}

variable "image_buckets" {
  description = "Buckets whose images callers may name as s3://bucket/key"
  type        = list(string)
  default     = []
}

variable "log_retention_days" {
  description = "Days that logs are kept"
  type        = number
  default     = 30
}

resource "aws_lambda_function" "clip" {
  function_name = var.name
  package_type  = "Image"
  image_uri     = var.image_uri
  architectures = [var.architecture]
  memory_size   = var.memory_size
  timeout       = 29
  role          = aws_iam_role.clip.arn
  publish       = true # a version for the alias

  environment {
    variables = {
      CLIP_LOG_LEVEL  = "INFO"
      CLIP_S3_BUCKETS = join(",", var.image_buckets) # empty: none
    }
  }

  # The function writes one line of JSON for every request; Lambda's own START, END and REPORT are left out.
  logging_config {
    log_group             = aws_cloudwatch_log_group.clip.name
    log_format            = "JSON"
    system_log_level      = "WARN"
    application_log_level = "INFO"
  }
}

resource "aws_lambda_alias" "live" {
  name             = "live"
  function_name    = aws_lambda_function.clip.function_name
  function_version = aws_lambda_function.clip.version
}

resource "aws_lambda_function_url" "clip" {
  function_name      = aws_lambda_function.clip.function_name
  qualifier          = aws_lambda_alias.live.name
  authorization_type = "AWS_IAM"
}

resource "aws_cloudwatch_log_group" "clip" {
  name              = "/aws/lambda/${var.name}"
  retention_in_days = var.log_retention_days
}

# --- what the function may do ---------------------------------------------------------------------

resource "aws_iam_role" "clip" {
  name_prefix        = "clip-"
  assume_role_policy = data.aws_iam_policy_document.lambda.json
}

resource "aws_iam_role_policy" "clip" {
  name   = "clip"
  role   = aws_iam_role.clip.id
  policy = data.aws_iam_policy_document.clip.json
}

data "aws_partition" "current" {}

data "aws_iam_policy_document" "lambda" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["lambda.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "clip" {
  statement {
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = ["${aws_cloudwatch_log_group.clip.arn}:*"]
  }

  dynamic "statement" {
    for_each = var.image_buckets
    content {
      actions   = ["s3:GetObject", "s3:GetObjectVersion"]
      resources = ["arn:${data.aws_partition.current.partition}:s3:::${statement.value}/*"]
    }
  }

  # Without it S3 answers 403 to a missing key, not 404: who may not list may not know.
  dynamic "statement" {
    for_each = var.image_buckets
    content {
      actions   = ["s3:ListBucket"]
      resources = ["arn:${data.aws_partition.current.partition}:s3:::${statement.value}"]
    }
  }
}

# --- what a caller needs --------------------------------------------------------------------------

# A Function URL asks for both actions since October 2025.
data "aws_iam_policy_document" "caller" {
  statement {
    actions   = ["lambda:InvokeFunctionUrl"]
    resources = [aws_lambda_alias.live.arn]
  }

  statement {
    actions   = ["lambda:InvokeFunction"]
    resources = [aws_lambda_alias.live.arn]
    condition {
      test     = "Bool"
      variable = "lambda:InvokedViaFunctionUrl"
      values   = ["true"]
    }
  }
}

output "url" {
  description = "POST images to this URL followed by encode_image, signed for the service lambda"
  value       = aws_lambda_function_url.clip.function_url
}

output "function_arn" {
  description = "The alias, for direct invokes"
  value       = aws_lambda_alias.live.arn
}

output "caller_policy" {
  description = "For the role of a backend in this account that may call the URL"
  value       = data.aws_iam_policy_document.caller.json
}
