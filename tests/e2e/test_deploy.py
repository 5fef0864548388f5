"""`dogbreed deploy`, `endpoints` and `delete` as typed, on a registered tiny model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from serving import Client, as_row, draw_photograph, is_same_row, save_tiny_checkpoint

from dogbreed_ml.config import TrackingConfig
from dogbreed_ml.pyfunc import log_model
from dogbreed_ml.registry import register_challenger
from dogbreed_ml.serve import Predictor
from dogbreed_ml.tracking import Tracker

ROOT = Path(__file__).parents[2]
MODEL = "dogs-resnet50"
NAMED = ("--name", "dogs", "--deploy.backend", "torch-fp32")
REX = draw_photograph(1)


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "checkpoint.pt")


@pytest.fixture(scope="module")
def project_dir(tmp_path_factory: pytest.TempPathFactory, checkpoint_path: Path, empty_store: Path) -> Path:
    """A project with one registered version, the challenger, which nobody has measured."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(empty_store, folder / "mlflow.db")
    with Tracker.open(project_dir=folder, config=TrackingConfig()) as tracker:
        with tracker.start_run("dogs") as run:
            run.flush()
            uri = log_model(run.run_id, checkpoint_path, tracking_uri=tracker.tracking_uri)
        register_challenger(tracker, MODEL, model_uri=uri, run_id=run.run_id)
    return folder


