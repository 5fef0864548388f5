"""Faults on order, for tests of what a client does about them: throttling, S3's errors, an expired token, no network.

Off until asked for. They meet the caller's requests only, known by their credentials; the server's own and those of its
jobs and models are let through.
"""

import re
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

from sagemaker_jobs.local.cloud import INSIDE_ACCESS_KEY_ID
from sagemaker_jobs.local.errors import ExpiredTokenException, ThrottlingException, ValidationException
from sagemaker_jobs.shapes import method_name

S3Code = Literal["SlowDown", "InternalError"]
Kind = Literal["throttle", "fail_s3", "expire_token", "drop_connections", "lose_answer"]

_SERVICES = ("sagemaker", "sagemaker-runtime", "logs")
"""Whose operations can be told apart without reading a request's body."""
_S3_MESSAGES: Mapping[str, tuple[int, str]] = {
    "SlowDown": (503, "Please reduce your request rate."),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "ExpiredToken": (400, "The provided token has expired."),
}
_CREDENTIAL = re.compile(r"Credential=(?P<key>[^/,&]+)/\d+/[^/]+/(?P<service>[^/]+)/aws4_request")
_INVOKE = re.compile(r"/endpoints/[^/]+/(?P<how>invocations|async-invocations)")


class ConnectionLost(ConnectionError):
    """No answer: the server closes the connection."""


@dataclass(frozen=True)
class Call:
    """What can be known of a request before anybody reads it."""

    service: str
    """As its signature names it, such as s3 and monitoring; empty where it has none."""
    operation: str
    """Empty where only its body tells."""
    is_inside: bool
    """The server's own call, or that of a job or model."""

    @classmethod
    def parse(cls, environ: Mapping[str, Any]) -> "Call":
        """Of a WSGI environment."""
        signed = f"{environ.get('HTTP_AUTHORIZATION', '')}&{unquote(environ.get('QUERY_STRING', ''))}"
        found = _CREDENTIAL.search(signed)
        operation = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
        if match := _INVOKE.fullmatch(environ.get("PATH_INFO", "")):
            operation = "InvokeEndpoint" if match["how"] == "invocations" else "InvokeEndpointAsync"
        if found is None:
            return cls("", operation, is_inside=False)
        return cls(found["service"], operation, is_inside=found["key"] == INSIDE_ACCESS_KEY_ID)


