"""Model, EndpointConfig and Endpoint of the SageMaker SDK v3, unchanged, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from endpointmodels import BUCKET, PYTORCH, ROLE, serving


@pytest.mark.slow
def test_sdk_deploys_invokes_and_deletes_an_endpoint(tmp_path: Path) -> None:
    with serving(tmp_path / "sagemaker", path=os.environ["PATH"]) as client:
        client.create_model("sdk", answer="from the SDK")
        finished = subprocess.run(
            [
                sys.executable, str(Path(__file__).with_name("sdk_endpoint.py")),
                PYTORCH, f"s3://{BUCKET}/sdk/model.tar.gz", ROLE,
            ],
            env={**os.environ, **client.server.client_environment(), "SAGEMAKER_VALIDATE_ROLE": "false"},
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr[-4000:]
        assert finished.stdout.splitlines()[-1] == "from the SDK"
        assert client.sagemaker.list_endpoints()["Endpoints"] == []
