"""Versions and aliases, against a fake registry; tests/contract runs the same calls on real stores."""

from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS
from mlflow.store.entities import PagedList

from dogbreed_ml.config import TrackingConfig
from dogbreed_ml.errors import TrackingError
from dogbreed_ml.registry import (
    CHALLENGER,
    CHAMPION,
    find_alias,
    list_versions,
    load_version,
    move_alias,
    register_challenger,
    resolve_version,
    set_version_tags,
)
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


@pytest.fixture
def tracker() -> Any:
    made = object.__new__(Tracker)
    made.client = FakeRegistry()  # type: ignore[assignment]
    made.config = TrackingConfig()
    made.tracking_uri = "http://127.0.0.1"
    return made


def test_versions_are_numbers_and_challenger_moves(tracker: Tracker) -> None:
    first = register_challenger(tracker, "dogs", model_uri="models:/m-1", run_id="r1", tags={"a": "1"})
    second = register_challenger(tracker, "dogs", model_uri="models:/m-2", run_id="r2")
    assert (first.version, second.version) == (1, 2)
    assert second.aliases == (CHALLENGER,)
    assert load_version(tracker, "dogs", 1).aliases == ()
    assert load_version(tracker, "dogs", 1).tags == {"run_id": "r1", "a": "1"}
    assert find_alias(tracker, "dogs", CHALLENGER) == second


def test_registering_a_model_twice_keeps_its_version(tracker: Tracker) -> None:
    first = register_challenger(tracker, "dogs", model_uri="models:/m-1", run_id="r1")
    assert register_challenger(tracker, "dogs", model_uri="models:/m-1", run_id="r1") == first


def test_missing_alias_is_none(tracker: Tracker) -> None:
    assert find_alias(tracker, "dogs", "champion") is None


@pytest.mark.parametrize("uri", ["runs:/r1/model", "models:/dogs/3"])
def test_only_a_logged_model_is_registered(tracker: Tracker, uri: str) -> None:
    with pytest.raises(TrackingError, match=r"models:/m-\.\.\., got"):
        register_challenger(tracker, "dogs", model_uri=uri, run_id="r1")


@pytest.mark.parametrize("reference", ["2", "challenger", "models:/dogs/2", "models:/dogs@challenger"])
def test_version_is_found_by_number_alias_and_uri(tracker: Tracker, reference: str) -> None:
    register_challenger(tracker, "dogs", model_uri="models:/m-1", run_id="r1")
    second = register_challenger(tracker, "dogs", model_uri="models:/m-2", run_id="r2")
    name = "other" if ":/" in reference else "dogs"
    assert resolve_version(tracker, name, reference) == second


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("7", "has no version 7; it has the versions 1, 2."),
        ("champion", "has no alias 'champion'; it has the versions 1, 2."),
        ("models:/dogs", "models:/NAME/VERSION or models:/NAME@ALIAS, got 'models:/dogs'"),
    ],
)
def test_missing_version_is_told_with_those_there_are(tracker: Tracker, reference: str, message: str) -> None:
    register_challenger(tracker, "dogs", model_uri="models:/m-1", run_id="r1")
    register_challenger(tracker, "dogs", model_uri="models:/m-2", run_id="r2")
    with pytest.raises(TrackingError, match=message):
        resolve_version(tracker, "dogs", reference)


def test_model_without_versions_says_what_makes_one(tracker: Tracker) -> None:
    with pytest.raises(TrackingError, match="no registered model 'dogs' .*dogbreed tune"):
        resolve_version(tracker, "dogs", "challenger")


def test_tags_and_aliases_are_set_on_one_version(tracker: Tracker) -> None:
    first = register_challenger(tracker, "dogs", model_uri="models:/m-1", run_id="r1")
    register_challenger(tracker, "dogs", model_uri="models:/m-2", run_id="r2")
    set_version_tags(tracker, first, {"promotion.verdict": "passed"})
    move_alias(tracker, first, CHAMPION)
    assert [each.tags.get("promotion.verdict") for each in list_versions(tracker, "dogs")] == ["passed", None]
    assert find_alias(tracker, "dogs", CHAMPION) == load_version(tracker, "dogs", 1)
    assert load_version(tracker, "dogs", 1).model_id == "m-1"
