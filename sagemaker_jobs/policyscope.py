"""What a policy may reach: the names, places, role and images of one config, in one account and region."""

import re
from dataclasses import dataclass

from dogbreed_ml.errors import ConfigError

_PREFIX_RULE = r"[a-zA-Z0-9](-*[a-zA-Z0-9])*-?"
_RULES = {
    "partition": r"aws(-[a-z]+)*",
    "region": r"[a-z]{2}(-[a-z]+)+-\d",
    "account_id": r"\d{12}",
    "bucket": r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]",
    "prefix": r"([\w!.()'-]+(/[\w!.()'-]+)*)?",
    "search_prefix": _PREFIX_RULE,
    "endpoint_prefix": _PREFIX_RULE,
    "version_prefix": _PREFIX_RULE,
    "role_arn": r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+",
    "kms_key_arn": r"arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:key/[\w-]+",
    "tracking_server_arn": r"arn:aws[a-z-]*:sagemaker:[a-z0-9-]+:\d{12}:mlflow-(tracking-server|app)/[\w.-]+",
}
_IMAGE_URI = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr(-fips)?\.(?P<region>[a-z0-9-]+)\.[a-z0-9.-]+"
    r"/(?P<repository>[a-z0-9][a-z0-9._/-]*)(:[\w.-]+)?(@sha256:[0-9a-f]{64})?"
)
_DATA_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/([\w!.()'/-]*))?")


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What the commands may touch: names, one place in S3, one role. Raises ConfigError for what an ARN cannot hold."""

    account_id: str
    region: str
    bucket: str
    """Where data, jobs' output and model archives go."""
    job_prefixes: tuple[str, ...]
    """What the names of training jobs begin with."""
    search_prefix: str
    """What those of tuning jobs begin with, and of the training jobs that they start."""
    endpoint_prefix: str
    """What those of endpoints and their alarms begin with."""
    version_prefix: str
    """What those of models and endpoint configs begin with, where a long name gives way."""
    role_arn: str
    """The execution role of jobs and endpoints."""
    prefix: str = ""
    """Of the keys in the bucket; empty for all of them."""
    data_uris: tuple[str, ...] = ()
    """s3://bucket/prefix of data that lies elsewhere, and is only read."""
    kms_key_arn: str | None = None
    """The key of the bucket and of the jobs' volumes, where it is not AWS's own."""
    in_vpc: bool = False
    tracking_server_arn: str | None = None
    """A SageMaker-managed MLflow that jobs write to."""
    partition: str = "aws"
    image_uris: tuple[str, ...] = ()
    """ACCOUNT.dkr.ecr.REGION.amazonaws.com/REPOSITORY:TAG of the images of jobs and endpoints, AWS's own or others."""

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            value = getattr(self, name)
            if value is not None and not re.fullmatch(rule, value):
                raise ConfigError(f"{name} of a policy must match {rule}, got {value!r}.")
        for prefix in self.job_prefixes:
            if not re.fullmatch(_PREFIX_RULE, prefix):
                raise ConfigError(f"job_prefixes of a policy must match {_PREFIX_RULE}, got {prefix!r}.")
        for uri in self.data_uris:
            if not _DATA_URI.fullmatch(uri):
                raise ConfigError(f"data_uris of a policy must look like s3://bucket/prefix, got {uri!r}.")
        for uri in self.image_uris:
            if not _IMAGE_URI.fullmatch(uri):
                raise ConfigError(
                    "image_uris of a policy must be ACCOUNT.dkr.ecr.REGION.amazonaws.com/REPOSITORY:TAG, since "
                    f"SageMaker pulls from ECR, got {uri!r}."
                )

    def arn(self, service: str, resource: str) -> str:
        """Of a resource in this account and region."""
        return f"arn:{self.partition}:{service}:{self.region}:{self.account_id}:{resource}"

    def named(self, *kinds: str) -> list[str]:
        """ARNs of everything of these kinds whose name begins as ours do; ARNs have names in lower case."""
        prefixes = {
            "training-job": (*self.job_prefixes, self.search_prefix),
            "hyper-parameter-tuning-job": (self.search_prefix,),
            "model": (self.version_prefix,),
            "endpoint-config": (self.version_prefix,),
            "endpoint": (self.endpoint_prefix,),
        }
        return [self.arn("sagemaker", f"{kind}/{prefix.lower()}*") for kind in kinds for prefix in prefixes[kind]]

    def places(self) -> list[tuple[str, str]]:
        """Bucket and prefix of the project's own place, then of data elsewhere."""
        matches = [_DATA_URI.fullmatch(uri) for uri in self.data_uris]
        others = [(match[1], (match[2] or "").strip("/")) for match in matches if match is not None]
        return [(self.bucket, self.prefix), *others]

    def repositories(self) -> list[str]:
        """ARNs of the images' repositories, each in its own account and region, and once."""
        found = [match for match in map(_IMAGE_URI.fullmatch, self.image_uris) if match is not None]
        return list(
            dict.fromkeys(
                f"arn:{self.partition}:ecr:{each['region']}:{each['account']}:repository/{each['repository']}"
                for each in found
            )
        )
