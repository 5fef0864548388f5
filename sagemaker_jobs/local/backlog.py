"""InvokeEndpointAsync: accepted at once; then input from S3, the model's answer to S3."""

import logging
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError
from werkzeug.wrappers import Response

from sagemaker_jobs.local import invocations
from sagemaker_jobs.local.cloud import split_uri
from sagemaker_jobs.local.deployments import Hosted
from sagemaker_jobs.local.errors import ServiceError, ServiceUnavailable, ThrottlingException, ValidationError
from sagemaker_jobs.local.hosting import num_instances

if TYPE_CHECKING:
    from sagemaker_jobs.local.service import LocalSageMaker

logger = logging.getLogger(__name__)

DEFAULT_CONCURRENCY = 4
"""Requests that one endpoint has under way where MaxConcurrentInvocationsPerInstance is not given."""
_DEFAULT_TTL_S = 21_600
_DEFAULT_TIMEOUT_S = 900
_PAUSE_S = 0.2


@dataclass(frozen=True)
class Ticket:
    """An accepted request, and where its answer will be."""

    params: Mapping[str, Any]
    output_uri: str
    failure_uri: str | None

    @property
    def expires_s(self) -> float:
        return float(self.params.get("RequestTTLSeconds", _DEFAULT_TTL_S))

    @property
    def timeout_s(self) -> float:
        return float(self.params.get("InvocationTimeoutSeconds", _DEFAULT_TIMEOUT_S))


class Backlogs:
    """The requests that wait, by endpoint; what waits when an endpoint is deleted is dropped."""

    def __init__(self, service: "LocalSageMaker", *, account: str) -> None:
        self._service, self._account = service, account
        self._lock = threading.Lock()
        self._pools: dict[str, ThreadPoolExecutor] = {}

    def accept(self, hosted: Hosted, params: Mapping[str, Any], *, config: Mapping[str, Any]) -> Response:
        """The answer, at once: where the model's, or its failure, will be. `config` is an endpoint config."""
        given = config["AsyncInferenceConfig"]
        output = given["OutputConfig"]
        params = {"InferenceId": str(uuid.uuid4()), **params}
        file_id, failure = str(uuid.uuid4()), output.get("S3FailurePath")
        ticket = Ticket(
            params,
            f"{output['S3OutputPath'].rstrip('/')}/{file_id}.out",
            f"{failure.rstrip('/')}/{file_id}-error.out" if failure else None,
        )
        per_instance = given.get("ClientConfig", {}).get("MaxConcurrentInvocationsPerInstance")
        concurrency = per_instance * num_instances(config) if per_instance else DEFAULT_CONCURRENCY
        self._submit(hosted, ticket, concurrency=concurrency)
        return invocations.render_accepted(
            params["InferenceId"], output_uri=ticket.output_uri, failure_uri=ticket.failure_uri
        )

    def _submit(self, hosted: Hosted, ticket: Ticket, *, concurrency: int) -> None:
        with self._lock:
            # Set before close(), so that no pool is made after it.
            if hosted.cancelled.is_set():
                raise ValidationError(f"Endpoint {hosted.name} is being deleted.")
            pool = self._pools.get(hosted.name)
            if pool is None:
                pool = ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix=f"backlog-{hosted.name}")
                self._pools[hosted.name] = pool
            pool.submit(self._serve, hosted, ticket, time.monotonic() + ticket.expires_s)

    def close(self, name: str) -> None:
        """After the endpoint's processes have ended: what they were asked ends with them."""
        with self._lock:
            pool = self._pools.pop(name, None)
        if pool is not None:
            pool.shutdown(cancel_futures=True)

    def close_all(self) -> None:
        for name in list(self._pools):
            self.close(name)

    def _serve(self, hosted: Hosted, ticket: Ticket, deadline: float) -> None:
        if hosted.cancelled.is_set():
            return
        s3 = self._service.cloud.s3
        try:
            bucket, key = split_uri(ticket.params["InputLocation"])
            body = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
            answer = self._ask(hosted, ticket, body, deadline)
            self._write(ticket.output_uri, answer.body, answer.content_type)
        except ServiceError as error:
            self._fail(hosted, ticket, error.message)
        except (BotoCoreError, ClientError) as error:
            self._fail(hosted, ticket, f"The request of {ticket.params['InputLocation']} could not be served: {error}")

    def _ask(self, hosted: Hosted, ticket: Ticket, body: bytes, deadline: float) -> invocations.Answer:
        """Waits while no process is up, as a request that waits in a queue does."""
        while True:
            try:
                return invocations.call(
                    ticket.params,
                    body,
                    traffic=hosted.traffic,
                    account=self._account,
                    region=self._service.settings.region,
                    timeout_s=ticket.timeout_s,
                    max_bytes=None,
                )
            except (ServiceUnavailable, ThrottlingException):
                if time.monotonic() > deadline or hosted.cancelled.wait(_PAUSE_S):
                    raise

    def _fail(self, hosted: Hosted, ticket: Ticket, message: str) -> None:
        logger.warning("Asynchronous inference %s failed: %s", ticket.params["InferenceId"], message)
        if ticket.failure_uri is None or hosted.cancelled.is_set():
            return
        try:
            self._write(ticket.failure_uri, message.encode(), "text/plain")
        except (BotoCoreError, ClientError) as error:
            logger.warning("%s could not be written: %s", ticket.failure_uri, error)

    def _write(self, uri: str, content: bytes, content_type: str) -> None:
        bucket, key = split_uri(uri)
        self._service.cloud.s3.put_object(Bucket=bucket, Key=key, Body=content, ContentType=content_type)
