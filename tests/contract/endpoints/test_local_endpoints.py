"""Endpoints of the local SageMaker through plain boto3: real processes behind them, answers and errors as AWS's."""

import importlib.util
import os
import signal
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import psutil
import pytest
from botocore.exceptions import ClientError
from endpointmodels import BUCKET, ECHO, FAST, PYTORCH, ROLE, Client, pack, refused, serving, wait_for

from sagemaker_jobs.local.shapes import check_answer


def test_endpoint_is_created_described_listed_invoked_and_deleted(client: Client) -> None:
    endpoints = client.server.endpoints
    description = client.deploy("whole")
    assert description["EndpointStatus"] == "InService"
    for operation, answer in (
        ("DescribeModel", endpoints.describe_model({"ModelName": "whole"})),
        ("ListModels", endpoints.list_models({})),
        ("DescribeEndpointConfig", endpoints.describe_endpoint_config({"EndpointConfigName": "whole"})),
        ("ListEndpointConfigs", endpoints.list_endpoint_configs({})),
        ("DescribeEndpoint", endpoints.describe_endpoint({"EndpointName": "whole"})),
        ("ListEndpoints", endpoints.list_endpoints({})),
    ):
        check_answer("sagemaker", operation, answer)
    assert [each["VariantName"] for each in description["ProductionVariants"]] == ["whole"]
    assert client.sagemaker.list_endpoints(StatusEquals="InService")["Endpoints"][0]["EndpointName"] == "whole"
    assert client.sagemaker.list_endpoints(StatusEquals="Failed")["Endpoints"] == []
    assert client.invoke("whole") == b"whole"
    pids = client.pids("whole")
    assert all(psutil.pid_exists(pid) for pid in pids)
    client.delete("whole")
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert refused(client.runtime.invoke_endpoint, EndpointName="whole", Body=b"") == (
        "ValidationError",
        "Endpoint whole of account 123456789012 not found.",
    )
    client.sagemaker.delete_endpoint_config(EndpointConfigName="whole")
    client.sagemaker.delete_model(ModelName="whole")
    assert client.sagemaker.list_models(NameContains="whole")["Models"] == []


def test_broken_model_fails_the_endpoint_with_its_last_words(client: Client) -> None:
    description = client.deploy("broken", code="def model_fn(model_dir):\n    raise OSError('no weights here')")
    assert description["EndpointStatus"] == "Failed"
    assert "production variant broken did not pass the ping health check" in description["FailureReason"]
    assert "no weights here" in description["FailureReason"]
    assert client.pids("broken") == []
    assert refused(client.runtime.invoke_endpoint, EndpointName="broken", Body=b"")[0] == "ValidationError"


@pytest.mark.parametrize(
    ("name", "archive", "reason"),
    [
        ("no-tar", b"no tar", "is no tar archive"),
        ("escaping", pack({"../escaped.txt": "x"}), "is refused: '../escaped.txt' would be extracted to"),
        ("missing", None, "cannot be fetched"),
    ],
)
def test_model_data_that_cannot_be_had_fails_the_endpoint(
    client: Client, root_dir: Path, name: str, archive: bytes | None, reason: str
) -> None:
    if archive is not None:
        client.s3.put_object(Bucket=BUCKET, Key=f"{name}.tar.gz", Body=archive)
    container = {"Image": PYTORCH, "ModelDataUrl": f"s3://{BUCKET}/{name}.tar.gz"}
    client.sagemaker.create_model(ModelName=name, PrimaryContainer=container, ExecutionRoleArn=ROLE)
    client.create_config(name, name)
    client.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    description = client.settled(name)
    assert description["EndpointStatus"] == "Failed"
    assert description["FailureReason"].startswith("The model could not be prepared: ")
    assert reason in description["FailureReason"]
    assert not list(root_dir.rglob("escaped.txt"))


