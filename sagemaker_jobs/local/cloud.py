"""boto3 clients of this very server, for what a SageMaker does with S3, CloudWatch and CloudWatch Logs."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from dogbreed_ml.errors import DataError
from sagemaker_jobs.shapes import isolated_session

ACCESS_KEY_ID = "local"
SECRET_ACCESS_KEY = "local"
INSIDE_ACCESS_KEY_ID = "inside"
"""Of the server's own calls and those of its jobs and models, told from the user's by it."""
NUM_PARALLEL = 8
"""Objects that one fetch or upload has under way at once."""
_MAX_EVENTS = 10_000
_MAX_BATCH_BYTES = 1_048_576
_EVENT_OVERHEAD_BYTES = 26
_MAX_DATA = 150


@dataclass(frozen=True)
class Metric:
    """One CloudWatch value."""

    name: str
    value: float
    time_s: float
    dimensions: dict[str, str] = field(default_factory=dict)
    unit: str = "None"


def split_uri(uri: str) -> tuple[str, str]:
    """s3://bucket/key -> bucket, key."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


class Cloud:
    """Errors of the clients come out as DataError where a caller can act on them: a bucket, a key, a manifest."""

    def __init__(self, url: str, region: str) -> None:
        self.url = url
        self.region = region
        self._lock = threading.RLock()

    @cached_property
    def s3(self) -> Any:
        return self._client("s3")

    @cached_property
    def logs(self) -> Any:
        return self._client("logs")

    @cached_property
    def cloudwatch(self) -> Any:
        return self._client("cloudwatch")

    def warm_up(self) -> None:
        """Loads now what the first job would otherwise wait for: 0.5 s of clients and of moto's modules."""
        self.s3.list_buckets()
        self.logs.describe_log_groups(limit=1)
        self.cloudwatch.list_metrics(Namespace="/aws/sagemaker/TrainingJobs")

    def close(self) -> None:
        for name in ("s3", "logs", "cloudwatch"):
            if name in self.__dict__:
                self.__dict__[name].close()

    def keys(self, uri: str) -> list[str]:
        """All keys that begin with an S3 URI's key, folder marks left out; raises DataError without a bucket."""
        bucket, prefix = split_uri(uri)
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        try:
            return [each["Key"] for page in pages for each in page.get("Contents", ()) if not each["Key"].endswith("/")]
        except (BotoCoreError, ClientError) as error:
            raise DataError(f"{uri} cannot be listed: {error}.") from error

    def fetch(self, uri: str, path: Path) -> None:
        """One object to one file."""
        bucket, key = split_uri(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.part")
        try:
            answer = self.s3.get_object(Bucket=bucket, Key=key)
            with unfinished.open("wb") as file, closing(answer["Body"]) as body:
                shutil.copyfileobj(body, file, 1 << 20)
        except (BotoCoreError, ClientError) as error:
            raise DataError(f"{uri} cannot be fetched: {error}.") from error
        os.replace(unfinished, path)

    def fetch_all(self, objects: Sequence[tuple[str, str]], folder: Path) -> None:
        """(URI, relative path) pairs to files below `folder`; raises DataError for a path that leaves it."""
        for uri, relative in objects:
            if any(part in ("", ".", "..") for part in relative.split("/")) or "\0" in relative:
                raise DataError(f"{uri} is refused: no file can be named {relative!r}.")
        folder.mkdir(parents=True, exist_ok=True)
        self._map(lambda each: self.fetch(each[0], folder / each[1]), objects)

    def prefix_objects(self, uri: str) -> list[tuple[str, str]]:
        """What S3Prefix means: (URI, path below the prefix) of every key that begins with it."""
        bucket, prefix = split_uri(uri)
        # s3://b/train also matches s3://b/train-1/x: what follows the prefix's last folder is the path then.
        parent = prefix if prefix.endswith("/") or not prefix else prefix.rpartition("/")[0] + "/" * ("/" in prefix)
        objects = []
        for key in self.keys(uri):
            below = key[len(prefix) + 1 :] if key.startswith(f"{prefix}/") and prefix else key[len(parent) :]
            objects.append((f"s3://{bucket}/{key}", below))
        return objects

    def manifest_objects(self, uri: str) -> list[tuple[str, str]]:
        """What ManifestFile means: [{"prefix": "s3://..."}, "relative path", ...]. Raises DataError for others."""
        bucket, key = split_uri(uri)
        try:
            answer = self.s3.get_object(Bucket=bucket, Key=key)
            manifest = json.loads(answer["Body"].read())
            prefix = manifest[0]["prefix"]
            names = manifest[1:]
        except (BotoCoreError, ClientError) as error:
            raise DataError(f"{uri} cannot be fetched: {error}.") from error
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise DataError(f'{uri} is no manifest: it must be [{{"prefix": "s3://..."}}, "path", ...].') from error
        if not isinstance(prefix, str) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{uri} is no manifest: its prefix and its paths must be text.")
        return [(f"{prefix}{name}", name) for name in names]

    def upload(self, path: Path, uri: str) -> None:
        """One file to one object; raises DataError."""
        bucket, key = split_uri(uri)
        try:
            # In parts where it is large, and never whole in memory.
            self.s3.upload_file(str(path), bucket, key)
        # OSError: a file of a job that still runs may go, or be replaced, before it is read.
        except (BotoCoreError, ClientError, boto3.exceptions.Boto3Error, OSError) as error:
            raise DataError(f"{uri} cannot be written: {error}.") from error

    def upload_folder(self, folder: Path, uri: str, *, skip: Callable[[Path], bool] | None = None) -> None:
        """Every file of a folder to s3://bucket/prefix/RELATIVE; links are followed as far as they lead to files."""
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not (skip and skip(path))]
        base = uri.rstrip("/")
        self._map(lambda path: self.upload(path, f"{base}/{path.relative_to(folder).as_posix()}"), files)

    def put_log_lines(self, group: str, stream: str, lines: Sequence[tuple[float, str]]) -> None:
        """Appends (epoch seconds, text) lines, oldest first, in batches of the size that the service takes."""
        for batch in _batches(lines):
            events = [{"timestamp": int(time_s * 1000), "message": text or " "} for time_s, text in batch]
            try:
                self.logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)
            except (BotoCoreError, ClientError) as error:
                raise DataError(f"{group}/{stream} cannot be written: {error}.") from error

    def create_log_stream(self, group: str, stream: str) -> None:
        for create, names in (
            (self.logs.create_log_group, {"logGroupName": group}),
            (self.logs.create_log_stream, {"logGroupName": group, "logStreamName": stream}),
        ):
            try:
                create(**names)
            except self.logs.exceptions.ResourceAlreadyExistsException:
                continue

    def put_metrics(self, namespace: str, metrics: Sequence[Metric]) -> None:
        for start in range(0, len(metrics), _MAX_DATA):
            data = [
                {
                    "MetricName": each.name, "Value": each.value, "Timestamp": each.time_s, "Unit": each.unit,
                    "Dimensions": [{"Name": name, "Value": value} for name, value in each.dimensions.items()],
                }
                for each in metrics[start : start + _MAX_DATA]
            ]  # fmt: skip
            try:
                self.cloudwatch.put_metric_data(Namespace=namespace, MetricData=data)
            except (BotoCoreError, ClientError) as error:
                raise DataError(f"Metrics of {namespace} cannot be written: {error}.") from error

    @cached_property
    def _session(self) -> Any:
        return boto3.session.Session(
            aws_access_key_id=INSIDE_ACCESS_KEY_ID, aws_secret_access_key=SECRET_ACCESS_KEY, region_name=self.region,
            botocore_session=isolated_session(),
        )  # fmt: skip

    def _client(self, service: str) -> Any:
        config = Config(retries={"mode": "standard"}, max_pool_connections=4 * NUM_PARALLEL, proxies={})
        # A session makes one client at a time.
        with self._lock:
            return self._session.client(service, endpoint_url=self.url, config=config)

    def _map(self, work: Callable[[Any], None], items: Sequence[Any]) -> None:
        if len(items) < 2:
            for item in items:
                work(item)
            return
        with ThreadPoolExecutor(max_workers=NUM_PARALLEL, thread_name_prefix="cloud") as pool:
            list(pool.map(work, items))


def _batches(lines: Sequence[tuple[float, str]]) -> Iterator[list[tuple[float, str]]]:
    batch: list[tuple[float, str]] = []
    num_bytes = 0
    for time_s, text in lines:
        size = len(text.encode()) + _EVENT_OVERHEAD_BYTES
        if batch and (len(batch) == _MAX_EVENTS or num_bytes + size > _MAX_BATCH_BYTES):
            yield batch
            batch, num_bytes = [], 0
        batch.append((time_s, text))
        num_bytes += size
    if batch:
        yield batch
