"""Which back end a deployment uses: what the gate measured, unless another one is asked for."""

import logging

import pytest

from dogbreed_ml.pipeline.deploy import MEASURED_BACKEND_TAG, _measured_config
from dogbreed_ml.policies import DeployConfig
from dogbreed_ml.registry import ModelVersion


def version(**tags: str) -> ModelVersion:
    return ModelVersion("dogs-resnet50", 3, (), None, dict(tags))


def test_auto_is_what_the_gate_measured() -> None:
    measured = version(**{MEASURED_BACKEND_TAG: "openvino-bf16"})
    assert _measured_config(measured, DeployConfig()).backend == "openvino-bf16"
    assert _measured_config(version(), DeployConfig()).backend == "auto"


def test_another_back_end_than_measured_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    measured = version(**{MEASURED_BACKEND_TAG: "openvino-bf16"})
    with caplog.at_level(logging.WARNING):
        assert _measured_config(measured, DeployConfig(backend="torch-fp32")).backend == "torch-fp32"
    assert "measured version 3 with openvino-bf16, not with torch-fp32" in caplog.text
