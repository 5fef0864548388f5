"""The Predictor as an MLflow model: a DataFrame of images in, a DataFrame of breeds out.

The model carries this package as code and the checkpoint as data, and needs `SERVING_PACKAGES` alone. It is saved
with MLflow's loader_module, not as a pickled object, so that it loads under any Python that runs the code.
"""

import base64
import importlib.metadata
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow.artifacts
import mlflow.pyfunc
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.types.schema import Array, ColSpec, DataType, Object, Property, Schema, TensorSpec

from dogbreed_ml.checkpoint import load_checkpoint
from dogbreed_ml.errors import ImageError, ModelError, TrackingError
from dogbreed_ml.examples import example_images
from dogbreed_ml.quantization import INT8_DIR
from dogbreed_ml.serve import Predictor

SERVING_PACKAGES = ("mlflow", "numpy", "pandas", "pillow", "torch", "torchvision")
"""What the model needs to be loaded and served, pinned to the versions that are installed when it is logged."""

_DATA_DIR = "data"
"""Where MLflow puts the checkpoint inside a model."""

DEFAULT_MODEL_CONFIG = {"device": "cpu", "backend": "torch-fp32", "min_probability": 0.0}
"""What MLflow shows of the model's settings; torch-fp32 gives the same numbers wherever the model is loaded."""


def log_model(run_id: str, checkpoint_path: Path, *, tracking_uri: str, name: str = "model", step: int = 0) -> str:
    """Logs the checkpoint as an MLflow model of the run and returns its URI, models:/m-...

    `step` is the run's step that the weights belong to. Raises CheckpointError for a file that would not load, and
    TrackingError where the store refuses; the store then shows the model as failed.
    """
    load_checkpoint(checkpoint_path)
    client = MlflowClient(tracking_uri=tracking_uri)
    try:
        run = client.get_run(run_id)
        # mlflow.pyfunc.log_model would do, were it not for the global tracking URI and active run that it goes by.
        logged = client.create_logged_model(
            run.info.experiment_id, name=name, source_run_id=run_id, params=run.data.params
        )
        status = LoggedModelStatus.FAILED
        try:
            with tempfile.TemporaryDirectory() as temporary_dir:
                model = Model(artifact_path=logged.artifact_location, run_id=run_id, model_id=logged.model_id)
                save_model(checkpoint_path, Path(temporary_dir, "model"), mlflow_model=model)
                client.log_model_artifacts(logged.model_id, str(Path(temporary_dir, "model")))
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
            status = LoggedModelStatus.READY
        finally:
            client.finalize_logged_model(logged.model_id, status)
    except (MlflowException, OSError) as error:
        raise TrackingError(f"The model {name!r} could not be logged to run {run_id}: {error}") from error
    return str(logged.model_uri)


def save_model(checkpoint_path: Path, model_dir: Path, *, mlflow_model: Model | None = None) -> None:
    """Writes the MLflow model into a new folder: MLmodel, requirements, this package, the checkpoint."""
    # An empty folder for uv's files: MLflow would otherwise take those of the user's working directory along.
    with tempfile.TemporaryDirectory() as empty_dir:
        mlflow.pyfunc.save_model(
            str(model_dir),
            mlflow_model=mlflow_model,
            loader_module=__name__,
            data_path=str(checkpoint_path),
            code_paths=[str(Path(__file__).parent)],
            model_config=dict(DEFAULT_MODEL_CONFIG),
            signature=build_signature(),
            input_example=pd.DataFrame({"image": list(example_images())}),
            pip_requirements=_requirements(),
            uv_project_path=empty_dir,
        )


def fetch_checkpoint(model_uri: str, folder: Path, *, tracking_uri: str) -> Path:
    """Copies the checkpoint of models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-... or runs:/RUN/NAME to a folder.

    The folder is the caller's, and is made where it is missing; int8/ comes along where the model has it. Raises
    ModelError where the model is not one of `log_model`'s, and TrackingError where the store does not give it.
    """
    try:
        location = _artifact_location(model_uri, tracking_uri=tracking_uri).rstrip("/")

        def fetch(relative_path: str) -> Path:
            uri = f"{location}/{relative_path}"
            return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder), tracking_uri=tracking_uri))

        flavor = Model.load(str(fetch("MLmodel"))).flavors.get(mlflow.pyfunc.FLAVOR_NAME, {})
        if flavor.get(mlflow.pyfunc.MAIN) != __name__:
            raise ModelError(f"{model_uri} must be a model that dogbreed-ml logged; name one of `dogbreed tune`'s.")
        int8_path = f"{_DATA_DIR}/{INT8_DIR}"
        if mlflow.artifacts.list_artifacts(artifact_uri=f"{location}/{int8_path}", tracking_uri=tracking_uri):
            fetch(int8_path)
        return fetch(flavor[mlflow.pyfunc.DATA])
    except (MlflowException, OSError) as error:
        raise TrackingError(f"{model_uri} could not be fetched from {tracking_uri}: {error}") from error


