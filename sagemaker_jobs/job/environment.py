"""What a training job finds around it: SageMaker's variables and folders, read once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from dogbreed_ml.errors import ConfigError

TRACKING_URI, PARENT_RUN_ID, EXPERIMENT_ID = "DOGBREED_TRACKING_URI", "DOGBREED_PARENT_RUN_ID", "DOGBREED_EXPERIMENT_ID"
"""The variables by which the caller says where the record goes."""

RECORD_HYPERPARAMETERS = {name: f"_{name.lower()}" for name in (TRACKING_URI, PARENT_RUN_ID, EXPERIMENT_ID)}
"""The same for a job of a tuning job: SageMaker starts none from an earlier one whose variables were others."""


class _Parent(Protocol):
    @property
    def run_id(self) -> str: ...
    @property
    def experiment_id(self) -> str: ...


@dataclass(frozen=True)
class JobEnvironment:
    """One host of a training job."""

    job_name: str
    model_dir: Path
    """What lies here when the job ends becomes model.tar.gz."""
    output_dir: Path
    """Holds the file `failure`, and profiler/ for SageMaker's profiler."""
    output_data_dir: Path
    """What lies here when the job ends, or is stopped, becomes output.tar.gz."""
    checkpoint_dir: Path
    """Kept in S3 while the job runs, and restored where a spot instance was taken away."""
    work_dir: Path
    """For files that go with the job."""
    channels: dict[str, Path] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    """As the training toolkit decoded them."""
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    instance_type: str = ""
    tracking_uri: str | None = None
    parent_run_id: str | None = None
    experiment_id: str | None = None

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> "JobEnvironment":
        """From SM_*, torchrun's variables and ours. Raises ConfigError outside a training job."""
        try:
            model_dir = Path(variables["SM_MODEL_DIR"])
            channels = json.loads(variables["SM_CHANNELS"])
            training_environment = json.loads(variables.get("SM_TRAINING_ENV", "{}"))
            hyperparameters = json.loads(variables["SM_HPS"])

            def record(name: str) -> str | None:
                # The training toolkit decodes whatever is JSON: an experiment's id arrives as a number.
                return variables.get(name) or str(hyperparameters.get(RECORD_HYPERPARAMETERS[name]) or "") or None

            return cls(
                job_name=variables.get("TRAINING_JOB_NAME") or training_environment["job_name"],
                model_dir=model_dir,
                output_dir=Path(variables.get("SM_OUTPUT_DIR", model_dir.parent / "output")),
                output_data_dir=Path(variables["SM_OUTPUT_DATA_DIR"]),
                checkpoint_dir=model_dir.parent / "checkpoints",
                work_dir=model_dir.parent / "dogbreed",
                channels={name: Path(variables[f"SM_CHANNEL_{name.upper().replace('-', '_')}"]) for name in channels},
                hyperparameters=hyperparameters,
                rank=int(variables.get("RANK", "0")),
                world_size=int(variables.get("WORLD_SIZE", "1")),
                local_rank=int(variables.get("LOCAL_RANK", "0")),
                instance_type=variables.get("SM_CURRENT_INSTANCE_TYPE", ""),
                tracking_uri=record(TRACKING_URI),
                parent_run_id=record(PARENT_RUN_ID),
                experiment_id=record(EXPERIMENT_ID),
            )
        except KeyError as error:
            raise ConfigError(f"This runs in a SageMaker training job, which sets {error}; it is not set.") from error

    @property
    def failure_path(self) -> Path:
        return self.output_dir / "failure"


def record_variables(tracking_uri: str, parent: _Parent | None = None) -> dict[str, str]:
    """A job's variables for writing its run live; none where it cannot, so that it writes a bundle instead.

    Only a store behind http(s) and SageMaker's managed MLflow can be reached from a job. Whoever may describe the job
    reads its variables, so an address with a login in it is ConfigError.
    """
    is_http = tracking_uri.startswith(("http://", "https://"))
    if not is_http and not (tracking_uri.startswith("arn:") and ":sagemaker:" in tracking_uri):
        return {}
    if is_http:
        _refuse_login(tracking_uri)
    variables = {TRACKING_URI: tracking_uri}
    if parent is not None:
        variables |= {PARENT_RUN_ID: parent.run_id, EXPERIMENT_ID: parent.experiment_id}
    return variables


def _refuse_login(tracking_uri: str) -> None:
    parts = urlsplit(tracking_uri)
    host = parts.netloc.rpartition("@")[2]
    if parts.netloc != host or parts.query:
        raise ConfigError(
            "MLFLOW_TRACKING_URI must hold no user, password, token or query where a job is to write to it, since "
            f"whoever may describe the job reads it, got such an address of {parts.scheme}://{host}; give the address "
            "alone, and log in by MLFLOW_TRACKING_TOKEN, which a job has from sagemaker.environment."
        )
