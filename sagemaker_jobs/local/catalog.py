"""Models and endpoint configs: records that a request makes, and that an endpoint later reads."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sagemaker_jobs.local import hosting
from sagemaker_jobs.local.errors import ResourceInUse, ValidationException
from sagemaker_jobs.local.listing import select
from sagemaker_jobs.shapes import answer_members

if TYPE_CHECKING:
    from sagemaker_jobs.local.service import LocalSageMaker

MODEL, CONFIG = "model", "endpoint-config"

Answer = dict[str, Any]


class Catalog:
    """The operations on models and endpoint configs; plain AWS dicts in and out."""

    def __init__(self, service: "LocalSageMaker") -> None:
        self._service = service

    def create_model(self, params: Answer) -> Answer:
        hosting.check_model(params)
        return self._create(MODEL, params["ModelName"], params, operation="DescribeModel", member="ModelArn")

    def describe_model(self, params: Answer) -> Answer:
        return self._get(MODEL, params["ModelName"])

    def list_models(self, params: Answer) -> Answer:
        rows, token = select(self._service.records.list(MODEL), params, name="ModelName")
        members = ("ModelName", "ModelArn", "CreationTime")
        return {"Models": [{member: row[member] for member in members} for row in rows], **token}

    def delete_model(self, params: Answer) -> Answer:
        name = params["ModelName"]
        self._service.records.delete(MODEL, name, missing=self._missing(MODEL, name))
        return {}

    def create_endpoint_config(self, params: Answer) -> Answer:
        hosting.check_endpoint_config(params, [model["ModelName"] for model in self._service.records.list(MODEL)])
        variants = [
            {**variant, "InitialVariantWeight": hosting.variant_weight(variant)}
            for variant in params["ProductionVariants"]
        ]
        return self._create(
            CONFIG,
            params["EndpointConfigName"],
            {**params, "ProductionVariants": variants},
            operation="DescribeEndpointConfig",
            member="EndpointConfigArn",
        )

    def describe_endpoint_config(self, params: Answer) -> Answer:
        return self._get(CONFIG, params["EndpointConfigName"])

    def list_endpoint_configs(self, params: Answer) -> Answer:
        rows, token = select(self._service.records.list(CONFIG), params, name="EndpointConfigName")
        members = ("EndpointConfigName", "EndpointConfigArn", "CreationTime")
        return {"EndpointConfigs": [{member: row[member] for member in members} for row in rows], **token}

    def delete_endpoint_config(self, params: Answer) -> Answer:
        name = params["EndpointConfigName"]
        self._service.records.delete(CONFIG, name, missing=self._missing(CONFIG, name))
        return {}

    def get_config(self, name: str) -> Answer:
        """The record; raises ValidationException."""
        return self._get(CONFIG, name)

    def get_model(self, name: str) -> Answer:
        """The record; raises ValidationException."""
        return self._get(MODEL, name)

    def _create(self, kind: str, name: str, params: Mapping[str, Any], *, operation: str, member: str) -> Answer:
        arn = self._service.arn(kind, name)
        known = answer_members("sagemaker", operation)
        record = {key: value for key, value in params.items() if key in known or key == "Tags"}
        record |= {member: arn, "CreationTime": time.time()}
        try:
            self._service.records.create(kind, name, record)
        except ResourceInUse as error:
            # AWS answers with ResourceInUse for jobs alone.
            raise ValidationException(f'Cannot create already existing {_words(kind)} "{arn}".') from error
        return {member: arn}

    def _get(self, kind: str, name: str) -> Answer:
        record = self._service.records.get(kind, name, missing=self._missing(kind, name))
        # ListTags answers them, no Describe does.
        record.pop("Tags", None)
        return record

    def _missing(self, kind: str, name: str) -> ValidationException:
        return ValidationException(f'Could not find {_words(kind)} "{self._service.arn(kind, name)}".')


def _words(kind: str) -> str:
    return "endpoint configuration" if kind == CONFIG else kind
