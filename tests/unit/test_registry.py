"""Versions and aliases, against a fake registry; tests/contract runs the same calls on real stores."""

import pytest
from fakeregistry import build_tracker

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


@pytest.fixture
def tracker() -> Tracker:
    return build_tracker()


def test_versions_are_numbers_and_challenger_moves(tracker: Tracker) -> None:
    first = register_challenger(tracker, "dogs", model_uri="models:/m-1", run_id="r1", tags={"a": "1"})
    second = register_challenger(tracker, "dogs", model_uri="models:/m-2", run_id="r2")
    assert (first.version, second.version) == (1, 2)
    assert second.aliases == (CHALLENGER,)
    assert load_version(tracker, "dogs", 1).aliases == ()
    assert load_version(tracker, "dogs", 1).tags == {"run_id": "r1", "model_id": "m-1", "a": "1"}
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
