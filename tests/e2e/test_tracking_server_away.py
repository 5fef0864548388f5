"""A live MLflow server that is stopped during a search: nothing is lost."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from mlflow_server import MlflowServer
from search_command import search_command

from dogbreed_ml.runs import AROUND_TRAINING


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path, empty_store=empty_store)
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("away_s", [3, 20])
def test_search_loses_nothing_while_the_server_is_away(tmp_path: Path, server: MlflowServer, away_s: int) -> None:
    """Small sibling: test_run_loses_nothing_while_the_store_is_away, on a fake client."""
    environment = {"MLFLOW_TRACKING_URI": server.url}
    with search_command(tmp_path, environment, num_trials=4, epoch_s=0.5, system_metrics=True) as command:
        command.wait_for_trials(1)
        server.stop()
        time.sleep(away_s)
        assert command.process.poll() is None
        server.start()
        told = command.result()
    assert "is away" in command.log or "Retrying" in command.log
    client = MlflowClient(server.url)
    parent = client.get_run(told["parent_run_id"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'", max_results=100
    )
    assert parent.info.status == "FINISHED"
    assert {run.info.run_id for run in children} == {trial["run_id"] for trial in told["trials"]}
    assert [run.info.status for run in children] == ["FINISHED"] * 4
    for run in children:
        history = client.get_metric_history(run.info.run_id, "valid/accuracy_top1")
        assert [metric.step for metric in history] == [0, 1, 2, 3]
        assert len(run.data.params) == sum(not key.startswith(AROUND_TRAINING) for key in parent.data.params)
        # The time of the epoch, not of the write: half a second apart each.
        gaps = [(b.timestamp - a.timestamp) / 1000 for a, b in itertools.pairwise(history)]
        assert all(0.4 < gap < away_s + 60 for gap in gaps)
    steps = [m.step for m in client.get_metric_history(parent.info.run_id, "system/cpu_utilization_percentage")]
    assert steps == list(range(len(steps)))


@pytest.mark.slow
def test_search_gives_up_on_a_server_that_stays_away_and_goes_on_later(tmp_path: Path, server: MlflowServer) -> None:
    environment = {"MLFLOW_TRACKING_URI": server.url}
    with search_command(tmp_path, environment, num_trials=3, epoch_s=0.3, retry_s=2.0) as command:
        command.wait_for_trials(1)
        server.stop()
        assert command.process.wait(120) == 1
        assert "start it again and repeat the command" in command.log
    server.start()
    with search_command(tmp_path, environment, num_trials=3, epoch_s=0.05, retry_s=20.0) as command:
        told = command.result()
    client = MlflowClient(server.url)
    parent = client.get_run(told["parent_run_id"])
    assert (told["resumed"], len(told["trials"]), parent.info.status) == (True, 3, "FINISHED")
    running = client.search_runs([parent.info.experiment_id], "attributes.status = 'RUNNING'")
    assert not list(running)
