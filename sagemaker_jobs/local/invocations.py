"""InvokeEndpoint, and what InvokeEndpointAsync does too: one request to one process, bytes and types as they are."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from werkzeug.wrappers import Request, Response

from sagemaker_jobs.local.capture import Exchange
from sagemaker_jobs.local.errors import ModelError, ServiceUnavailable, ValidationError, ValidationException
from sagemaker_jobs.local.fleets import Traffic
from sagemaker_jobs.local.publishing import LOG_GROUP
from sagemaker_jobs.local.serving import NoReply, Reply
from sagemaker_jobs.local.shapes import check_request

MAX_BODY_BYTES = 6 * 2**20
"""Of a request and of an answer; botocore's model says so of both."""

_PREFIX = "X-Amzn-SageMaker-"
_MEMBERS = {
    "ContentType": "Content-Type",
    "Accept": "Accept",
    "CustomAttributes": f"{_PREFIX}Custom-Attributes",
    "TargetModel": f"{_PREFIX}Target-Model",
    "TargetVariant": f"{_PREFIX}Target-Variant",
    "TargetContainerHostname": f"{_PREFIX}Target-Container-Hostname",
    "InferenceId": f"{_PREFIX}Inference-Id",
    "EnableExplanations": f"{_PREFIX}Enable-Explanations",
    "InferenceComponentName": f"{_PREFIX}Inference-Component",
    "SessionId": f"{_PREFIX}Session-Id",
}
_UNSUPPORTED = ("TargetModel", "TargetContainerHostname", "EnableExplanations", "InferenceComponentName", "SessionId")
_PASSED = ("ContentType", "Accept", "CustomAttributes", "InferenceId")
"""What the container sees of the request's headers."""


_ASYNC_PREFIXED = {
    "ContentType": f"{_PREFIX}Content-Type",
    "Accept": f"{_PREFIX}Accept",
    "CustomAttributes": f"{_PREFIX}Custom-Attributes",
    "InferenceId": f"{_PREFIX}Inference-Id",
    "InputLocation": f"{_PREFIX}InputLocation",
    "S3OutputPathExtension": f"{_PREFIX}S3OutputPathExtension",
    "Filename": f"{_PREFIX}Filename",
    "RequestTTLSeconds": f"{_PREFIX}RequestTTLSeconds",
    "InvocationTimeoutSeconds": f"{_PREFIX}InvocationTimeoutSeconds",
}
_ASYNC_SECONDS = ("RequestTTLSeconds", "InvocationTimeoutSeconds")
_ASYNC_UNSUPPORTED = ("S3OutputPathExtension", "Filename")


@dataclass(frozen=True)
class Answer:
    """What a model answered, and which variant it was."""

    body: bytes
    content_type: str
    attributes: str | None
    variant_name: str


def parse_request(name: str, request: Request) -> tuple[dict[str, Any], bytes]:
    """The operation's members, and the body; raises ValidationError."""
    # The length is looked at before the body is read into memory.
    length = request.content_length or 0
    if length > MAX_BODY_BYTES:
        raise ValidationError(
            "1 validation error detected: Value at 'body' failed to satisfy constraint: "
            f"Member must have length less than or equal to {MAX_BODY_BYTES}"
        )
    params = _parse_headers(name, request, _MEMBERS)
    _check("InvokeEndpoint", {**params, "Body": b""}, _UNSUPPORTED)
    return params, request.get_data(cache=False)


def parse_async_request(name: str, request: Request) -> dict[str, Any]:
    """The operation's members; raises ValidationError."""
    params = _parse_headers(name, request, _ASYNC_PREFIXED)
    for member in _ASYNC_SECONDS:
        if str(params.get(member, "")).isdecimal():
            params[member] = int(params[member])
    if request.content_length:
        raise ValidationError("The local SageMaker does not support Body; give InputLocation.")
    if "InputLocation" not in params:
        raise ValidationError("InputLocation must be specified.")
    _check("InvokeEndpointAsync", params, _ASYNC_UNSUPPORTED)
    if not params["InputLocation"].startswith("s3://"):
        raise ValidationError(f"InputLocation must be at s3://BUCKET/KEY, got {params['InputLocation']}.")
    return params


def _parse_headers(name: str, request: Request, members: Mapping[str, str]) -> dict[str, Any]:
    given = {member: request.headers[header] for member, header in members.items() if header in request.headers}
    return {"EndpointName": name, **given}


