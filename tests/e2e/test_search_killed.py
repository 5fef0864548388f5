"""Searches cut off by kill -9, Ctrl-C and SIGTERM, as real processes; the same command goes on where they stopped."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from search_command import SearchCommand, search_command

EPOCH_S = 0.01


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")


def _runs(folder: Path) -> tuple[Run, list[Run]]:
    """The parent run and its children by trial number."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    found = client.search_runs(["1"], max_results=1000)
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    return parents[0], sorted(children, key=lambda run: int(run.data.tags["optuna.trial_number"]))


def _wait_for_held_trials(command: SearchCommand, folder: Path, count: int = 1) -> None:
    """Until they have runs; between two trials there is nothing to cut off."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    command.wait_until(lambda: len(client.search_runs(["1"], "attributes.status = 'RUNNING'")) == 1 + count)


def _states(children: list[Run]) -> list[tuple[str, str]]:
    return [(run.info.status, run.data.tags.get("trial.state", "-")) for run in children]


def _complete(told: dict[str, Any]) -> list[int]:
    return [trial["number"] for trial in told["trials"] if trial["state"] == "COMPLETE"]


def test_killed_search_goes_on_where_it_stopped(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_trials": 5, "epoch_s": EPOCH_S}
    with search_command(tmp_path, **options, hold_after=2) as command:
        command.wait_for_trials(2)
        _wait_for_held_trials(command, tmp_path)
        command.kill()
    with search_command(tmp_path, **options) as command:
        told = command.result()
    parent, children = _runs(tmp_path)
    assert told["resumed"]
    assert told["parent_run_id"] == parent.info.run_id
    assert parent.info.status == "FINISHED"
    assert len(_complete(told)) == 5
    states = _states(children)
    assert states.count(("FINISHED", "COMPLETE")) == 5
    assert states.count(("KILLED", "INTERRUPTED")) == len(children) - 5 == 1
    cut_off = next(run for run in children if run.info.status == "KILLED")
    retried = next(run for run in children if "dogbreed.retry_of" in run.data.tags)
    assert retried.data.tags["dogbreed.retry_of"] == cut_off.data.tags["optuna.trial_number"]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for run in children:
        if run.info.status == "FINISHED":
            assert len(client.get_metric_history(run.info.run_id, "valid/loss")) == 4
            assert run.data.metrics["objective"] == run.data.metrics["valid/accuracy_top1"]


@pytest.mark.slow
def test_killed_parallel_search_takes_its_workers_along_and_goes_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_trials": 6, "num_parallel": 2, "epoch_s": EPOCH_S}
    with search_command(tmp_path, **options, hold_after=1) as command:
        command.wait_for_trials(2)
        command.kill()
    with search_command(tmp_path, **options) as command:
        told = command.result()
    parent, children = _runs(tmp_path)
    assert (told["resumed"], parent.info.status) == (True, "FINISHED")
    assert len(_complete(told)) == 6
    assert _states(children).count(("FINISHED", "COMPLETE")) == 6
    assert not [run for run in children if run.info.status == "RUNNING"]


@pytest.mark.slow
def test_worker_that_is_killed_costs_one_trial(tmp_path: Path) -> None:
    """Small sibling: test_killed_search_goes_on_where_it_stopped."""
    with search_command(tmp_path, num_trials=7, num_parallel=2, epoch_s=0.15) as command:
        command.wait_for_trials(2)
        command.workers()[0].kill()
        told = command.result()
    _, children = _runs(tmp_path)
    failed = [trial for trial in told["trials"] if trial["state"] == "FAILED"]
    assert len(told["trials"]) == 7
    assert [trial["cause"] for trial in failed] == ["the worker process ended with signal SIGKILL (out of memory?)"]
    run = next(run for run in children if run.info.run_id == failed[0]["run_id"])
    assert (run.info.status, run.data.tags["trial.state"]) == ("FAILED", "FAILED")
    assert run.data.tags["failure.cause"] == failed[0]["cause"]


@pytest.mark.slow
@pytest.mark.parametrize("num_parallel", [1, 2])
def test_interrupted_search_leaves_nothing_running_and_goes_on(tmp_path: Path, num_parallel: int) -> None:
    """Small sibling: test_terminated_search_ends_its_runs_as_killed."""
    options: dict[str, Any] = {"num_trials": 5, "num_parallel": num_parallel, "epoch_s": EPOCH_S}
    with search_command(tmp_path, **options, hold_after=2 // num_parallel) as command:
        command.wait_for_trials(2)
        _wait_for_held_trials(command, tmp_path, num_parallel)
        assert command.interrupt() == 130
    parent, children = _runs(tmp_path)
    assert parent.info.status == "KILLED"
    assert {run.info.status for run in children} <= {"FINISHED", "KILLED"}
    assert ("KILLED", "INTERRUPTED") in _states(children)
    with search_command(tmp_path, **options) as command:
        told = command.result()
    parent, children = _runs(tmp_path)
    assert (told["resumed"], parent.info.status, len(_complete(told))) == (True, "FINISHED", 5)


def test_terminated_search_ends_its_runs_as_killed(tmp_path: Path) -> None:
    with search_command(tmp_path, num_trials=5, epoch_s=EPOCH_S, hold_after=1) as command:
        command.wait_for_trials(1)
        _wait_for_held_trials(command, tmp_path)
        os.kill(command.process.pid, signal.SIGTERM)
        assert command.process.wait(60) == 130
    parent, children = _runs(tmp_path)
    assert parent.info.status == "KILLED"
    assert _states(children)[-1] == ("KILLED", "INTERRUPTED")


def test_second_command_does_not_join_a_running_search(tmp_path: Path) -> None:
    with search_command(tmp_path, num_trials=5, epoch_s=EPOCH_S, hold_after=1) as first:
        first.wait_for_trials(1)
        with search_command(tmp_path, num_trials=5) as second:
            second.process.wait(100)
            assert second.process.returncode == 1
            assert "Another process runs this search of 'dogs'" in second.log
        first.interrupt()
