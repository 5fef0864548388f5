"""A project with registered versions, and a SageMaker of this machine to deploy them to."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hostedversions import CONFIG, Account, Project, account, make_light_project, use_light_archives
from iamrights import REGION, record_rights

from dogbreed_ml.context import Context
from sagemaker_jobs.client import LOCAL_ROLE
from sagemaker_jobs.endpoints.policies import policies


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with account(tmp_path_factory.mktemp("sagemaker")) as made:
        yield made


@pytest.fixture(scope="session")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_light_project(tmp_path_factory.mktemp("registered"))


@pytest.fixture
def project(registered: Project, tmp_path: Path) -> Project:
    """A store of its own: registering takes seconds, a copy none."""
    shutil.copy(registered.context.project_dir / "mlflow.db", tmp_path / "mlflow.db")
    return replace(registered, context=Context(project_dir=tmp_path))


@pytest.fixture
def on_the_local_sagemaker(served: Account, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The server is SageMaker, archives are light, no call needs a right that --print-policy does not name, and
    nothing is left for the next test.
    """
    for name, value in served.server.client_environment().items():
        monkeypatch.setenv(name, value)
    use_light_archives(monkeypatch)
    rights = record_rights(monkeypatch)
    yield
    served.clear()
    account = replace(CONFIG.sagemaker, role_arn=LOCAL_ROLE, region=REGION)
    # Some tests deploy under a name of their own, as `--print-policy --endpoint NAME` is given it.
    name = next((each.resource.split("/")[1] for each in rights.needed if ":CreateEndpoint" in each.action), "dogs")
    names = {"dogs", "cats", name.removesuffix("-smoke").partition("-v")[0]}
    documents = [policies(replace(CONFIG, sagemaker=account), endpoint=each).caller for each in sorted(names)]
    statements = [statement for document in documents for statement in document["Statement"]]
    assert rights.missing_from({"Statement": statements}) == []
