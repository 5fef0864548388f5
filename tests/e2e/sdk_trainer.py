"""A training job as a user of the SageMaker SDK v3 writes it. Arguments: the source folder, a folder of data."""

import sys

from sagemaker.core.helper.session_helper import Session
from sagemaker.train import ModelTrainer
from sagemaker.train.configs import Compute, InputData, OutputDataConfig, SourceCode

IMAGE = "763104351884.dkr.ecr.us-west-2.amazonaws.com/pytorch-training:2.6-cpu-py312"

trainer = ModelTrainer(
    training_image=IMAGE,
    source_code=SourceCode(source_dir=sys.argv[1], entry_script="train.py", requirements="needs/requirements.txt"),
    compute=Compute(instance_type="ml.m5.xlarge", instance_count=1, volume_size_in_gb=1),
    output_data_config=OutputDataConfig(s3_output_path="s3://sdk-trainer/output"),
    role="arn:aws:iam::123456789012:role/sagemaker",
    sagemaker_session=Session(default_bucket="sdk-trainer"),
    hyperparameters={"epochs": 2, "name": "shaggy dogs"},
    base_job_name="sdk",
)
trainer.train(input_data_config=[InputData(channel_name="train", data_source=sys.argv[2])], wait=True, logs=True)
print(trainer._latest_training_job.training_job_name)
