"""The model archive where it will run: unpacked, with torch, torchvision and Pillow and nothing else."""

import base64
import csv
import io
import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from endpointmodels import BUCKET, serving
from serving import as_row, draw_photograph, is_same_row, save_tiny_checkpoint

from dogbreed_ml.checkpoint import Checkpoint, save_checkpoint
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.policies import DeployConfig
from dogbreed_ml.serve import Predictor
from dogbreed_ml.transforms import Preprocessing
from sagemaker_jobs.endpoints.model_archive import Origin, build_model_archive, read_examples
from sagemaker_jobs.local.archives import extract

PROGRAM = Path(__file__).with_name("archive_answers.py")
ORIGIN = Origin(model_name="dogs-resnet50", version=3, run_id="a" * 32, commit="b" * 40)
AWS_IMAGE = ("torch==2.6.0", "torchvision==0.21.0", "pillow")
"""What AWS's newest PyTorch inference image has, as far as the archive needs it."""
TOOLKIT = ("sagemaker-inference==1.10.1", "six", "scipy")
JSON, CSV = "application/json", "text/csv"
REX, LUNA = draw_photograph(1), draw_photograph(2, "PNG")


@dataclass(frozen=True)
class Asked:
    """What a client sends, and what must come back: the rows of these images, or a status and words of its sentence."""

    body: bytes
    content_type: str
    images: tuple[bytes, ...] = ()
    accept: str = JSON
    status: int = 200
    words: str = ""


