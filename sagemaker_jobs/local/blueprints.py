"""From an endpoint config to a fleet that can be started: the models' data fetched, each process planned."""

import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogbreed_ml.errors import DataError
from sagemaker_jobs.local.archives import extract
from sagemaker_jobs.local.capture import Capture
from sagemaker_jobs.local.fleets import Fleet, FleetError, Variant
from sagemaker_jobs.local.hosting import model_source, serving_kind, the_container
from sagemaker_jobs.local.processes import Process
from sagemaker_jobs.local.publishing import CaptureFile, LogStream, Outlet, Publisher, Usage
from sagemaker_jobs.local.serving import Server, ServingPlan

if TYPE_CHECKING:
    from sagemaker_jobs.local.service import LocalSageMaker


def build_fleet(
    service: "LocalSageMaker",
    endpoint_name: str,
    config: Mapping[str, Any],
    *,
    models: Mapping[str, Mapping[str, Any]],
    publisher: Publisher,
    watch: Callable[[Process], None],
) -> Fleet:
    """Fetches and unpacks the models' data; nothing runs yet. `models` are their records by name.

    `watch` is handed the process that installs a model's requirements.
    Raises FleetError where data or requirements cannot be had; then no file is left.
    """
    folder = service.root_dir / "endpoints" / endpoint_name / uuid.uuid4().hex[:8]
    variants = {}
    try:
        for variant in config["ProductionVariants"]:
            container = the_container(models[variant["ModelName"]])
            model_dir = folder / variant["VariantName"] / "model"
            _fetch_model(service, container, model_dir)
            variants[variant["VariantName"]] = _build_variant(
                service, endpoint_name, config, variant=variant, container=container, model_dir=model_dir,
                publisher=publisher, watch=watch,
            )  # fmt: skip
    except (DataError, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise FleetError(f"The model could not be prepared: {error}") from error
    return Fleet(config, folder, variants, publisher)


def _fetch_model(service: "LocalSageMaker", container: Mapping[str, Any], model_dir: Path) -> None:
    uri, is_archive = model_source(container)
    model_dir.mkdir(parents=True)
    if not is_archive:
        objects = service.cloud.prefix_objects(uri)
        if not objects:
            raise DataError(f"{uri} has no objects.")
        service.cloud.fetch_all(objects, model_dir)
        return
    archive_path = model_dir.with_name("model.tar.gz")
    service.cloud.fetch(uri, archive_path)
    extract(archive_path, model_dir, name=uri)
    archive_path.unlink()


def _build_variant(
    service: "LocalSageMaker",
    endpoint_name: str,
    config: Mapping[str, Any],
    *,
    variant: Mapping[str, Any],
    container: Mapping[str, Any],
    model_dir: Path,
    publisher: Publisher,
    watch: Callable[[Process], None],
) -> Variant:
    name, num_instances = variant["VariantName"], int(variant.get("InitialInstanceCount", 1))
    kind = serving_kind(container["Image"])
    max_bytes = service.settings.max_log_bytes

    def open_log() -> LogStream:
        return LogStream(endpoint_name, f"{name}/i-{uuid.uuid4().hex[:17]}", max_bytes=max_bytes)

    logs = [open_log() for _ in range(num_instances)]
    # The server's own address and credentials come last: no request can point a model at the user's account.
    variables = {**service.settings.environment, **container.get("Environment", {}), **service.container_environment()}
    requirements = model_dir / "code" / "requirements.txt"
    is_required = kind == "handlers" and requirements.is_file() and service.settings.requirements == "install"
    try:
        environment = service.training.environments.build(
            model_dir.with_name("environment"),
            requirements=requirements if is_required else None,
            environment=variables,
            output=logs[0].feed,
            watch=watch,
        )
    except DataError:
        # pip's own words, which are all that says why.
        publisher.remove(*logs)
        raise
    variables["PATH"] = environment.search_path(variables.get("PATH", os.defpath))
    plan = ServingPlan(kind, model_dir, variables, environment.python)

    def plan_server(log: LogStream) -> Server:
        return Server(plan, service.processes, name=f"{endpoint_name}/{name}", output=log.feed)

    def add_server() -> tuple[Server, Outlet]:
        log = open_log()
        return plan_server(log), log

    usage = Usage(endpoint_name, name, num_instances=num_instances)
    outlets: list[Outlet] = [usage, *logs]
    capture = None
    if config.get("DataCaptureConfig", {}).get("EnableCapture", "DataCaptureConfig" in config):
        capture = Capture(config["DataCaptureConfig"], endpoint_name, name)
        outlets.append(CaptureFile(capture, logs[0]))
    return Variant(
        name, variant["InitialVariantWeight"], container["Image"], [plan_server(log) for log in logs], usage, capture,
        outlets, add_server, variant.get("ServerlessConfig"),
    )  # fmt: skip
