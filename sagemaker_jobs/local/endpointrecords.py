"""What is on record of an endpoint: AWS's own description of it, and the changes that a deployment makes."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sagemaker_jobs.local.errors import ValidationException
from sagemaker_jobs.local.fleets import Fleet
from sagemaker_jobs.local.listing import select
from sagemaker_jobs.local.records import Record

if TYPE_CHECKING:
    from sagemaker_jobs.local.service import LocalSageMaker

ENDPOINT = "endpoint"
_MAX_REASON = 1024
_ENDED = "The local SageMaker that ran this endpoint has ended."
_LISTED = ("EndpointName", "EndpointArn", "CreationTime", "LastModifiedTime", "EndpointStatus")


class EndpointRecords:
    """A record is what DescribeEndpoint answers, and the tags."""

    def __init__(self, service: "LocalSageMaker") -> None:
        self._service = service

    def recover(self) -> None:
        """Marks endpoints without a server as Failed, and removes those that were being deleted."""
        for record in self._service.records.list(ENDPOINT):
            if record["EndpointStatus"] == "Deleting":
                self.delete(record["EndpointName"])
            elif record["EndpointStatus"] != "Failed":
                self.fail(record["EndpointName"], _ENDED)

    def require_free(self, name: str) -> None:
        """Raises ValidationException for a name that is taken; AWS answers with ResourceInUse for jobs alone."""
        if self._service.records.exists(ENDPOINT, name):
            raise ValidationException(f'Cannot create already existing endpoint "{self._service.arn(ENDPOINT, name)}".')

    def create(
        self, name: str, config_name: str, *, deployment: Mapping[str, Any], tags: Sequence[Mapping[str, str]]
    ) -> str:
        """Puts a Creating endpoint on record; its ARN."""
        arn, now_s = self._service.arn(ENDPOINT, name), time.time()
        record: Record = {
            "EndpointName": name, "EndpointArn": arn, "EndpointConfigName": config_name,
            "EndpointStatus": "Creating", "CreationTime": now_s, "LastModifiedTime": now_s, "Tags": list(tags),
        }  # fmt: skip
        if deployment:
            record["LastDeploymentConfig"] = dict(deployment)
        self._service.records.create(ENDPOINT, name, record)
        return arn

    def get(self, name: str) -> Record:
        """Raises ValidationException where there is none."""
        missing = ValidationException(f'Could not find endpoint "{self._service.arn(ENDPOINT, name)}".')
        record = self._service.records.get(ENDPOINT, name, missing=missing)
        record.pop("Tags", None)
        return record

    def list(self, params: Mapping[str, Any]) -> Record:
        """The answer of ListEndpoints."""
        records = self._service.records.list(ENDPOINT)
        rows, token = select(records, dict(params), name="EndpointName", status="EndpointStatus")
        return {"Endpoints": [{member: row[member] for member in _LISTED} for row in rows], **token}

    def begin(self, name: str, status: str, deployment: Mapping[str, Any] | None = None) -> None:
        """An update or a deletion."""
        changes: Record = {"EndpointStatus": status, "FailureReason": None}
        if deployment:
            changes["LastDeploymentConfig"] = dict(deployment)
        self._set(name, changes)

    def desire(self, name: str, config: Mapping[str, Any]) -> None:
        """Updating to the weights and counts of `config`, which DescribeEndpoint shows as desired."""
        wanted = {variant["VariantName"]: variant for variant in config["ProductionVariants"]}
        summaries = self.get(name)["ProductionVariants"]
        for summary in summaries:
            variant = wanted[summary["VariantName"]]
            summary["DesiredWeight"] = variant["InitialVariantWeight"]
            if "ServerlessConfig" in variant:
                summary["DesiredServerlessConfig"] = variant["ServerlessConfig"]
            else:
                summary["DesiredInstanceCount"] = variant["InitialInstanceCount"]
        self._set(name, {"EndpointStatus": "Updating", "FailureReason": None, "ProductionVariants": summaries})

    def report(self, name: str, fleet: Fleet, status: str) -> None:
        """How far the new fleet is: a VariantStatus."""
        now_s = time.time()
        pending = {
            "EndpointConfigName": fleet.config["EndpointConfigName"],
            "ProductionVariants": fleet.describe(status=status, time_s=now_s),
            "StartTime": now_s,
        }
        self._set(name, {"PendingDeploymentSummary": pending})

    def settle(self, name: str, fleet: Fleet, *, reason: str | None = None) -> None:
        """InService with this fleet; `reason` says why an update was rolled back."""
        changes = {
            "EndpointStatus": "InService",
            "EndpointConfigName": fleet.config["EndpointConfigName"],
            "ProductionVariants": fleet.describe(time_s=time.time()),
            "PendingDeploymentSummary": None,
            "FailureReason": reason[:_MAX_REASON] if reason else None,
            "DataCaptureConfig": _capture_summary(fleet.config),
            "AsyncInferenceConfig": fleet.config.get("AsyncInferenceConfig"),
        }
        self._set(name, changes)

    def fail(self, name: str, reason: str) -> None:
        changes = {
            "EndpointStatus": "Failed",
            "FailureReason": reason[:_MAX_REASON],
            "PendingDeploymentSummary": None,
        }
        self._set(name, changes)

    def delete(self, name: str) -> None:
        self._service.records.delete(ENDPOINT, name)

    def _set(self, name: str, changes: Mapping[str, Any]) -> None:
        """Sets members of the record, None removes one; what is being deleted is not changed any more."""

        def change(record: Record) -> None:
            if record["EndpointStatus"] == "Deleting":
                return
            for member, value in {**changes, "LastModifiedTime": time.time()}.items():
                record.pop(member, None)
                if value is not None:
                    record[member] = value

        self._service.records.update(ENDPOINT, name, change)


def _capture_summary(config: Mapping[str, Any]) -> Record | None:
    capture = config.get("DataCaptureConfig")
    if capture is None:
        return None
    is_enabled = bool(capture.get("EnableCapture", True))
    return {
        "EnableCapture": is_enabled,
        "CaptureStatus": "Started" if is_enabled else "Stopped",
        "CurrentSamplingPercentage": capture["InitialSamplingPercentage"],
        "DestinationS3Uri": capture["DestinationS3Uri"],
        "KmsKeyId": capture.get("KmsKeyId", ""),
    }
