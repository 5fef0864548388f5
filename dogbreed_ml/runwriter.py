"""The writer behind every run: one background thread that brings queued events to MLflow, in order and in batches.

A caller only appends; what waits for a run is sent as one `log_batch`. While the store is away the events stay queued
and are tried again until `retry_s` is over; then the next call of any run raises TrackingError.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from mlflow.entities import DatasetInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    REQUEST_LIMIT_EXCEEDED,
    RESOURCE_EXHAUSTED,
    TEMPORARILY_UNAVAILABLE,
    ErrorCode,
)
from mlflow.tracking import MlflowClient
from requests.exceptions import RequestException

from dogbreed_ml.errors import TrackingError

logger = logging.getLogger(__name__)

EVENT_TAG = "dogbreed.event"
"""Names the request that made a run, so that a request whose answer was lost is not made twice."""

# MLflow's limits of one log_batch: 100 params, 100 tags, 1000 entities in all.
_MAX_METRICS, _MAX_PARAMS, _MAX_TAGS = 800, 100, 100
_LINGER_S = 0.2
_IDLE_S = 1.0
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.1, 5.0

_TRANSIENT_CODES = {
    ErrorCode.Name(code) for code in (TEMPORARILY_UNAVAILABLE, REQUEST_LIMIT_EXCEEDED, RESOURCE_EXHAUSTED)
}


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: no connection, a busy database, a server's own error."""
    if isinstance(error, RequestException):
        return True
    if not isinstance(error, MlflowException):
        return False
    # MLflow raises its own exception while it handles the one of requests.
    if isinstance(error.__cause__ or error.__context__, RequestException):
        return True
    if isinstance(error, RestException) and error.error_code == ErrorCode.Name(INTERNAL_ERROR):
        return True
    return error.error_code in _TRANSIENT_CODES


@dataclass(frozen=True)
class Creation:
    """A run to be made."""

    experiment_id: str
    run_name: str | None
    tags: dict[str, str]
    start_ms: int
    event_id: str = field(default_factory=lambda: uuid4().hex)


@dataclass(eq=False)
class Outbox:
    """What waits to be written for one run; filled by its owner, emptied by the writer, under the writer's lock."""

    run_id: str | None = None
    creation: Creation | None = None
    was_tried: bool = False
    metrics: list[Metric] = field(default_factory=list)
    params: list[tuple[str, str]] = field(default_factory=list)
    tags: list[tuple[str, str]] = field(default_factory=list)
    inputs: list[DatasetInput] = field(default_factory=list)
    uploads: list[Callable[[MlflowClient, str], None]] = field(default_factory=list)
    status: tuple[str, int] | None = None
    """MLflow status and end time in ms."""
    error: TrackingError | None = None
    """What the store refused; raised once at the owner's next call."""

    @property
    def is_empty(self) -> bool:
        waiting = self.metrics or self.params or self.tags or self.inputs or self.uploads
        return not waiting and self.status is None and (self.creation is None or self.run_id is not None)

    @property
    def waits_for_upload(self) -> bool:
        """Whether a file is next: it may take long without the store being away."""
        earlier = self.metrics or self.params or self.tags or self.inputs or self.run_id is None
        return bool(self.uploads) and not earlier