def test_model_data_may_be_a_prefix(client: Client) -> None:
    client.s3.put_object(Bucket=BUCKET, Key="unpacked/code/inference.py", Body=ECHO.encode())
    client.s3.put_object(Bucket=BUCKET, Key="unpacked/answer.txt", Body=b"from a prefix")
    s3 = {"S3Uri": f"s3://{BUCKET}/unpacked/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    container = {"Image": PYTORCH, "ModelDataSource": {"S3DataSource": s3}}
    client.sagemaker.create_model(ModelName="unpacked", PrimaryContainer=container, ExecutionRoleArn=ROLE)
    client.create_config("unpacked", "unpacked")
    client.sagemaker.create_endpoint(EndpointName="unpacked", EndpointConfigName="unpacked")
    client.settled("unpacked")
    assert client.invoke("unpacked") == b"from a prefix"


def test_tags_of_models_configs_and_endpoints_are_kept_and_changed(client: Client) -> None:
    sagemaker = client.sagemaker
    tags = [{"Key": "run", "Value": "abc"}, {"Key": "expires", "Value": "2030-01-01T00:00:00Z"}]
    client.s3.put_object(Bucket=BUCKET, Key="tagged/model.tar.gz", Body=pack({"code/inference.py": ECHO}))
    container = {"Image": PYTORCH, "ModelDataUrl": f"s3://{BUCKET}/tagged/model.tar.gz"}
    model = sagemaker.create_model(ModelName="Tagged", PrimaryContainer=container, ExecutionRoleArn=ROLE, Tags=tags)
    variant = {
        "VariantName": "all", "ModelName": "Tagged", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1,
    }  # fmt: skip
    config = sagemaker.create_endpoint_config(EndpointConfigName="Tagged", ProductionVariants=[variant], Tags=tags)
    endpoint = sagemaker.create_endpoint(EndpointName="Tagged", EndpointConfigName="Tagged", Tags=tags)
    arns = [model["ModelArn"], config["EndpointConfigArn"], endpoint["EndpointArn"]]
    for arn in arns:
        assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == tags
        sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "run", "Value": "def"}])
        sagemaker.delete_tags(ResourceArn=arn, TagKeys=["expires"])
    client.settled("Tagged")
    for arn in arns:
        assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "run", "Value": "def"}]
    endpoints = client.server.endpoints
    check_answer("sagemaker", "DescribeModel", endpoints.describe_model({"ModelName": "Tagged"}))
    check_answer(
        "sagemaker", "DescribeEndpointConfig", endpoints.describe_endpoint_config({"EndpointConfigName": "Tagged"})
    )
    check_answer("sagemaker", "DescribeEndpoint", endpoints.describe_endpoint({"EndpointName": "Tagged"}))


def test_bucket_of_models_may_be_encrypted_and_closed_to_the_public(client: Client) -> None:
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms"}, "BucketKeyEnabled": True}
    closed = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True)
    place = {"CreateBucketConfiguration": {"LocationConstraint": "us-west-2"}}
    client.s3.create_bucket(Bucket="closed-models", **place)
    client.s3.put_bucket_encryption(Bucket="closed-models", ServerSideEncryptionConfiguration={"Rules": [rule]})
    client.s3.put_public_access_block(Bucket="closed-models", PublicAccessBlockConfiguration=closed)
    encryption = client.s3.get_bucket_encryption(Bucket="closed-models")["ServerSideEncryptionConfiguration"]
    assert encryption["Rules"] == [rule]
    assert client.s3.get_public_access_block(Bucket="closed-models")["PublicAccessBlockConfiguration"] == closed
    client.s3.delete_bucket(Bucket="closed-models")


