"""`dogbreed deploy`: a model version behind /ping and /invocations on this machine."""

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.errors import GateError, ServingError
from dogbreed_ml.options import DeployOptions
from dogbreed_ml.pipeline.endpoints import (
    Endpoint,
    describe_process,
    endpoints_dir,
    forget,
    record_end,
    remember,
)
from dogbreed_ml.policies import DeployConfig, ServingBackendName
from dogbreed_ml.server.process import ServerProcess, launch
from dogbreed_ml.server.runner import bind
from dogbreed_ml.server.settings import LOOPBACK, ServerSettings

if TYPE_CHECKING:
    from dogbreed_ml.registry import ModelVersion
    from dogbreed_ml.tracking import Tracker

logger = logging.getLogger(__name__)

VERDICT_TAG = "promotion.verdict"
"""What `dogbreed promote` leaves on a version: passed, refused or forced."""

MEASURED_BACKEND_TAG = "promotion.backend"


@dataclass(frozen=True)
class Deployment:
    """An endpoint that was started, and whether it still runs."""

    endpoint: Endpoint
    startup_s: float
    """From nothing to the first healthy /ping."""
    is_running: bool

    def to_dict(self) -> dict[str, Any]:
        endpoint = self.endpoint
        return {
            "name": endpoint.name,
            "url": endpoint.url,
            "port": endpoint.port,
            "pid": endpoint.pid,
            "model": endpoint.model,
            "version": endpoint.version,
            "backend": endpoint.backend,
            "log_path": endpoint.log_path,
            "startup_s": round(self.startup_s, 2),
            "is_running": self.is_running,
        }

    def render(self) -> str:
        endpoint = self.endpoint
        what = f"{endpoint.model} version {endpoint.version} with {endpoint.backend}"
        if not self.is_running:
            return f"served  {what} on {endpoint.url}, until now"
        return "\n".join(
            [
                f"serves  {what}",
                f"url     {endpoint.url}/invocations (ready after {self.startup_s:.1f} s)",
                f"log     {endpoint.log_path}",
                f"stop    dogbreed delete {endpoint.name}",
            ]
        )


def deploy(config: ExperimentConfig, options: DeployOptions, *, context: Context) -> Deployment:
    """Serves until it is interrupted or, with --detach, returns once /ping is healthy.

    Raises GateError for a version that nobody measured, and ServingError where the server does not start.
    """
    from dogbreed_ml.registry import resolve_version
    from dogbreed_ml.tracking import Tracker

    # An event's run lasts a moment.
    tracking = replace(config.tracking, system_metrics=False)
    with Tracker.open(project_dir=context.project_dir, config=tracking, environment=context.environment) as tracker:
        version = resolve_version(tracker, config.registered_model_name, options.version)
        require_verdict(version, options)
        with _started(version, config, options, tracker=tracker, context=context) as (endpoint, server):
            if options.detach:
                _record(tracker, version, endpoint, options)
                return Deployment(endpoint, server.startup_s, is_running=True)
            try:
                _record(tracker, version, endpoint, options)
                logger.info(
                    "%s version %d with %s on %s/invocations; Ctrl-C stops it",
                    version.name, version.version, endpoint.backend, endpoint.url,
                )  # fmt: skip
                status = server.process.wait()
            except KeyboardInterrupt:
                # Not an interruption of the work, but its end.
                logger.info("stopping; what is in flight is answered first")
                server.stop()
                record_end(tracker, endpoint, action="ended")
                return Deployment(endpoint, server.startup_s, is_running=False)
            raise ServingError(f"The server ended by itself with status {status}; the lines above say why.")


def require_verdict(version: "ModelVersion", options: DeployOptions) -> None:
    """GateError for a version that nobody measured, unless --unmeasured says that this is meant."""
    verdict = version.tags.get(VERDICT_TAG)
    if verdict is None and not options.unmeasured:
        raise GateError(
            f"{version.name} version {version.version} must be measured before it is served, and has no verdict; run "
            f"`dogbreed promote --version {version.version}`, or give --unmeasured --reason TEXT."
        )
    if verdict == "refused":
        logger.warning("The gate refused %s version %d; it is served all the same.", version.name, version.version)


def _measured_config(version: "ModelVersion", config: DeployConfig) -> DeployConfig:
    """With the back end that the gate measured, where none is asked for: `auto` might choose another one today."""
    measured = version.tags.get(MEASURED_BACKEND_TAG)
    if measured is None or measured == config.backend:
        return config
    if config.backend == "auto":
        return replace(config, backend=cast(ServingBackendName, measured))
    logger.warning("The gate measured version %d with %s, not with %s.", version.version, measured, config.backend)
    return config


@contextmanager
def _started(
    version: "ModelVersion",
    config: ExperimentConfig,
    options: DeployOptions,
    *,
    tracker: "Tracker",
    context: Context,
) -> Iterator[tuple[Endpoint, ServerProcess]]:
    """The healthy server with its file; both are gone afterwards, unless it is detached and nothing failed."""
    from dogbreed_ml.pyfunc import fetch_checkpoint

    folder = endpoints_dir(context)
    folder.mkdir(parents=True, exist_ok=True)
    with bind(LOOPBACK, options.port) as listener:
        port = listener.getsockname()[1]
        name = f"{version.name}-{port}"
        model_dir = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
        log_path = folder / f"{name}.log" if options.detach else None
        server = None
        try:
            settings = ServerSettings(
                checkpoint_path=fetch_checkpoint(version.uri, model_dir, tracking_uri=tracker.tracking_uri),
                deploy=_measured_config(version, config.deploy),
                port=port,
                model_name=version.name,
                model_version=str(version.version),
            )
            server = launch(settings, listener, log_path=log_path, is_detached=options.detach)
        finally:
            if server is None:
                shutil.rmtree(model_dir, ignore_errors=True)
    endpoint: Endpoint | None = None
    is_left_running = False
    try:
        backend = str(server.wait_ready().told["backend"])
        endpoint = Endpoint(
            name=name,
            url=server.url,
            host=LOOPBACK,
            port=port,
            process=describe_process(server.pid),
            model=version.name,
            version=version.version,
            backend=backend,
            deployed_at=datetime.now(UTC).isoformat(timespec="seconds"),
            is_detached=options.detach,
            tracking_uri=tracker.tracking_uri,
            grace_s=config.deploy.grace_s,
            log_path=None if log_path is None else str(log_path),
            model_dir=str(model_dir),
        )
        remember(endpoint, context=context)
        yield endpoint, server
        is_left_running = options.detach
    finally:
        if not is_left_running:
            server.stop()
            shutil.rmtree(model_dir, ignore_errors=True)
            if endpoint is not None:
                forget(endpoint, context=context)


def _record(tracker: "Tracker", version: "ModelVersion", endpoint: Endpoint, options: DeployOptions) -> None:
    from dogbreed_ml.deployments import mark_live, recorded

    reason = options.reason if options.unmeasured else None
    with recorded(tracker, "deploy", target="local", endpoint=endpoint.name, version=version, why=reason) as event:
        event.note(backend=endpoint.backend)
        mark_live(
            tracker, version, endpoint=endpoint.name, backend=endpoint.backend, since=endpoint.deployed_at,
            unmeasured_reason=reason,
        )  # fmt: skip
