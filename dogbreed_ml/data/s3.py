"""s3://bucket/prefix mirrored to a folder of this project, several objects at once, unchanged ones left alone."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dogbreed_ml.data.listing import IMAGE_SUFFIXES
from dogbreed_ml.errors import DataError
from dogbreed_ml.files import write_whole
from dogbreed_ml.progress import NO_PROGRESS, Progress

logger = logging.getLogger(__name__)

NUM_PARALLEL = 16
"""Objects that are downloaded at once."""
NUM_TRIES = 3
"""Tries for each object whose stream breaks."""
# Hidden, so that a listing of the mirror passes it over.
_STATE_NAME = ".etags.json"


@dataclass(frozen=True)
class _Object:
    key: str
    relative: str
    size: int
    etag: str


def mirror_prefix(
    uri: str, parent_dir: Path, *, progress: Progress = NO_PROGRESS, suffixes: Collection[str] = IMAGE_SUFFIXES
) -> Path:
    """Makes a folder of `parent_dir` hold the images below s3://bucket/prefix, and only those; returns it.

    With other `suffixes` (lower case, with their dot) it holds the files that end in one of them instead.

    Credentials, region and AWS_ENDPOINT_URL are boto3's own business. Raises DataError.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
    target = parent_dir / f"s3-{hashlib.sha256(f'{bucket}/{prefix}'.encode()).hexdigest()[:12]}"
    target.mkdir(parents=True, exist_ok=True)
    config = Config(retries={"mode": "standard"}, max_pool_connections=NUM_PARALLEL)
    try:
        client = boto3.session.Session().client("s3", config=config)
        objects = list(_list_objects(client, bucket, prefix, suffixes))
        if not objects and suffixes is not IMAGE_SUFFIXES:
            raise DataError(f"{uri} has no files that end in {', '.join(sorted(suffixes))}.")
        if not objects:
            raise DataError(f"{uri} has no images; set data.path to a prefix with a folder per breed.")
        _mirror(client, bucket, objects, target, progress)
    except (BotoCoreError, ClientError, OSError) as error:
        raise DataError(
            f"{uri} cannot be fetched: {error}. Check the address, AWS credentials (AWS_PROFILE) and, "
            "where the store is not AWS, AWS_ENDPOINT_URL."
        ) from error
    return target


def _list_objects(client: Any, bucket: str, prefix: str, suffixes: Collection[str]) -> Iterator[_Object]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for each in page.get("Contents", ()):
            relative = each["Key"][len(prefix) :]
            if os.path.splitext(relative)[1].lower() not in suffixes:
                continue
            if any(part in ("", ".", "..") for part in relative.split("/")) or "\0" in relative:
                raise DataError(f"s3://{bucket}/{each['Key']} is refused: no file can be named {relative!r}.")
            yield _Object(each["Key"], relative, each["Size"], each["ETag"])


def _mirror(client: Any, bucket: str, objects: list[_Object], target: Path, progress: Progress) -> None:
    state = _load_state(target)
    todo = [each for each in objects if not _is_current(each, target, state)]
    _remove_others(target, {each.relative for each in objects})
    state = {each.relative: each.etag for each in objects if each.relative in state}
    if not todo:
        return
    pool = ThreadPoolExecutor(max_workers=NUM_PARALLEL, thread_name_prefix="s3")
    try:
        with progress.track("download", sum(each.size for each in todo), "bytes") as advance:
            futures = {pool.submit(_fetch, client, bucket, each, target): each for each in todo}
            for future in as_completed(futures):
                each = futures[future]
                state[each.relative] = future.result()
                advance(each.size)
    finally:
        pool.shutdown(cancel_futures=True)
        _save_state(target, state)


def _fetch(client: Any, bucket: str, each: _Object, target: Path) -> str:
    """Writes the object's file, under a temporary name until it is whole; returns the ETag of what came."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    path = target / each.relative
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    # Not download_file: it asks for each object twice (HEAD, GET). botocore retries the request, not a broken stream.
    for num_left in range(NUM_TRIES - 1, -1, -1):
        try:
            answer = client.get_object(Bucket=bucket, Key=each.key)
            with unfinished.open("wb") as file, closing(answer["Body"]) as body:
                shutil.copyfileobj(body, file)
            break
        except (HTTPClientError, IncompleteReadError):
            if not num_left:
                raise
    os.replace(unfinished, path)
    return str(answer["ETag"])


def _is_current(each: _Object, target: Path, state: dict[str, str]) -> bool:
    if state.get(each.relative) != each.etag:
        return False
    path = target / each.relative
    return path.is_file() and path.stat().st_size == each.size


def _remove_others(target: Path, keep: set[str]) -> None:
    """Removes from the mirror, which is ours, what the bucket no longer has, and what an ended process left half."""
    for folder, _, names in os.walk(target, topdown=False):
        for name in names:
            path = Path(folder, name)
            if name != _STATE_NAME and path.relative_to(target).as_posix() not in keep:
                path.unlink()
        if folder != str(target) and not os.listdir(folder):
            os.rmdir(folder)


def _load_state(target: Path) -> dict[str, str]:
    """ETag of each mirrored file by its relative path."""
    try:
        state: dict[str, str] = json.loads((target / _STATE_NAME).read_text(encoding="utf-8"))
        return state
    except (FileNotFoundError, ValueError):
        return {}


def _save_state(target: Path, state: dict[str, str]) -> None:
    write_whole(target / _STATE_NAME, json.dumps(state))