class RunWriter:
    """Writes the outboxes of all runs of this process from one thread, which starts on need and ends when idle."""

    def __init__(self, client: MlflowClient, *, store: str, retry_s: float):
        self._client = client
        self._store = store
        self._retry_s = retry_s
        self._condition = threading.Condition()
        self._dirty: dict[int, Outbox] = {}
        self._is_urgent = False
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._busy_since: float | None = None
        self._backoff_s = 0.0

    def put(self, outbox: Outbox, change: Callable[[Outbox], None]) -> None:
        """Queues a change; raises TrackingError where the store refused an earlier one or has been away too long."""
        with self._condition:
            self._raise_error(outbox)
            self._raise_if_away(self._retry_s)
            change(outbox)
            self._wake(outbox)

    def flush(self, outbox: Outbox, *, deadline_s: float | None = None) -> None:
        """Waits until everything queued for the run is written; `deadline_s` seconds instead of retry_s at most."""
        patience_s = self._retry_s if deadline_s is None else deadline_s
        start = time.monotonic()
        with self._condition:
            if not outbox.is_empty:
                self._wake(outbox)
            while not outbox.is_empty:
                self._raise_error(outbox)
                self._raise_if_away(patience_s)
                if self._thread is None or not self._thread.is_alive():
                    raise TrackingError("The thread that writes to MLflow has ended; its traceback says why.")
                if deadline_s is not None and time.monotonic() - start > deadline_s:
                    raise TrackingError(self._away_message(deadline_s))
                self._is_urgent = True
                self._condition.notify_all()
                self._condition.wait(0.25)
            self._raise_error(outbox)

    def close(self) -> None:
        """Ends the thread; what is still queued (only after a TrackingError) stays unwritten."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5)

    def _wake(self, outbox: Outbox) -> None:
        self._dirty[id(outbox)] = outbox
        if not self._is_closed and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._run, name="dogbreed-run-writer", daemon=True)
            self._thread.start()
        self._condition.notify_all()

    def _raise_error(self, outbox: Outbox) -> None:
        if outbox.error is not None:
            error, outbox.error = outbox.error, None
            raise error

    def _raise_if_away(self, patience_s: float) -> None:
        if self._busy_since is not None and time.monotonic() - self._busy_since > patience_s:
            raise TrackingError(self._away_message(patience_s))

    def _away_message(self, waited_s: float) -> str:
        num_waiting = sum(len(each.metrics) + len(each.params) + len(each.tags) for each in self._dirty.values())
        return (
            f"The tracking store {self._store} did not take the writes within {waited_s:g} s ({num_waiting} metrics, "
            f"params and tags wait); start it again and repeat the command, or raise tracking.retry_s."
        )

    def _run(self) -> None:
        while True:
            with self._condition:
                if not self._dirty:
                    self._condition.wait_for(lambda: bool(self._dirty) or self._is_closed, timeout=_IDLE_S)
                if not self._dirty or self._is_closed:
                    self._thread = None
                    return
                # A short trial is over before the linger is, and costs one write.
                self._condition.wait_for(lambda: self._is_urgent or self._is_closed, timeout=_LINGER_S)
                self._is_urgent = False
                outboxes = list(self._dirty.values())
            self._write_all(outboxes)

    def _write_all(self, outboxes: list[Outbox]) -> None:
        for outbox in outboxes:
            if not self._write(outbox):
                with self._condition:
                    self._condition.wait_for(lambda: self._is_closed, timeout=self._backoff_s)
                return
            with self._condition:
                if outbox.is_empty:
                    self._dirty.pop(id(outbox), None)
                    self._condition.notify_all()

    def _write(self, outbox: Outbox) -> bool:
        """Writes what waits for one run; False where the store is away."""
        while True:
            with self._condition:
                step = None if self._is_closed else self._next_step(outbox)
                if self._busy_since is None and not outbox.waits_for_upload:
                    self._busy_since = time.monotonic()
            if step is None:
                self._answered()
                return True
            send, remove = step
            try:
                send()
            except (MlflowException, OSError, ValueError) as error:
                if is_transient(error):
                    self._stayed_away(error)
                    return False
                with self._condition:
                    outbox.error = TrackingError(f"The tracking store {self._store} refused a write: {error}")
                    outbox.error.__cause__ = error
            with self._condition:
                # A refused write is removed as well: its error is raised, and the run can still be ended.
                remove()
                if outbox.run_id is None and outbox.error is not None:
                    _discard(outbox)
            self._answered()

    def _answered(self) -> None:
        with self._condition:
            if self._backoff_s:
                logger.warning("The tracking store %s answers again; writing what waited.", self._store)
            self._busy_since, self._backoff_s = None, 0.0

    def _stayed_away(self, error: BaseException) -> None:
        if not self._backoff_s:
            logger.warning(
                "The tracking store %s is away; writes wait for it up to %g s: %s", self._store, self._retry_s, error
            )
        with self._condition:
            if self._busy_since is None:
                self._busy_since = time.monotonic()
        self._backoff_s = min(_MAX_BACKOFF_S, self._backoff_s * 2 or _FIRST_BACKOFF_S)

    def _next_step(self, outbox: Outbox) -> tuple[Callable[[], object], Callable[[], None]] | None:
        """The next request of a run and how to strike out what it carried; None where nothing waits."""
        if outbox.run_id is None and outbox.creation is not None:
            return self._creation(outbox, outbox.creation)
        run_id = outbox.run_id
        if run_id is None:
            return None
        if outbox.metrics or outbox.params or outbox.tags:
            return self._batch(outbox, run_id)
        if outbox.inputs:
            inputs = list(outbox.inputs)
            return lambda: self._client.log_inputs(run_id, inputs), lambda: _strike(outbox.inputs, len(inputs))
        if outbox.uploads:
            upload = outbox.uploads[0]
            return lambda: upload(self._client, run_id), lambda: _strike(outbox.uploads, 1)
        if outbox.status is not None:
            status, end_ms = outbox.status

            def clear() -> None:
                outbox.status = None

            return lambda: self._client.set_terminated(run_id, status=status, end_time=end_ms), clear
        return None

    def _creation(self, outbox: Outbox, creation: Creation) -> tuple[Callable[[], object], Callable[[], None]]:
        made: list[str] = []

        def create() -> None:
            if outbox.was_tried:
                found = self._client.search_runs(
                    [creation.experiment_id], filter_string=f"tags.`{EVENT_TAG}` = '{creation.event_id}'", max_results=1
                )
                made.extend(run.info.run_id for run in found)
            outbox.was_tried = True
            if not made:
                run = self._client.create_run(
                    creation.experiment_id,
                    start_time=creation.start_ms,
                    tags={**creation.tags, EVENT_TAG: creation.event_id},
                    run_name=creation.run_name,
                )
                made.append(run.info.run_id)

        def keep() -> None:
            outbox.run_id = made[0] if made else None

        return create, keep

    def _batch(self, outbox: Outbox, run_id: str) -> tuple[Callable[[], object], Callable[[], None]]:
        metrics = outbox.metrics[:_MAX_METRICS]
        params = outbox.params[:_MAX_PARAMS]
        tags = outbox.tags[:_MAX_TAGS]

        def send() -> None:
            self._client.log_batch(
                run_id,
                metrics=metrics,
                params=[Param(name, value) for name, value in params],
                # Where a tag was set twice the last value counts.
                tags=[RunTag(name, value) for name, value in dict(tags).items()],
                synchronous=True,
            )

        def strike() -> None:
            _strike(outbox.metrics, len(metrics))
            _strike(outbox.params, len(params))
            _strike(outbox.tags, len(tags))

        return send, strike


def _strike(items: list[Any], count: int) -> None:
    del items[:count]


def _discard(outbox: Outbox) -> None:
    """Empties the outbox of a run that the store refused to make; the refusal is what its owner gets to see."""
    outbox.creation = None
    waiting: tuple[list[Any], ...] = (outbox.metrics, outbox.params, outbox.tags, outbox.inputs, outbox.uploads)
    for items in waiting:
        _strike(items, len(items))
    outbox.status = None
