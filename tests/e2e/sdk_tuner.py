"""A search as a user of the SageMaker SDK v3 writes it; prints what it found as JSON. Arguments: the source folder."""

import json
import sys

from sagemaker.core.helper.session_helper import Session
from sagemaker.core.parameter import CategoricalParameter, ContinuousParameter
from sagemaker.core.shapes import HyperParameterTuningJobWarmStartConfig, ParentHyperParameterTuningJob
from sagemaker.train import ModelTrainer
from sagemaker.train.configs import Compute, OutputDataConfig, SourceCode
from sagemaker.train.tuner import HyperparameterTuner

IMAGE = "763104351884.dkr.ecr.us-west-2.amazonaws.com/pytorch-training:2.6-cpu-py312"

session = Session(default_bucket="sdk-tuner")
trainer = ModelTrainer(
    training_image=IMAGE,
    source_code=SourceCode(source_dir=sys.argv[1], entry_script="train.py"),
    compute=Compute(instance_type="ml.m5.xlarge", instance_count=1, volume_size_in_gb=1),
    output_data_config=OutputDataConfig(s3_output_path="s3://sdk-tuner/output"),
    role="arn:aws:iam::123456789012:role/sagemaker",
    sagemaker_session=session,
    hyperparameters={"epochs": 2},
    base_job_name="sdk",
)
settings = {
    "model_trainer": trainer,
    "objective_metric_name": "accuracy",
    "metric_definitions": [{"Name": "accuracy", "Regex": "accuracy=([0-9.]+)"}],
    "hyperparameter_ranges": {
        "lr": ContinuousParameter(0.001, 1.0, scaling_type="Logarithmic"),
        "name": CategoricalParameter(["a", "b"]),
    },
    "strategy": "Bayesian",
    "max_parallel_jobs": 2,
    "random_seed": 3,
}
tuner = HyperparameterTuner(max_jobs=4, **settings)
tuner.tune(job_name="sdk-search", wait=True)
described = tuner.describe()
warm = HyperparameterTuner(
    max_jobs=1,
    warm_start_config=HyperParameterTuningJobWarmStartConfig(
        parent_hyper_parameter_tuning_jobs=[
            ParentHyperParameterTuningJob(hyper_parameter_tuning_job_name="sdk-search")
        ],
        warm_start_type="IdenticalDataAndAlgorithm",
    ),
    **settings,
)
warm.tune(job_name="sdk-warm", wait=False)
print(
    json.dumps(
        {
            "best": tuner.best_training_job(),
            "status": described.hyper_parameter_tuning_job_status,
            "completed": described.training_job_status_counters.completed,
            "rows": tuner.analytics().dataframe().to_dict("records"),
        },
        default=str,
    )
)
