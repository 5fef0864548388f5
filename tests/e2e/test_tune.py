"""A search from the command line to the registered challenger, in MLflow as a person would find it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

REPOSITORY = Path(__file__).parents[2]
SMALL = [
    *("--name", "small", "--data.num_breeds", "3", "--data.num_per_breed", "12", "--data.image_size", "64"),
    *("--model.weights", "random", "--train.num_epochs", "2", "--search.num_trials", "4"),
]


def dogbreed(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dogbreed_ml", *arguments], cwd=cwd, capture_output=True, text=True, timeout=240
    )


def answer(*arguments: str, cwd: Path) -> dict[str, Any]:
    process = dogbreed(*arguments, "--json", cwd=cwd)
    assert process.returncode == 0, process.stderr
    result: dict[str, Any] = json.loads(process.stdout)
    return result


@pytest.fixture(scope="module")
def project_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def summary(project_dir: Path) -> dict[str, Any]:
    return answer("tune", *SMALL, cwd=project_dir)


@pytest.fixture(scope="module")
def client(project_dir: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project_dir / 'mlflow.db'}")


def artifacts(client: MlflowClient, run_id: str, folder: str | None = None) -> set[str]:
    found: set[str] = set()
    for each in client.list_artifacts(run_id, folder):
        found |= artifacts(client, run_id, each.path) if each.is_dir else {each.path}
    return found


def children(client: MlflowClient, parent_run_id: str) -> list[Run]:
    experiment_id = client.get_run(parent_run_id).info.experiment_id
    runs = client.search_runs([experiment_id], f"tags.`mlflow.parentRunId` = '{parent_run_id}'")
    return sorted(runs, key=lambda run: int(run.data.tags["optuna.trial_number"]))


def test_json_answers_what_a_script_would_ask(summary: dict[str, Any]) -> None:
    asked = {
        "parent_run_id",
        "study_name",
        "num_trials",
        "best_trial",
        "best_value",
        "best_params",
        "model_uri",
        "test",
    }
    assert asked | {"seconds", "cache_hits"} <= set(summary)
    assert summary["num_trials"] == 4
    assert set(summary["best_params"]) == {"train.lr", "train.batch_size"}
    assert {"features", "search", "refit", "model", "report"} <= set(summary["seconds"])
    assert 0 <= summary["test"]["accuracy_top1"] <= 1


def test_parent_run_holds_what_won_and_why(summary: dict[str, Any], client: MlflowClient) -> None:
    parent = client.get_run(summary["parent_run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["model.weights"] == "random"
    assert parent.data.tags["best_trial"] == str(summary["best_trial"])
    assert parent.data.params["search.num_trials"] == "4"
    assert parent.data.metrics["test/accuracy_top1"] == pytest.approx(summary["test"]["accuracy_top1"])
    assert parent.data.metrics["valid/accuracy_top1"] == pytest.approx(summary["best_value"])
    assert {"valid/accuracy_top5", "valid/f1_macro", "valid/loss", "test/f1_macro"} <= set(parent.data.metrics)
    assert parent.inputs is not None
    assert len({each.dataset.digest for each in parent.inputs.dataset_inputs}) == 1
    assert len(parent.inputs.dataset_inputs) == 3
    assert {
        "config.yaml",
        "command.txt",
        "search_report.html",
        "evaluation/confusion.png",
        "evaluation/breeds.csv",
    } <= (artifacts(client, parent.info.run_id))


def test_each_trial_is_a_child_run_that_leaves_no_backbone(summary: dict[str, Any], client: MlflowClient) -> None:
    runs = children(client, summary["parent_run_id"])
    assert [run.info.run_name for run in runs] == [f"trial-{number:04}" for number in range(4)]
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}
    best = runs[summary["best_trial"]]
    assert float(best.data.params["train.lr"]) == pytest.approx(summary["best_params"]["train.lr"])
    history = client.get_metric_history(best.info.run_id, "valid/accuracy_top1")
    assert [metric.step for metric in history] == [0, 1]
    assert not any(artifacts(client, run.info.run_id) for run in runs)


def test_best_is_registered_as_challenger_and_predicts(
    summary: dict[str, Any], client: MlflowClient, project_dir: Path
) -> None:
    version = client.get_model_version_by_alias("small-resnet50", "challenger")
    assert int(version.version) == summary["model_version"]
    assert version.run_id == summary["parent_run_id"]
    image = next((project_dir / ".dogbreed" / "data").rglob("*.jpg"))
    process = dogbreed("predict", "--model", "models:/small-resnet50@challenger", str(image), "--json", cwd=project_dir)
    assert process.returncode == 0, process.stderr
    assert image.parent.name in json.dumps(json.loads(process.stdout))


def test_second_search_makes_no_forward_pass_and_may_average_heads(
    summary: dict[str, Any], project_dir: Path, client: MlflowClient
) -> None:
    again = answer("tune", *SMALL, "--search.ensemble", "2", "--search.pruner", "none", cwd=project_dir)
    assert (summary["cache_hits"], again["cache_hits"]) == (0, 1)
    assert again["parent_run_id"] != summary["parent_run_id"]
    run = client.get_run(again["parent_run_id"])
    assert run.data.tags["ensemble.trials"].split(", ")[0] == str(again["best_trial"])
    assert len(run.data.tags["ensemble.trials"].split(", ")) == 2
    assert {"ensemble/valid_accuracy_top1", "temperature"} <= set(run.data.metrics)


def test_train_is_one_run_with_its_model(project_dir: Path, client: MlflowClient) -> None:
    trained = answer("train", *SMALL, "--train.num_epochs", "3", cwd=project_dir)
    run = client.get_run(trained["run_id"])
    assert run.info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")] == [0, 1, 2]
    assert trained["model_uri"].startswith("models:/")


def test_failing_command_ends_its_run_with_the_cause(project_dir: Path, client: MlflowClient) -> None:
    process = dogbreed("train", *SMALL, "--features.max_gib", "1e-7", "--data.crop_share", "0.5", cwd=project_dir)
    assert process.returncode == 1
    assert "features.max_gib must hold all features" in process.stderr.splitlines()[-1]
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "attributes.status = 'FAILED'")
    assert "features.max_gib" in run.data.tags["failure.cause"]
    assert not client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")


@pytest.mark.slow
def test_searching_processes_have_processes_that_load_their_images(tmp_path: Path) -> None:
    """Small sibling: test_processes_of_a_process_of_multiprocessing_end_with_it."""
    flags = ("--search.num_parallel", "2", "--model.trainable", "layer4", "--train.augmentation", "flip_crop")
    process = dogbreed("tune", *SMALL, *flags, "--train.num_workers", "1", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    version = client.get_model_version_by_alias("small-resnet50", "challenger")
    assert version.run_id is not None
    assert [run.info.status for run in children(client, version.run_id)] == 4 * ["FINISHED"]


@pytest.mark.slow
def test_mlflow_run_tunes_in_its_own_run(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path / 'mlflow.db'}"
    parameters = [f"{name[2:]}={value}" for name, value in zip(SMALL[::2], SMALL[1::2], strict=True)]
    command = [sys.executable, "-m", "mlflow", "run", str(REPOSITORY), "-e", "tune", "--env-manager", "local"]
    command += ["--experiment-name", "small"]
    for parameter in parameters:
        command += ["-P", parameter]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert process.returncode == 0, process.stderr
    client = MlflowClient(environment["MLFLOW_TRACKING_URI"])
    version = client.get_model_version_by_alias("small-resnet50", "challenger")
    assert version.run_id is not None
    parent = client.get_run(version.run_id)
    assert "mlflow.project.entryPoint" in parent.data.tags
    assert len(children(client, parent.info.run_id)) == 4
