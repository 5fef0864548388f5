"""Runs, the writer and the store's address, against a fake MLflow client or a database file."""

import json
import logging
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.tracking import MlflowClient
from requests.exceptions import ConnectionError as NoConnection

from dogbreed_ml.config import ExperimentConfig, TrackingConfig, with_values
from dogbreed_ml.errors import TrackingError
from dogbreed_ml.provenance import HOST_TAG, PID_TAG, PROCESS_START_TAG, is_gone, process_tags, render_command
from dogbreed_ml.runs import Run
from dogbreed_ml.runwriter import Creation, Outbox, RunWriter, is_transient
from dogbreed_ml.stores import resolve_store, without_password


class FakeClient:
    """Remembers requests; is away for the first `num_absences` of them."""

    def __init__(self, *, num_absences: float = 0, refusal: str | None = None):
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.num_absences = num_absences
        self.refusal = refusal
        self.num_attempts = 0

    def _request(self, kind: str, **values: Any) -> None:
        self.num_attempts += 1
        if self.num_absences > 0:
            self.num_absences -= 1
            raise NoConnection("nobody there")
        if self.refusal == kind:
            raise MlflowException("no such thing", error_code=INVALID_PARAMETER_VALUE)
        self.requests.append((kind, values))

    def create_run(self, experiment_id: str, **values: Any) -> Any:
        self._request("create_run", experiment_id=experiment_id, **values)
        return type("R", (), {"info": type("I", (), {"run_id": "run-1"})})

    def search_runs(self, *_: Any, **__: Any) -> list[Any]:
        return []

    def log_batch(self, run_id: str, **values: Any) -> None:
        self._request("log_batch", run_id=run_id, **values)

    def log_text(self, run_id: str, text: str, path: str) -> None:
        self._request("log_text", text=text, path=path)

    def set_terminated(self, run_id: str, **values: Any) -> None:
        self._request("set_terminated", run_id=run_id, **values)

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.requests]


@pytest.fixture
def writers() -> Iterator[list[RunWriter]]:
    made: list[RunWriter] = []
    yield made
    for writer in made:
        writer.close()


def _run(client: FakeClient, writers: list[RunWriter], *, retry_s: float = 30.0, known: Any = None) -> Run:
    writer = RunWriter(client, store="fake", retry_s=retry_s)  # type: ignore[arg-type]
    writers.append(writer)
    return Run(Outbox(creation=Creation("7", "r", {}, start_ms=1)), writer, experiment_id="7", known_params=known)


def test_run_writes_a_short_trial_in_three_requests(writers: list[RunWriter]) -> None:
    client = FakeClient()
    with _run(client, writers) as run:
        run.log_config(ExperimentConfig(), is_trial=True)
        for step in range(5):
            run.log_metrics({"valid/loss": 1.0 - step / 10, "train/loss": 0.5}, step=step)
        run.set_tags({"trial.state": "COMPLETE"})
    assert client.kinds() == ["create_run", "log_batch", "set_terminated"]
    batch = client.requests[1][1]
    sections = {param.key.partition(".")[0] for param in batch["params"]}
    assert sections == {"name", "data", "model", "features", "train", "search", "profile", "tracking"}
    assert [(metric.key, metric.step) for metric in batch["metrics"]][:2] == [("valid/loss", 0), ("train/loss", 0)]


def test_run_splits_batches_at_mlflows_limits(writers: list[RunWriter]) -> None:
    client = FakeClient()
    with _run(client, writers) as run:
        run.log_params({f"p{index}": index for index in range(250)})
        for step in range(500):
            run.log_metrics({f"m{index}": 0.5 for index in range(4)}, step=step)
    batches = [values for kind, values in client.requests if kind == "log_batch"]
    assert all(len(b["params"]) <= 100 and len(b["metrics"]) <= 1000 for b in batches)
    assert all(len(b["params"]) + len(b["metrics"]) + len(b["tags"]) <= 1000 for b in batches)
    assert sum(len(b["params"]) for b in batches) == 250
    assert sum(len(b["metrics"]) for b in batches) == 2000


