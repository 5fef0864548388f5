"""InvokeEndpoint: one request to one process behind an endpoint, bytes and content types as they are."""

import time
from collections.abc import Mapping
from typing import Any

from werkzeug.wrappers import Request, Response

from sagemaker_jobs.local.capture import Exchange
from sagemaker_jobs.local.errors import ModelError, ServiceUnavailable, ValidationError, ValidationException
from sagemaker_jobs.local.fleets import Traffic, Variant
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


def parse_request(name: str, request: Request) -> tuple[dict[str, Any], bytes]:
    """The operation's members, and the body; raises ValidationError."""
    # The length is looked at before the body is read into memory.
    length = request.content_length or 0
    if length > MAX_BODY_BYTES:
        raise ValidationError(
            "1 validation error detected: Value at 'body' failed to satisfy constraint: "
            f"Member must have length less than or equal to {MAX_BODY_BYTES}"
        )
    params: dict[str, Any] = {"EndpointName": name}
    for member, header in _MEMBERS.items():
        if header in request.headers:
            params[member] = request.headers[header]
    try:
        check_request("sagemaker-runtime", "InvokeEndpoint", {**params, "Body": b""})
    except ValidationException as error:
        # The runtime's own word for it.
        raise ValidationError(error.message) from error
    for member in _UNSUPPORTED:
        if member in params:
            raise ValidationError(f"The local SageMaker does not support {member}.")
    return params, request.get_data(cache=False)


def invoke(
    params: Mapping[str, Any], body: bytes, *, traffic: Traffic, account: str, region: str, timeout_s: float
) -> Response:
    """The container's answer; raises ModelError with its error, ServiceUnavailable where none is up."""
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
        if len(reply.body) > MAX_BODY_BYTES:
            status, detail = 0, f"The response is larger than {MAX_BODY_BYTES} bytes."
    except NoReply as error:
        detail = str(error)
    latency_s = time.perf_counter() - called_s
    if reply is None or not 200 <= status < 300:
        variant.usage.add(status=status, latency_s=latency_s, overhead_s=called_s - start_s)
        message = detail or (reply.body.decode(errors="replace") if reply else "")
        raise _model_error(name, status, message, account=account, region=region)
    if variant.capture is not None:
        variant.capture.add(_exchange(params, body, reply))
    answer = _render(reply, variant)
    variant.usage.add(status=status, latency_s=latency_s, overhead_s=time.perf_counter() - start_s - latency_s)
    return answer


def _render(reply: Reply, variant: Variant) -> Response:
    headers = {"x-Amzn-Invoked-Production-Variant": variant.name}
    attributes = _header(reply.headers, f"{_PREFIX}Custom-Attributes")
    if attributes is not None:
        headers[f"{_PREFIX}Custom-Attributes"] = attributes
    content_type = _header(reply.headers, "Content-Type") or "application/octet-stream"
    # A list of headers: werkzeug would add a charset to a text type that the container sent without.
    response = Response(reply.body, 200, headers)
    response.headers["Content-Type"] = content_type
    return response


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
