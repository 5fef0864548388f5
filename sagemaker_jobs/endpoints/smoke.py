"""The smoke test: an endpoint is asked for the model's own example images, and must answer what the model answers.

Expected answers are torch fp32's; a container may compute in bf16 on another kind of processor, hence a tolerance.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from dogbreed_ml.errors import CloudError
from sagemaker_jobs.client import Aws, translated, wait_until
from sagemaker_jobs.endpoints.endpoint import poll_s
from sagemaker_jobs.endpoints.leases import PASSED
from sagemaker_jobs.endpoints.model_archive import Example
from sagemaker_jobs.storage import Storage

TOLERANCE = 0.05
"""By which a probability may differ from torch fp32's."""

_ASYNC_TIMEOUT_S = 300.0
_JPEG, _JSON = "image/jpeg", "application/json"

Invoke = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Smoke:
    """What a smoke test found."""

    num_images: int
    problems: tuple[str, ...]
    """One sentence for each image that was not answered as it should be."""
    median_ms: float
    """From this machine, network included."""

    @property
    def is_passed(self) -> bool:
        return not self.problems

    def render(self) -> str:
        if self.is_passed:
            return f"{PASSED}: {self.num_images} example images as expected, {self.median_ms:.0f} ms each"
        return f"failed: {len(self.problems)} of {self.num_images} example images: {self.problems[0]}"


def smoke_test(invoke: Invoke, examples: Sequence[Example]) -> Smoke:
    """Asks for each image once, one after another."""
    problems, times_ms = [], []
    for example in examples:
        start_s = time.perf_counter()
        try:
            answer = invoke(example.image)
        except (CloudError, BotoCoreError, ClientError) as error:
            problems.append(f"{example.name}: {' '.join(str(error).split())}")
            continue
        times_ms.append((time.perf_counter() - start_s) * 1000)
        problem = _problem(answer, example.answer)
        if problem is not None:
            problems.append(f"{example.name}: {problem}")
    return Smoke(len(examples), tuple(problems), statistics.median(times_ms) if times_ms else 0.0)


def invoker(aws: Aws, endpoint: str) -> Invoke:
    """Asks a real-time or serverless endpoint."""

    def invoke(image: bytes) -> bytes:
        answer = aws.client("sagemaker-runtime").invoke_endpoint(
            EndpointName=endpoint, Body=image, ContentType=_JPEG, Accept=_JSON
        )
        content: bytes = answer["Body"].read()
        return content

    return invoke


def async_invoker(aws: Aws, endpoint: str, storage: Storage) -> Invoke:
    """Asks an asynchronous endpoint: the image goes to S3, and the answer is waited for there."""

    def invoke(image: bytes) -> bytes:
        source_uri = storage.put(f"async/{endpoint}/smoke/image.jpg", image)
        told = aws.client("sagemaker-runtime").invoke_endpoint_async(
            EndpointName=endpoint, InputLocation=source_uri, ContentType=_JPEG, Accept=_JSON
        )
        places = [told["OutputLocation"], told.get("FailureLocation")]
        found = wait_until(
            lambda: next(((uri, read) for uri in places if uri and (read := _read(aws, uri)) is not None), None),
            lambda seen: seen is not None,
            what=f"An answer of {endpoint} to an example image",
            timeout_s=_ASYNC_TIMEOUT_S,
            interval_s=poll_s(aws),
            clock=aws.clock,
        )
        assert found is not None
        uri, content = found
        storage.delete_all([source_uri, uri])
        if uri != places[0]:
            raise CloudError(f"{endpoint} refused an example image: {content.decode(errors='replace')[:500]}")
        return content

    return invoke


def _read(aws: Aws, uri: str) -> bytes | None:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    s3 = aws.client("s3")
    with translated(f"read {uri}"):
        try:
            content: bytes = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        except s3.exceptions.NoSuchKey:
            return None
    return content


def _problem(answer: bytes, expected: Mapping[str, Any]) -> str | None:
    try:
        (row,) = json.loads(answer)["predictions"]
        ranked = [(str(each["breed"]), float(each["probability"])) for each in row["top5"]]
        breed, probability = ranked[0]
    except (ValueError, KeyError, TypeError, IndexError):
        return f"the answer is not one prediction but {answer[:200]!r}"
    wanted = {str(each["breed"]): float(each["probability"]) for each in expected["top5"]}
    best = max(wanted.values())
    # Two breeds that are as good as equal may change places.
    if wanted.get(breed, -1.0) < best - TOLERANCE:
        return f"the answer is {breed}, where {expected['top5'][0]['breed']} was expected"
    # Not `> TOLERANCE`: NaN is that of nothing.
    if not abs(wanted[breed] - probability) <= TOLERANCE:
        return f"{breed} has the probability {probability:.4f}, where {wanted[breed]:.4f} was expected"
    return None
