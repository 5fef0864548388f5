"""What the service knows of its jobs, models and endpoints: JSON records by kind and name, on disk and in memory.

A record is written under a temporary name and renamed, so that what a killed server leaves behind can be read. Names
are checked by the service's shapes before they come here.
"""

import copy
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dogbreed_ml.files import write_whole
from sagemaker_jobs.local.errors import ResourceInUse, ServiceError, ValidationException

Record = dict[str, Any]


class Records:
    """Thread-safe; what is handed out and taken in is copied. Timestamps are epoch floats, as in AWS's answers."""

    def __init__(self, root_dir: Path) -> None:
        self._root_dir = root_dir
        self._changed = threading.Condition(threading.RLock())
        self._records: dict[str, dict[str, Record]] = {}
        for path in sorted(root_dir.glob("*/*.json")):
            self._records.setdefault(path.parent.name, {})[path.stem] = json.loads(path.read_text(encoding="utf-8"))

    def create(self, kind: str, name: str, record: Mapping[str, Any], *, taken: str | None = None) -> None:
        """Raises ResourceInUse, with the message `taken`, where the name is in use."""
        with self._changed:
            if name in self._records.get(kind, {}):
                raise ResourceInUse(taken or f"The {kind} name {name} is already in use.")
            self._put(kind, name, dict(record))

    def get(self, kind: str, name: str, *, missing: ServiceError | None = None) -> Record:
        """A copy; raises `missing`, by default the ValidationException with which AWS says so."""
        with self._changed:
            return copy.deepcopy(self._find(kind, name, missing))

    def exists(self, kind: str, name: str) -> bool:
        with self._changed:
            return name in self._records.get(kind, {})

    def update(self, kind: str, name: str, changes: Mapping[str, Any] | Callable[[Record], None]) -> Record:
        """Sets the members of `changes`, or calls it with the record to change in place; returns a copy."""
        with self._changed:
            record = copy.deepcopy(self._find(kind, name, None))
            if callable(changes):
                changes(record)
            else:
                record.update(changes)
            self._put(kind, name, record)
            return copy.deepcopy(record)

    def delete(self, kind: str, name: str, *, missing: ServiceError | None = None) -> None:
        with self._changed:
            self._find(kind, name, missing)
            del self._records[kind][name]
            self._path(kind, name).unlink(missing_ok=True)
            self._changed.notify_all()

    def list(self, kind: str) -> list[Record]:
        """Copies of all records of a kind, by name."""
        with self._changed:
            return [copy.deepcopy(self._records[kind][name]) for name in sorted(self._records.get(kind, {}))]

    def names(self, kind: str) -> Sequence[str]:
        """Sorted."""
        with self._changed:
            return sorted(self._records.get(kind, {}))

    def wait_for(self, condition: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Waits until `condition` holds, looking again after every change of any record; False after the time-out."""
        with self._changed:
            return self._changed.wait_for(condition, timeout_s)

    def notify(self) -> None:
        """Makes those who wait look again, where what they look at is no record."""
        with self._changed:
            self._changed.notify_all()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No other thread reads or writes a record meanwhile."""
        with self._changed:
            yield

    def _find(self, kind: str, name: str, missing: ServiceError | None) -> Record:
        record = self._records.get(kind, {}).get(name)
        if record is None:
            raise missing or ValidationException("Requested resource not found.")
        return record

    def _put(self, kind: str, name: str, record: Record) -> None:
        # Rendered first: what is no JSON must not reach memory either.
        text = json.dumps(record)
        write_whole(self._path(kind, name), text)
        self._records.setdefault(kind, {})[name] = json.loads(text)
        self._changed.notify_all()

    def _path(self, kind: str, name: str) -> Path:
        return self._root_dir / kind / f"{name}.json"
