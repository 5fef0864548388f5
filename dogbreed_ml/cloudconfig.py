"""The config sections of SageMaker: the jobs that train there, and the endpoints that serve there."""

import re
from dataclasses import dataclass, field
from typing import Literal

from dogbreed_ml.checks import require, require_choice, require_number

_ROLE = re.compile(r"arn:aws[a-z\-]*:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+")
_KEY = re.compile(r"(arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:key/)?[\w-]+")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True)
class SagemakerConfig:
    """SageMaker: account, bucket, and the instances of training jobs."""

    role_arn: str | None = None
    """Execution role of jobs and endpoints; what it must be allowed: `dogbreed deploy --print-policy`."""
    region: str | None = None
    """Null takes boto3's own: AWS_DEFAULT_REGION, or that of the profile."""
    bucket: str | None = None
    """S3 bucket of data, code, output; null is dogbreed-ACCOUNT-REGION, made private and encrypted."""
    prefix: str = "dogbreed"
    """All our keys in the bucket begin with it."""
    instance_type: str = "ml.g4dn.xlarge"
    """Instances of a training job."""
    instance_count: int = 1
    """Instances of a training job; several train together by torchrun."""
    volume_gib: int = 50
    """Disk of each instance, GiB."""
    max_runtime_s: int = 4 * 3600
    """Longest run of a training job, in seconds; SageMaker ends it then."""
    image_uri: str | None = None
    """Training image; null is AWS's newest PyTorch image for the instances."""
    spot: bool = False
    """Spare capacity at a lower price: interrupted jobs go on from their checkpoint."""
    max_wait_s: int | None = None
    """With spot: longest wait and run together, in seconds; null is twice max_runtime_s."""
    keep_alive_s: int = 0
    """How long instances stay for the next job (warm pool), in seconds; they are paid for."""
    subnets: list[str] = field(default_factory=list)
    """Subnets of the VPC that jobs and endpoints run in."""
    security_group_ids: list[str] = field(default_factory=list)
    """Security groups in that VPC."""
    kms_key_id: str | None = None
    """Key that encrypts volumes, output and the bucket, by id or ARN; null takes AWS's own."""
    encrypt_traffic: bool = False
    """Whether the traffic between the instances of one job is encrypted."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of jobs."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags of whatever is made in the account, beside our own."""
    prices_path: str | None = None
    """JSON file of dollars an hour by instance type; null asks AWS's Price List API."""

    def __post_init__(self) -> None:
        if self.role_arn is not None:
            require(
                bool(_ROLE.fullmatch(self.role_arn)),
                "sagemaker.role_arn must be arn:aws:iam::ACCOUNT:role/NAME",
                self.role_arn,
            )
        if self.bucket is not None:
            require(
                bool(_BUCKET.fullmatch(self.bucket)),
                "sagemaker.bucket must be the name of a bucket, without s3://",
                self.bucket,
            )
        if self.kms_key_id is not None:
            # SageMaker takes no alias for a volume, and IAM none as a resource.
            require(
                bool(_KEY.fullmatch(self.kms_key_id)),
                "sagemaker.kms_key_id must be a key's id or arn:aws:kms:REGION:ACCOUNT:key/ID, not an alias",
                self.kms_key_id,
            )
        require(
            bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9/_-]*", self.prefix)) and not self.prefix.endswith("/"),
            "sagemaker.prefix must be letters, digits, -, _ and inner slashes",
            self.prefix,
        )
        require(self.instance_type.startswith("ml."), "sagemaker.instance_type must begin with ml.", self.instance_type)
        require_number("sagemaker.instance_count", self.instance_count, low=1)
        require_number("sagemaker.volume_gib", self.volume_gib, low=1)
        require_number("sagemaker.max_runtime_s", self.max_runtime_s, low=1, high=28 * 86400)
        require_number("sagemaker.keep_alive_s", self.keep_alive_s, low=0, high=21600)
        require(self.max_wait_s is None or self.spot, "sagemaker.max_wait_s needs sagemaker.spot", self.max_wait_s)
        if self.max_wait_s is not None:
            require_number("sagemaker.max_wait_s", self.max_wait_s, low=self.max_runtime_s)
        require(
            bool(self.subnets) == bool(self.security_group_ids),
            "sagemaker.subnets and sagemaker.security_group_ids go together",
            self.subnets or self.security_group_ids,
        )
        require(
            not (self.spot and self.keep_alive_s),
            "sagemaker.keep_alive_s must be 0 with sagemaker.spot: SageMaker keeps no spot instances",
            self.keep_alive_s,
        )


@dataclass(frozen=True)
class HostingConfig:
    """SageMaker endpoints: instances, updates and what guards them."""

    kind: Literal["realtime", "serverless", "async"] = "realtime"
    """Instances that answer at once, capacity on demand, or answers left in S3."""
    instance_type: str = "ml.c7i.xlarge"
    """Instances of an endpoint."""
    instance_count: int = 1
    """Instances of an endpoint at first."""
    max_instance_count: int | None = None
    """Autoscaling goes up to so many instances; null leaves them at instance_count."""
    invocations_per_instance: int = 600
    """Autoscaling aims at so many invocations of an instance a minute."""
    image_uri: str | None = None
    """Inference image; null is AWS's newest PyTorch image for the instances."""
    serverless_memory_mib: int = 3072
    """Memory of a serverless endpoint, MiB: a multiple of 1024 up to 6144."""
    max_concurrency: int = 5
    """Requests that a serverless endpoint answers at once."""
    canary_percent: int = 10
    """Share of the instances that an update's first step moves, in percent."""
    bake_s: int = 300
    """How long alarms watch each step of an update before the next, in seconds."""
    max_latency_ms: float = 1000.0
    """An update rolls back where the model's average latency in a minute is above this."""
    max_errors: int = 1
    """An update rolls back where a minute has so many 5XX answers."""
    capture_percent: int = 0
    """Share of requests and answers that are kept in S3, in percent."""
    timeout_s: int = 1800
    """How long `deploy` waits for an endpoint, in seconds."""

    def __post_init__(self) -> None:
        require_choice("hosting.kind", self.kind, ("realtime", "serverless", "async"))
        require(self.instance_type.startswith("ml."), "hosting.instance_type must begin with ml.", self.instance_type)
        require_number("hosting.instance_count", self.instance_count, low=1)
        if self.max_instance_count is not None:
            require_number("hosting.max_instance_count", self.max_instance_count, low=self.instance_count)
        require_number("hosting.invocations_per_instance", self.invocations_per_instance, low=1)
        require_choice("hosting.serverless_memory_mib", self.serverless_memory_mib, tuple(range(1024, 6145, 1024)))
        require_number("hosting.max_concurrency", self.max_concurrency, low=1, high=200)
        require_number("hosting.canary_percent", self.canary_percent, low=1, high=50)
        require_number("hosting.bake_s", self.bake_s, low=0, high=3600)
        require_number("hosting.max_latency_ms", self.max_latency_ms, low=0, low_open=True)
        require_number("hosting.max_errors", self.max_errors, low=1)
        require_number("hosting.capture_percent", self.capture_percent, low=0, high=100)
        require_number("hosting.timeout_s", self.timeout_s, low=1)
