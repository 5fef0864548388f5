"""moto's S3 on a port of its own, reached as a user would: through AWS_ENDPOINT_URL."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer


@contextmanager
def s3_client(monkeypatch: pytest.MonkeyPatch, *, bucket: str) -> Iterator[Any]:
    """A boto3 client of the server, which has this bucket alone."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    try:
        # moto keeps its buckets for the life of the process.
        urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()
        client = boto3.session.Session().client("s3")
        client.create_bucket(Bucket=bucket)
        yield client
        client.close()
    finally:
        server.stop()
