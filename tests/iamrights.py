"""The rights that a command's calls of AWS need, by their requests, and whether a policy gives them."""

import fnmatch
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from dogbreed_ml.config import ExperimentConfig
from sagemaker_jobs.client import LOCAL_ROLE, Aws
from sagemaker_jobs.endpoints.policies import policies
from sagemaker_jobs.iam import Document

ACCOUNT_ID, REGION = "123456789012", "us-west-2"
_BESIDE = {
    "CreateEndpoint": ("AddTags",), "CreateEndpointConfig": ("AddTags",), "CreateModel": ("AddTags",),
    "CreateTrainingJob": ("AddTags",), "CreateHyperParameterTuningJob": ("AddTags",),
    "PutMetricAlarm": ("TagResource",),
}  # fmt: skip
"""What a request with tags needs beside its own right."""
_KINDS = {
    "EndpointName": "endpoint", "EndpointConfigName": "endpoint-config", "ModelName": "model",
    "TrainingJobName": "training-job", "HyperParameterTuningJobName": "hyper-parameter-tuning-job",
}  # fmt: skip
_S3 = {
    "HeadBucket": "ListBucket", "ListObjectsV2": "ListBucket", "HeadObject": "GetObject", "UploadPart": "PutObject",
    "CreateMultipartUpload": "PutObject", "CompleteMultipartUpload": "PutObject",
    "PutBucketEncryption": "PutEncryptionConfiguration", "PutPublicAccessBlock": "PutBucketPublicAccessBlock",
}  # fmt: skip
"""Rights that are not named as the operation is."""
_PREFIXES = {"sagemaker-runtime": "sagemaker"}
_FREE = {"sts:GetCallerIdentity"}
"""Needs no right."""


@dataclass(frozen=True)
class Right:
    """One action on one resource, with what a condition may ask of the request."""

    action: str
    resource: str
    context: tuple[tuple[str, str], ...] = ()


@dataclass
class Rights:
    """What the calls needed until now."""

    needed: set[Right] = field(default_factory=set)

    def missing_from(self, document: Document) -> list[str]:
        """Those that no statement allows; tags are the project's own, for whatever a condition asks of them."""
        refused = (each for each in self.needed if not _is_allowed(document, each))
        return sorted({f"{each.action} on {each.resource} {dict(each.context)}" for each in refused})

    @property
    def actions(self) -> set[str]:
        return {each.action for each in self.needed}


@contextmanager
def allowed_by_the_policy(monkeypatch: pytest.MonkeyPatch, *configs: ExperimentConfig) -> Iterator[Rights]:
    """Fails at its end where the callers' policies of `configs` lack a right that a command needed meanwhile."""
    rights = record_rights(monkeypatch)
    yield rights
    statements = []
    for config in configs:
        account = replace(config.sagemaker, role_arn=LOCAL_ROLE, region=REGION)
        statements += policies(replace(config, sagemaker=account)).caller["Statement"]
    assert rights.missing_from({"Statement": statements}) == []


def record_rights(monkeypatch: pytest.MonkeyPatch) -> Rights:
    """Listens to every client that the commands make; clients of a test itself are not heard."""
    rights, make = Rights(), Aws.client
    heard: set[int] = set()

    def client(aws: Aws, service: str) -> Any:
        made = make(aws, service)
        if id(made) not in heard:
            heard.add(id(made))
            made.meta.events.register("provide-client-params", _listen(service, rights))
        return made

    monkeypatch.setattr(Aws, "client", client)
    return rights


def _listen(service: str, rights: Rights) -> Any:
    def hear(params: Mapping[str, Any], model: Any, **_: Any) -> None:
        rights.needed.update(rights_of(service, model.name, params))

    return hear


def rights_of(service: str, operation: str, params: Mapping[str, Any]) -> Iterator[Right]:
    """What one request needs."""
    prefix = _PREFIXES.get(service, service)
    action = f"{prefix}:{_S3.get(operation, operation) if service == 's3' else operation}"
    if action in _FREE:
        return
    for resource in _resources(service, operation, params):
        context = (("s3:prefix", params["Prefix"]),) if "Prefix" in params else ()
        if service == "application-autoscaling":
            context = (("application-autoscaling:service-namespace", params["ServiceNamespace"]),)
        yield Right(action, resource, context)
        if "Tags" in params:
            for each in _BESIDE.get(operation, ()):
                yield Right(f"{prefix}:{each}", resource)
    role_arn = params.get("ExecutionRoleArn") or params.get("RoleArn")
    if role_arn and service == "sagemaker":
        yield Right("iam:PassRole", role_arn, (("iam:PassedToService", "sagemaker.amazonaws.com"),))


def _resources(service: str, operation: str, params: Mapping[str, Any]) -> list[str]:
    def arn(kind: str, name: str = "") -> str:
        return f"arn:aws:{kind}:{REGION}:{ACCOUNT_ID}:{name}"

    if service == "s3":
        return [f"arn:aws:s3:::{params['Bucket']}" + (f"/{params['Key']}" if "Key" in params else "")]
    if service == "cloudwatch":
        names = [params["AlarmName"]] if "AlarmName" in params else params.get("AlarmNames", ())
        return [arn("cloudwatch", f"alarm:{name}") for name in names] or ["*"]
    if service == "application-autoscaling":
        return [arn("application-autoscaling", "scalable-target/0123")]
    if service == "logs":
        return [arn("logs", f"log-group:{params['logGroupName']}:*")]
    if "ResourceArn" in params:
        return [params["ResourceArn"]]
    if operation.startswith("List") and not operation.endswith("ForHyperParameterTuningJob"):
        return ["*"]
    # The first is what is made or asked for; an endpoint's update needs its endpoint config too.
    found = [arn("sagemaker", f"{_KINDS[key]}/{params[key].lower()}") for key in _KINDS if key in params]
    return found if operation in ("CreateEndpoint", "UpdateEndpoint") else found[:1] or ["*"]


def _is_allowed(document: Document, right: Right) -> bool:
    return any(
        right.action in statement["Action"]
        and any(fnmatch.fnmatchcase(right.resource, pattern) for pattern in statement["Resource"])
        and _is_met(statement.get("Condition", {}), dict(right.context))
        for statement in document["Statement"]
    )


def _is_met(condition: Mapping[str, Mapping[str, Any]], context: Mapping[str, str]) -> bool:
    for operator, rules in condition.items():
        if operator == "Null":
            assert all(key.startswith("aws:ResourceTag/dogbreed:") for key in rules)
            continue
        for key, wanted in rules.items():
            patterns = [wanted] if isinstance(wanted, str) else wanted
            # A key that the request lacks meets no condition.
            if key not in context or not any(fnmatch.fnmatchcase(context[key], each) for each in patterns):
                return False
    return True
