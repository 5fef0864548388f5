"""sagemaker_jobs/inference.py behind an endpoint of the local SageMaker, as SageMaker would run it."""

import json
from pathlib import Path

import pytest
from endpointmodels import BUCKET, serving
from serving import as_row, draw_photograph, is_same_row, save_tiny_checkpoint

from dogbreed_ml.serve import Predictor
from sagemaker_jobs import inference
from sagemaker_jobs.local.archives import pack

REX = draw_photograph(1)


def test_endpoint_answers_as_the_predictor_and_refuses_in_one_sentence(tmp_path: Path) -> None:
    model_dir = tmp_path / "model"
    checkpoint_path = save_tiny_checkpoint(model_dir / inference.CHECKPOINT_FILE)
    (model_dir / "code").mkdir()
    (model_dir / "code" / "inference.py").write_bytes(Path(inference.__file__).read_bytes())
    pack([model_dir], tmp_path / "model.tar.gz")
    with serving(tmp_path / "server") as client:
        client.s3.upload_file(str(tmp_path / "model.tar.gz"), BUCKET, "dogs/own.tar.gz")
        client.create_model("dogs", ModelDataUrl=f"s3://{BUCKET}/dogs/own.tar.gz")
        client.create_config("dogs", "dogs")
        client.sagemaker.create_endpoint(EndpointName="dogs", EndpointConfigName="dogs")
        assert client.settled("dogs")["EndpointStatus"] == "InService"
        (row,) = json.loads(client.invoke("dogs", REX, ContentType="image/jpeg"))["predictions"]
        (expected,) = Predictor.load(checkpoint_path, backend="torch-fp32").predict([REX])
        assert is_same_row(row, as_row(expected), tolerance=0.05)
        with pytest.raises(client.runtime.exceptions.ModelError) as caught:
            client.invoke("dogs", b"no image", ContentType="image/jpeg")
        assert caught.value.response["OriginalStatusCode"] == 422
        assert "not an image" in caught.value.response["OriginalMessage"]