def add_int8(model_id: str, checkpoint_path: Path, *, tracking_uri: str) -> None:
    """Adds int8/, as `quantization.quantize` wrote it beside the checkpoint, to a logged model (m-...).

    An INT8 model of an earlier call is replaced; where the new one is refused, the report says so. TrackingError.
    """
    int8_dir = checkpoint_path.parent / INT8_DIR
    try:
        client = MlflowClient(tracking_uri=tracking_uri)
        client.log_model_artifacts(model_id, str(int8_dir), f"{_DATA_DIR}/{INT8_DIR}")
    except (MlflowException, OSError) as error:
        raise TrackingError(f"The INT8 model could not be added to {model_id}: {error}") from error


def link_evaluation(
    run_id: str, model_id: str, metrics: Mapping[str, float], *, dataset: tuple[str, str], tracking_uri: str
) -> None:
    """Makes a logged model (m-...) an input of the run and logs the metrics to both, so that the model's page has them.

    `dataset` is the name and digest of the data set that they are of. Raises TrackingError.
    """
    name, digest = dataset
    now_ms = int(time.time() * 1000)
    logged = [
        Metric(key, value, now_ms, 0, model_id=model_id, dataset_name=name, dataset_digest=digest, run_id=run_id)
        for key, value in metrics.items()
    ]
    try:
        client = MlflowClient(tracking_uri=tracking_uri)
        client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
        client.log_batch(run_id, metrics=logged)
    except MlflowException as error:
        raise TrackingError(f"The metrics of {model_id} could not be logged to run {run_id}: {error}") from error


def _artifact_location(model_uri: str, *, tracking_uri: str) -> str:
    # download_artifacts resolves models:/ and runs:/ by the global tracking URI, whatever tracking_uri it is given.
    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    scheme, _, rest = model_uri.partition(":/")
    if scheme == "runs":
        run_id, _, name = rest.strip("/").partition("/")
        outputs = client.get_run(run_id).outputs
        models = [client.get_logged_model(output.model_id) for output in (outputs.model_outputs if outputs else [])]
        locations = [str(model.artifact_location) for model in models if model.name == name]
        if not locations:
            names = ", ".join(sorted({model.name for model in models})) or "none"
            raise ModelError(f"{model_uri} must name a model of that run, which has: {names}.")
        return locations[-1]
    if scheme != "models":
        return model_uri
    name_and_version = get_model_name_and_version(client, model_uri)
    if len(name_and_version) == 1:
        return str(client.get_logged_model(name_and_version[0]).artifact_location)
    return str(client.get_model_version_download_uri(*name_and_version))


def build_signature() -> ModelSignature:
    """image (binary) -> breed (string), probability (double), top5 (array of objects of these two, best first)."""
    ranked = Object([Property("breed", DataType.string), Property("probability", DataType.double)])
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "breed"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Array(ranked), "top5"),
    ]
    return ModelSignature(Schema([ColSpec(DataType.binary, "image")]), Schema(outputs))


def _requirements() -> list[str]:
    # 2.14.1+cpu names one build of 2.14.1 that no common index has.
    versions = {package: importlib.metadata.version(package).partition("+")[0] for package in SERVING_PACKAGES}
    return [f"{package}=={version}" for package, version in versions.items()]


class BreedModel:
    """What MLflow calls: `predict` on a DataFrame with the column `image`, file bytes or base64 text of them."""

    def __init__(self, predictor: Predictor):
        self._predictor = predictor

    def predict(self, model_input: pd.DataFrame) -> pd.DataFrame:
        """One row for each image; raises MlflowException (HTTP 400), which names the index, for one that is none."""
        try:
            images = [_image_bytes(value, index=index) for index, value in enumerate(model_input["image"])]
            predictions = self._predictor.predict(images)
        except ImageError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        return pd.DataFrame(
            {
                "breed": [prediction.answer for prediction in predictions],
                "probability": [prediction.probability for prediction in predictions],
                "top5": [
                    [{"breed": breed, "probability": probability} for breed, probability in prediction.top5]
                    for prediction in predictions
                ],
            },
            index=model_input.index,
        )


def _image_bytes(value: object, *, index: int) -> bytes:
    # Spark hands over bytearray.
    if not isinstance(value, bytes | bytearray | str):
        raise ImageError(f"images[{index}] must be bytes or base64 text, got {type(value).__name__}.")
    # The scoring server decodes base64 of dataframe_split and dataframe_records; of instances and inputs it hands over
    # the text, as bytes. No image format is made of base64's characters alone.
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        if isinstance(value, str):
            raise ImageError(f"images[{index}] must be bytes or base64 text: {error}.") from error
        return bytes(value)


def _load_pyfunc(data_path: str, model_config: Mapping[str, Any] | None = None) -> BreedModel:
    """MLflow's entry point: `mlflow.pyfunc.load_model(uri, model_config={"backend": "auto"})` chooses the back end."""
    config = {**DEFAULT_MODEL_CONFIG, **(model_config or {})}
    return BreedModel(Predictor.load(Path(data_path), **config))
