"""The Optuna door: a study that outlives its command, and the search that drives it."""

import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial
from rich.console import Console

from dogbreed_ml.config import ExperimentConfig, SearchConfig, config_hash
from dogbreed_ml.errors import ConfigError, SearchError
from dogbreed_ml.recovery import bury, recover
from dogbreed_ml.samplers import build_distributions, build_pruner, build_sampler, num_possible_trials
from dogbreed_ml.searchdisplay import SearchDisplay
from dogbreed_ml.studies import VARYING, open_journal, study_path
from dogbreed_ml.tracking import DatasetInput, Run, Tracker
from dogbreed_ml.trials import Judge, Objective, TrialPlan, TrialRecord, build_record, is_interrupted, run_trial
from dogbreed_ml.warmstart import Finding, fitting
from dogbreed_ml.workers import Death, WorkerPool, WorkerSpec, limit_torch_threads

__all__ = ["Objective", "SearchResult", "SearchStudy", "TrialRecord", "conclude"]

logger = logging.getLogger(__name__)

_FINISHED_ATTR, _PARENT_ATTR = "finished", "parent_run_id"
_SOURCE_ATTR = "found_by"
"""Of a trial that another search made: its parent run or tuning job."""
_TRIALS_THAT_MAY_ALL_FAIL = 5


@dataclass(frozen=True)
class SearchResult:
    """What a search came to."""

    study_name: str
    best: TrialRecord
    trials: tuple[TrialRecord, ...]
    """All trials but interrupted ones, by number."""
    direction: Literal["maximize", "minimize"]
    metric: str

    @property
    def ranked(self) -> tuple[TrialRecord, ...]:
        """The complete trials, the best first."""
        return _ranked(self.trials, self.direction)