def test_metrics_carry_the_time_of_the_event(writers: list[RunWriter]) -> None:
    client = FakeClient(num_absences=2)
    run = _run(client, writers)
    before_ms = time.time() * 1000
    run.log_metrics({"a": 1.0})
    after_ms = time.time() * 1000
    run.finish()
    metric = next(values for kind, values in client.requests if kind == "log_batch")["metrics"][0]
    assert int(before_ms) <= metric.timestamp <= after_ms


def test_run_loses_nothing_while_the_store_is_away(writers: list[RunWriter], caplog: pytest.LogCaptureFixture) -> None:
    client = FakeClient(num_absences=3)
    with caplog.at_level(logging.WARNING), _run(client, writers) as run:
        for step in range(10):
            run.log_metrics({"a": float(step)}, step=step)
    metrics = [m for kind, values in client.requests if kind == "log_batch" for m in values["metrics"]]
    assert [metric.value for metric in metrics] == list(range(10))
    assert "is away" in caplog.text
    assert "answers again" in caplog.text


def test_run_raises_once_the_store_has_been_away_too_long(writers: list[RunWriter]) -> None:
    client = FakeClient(num_absences=float("inf"))
    run = _run(client, writers, retry_s=0.2)
    run.log_metrics({"a": 1.0})
    with pytest.raises(TrackingError, match=r"within 0.2 s .* raise tracking.retry_s"):
        run.flush()


def test_refused_write_surfaces_and_the_run_ends_failed(writers: list[RunWriter]) -> None:
    client = FakeClient(refusal="log_batch")
    with pytest.raises(TrackingError, match="refused a write"), _run(client, writers) as run:
        run.log_metrics({"a@b": 1.0})
    assert client.requests[-1][0] == "set_terminated"
    assert client.requests[-1][1]["status"] == "FAILED"


