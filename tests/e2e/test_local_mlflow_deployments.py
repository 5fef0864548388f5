"""MLflow's own SageMaker deployment client, unchanged, against the local SageMaker."""

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
import pytest
import torch
from endpointmodels import BUCKET, ROLE, Client, serving, wait_for
from mlflow.deployments import get_deploy_client
from PIL import Image

from dogbreed_ml.checkpoint import Checkpoint, save_checkpoint
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.model import build_resnet50
from dogbreed_ml.pyfunc import save_model
from dogbreed_ml.serve import Predictor
from dogbreed_ml.transforms import Preprocessing

IMAGE = "123456789012.dkr.ecr.us-west-2.amazonaws.com/mlflow-pyfunc:3.17.2"
DOUBLING = """
import mlflow
import pandas
class Doubling(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: pandas.DataFrame, params=None):
        return model_input["x"] * 2
mlflow.models.set_model(Doubling())
"""
CLASSES = ("Affenpinscher", "Beagle", "Chow")


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    with serving(tmp_path / "sagemaker", path=os.environ["PATH"]) as client:
        for name, value in client.server.client_environment().items():
            monkeypatch.setenv(name, value)
        yield client


def _config(**changes: Any) -> dict[str, Any]:
    return {"image_url": IMAGE, "bucket": BUCKET, "execution_role_arn": ROLE, **changes}


def test_mlflow_client_deploys_predicts_and_deletes(client: Client, tmp_path: Path) -> None:
    (tmp_path / "doubling.py").write_text(DOUBLING)
    mlflow.pyfunc.save_model(str(tmp_path / "model"), python_model=str(tmp_path / "doubling.py"), pip_requirements=[])
    deployments = get_deploy_client("sagemaker:/us-west-2")
    deployments.create_deployment(
        "doubling", str(tmp_path / "model"), config=_config(synchronous=False, archive=True, variant_name="first")
    )
    assert client.settled("doubling")["EndpointStatus"] == "InService"
    assert deployments.get_deployment("doubling")["EndpointStatus"] == "InService"
    assert [each["EndpointName"] for each in deployments.list_deployments()] == ["doubling"]
    answer = deployments.predict("doubling", pd.DataFrame({"x": [1.5, 4.0]}))
    assert answer.get_predictions()["x"].tolist() == [3.0, 8.0]
    with pytest.raises(client.runtime.exceptions.ModelError, match=r"Received client error \(415\)"):
        client.invoke("doubling", b"\xff", ContentType="image/jpeg")
    deployments.delete_deployment("doubling", config={"synchronous": False, "archive": True})
    wait_for(deployments.list_deployments, lambda found: found == [])


@pytest.mark.slow
def test_mlflow_client_replaces_this_projects_model_and_cleans_up(client: Client, tmp_path: Path) -> None:
    photograph = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(photograph, "JPEG")
    rows = pd.DataFrame({"image": [base64.b64encode(photograph.getvalue()).decode()]})
    predictors = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state_dict = dict(build_resnet50(len(CLASSES), resnet_version="1").state_dict())
        checkpoint = Checkpoint(state_dict, CLASSES, Preprocessing(image_size=64), "1", ExperimentConfig())
        path = save_checkpoint(checkpoint, tmp_path / f"checkpoint-{seed}.pt")
        save_model(path, tmp_path / f"model-{seed}")
        predictors.append(Predictor.load(path, backend="torch-fp32"))
    expected = [predictor.predict([photograph.getvalue()])[0] for predictor in predictors]
    deployments = get_deploy_client("sagemaker:/us-west-2")
    deployments.create_deployment("breeds", str(tmp_path / "model-0"), config=_config())
    first = deployments.predict("breeds", rows).get_predictions()
    deployments.update_deployment("breeds", str(tmp_path / "model-1"), config=_config(mode="replace"))
    second = deployments.predict("breeds", rows).get_predictions()
    for answer, prediction in zip((first, second), expected, strict=True):
        assert answer["breed"].tolist() == [prediction.breed]
        assert answer["probability"].tolist() == pytest.approx([prediction.probability], abs=1e-4)
    # The model before went with its endpoint config, as MLflow asks for where archive is false.
    assert len(client.sagemaker.list_models()["Models"]) == 1
    deployments.delete_deployment("breeds")
    assert client.sagemaker.list_models()["Models"] == []
    assert client.sagemaker.list_endpoint_configs()["EndpointConfigs"] == []
