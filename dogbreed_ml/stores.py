"""Which tracking store, how patient MLflow's HTTP client is with it, and what its errors mean."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from mlflow.environment_variables import (
    MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR,
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
    MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT,
)
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException

from dogbreed_ml.errors import TrackingError

_SQLITE = "sqlite:///"
# With MLflow's backoff factor 1, retry n waits 0, 2, 4, 8, ... s; it takes 9 retries at most.
_MAX_HTTP_RETRIES = 9

T = TypeVar("T")


@dataclass(frozen=True)
class Store:
    """Where runs are kept."""

    uri: str
    artifact_root: Path | None
    """Where new experiments keep artifacts; None leaves it to the server."""


def resolve_store(uri: str | None, project_dir: Path) -> Store:
    """The store of MLFLOW_TRACKING_URI, or mlflow.db in the project; a database file has mlruns/ beside it."""
    uri = uri or f"{_SQLITE}{project_dir / 'mlflow.db'}"
    if uri.startswith(_SQLITE):
        database_path = project_dir / unquote(uri[len(_SQLITE) :].partition("?")[0])
        database_path.parent.mkdir(parents=True, exist_ok=True)
        return Store(f"{_SQLITE}{database_path}", database_path.parent / "mlruns")
    return Store(uri, None if is_http(uri) else project_dir / "mlruns")


def is_http(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def without_password(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def answered(uri: str, call: Callable[[], T]) -> T:
    """The answer to a first call; TrackingError where there is none."""
    try:
        return call()
    except (MlflowException, RequestException, OSError) as error:
        raise TrackingError(
            f"The tracking store {without_password(uri)} cannot be opened; check MLFLOW_TRACKING_URI and that its "
            f"server runs: {error}"
        ) from error


def _retries_within(retry_s: float) -> int:
    """How many HTTP retries fit in so many seconds of waiting 0, 2, 4, 8, ... s."""
    retries, waited_s = 1, 0.0
    while retries < _MAX_HTTP_RETRIES and waited_s + 2**retries <= retry_s:
        waited_s += 2**retries
        retries += 1
    return retries


def set_up_http(retry_s: float) -> None:
    """Lets MLflow's own HTTP client be as patient as tracking.retry_s, and quiet.

    MLflow reads this from its variables alone.
    """
    # It would print two lines to stdout, and ask the server for the run, each time that a run ends.
    MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.set(True)
    # sagemaker-mlflow takes the tracking URI for an ARN; MLflow warns of its IndexError at every single request.
    logging.getLogger("mlflow.tracking.request_header.registry").setLevel(logging.ERROR)
    MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.set(1)
    MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(_retries_within(retry_s))


@contextmanager
def http_retries(retries: int, *, timeout_s: int | None = None) -> Iterator[None]:
    """Fewer retries, and a shorter wait for each answer, for a while: a wrong address should fail soon."""
    wanted = {MLFLOW_HTTP_REQUEST_MAX_RETRIES: retries}
    if timeout_s is not None:
        wanted[MLFLOW_HTTP_REQUEST_TIMEOUT] = timeout_s
    before = {variable: variable.get_raw() for variable in wanted}
    for variable, value in wanted.items():
        variable.set(value)
    try:
        yield
    finally:
        for variable, value in before.items():
            if value is None:
                variable.unset()
            else:
                variable.set(value)
