"""Filters, order and pages of List operations."""

from typing import Any

import pytest

from sagemaker_jobs.local.errors import ValidationException
from sagemaker_jobs.local.listing import select

ROWS = [
    {"Name": "b-dog", "Status": "Failed", "CreationTime": 1.0, "LastModifiedTime": 9.0, "Score": 0.5},
    {"Name": "a-dog", "Status": "Completed", "CreationTime": 2.0, "LastModifiedTime": 8.0},
    {"Name": "c-cat", "Status": "Completed", "CreationTime": 3.0, "LastModifiedTime": 7.0, "Score": 0.25},
]


def _names(**params: Any) -> list[str]:
    rows, _ = select(ROWS, params, name="Name", status="Status")
    return [row["Name"] for row in rows]


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({}, ["c-cat", "a-dog", "b-dog"]),
        ({"SortOrder": "Ascending"}, ["b-dog", "a-dog", "c-cat"]),
        ({"SortBy": "Name", "SortOrder": "Ascending"}, ["a-dog", "b-dog", "c-cat"]),
        ({"SortBy": "Status", "SortOrder": "Ascending"}, ["a-dog", "c-cat", "b-dog"]),
        ({"SortBy": "LastModifiedTime", "SortOrder": "Ascending"}, ["c-cat", "a-dog", "b-dog"]),
        ({"SortBy": "Score", "SortOrder": "Ascending"}, ["c-cat", "b-dog", "a-dog"]),
        ({"NameContains": "DOG"}, ["a-dog", "b-dog"]),
        ({"StatusEquals": "Completed"}, ["c-cat", "a-dog"]),
        ({"CreationTimeAfter": 1.0, "CreationTimeBefore": 3.0}, ["a-dog"]),
        ({"LastModifiedTimeAfter": 8.0}, ["b-dog"]),
        ({"NameContains": "bird"}, []),
    ],
)
def test_rows_are_filtered_and_sorted(params: dict[str, Any], names: list[str]) -> None:
    assert _names(**params) == names


def test_pages_follow_each_other_without_loss() -> None:
    seen: list[list[str]] = []
    token: dict[str, Any] = {}
    while True:
        rows, token = select(ROWS, {"MaxResults": 2, **token}, name="Name")
        seen.append([row["Name"] for row in rows])
        if not token:
            break
    assert seen == [["c-cat", "a-dog"], ["b-dog"]]


def test_token_that_is_none_of_ours_is_refused() -> None:
    with pytest.raises(ValidationException, match="Invalid pagination token: %%"):
        select(ROWS, {"NextToken": "%%"}, name="Name")
