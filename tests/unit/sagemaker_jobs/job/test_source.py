"""The source archive of a training job."""

import ast
import importlib.metadata
import io
import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from dogbreed_ml.cloudconfig import SagemakerConfig
from dogbreed_ml.config import NOT_RECORDED, ExperimentConfig
from dogbreed_ml.data.splits import BadImage, Sample, Split, Splits
from dogbreed_ml.errors import ConfigError, DataError
from dogbreed_ml.policies import ProfileConfig
from dogbreed_ml.runcopy import empty_database
from sagemaker_jobs.job.source import IN_THE_IMAGE, build_source, load_experiment, render_requirements
from sagemaker_jobs.job.splitsfile import image_name, parse_splits, render_splits

CONFIG = ExperimentConfig(sagemaker=SagemakerConfig(environment={"TOKEN": "hush"}))


def _splits(folder: Path) -> Splits:
    def split(name: str, digest: str) -> Split:
        return Split(name, (Sample(folder / f"{name}.JPG", 1, digest * 64),))  # type: ignore[arg-type]

    return Splits(
        ("Beagle", "Xolo"),
        split("train", "a"),
        split("valid", "b"),
        split("test", "c"),
        "0123456789abcdef",
        "folder dogs",
        bad_images=(BadImage("x.jpg", "truncated"),),
        num_duplicates=2,
    )


def _files(path: Path) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as archive:
        return {each.name: file.read() for each in archive if (file := archive.extractfile(each))}


def test_archive_holds_what_the_job_needs_and_no_more(tmp_path: Path) -> None:
    files = _files(
        build_source(CONFIG, _splits(tmp_path), tmp_path / "a.tar.gz", kind="trial", command="dogbreed tune")
    )
    assert {"train.py", "experiment.json", "splits.json", "requirements.txt"} <= set(files)
    assert {"sagemaker_jobs/train_entry.py", "dogbreed_ml/train.py", "dogbreed_ml/debugging/hook.py"} <= set(files)
    unneeded = {"dogbreed_ml/cli.py", "dogbreed_ml/search.py", "dogbreed_ml/trials.py", "sagemaker_jobs/client.py"}
    assert not unneeded & set(files)
    assert not [name for name in files if "/local/" in name or "/server/" in name]
    assert b"hush" not in b"".join(files.values())
    assert json.loads(files["experiment.json"])["config"]["sagemaker"]["environment"] == {"TOKEN": NOT_RECORDED}


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    archives = []
    # Other folders, other times, another process: the same content.
    for name in ("one", "two"):
        empty_database.cache_clear()
        path = build_source(
            CONFIG, _splits(tmp_path / name), tmp_path / name / "a.tar.gz", kind="trial", project_dir=tmp_path
        )
        archives.append(path.read_bytes())
    assert archives[0] == archives[1]


def test_archive_says_what_it_was_built_with(tmp_path: Path) -> None:
    path = build_source(CONFIG, None, tmp_path / "a.tar.gz", kind="train", command="dogbreed train --on sagemaker")
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path / "code", filter="data")
    experiment = load_experiment(tmp_path / "code")
    assert (experiment.kind, experiment.command) == ("train", "dogbreed train --on sagemaker")
    assert replace(experiment.config, sagemaker=CONFIG.sagemaker) == CONFIG
    assert not (tmp_path / "code" / "splits.json").exists()


def test_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train, trial, features"):
        build_source(CONFIG, None, tmp_path / "a.tar.gz", kind="search")  # type: ignore[arg-type]


def test_requirements_leave_the_images_own_packages_alone() -> None:
    for config in (CONFIG, replace(CONFIG, profile=ProfileConfig(enabled=True, debugger=True))):
        names = {line.partition("==")[0] for line in render_requirements(config).splitlines()}
        assert not names & {*IN_THE_IMAGE, "dogbreed-ml"}
        assert {"setuptools", "mlflow", "sagemaker-mlflow"} <= names
        assert ("smdebug" in names) is config.profile.debugger
    gpu, cpu = (
        render_requirements(replace(CONFIG, sagemaker=SagemakerConfig(instance_type=kind)))
        for kind in ("ml.g4dn.xlarge", "ml.c7i.xlarge")
    )
    assert "openvino" not in gpu
    assert "openvino" in cpu


def test_requirements_name_every_package_that_the_code_imports_at_once(tmp_path: Path) -> None:
    files = _files(build_source(CONFIG, None, tmp_path / "a.tar.gz", kind="trial"))
    provided = importlib.metadata.packages_distributions()
    asked = {line.partition("==")[0].lower() for line in render_requirements(CONFIG).splitlines()} | set(IN_THE_IMAGE)
    # Imported inside functions that no job without them calls, or by modules that only a debugger loads.
    asked |= {"smdebug", "nncf", "openvino", "python-multipart"}
    missing = {}
    for name, content in files.items():
        if not name.endswith(".py") or name.startswith("dogbreed_ml/debugging/"):
            continue
        for node in ast.parse(content).body:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in {each.partition(".")[0] for each in modules} - sys.stdlib_module_names:
                if module in ("dogbreed_ml", "sagemaker_jobs"):
                    continue
                distributions = {each.lower() for each in provided.get(module, [module])}
                # What comes with the package that is asked for: botocore with boto3, sqlalchemy with MLflow.
                if not distributions & asked and module != "botocore":
                    missing[module] = name
    assert missing == {}


def test_splits_come_back_with_their_images_in_the_channels(tmp_path: Path) -> None:
    splits = _splits(tmp_path)
    channels = {name: Path("/channels") / name for name in ("train", "valid", "test")}
    back = parse_splits(render_splits(splits), channels)
    assert image_name(splits.train.samples[0]) == f"aa/{'a' * 64}.jpg"
    assert back.train.samples == (Sample(Path(f"/channels/train/aa/{'a' * 64}.jpg"), 1, "a" * 64),)
    assert replace(back, train=splits.train, valid=splits.valid, test=splits.test) == splits


def test_splits_without_their_channels_are_refused() -> None:
    with pytest.raises(DataError, match=r"\['valid', 'test'\] are not there"):
        parse_splits(render_splits(_splits(Path("dogs"))), {"train": Path("/channels/train")})
