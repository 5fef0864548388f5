"""Real networks in real archives behind endpoints of the local SageMaker, from the registry to the end."""

import json
from pathlib import Path

import pytest
from endpointmodels import wait_for
from hostedversions import CONFIG, REX, account, make_project

from dogbreed_ml.serve import Predictor
from sagemaker_jobs.endpoints import removal, rollback


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_networks_are_deployed_updated_under_load_and_rolled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small sibling: tests/contract/test_endpoint_deployment.py, where a few lines stand for the network."""
    project = make_project(tmp_path)
    project.pass_gate(1, 2)
    with account(tmp_path / "sagemaker") as served:
        for name, value in served.server.client_environment().items():
            monkeypatch.setenv(name, value)
        first = project.deploy(1)
        assert (first.smoke or "").startswith("passed: 8 example images as expected")
        (row,) = json.loads(served.invoke())["predictions"]
        predictor = Predictor.load(tmp_path / "checkpoint-1" / "checkpoint.pt", backend="torch-fp32")
        (expected,) = predictor.predict([REX])
        assert (row["breed"], row["probability"]) == (expected.answer, pytest.approx(expected.probability, abs=1e-4))
        with served.callers(project.version_of, pause_s=0.05) as seen:
            wait_for(lambda: seen["1"], lambda count: count > 3)
            project.deploy(2)
            wait_for(lambda: seen["2"], lambda count: count > 3)
        assert set(seen) == {"1", "2"}
        assert rollback.rollback("dogs", CONFIG, context=project.context).version == 1
        assert project.version_of(served.invoke()) == 1
        removal.delete("dogs", CONFIG, context=project.context, confirm=None, yes=True)
        assert not any(served.names().values())
        assert served.object_keys() == []