class S3Failure(Exception):
    """What S3 answers instead; rendered as its XML."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code

    @property
    def status(self) -> int:
        return _S3_MESSAGES[self.code][0]

    def render(self, request_id: str) -> str:
        return (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{self.code}</Code><Message>'
            f"{_S3_MESSAGES[self.code][1]}</Message><RequestId>{request_id}</RequestId><HostId>local</HostId></Error>"
        )


class Faults:
    """The faults of one server, as `server.faults` and behind POST /local/faults; thread-safe.

    boto3 tries a throttled, failed or dropped request again by itself, up to four times where nothing else is set: a
    test of what comes after that orders `times=5`, or a client with `Config(retries={"total_max_attempts": 1})`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hits: Counter[str] = Counter()
        self._throttled: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._s3: list[str] = []
        self._is_expired = self._is_dropping = False

    def throttle(self, operation: str, *, times: int = 1) -> None:
        """The next `times` calls of an operation, such as CreateTrainingJob, are answered with ThrottlingException."""
        self._add(self._throttled, operation, times)

    def lose_answer(self, operation: str, *, times: int = 1) -> None:
        """The next `times` calls of an operation are carried out, and the connection ends before the answer."""
        self._add(self._lost, operation, times)

    def fail_s3(self, *, times: int = 1, code: S3Code = "SlowDown") -> None:
        """The next `times` S3 calls fail with 503 SlowDown or 500 InternalError."""
        if code not in ("SlowDown", "InternalError"):
            raise ValidationException(f"fail_s3 has the codes SlowDown and InternalError, got {code!r}.")
        with self._lock:
            self._s3 += [code] * _times(times)

    def expire_token(self) -> None:
        """From now on every call is refused: its credentials have expired."""
        with self._lock:
            self._is_expired = True

    def drop_connections(self) -> None:
        """From now on no call is answered; the connection just ends."""
        with self._lock:
            self._is_dropping = True

    def clear(self) -> None:
        """Everything works again, and what was hit is forgotten."""
        with self._lock:
            for each in (self._throttled, self._lost, self._s3, self._hits):
                each.clear()
            self._is_expired = self._is_dropping = False

    def hits(self) -> dict[str, int]:
        """How many calls each kind of fault has met since the last clear()."""
        with self._lock:
            return dict(self._hits)

    def meet(self, environ: Mapping[str, Any]) -> bool:
        """Raises the fault that a request meets; whether its answer is to be lost, where it is let through.

        Raises ConnectionLost, ExpiredTokenException, ThrottlingException or S3Failure.
        """
        if not self._is_any():
            return False
        call = Call.parse(environ)
        if call.is_inside:
            return False
        with self._lock:
            if self._is_dropping:
                self._hits["drop_connections"] += 1
                raise ConnectionLost("The connection is dropped, as ordered.")
            if self._is_expired:
                self._hits["expire_token"] += 1
                raise (
                    S3Failure("ExpiredToken")
                    if call.service == "s3"
                    else ExpiredTokenException("The security token included in the request is expired")
                )
            if call.service == "s3" and self._s3:
                self._hits["fail_s3"] += 1
                raise S3Failure(self._s3.pop(0))
            if self._take("throttle", self._throttled, call.operation):
                raise ThrottlingException("Rate exceeded")
            return self._take("lose_answer", self._lost, call.operation)

    def apply(self, order: Mapping[str, Any]) -> None:
        """What POST /local/faults was told; raises ValidationException.

        `{"clear": true, "throttle": {"CreateTrainingJob": 2}, "lose_answer": {...}, "fail_s3": {"times": 2, "code":
        "SlowDown"}, "expire_token": true, "drop_connections": true}`, each of them or none; clear comes first.
        """
        switches = {"clear": self.clear, "expire_token": self.expire_token, "drop_connections": self.drop_connections}
        counted = {"throttle": self.throttle, "lose_answer": self.lose_answer}
        unknown = sorted(set(order) - {*switches, *counted, "fail_s3"})
        if unknown:
            raise ValidationException(f"There are no faults {', '.join(unknown)}.")
        for name, switch in switches.items():
            if order.get(name):
                switch()
        for name, add in counted.items():
            for operation, times in _mapping(name, order).items():
                add(operation, times=times)
        if "fail_s3" in order:
            given = _mapping("fail_s3", order)
            self.fail_s3(times=given.get("times", 1), code=given.get("code", "SlowDown"))

    def describe(self) -> dict[str, Any]:
        """What is left of all orders, and the hits."""
        with self._lock:
            return {
                "throttle": dict(+self._throttled),
                "lose_answer": dict(+self._lost),
                "fail_s3": list(self._s3),
                "expire_token": self._is_expired,
                "drop_connections": self._is_dropping,
                "hits": dict(self._hits),
            }

    def _is_any(self) -> bool:
        return bool(self._is_dropping or self._is_expired or self._s3 or self._throttled or self._lost)

    def _add(self, counter: Counter[str], operation: str, times: int) -> None:
        if not any(method_name(service, operation) for service in _SERVICES):
            raise ValidationException(f"{operation} is no operation of {', '.join(_SERVICES)}.")
        with self._lock:
            counter[operation] += _times(times)

    def _take(self, kind: Kind, counter: Counter[str], operation: str) -> bool:
        if counter[operation] < 1:
            del counter[operation]
            return False
        counter[operation] -= 1
        self._hits[kind] += 1
        return True


def _times(times: int) -> int:
    if not isinstance(times, int) or times < 1:
        raise ValidationException(f"A fault meets at least 1 call, got {times!r}.")
    return times


def _mapping(name: str, order: Mapping[str, Any]) -> Mapping[str, Any]:
    given = order.get(name, {})
    if not isinstance(given, Mapping):
        raise ValidationException(f"{name} must be an object, got {given!r}.")
    return given
