"""Records on disk and in memory."""

import threading
from pathlib import Path
from typing import Any

import pytest

from sagemaker_jobs.local.errors import ResourceInUse, ResourceNotFound, ValidationException
from sagemaker_jobs.local.records import Record, Records


def test_record_survives_its_server(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.create("training-job", "rex", {"Status": "InProgress", "Time": 1.5})
    records.update("training-job", "rex", {"Status": "Completed"})
    again = Records(tmp_path)
    assert again.list("training-job") == [{"Status": "Completed", "Time": 1.5}]
    again.delete("training-job", "rex")
    assert Records(tmp_path).list("training-job") == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_record_is_copied_in_and_out(tmp_path: Path) -> None:
    records = Records(tmp_path)
    given: Record = {"Tags": ["a"]}
    records.create("model", "m", given)
    given["Tags"].append("b")
    records.get("model", "m")["Tags"].append("c")
    assert records.get("model", "m") == {"Tags": ["a"]}


def test_name_is_taken_once_per_kind(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.create("model", "rex", {})
    records.create("endpoint", "rex", {})
    with pytest.raises(ResourceInUse, match="in AWS's words"):
        records.create("model", "rex", {"other": 1}, taken="in AWS's words")
    assert records.get("model", "rex") == {}


def test_name_that_is_not_there_is_refused_in_the_operations_words(tmp_path: Path) -> None:
    records = Records(tmp_path)
    with pytest.raises(ValidationException, match=r"Requested resource not found\."):
        records.get("model", "nobody")
    with pytest.raises(ResourceNotFound, match="mine"):
        records.delete("model", "nobody", missing=ResourceNotFound("mine"))
    assert not records.exists("model", "nobody")


def test_change_that_is_no_json_changes_nothing(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.create("model", "m", {"a": 1})
    with pytest.raises(TypeError):
        records.update("model", "m", {"a": object()})
    assert records.get("model", "m") == Records(tmp_path).get("model", "m") == {"a": 1}


def test_updates_from_many_threads_are_all_kept(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.create("model", "m", {"count": 0})

    def count(record: dict[str, Any]) -> None:
        record["count"] += 1

    threads = [
        threading.Thread(target=lambda: [records.update("model", "m", count) for _ in range(20)]) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert records.get("model", "m") == {"count": 100}


def test_waiting_ends_with_the_change_that_it_waits_for(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.create("model", "m", {"done": False})
    thread = threading.Thread(target=records.update, args=("model", "m", {"done": True}))
    with records.locked():
        thread.start()
        assert not records.get("model", "m")["done"]
    assert records.wait_for(lambda: bool(records.get("model", "m")["done"]), 10)
    thread.join()
    assert not records.wait_for(lambda: False, 0)
