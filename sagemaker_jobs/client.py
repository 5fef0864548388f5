"""AWS's clients: made once, patient where the network is, and every refusal one line with a way out.

boto3 finds credentials, region and AWS_ENDPOINT_URL as every AWS tool does; the local SageMaker is an address among
others.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigParseError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)

from dogbreed_ml.cloudconfig import SagemakerConfig
from dogbreed_ml.errors import CloudError, ConfigError
from sagemaker_jobs.shapes import WrongTypeError, request_errors, unknown_members

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOCAL_ROLE = "arn:aws:iam::123456789012:role/local-sagemaker"
"""What the SageMaker of this machine, which checks no rights, is told."""
PATIENCE_S = 300.0
"""How long a question is asked again while AWS does not answer; jobs go on meanwhile."""

_HURRIED_S = 5.0
"""The same where somebody waits to get away."""

_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")
_LOGGED_OUT = (SSOError, TokenRetrievalError, CredentialRetrievalError)
"""botocore's own, which AWS never saw: a login that is over, or never was."""
_DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation")
_THROTTLED = ("Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException", "SlowDown")
_RETRIES = Config(
    retries={"mode": "standard", "max_attempts": 8}, connect_timeout=10, read_timeout=90, max_pool_connections=16
)
_FEW_RETRIES = Config(retries={"mode": "standard", "max_attempts": 2}, connect_timeout=5, read_timeout=30)


@dataclass(frozen=True)
class Clock:
    """Time as waiting sees it."""

    now: Callable[[], float] = time.monotonic
    """Seconds; only differences mean something."""
    sleep: Callable[[float], None] = time.sleep


@dataclass
class Aws:
    """One account and region; clients are made on first use and closed together."""

    region: str
    session: boto3.session.Session
    clock: Clock = field(default_factory=Clock)
    patience_s: float = PATIENCE_S
    """How long `ask` asks again; below PATIENCE_S the clients try less often too."""
    _clients: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, config: SagemakerConfig, *, clock: Clock | None = None, patience_s: float = PATIENCE_S) -> "Aws":
        """Raises ConfigError where no region or no credentials are configured; asks nothing of the network."""
        session = _session(config)
        if session.region_name is None:
            raise ConfigError("sagemaker.region must name a region where AWS_DEFAULT_REGION does not, got null.")
        try:
            credentials = session.get_credentials()
        # A credential_process is run here, and may be missing, fail, or answer anything.
        except (BotoCoreError, OSError, ValueError) as error:
            raise ConfigError(
                f"AWS credentials must be readable, and those of the profile are not: {error}; mend ~/.aws/config or "
                "choose another AWS_PROFILE."
            ) from error
        if credentials is None:
            raise ConfigError(
                "AWS credentials are needed and none were found; run `aws configure` or `aws sso login`, or start "
                'the local SageMaker: eval "$(dogbreed sagemaker-local start)".'
            )
        return cls(session.region_name, session, clock or Clock(), patience_s)

    def client(self, service: str) -> Any:
        """boto3's client of `sagemaker`, `sagemaker-runtime`, `s3`, `logs`, ..."""
        if service not in self._clients:
            # The price list is offered in few regions.
            region = "us-east-1" if service == "pricing" else self.region
            retries = _RETRIES if self.patience_s >= PATIENCE_S else _FEW_RETRIES
            self._clients[service] = self.session.client(service, region_name=region, config=retries)
        return self._clients[service]

    @cached_property
    def account_id(self) -> str:
        """Twelve digits."""
        with translated("ask for the account"):
            return str(self.client("sts").get_caller_identity()["Account"])

    @property
    def partition(self) -> str:
        """What ARNs of this region begin with: `aws`, `aws-cn`, `aws-us-gov`."""
        return str(self.session.get_partition_for_region(self.region))

    @property
    def is_local(self) -> bool:
        """Whether SageMaker is on this machine."""
        url = str(self.client("sagemaker").meta.endpoint_url)
        return url.startswith(("http://127.0.0.1", "http://localhost", "http://[::1]"))

    def execution_role(self, config: SagemakerConfig) -> str:
        """The role that jobs and endpoints run as; ConfigError where AWS needs one and none is configured."""
        if config.role_arn is not None:
            return config.role_arn
        if self.is_local:
            return LOCAL_ROLE
        raise ConfigError(
            "sagemaker.role_arn must name the role that jobs and endpoints run as, got null; `dogbreed deploy "
            "--print-policy` shows what it must be allowed."
        )

    def console_url(self, path: str) -> str | None:
        """A page of the AWS console, such as `jobs/NAME`; None for the local SageMaker."""
        if self.is_local:
            return None
        return f"https://{self.region}.console.aws.amazon.com/sagemaker/home?region={self.region}#/{path}"

    def create(self, operation: str, request: Mapping[str, Any], *, doing: str) -> Any:
        """Checks the request against botocore's model, sends it once per answer, and returns the answer.

        Raises ConfigError for a request that AWS would refuse, CloudError for what AWS does refuse.
        """
        check(operation, request)
        method = getattr(self.client("sagemaker"), _method(operation))
        with translated(doing):
            return method(**request)

    def ask(self, call: Callable[[], T], *, doing: str, patience_s: float | None = None) -> T:
        """Calls, and calls again while there is no answer: only what does no harm twice, such as Describe and List."""
        patience_s = self.patience_s if patience_s is None else patience_s
        start, pause_s = self.clock.now(), 1.0
        while True:
            try:
                return call()
            except (BotoCoreError, ClientError) as error:
                if not is_transient(error) or self.clock.now() - start + pause_s > patience_s:
                    raise cloud_error(error, doing) from error
                logger.warning("AWS does not answer (%s); asking again in %g s.", _brief(error), pause_s)
            self.clock.sleep(pause_s)
            pause_s = min(15.0, pause_s * 2)

    def hurried(self) -> "Aws":
        """The same account with little patience, to be closed by itself: for what is asked after Ctrl-C."""
        return replace(self, patience_s=_HURRIED_S, _clients={})

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def __enter__(self) -> "Aws":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def configured_region(config: SagemakerConfig) -> str | None:
    """The region that `Aws.open` would take; None where none is configured, ConfigError for a profile that is not."""
    region: str | None = _session(config).region_name
    return region