def test_requests_are_refused_in_awss_words(client: Client) -> None:
    sagemaker = client.sagemaker
    client.create_model("words")
    client.create_config("words", "words")
    arn = "arn:aws:sagemaker:us-west-2:123456789012"
    invalid = "ValidationException"
    assert refused(sagemaker.describe_model, ModelName="gone") == (
        invalid,
        f'Could not find model "{arn}:model/gone".',
    )
    assert refused(sagemaker.delete_endpoint_config, EndpointConfigName="gone") == (
        invalid,
        f'Could not find endpoint configuration "{arn}:endpoint-config/gone".',
    )
    for call in (sagemaker.describe_endpoint, sagemaker.delete_endpoint):
        assert refused(call, EndpointName="gone") == (invalid, f'Could not find endpoint "{arn}:endpoint/gone".')
    assert refused(sagemaker.create_endpoint, EndpointName="e", EndpointConfigName="gone")[0] == invalid
    container = {"Image": PYTORCH, "ModelDataUrl": f"s3://{BUCKET}/x"}
    assert refused(sagemaker.create_model, ModelName="words", PrimaryContainer=container, ExecutionRoleArn=ROLE) == (
        invalid,
        f'Cannot create already existing model "{arn}:model/words".',
    )
    code, message = refused(sagemaker.create_endpoint, EndpointName="-bad-", EndpointConfigName="words")
    assert code == invalid
    assert message.startswith("1 validation error detected: Value '-bad-' at 'endpointName' failed to satisfy")
    code, message = refused(
        sagemaker.create_model,
        ModelName="other",
        PrimaryContainer={**container, "Image": "1.dkr.ecr.us-west-2.amazonaws.com/xgboost:1"},
        ExecutionRoleArn=ROLE,
    )
    assert (code, "cannot serve image" in message) == (invalid, True)


def test_killed_process_is_started_again(client: Client) -> None:
    client.deploy("killed")
    (pid,) = client.pids("killed")
    os.kill(pid, signal.SIGKILL)
    errors = set()

    def call() -> bytes | None:
        try:
            return client.invoke("killed")
        except ClientError as error:
            errors.add(error.response["Error"]["Code"])
            return None

    # The process may still be dying when the first answer comes.
    wait_for(lambda: client.pids("killed"), lambda pids: pids not in ([pid], [None]))
    assert wait_for(call, bool) == b"killed"
    assert errors <= {"ModelError", "ServiceUnavailable"}
    assert client.sagemaker.describe_endpoint(EndpointName="killed")["EndpointStatus"] == "InService"


def test_endpoint_may_be_deleted_while_it_is_created(client: Client) -> None:
    client.create_model("slow", code="import time\ndef model_fn(model_dir): time.sleep(60)")
    client.create_config("slow", "slow")
    client.sagemaker.create_endpoint(EndpointName="slow", EndpointConfigName="slow")
    assert client.sagemaker.describe_endpoint(EndpointName="slow")["EndpointStatus"] == "Creating"
    code, _ = refused(client.sagemaker.update_endpoint, EndpointName="slow", EndpointConfigName="slow")
    assert code == "ValidationException"
    client.delete("slow")
    assert not [each for each in psutil.Process().children(recursive=True) if "handlers.py" in " ".join(each.cmdline())]


