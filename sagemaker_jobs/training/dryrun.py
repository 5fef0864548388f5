"""--dry-run: what would be sent to SageMaker, and what it would cost; it needs no credentials, and sends nothing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dogbreed_ml.cloudconfig import SagemakerConfig
from dogbreed_ml.config import ExperimentConfig
from sagemaker_jobs.client import configured_region
from sagemaker_jobs.training.estimate import Estimate
from sagemaker_jobs.training.jobinputs import JobPlan

PLACEHOLDER_ACCOUNT = "000000000000"
PLACEHOLDER_ROLE = f"arn:aws:iam::{PLACEHOLDER_ACCOUNT}:role/PLACEHOLDER"
PLACEHOLDER_REGION = "us-east-1"
HIDDEN = "(not shown)"
"""Stands for a value of sagemaker.environment, which may be a secret."""


@dataclass(frozen=True)
class Placement:
    """Where a request would go; what only an account can say is a placeholder, and said to be one."""

    region: str
    role_arn: str
    bucket: str
    prefix: str
    placeholders: Mapping[str, str] = field(default_factory=dict)
    """By what they stand for."""

    @classmethod
    def of(cls, config: SagemakerConfig) -> "Placement":
        region = configured_region(config)
        placeholders = {} if region else {"region": PLACEHOLDER_REGION}
        region = region or PLACEHOLDER_REGION
        role_arn = config.role_arn
        if role_arn is None:
            role_arn = placeholders["role_arn"] = PLACEHOLDER_ROLE
        bucket = config.bucket
        if bucket is None:
            bucket = placeholders["bucket"] = f"dogbreed-{PLACEHOLDER_ACCOUNT}-{region}"
        return cls(region, role_arn, bucket, config.prefix, placeholders)

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}/{key}"


@dataclass(frozen=True)
class DryRun:
    """The answer of a dry run."""

    requests: Mapping[str, Mapping[str, Any]]
    """By SageMaker's operation, in the order in which they would be sent."""
    estimate: Estimate
    placement: Placement
    num_files: int
    num_bytes: int
    """Of the files that the job needs in S3; what lies there already is not sent again."""

    @classmethod
    def of(
        cls,
        requests: Mapping[str, Mapping[str, Any]],
        *,
        config: ExperimentConfig,
        plan: JobPlan,
        estimate: Estimate,
        placement: Placement,
    ) -> "DryRun":
        """Whoever reads a log of this answer need not read the values of `sagemaker.environment` too."""
        num_bytes = sum(path.stat().st_size for path in plan.files.values()) + sum(map(len, plan.contents.values()))
        shown = {name: _hidden(request, config.sagemaker.environment) for name, request in requests.items()}
        return cls(shown, estimate, placement, len(plan.files) + len(plan.contents), num_bytes)

    def to_dict(self) -> dict[str, Any]:
        return {
            "requests": {operation: dict(request) for operation, request in self.requests.items()},
            "estimate": self.estimate.to_dict(),
            "placeholders": dict(self.placement.placeholders),
            "uploads": {"num_files": self.num_files, "num_bytes": self.num_bytes},
        }

    def render(self) -> str:
        lines = []
        for operation, request in self.requests.items():
            lines += [operation, json.dumps(request, indent=2, ensure_ascii=False)]
        if self.placement.placeholders:
            named = ", ".join(f"{name} {value}" for name, value in self.placement.placeholders.items())
            lines.append(f"placeholders, known once the account is: {named}")
        lines.append(f"uploads {self.num_files} files, {self.num_bytes / 2**20:.1f} MiB, less what is there already")
        return "\n".join([*lines, self.estimate.render(), "nothing was sent"])


def _hidden(request: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """The request with the user's variables by name alone, in the job itself or in a tuning job's definition of one."""
    shown = dict(request)
    if "TrainingJobDefinition" in shown:
        shown["TrainingJobDefinition"] = _hidden(shown["TrainingJobDefinition"], environment)
    if "Environment" in shown:
        shown["Environment"] = {**shown["Environment"], **dict.fromkeys(environment, HIDDEN)}
    return shown