def _check(operation: str, params: Mapping[str, Any], unsupported: Sequence[str]) -> None:
    try:
        check_request("sagemaker-runtime", operation, params)
    except ValidationException as error:
        # The runtime's own word for it.
        raise ValidationError(error.message) from error
    for member in unsupported:
        if member in params:
            raise ValidationError(f"The local SageMaker does not support {member}.")


def call(
    params: Mapping[str, Any],
    body: bytes,
    *,
    traffic: Traffic,
    account: str,
    region: str,
    timeout_s: float,
    max_bytes: int | None = MAX_BODY_BYTES,
) -> Answer:
    """The container's answer, at most `max_bytes` of it.

    Raises ModelError with its error, ServiceUnavailable where none is up, ThrottlingException where it is serverless
    and has its MaxConcurrency.
    """
    start_s = time.perf_counter()
    name, target = params["EndpointName"], params.get("TargetVariant")
    found = traffic.acquire(target)
    if found is None:
        raise ValidationError(f"Variant {target} not found for endpoint {name} of account {account}.")
    variant, server = found
    if server is None:
        variant.usage.add(status=503, latency_s=0.0, overhead_s=time.perf_counter() - start_s)
        raise ServiceUnavailable(f"Every container of variant {variant.name} is down and being started again.")
    headers = {_MEMBERS[member]: params[member] for member in _PASSED if member in params}
    called_s = time.perf_counter()
    status, detail = 0, ""
    reply = None
    try:
        reply = server.invoke(body, headers, timeout_s=timeout_s)
        status = reply.status
        if max_bytes is not None and len(reply.body) > max_bytes:
            status, detail = 0, f"The response is larger than {max_bytes} bytes."
    except NoReply as error:
        detail = str(error)
    latency_s = time.perf_counter() - called_s
    if reply is None or not 200 <= status < 300:
        variant.usage.add(status=status, latency_s=latency_s, overhead_s=called_s - start_s)
        message = detail or (reply.body.decode(errors="replace") if reply else "")
        raise _model_error(name, status, message, account=account, region=region)
    if variant.capture is not None:
        variant.capture.add(_exchange(params, body, reply))
    content_type = _header(reply.headers, "Content-Type") or "application/octet-stream"
    attributes = _header(reply.headers, f"{_PREFIX}Custom-Attributes")
    answer = Answer(reply.body, content_type, attributes, variant.name)
    variant.usage.add(status=status, latency_s=latency_s, overhead_s=time.perf_counter() - start_s - latency_s)
    return answer


def render(answer: Answer) -> Response:
    """InvokeEndpoint's."""
    headers = {"x-Amzn-Invoked-Production-Variant": answer.variant_name}
    if answer.attributes is not None:
        headers[f"{_PREFIX}Custom-Attributes"] = answer.attributes
    # A list of headers: werkzeug would add a charset to a text type that the container sent without.
    response = Response(answer.body, 200, headers)
    response.headers["Content-Type"] = answer.content_type
    return response


def render_accepted(inference_id: str, *, output_uri: str, failure_uri: str | None) -> Response:
    """InvokeEndpointAsync's."""
    headers = {f"{_PREFIX}OutputLocation": output_uri}
    if failure_uri is not None:
        headers[f"{_PREFIX}FailureLocation"] = failure_uri
    return Response(json.dumps({"InferenceId": inference_id}), 202, headers, content_type="application/json")


def _exchange(params: Mapping[str, Any], body: bytes, reply: Reply) -> Exchange:
    return Exchange(
        body,
        params.get("ContentType", ""),
        reply.body,
        _header(reply.headers, "Content-Type") or "",
        inference_id=params.get("InferenceId"),
        custom_attributes=params.get("CustomAttributes"),
        time_s=time.time(),
    )


def _header(headers: Mapping[str, str], name: str) -> str | None:
    return next((value for key, value in headers.items() if key.lower() == name.lower()), None)


def _model_error(name: str, status: int, message: str, *, account: str, region: str) -> ModelError:
    group = f"{LOG_GROUP}{name}"
    kind = "client" if 400 <= status < 500 else "server"
    console = f"https://{region}.console.aws.amazon.com/cloudwatch/home?region={region}#logEventViewer:group={group}"
    return ModelError(
        f'Received {kind} error ({status}) from primary with message "{message}". '
        f"See {console} in account {account} for more information.",
        fields={
            "OriginalStatusCode": status,
            "OriginalMessage": message,
            "LogStreamArn": f"arn:aws:logs:{region}:{account}:log-group:{group}",
        },
    )