def _session(config: SagemakerConfig) -> boto3.session.Session:
    try:
        return boto3.session.Session(region_name=config.region)
    except (ProfileNotFound, ConfigParseError) as error:
        raise ConfigError(f"AWS_PROFILE must name a profile of a readable ~/.aws/config: {error}.") from error


def wait_until(
    look: Callable[[], T],
    is_done: Callable[[T], bool],
    *,
    what: str,
    timeout_s: float,
    interval_s: float = 5.0,
    clock: Clock | None = None,
) -> T:
    """Looks every `interval_s` until it is done and returns what it saw; CloudError after `timeout_s`."""
    clock = clock or Clock()
    deadline = clock.now() + timeout_s
    while True:
        seen = look()
        if is_done(seen):
            return seen
        if clock.now() + interval_s > deadline:
            raise CloudError(f"{what} did not happen within {timeout_s:g} s; it goes on, and may be looked at later.")
        clock.sleep(interval_s)


def check(operation: str, request: Mapping[str, Any]) -> None:
    """Raises ConfigError where a request breaks botocore's model: pattern, enum and range included."""
    try:
        mistakes = request_errors("sagemaker", operation, request)
    except WrongTypeError as error:
        mistakes = [str(error)]
    mistakes += unknown_members("sagemaker", operation, request)
    if mistakes:
        raise ConfigError(f"{operation} would be refused by SageMaker: {'; '.join(mistakes)}.")


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """AWS's errors as CloudError; `doing` completes `could not ...`."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise cloud_error(error, doing) from error
    # What boto3's transfers make of either, as the context of their own.
    except Boto3Error as error:
        cause = error.__context__
        raise cloud_error(cause if isinstance(cause, BotoCoreError | ClientError) else error, doing) from error


def cloud_error(error: Exception, doing: str) -> CloudError:
    """One line with a way out."""
    code = error_code(error)
    way_out = "the same command goes on where this one ended"
    if code in _EXPIRED or isinstance(error, _LOGGED_OUT):
        way_out = "log in again (`aws sso login`), then the same command goes on where this one ended"
    elif code in _DENIED:
        way_out = "`dogbreed deploy --print-policy` shows what must be allowed"
    elif isinstance(error, EndpointConnectionError):
        way_out = "check the network and the region in that address, then the same command goes on where this one ended"
    elif isinstance(error, NoCredentialsError | PartialCredentialsError | NoRegionError):
        way_out = "run `aws configure` or `aws sso login`"
    elif code is not None and not is_transient(error):
        way_out = "mend what it names"
    return CloudError(f"Could not {doing}: {_brief(error)}; {way_out}.")


def error_code(error: Exception) -> str | None:
    """AWS's code of a refusal, such as ValidationException; None for a connection's end."""
    return str(error.response["Error"].get("Code")) if isinstance(error, ClientError) else None


def is_transient(error: Exception) -> bool:
    """Whether the same call may succeed later: no connection, throttling, AWS's own error."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return error_code(error) in _THROTTLED or status >= 500
    return isinstance(error, BotoConnectionError | HTTPClientError)


def is_refusal(error: CloudError) -> bool:
    """Whether AWS said no, so that nothing was made of a request; false where it may have arrived all the same."""
    cause = error.__cause__
    # A name in use is, where names are never used twice, that of the same request whose answer was lost.
    return isinstance(cause, ClientError) and not is_transient(cause) and error_code(cause) != "ResourceInUse"


def is_absent(error: Exception) -> bool:
    """Whether a Describe or Delete names what is not there.

    SageMaker says ResourceNotFound for jobs, and for models and endpoints ValidationException, which has many senses.
    """
    if error_code(error) == "ResourceNotFound":
        return True
    message = error.response["Error"].get("Message", "") if isinstance(error, ClientError) else ""
    wordings = ("Could not find", "not found", "does not exist", "Cannot find")
    return error_code(error) == "ValidationException" and any(each in message for each in wordings)


def _brief(error: Exception) -> str:
    if isinstance(error, ClientError):
        return f"{error_code(error)}: {error.response['Error'].get('Message', '').strip().rstrip('.')}"
    return str(error).strip().rstrip(".")


def _method(operation: str) -> str:
    from botocore import xform_name

    return str(xform_name(operation))