def dogbreed(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dogbreed_ml", *argv]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False, timeout=240)


def environment() -> dict[str, str]:
    # No AWS is configured: what is listed and deleted is what runs here.
    unset = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    return {name: value for name, value in os.environ.items() if name not in unset} | {"PYTHONPATH": str(ROOT)}


def answered(*argv: str, cwd: Path) -> Any:
    done = dogbreed(*argv, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def version_tags(project_dir: Path) -> dict[str, str]:
    return dict(MlflowClient(f"sqlite:///{project_dir}/mlflow.db").get_model_version(MODEL, "1").tags)


def wait_for(condition: Callable[[], Any], *, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def deployed(project_dir: Path) -> Iterator[dict[str, Any]]:
    """A detached server."""
    reason = ("--unmeasured", "--reason", "a look around")
    told = answered("deploy", *NAMED, "--version", "challenger", "--port", "0", "--detach", *reason, cwd=project_dir)
    yield told
    if psutil.pid_exists(told["pid"]):
        os.kill(told["pid"], signal.SIGKILL)


def test_version_without_a_verdict_is_refused_by_status_3(project_dir: Path) -> None:
    done = dogbreed("deploy", *NAMED, "--version", "1", "--port", "0", cwd=project_dir)
    assert done.returncode == 3
    assert "version 1 must be measured before it is served" in done.stderr
    assert "dogbreed promote --version 1" in done.stderr
    assert not list((project_dir / ".dogbreed").glob("endpoints/*"))


def test_version_that_does_not_exist_is_an_error(project_dir: Path) -> None:
    done = dogbreed("deploy", *NAMED, "--version", "7", cwd=project_dir)
    assert done.returncode == 1
    assert "7" in done.stderr


def test_detached_server_outlives_its_command_and_answers(deployed: dict[str, Any], checkpoint_path: Path) -> None:
    assert deployed["is_running"]
    with Client(deployed["port"]) as client:
        reply = client.post(REX)
    (row,) = reply.json()["predictions"]
    wanted = as_row(Predictor.load(checkpoint_path, backend="torch-fp32").predict([REX])[0])
    assert is_same_row(row, wanted)


def test_version_says_who_serves_it_with_what_and_why_unmeasured(deployed: dict[str, Any], project_dir: Path) -> None:
    tags = version_tags(project_dir)
    assert tags["serving.backend"] == "torch-fp32"
    assert tags["serving.endpoint"] == deployed["name"]
    assert tags["serving.unmeasured_reason"] == "a look around"
    assert tags["serving.since"]
    assert tags["serving.by"]


def test_endpoints_shows_what_runs(deployed: dict[str, Any], project_dir: Path) -> None:
    (endpoint,) = answered("endpoints", cwd=project_dir)
    assert endpoint["name"] == f"{MODEL}-{deployed['port']}"
    assert (endpoint["health"], endpoint["model"], endpoint["version"]) == ("healthy", MODEL, 1)
    assert (endpoint["port"], endpoint["backend"]) == (deployed["port"], "torch-fp32")
    table = dogbreed("endpoints", cwd=project_dir).stdout
    assert deployed["url"] in table
    assert "healthy" in table


def test_predict_asks_an_endpoint(deployed: dict[str, Any], checkpoint_path: Path, tmp_path: Path) -> None:
    (tmp_path / "rex.jpg").write_bytes(REX)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    told = answered("predict", "rex.jpg", "broken.jpg", "--endpoint", deployed["url"], cwd=tmp_path)["predictions"]
    (expected,) = Predictor.load(checkpoint_path, backend="torch-fp32").predict([REX])
    assert (told[0]["image"], told[0]["breed"]) == ("rex.jpg", expected.breed)
    assert told[0]["probability"] == pytest.approx(expected.probability, abs=1e-5)
    assert [each["breed"] for each in told[0]["top5"]] == [breed for breed, _ in expected.top5]
    assert "not an image" in told[1]["error"]
    away = dogbreed("predict", "rex.jpg", "--endpoint", "http://127.0.0.1:9", cwd=tmp_path)
    assert away.returncode == 1
    assert "http://127.0.0.1:9 does not answer" in away.stderr


def test_second_server_on_the_same_port_is_refused(deployed: dict[str, Any], project_dir: Path) -> None:
    argv = ("--version", "1", "--port", str(deployed["port"]), "--unmeasured", "--reason", "again")
    done = dogbreed("deploy", *NAMED, *argv, cwd=project_dir)
    assert done.returncode == 1
    assert "give another --port" in done.stderr
    assert len(answered("endpoints", cwd=project_dir)) == 1


def test_deleted_endpoint_is_gone_with_its_files(deployed: dict[str, Any], project_dir: Path) -> None:
    wrong = dogbreed("delete", "rex", cwd=project_dir)
    assert wrong.returncode == 1
    assert deployed["name"] in wrong.stderr
    told = answered("delete", deployed["name"], cwd=project_dir)
    assert told == {"name": deployed["name"], "deleted": True, "had_ended": False}
    assert not psutil.pid_exists(deployed["pid"])
    assert not list((project_dir / ".dogbreed" / "endpoints").iterdir())
    assert answered("endpoints", cwd=project_dir) == []
    assert version_tags(project_dir)["serving.until"]
    events = answered("history", "--name", "dogs", cwd=project_dir)["deployments"]
    assert [(each["action"], each["target"], each["endpoint"]) for each in events] == [
        ("deploy", "local", deployed["name"]), ("delete", "local", deployed["name"]),
    ]  # fmt: skip
    assert events[0]["why"] == "a look around"
    assert dogbreed("delete", "rex", "--target", "sagemaker", cwd=project_dir).returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL], ids=["terminated", "killed"])
def test_server_in_front_ends_with_its_command(project_dir: Path, signal_number: signal.Signals) -> None:
    """Small siblings: TestLife of tests/contract/test_server.py."""
    argv = ["deploy", *NAMED, "--version", "1", "--port", "0", "--unmeasured", "--reason", "in front", "--json"]
    command = subprocess.Popen(
        [sys.executable, "-m", "dogbreed_ml", *argv],
        cwd=project_dir, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    endpoints = project_dir / ".dogbreed" / "endpoints"
    wait_for(lambda: list(endpoints.glob("*.json")))
    (path,) = endpoints.glob("*.json")
    endpoint = json.loads(path.read_text())
    server = psutil.Process(int(endpoint["process"]["dogbreed.pid"]))
    command.send_signal(signal_number)
    out, _ = command.communicate(timeout=60)
    psutil.wait_procs([server], timeout=60)
    assert not server.is_running()
    if signal_number == signal.SIGTERM:
        assert command.returncode == 0
        assert json.loads(out)["is_running"] is False
        assert not list(endpoints.iterdir())
    else:
        assert [each["health"] for each in answered("endpoints", cwd=project_dir)] == ["ended"]
        assert answered("delete", endpoint["name"], cwd=project_dir)["had_ended"] is True
        assert not list(endpoints.iterdir())


@pytest.mark.slow
def test_predictor_server_and_mlflow_give_the_same_top5(
    project_dir: Path, checkpoint_path: Path, tmp_path: Path
) -> None:
    """Small sibling: test_detached_server_outlives_its_command_and_answers; tests/unit/test_pyfunc.py for MLflow's."""
    import base64
    import socket
    import urllib.request

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{MODEL}/1", "--env-manager", "local"]
    # MLflow starts `uvicorn` by its name.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    tracked = environment() | {"MLFLOW_TRACKING_URI": f"sqlite:///{project_dir}/mlflow.db", "PATH": path}
    process = subprocess.Popen(
        [*serve, "--port", str(port), "--workers", "1"],
        cwd=tmp_path, env=tracked, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:

        def is_up() -> bool:
            try:
                with Client(port, timeout_s=2) as client:
                    return client.get("/ping").status == 200
            except OSError:
                return False

        wait_for(is_up)
        images = [draw_photograph(seed) for seed in range(5)]
        body = json.dumps({"inputs": {"image": [base64.b64encode(image).decode() for image in images]}}).encode()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            from_mlflow = json.load(answer)["predictions"]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    argv = ("--version", "1", "--port", "0", "--detach", "--unmeasured", "--reason", "compared")
    told = answered("deploy", *NAMED, *argv, cwd=project_dir)
    try:
        with Client(told["port"]) as client:
            ours = [client.post(image).json()["predictions"][0] for image in images]
    finally:
        answered("delete", told["name"], cwd=project_dir)
    wanted = [as_row(each) for each in Predictor.load(checkpoint_path, backend="torch-fp32").predict(images)]
    for mlflow_row, our_row, row in zip(from_mlflow, ours, wanted, strict=True):
        assert is_same_row(our_row, row)
        # The MLflow model takes the back end that is fastest here.
        assert is_same_row(mlflow_row, row, tolerance=0.02)
