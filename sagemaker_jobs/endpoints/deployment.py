"""`dogbreed deploy --target sagemaker`, from the registered version to what is sent, or shown by --dry-run."""

import json
import logging
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.deployments import utc_now
from dogbreed_ml.errors import CloudError
from dogbreed_ml.options import DeployOptions
from dogbreed_ml.pipeline.deploy import MEASURED_BACKEND_TAG, require_verdict
from dogbreed_ml.provenance import user_name
from sagemaker_jobs.client import Aws
from sagemaker_jobs.endpoints.deployed import UNKNOWN_PRICE, Deployed
from sagemaker_jobs.endpoints.endpoint_request import EndpointPlan, Place, endpoint_name, endpoint_plan
from sagemaker_jobs.endpoints.leases import Lease, parse_term, render_end
from sagemaker_jobs.endpoints.model_archive import Origin, build_model_archive, read_examples
from sagemaker_jobs.endpoints.removal import remove_replaced
from sagemaker_jobs.endpoints.rollout import Rollout
from sagemaker_jobs.endpoints.store import opened_store
from sagemaker_jobs.pricing import look_up_price
from sagemaker_jobs.storage import Storage, file_digest
from sagemaker_jobs.training.dryrun import Placement

if TYPE_CHECKING:
    from dogbreed_ml.registry import ModelVersion
    from dogbreed_ml.tracking import Tracker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DryRun:
    """What a deployment would send, and what it would cost."""

    plan: EndpointPlan
    placement: Placement
    price: str | None
    """None where no source knows it."""

    def to_dict(self) -> dict[str, Any]:
        placeholders = dict(self.placement.placeholders)
        return {"requests": self.plan.to_dict(), "price": self.price, "placeholders": placeholders}

    def render(self) -> str:
        lines = []
        for operation, request in self.plan.to_dict().items():
            lines += [operation, json.dumps(request, indent=2, ensure_ascii=False)]
        if self.placement.placeholders:
            named = ", ".join(f"{name} {value}" for name, value in self.placement.placeholders.items())
            lines.append(f"placeholders, known once the account is: {named}")
        return "\n".join([*lines, f"cost     {self.price or UNKNOWN_PRICE}", "nothing was sent"])


def deploy(config: ExperimentConfig, options: DeployOptions, *, context: Context) -> Deployed | DryRun:
    """Raises GateError for a version that nobody measured, ConfigError before anything is sent, CloudError after it."""
    from dogbreed_ml.registry import resolve_version

    term = None if options.expires is None else parse_term(options.expires)
    with opened_store(config, context) as tracker, tempfile.TemporaryDirectory(prefix="dogbreed-") as folder:
        version = resolve_version(tracker, config.registered_model_name, options.version)
        require_verdict(version, options)
        lease = _lease(tracker, version, options.endpoint)
        if options.expires is not None:
            lease = replace(lease, expires=render_end(term, now=datetime.now(UTC)))
        archive_path = build_archive(tracker, version, Path(folder) / "model.tar.gz", config=config, lease=lease)
        if options.dry_run:
            return _dry_run(config, lease, archive_path, context=context)
        with Aws.open(config.sagemaker) as aws:
            # First: a file of prices that cannot be read is no news for after the endpoint is live.
            price = _price(config, aws.region, context)
            role_arn = aws.execution_role(config.sagemaker)
            storage = Storage.named(aws, config.sagemaker)
            place = Place(aws.region, role_arn, storage.uri(_key(archive_path)), storage.uri("endpoints"))
            plan = endpoint_plan(config, lease=lease, place=place)
            rollout = Rollout(
                aws=aws,
                storage=storage,
                tracker=tracker,
                version=version,
                plan=plan,
                hosting=config.hosting,
                archive_path=archive_path,
                examples=read_examples(archive_path),
                why=options.reason if options.unmeasured else None,
                waits=not options.no_wait,
                must_be_first=options.first,
            )
            deployed = rollout.run()
            is_dropped = options.drop_replaced and _drop_replaced(aws, deployed)
            return replace(deployed, price=price, is_replaced_dropped=is_dropped)


def _drop_replaced(aws: Aws, deployed: Deployed) -> bool:
    """Whether it is gone; that it could not be deleted makes the deployment no failure."""
    if deployed.replaced_config is None or not deployed.is_settled:
        return False
    try:
        remove_replaced(aws, deployed.replaced_config)
    except CloudError as error:
        logger.warning("%s was replaced, and is still there: %s", deployed.replaced_config, error)
        return False
    return True


def _lease(tracker: "Tracker", version: "ModelVersion", name: str | None) -> Lease:
    run_tags = tracker.run_tags(version.run_id) if version.run_id else {}
    return Lease(
        endpoint=name or endpoint_name(version.name),
        model=version.name,
        version=str(version.version),
        run_id=version.run_id or "",
        commit=run_tags.get("mlflow.source.git.commit", ""),
        deployed_by=user_name(),
        deployed_at=utc_now(),
    )


def build_archive(
    tracker: "Tracker", version: "ModelVersion", target: Path, *, config: ExperimentConfig, lease: Lease
) -> Path:
    """The version's model archive at `target`."""
    from dogbreed_ml.pyfunc import fetch_checkpoint

    measured = version.tags.get(MEASURED_BACKEND_TAG)
    if measured is not None and measured.startswith("openvino"):
        logger.info(
            "The gate measured version %d with %s; SageMaker's image has torch alone.", version.version, measured
        )
    checkpoint_path = fetch_checkpoint(version.uri, target.parent, tracking_uri=tracker.tracking_uri)
    origin = Origin(
        model_name=version.name, version=version.version, run_id=version.run_id, commit=lease.commit or None
    )
    build_model_archive(checkpoint_path, target, origin=origin, deploy=config.deploy)
    return target


def _key(archive_path: Path) -> str:
    return f"models/{file_digest(archive_path)}/model.tar.gz"


def _dry_run(config: ExperimentConfig, lease: Lease, archive_path: Path, *, context: Context) -> DryRun:
    """Needs neither credentials nor a region; with them, AWS is asked for the price."""
    placement = Placement.of(config.sagemaker)
    archive_uri, output_uri = placement.uri(_key(archive_path)), placement.uri("endpoints")
    plan = endpoint_plan(
        config, lease=lease, place=Place(placement.region, placement.role_arn, archive_uri, output_uri)
    )  # fmt: skip
    return DryRun(plan, placement, _price(config, placement.region, context))


def _price(config: ExperimentConfig, region: str, context: Context) -> str | None:
    """Of all instances together, for people; None where nobody knows it."""
    hosting = config.hosting
    if hosting.kind == "serverless":
        return "by request, nothing while nobody calls"
    price = look_up_price(
        config.sagemaker,
        instance_type=hosting.instance_type,
        component="Hosting",
        region=region,
        project_dir=context.project_dir,
    )
    if price is None:
        return None
    return f"{hosting.instance_count} x {hosting.instance_type}, each {price.render()}"
