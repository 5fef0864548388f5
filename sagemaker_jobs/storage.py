"""S3 behind jobs and endpoints: one bucket, and each content uploaded once.

An object's key holds the digest of its content, so an upload that was cut off goes on where it ended, and what another
data set or job brought already is not sent again.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError

from dogbreed_ml.cloudconfig import SagemakerConfig
from dogbreed_ml.errors import CloudError
from dogbreed_ml.progress import NO_PROGRESS, Progress
from sagemaker_jobs.client import Aws, cloud_error, error_code, translated

logger = logging.getLogger(__name__)

_UNFINISHED_KEY = ".bucket-unfinished"
"""Below the prefix while a bucket is made: whoever finds it there finishes the bucket."""
_NUM_UPLOADS = 8
_IN_ONE_PART = TransferConfig(use_threads=False)


@dataclass(frozen=True)
class Storage:
    """A bucket and a prefix in it; keys are relative to the prefix."""

    aws: Aws
    bucket: str
    prefix: str
    kms_key_id: str | None = None

    @classmethod
    def open(cls, aws: Aws, config: SagemakerConfig) -> "Storage":
        """The config's bucket; made, private and encrypted, where there is none. Raises CloudError."""
        storage = cls.named(aws, config)
        storage.ensure_bucket()
        return storage

    @classmethod
    def named(cls, aws: Aws, config: SagemakerConfig) -> "Storage":
        """The config's bucket, whether or not there is one: where a request is checked before anything is made."""
        bucket = config.bucket or f"dogbreed-{aws.account_id}-{aws.region}"
        return cls(aws, bucket, config.prefix, config.kms_key_id)

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}/{key}"

    def ensure_bucket(self) -> None:
        """Makes the bucket where it is not: no public access, encrypted, TLS only; finishes one that was cut off."""
        if self._is_there():
            if self._is_unfinished():
                self._finish()
            return
        s3 = self.aws.client("s3")
        with translated(f"make the bucket {self.bucket}"):
            place: dict[str, Any] = {"CreateBucketConfiguration": {"LocationConstraint": self.aws.region}}
            s3.create_bucket(Bucket=self.bucket, **({} if self.aws.region == "us-east-1" else place))
            s3.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{_UNFINISHED_KEY}")
        self._finish()

    def _is_there(self) -> bool:
        try:
            self.aws.client("s3").head_bucket(Bucket=self.bucket, ExpectedBucketOwner=self.aws.account_id)
            return True
        except (BotoCoreError, ClientError) as error:
            if error_code(error) == "403":
                raise CloudError(
                    f"The bucket {self.bucket} must be this account's and readable; it is another's, or not allowed. "
                    f"Set sagemaker.bucket to one that is yours."
                ) from error
            if error_code(error) not in ("404", "NoSuchBucket"):
                raise cloud_error(error, f"look at the bucket {self.bucket}") from error
        return False

    def _is_unfinished(self) -> bool:
        try:
            self.aws.client("s3").head_object(Bucket=self.bucket, Key=f"{self.prefix}/{_UNFINISHED_KEY}")
        except (BotoCoreError, ClientError) as error:
            # Whoever may not look did not make it.
            if error_code(error) in ("403", "404", "NoSuchKey"):
                return False
            raise cloud_error(error, f"look at the bucket {self.bucket}") from error
        return True

    def _finish(self) -> None:
        """May be repeated; the mark goes last."""
        s3 = self.aws.client("s3")
        with translated(f"make the bucket {self.bucket}"):
            blocks = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
            s3.put_public_access_block(Bucket=self.bucket, PublicAccessBlockConfiguration=dict.fromkeys(blocks, True))
            s3.put_bucket_encryption(
                Bucket=self.bucket, ServerSideEncryptionConfiguration={"Rules": [self._encryption_rule()]}
            )
            # The local SageMaker speaks HTTP, and moto takes the statement without its condition.
            if not self.aws.is_local:
                s3.put_bucket_policy(Bucket=self.bucket, Policy=json.dumps(self._tls_only()))
            s3.delete_object(Bucket=self.bucket, Key=f"{self.prefix}/{_UNFINISHED_KEY}")
        logger.info("made the bucket %s: private, encrypted", self.bucket)

    def upload_all(self, files: Mapping[str, Path], *, what: str, progress: Progress = NO_PROGRESS) -> int:
        """Uploads each file to its key unless an object of its size is there; returns how many were sent.

        Keys must hold their content's digest. Raises CloudError; what was sent until then stays and counts next time.
        """
        # Not by their folders: images lie in 256 of them, and a page of the list holds 1000 keys.
        prefixes = sorted({key.partition("/")[0] for key in files})
        present = {key: size for prefix in prefixes for key, size in self.sizes(prefix).items()}
        missing = {key: path for key, path in files.items() if present.get(key) != path.stat().st_size}
        if not missing:
            return 0
        with (
            progress.track(f"uploading {what}", len(missing), "files") as advance,
            ThreadPoolExecutor(_NUM_UPLOADS, thread_name_prefix="upload") as pool,
        ):
            sent = [pool.submit(self._send_file, path, key) for key, path in missing.items()]
            try:
                for each in sent:
                    each.result()
                    advance(1)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return len(missing)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes by key of all objects directly or deeper below `prefix`."""
        pages = self.aws.client("s3").get_paginator("list_objects_v2")
        below = f"{self.prefix}/{prefix}/"
        with translated(f"list {self.uri(prefix)}"):
            found = pages.paginate(Bucket=self.bucket, Prefix=below)
            listed = [each for page in found for each in page.get("Contents", ())]
        return {each["Key"].removeprefix(f"{self.prefix}/"): each["Size"] for each in listed}

    def put(self, key: str, content: bytes) -> str:
        """Writes one object and returns its URI."""
        with translated(f"write {self.uri(key)}"):
            self.aws.client("s3").put_object(
                Bucket=self.bucket, Key=f"{self.prefix}/{key}", Body=content, **self._encryption()
            )
        return self.uri(key)

    def upload(self, path: Path, key: str) -> str:
        """Uploads one file unless an object of its size is there, and returns its URI; the key holds its digest."""
        self.upload_all({key: path}, what=path.name)
        return self.uri(key)

    def fetch(self, uri: str, path: Path) -> Path:
        """One object to one file, whole or not at all."""
        bucket, key = split_uri(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        with translated(f"fetch {uri}"):
            self.aws.client("s3").download_file(bucket, key, str(path))
        return path

    def fetch_all(self, uri: str, folder: Path) -> list[Path]:
        """Every object below `uri` to its relative path in `folder`, none where there is nothing; none may leave it."""
        bucket, prefix = split_uri(uri.rstrip("/") + "/")
        pages = self.aws.client("s3").get_paginator("list_objects_v2")
        with translated(f"list {uri}"):
            keys = [
                each["Key"]
                for page in pages.paginate(Bucket=bucket, Prefix=prefix)
                for each in page.get("Contents", ())
            ]
        root, fetched = folder.resolve(), []
        for key in keys:
            path = (root / key.removeprefix(prefix)).resolve()
            if key.endswith("/") or not path.is_relative_to(root):
                continue
            fetched.append(self.fetch(f"s3://{bucket}/{key}", path))
        return fetched

    def delete_all(self, uris: Iterable[str]) -> None:
        """Deletes objects; those that are gone already are no error."""
        s3 = self.aws.client("s3")
        for uri in uris:
            bucket, key = split_uri(uri)
            with translated(f"delete {uri}"):
                s3.delete_object(Bucket=bucket, Key=key)

    def _send_file(self, path: Path, key: str) -> None:
        with translated(f"upload {path.name} to {self.uri(key)}"):
            self.aws.client("s3").upload_file(
                str(path), self.bucket, f"{self.prefix}/{key}", ExtraArgs=self._encryption(), Config=_IN_ONE_PART
            )

    def _encryption(self) -> dict[str, str]:
        if self.kms_key_id is None:
            return {"ServerSideEncryption": "AES256"}
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self.kms_key_id}

    def _encryption_rule(self) -> dict[str, Any]:
        if self.kms_key_id is None:
            return {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
        default = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": self.kms_key_id}
        return {"ApplyServerSideEncryptionByDefault": default, "BucketKeyEnabled": True}

    def _tls_only(self) -> dict[str, Any]:
        bucket_arn = f"arn:{self.aws.partition}:s3:::{self.bucket}"
        statement = {
            "Sid": "DenyWithoutTls",
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:*",
            "Resource": [bucket_arn, f"{bucket_arn}/*"],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }
        return {"Version": "2012-10-17", "Statement": [statement]}


def split_uri(uri: str) -> tuple[str, str]:
    """s3://bucket/key -> (bucket, key)."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
