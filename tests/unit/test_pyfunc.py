"""The MLflow model: what it holds, what it answers in each of the scoring server's formats, how it is logged."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel
from mlflow.pyfunc.scoring_server import invocations
from PIL import Image

from dogbreed_ml.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.errors import CheckpointError, ModelError, TrackingError
from dogbreed_ml.examples import NUM_EXAMPLES
from dogbreed_ml.model import build_resnet50
from dogbreed_ml.pyfunc import SERVING_PACKAGES, add_int8, build_signature, fetch_checkpoint, log_model, save_model
from dogbreed_ml.serve import Predictor
from dogbreed_ml.transforms import Preprocessing

CLASSES = ("Affenpinscher", "Beagle", "Chow")


def draw_photograph() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((90, 70)).save(buffer, "JPEG")
    return buffer.getvalue()


PHOTOGRAPH = draw_photograph()
BASE64 = base64.b64encode(PHOTOGRAPH).decode()


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    state_dict = dict(build_resnet50(len(CLASSES), resnet_version="1").state_dict())
    checkpoint = Checkpoint(state_dict, CLASSES, Preprocessing(image_size=64), "1", ExperimentConfig())
    return save_checkpoint(checkpoint, tmp_path_factory.mktemp("checkpoint") / "checkpoint.pt")


@pytest.fixture(scope="module")
def model_dir(checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pyfunc") / "model"
    save_model(checkpoint_path, path)
    return path


@pytest.fixture(scope="module")
def model(model_dir: Path) -> PyFuncModel:
    loaded: PyFuncModel = mlflow.pyfunc.load_model(str(model_dir))
    return loaded


@pytest.fixture(scope="module")
def expected(checkpoint_path: Path) -> dict[str, Any]:
    prediction = Predictor.load(checkpoint_path, backend="torch-fp32").predict([PHOTOGRAPH])[0]
    top5 = [{"breed": breed, "probability": probability} for breed, probability in prediction.top5]
    return {"breed": prediction.breed, "probability": prediction.probability, "top5": top5}


def predict(model: PyFuncModel, images: pd.DataFrame) -> pd.DataFrame:
    answers = model.predict(images)
    assert isinstance(answers, pd.DataFrame)
    return answers


@pytest.mark.parametrize(
    "value", [PHOTOGRAPH, bytearray(PHOTOGRAPH), BASE64, BASE64.encode()], ids=["bytes", "bytearray", "text", "ascii"]
)
def test_model_takes_bytes_and_base64_text(model: PyFuncModel, expected: dict[str, Any], value: object) -> None:
    answers = predict(model, pd.DataFrame({"image": [value]}, index=["rex.jpg"]))
    assert list(answers.columns) == ["breed", "probability", "top5"]
    assert answers.loc["rex.jpg"].to_dict() == expected


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["image"], "data": [[BASE64]]}},
        {"dataframe_records": [{"image": BASE64}]},
        {"instances": [{"image": BASE64}]},
        {"inputs": {"image": [BASE64]}},
    ],
    ids=lambda body: next(iter(body)),
)
def test_model_answers_the_scoring_server_in_every_format(
    model: PyFuncModel, expected: dict[str, Any], body: dict[str, Any]
) -> None:
    response = invocations(json.dumps(body), "application/json", model, model.metadata.get_input_schema())
    assert response.status == 200
    assert json.loads(response.response) == {"predictions": [expected]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"\xffno image", r"images\[1\] must be an image that can be read"),
        ("***", r"images\[1\] must be bytes or base64 text"),
        (None, r"images\[1\] must be bytes or base64 text, got NoneType"),
    ],
)
def test_model_refuses_what_is_no_image_as_a_bad_request(model: PyFuncModel, value: object, message: str) -> None:
    with pytest.raises(MlflowException, match=message) as caught:
        model.predict(pd.DataFrame({"image": pd.Series([PHOTOGRAPH, value], dtype=object)}))
    assert caught.value.get_http_status_code() == 400


def test_model_signature_survives_its_file(model_dir: Path) -> None:
    stored = Model.load(str(model_dir)).signature
    assert stored == build_signature()
    assert str(stored.inputs) == "['image': binary (required)]"


def test_model_examples_are_images_that_it_answers(model: PyFuncModel, model_dir: Path) -> None:
    assert model.input_example is not None
    assert len(model.input_example) == NUM_EXAMPLES
    assert set(predict(model, model.input_example)["breed"]) <= set(CLASSES)
    serving_example = (model_dir / "serving_input_example.json").read_text()
    response = invocations(serving_example, "application/json", model, model.metadata.get_input_schema())
    assert response.status == 200


def test_model_requires_what_serving_needs_and_pins_it(model_dir: Path) -> None:
    requirements = (model_dir / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in requirements] == sorted(SERVING_PACKAGES)
    assert not [line for line in requirements if "==" not in line or "+" in line]


def test_model_carries_the_package_and_nothing_else(model_dir: Path) -> None:
    assert [path.name for path in (model_dir / "code").iterdir()] == ["dogbreed_ml"]
    assert (model_dir / "code/dogbreed_ml/serve.py").is_file()
    assert not list(model_dir.rglob("__pycache__"))
    assert not list(model_dir.rglob("uv.lock"))


def test_model_leaves_the_working_directorys_uv_project_alone(
    checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uv.lock").write_text("version = 1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'other'\nversion = '1'\n")
    monkeypatch.chdir(tmp_path)
    save_model(checkpoint_path, tmp_path / "model")
    assert not (tmp_path / "model" / "uv.lock").exists()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    MlflowClient(uri).create_experiment("dogs", artifact_location=str(folder / "mlruns"))
    return uri, folder


@pytest.fixture
def run_id(store: tuple[str, Path]) -> str:
    client = MlflowClient(store[0])
    experiment = client.get_experiment_by_name("dogs")
    assert experiment is not None
    run = client.create_run(experiment.experiment_id)
    client.log_param(run.info.run_id, "train.lr", "0.1")
    return str(run.info.run_id)


def test_log_model_is_stored_once_and_belongs_to_the_run(
    store: tuple[str, Path], run_id: str, checkpoint_path: Path
) -> None:
    uri, folder = store
    before = set(folder.rglob("*.pt"))
    model_uri = log_model(run_id, checkpoint_path, tracking_uri=uri, step=3)
    client = MlflowClient(uri)
    logged = client.get_logged_model(model_uri.removeprefix("models:/"))
    assert (logged.status, logged.source_run_id) == (LoggedModelStatus.READY, run_id)
    assert logged.params == {"train.lr": "0.1"}
    outputs = client.get_run(run_id).outputs
    assert outputs is not None
    assert [(output.model_id, output.step) for output in outputs.model_outputs] == [(logged.model_id, 3)]
    assert len(set(folder.rglob("*.pt")) - before) == 1


def test_fetch_checkpoint_finds_the_model_by_each_of_its_names(
    store: tuple[str, Path], run_id: str, checkpoint_path: Path, tmp_path: Path
) -> None:
    uri, _ = store
    model_uri = log_model(run_id, checkpoint_path, tracking_uri=uri)
    client = MlflowClient(uri, registry_uri=uri)
    client.create_registered_model("dogs-resnet50")
    model_id = model_uri.removeprefix("models:/")
    # Not models:/m-... as the source: the store would look it up by the global tracking URI.
    location = client.get_logged_model(model_id).artifact_location
    version = client.create_model_version("dogs-resnet50", location, run_id, model_id=model_id)
    client.set_registered_model_alias("dogs-resnet50", "challenger", version.version)
    names = (model_uri, "models:/dogs-resnet50/1", "models:/dogs-resnet50@challenger", f"runs:/{run_id}/model")
    for folder, name in enumerate(names):
        fetched = fetch_checkpoint(name, tmp_path / str(folder), tracking_uri=uri)
        assert fetched.is_relative_to(tmp_path / str(folder))
        assert load_checkpoint(fetched).classes == CLASSES


def test_int8_is_added_to_a_model_and_fetched_with_its_checkpoint(
    store: tuple[str, Path], run_id: str, checkpoint_path: Path, tmp_path: Path
) -> None:
    uri, _ = store
    model_uri = log_model(run_id, checkpoint_path, tracking_uri=uri)
    assert not (fetch_checkpoint(model_uri, tmp_path / "before", tracking_uri=uri).parent / "int8").exists()
    for text in ("first", "second"):
        (tmp_path / "int8").mkdir(exist_ok=True)
        (tmp_path / "int8" / "report.json").write_text(text)
        add_int8(model_uri.removeprefix("models:/"), tmp_path / "checkpoint.pt", tracking_uri=uri)
        fetched = fetch_checkpoint(model_uri, tmp_path / text, tracking_uri=uri)
        assert (fetched.parent / "int8" / "report.json").read_text() == text
    assert load_checkpoint(fetched).classes == CLASSES


def test_int8_of_an_unknown_model_is_a_tracking_error(store: tuple[str, Path], tmp_path: Path) -> None:
    (tmp_path / "int8").mkdir()
    with pytest.raises(TrackingError, match="could not be added to m-0"):
        add_int8("m-0", tmp_path / "checkpoint.pt", tracking_uri=store[0])


def test_model_is_unsure_where_it_is_told_to_be(model_dir: Path, expected: dict[str, Any]) -> None:
    config = {"min_probability": expected["probability"] + 0.001}
    strict: PyFuncModel = mlflow.pyfunc.load_model(str(model_dir), model_config=config)
    answer = predict(strict, pd.DataFrame({"image": [PHOTOGRAPH]}))
    assert answer["breed"][0] == "unsure"
    assert answer["top5"][0] == expected["top5"]


def test_fetch_checkpoint_of_an_unknown_model_is_a_tracking_error(store: tuple[str, Path], tmp_path: Path) -> None:
    for name in ("models:/nothing/1", "models:/m-00000000000000000000000000000000", "models:/nothing@champion"):
        with pytest.raises(TrackingError, match="could not be fetched"):
            fetch_checkpoint(name, tmp_path, tracking_uri=store[0])


def test_fetch_checkpoint_of_a_run_names_the_models_that_it_has(
    store: tuple[str, Path], run_id: str, checkpoint_path: Path, tmp_path: Path
) -> None:
    log_model(run_id, checkpoint_path, tracking_uri=store[0])
    with pytest.raises(ModelError, match="which has: model"):
        fetch_checkpoint(f"runs:/{run_id}/modle", tmp_path, tracking_uri=store[0])


def test_fetch_checkpoint_of_somebody_elses_model_is_refused(tmp_path: Path, store: tuple[str, Path]) -> None:
    other = Model()
    other.add_flavor("python_function", loader_module="mlflow.sklearn", data="model.pkl")
    other.save(str(tmp_path / "MLmodel"))
    with pytest.raises(ModelError, match="must be a model that dogbreed-ml logged"):
        fetch_checkpoint(str(tmp_path), tmp_path / "fetched", tracking_uri=store[0])


def test_log_model_refuses_a_damaged_checkpoint_before_it_touches_the_store(
    store: tuple[str, Path], run_id: str, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"half")
    with pytest.raises(CheckpointError):
        log_model(run_id, path, tracking_uri=store[0])
    outputs = MlflowClient(store[0]).get_run(run_id).outputs
    assert outputs is None or outputs.model_outputs == []


def test_log_model_to_an_unknown_run_is_a_tracking_error(store: tuple[str, Path], checkpoint_path: Path) -> None:
    with pytest.raises(TrackingError, match="could not be logged to run nowhere"):
        log_model("nowhere", checkpoint_path, tracking_uri=store[0])


def test_log_model_that_cannot_be_stored_shows_as_failed(
    run_id: str, store: tuple[str, Path], checkpoint_path: Path
) -> None:
    uri, folder = store
    client = MlflowClient(uri)
    (folder / "in_the_way").write_text("a file where the artifacts' folder should be")
    experiment_id = client.create_experiment("full", artifact_location=str(folder / "in_the_way"))
    run = client.create_run(experiment_id)
    with pytest.raises(TrackingError):
        log_model(run.info.run_id, checkpoint_path, tracking_uri=uri)
    assert [each.status for each in client.search_logged_models([experiment_id])] == [LoggedModelStatus.FAILED]