class SearchStudy:
    """One search over one config, data set and tracking store: new, or continued where a command was cut off.

    It holds a lock until `finish`, `close` or the end of the process, so that two commands never run one search.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        study: optuna.Study,
        storage: optuna.storages.BaseStorage,
        path: Path,
        lock: FileLock,
    ):
        self.config = config
        self.study = study
        self._storage = storage
        self._path = path
        self._lock = lock
        self.parent_run_id: str | None = study.user_attrs.get(_PARENT_ATTR)
        self.resumed = self.parent_run_id is not None

    @classmethod
    def open(
        cls,
        config: ExperimentConfig,
        *,
        fingerprint: str,
        tracking_uri: str,
        project_dir: Path,
        tracker: Tracker | None = None,
    ) -> "SearchStudy":
        """Opens the unfinished search of this config, data and store, or begins a new one.

        With `tracker`, a search whose parent run was deleted is not continued. Raises SearchError where another
        process runs it.
        """
        path = study_path(config, fingerprint=fingerprint, tracking_uri=tracking_uri, project_dir=project_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.running", is_singleton=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise SearchError(
                f"Another process runs this search of {config.name!r} over the same data; wait for it, or choose "
                f"another --name."
            ) from error
        storage = open_journal(path)
        numbers = [_study_number(name) for name in optuna.study.get_all_study_names(storage)]
        stem = f"{config.name}-{config_hash(config, without=VARYING)[:8]}"
        number = max(numbers, default=1)
        if numbers:
            last = optuna.load_study(study_name=f"{stem}-{number}", storage=storage).user_attrs
            is_orphan = tracker is not None and _PARENT_ATTR in last and not tracker.has_run(last[_PARENT_ATTR])
            number += bool(last.get(_FINISHED_ATTR) or is_orphan)
        study = optuna.create_study(
            study_name=f"{stem}-{number}",
            storage=storage,
            direction=config.search.direction,
            pruner=build_pruner(config),
            load_if_exists=True,
        )
        return cls(config, study=study, storage=storage, path=path, lock=lock)

    @property
    def study_name(self) -> str:
        return self.study.study_name

    def seed(self, findings: Iterable[Finding]) -> int:
        """Lets the sampler begin with what earlier searches found; returns how many trials it took in.

        They take the study's first numbers, count for nothing else, and have no runs here. A continued search has
        them already. Raises ConfigError for a grid, which tries what it tries whatever was found.
        """
        if self.config.search.sampler in ("grid", "qmc", "random"):
            raise ConfigError(
                "--warm-start needs a search.sampler that learns from trials (tpe, gp, cmaes), got "
                f"{self.config.search.sampler}."
            )
        if self.study.get_trials(deepcopy=False):
            return 0
        distributions = build_distributions(self.config.search)
        kept = fitting(findings, self.config.search)
        for each in kept:
            values = {name: each.values[name] for name in distributions}
            self.study.add_trial(
                optuna.trial.create_trial(
                    params=values,
                    distributions=distributions,
                    value=each.value,
                    user_attrs={_SOURCE_ATTR: each.source},
                )
            )
        return len(kept)

    def begin(self, parent_run_id: str) -> None:
        """Notes the parent run under which this search goes on, should it be cut off."""
        if self.parent_run_id != parent_run_id:
            self.study.set_user_attr(_PARENT_ATTR, parent_run_id)
            self.parent_run_id = parent_run_id

    def run(
        self,
        objective: Objective,
        *,
        tracker: Tracker,
        parent: Run,
        inputs: tuple[DatasetInput, ...] = (),
        judge: Judge | None = None,
        console: Console | None = None,
        limit_threads: Callable[[int], None] = limit_torch_threads,
    ) -> SearchResult:
        """Runs trials until there are num_trials, the grid is exhausted or timeout_s is over.

        `inputs` are the data sets that each child run names; `judge` gives each its tags from its epochs.
        `limit_threads` is called in each worker process with its share of the cores. Raises SearchError where the
        first five trials, or all, failed.
        """
        try:
            self.begin(parent.run_id)
            recover(self.study, self._storage, tracker, parent)
            records = [build_record(trial) for trial in self._counted()]
            distributions = build_distributions(self.config.search)
            plan = TrialPlan(self.config, objective, distributions, parent.ref, inputs, judge)
            with (
                self._display(records, console) as display,
                closing(self._trials(plan, tracker, parent, len(records), limit_threads)) as ended,
            ):
                for record in ended:
                    records.append(record)
                    display.show(record)
                    self._stop_where_all_failed(records)
            return self._result()
        except BaseException:
            self.close()
            raise

    def finish(self) -> None:
        """Marks the search as done: the next same command begins a new one."""
        self.study.set_user_attr(_FINISHED_ATTR, True)
        self.close()

    def close(self) -> None:
        """Lets another process continue the search."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _counted(self) -> list[FrozenTrial]:
        """The trials that count towards num_trials."""
        trials = self.study.get_trials(deepcopy=False)
        return [
            trial
            for trial in trials
            if trial.state.is_finished() and not is_interrupted(trial) and _SOURCE_ATTR not in trial.user_attrs
        ]

    def _display(self, records: list[TrialRecord], console: Console | None) -> AbstractContextManager[SearchDisplay]:
        best = self._best(records)
        return SearchDisplay.open(
            self.config.search.metric,
            maximize=self.config.search.direction == "maximize",
            num_trials=num_possible_trials(self.config.search),
            num_done=len(records),
            best=best.value if best else None,
            console=console,
        )

    def _trials(
        self, plan: TrialPlan, tracker: Tracker, parent: Run, num_done: int, limit_threads: Callable[[int], None]
    ) -> Generator[TrialRecord]:
        """Runs what is left and yields each trial as it ends."""
        search = self.config.search
        limit = num_possible_trials(search)
        start = time.monotonic()

        def may_start(num_counted: int) -> bool:
            in_time = search.timeout_s is None or time.monotonic() - start < search.timeout_s
            return num_counted < limit and in_time

        if search.num_parallel == 1:
            num_earlier = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = build_sampler(search, worker=0, num_earlier_trials=num_earlier)
            while may_start(num_done):
                yield run_trial(self.study, plan, tracker)
                num_done += 1
            return
        spec = WorkerSpec(
            plan,
            journal_path=self._path,
            study_name=self.study_name,
            tracking_uri=tracker.tracking_uri,
            tracking=tracker.config,
            limit_threads=limit_threads,
            num_threads=max(1, (os.cpu_count() or 1) // search.num_parallel),
        )
        with WorkerPool(spec, max(0, min(search.num_parallel, limit - num_done))) as pool:
            while True:
                while may_start(num_done + pool.num_busy) and pool.start_trial():
                    pass
                if pool.num_busy == 0:
                    return
                for ended in pool.ended():
                    record: TrialRecord | None
                    if isinstance(ended, Death):
                        record = bury(self.study, self._storage, tracker, parent, ended)
                    else:
                        record = ended
                    if record is not None:
                        num_done += 1
                        yield record

    def _best(self, records: list[TrialRecord]) -> TrialRecord | None:
        ranked = _ranked(records, self.config.search.direction)
        return ranked[0] if ranked else None

    def _stop_where_all_failed(self, records: list[TrialRecord]) -> None:
        if len(records) >= _TRIALS_THAT_MAY_ALL_FAIL and all(record.state == "FAILED" for record in records):
            self._conclude(records)

    def _result(self) -> SearchResult:
        return self._conclude(sorted(map(build_record, self._counted()), key=lambda record: record.number))

    def _conclude(self, records: list[TrialRecord]) -> SearchResult:
        if records and all(record.state == "FAILED" for record in records):
            # The same command should try afresh once the cause is mended, not count these again.
            self.study.set_user_attr(_FINISHED_ATTR, True)
        return conclude(self.study_name, records, self.config.search)


def conclude(study_name: str, records: Sequence[TrialRecord], search: SearchConfig) -> SearchResult:
    """The result of a search that has ended, whoever drove it; SearchError where no trial was completed."""
    ranked = _ranked(records, search.direction)
    if ranked:
        return SearchResult(study_name, ranked[0], tuple(records), search.direction, search.metric)
    if records and all(record.state == "FAILED" for record in records):
        causes = dict.fromkeys(record.cause or "unknown" for record in records)
        raise SearchError(f"All of the first {len(records)} trials failed: {'; '.join(causes)}.")
    raise SearchError(
        f"No trial was completed ({len(records)} ended before); raise search.timeout_s, or use search.pruner=none."
    )


def _ranked(records: Sequence[TrialRecord], direction: Literal["maximize", "minimize"]) -> tuple[TrialRecord, ...]:
    """The complete trials, the best first; of equals the earlier one."""
    complete = [record for record in records if record.state == "COMPLETE"]
    sign = 1.0 if direction == "maximize" else -1.0
    return tuple(sorted(complete, key=lambda each: (-sign * (each.value or 0.0), each.number)))


def _study_number(name: str) -> int:
    return int(name.rpartition("-")[2])
