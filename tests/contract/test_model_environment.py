"""The logged model without the project: another process, other folders, other environments, the scoring server."""

import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

import dogbreed_ml
from dogbreed_ml.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.model import build_resnet50
from dogbreed_ml.pyfunc import fetch_checkpoint, log_model, save_model
from dogbreed_ml.serve import Predictor
from dogbreed_ml.transforms import Preprocessing

CLASSES = ("Affenpinscher", "Beagle", "Chow")
PROJECT_DIR = Path(dogbreed_ml.__file__).parent.parent
SCRIPTS_DIR = Path(sys.executable).parent

# What a search needs and a served model must not.
SEARCH_PACKAGES = ("optuna", "sagemaker", "openvino", "boto3", "jsonargparse", "rich", "smdebug")

PREDICT = """
import json, sys
from importlib.abc import MetaPathFinder

model_dir, image_path, project_dir, *blocked = sys.argv[1:]

class Blocked(MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{fullname} is blocked", name=fullname)

# An editable install of the project is a path or a finder of its own.
sys.path[:] = [entry for entry in sys.path if entry != project_dir]
sys.meta_path[:] = [Blocked(), *(each for each in sys.meta_path if "editable" not in repr(each).lower())]
try:
    import dogbreed_ml
except ModuleNotFoundError:
    pass
else:
    raise SystemExit(f"the project can be imported from {dogbreed_ml.__file__}")

import mlflow.pyfunc
import pandas as pd

model = mlflow.pyfunc.load_model(model_dir)
image = open(image_path, "rb").read()
answers = model.predict(pd.DataFrame({"image": [image]})).to_dict("records")
print(json.dumps({"code": sys.modules["dogbreed_ml"].__file__, "answers": answers}))
"""

IMPORT_SERVE = """
import sys
import dogbreed_ml.serve
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


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
def image_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("photograph") / "rex.jpg"
    Image.fromarray(pixels).resize((90, 70)).save(path)
    return path


@pytest.fixture(scope="module")
def expected(checkpoint_path: Path, image_path: Path) -> dict[str, float]:
    return dict(Predictor.load(checkpoint_path, backend="torch-fp32").predict([image_path.read_bytes()])[0].top5)


def environment_without_project() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def predict_elsewhere(
    python: Path, model_dir: Path, image_path: Path, *, cwd: Path, blocked: tuple[str, ...]
) -> dict[str, Any]:
    command = [str(python), "-c", PREDICT, str(model_dir), str(image_path), str(PROJECT_DIR), *blocked]
    done = subprocess.run(
        command, cwd=cwd, env=environment_without_project(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def assert_same_answer(answer: dict[str, Any], expected: dict[str, float]) -> None:
    given = {each["breed"]: each["probability"] for each in answer["top5"]}
    assert answer["breed"] == max(expected, key=expected.__getitem__)
    assert given == pytest.approx(expected, abs=1e-5)


def test_serve_imports_neither_the_search_nor_mlflow() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_SERVE], cwd=PROJECT_DIR, capture_output=True, text=True, timeout=120, check=True
    )
    loaded = set(done.stdout.split())
    assert {"torch", "PIL", "numpy", "dogbreed_ml"} <= loaded
    assert not loaded & {"mlflow", "pandas", "sklearn", "matplotlib", *SEARCH_PACKAGES}


def test_model_predicts_from_its_own_code_without_the_search_stack(
    model_dir: Path, image_path: Path, expected: dict[str, float], tmp_path: Path
) -> None:
    result = predict_elsewhere(Path(sys.executable), model_dir, image_path, cwd=tmp_path, blocked=SEARCH_PACKAGES)
    assert Path(result["code"]).is_relative_to(model_dir / "code")
    assert_same_answer(result["answers"][0], expected)


@pytest.fixture(scope="module")
def own_environment(model_dir: Path) -> Iterator[Path]:
    """The Python of an environment made from the model's requirements.txt alone; 6 GB, hence deleted at once."""
    with tempfile.TemporaryDirectory(prefix="dogbreed-environment-") as folder:
        uv = [str(SCRIPTS_DIR / "uv"), "--quiet", "--no-config"]
        python = Path(folder) / "bin" / "python"
        subprocess.run([*uv, "venv", "--python", sys.executable, folder], check=True, timeout=60)
        install = [*uv, "pip", "install", "--python", str(python), "-r", str(model_dir / "requirements.txt")]
        done = subprocess.run(install, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr
        yield python


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_model_predicts_in_an_environment_made_from_its_requirements(
    own_environment: Path, model_dir: Path, image_path: Path, expected: dict[str, float], tmp_path: Path
) -> None:
    result = predict_elsewhere(own_environment, model_dir, image_path, cwd=tmp_path, blocked=())
    assert Path(result["code"]).is_relative_to(model_dir / "code")
    assert_same_answer(result["answers"][0], expected)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(url: str, process: "subprocess.Popen[bytes]", *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"{url} did not answer within {timeout_s} s")


def server_environment() -> dict[str, str]:
    # `mlflow server` and `mlflow models serve` start uvicorn by its name.
    environment = environment_without_project()
    return environment | {"PATH": f"{SCRIPTS_DIR}{os.pathsep}{environment['PATH']}"}


def serve(command: list[str], *, ping_path: str, log_path: Path, cwd: Path) -> Iterator[str]:
    port = free_port()
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [str(SCRIPTS_DIR / "mlflow"), *command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=cwd,
            env=server_environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_for(f"http://127.0.0.1:{port}{ping_path}", process, timeout_s=90)
            yield f"http://127.0.0.1:{port}"
        finally:
            # The server's workers are its children, and in its own session.
            os.killpg(process.pid, 15)
            process.wait(timeout=30)


@pytest.fixture
def scoring_server_url(model_dir: Path, tmp_path: Path) -> Iterator[str]:
    command = ["models", "serve", "--model-uri", str(model_dir), "--env-manager", "local", "--workers", "1"]
    yield from serve(command, ping_path="/ping", log_path=tmp_path / "server.log", cwd=tmp_path)


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


@pytest.mark.slow
def test_model_answers_over_http_from_mlflow_models_serve(
    scoring_server_url: str, image_path: Path, expected: dict[str, float]
) -> None:
    text = base64.b64encode(image_path.read_bytes()).decode()
    split = {"dataframe_split": {"columns": ["image"], "data": [[text], [text]]}}
    for body in (split, {"inputs": {"image": [text, text]}}):
        answers = post(f"{scoring_server_url}/invocations", body)["predictions"]
        assert len(answers) == 2
        assert_same_answer(answers[0], expected)


@pytest.fixture
def tracking_server_url(tmp_path: Path) -> Iterator[str]:
    command = ["server", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--workers", "1"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts")]
    yield from serve(command, ping_path="/health", log_path=tmp_path / "server.log", cwd=tmp_path)


@pytest.mark.slow
def test_model_goes_to_a_tracking_server_and_comes_back(
    tracking_server_url: str, checkpoint_path: Path, image_path: Path, expected: dict[str, float], tmp_path: Path
) -> None:
    client = MlflowClient(tracking_server_url)
    run = client.create_run(client.create_experiment("dogs"))
    model_uri = log_model(run.info.run_id, checkpoint_path, tracking_uri=tracking_server_url)
    fetched = load_checkpoint(fetch_checkpoint(model_uri, tmp_path, tracking_uri=tracking_server_url))
    answer = Predictor.from_checkpoint(fetched, backend="torch-fp32").predict([image_path.read_bytes()])[0]
    assert dict(answer.top5) == pytest.approx(expected, abs=1e-6)
