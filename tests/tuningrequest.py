"""A CreateHyperParameterTuningJob request that is right, for tests to change."""

from typing import Any

PROGRAM = {"sagemaker_program": "train.py", "sagemaker_submit_directory": "s3://bucket/code/sourcedir.tar.gz"}


def request(config: dict[str, Any] | None = None, definition: dict[str, Any] | None = None, **more: Any) -> Any:
    """`config` replaces members of HyperParameterTuningJobConfig, `definition` of TrainingJobDefinition; None drops."""
    default_config = {
        "Strategy": "Random",
        "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "accuracy"},
        "ResourceLimits": {"MaxNumberOfTrainingJobs": 6, "MaxParallelTrainingJobs": 2},
        "ParameterRanges": {"ContinuousParameterRanges": [{"Name": "lr", "MinValue": "0.001", "MaxValue": "1"}]},
    }
    default_definition = {
        "AlgorithmSpecification": {
            "TrainingImage": "123456789012.dkr.ecr.us-west-2.amazonaws.com/image:1",
            "TrainingInputMode": "File",
            "MetricDefinitions": [{"Name": "accuracy", "Regex": "accuracy=(.*)"}],
        },
        "RoleArn": "arn:aws:iam::123456789012:role/sagemaker",
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/output"},
        "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
    }
    static = (definition or {}).get("StaticHyperParameters", {"epochs": "9"})
    return {
        "HyperParameterTuningJobName": "tuning",
        "HyperParameterTuningJobConfig": _without_none(default_config | (config or {})),
        "TrainingJobDefinition": _without_none(
            default_definition | (definition or {}) | {"StaticHyperParameters": PROGRAM | static}
        ),
        **more,
    }


def _without_none(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}
