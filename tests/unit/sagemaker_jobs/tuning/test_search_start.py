"""Where a search in SageMaker begins, by its flags; and the channel of its features."""

from pathlib import Path
from typing import Any

import pytest

from dogbreed_ml.arguments import parse
from dogbreed_ml.cli import main
from dogbreed_ml.config import (
    CategoricalDimension,
    DataConfig,
    ExperimentConfig,
    FeaturesConfig,
    IntDimension,
    ModelConfig,
    TrainConfig,
    with_values,
)
from dogbreed_ml.context import Context
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.errors import ConfigError
from dogbreed_ml.options import TuneOptions
from dogbreed_ml.workbench import Workbench
from sagemaker_jobs.training.jobinputs import unknown_inputs
from sagemaker_jobs.tuning.featurechannel import FeatureChannel
from sagemaker_jobs.tuning.featurejob import channel_uri, features_config
from sagemaker_jobs.tuning.searchplan import search_request, search_tags, typical_trial
from sagemaker_jobs.tuning.tuningstatus import DATA_TAG, SEARCH_TAG
from sagemaker_jobs.tuning.warmstart import Source

RUN_ID = "0123456789abcdef0123456789abcdef"


def test_sources_are_told_apart_by_their_form() -> None:
    options = parse(["tune", "--warm-start", f"dogs-tune-1a2b3c-261121, {RUN_ID},"]).options
    assert isinstance(options, TuneOptions)
    assert Source.of(options.sources) == Source((RUN_ID,), ("dogs-tune-1a2b3c-261121",))
    assert Source.of(TuneOptions().sources) == Source()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--attach", "job", "--dry-run"], "--attach excludes"),
        (["--attach", "job", "--warm-start", RUN_ID], "--attach excludes"),
        (["--warm-start", " , "], "at least one"),
    ],
)
def test_flags_that_exclude_each_other_are_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(["tune", *argv])


def test_dry_run_of_a_search_with_optuna_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tune", "--dry-run"]) == 2
    assert "--dry-run needs --search.engine sagemaker" in capsys.readouterr().err


CONFIG = ExperimentConfig(
    data=DataConfig(num_breeds=2, num_per_breed=4, image_size=32),
    model=ModelConfig(weights="random"),
    features=FeaturesConfig(backend="torch-fp32"),
)


def test_channel_holds_a_folder_for_each_table(tmp_path: Path) -> None:
    import torch

    splits = load_splits(CONFIG.data, project_dir=tmp_path)
    bench = Workbench(splits, tmp_path, torch.device("cpu"))
    features_dir = tmp_path / CONFIG.features.dir
    plain = FeatureChannel.of(bench.feeds(CONFIG), features_dir, uri=lambda key: f"s3://bucket/{key}")
    views_config = ExperimentConfig(
        data=CONFIG.data,
        model=CONFIG.model,
        features=CONFIG.features,
        train=TrainConfig(augmentation="flip", num_views=2),
    )
    feeds = bench.feeds(views_config)
    both = FeatureChannel.of(feeds, features_dir, uri=lambda key: f"s3://bucket/{key}")
    assert plain is not None
    assert both is not None
    assert feeds.table is not None
    assert feeds.views is not None
    assert plain.uri == f"s3://bucket/features/{feeds.table.key}/"
    assert both.uri == f"s3://bucket/features/{feeds.views.key}/"
    assert {key.partition("/")[2].partition("/")[2] for key in both.files} == {
        "augmented/features.npy",
        "augmented/table.json",
        "plain/features.npy",
        "plain/table.json",
    }
    assert all(path.is_file() for path in both.files.values())
    whole = ExperimentConfig(data=CONFIG.data, model=ModelConfig(weights="random", trainable="all"))
    assert FeatureChannel.of(bench.feeds(whole), features_dir, uri=str) is None


def test_features_depend_on_nothing_that_a_search_varies_but_views() -> None:
    def of(**train: Any) -> ExperimentConfig:
        return features_config(ExperimentConfig(train=TrainConfig(**train)))

    assert of(lr=0.5, num_epochs=9) == of()
    assert of(augmentation="flip", num_views=2) != of()


def test_search_is_known_by_its_results_and_not_by_where_things_lie(tmp_path: Path) -> None:
    def digest(**values: Any) -> str:
        named = {name.replace("__", "."): value for name, value in values.items()}
        return search_tags(with_values(CONFIG, named), "0a1b", context=Context(tmp_path))[SEARCH_TAG]

    assert search_tags(CONFIG, "0a1b", context=Context(tmp_path))[DATA_TAG] == "0a1b"
    assert digest(data__dir="elsewhere", sagemaker__bucket="kennel", features__dir="there") == digest()
    differing = [
        digest(train__num_epochs=7),
        digest(data__image_size=96),
        digest(model__trainable="layer4"),
        digest(search__num_trials=3),
    ]
    assert len({digest(), *differing}) == 5


def test_estimate_counts_the_mean_of_the_epochs_that_are_searched() -> None:
    def epochs(**space: Any) -> int:
        return typical_trial(with_values(CONFIG, {"search.space": space})).train.num_epochs

    assert epochs(**{"train.num_epochs": IntDimension(low=1, high=399)}) == 200
    assert epochs(**{"train.num_epochs": CategoricalDimension(choices=[2, 3, 7])}) == 4
    assert epochs(**{"train.lr": CategoricalDimension(choices=[0.1, 0.2])}) == CONFIG.train.num_epochs


def test_search_on_several_instances_draws_batches_that_they_can_share() -> None:
    def request(choices: list[Any]) -> dict[str, Any]:
        space = {"train.batch_size": CategoricalDimension(choices=choices)}
        values = {"sagemaker.instance_count": 3, "search.engine": "sagemaker", "search.space": space}
        return search_request(
            with_values(CONFIG, values),
            name="dogs",
            inputs=unknown_inputs(lambda key: f"s3://kennel/{key}", {}),
            role_arn="arn:aws:iam::123456789012:role/sagemaker",
            region="us-west-2",
            tags={},
        )

    # The config's own 32 is no trial's.
    assert request([33, 66])["TrainingJobDefinition"]["ResourceConfig"]["InstanceCount"] == 3
    with pytest.raises(ConfigError, match="multiple of the 3 processes .* got 32, 64"):
        request([32, 33, 64])
    # One pass needs one instance, whatever the trials have.
    alone = features_config(with_values(CONFIG, {"sagemaker.instance_count": 3}))
    assert alone.sagemaker.instance_count == 1


def test_channel_of_a_tuning_job_is_found_in_its_description() -> None:
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://bucket/features/1/"}}
    channel = {"ChannelName": "features", "DataSource": source}
    assert channel_uri({"TrainingJobDefinition": {"InputDataConfig": [channel]}}) == "s3://bucket/features/1/"
    assert channel_uri({"TrainingJobDefinition": {}}) is None
