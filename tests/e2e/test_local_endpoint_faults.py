"""What becomes of an endpoint's processes when the server is killed or interrupted."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from endpointmodels import serving, wait_for

TESTS_DIR = Path(__file__).parents[1]


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_server_that_is_killed_or_interrupted_leaves_no_endpoint_process(tmp_path: Path, how: signal.Signals) -> None:
    root_dir = tmp_path / "sagemaker"
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("endpoint_process.py")), str(root_dir)]
    paths = os.pathsep.join([str(TESTS_DIR.parent), str(TESTS_DIR)])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONPATH": paths}
    ) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        keepers = [each.pid for each in psutil.Process(server.pid).children(recursive=True)]
        assert pid in keepers
        server.send_signal(how)
    wait_for(lambda: [each for each in keepers if psutil.pid_exists(each)], lambda left: left == [])
    with serving(root_dir) as client:
        description = client.sagemaker.describe_endpoint(EndpointName="served")
        assert description["EndpointStatus"] == "Failed"
        assert description["FailureReason"] == "The local SageMaker that ran this endpoint has ended."
        client.delete("served")