def requests_for(images: list[bytes]) -> list[Asked]:
    """Raw images, JSON of each form, CSV out, and what is refused."""
    first, *others = images
    texts = [base64.b64encode(each).decode() for each in images]
    part = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n' + first + b"\r\n--x--\r\n"
    frames: list[dict[str, Any]] = [
        {"instances": texts},
        {"inputs": {"image": texts}},
        {"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts]}},
    ]
    return [
        Asked(first, "image/jpeg", (first,)),
        *(Asked(each, "image/png", (each,)) for each in others),
        *(Asked(json.dumps(frame).encode(), JSON, tuple(images)) for frame in frames),
        Asked(json.dumps(frames[0]).encode(), JSON, tuple(images), accept=CSV),
        Asked(b"no dog", "image/jpeg", status=422, words="images[0] must be an image that can be read"),
        Asked(b"{", JSON, status=400, words="The body must be JSON"),
        Asked(first, "text/plain", status=415, words="Content-Type must be one of"),
        Asked(first, "image/jpeg", accept="image/png", status=406, words="Accept must allow"),
        Asked(part, "multipart/form-data; boundary=x", status=415, words="needs starlette and python-multipart"),
    ]


def ask(python: Path, model_dir: Path, asked: list[Asked], *flags: str) -> dict[str, Any]:
    requests = [
        {"body": base64.b64encode(each.body).decode(), "content_type": each.content_type, "accept": each.accept}
        for each in asked
    ]
    requests_path = model_dir.with_name("requests.json")
    requests_path.write_text(json.dumps(requests), encoding="utf-8")
    command = [str(python), "-P", str(PROGRAM), str(model_dir), str(requests_path), *flags]
    # In a folder of its own, and without this test's environment: only the archive's code can be found.
    done = subprocess.run(
        command, cwd=model_dir, capture_output=True, text=True, timeout=240, env={"PATH": "", "LC_ALL": "C.UTF-8"}
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert Path(told["facts"]["code"]).is_relative_to(model_dir / "code")
    return told


def check_answers(answers: list[dict[str, Any]], asked: list[Asked], predictor: Predictor) -> None:
    for answer, each in zip(answers, asked, strict=True):
        assert answer["status"] == each.status, answer
        if each.status != 200:
            assert each.words in answer["body"]
            assert answer["body"].endswith(".")
            assert len(answer["body"].splitlines()) == 1
            continue
        assert answer["content_type"] == each.accept
        expected = [as_row(prediction) for prediction in predictor.predict(each.images)]
        if each.accept == CSV:
            rows = list(csv.DictReader(io.StringIO(answer["body"])))
            assert [row["breed"] for row in rows] == [row["breed"] for row in expected]
            continue
        rows = json.loads(answer["body"])["predictions"]
        assert [row["breed"] for row in rows] == [row["breed"] for row in expected]
        assert all(is_same_row(row, wanted, tolerance=1e-3) for row, wanted in zip(rows, expected, strict=True))


def unpack(archive_path: Path, model_dir: Path) -> Path:
    extract(archive_path, model_dir, name="the archive")
    return model_dir


@pytest.fixture(scope="module")
def archive_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny model in fp32, so that its answers can be compared."""
    folder = tmp_path_factory.mktemp("archive")
    checkpoint_path = save_tiny_checkpoint(folder / "checkpoint.pt")
    deploy = DeployConfig(backend="torch-fp32")
    return build_model_archive(checkpoint_path, folder / "model.tar.gz", origin=ORIGIN, deploy=deploy)


def test_archive_answers_with_torch_torchvision_and_pillow_alone(archive_path: Path, tmp_path: Path) -> None:
    model_dir = unpack(archive_path, tmp_path / "model")
    predictor = Predictor.load(model_dir / "checkpoint.pt", backend="torch-fp32")
    asked = requests_for([REX, LUNA, draw_photograph(3, "WEBP")])
    told = ask(Path(sys.executable), model_dir, asked, "--only-torch")
    check_answers(told["answers"], asked, predictor)
    assert not {"starlette", "python_multipart", "openvino", "mlflow", "sagemaker_jobs"} & set(
        told["facts"]["packages"]
    )


@pytest.mark.slow
def test_endpoint_of_the_local_sagemaker_answers_the_archives_examples(archive_path: Path, tmp_path: Path) -> None:
    """Small sibling: test_archive_answers_with_torch_torchvision_and_pillow_alone."""
    with serving(tmp_path / "server") as client:
        client.s3.upload_file(str(archive_path), BUCKET, "dogs/own.tar.gz")
        client.create_model("dogs", ModelDataUrl=f"s3://{BUCKET}/dogs/own.tar.gz")
        client.create_config("dogs", "dogs")
        client.sagemaker.create_endpoint(EndpointName="dogs", EndpointConfigName="dogs")
        assert client.settled("dogs")["EndpointStatus"] == "InService"
        examples = read_examples(archive_path)
        assert len({example.answer["probability"] for example in examples}) > 4
        for example in examples:
            (row,) = json.loads(client.invoke("dogs", example.image, ContentType="image/jpeg"))["predictions"]
            assert is_same_row(row, example.answer, tolerance=1e-3)
        with pytest.raises(client.runtime.exceptions.ModelError) as caught:
            client.invoke("dogs", b"no image", ContentType="image/jpeg")
        assert caught.value.response["OriginalStatusCode"] == 422
        refusal = json.loads(caught.value.response["OriginalMessage"])
        assert (refusal["error_code"], refusal["message"].count("\n")) == ("UNREADABLE_IMAGE", 0)


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """pip in a virtual environment of 5 GB, which goes with the module; returns its interpreter."""
    folder = tmp_path_factory.mktemp("image")
    if shutil.disk_usage(folder).free < 12 * 2**30:
        pytest.skip("needs 12 GB of disk: torch 2.6 and the CUDA libraries that it cannot be imported without")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"

    def install_packages(*arguments: str) -> Path:
        command = [str(python), "-m", "pip", "install", "--quiet", "--no-input", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        return python

    yield install_packages
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_archive_answers_photographs_in_the_environment_of_awss_image(
    install: Callable[..., Path], tmp_path: Path, photographs_dir: Path, weights_path: Path
) -> None:
    checkpoint_path = _imagenet_checkpoint(weights_path, tmp_path / "checkpoint.pt")
    archive_path = build_model_archive(
        checkpoint_path, tmp_path / "model.tar.gz", origin=ORIGIN, deploy=DeployConfig(backend="torch-fp32")
    )
    model_dir = unpack(archive_path, tmp_path / "model")
    photographs = [min(folder.iterdir()).read_bytes() for folder in sorted((photographs_dir / "dogs").iterdir())[:4]]
    asked = requests_for([*photographs, LUNA])
    predictor = Predictor.load(checkpoint_path, backend="torch-fp32")

    python = install(*AWS_IMAGE)
    told = ask(python, model_dir, asked)
    assert told["facts"]["torch"].startswith("2.6.0")
    assert told["facts"]["torchvision"].startswith("0.21.0")
    check_answers(told["answers"], asked, predictor)

    # What the container does before it starts: it must go without a network.
    install("--no-index", "-r", str(model_dir / "code" / "requirements.txt"))
    install("--no-deps", *TOOLKIT)
    check_answers(ask(python, model_dir, asked, "--toolkit")["answers"], asked, predictor)


def _imagenet_checkpoint(weights_path: Path, path: Path) -> Path:
    state_dict = {name: each.float() for name, each in torch.load(weights_path, weights_only=True).items()}
    classes = tuple(f"class {index:04}" for index in range(len(state_dict["fc.bias"])))
    return save_checkpoint(Checkpoint(state_dict, classes, Preprocessing(), "1", ExperimentConfig()), path)
