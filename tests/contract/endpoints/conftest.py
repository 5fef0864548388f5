"""One local SageMaker for the tests of each module, without an endpoint or an alarm at the start of each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from endpointmodels import Client, serving


@pytest.fixture(scope="module")
def root_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sagemaker")


@pytest.fixture(scope="module")
def client(root_dir: Path) -> Iterator[Client]:
    with serving(root_dir) as client:
        yield client


@pytest.fixture(autouse=True)
def _nothing_left(client: Client) -> Iterator[None]:
    yield
    for endpoint in client.sagemaker.list_endpoints()["Endpoints"]:
        client.delete(endpoint["EndpointName"])
    # moto's, and so of all the servers of this process.
    alarms = client.cloudwatch.describe_alarms()["MetricAlarms"]
    client.cloudwatch.delete_alarms(AlarmNames=[alarm["AlarmName"] for alarm in alarms])