def test_server_that_ends_leaves_no_process_and_a_failed_endpoint(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        client.deploy("orphan")
        (pid,) = client.pids("orphan")
    assert not psutil.pid_exists(pid)
    with serving(tmp_path, hosting=FAST) as client:
        description = client.sagemaker.describe_endpoint(EndpointName="orphan")
        assert description["EndpointStatus"] == "Failed"
        assert "has ended" in description["FailureReason"]
        client.delete("orphan")
        assert client.deploy("orphan-2")["EndpointStatus"] == "InService"


def test_requirements_of_a_model_are_installed_for_it_alone(client: Client, tmp_path: Path) -> None:
    package = tmp_path / "tiny-1.0-py3-none-any.whl"
    _write_wheel(package, "tiny_requirement", "ANSWER = 'installed'\n")
    code = """
import os, sys, tiny_requirement
def model_fn(model_dir): return tiny_requirement.ANSWER
def transform_fn(model, body, content_type, accept): return model, accept
"""
    archive = pack({"code/inference.py": code, "code/requirements.txt": f"{package}\n"})
    client.s3.put_object(Bucket=BUCKET, Key="requires.tar.gz", Body=archive)
    container = {"Image": PYTORCH, "ModelDataUrl": f"s3://{BUCKET}/requires.tar.gz"}
    client.sagemaker.create_model(ModelName="requires", PrimaryContainer=container, ExecutionRoleArn=ROLE)
    client.create_config("requires", "requires")
    client.sagemaker.create_endpoint(EndpointName="requires", EndpointConfigName="requires")
    assert "FailureReason" not in client.settled("requires")
    assert client.invoke("requires") == b"installed"
    assert importlib.util.find_spec("tiny_requirement") is None


def _write_wheel(path: Path, module: str, code: str) -> None:
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{module}.py", code)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{module}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def test_requirements_that_cannot_be_installed_fail_the_endpoint(client: Client) -> None:
    archive = pack({"code/inference.py": ECHO, "code/requirements.txt": "./gone-1.0-py3-none-any.whl\n"})
    client.s3.put_object(Bucket=BUCKET, Key="unmet.tar.gz", Body=archive)
    container = {"Image": PYTORCH, "ModelDataUrl": f"s3://{BUCKET}/unmet.tar.gz"}
    client.sagemaker.create_model(ModelName="unmet", PrimaryContainer=container, ExecutionRoleArn=ROLE)
    client.create_config("unmet", "unmet")
    client.sagemaker.create_endpoint(EndpointName="unmet", EndpointConfigName="unmet")
    description = client.settled("unmet")
    assert description["EndpointStatus"] == "Failed"
    assert "requirements.txt cannot be installed" in description["FailureReason"]
    events = client.logs.filter_log_events(logGroupName="/aws/sagemaker/Endpoints/unmet")["events"]
    assert any("gone-1.0" in event["message"] for event in events)


def test_scaling_policy_is_stored_and_not_acted_on(client: Client) -> None:
    client.deploy("scaled")
    session = boto3.session.Session(
        region_name="us-west-2", aws_access_key_id="testing", aws_secret_access_key="testing"
    )
    scaling = session.client("application-autoscaling", endpoint_url=client.server.url)
    target = {
        "ServiceNamespace": "sagemaker", "ResourceId": "endpoint/scaled/variant/scaled",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }  # fmt: skip
    scaling.register_scalable_target(**target, MinCapacity=2, MaxCapacity=4)
    scaling.put_scaling_policy(
        **target, PolicyName="busy", PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={"TargetValue": 1.0},
    )  # fmt: skip
    found = scaling.describe_scaling_policies(ServiceNamespace="sagemaker", ResourceId=target["ResourceId"])
    scaling.deregister_scalable_target(**target)
    scaling.close()
    assert [policy["PolicyName"] for policy in found["ScalingPolicies"]] == ["busy"]
    assert len(client.pids("scaled")) == 1


def test_endpoint_configs_are_listed_in_pages(client: Client) -> None:
    client.create_model("lists")
    for number in range(3):
        client.create_config(f"lists-{number}", "lists")
    pages = client.sagemaker.get_paginator("list_endpoint_configs").paginate(
        NameContains="lists-", SortBy="Name", SortOrder="Ascending", PaginationConfig={"PageSize": 2}
    )
    names = [[each["EndpointConfigName"] for each in page["EndpointConfigs"]] for page in pages]
    assert names == [["lists-0", "lists-1"], ["lists-2"]]


def test_model_that_ignores_sigterm_and_forks_is_gone_after_deletion(client: Client) -> None:
    code = """
import os, signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def model_fn(model_dir):
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    return f"{os.getpid()} {child.pid}"
def transform_fn(model, body, content_type, accept): return model, "text/plain"
"""
    client.deploy("stubborn", code=code)
    pids = [int(pid) for pid in client.invoke("stubborn").split()]
    assert len(pids) == 2
    assert all(psutil.pid_exists(pid) for pid in pids)
    client.delete("stubborn")
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_one_of_fifty_creations_at_once_gets_the_name(client: Client) -> None:
    client.create_model("contested")
    client.create_config("contested", "contested")
    start = threading.Barrier(50)

    def create() -> str:
        start.wait()
        try:
            client.sagemaker.create_endpoint(EndpointName="contested", EndpointConfigName="contested")
        except ClientError as error:
            return str(error.response["Error"]["Message"])
        return "created"

    with ThreadPoolExecutor(max_workers=50) as pool:
        answers = [future.result() for future in [pool.submit(create) for _ in range(50)]]
    assert answers.count("created") == 1
    assert sum("Cannot create already existing endpoint" in answer for answer in answers) == 49
    client.settled("contested")
    assert len(client.pids("contested")) == 1
