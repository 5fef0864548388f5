"""What a job is given, by content: nothing is sent here."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from dogbreed_ml.config import ExperimentConfig, with_values
from dogbreed_ml.data.splits import Sample, Split, Splits
from dogbreed_ml.errors import ModelError
from sagemaker_jobs.training import launch
from sagemaker_jobs.training.jobinputs import JobPlan, local_weights, plan_inputs
from sagemaker_jobs.training.launch import Launch, LaunchFile


def photograph(folder: Path, name: str, content: str, *, label: int = 0) -> Sample:
    path = folder / name
    path.write_text(content)
    return Sample(path, label, hashlib.sha256(content.encode()).hexdigest())


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    twins = [photograph(tmp_path, name, "the same dog") for name in ("rex.jpg", "rex again.JPG")]
    return Splits(
        classes=("Boxer", "Pug"),
        train=Split("train", (*twins, photograph(tmp_path, "lassie.png", "another", label=1))),
        valid=Split("valid", (photograph(tmp_path, "bello.jpg", "third"),)),
        test=Split("test", (photograph(tmp_path, "hasso.jpg", "fourth"),)),
        fingerprint="0" * 16,
        source="folder dogs",
    )


def build(
    folder: Path, splits: Splits | None, *, config: ExperimentConfig | None = None, features_dir: Path | None = None
) -> JobPlan:
    config = config or ExperimentConfig()
    source_path = folder / "source.tar.gz"
    source_path.write_bytes(b"code")
    weights_path, _ = local_weights(config, download=False)
    return plan_inputs(
        config,
        splits,
        uri=lambda key: f"s3://bucket/ours/{key}",
        source_path=source_path,
        weights_path=weights_path if weights_path and weights_path.is_file() else None,
        features_dir=features_dir,
    )


def channels_of(plan: JobPlan) -> dict[str, str]:
    return {each["ChannelName"]: each["DataSource"]["S3DataSource"]["S3Uri"] for each in plan.inputs.channels}


def test_photographs_lie_once_by_content_and_each_split_lists_its_own(tmp_path: Path, splits: Splits) -> None:
    plan = build(tmp_path, splits, config=with_values(ExperimentConfig(), {"model.weights": "random"}))

    images = {key: path for key, path in plan.files.items() if key.startswith("images/")}
    assert len(images) == 4
    for key, path in images.items():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert key == f"images/{digest[:2]}/{digest}{path.suffix.lower()}"
    channels = channels_of(plan)
    assert set(channels) == {"train", "valid", "test"}
    key = channels["train"].removeprefix("s3://bucket/ours/")
    prefix, *names = json.loads(plan.contents[key])
    assert prefix == {"prefix": "s3://bucket/ours/images/"}
    assert {f"images/{name}" for name in names} < set(images)
    assert len(names) == 2
    assert key == f"manifests/{hashlib.sha256(plan.contents[key]).hexdigest()}.json"


def test_renamed_photographs_give_the_same_plan(tmp_path: Path, splits: Splits) -> None:
    first = build(tmp_path, splits)
    moved = tmp_path / "moved"
    moved.mkdir()
    sample = splits.test.samples[0]
    elsewhere = Sample(sample.path.rename(moved / "other name.jpg"), sample.label, sample.digest)
    again = Splits(
        splits.classes, splits.train, splits.valid, Split("test", (elsewhere,)), splits.fingerprint, splits.source
    )
    assert channels_of(build(tmp_path, again)) == channels_of(first)


def test_weights_and_features_have_channels_under_their_digest_and_key(tmp_path: Path, splits: Splits) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    table = tmp_path / "features" / "0123abcd"
    table.mkdir(parents=True)
    for name in ("features.npy", "table.json"):
        (table / name).write_text(name)
    config = with_values(ExperimentConfig(), {"model.weights": str(weights)})

    plan = build(tmp_path, splits, config=config, features_dir=table)

    digest = hashlib.sha256(b"weights").hexdigest()
    assert channels_of(plan)["weights"] == f"s3://bucket/ours/weights/{digest}/weights.pth"
    assert channels_of(plan)["features"] == "s3://bucket/ours/features/0123abcd/"
    assert {"features/0123abcd/features.npy", "features/0123abcd/table.json"} < set(plan.files)


def test_weights_that_are_not_there_are_told_of_before_anything_is_sent() -> None:
    config = with_values(ExperimentConfig(), {"model.weights": "no/such/file.pth"})
    with pytest.raises(ModelError, match=r"no/such/file\.pth"):
        local_weights(config)
    assert local_weights(with_values(config, {"model.weights": "random"}))[0] is None


def test_job_record_is_found_by_the_same_config_data_and_store_alone(tmp_path: Path) -> None:
    config = ExperimentConfig()
    launch_file = LaunchFile.of(tmp_path, "train", config, scope="fingerprint store")
    assert launch_file.load() is None
    with launch_file.locked():
        launch_file.save(Launch("dogs-1", "us-west-2"))

    assert LaunchFile.of(tmp_path, "train", config, scope="fingerprint store").load() == Launch("dogs-1", "us-west-2")
    others = [
        LaunchFile.of(tmp_path, "train", config, scope="fingerprint other"),
        LaunchFile.of(tmp_path, "tune", config, scope="fingerprint store"),
        LaunchFile.of(tmp_path, "train", with_values(config, {"train.lr": 0.5}), scope="fingerprint store"),
    ]
    assert [each.load() for each in others] == [None, None, None]
    launch_file.clear("dogs-0")
    assert launch_file.load() == Launch("dogs-1", "us-west-2")
    launch_file.clear("dogs-1")
    launch_file.clear("dogs-1")
    assert launch_file.load() is None


def test_second_command_for_a_job_says_that_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, waits = LaunchFile(tmp_path / "train-0a1b.json"), Event()
    told: list[str] = []

    def tell(text: str, *_: object) -> None:
        told.append(text)
        waits.set()

    def second() -> Launch | None:
        with file.locked():
            return file.load()

    monkeypatch.setattr(launch.logger, "info", tell)
    with ThreadPoolExecutor(1) as pool:
        with file.locked():
            found = pool.submit(second)
            assert waits.wait(10)
            file.save(Launch("dogs-train-0a1b", "us-west-2"))
        assert found.result(10) == Launch("dogs-train-0a1b", "us-west-2")
    assert len(told) == 1
    assert "waiting for" in told[0]
