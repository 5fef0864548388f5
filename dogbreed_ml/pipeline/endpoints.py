"""`dogbreed endpoints` and `dogbreed delete`: the servers that `dogbreed deploy` started on this machine.

Each has a file of its own, `.dogbreed/endpoints/NAME.json`; whether it runs is asked of the process and of its /ping.
"""

import json
import logging
import shutil
import signal
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from dogbreed_ml.config import TrackingConfig
from dogbreed_ml.context import Context
from dogbreed_ml.errors import ServingError, TrackingError
from dogbreed_ml.files import write_whole
from dogbreed_ml.options import DeleteOptions
from dogbreed_ml.provenance import HOST_TAG, PID_TAG, PROCESS_START_TAG, is_gone
from dogbreed_ml.server.process import KILL_AFTER_S, ping
from dogbreed_ml.summaries import render_table

if TYPE_CHECKING:
    from dogbreed_ml.tracking import Tracker

logger = logging.getLogger(__name__)

_STORE_RETRY_S = 5.0

Health = Literal["healthy", "not healthy", "ended"]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One server, as its file describes it."""

    name: str
    url: str
    host: str
    port: int
    process: dict[str, str]
    """Host, pid and start time: a pid alone may belong to another process by now."""
    model: str
    version: int
    backend: str
    deployed_at: str
    """UTC, ISO 8601."""
    is_detached: bool
    tracking_uri: str
    """The store whose model version says that it is served here."""
    grace_s: float
    log_path: str | None = None
    model_dir: str | None = None
    """What is to be deleted with it."""

    @property
    def pid(self) -> int:
        return int(self.process[PID_TAG])

    @property
    def has_ended(self) -> bool:
        return is_gone(self.process)

    def health(self) -> Health:
        if self.has_ended:
            return "ended"
        return "healthy" if ping(self.host, self.port).is_healthy else "not healthy"


@dataclass(frozen=True)
class EndpointList:
    """All endpoints of this machine, each with its health."""

    endpoints: tuple[tuple[Endpoint, Health], ...]

    def to_dict(self) -> list[dict[str, Any]]:
        return [asdict(endpoint) | {"target": "local", "health": health} for endpoint, health in self.endpoints]

    def render(self) -> str:
        if not self.endpoints:
            return "no endpoints; `dogbreed deploy --detach` starts one"
        heads = ("NAME", "HEALTH", "MODEL", "BACK END", "URL", "SINCE", "PID")
        rows = [
            (each.name, health, f"{each.model} {each.version}", each.backend, each.url, each.deployed_at, str(each.pid))
            for each, health in self.endpoints
        ]
        return "\n".join(render_table(heads, rows))


@dataclass(frozen=True)
class Deletion:
    """An endpoint that is no more."""

    name: str
    had_ended: bool
    """Whether its process was gone already."""

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "deleted": True, "had_ended": self.had_ended}

    def render(self) -> str:
        return f"{self.name} {'had ended already; its files are' if self.had_ended else 'is'} deleted"


def list_endpoints(*, context: Context) -> EndpointList:
    """Every endpoint that has a file, those that have ended too, by name."""
    endpoints = [_load(path) for path in sorted(endpoints_dir(context).glob("*.json"))]
    return EndpointList(tuple((endpoint, endpoint.health()) for endpoint in endpoints))


def delete(options: DeleteOptions, *, context: Context) -> Deletion:
    """Lets the server answer what is in flight, ends it, and removes its files; ServingError where there is none."""
    folder = endpoints_dir(context)
    path = folder / f"{options.endpoint}.json"
    if not has_endpoint(options.endpoint, context=context):
        known = ", ".join(sorted(each.stem for each in folder.glob("*.json"))) or "none"
        raise ServingError(f"There is no endpoint {options.endpoint!r} here; there are: {known}.")
    endpoint = _load(path)
    if endpoint.process.get(HOST_TAG) != socket.gethostname():
        raise ServingError(f"{endpoint.name} runs on {endpoint.process.get(HOST_TAG)}; delete it there.")
    had_ended = endpoint.has_ended
    if not had_ended:
        _end(endpoint)
    _tell_store(endpoint)
    forget(endpoint, context=context)
    return Deletion(endpoint.name, had_ended)


def has_endpoint(name: str, *, context: Context) -> bool:
    """Whether an endpoint of that name has a file here."""
    folder = endpoints_dir(context)
    path = folder / f"{name}.json"
    return path.parent == folder and path.is_file()


def endpoints_dir(context: Context) -> Path:
    return context.project_dir / ".dogbreed" / "endpoints"


def remember(endpoint: Endpoint, *, context: Context) -> None:
    """Writes its file."""
    write_whole(endpoints_dir(context) / f"{endpoint.name}.json", json.dumps(asdict(endpoint), indent=2) + "\n")


def forget(endpoint: Endpoint, *, context: Context) -> None:
    """Removes its file, its copy of the model and its log."""
    if endpoint.model_dir is not None:
        shutil.rmtree(endpoint.model_dir, ignore_errors=True)
    if endpoint.log_path is not None:
        Path(endpoint.log_path).unlink(missing_ok=True)
    (endpoints_dir(context) / f"{endpoint.name}.json").unlink(missing_ok=True)


def record_end(tracker: "Tracker", endpoint: Endpoint, *, action: Literal["delete", "ended"]) -> None:
    """The end as an event, and with the version until when it was served."""
    from dogbreed_ml.deployments import mark_ended, recorded
    from dogbreed_ml.registry import load_version

    version = load_version(tracker, endpoint.model, endpoint.version)
    with recorded(tracker, action, target="local", endpoint=endpoint.name, version=version) as event:
        event.note(backend=endpoint.backend)
        mark_ended(tracker, endpoint.model, endpoint.version, endpoint=endpoint.name)


def _tell_store(endpoint: Endpoint) -> None:
    """A store that is away, or that knows the version no more, does not keep the server alive."""
    from dogbreed_ml.tracking import Tracker

    try:
        config = TrackingConfig(retry_s=_STORE_RETRY_S, system_metrics=False)
        with Tracker.attach(endpoint.tracking_uri, config=config) as tracker:
            record_end(tracker, endpoint, action="delete")
    except TrackingError as error:
        logger.warning("The end of %s is not noted with the model version: %s", endpoint.name, error)


def describe_process(pid: int) -> dict[str, str]:
    """What `Endpoint.process` keeps."""
    started = psutil.Process(pid).create_time()
    return {HOST_TAG: socket.gethostname(), PID_TAG: str(pid), PROCESS_START_TAG: f"{started:.2f}"}


def _load(path: Path) -> Endpoint:
    try:
        return Endpoint(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ServingError(f"{path} must describe an endpoint, and does not ({error}); remove that file.") from error


def _end(endpoint: Endpoint) -> None:
    process = psutil.Process(endpoint.pid)
    workers = process.children(recursive=True)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(endpoint.grace_s + KILL_AFTER_S)
    except psutil.TimeoutExpired:
        process.kill()
    # They end by themselves when the front is gone; here nothing is left to chance.
    _, left = psutil.wait_procs([process, *workers], timeout=KILL_AFTER_S)
    for each in left:
        each.kill()
