"""AddTags, ListTags and DeleteTags of whatever the records hold."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sagemaker_jobs.local.errors import ValidationException
from sagemaker_jobs.local.records import Record

if TYPE_CHECKING:
    from sagemaker_jobs.local.service import LocalSageMaker

MAX_TAGS = 50


class Tags:
    """Tags lie in a resource's own record, where its Create operation put them."""

    def __init__(self, service: "LocalSageMaker") -> None:
        self._service = service

    def add_tags(self, params: dict[str, Any]) -> dict[str, Any]:
        def add(record: Record) -> None:
            tags = {tag["Key"]: tag for tag in [*record.get("Tags", ()), *params["Tags"]]}
            if len(tags) > MAX_TAGS:
                raise ValidationException(f"A resource has at most {MAX_TAGS} tags, and would have {len(tags)}.")
            record["Tags"] = list(tags.values())

        return {"Tags": self._change(params["ResourceArn"], add)["Tags"]}

    def list_tags(self, params: dict[str, Any]) -> dict[str, Any]:
        return {"Tags": self._change(params["ResourceArn"], None).get("Tags", [])}

    def delete_tags(self, params: dict[str, Any]) -> dict[str, Any]:
        def delete(record: Record) -> None:
            record["Tags"] = [tag for tag in record.get("Tags", ()) if tag["Key"] not in params["TagKeys"]]

        self._change(params["ResourceArn"], delete)
        return {}

    def _change(self, arn: str, change: Callable[[Record], None] | None) -> Record:
        kind, _, lower_name = arn.rpartition(":")[2].partition("/")
        records = self._service.records
        # An ARN has its name in lower case, whatever the name has.
        name = next((each for each in records.names(kind) if each.lower() == lower_name.lower()), None)
        if name is None:
            raise ValidationException(f"Could not find {arn}.")
        return records.get(kind, name) if change is None else records.update(kind, name, change)
