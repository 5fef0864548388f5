"""`dogbreed deploy --print-policy`: what whoever runs the commands, and the role, must be allowed; asks nobody."""

import json
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import UnknownRegionError
from botocore.session import Session

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.errors import ConfigError
from sagemaker_jobs.client import configured_region
from sagemaker_jobs.endpoints.endpoint_request import hosting_image, name_stem
from sagemaker_jobs.iam import Document, caller_policy, execution_role_policy, tracking_policy, trust_policy
from sagemaker_jobs.policyscope import Scope
from sagemaker_jobs.training.dryrun import PLACEHOLDER_REGION, PLACEHOLDER_ROLE
from sagemaker_jobs.training.launch import job_prefix
from sagemaker_jobs.training.training_request import training_image


@dataclass(frozen=True)
class Policies:
    """Documents of IAM."""

    caller: Document
    caller_tracking: Document | None
    """For an MLflow that SageMaker manages."""
    execution_role: Document
    trust: Document
    placeholders: tuple[str, ...]
    """Config fields that say nothing, for which a placeholder stands."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "caller": self.caller,
            **({} if self.caller_tracking is None else {"caller_tracking": self.caller_tracking}),
            "execution_role": self.execution_role,
            "execution_role_trust": self.trust,
            "placeholders": list(self.placeholders),
        }

    def render(self) -> str:
        return json.dumps(self.to_dict(), indent=2)


def policies(config: ExperimentConfig, *, endpoint: str | None = None, tracking_uri: str = "") -> Policies:
    """For the config's bucket, role and names; `endpoint` where its name does not begin with the experiment's.

    `tracking_uri` is where runs go: an MLflow that SageMaker manages asks for rights of its own.
    """
    wanted = config.sagemaker
    known_region = configured_region(wanted)
    region = known_region or PLACEHOLDER_REGION
    role_arn = wanted.role_arn or PLACEHOLDER_ROLE.replace("arn:aws:", f"arn:{_partition(region)}:")
    _, partition, _, _, account_id, _ = role_arn.split(":", 5)
    key = wanted.kms_key_id
    scope = Scope(
        account_id=account_id,
        region=region,
        bucket=wanted.bucket or f"dogbreed-{account_id}-{region}",
        job_prefixes=(job_prefix(config.name, "train"), job_prefix(config.name, "features")),
        search_prefix=job_prefix(config.name, "tune"),
        endpoint_prefix=endpoint or config.name,
        version_prefix=name_stem(endpoint or config.name),
        role_arn=role_arn,
        prefix=wanted.prefix,
        data_uris=(config.data.path,) if config.data.source == "s3" and config.data.path else (),
        kms_key_arn=key
        if key is None or key.startswith("arn:")
        else f"arn:{partition}:kms:{region}:{account_id}:key/{key}",
        in_vpc=bool(wanted.subnets),
        tracking_server_arn=tracking_uri if tracking_uri.startswith("arn:") else None,
        partition=partition,
        # Of jobs and of endpoints; AWS's own lie in another account's registry from region to region.
        image_uris=(training_image(config, region=region), hosting_image(config.hosting, region=region)),
    )
    told = {"sagemaker.role_arn": wanted.role_arn, "sagemaker.region": known_region, "sagemaker.bucket": wanted.bucket}
    missing = tuple(name for name, value in told.items() if value is None)
    return Policies(
        caller_policy(scope),
        tracking_policy(scope),
        execution_role_policy(scope),
        trust_policy(account_id=account_id),
        missing,
    )


def _partition(region: str) -> str:
    """`aws`, `aws-cn`, `aws-us-gov`, ..."""
    try:
        return str(Session().get_partition_for_region(region))
    except UnknownRegionError as error:
        raise ConfigError(f"sagemaker.region must be one of AWS's, got {region!r}.") from error
