"""A model registry in memory that answers as a server does: versions are text, searches come page by page."""

from types import SimpleNamespace
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS
from mlflow.store.entities import PagedList

from dogbreed_ml.config import TrackingConfig
from dogbreed_ml.tracking import Tracker


class FakeRegistry:
    """Answers as a server does: versions are text."""

    def __init__(self) -> None:
        self.versions: list[SimpleNamespace] = []
        self.aliases: dict[str, str] = {}
        self.names: set[str] = set()

    def create_registered_model(self, name: str) -> None:
        if name in self.names:
            raise MlflowException("exists", error_code=RESOURCE_ALREADY_EXISTS)
        self.names.add(name)

    def get_logged_model(self, model_id: str) -> SimpleNamespace:
        return SimpleNamespace(artifact_location=f"file:///models/{model_id}")

    def search_model_versions(self, _: str, *, page_token: str | None = None) -> PagedList[SimpleNamespace]:
        """One version a page."""
        start = int(page_token or 0)
        last = start + 1 >= len(self.versions)
        return PagedList(self.versions[start : start + 1], None if last else str(start + 1))

    def set_model_version_tag(self, _: str, version: str, key: str, value: str) -> None:
        self.versions[int(version) - 1].tags[key] = value

    def create_model_version(self, name: str, *, source: str, run_id: str, tags: Any, model_id: str) -> Any:
        version = str(len(self.versions) + 1)
        fields = {"source": source, "run_id": run_id, "tags": tags, "model_id": model_id, "aliases": []}
        made = SimpleNamespace(name=name, version=version, **fields)
        self.versions.append(made)
        return made

    def set_registered_model_alias(self, _: str, alias: str, version: str) -> None:
        self.aliases[alias] = version

    def get_model_version(self, _: str, version: str) -> SimpleNamespace:
        found = self.versions[int(version) - 1]
        found.aliases = [alias for alias, to in self.aliases.items() if to == version]
        return found

    def get_model_version_by_alias(self, name: str, alias: str) -> SimpleNamespace:
        if alias not in self.aliases:
            raise MlflowException("no alias", error_code=INVALID_PARAMETER_VALUE)
        return self.get_model_version(name, self.aliases[alias])


def build_tracker() -> Tracker:
    """A tracker whose store is a fake registry, without its thread."""
    made = object.__new__(Tracker)
    made.client = FakeRegistry()  # type: ignore[assignment]
    made.config = TrackingConfig()
    made.tracking_uri = "http://127.0.0.1"
    return made
