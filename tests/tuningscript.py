"""A training script without torch, as SageMaker's script mode wants it, and a request that tunes it."""

import io
import tarfile
from typing import Any

from tuningrequest import request

BUCKET = "tuning"

SCRIPT = """
import argparse, math, os, sys, time

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--shift", type=float, default=0.0)
parser.add_argument("--name", default="")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--pause", type=float, default=0.0)
parser.add_argument("--fail-above", dest="fail_above", type=float, default=math.inf)
parser.add_argument("--quiet", type=int, default=0)
given = parser.parse_args()
best = 1 / (1 + (math.log10(given.lr) + 2) ** 2) + given.shift
for epoch in range(given.epochs):
    if not given.quiet:
        print(f"epoch={epoch} accuracy={best * (epoch + 1) / given.epochs:.6f}", flush=True)
    time.sleep(given.pause if given.shift >= 0 else given.pause + 1)
if given.lr > given.fail_above:
    sys.exit(f"lr {given.lr} is too high")
with open(os.path.join(os.environ["SM_MODEL_DIR"], "lr.txt"), "w") as file:
    file.write(repr(given.lr))
"""
"""Its best accuracy, 1.0, is at --lr 0.01; with a negative --shift it is worse, and slow enough to be stopped."""


def upload_script(s3: Any, *, script: str = SCRIPT) -> dict[str, str]:
    """The static hyperparameters that make script mode run it; makes the bucket where it is not there."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        member = tarfile.TarInfo("train.py")
        member.size = len(script.encode())
        tar.addfile(member, io.BytesIO(script.encode()))
    # moto keeps its buckets for the life of the process.
    if BUCKET not in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]:
        s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    s3.put_object(Bucket=BUCKET, Key="code/sourcedir.tar.gz", Body=archive.getvalue())
    return {"sagemaker_program": "train.py", "sagemaker_submit_directory": f"s3://{BUCKET}/code/sourcedir.tar.gz"}


def tuning_request(
    name: str,
    program: dict[str, str],
    *,
    jobs: int = 4,
    parallel: int = 2,
    static: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
    definition: dict[str, Any] | None = None,
) -> Any:
    """CreateHyperParameterTuningJob's request for the uploaded script."""
    limits = {"ResourceLimits": {"MaxNumberOfTrainingJobs": jobs, "MaxParallelTrainingJobs": parallel}}
    defined = {
        "StaticHyperParameters": {**program, **(static or {})},
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/output"},
    }
    made = request(limits | {"RandomSeed": 3} | (config or {}), defined | (definition or {}))
    return {**made, "HyperParameterTuningJobName": name}
