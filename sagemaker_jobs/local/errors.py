"""What the local SageMaker refuses, under AWS's own names.

ServiceError
├── ValidationException     a wrong request; also what AWS says for most names that it cannot find
├── SerializationException  a value of another type than the operation's shape
├── ResourceInUse           a name that is taken
├── ResourceNotFound
├── ResourceLimitExceeded
├── ConflictException
├── ThrottlingException     too many calls; boto3 tries again by itself
│   └── ConcurrencyExceeded     the same, of a serverless endpoint
├── ExpiredTokenException
├── AccessDeniedException   a request that a web page sent
├── ModelError              a model's container answered an invocation with an error
├── ModelNotReadyException
├── ValidationError         ValidationException, as the runtime calls it
└── ServiceUnavailable      no container of the endpoint is up; boto3 tries again by itself
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from dogbreed_ml.errors import DogbreedError


class ServiceError(DogbreedError):
    """Answered to a client as `code` with HTTP `status`; `fields` are further members of the error's shape."""

    status: ClassVar[int] = 400

    def __init__(self, message: str, *, fields: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fields = dict(fields or {})

    @property
    def code(self) -> str:
        return type(self).__name__


class ValidationException(ServiceError):
    """A request that breaks a constraint, or names what is not there."""


class SerializationException(ServiceError):
    """A request whose body is not JSON of the operation's types."""


class ResourceInUse(ServiceError):
    """A name that is taken."""


class ResourceNotFound(ServiceError):
    """A name that is not there, in the operations where AWS says so."""


class ResourceLimitExceeded(ServiceError):
    """More than the local limits allow."""


class ConflictException(ServiceError):
    """A change that another change under way forbids."""


class ThrottlingException(ServiceError):
    """Too many calls."""


class ConcurrencyExceeded(ThrottlingException):
    """A serverless endpoint that answers as many requests at once as it may."""

    status = 429

    @property
    def code(self) -> str:
        return "ThrottlingException"


class ExpiredTokenException(ServiceError):
    """The caller's credentials were good once."""


class AccessDeniedException(ServiceError):
    """A request that no AWS client sends."""

    status = 403


class ModelError(ServiceError):
    """`fields`: OriginalStatusCode (int), OriginalMessage, LogStreamArn."""

    status = 424


class ValidationError(ServiceError):
    """A wrong InvokeEndpoint request."""


class ServiceUnavailable(ServiceError):
    """No container of the endpoint is up."""

    status = 503


class ModelNotReadyException(ServiceError):
    """The model's container does not answer yet."""

    status = 429
