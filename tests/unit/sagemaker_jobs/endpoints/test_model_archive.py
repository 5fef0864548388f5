"""What a model archive holds, and what it never holds."""

import hashlib
import json
import logging
import tarfile
from pathlib import Path

import pytest
from plantedsecrets import API_TOKEN, assert_absent, plant
from serving import as_row, is_same_row, save_tiny_checkpoint

from dogbreed_ml import __version__
from dogbreed_ml.errors import CheckpointError, ConfigError, ServingError
from dogbreed_ml.policies import DeployConfig
from dogbreed_ml.serve import Predictor
from sagemaker_jobs import inference
from sagemaker_jobs.endpoints.model_archive import (
    EXAMPLES_DIR,
    Origin,
    build_model_archive,
    read_examples,
    read_manifest,
)

ORIGIN = Origin(model_name="dogs-resnet50", version=3, run_id="a" * 32, commit="b" * 40)
INT8 = {"int8/model.xml": b"<net/>", "int8/model.bin": b"weights"}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with an INT8 model, or what looks like one, and a file that is nobody's business."""
    folder = tmp_path_factory.mktemp("model")
    path = save_tiny_checkpoint(folder / "checkpoint.pt")
    report = {
        "accepted": True, "accuracy_fp32": 0.8, "accuracy_int8": 0.8, "num_valid": 9, "num_calibration": 9,
        "checkpoint_sha256": sha256(path.read_bytes()), "model_bytes": 13, "nncf_version": "3.4.0",
    }  # fmt: skip
    for name, data in {**INT8, "int8/report.json": json.dumps(report).encode(), ".env": API_TOKEN.encode()}.items():
        folder.joinpath(name).parent.mkdir(exist_ok=True)
        folder.joinpath(name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def archive_path(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("archive") / "new" / "model.tar.gz"
    deploy = DeployConfig(backend="torch-fp32", min_probability=0.5)
    requirements = ["python-multipart>=0.0.18", "starlette"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        plant(monkeypatch, mlflow_host="127.0.0.1:5000")
        built = build_model_archive(model_dir, target, origin=ORIGIN, deploy=deploy, requirements=requirements)
    assert built == target
    assert [path.name for path in target.parent.iterdir()] == ["model.tar.gz"]
    return target


@pytest.fixture(scope="module")
def unpacked(archive_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive_path) as archive:
        archive.extractall(folder, filter="data")
    return folder


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_archive_holds_model_code_and_examples_and_its_manifest_names_each_file(
    archive_path: Path, unpacked: Path, model_dir: Path
) -> None:
    manifest = read_manifest(archive_path)
    files = {path.relative_to(unpacked).as_posix(): path for path in unpacked.rglob("*") if path.is_file()}
    assert manifest.files == {
        name: sha256(path.read_bytes()) for name, path in files.items() if name != inference.MANIFEST_FILE
    }
    assert manifest.origin == ORIGIN
    assert manifest.written_by == __version__
    assert manifest.deploy == {
        "backend": "torch-fp32", "min_probability": 0.5, "max_body_mib": 20.0, "max_megapixels": 64.0,
    }  # fmt: skip
    assert files["checkpoint.pt"].read_bytes() == (model_dir / "checkpoint.pt").read_bytes()
    assert {name: files[name].read_bytes() for name in INT8} == INT8
    assert files["code/inference.py"].read_bytes() == Path(inference.__file__).read_bytes()
    assert {"code/dogbreed_ml/serve.py", "int8/report.json"} <= set(files)
    assert not [name for name in files if "sagemaker_jobs" in name or name.endswith(".env")]
    assert files["code/requirements.txt"].read_text() == "python-multipart>=0.0.18\nstarlette\n"


def test_archive_of_the_same_input_has_the_same_bytes_and_its_log_no_secret(
    archive_path: Path,
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with tarfile.open(archive_path) as archive:
        members = archive.getmembers()
    heads = {(member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode) for member in members}
    assert heads == {(0, 0, 0, "", "", 0o644)}
    # By its file and elsewhere, after its files were touched.
    (model_dir / "checkpoint.pt").touch()
    plant(monkeypatch, mlflow_host="127.0.0.1:5000")
    caplog.set_level(logging.DEBUG)
    again = build_model_archive(
        model_dir / "checkpoint.pt",
        tmp_path / "other.tar.gz",
        origin=ORIGIN,
        deploy=DeployConfig(backend="torch-fp32", min_probability=0.5),
        requirements=["python-multipart>=0.0.18", "starlette"],
    )
    assert sha256(again.read_bytes()) == sha256(archive_path.read_bytes())
    assert_absent(caplog.text)


def test_examples_are_answered_as_the_archive_expects(archive_path: Path, unpacked: Path) -> None:
    examples = read_examples(archive_path)
    predictor = inference.model_fn(str(unpacked))
    assert isinstance(predictor, Predictor)
    assert (predictor.backend_name, predictor.min_probability) == ("torch-fp32", 0.5)
    assert len(examples) == 8
    for example, prediction in zip(examples, predictor.predict([each.image for each in examples]), strict=True):
        assert (unpacked / example.name).read_bytes() == example.image
        assert example.name.startswith(EXAMPLES_DIR)
        assert is_same_row(example.answer, as_row(prediction))


def test_archive_holds_no_secret_of_the_environment_it_is_built_in(archive_path: Path) -> None:
    assert_absent(archive_path, read_manifest(archive_path))


@pytest.mark.parametrize(
    "line", ["torch", "Torch==2.6", "torchvision>=0.21", "numpy<2", "dogbreed_ml", "dogbreed-ml", "", "-r more.txt",
             "six @ https://host/six.whl", "https://host/six.whl"],
)  # fmt: skip
def test_requirements_that_fight_with_the_image_are_refused(line: str, model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="A model archive's requirements must be"):
        build_model_archive(model_dir, tmp_path / "model.tar.gz", origin=ORIGIN, requirements=["starlette", line])


def test_back_end_that_the_container_lacks_is_refused_unless_it_is_required(model_dir: Path, tmp_path: Path) -> None:
    deploy = DeployConfig(backend="openvino-bf16")
    with pytest.raises(ConfigError, match=r"openvino-bf16 is not, .* Take auto"):
        build_model_archive(model_dir, tmp_path / "model.tar.gz", origin=ORIGIN, deploy=deploy)
    # Far enough to see that the back end was let through.
    with pytest.raises(CheckpointError, match="must be an existing file"):
        build_model_archive(
            tmp_path, tmp_path / "model.tar.gz", origin=ORIGIN, deploy=deploy, requirements=["openvino"]
        )


def test_archive_that_cannot_be_written_leaves_nothing(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "model.tar.gz").mkdir()
    with pytest.raises(ServingError, match=r"model\.tar\.gz could not be written: .*; free some space"):
        build_model_archive(model_dir, tmp_path / "model.tar.gz", origin=ORIGIN)
    assert [path.name for path in tmp_path.iterdir()] == ["model.tar.gz"]


def test_stranger_archive_is_told_from_ours(tmp_path: Path, archive_path: Path) -> None:
    (tmp_path / "text").write_text("no archive")
    with tarfile.open(tmp_path / "empty", "w:gz"):
        pass
    (tmp_path / "cut").write_bytes(archive_path.read_bytes()[:2000])
    for name in ("text", "empty", "cut", "gone"):
        for read in (read_manifest, read_examples):
            with pytest.raises(ServingError, match="must be a model archive of dogbreed-ml"):
                read(tmp_path / name)


def test_manifest_that_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / inference.MANIFEST_FILE).write_text('{"deploy": {"backend": "abacus"}}')
    with pytest.raises(CheckpointError, match=r"manifest.json must be a model archive's manifest"):
        inference.model_fn(str(tmp_path))