def test_run_that_cannot_be_made_says_so(writers: list[RunWriter]) -> None:
    run = _run(FakeClient(refusal="create_run"), writers)
    run.log_metrics({"a": 1.0})
    with pytest.raises(TrackingError, match="refused a write"):
        run.flush()
    with pytest.raises(TrackingError, match="not made"):
        _ = run.run_id


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ValueError("bad"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_run_ends_with_the_status_of_its_body(
    writers: list[RunWriter], error: BaseException | None, status: str
) -> None:
    client = FakeClient()
    run = _run(client, writers)
    try:
        with run:
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert client.requests[-1] == ("set_terminated", client.requests[-1][1])
    assert client.requests[-1][1]["status"] == status


def test_failed_run_keeps_cause_and_traceback(writers: list[RunWriter]) -> None:
    client = FakeClient()
    with pytest.raises(ZeroDivisionError), _run(client, writers):
        _ = 1 // 0
    texts = [values for kind, values in client.requests if kind == "log_text"]
    assert texts[0]["path"] == "failure/traceback.txt"
    assert "_ = 1 // 0" in texts[0]["text"]
    tags = {t.key: t.value for kind, values in client.requests if kind == "log_batch" for t in values["tags"]}
    assert tags["failure.cause"].startswith("ZeroDivisionError: ")


def test_sigterm_ends_the_run_as_killed(writers: list[RunWriter]) -> None:
    client = FakeClient()
    writer = RunWriter(client, store="fake", retry_s=5)  # type: ignore[arg-type]
    writers.append(writer)
    outbox = Outbox(creation=Creation("7", "r", {}, start_ms=1))
    with pytest.raises(KeyboardInterrupt), Run(outbox, writer, experiment_id="7", handles_sigterm=True):
        signal.raise_signal(signal.SIGTERM)
    assert client.requests[-1][1]["status"] == "KILLED"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_param_with_another_value_is_refused_at_once(writers: list[RunWriter]) -> None:
    run = _run(FakeClient(), writers)
    run.log_params({"a": 1})
    run.log_params({"a": 1})
    with pytest.raises(TrackingError, match="a is '1', got '2'"):
        run.log_params({"a": 2})
    run.finish()


def test_resumed_run_tags_a_param_that_changed(writers: list[RunWriter]) -> None:
    client = FakeClient()
    config = ExperimentConfig()
    run = _run(client, writers, known={"search.num_trials": "20"})
    run.log_config(with_values(config, {"search.num_trials": 30}), is_trial=True)
    run.finish()
    batch = next(values for kind, values in client.requests if kind == "log_batch")
    assert {t.key: t.value for t in batch["tags"]} == {"resumed.search.num_trials": "30"}
    assert "search.num_trials" not in {param.key for param in batch["params"]}


def test_search_space_is_a_json_param(writers: list[RunWriter]) -> None:
    client = FakeClient()
    with _run(client, writers) as run:
        run.log_config(ExperimentConfig(), is_trial=True)
    params = {p.key: p.value for p in client.requests[1][1]["params"]}
    assert json.loads(params["search.space"])["train.lr"]["log"] is True


def test_logging_to_an_ended_run_is_an_error(writers: list[RunWriter]) -> None:
    run = _run(FakeClient(), writers)
    run.finish()
    run.finish()
    with pytest.raises(TrackingError, match="has ended"):
        run.log_metrics({"a": 1.0})


def test_writer_thread_ends_by_itself(writers: list[RunWriter]) -> None:
    with _run(FakeClient(), writers) as run:
        run.log_metrics({"a": 1.0})
    writers[0].close()
    assert not [thread for thread in threading.enumerate() if thread.name == "dogbreed-run-writer"]


def test_transient_errors_are_told_from_refusals() -> None:
    lost = MlflowException("API request failed")
    lost.__context__ = NoConnection("reset")
    assert is_transient(lost)
    assert is_transient(NoConnection("reset"))
    assert not is_transient(MlflowException("Invalid metric name", error_code=INVALID_PARAMETER_VALUE))
    assert not is_transient(ValueError("no"))


def test_this_process_is_not_gone_and_a_reused_pid_is() -> None:
    tags = process_tags()
    assert not is_gone(tags)
    assert is_gone({**tags, PROCESS_START_TAG: "1.0"})
    assert is_gone({**tags, PID_TAG: str(2**22 + 1)})
    assert not is_gone({**tags, HOST_TAG: "elsewhere", PID_TAG: "1"})
    assert not is_gone({HOST_TAG: tags[HOST_TAG]})


def test_store_is_the_projects_database_unless_told_otherwise(tmp_path: Path) -> None:
    store = resolve_store(None, tmp_path)
    assert store.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert store.artifact_root == tmp_path / "mlruns"
    relative = resolve_store("sqlite:///runs/a.db", tmp_path)
    assert relative.uri == f"sqlite:///{tmp_path}/runs/a.db"
    assert relative.artifact_root == tmp_path / "runs" / "mlruns"
    assert resolve_store("http://127.0.0.1:1", tmp_path).artifact_root is None


def test_store_is_shown_without_its_password() -> None:
    assert without_password("postgresql://me:secret@db/mlflow") == "postgresql://db/mlflow"
    assert without_password("http://127.0.0.1:5000") == "http://127.0.0.1:5000"


def test_command_line_is_rendered_as_typed() -> None:
    assert render_command(["/x/bin/dogbreed", "tune", "--data.path", "my dogs"]) == (
        "dogbreed tune --data.path 'my dogs'"
    )
    assert render_command(["/x/dogbreed_ml/__main__.py", "train"]) == "python -m dogbreed_ml train"


def test_fake_client_answers_like_the_real_one() -> None:
    for name in ("create_run", "search_runs", "log_batch", "log_text", "set_terminated"):
        assert callable(getattr(MlflowClient, name))


def test_tracking_config_is_patient_for_minutes() -> None:
    assert TrackingConfig().retry_s >= 60
