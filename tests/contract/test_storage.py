"""S3 behind jobs, against the local server's: each content once, and what a failure leaves."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from dogbreed_ml.cloudconfig import SagemakerConfig
from dogbreed_ml.errors import CloudError
from sagemaker_jobs.client import Aws
from sagemaker_jobs.local.service import LocalSageMaker
from sagemaker_jobs.storage import Storage, file_digest, split_uri

ACCOUNT = "123456789012"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSageMaker]:
    with LocalSageMaker(tmp_path_factory.mktemp("storage")) as server:
        yield server


@pytest.fixture
def aws(server: LocalSageMaker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    for name, value in server.client_environment().items():
        monkeypatch.setenv(name, value)
    # Less patient than a command: boto3 tries twice, and not eight times with pauses between.
    with Aws.open(SagemakerConfig(), patience_s=1) as aws:
        yield aws
    server.faults.clear()


@pytest.fixture
def storage(aws: Aws, request: pytest.FixtureRequest) -> Storage:
    prefix = request.node.name.replace("_", "-").replace("[", "-").replace("]", "")
    return Storage.open(aws, SagemakerConfig(bucket="kennel-of-tests", prefix=f"ours/{prefix}"))


def write(folder: Path, **contents: str) -> dict[str, Path]:
    """Files by the key that they are to have."""
    files = {}
    for name, text in contents.items():
        path = folder / name
        path.write_text(text)
        files[f"images/{file_digest(path)[:2]}/{file_digest(path)}.txt"] = path
    return files


def test_bucket_is_made_private_and_encrypted_and_found_again(aws: Aws) -> None:
    s3 = aws.client("s3")
    before = s3.list_buckets()["Buckets"]
    named = Storage.named(aws, SagemakerConfig())
    Storage.named(aws, SagemakerConfig(bucket="kennel-that-is-nowhere"))
    assert s3.list_buckets()["Buckets"] == before
    storage = Storage.open(aws, SagemakerConfig())
    again = Storage.open(aws, SagemakerConfig())

    assert named == storage
    assert storage.bucket == again.bucket == f"dogbreed-{ACCOUNT}-us-west-2"
    blocks = s3.get_public_access_block(Bucket=storage.bucket)["PublicAccessBlockConfiguration"]
    assert len(blocks) == 4
    assert all(blocks.values())
    rules = s3.get_bucket_encryption(Bucket=storage.bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"


def test_bucket_that_was_cut_off_in_the_making_is_finished(aws: Aws) -> None:
    s3, config = aws.client("s3"), SagemakerConfig(bucket="kennel-half-made")

    def cut_off(**_: Any) -> None:
        raise KeyboardInterrupt

    s3.meta.events.register("before-call.s3.PutPublicAccessBlock", cut_off)
    with pytest.raises(KeyboardInterrupt):
        Storage.open(aws, config)
    s3.meta.events.unregister("before-call.s3.PutPublicAccessBlock", cut_off)
    storage = Storage.open(aws, config)

    blocks = s3.get_public_access_block(Bucket=storage.bucket)["PublicAccessBlockConfiguration"]
    assert len(blocks) == 4
    assert all(blocks.values())
    assert s3.get_bucket_encryption(Bucket=storage.bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert "Contents" not in s3.list_objects_v2(Bucket=storage.bucket)


def test_bucket_that_somebody_else_made_is_left_as_it_is(aws: Aws) -> None:
    s3 = aws.client("s3")
    place = {"LocationConstraint": "us-west-2"}
    s3.create_bucket(Bucket="kennel-of-the-users-own", CreateBucketConfiguration=place)
    Storage.open(aws, SagemakerConfig(bucket="kennel-of-the-users-own"))
    with pytest.raises(ClientError, match="NoSuchPublicAccessBlock"):
        s3.get_public_access_block(Bucket="kennel-of-the-users-own")


@pytest.mark.parametrize(
    ("region", "partition"), [("us-west-2", "aws"), ("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov")]
)
def test_bucket_is_made_for_tls_alone_in_every_partition(
    region: str, partition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Aws, "account_id", ACCOUNT)
    with (
        Aws.open(SagemakerConfig(region=region), patience_s=1) as aws,
        Stubber(aws.client("s3")) as played,
    ):
        played.add_client_error("head_bucket", "404", http_status_code=404)
        for operation in ("create_bucket", "put_object", "put_public_access_block", "put_bucket_encryption"):
            played.add_response(operation, {})
        bucket_arn = f"arn:{partition}:s3:::kennel"
        statement = {
            "Sid": "DenyWithoutTls",
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:*",
            "Resource": [bucket_arn, f"{bucket_arn}/*"],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        played.add_response("put_bucket_policy", {}, {"Bucket": "kennel", "Policy": policy})
        played.add_response("delete_object", {})
        Storage.open(aws, SagemakerConfig(bucket="kennel"))
        played.assert_no_pending_responses()


def test_each_content_is_uploaded_once(storage: Storage, tmp_path: Path) -> None:
    files = write(tmp_path, rex="a dog", lassie="another dog")
    assert storage.upload_all(files, what="images") == 2
    assert storage.upload_all(files, what="images") == 0

    more = files | write(tmp_path, bello="a third dog")
    assert storage.upload_all(more, what="images") == 1
    assert storage.sizes("images") == {key: path.stat().st_size for key, path in more.items()}


def test_object_of_another_size_is_sent_again(storage: Storage, tmp_path: Path) -> None:
    files = write(tmp_path, rex="a dog")
    (key,) = files
    storage.put(key, b"a d")

    assert storage.upload_all(files, what="images") == 1
    assert storage.fetch(storage.uri(key), tmp_path / "back").read_text() == "a dog"


def test_upload_that_was_cut_off_goes_on_where_it_ended(
    storage: Storage, server: LocalSageMaker, tmp_path: Path
) -> None:
    files = write(tmp_path, **{f"dog{n}": f"dog number {n}" for n in range(12)})
    storage.sizes("images")
    server.faults.expire_token()
    with pytest.raises(CloudError, match="log in again"):
        storage.upload_all(files, what="images")
    server.faults.clear()

    some = dict(list(files.items())[:5])
    storage.upload_all(some, what="images")
    assert storage.upload_all(files, what="images") == 7


@pytest.mark.parametrize("code", ["SlowDown", "InternalError"])
def test_failing_s3_is_tried_again_and_then_told_of(
    code: Any, storage: Storage, server: LocalSageMaker, tmp_path: Path
) -> None:
    files = write(tmp_path, rex="a dog")
    storage.sizes("images")
    server.faults.fail_s3(times=1, code=code)
    assert storage.upload_all(files, what="images") == 1

    server.faults.fail_s3(times=100, code=code)
    with pytest.raises(CloudError, match=f"{code}.*the same command goes on"):
        storage.upload_all(write(tmp_path, bello="a third dog"), what="images")


def test_objects_are_encrypted_with_the_key_that_is_configured(aws: Aws, tmp_path: Path) -> None:
    key_id = "1234abcd-12ab-34cd-56ef-1234567890ab"
    config = SagemakerConfig(bucket="kennel-with-a-key", kms_key_id=key_id)
    storage = Storage.open(aws, config)
    storage.put("code/a", b"a")
    path = tmp_path / "b"
    path.write_text("b")
    storage.upload(path, "code/b")

    for key in ("code/a", "code/b"):
        head = aws.client("s3").head_object(Bucket=storage.bucket, Key=f"{storage.prefix}/{key}")
        assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", key_id)


def test_fetch_all_brings_what_lies_below_and_nothing_leaves_the_folder(storage: Storage, tmp_path: Path) -> None:
    storage.put("out/a.txt", b"a")
    storage.put("out/deeper/b.txt", b"b")
    storage.put("outer/c.txt", b"c")
    bucket, key = split_uri(storage.uri("out"))
    storage.aws.client("s3").put_object(Bucket=bucket, Key=f"{key}/../../escaped.txt", Body=b"d")

    folder = tmp_path / "fetched" / "here"
    fetched = storage.fetch_all(storage.uri("out"), folder)

    assert sorted(path.relative_to(folder).as_posix() for path in fetched) == ["a.txt", "deeper/b.txt"]
    assert not list(tmp_path.rglob("escaped.txt"))
    assert storage.fetch_all(storage.uri("nothing"), tmp_path / "nothing") == []


def test_absent_object_is_told_of_and_leaves_no_file(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(CloudError, match="fetch s3://kennel-of-tests"):
        storage.fetch(storage.uri("no/such.txt"), tmp_path / "such.txt")
    assert list(tmp_path.iterdir()) == []


def test_delete_all_takes_what_is_gone_for_deleted(storage: Storage) -> None:
    uri = storage.put("code/a", b"a")
    storage.delete_all([uri, uri, storage.uri("code/never")])
    assert storage.sizes("code") == {}


def test_bucket_of_another_account_is_refused(aws: Aws) -> None:
    # The local S3 has one account: AWS's answer is played.
    asked = {"Bucket": "kennel-of-somebody", "ExpectedBucketOwner": ACCOUNT}
    with Stubber(aws.client("s3")) as played:
        played.add_client_error("head_bucket", "403", http_status_code=403, expected_params=asked)
        with pytest.raises(CloudError, match="kennel-of-somebody must be this account's"):
            Storage.open(aws, SagemakerConfig(bucket="kennel-of-somebody"))
