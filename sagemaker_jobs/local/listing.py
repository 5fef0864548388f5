"""What all List operations share: filters by name, status and time, order, pages."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any

from sagemaker_jobs.local.errors import ValidationException

Row = dict[str, Any]

DEFAULT_PAGE = 100


def select(
    rows: Sequence[Row],
    params: Row,
    *,
    name: str,
    status: str | None = None,
    sort_by: str = "CreationTime",
    sort_order: str = "Descending",
    sort_key: Callable[[Row, str], Any] | None = None,
) -> tuple[list[Row], Row]:
    """The page of `rows` that `params` asks for, and the NextToken to answer with (`{}` on the last page).

    `name` and `status` are the members of a row that SortBy=Name, NameContains, SortBy=Status and StatusEquals mean;
    `sort_by` and `sort_order` are the operation's defaults. `sort_key` gives the key for a SortBy that is not Name,
    Status or a member of the row; a row without the member comes last in ascending order.
    """
    kept = [row for row in rows if _is_wanted(row, params, name, status)]
    order = params.get("SortBy", sort_by)
    member = {"Name": name, "Status": status}.get(order, order)

    def key(row: Row) -> tuple[bool, Any, str]:
        value = sort_key(row, order) if sort_key else row.get(str(member))
        return value is None, value if value is not None else 0, str(row[name])

    kept.sort(key=key, reverse=params.get("SortOrder", sort_order) == "Descending")
    start = _offset(params.get("NextToken"))
    end = start + int(params.get("MaxResults", DEFAULT_PAGE))
    token = {"NextToken": base64.urlsafe_b64encode(str(end).encode()).decode()} if end < len(kept) else {}
    return kept[start:end], token


def _is_wanted(row: Row, params: Row, name: str, status: str | None) -> bool:
    if params.get("NameContains", "").lower() not in str(row[name]).lower():
        return False
    if status and params.get("StatusEquals") not in (None, row[status]):
        return False
    for member in ("CreationTime", "LastModifiedTime"):
        after, before = params.get(f"{member}After"), params.get(f"{member}Before")
        if after is not None and row[member] <= after:
            return False
        if before is not None and row[member] >= before:
            return False
    return True


def _offset(token: str | None) -> int:
    if token is None:
        return 0
    try:
        return int(base64.urlsafe_b64decode(token.encode()))
    except (binascii.Error, ValueError) as error:
        raise ValidationException(f"Invalid pagination token: {token}") from error
