"""A profiled run as MLflow shows it, and recordings judged without a training."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from profilerfiles import steps, write_machine, write_trace

from dogbreed_ml.cli import main
from dogbreed_ml.config import (
    DataConfig,
    ExperimentConfig,
    FeaturesConfig,
    ModelConfig,
    TrackingConfig,
    TrainConfig,
)
from dogbreed_ml.context import Context
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.debugging.classnames import load_class_names
from dogbreed_ml.errors import ProfileError, TrainingError
from dogbreed_ml.pipeline.profiled import AS_RECORDED, judge_source, profile
from dogbreed_ml.pipeline.runprofiler import ARTIFACT_DIR, PROFILES_DIR, TENSORS_DIR, RunProfiler, profiled_run
from dogbreed_ml.pipeline.stages import run_epochs
from dogbreed_ml.policies import ProfileConfig
from dogbreed_ml.profiling.rules import RULES
from dogbreed_ml.profiling.session import judge_folder, profiled
from dogbreed_ml.ruleparameters import TENSOR_RULES, RuleName
from dogbreed_ml.spans import NO_SPANS
from dogbreed_ml.tracking import Tracker
from dogbreed_ml.workbench import Workbench

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # smdebug 1.0.34 with numpy 1.26.
    pytest.mark.filterwarnings("ignore:tostring.. is deprecated:DeprecationWarning"),
]

CONFIG = ExperimentConfig(
    data=DataConfig(num_breeds=3, num_per_breed=12, image_size=32),
    model=ModelConfig(weights="random"),
    features=FeaturesConfig(backend="torch-fp32"),
    train=TrainConfig(num_epochs=2, batch_size=4),
    profile=ProfileConfig(interval_ms=50),
    tracking=TrackingConfig(system_metrics=False),
)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return Context(project_dir=tmp_path_factory.mktemp("project"), argv=("dogbreed", "profile"))


@pytest.fixture(scope="module")
def run_id(context: Context) -> str:
    """One profiled run; features were kept before, so that a warm pass could be told from a cold one."""
    splits = load_splits(CONFIG.data, project_dir=context.project_dir)
    Workbench(splits, context.project_dir, torch.device("cpu")).feeds(CONFIG)
    summary = profile(CONFIG, context=context)
    assert summary.run_id is not None
    return summary.run_id


def test_verdicts_are_tags_and_figures_are_metrics_of_the_run(context: Context, run_id: str) -> None:
    run = mlflow.MlflowClient(context.tracking_uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    tags = {name: value for name, value in run.data.tags.items() if name.startswith("profiler.")}
    assert {f"profiler.{rule}" for rule in RULES} <= set(tags)
    assert tags["profiler.StepOutlier"] == "NotApplicable"
    assert tags["profiler.LossNotDecreasing"] in ("NoIssuesFound", "IssuesFound", "NotApplicable")
    assert run.data.metrics["profiler/num_steps"] == 12
    assert 0 <= run.data.metrics["profiler/data_wait_share"] <= 1
    assert run.data.params["profile.enabled"] == "True"


def test_everything_is_attached_under_profiler(context: Context, run_id: str) -> None:
    client = mlflow.MlflowClient(context.tracking_uri)
    names = {each.path for each in client.list_artifacts(run_id, ARTIFACT_DIR)}
    assert names == {"profiler/profiler-output", "profiler/profiler-report.html", "profiler/raw"}
    reports = {each.path for each in client.list_artifacts(run_id, "profiler/profiler-output/profiler-reports")}
    assert "profiler/profiler-output/profiler-reports/StepOutlier.json" in reports
    assert len(client.list_artifacts(run_id, "profiler/raw")) == 2


def test_the_feature_pass_is_made_cold_with_its_phases(context: Context, run_id: str) -> None:
    found = judge_folder(context.project_dir / PROFILES_DIR / run_id / ARTIFACT_DIR, CONFIG.profile)
    counts = found.recording.timeline.frame["name"].value_counts()
    num_images = sum(len(split) for split in _splits(context))
    assert counts["features/decode"] == counts["features/transform"] == num_images
    assert counts["features/write"] >= 2
    assert counts["features/forward"] >= 2
    assert counts["features"] == counts["data"] == 1


@pytest.mark.parametrize(
    ("model", "train"),
    [
        (ModelConfig(weights="random"), TrainConfig(num_epochs=1, batch_size=16, num_workers=1, augmentation="flip")),
        pytest.param(
            ModelConfig(weights="random", trainable="all"),
            TrainConfig(num_epochs=1, batch_size=16, num_workers=1),
            marks=pytest.mark.slow,  # 5 s, as long as its sibling
        ),
    ],
    ids=["fresh augmentation", "trainable all"],
)
def test_a_training_that_keeps_no_features_has_the_cold_pass_too(
    context: Context, model: ModelConfig, train: TrainConfig
) -> None:
    features_dir = context.project_dir / CONFIG.features.dir
    before = sorted(features_dir.rglob("*"))
    config = replace(CONFIG, model=model, train=train)
    summary = profile(config, context=context)
    found = judge_folder(context.project_dir / PROFILES_DIR / str(summary.run_id) / ARTIFACT_DIR, config.profile)
    counts = found.recording.timeline.frame["name"].value_counts()
    num_images = sum(len(split) for split in _splits(context))
    assert counts["features/decode"] == counts["features/transform"] == num_images
    assert min(counts["features/forward"], counts["features/write"]) >= 1
    assert counts["features"] == 1
    # The training is the one that was asked for: steps on images, by a loader process.
    assert counts["Step:ModeKeys.TRAIN"] == summary.figures["profiler/num_steps"] == 2
    loader = found.recording.timeline.loader
    assert loader is not None
    assert loader.num_workers == 1
    assert "the feature pass was made for this profile alone" in Path(summary.report_path).read_text()
    assert sorted(features_dir.rglob("*")) == before


def _splits(context: Context) -> tuple[Any, Any, Any]:
    splits = load_splits(CONFIG.data, project_dir=context.project_dir)
    return splits.train, splits.valid, splits.test


def test_a_run_is_judged_again_by_its_id_with_other_parameters(context: Context, run_id: str) -> None:
    strict = replace(CONFIG, profile=ProfileConfig(rules={"MaxInitializationTime_threshold": 1e-5}))
    summary = judge_source(run_id, strict, context=context)
    by_rule = {verdict.rule: verdict for verdict in summary.verdicts}
    assert by_rule["MaxInitializationTime"].status == "IssuesFound"
    assert summary.figures["profiler/num_steps"] == 12
    # The run's own report is by its own parameters.
    own_dir = context.project_dir / PROFILES_DIR / run_id / ARTIFACT_DIR
    assert Path(summary.report_path).is_file()
    assert not Path(summary.report_path).is_relative_to(own_dir)
    own = json.loads((own_dir / "profiler-output/profiler-reports/MaxInitializationTime.json").read_text())
    assert own["RuleTriggered"] == 0


def test_folders_of_one_name_are_judged_beside_each_other(context: Context, tmp_path: Path) -> None:
    reports = set()
    for name in "ab":
        write_machine(tmp_path / name / "profiler-output", cpus={"cpu0": [50.0] * 20})
        report_path = Path(judge_source(str(tmp_path / name / "profiler-output"), CONFIG, context=context).report_path)
        (report_path.parent / "left.json").touch()
        reports.add(report_path)
    assert len(reports) == 2
    judge_source(str(tmp_path / "a" / "profiler-output"), CONFIG, context=context)
    assert sorted(path.is_file() for path in (each.parent / "left.json" for each in reports)) == [False, True]


def test_a_search_is_one_event_of_the_loop_and_its_trials_are_no_steps(context: Context, tmp_path: Path) -> None:
    splits = load_splits(CONFIG.data, project_dir=context.project_dir)
    with profiled(tmp_path, CONFIG.profile) as session:
        profiler = RunProfiler(CONFIG.profile, session, tmp_path)
        bench = Workbench(splits, context.project_dir, torch.device("cpu"), spans=profiler.spans)
        feeds = bench.feeds(CONFIG)
        with profiler.search(bench):
            for _ in range(2):
                list(run_epochs(bench, CONFIG, bench.model(CONFIG), feeds.train, valid=feeds.valid))
        list(run_epochs(bench, CONFIG, bench.model(CONFIG), feeds.train, valid=feeds.valid))
    found = session.judge()
    assert found.figures["profiler/num_steps"] == CONFIG.train.num_epochs * math.ceil(len(splits.train) / 4)
    timeline = found.recording.timeline
    ((start_us, duration_us),) = timeline.frame.loc[
        timeline.frame["name"] == "search", ["start_us", "duration_us"]
    ].to_numpy()
    assert found.figures["profiler/initialization_s"] == pytest.approx(start_us / 1e6 - found.recording.start_s)
    assert found.figures["profiler/training_loop_s"] > duration_us / 1e6


def test_a_sagemaker_jobs_folder_is_judged_and_left_as_it_is(context: Context, tmp_path: Path) -> None:
    job_dir = tmp_path / "job"
    write_machine(job_dir / "profiler-output", gpus={"gpu0": [3.0] * 1100}, cpus={"cpu0": [97.0] * 1100})
    write_trace(job_dir / "profiler-output", steps([100_000] * 500))
    before = sorted(job_dir.rglob("*"))
    summary = judge_source(str(job_dir), CONFIG, context=context)
    assert sorted(job_dir.rglob("*")) == before
    text = summary.render()
    assert "CPUBottleneck            IssuesFound    The GPU waited in 100 % of the training's time" in text
    assert "-> The GPU waits for the CPU" in text
    assert f"report  {summary.report_path}" in text
    assert summary.run_id is None
    answer = json.loads(json.dumps(summary.to_dict()))
    assert {verdict["rule"] for verdict in answer["verdicts"]} == set(RULES)


@pytest.fixture(scope="module")
def failed_run_id(context: Context) -> str:
    """A run with the debugger on that fails after its first epoch, when its disk for tensors is used up."""
    settings = replace(CONFIG.profile, enabled=True, debugger=True, save_interval=1, max_gib=200_000 / 2**30)
    config = replace(CONFIG, profile=settings)
    splits = load_splits(config.data, project_dir=context.project_dir)
    bench = Workbench(splits, context.project_dir, torch.device("cpu"))

    def fail(tracker: Tracker, run_ids: list[str]) -> None:
        with (
            tracker.start_run("failing") as run,
            profiled_run(config, run, project_dir=context.project_dir) as profiler,
        ):
            run_ids.append(run.run_id)
            feeds = bench.feeds(config)
            for _ in profiler.epochs(bench, config, bench.model(config), feeds.train, valid=feeds.valid):
                raise ZeroDivisionError

    with Tracker.open(project_dir=context.project_dir, config=CONFIG.tracking) as tracker:
        run_ids: list[str] = []
        with pytest.raises(ZeroDivisionError):
            fail(tracker, run_ids)
    return run_ids[0]


def test_a_run_that_fails_has_its_verdicts_and_report(context: Context, failed_run_id: str) -> None:
    client = mlflow.MlflowClient(context.tracking_uri)
    run = client.get_run(failed_run_id)
    assert run.info.status == "FAILED"
    assert {f"profiler.{rule}" for rule in (*RULES, *TENSOR_RULES)} <= set(run.data.tags)
    assert run.data.tags["profiler.ExplodingTensor"] == "NoIssuesFound"
    assert run.data.metrics["profiler/num_steps"] == 6
    report = Path(client.download_artifacts(failed_run_id, "profiler/profiler-report.html")).read_text()
    assert '<div class="rule" id="rule-ExplodingTensor">' in report
    assert re.search(r"<li>Tensors were saved every 1 training steps, .* of profile\.max_gib=", report)


def test_recorded_tensors_are_judged_again_with_other_parameters(context: Context, failed_run_id: str) -> None:
    run_dir = context.project_dir / PROFILES_DIR / failed_run_id
    breeds = load_splits(CONFIG.data, project_dir=context.project_dir).classes
    # By these names ClassImbalance tells of them.
    assert load_class_names(run_dir / TENSORS_DIR) == breeds
    config = replace(CONFIG, profile=ProfileConfig(rules={"VanishingGradient_threshold": 1000}))
    for source in (failed_run_id, str(run_dir), str(run_dir / ARTIFACT_DIR)):
        summary = judge_source(source, config, context=context)
        by_rule = {verdict.rule: verdict for verdict in summary.verdicts}
        assert tuple(by_rule) == (*RULES, *TENSOR_RULES), source
        assert by_rule["VanishingGradient"].status == "IssuesFound"
        assert by_rule["VanishingGradient"].parameters == {"threshold": 1000.0}
        assert "Tensors were saved every" in Path(summary.report_path).read_text()


def test_without_its_tensors_a_run_keeps_its_tensor_verdicts(
    context: Context, failed_run_id: str, tmp_path: Path
) -> None:
    """As on another machine, where only the tracking server has the run."""
    there = replace(context, project_dir=tmp_path, environment={"MLFLOW_TRACKING_URI": context.tracking_uri})
    strict = replace(CONFIG, profile=ProfileConfig(rules={"VanishingGradient_threshold": 1000}))
    here = {verdict.rule: verdict for verdict in judge_source(failed_run_id, CONFIG, context=context).verdicts}
    # The second time reads what the first time left.
    for source in (failed_run_id, str(tmp_path / PROFILES_DIR / f"from-{failed_run_id}")):
        summary = judge_source(source, strict, context=there)
        verdicts = {verdict.rule: verdict for verdict in summary.verdicts}
        assert tuple(verdicts) == (*RULES, *TENSOR_RULES)
        for rule in TENSOR_RULES:
            assert verdicts[rule].reason == f"{here[rule].reason}{AS_RECORDED}"
            assert verdicts[rule].evidence == here[rule].evidence
            assert (verdicts[rule].status, verdicts[rule].datapoints) == (here[rule].status, here[rule].datapoints)
        assert AS_RECORDED in Path(summary.report_path).read_text()


def test_a_sagemaker_jobs_tensors_are_judged_beside_its_profile(
    context: Context, failed_run_id: str, tmp_path: Path
) -> None:
    write_machine(tmp_path / "job" / "profiler-output", cpus={"cpu0": [50.0] * 20})
    tensors_dir = context.project_dir / PROFILES_DIR / failed_run_id / TENSORS_DIR
    shutil.copytree(tensors_dir, tmp_path / "job" / "debug-output")
    for folder in ("job", "job/profiler-output"):
        summary = judge_source(str(tmp_path / folder), CONFIG, context=context)
        datapoints = {verdict.rule: verdict.datapoints for verdict in summary.verdicts}
        assert datapoints["AllZero"] > 0


def stopping(rule: RuleName, **train: Any) -> ExperimentConfig:
    """Watched by the debugger, which ends the training when the rule triggers."""
    settings = ProfileConfig(interval_ms=50, debugger=True, save_interval=1, stop_on=[rule])
    return replace(CONFIG, profile=settings, train=TrainConfig(**{"num_epochs": 4, "batch_size": 4, **train}))


def test_a_profiled_training_that_a_rule_stopped_says_so(context: Context, run_id: str) -> None:
    del run_id
    config = stopping("LossNotDecreasing", lr=1e-12)
    config = replace(config, profile=replace(config.profile, rules={"LossNotDecreasing_num_steps": 1}))
    summary = profile(config, context=context)
    assert summary.run_id is not None
    client = mlflow.MlflowClient(context.tracking_uri)
    run = client.get_run(summary.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["profiler.stopped_by"] == "LossNotDecreasing"
    assert run.data.tags["profiler.LossNotDecreasing"] == "IssuesFound"
    last_epoch = max(each.step for each in client.get_metric_history(summary.run_id, "train/loss"))
    assert last_epoch < 3
    note = f"The rule LossNotDecreasing ended the training after epoch {last_epoch}."
    assert note in Path(summary.report_path).read_text()


def test_no_model_is_kept_of_weights_that_exploded(context: Context, run_id: str) -> None:
    from dogbreed_ml.pipeline.train import train

    del run_id
    with pytest.raises(TrainingError) as raised:
        train(stopping("ExplodingTensor", lr=1e30, optimizer="sgd"), context=context)
    assert re.fullmatch(
        r"A model's weights must be finite, but 2 of its 2 tensors held NaN or infinity when the rule ExplodingTensor "
        r"ended the training after 1 epoch: no model is kept\. Lower train\.lr by a factor of 10, and .*",
        str(raised.value),
    )
    client = mlflow.MlflowClient(context.tracking_uri)
    experiment = client.get_experiment_by_name(CONFIG.name)
    assert experiment is not None
    run, *_ = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
    assert run.data.tags["failure.cause"] == f"TrainingError: {raised.value}"
    assert run.data.tags["profiler.stopped_by"] == "ExplodingTensor"
    assert run.data.tags["profiler.ExplodingTensor"] == "IssuesFound"
    assert not [name for name in run.data.metrics if name.startswith("test/")]
    assert client.search_logged_models([experiment.experiment_id]) == []
    report = Path(client.download_artifacts(run.info.run_id, "profiler/profiler-report.html")).read_text()
    assert "The rule ExplodingTensor ended the training after epoch 0." in report


@pytest.mark.slow  # 10 s: a model is logged
def test_the_best_epochs_model_is_kept_of_a_training_that_a_rule_stopped(tmp_path: Path) -> None:
    from dogbreed_ml.pipeline.train import train

    context = Context(project_dir=tmp_path, argv=("dogbreed",))
    config = stopping("Overtraining", num_epochs=20, patience=15, lr=0.3)
    rules = {"Overtraining_patience_validation": 2, "Overtraining_delta": 0}
    config = replace(config, profile=replace(config.profile, rules=rules))
    summary = train(config, context=context)
    assert summary.num_epochs < 16
    client = mlflow.MlflowClient(context.tracking_uri)
    run = client.get_run(summary.run_id)
    assert (run.info.status, run.data.tags["profiler.stopped_by"]) == ("FINISHED", "Overtraining")
    losses, accuracies = (
        [each.value for each in client.get_metric_history(summary.run_id, f"valid/{name}")]
        for name in ("loss", "accuracy_top1")
    )
    assert min(losses) < losses[-1]
    assert summary.valid["accuracy_top1"] == pytest.approx(accuracies[losses.index(min(losses))])


@pytest.mark.parametrize(
    "driver", [["optuna"], ["sagemaker"], ["sagemaker", "--dry-run"]], ids=["optuna", "sagemaker", "dry run"]
)
def test_a_search_refuses_the_debugger_that_it_does_not_run(
    tmp_path: Path, driver: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--profile.debugger", "true", "--profile.stop_on", "[ExplodingTensor]", "--search.engine", *driver]
    assert main(["tune", *flags]) == 2
    message = (
        "error: profile.debugger must be false in a search, got true and profile.stop_on [ExplodingTensor]: no smdebug "
        "hook runs in its trials, they are judged by their epochs' figures. Pass --profile.debugger false "
        "--profile.stop_on [], and train the values that the search finds with the debugger on.\n"
    )
    assert capfd.readouterr() == ("", message)
    assert main(["tune", *flags, "--profile.debugger", "false", "--profile.stop_on", "[]", "--print_config"]) == 0


@pytest.mark.slow  # 20 s: a model is logged and registered
def test_train_and_tune_profile_on_request(tmp_path: Path) -> None:
    from dogbreed_ml.pipeline.train import train
    from dogbreed_ml.pipeline.tune import tune

    context = Context(project_dir=tmp_path, argv=("dogbreed",))
    config = replace(CONFIG, profile=ProfileConfig(enabled=True, interval_ms=50))
    trained = train(config, context=context)
    tuned = tune(replace(config, search=replace(config.search, num_trials=2)), context=context)
    client = mlflow.MlflowClient(context.tracking_uri)
    splits = load_splits(config.data, project_dir=tmp_path)
    assert config.search.refit == "train_valid"
    # Once on train, for the temperature, and once on both.
    refits = (len(splits.train), len(splits.train) + len(splits.valid))
    # Of a search they are the refit's steps; its trials are judged by their epochs.
    metrics = client.get_run(tuned.parent_run_id).data.metrics
    num_epochs = len(client.get_metric_history(tuned.parent_run_id, "train/loss"))
    num_steps = sum(math.ceil(each / tuned.best_params.get("train.batch_size", 4)) for each in refits)
    assert metrics["profiler/num_steps"] == num_epochs * num_steps
    for run_id in (trained.run_id, tuned.parent_run_id):
        run = client.get_run(run_id)
        assert {f"profiler.{rule}" for rule in RULES} <= set(run.data.tags)
        assert run.data.metrics["profiler/num_steps"] > 0
        assert "profiler/profiler-report.html" in {each.path for each in client.list_artifacts(run_id, ARTIFACT_DIR)}
    query = f"tags.mlflow.parentRunId = '{tuned.parent_run_id}'"
    trials = client.search_runs([client.get_run(tuned.parent_run_id).info.experiment_id], query)
    judged = [trial.data.tags.get("profiler.Overfit") for trial in trials if "optuna.trial_number" in trial.data.tags]
    assert len(judged) == 2
    assert set(judged) <= {"NoIssuesFound", "IssuesFound"}


def test_an_interrupt_says_how_its_recording_is_judged(
    context: Context, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(CONFIG, profile=ProfileConfig(enabled=True, interval_ms=50))
    with (
        Tracker.open(project_dir=context.project_dir, config=CONFIG.tracking) as tracker,
        tracker.start_run("interrupted") as run,
        pytest.raises(KeyboardInterrupt),
        profiled_run(config, run, project_dir=tmp_path) as profiler,
        profiler.spans.span("data"),
    ):
        raise KeyboardInterrupt
    (source,) = re.findall(r"`dogbreed profile --from (\S+)`", caplog.text)
    assert Path(judge_source(source, CONFIG, context=context).report_path).is_file()
    names = judge_folder(Path(source) / ARTIFACT_DIR, CONFIG.profile).recording.timeline.frame["name"]
    assert "data" in set(names)


@pytest.mark.usefixtures("run_id")
def test_a_source_that_is_nothing_is_refused(context: Context) -> None:
    (context.project_dir / "plain.txt").touch()
    for source in ("nix", "./missing", str(context.project_dir / "plain.txt"), "0" * 32):
        message = f"--from must be a folder, s3://bucket/prefix or the id of a run, got '{source}'"
        with pytest.raises(ProfileError, match=re.escape(message)):
            judge_source(source, CONFIG, context=context)


def test_without_profile_enabled_a_run_is_left_alone(context: Context) -> None:
    with (
        Tracker.open(project_dir=context.project_dir, config=CONFIG.tracking) as tracker,
        tracker.start_run("off") as run,
    ):
        with profiled_run(CONFIG, run, project_dir=context.project_dir) as profiler:
            assert profiler.spans is NO_SPANS
        with pytest.raises(ProfileError, match=r"only where profile\.enabled is true"):
            assert profiler.profile
    assert not (context.project_dir / PROFILES_DIR / run.run_id).exists()
