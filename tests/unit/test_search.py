"""The study, its samplers and pruners, one trial and what becomes of cut-off ones; a fake tracker, no MLflow store."""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from dogbreed_ml.config import (
    CategoricalDimension,
    Dimension,
    ExperimentConfig,
    FloatDimension,
    IntDimension,
    SearchConfig,
    TrackingConfig,
    TrainConfig,
)
from dogbreed_ml.debugging.epochs import EpochJudge
from dogbreed_ml.errors import DataError, SearchError, TrackingError
from dogbreed_ml.samplers import grid_values, num_possible_trials
from dogbreed_ml.search import SearchResult, SearchStudy
from dogbreed_ml.studies import open_journal
from dogbreed_ml.tracking import ChildRun
from dogbreed_ml.trials import INTERRUPTED, Objective

FINGERPRINT = "0123456789abcdef"


@dataclass(frozen=True)
class Epoch:
    """Of the shape of train.EpochResult, which imports torch."""

    epoch: int
    global_step: int
    metrics: dict[str, float]
    seconds: float = 0.001
    is_best: bool = True


class FakeRun:
    """A run that only remembers."""

    experiment_id = "1"

    def __init__(self, run_id: str, *, name: str = "", tags: Mapping[str, str] | None = None):
        self.run_id, self.name, self.status = run_id, name, "RUNNING"
        self.tags = dict(tags or {})
        self.metrics: dict[str, float] = {}
        self.params: dict[str, Any] = {}

    @property
    def ref(self) -> "FakeRun":
        return self

    def log_config(self, config: ExperimentConfig, *, is_trial: bool = False) -> None:
        self.params["train.lr"] = config.train.lr
        assert is_trial, "a trial's config is its params"

    def log_inputs(self, inputs: Any) -> None: ...

    def log_params(self, params: Mapping[str, Any]) -> None:
        self.params.update(params)

    def log_epoch(self, result: Epoch) -> None:
        self.metrics.update(result.metrics)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int | None = None) -> None:
        self.metrics.update(metrics)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        self.tags.update({name: str(value) for name, value in tags.items()})

    def finish(self, status: str = "FINISHED", *, cause: str | None = None) -> None:
        self.status = status
        if cause:
            self.tags["failure.cause"] = cause

    def fail(self, error: BaseException) -> None:
        self.finish("FAILED", cause=f"{type(error).__name__}: {error}")

    def __enter__(self) -> "FakeRun":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.status == "RUNNING":
            self.status = (
                "FINISHED" if error is None else "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            )


class FakeTracker:
    tracking_uri = "fake://"
    config = TrackingConfig()

    def __init__(self) -> None:
        self.runs: list[FakeRun] = []

    def start_run(self, _: str, *, parent: Any, run_name: str, tags: Mapping[str, str]) -> FakeRun:
        self.runs.append(FakeRun(f"run-{len(self.runs)}", name=run_name, tags=tags))
        return self.runs[-1]

    def has_run(self, run_id: str) -> bool:
        return run_id != "deleted"

    def child_runs(self, _: str) -> list[ChildRun]:
        return [ChildRun(run.run_id, run.status, run.tags, run.metrics) for run in self.runs]

    def end_run(self, run_id: str, status: str, *, tags: Mapping[str, str]) -> None:
        run = next(run for run in self.runs if run.run_id == run_id)
        run.status = status
        run.tags.update(tags)


def good(config: ExperimentConfig) -> Iterator[Any]:
    """Best at lr 1e-2; the same lr gives the same value."""
    for epoch in range(config.train.num_epochs):
        value = (1 - abs(math.log10(config.train.lr) + 2) / 4) * (1 - 0.5 ** (epoch + 1))
        yield Epoch(epoch, epoch, {"valid/accuracy_top1": value, "valid/loss": 1 - value})


def falling(config: ExperimentConfig) -> Iterator[Any]:
    """The train loss falls, the valid loss does not."""
    for epoch, result in enumerate(good(config)):
        yield replace(result, metrics=result.metrics | {"train/loss": 1 / (epoch + 2), "valid/loss": 1.0})


def failing(config: ExperimentConfig) -> Iterator[Any]:
    if config.train.num_epochs:
        raise DataError(f"no photographs for {config.name}")
    yield


def _config(**search: Any) -> ExperimentConfig:
    space: dict[str, Dimension] = {"train.lr": FloatDimension(low=1e-4, high=1e-1, log=True)}
    options: dict[str, Any] = {"num_trials": 6, "sampler": "random", "pruner": "none", "space": space} | search
    return ExperimentConfig(name="dogs", search=SearchConfig(**options), train=TrainConfig(num_epochs=3))


class Bench:
    """A project folder, a fake tracker, and the two calls that a command makes."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tracker: Any = FakeTracker()
        self.parent: Any = FakeRun("parent")

    def open(self, config: ExperimentConfig, **options: Any) -> SearchStudy:
        return SearchStudy.open(
            config, fingerprint=FINGERPRINT, tracking_uri="fake://", project_dir=self.folder, **options
        )

    def run(self, config: ExperimentConfig, objective: Objective = good, **options: Any) -> SearchResult:
        with self.open(config) as study:
            return study.run(objective, tracker=self.tracker, parent=self.parent, **options)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_search_runs_all_trials_and_finds_the_best(bench: Bench) -> None:
    result = bench.run(_config(num_trials=8))
    assert [trial.number for trial in result.trials] == list(range(8))
    assert result.best.value == max(trial.value or 0 for trial in result.trials)
    assert [run.name for run in bench.tracker.runs][:2] == ["trial-0000", "trial-0001"]
    first = bench.tracker.runs[0]
    assert first.status == "FINISHED"
    assert first.tags == {"optuna.trial_number": "0", "trial.state": "COMPLETE", "trial.best_epoch": "2"}
    assert first.metrics["objective"] == result.trials[0].value
    assert result.trials[0].values == {"train.lr": first.params["train.lr"]}
    assert (result.best.best_epoch, result.best.num_epochs, result.metric) == (2, 3, "valid/accuracy_top1")


def test_every_trial_that_trained_is_judged_by_its_epochs(bench: Bench) -> None:
    counts = {"beagle": 30, "collie": 2}
    judge = EpochJudge(counts, {"ClassImbalance": {"samples": 32}, "LossNotDecreasing": {"num_steps": 1}})
    bench.run(_config(num_trials=3), falling, judge=judge)
    for run in bench.tracker.runs:
        tags = {name: value for name, value in run.tags.items() if name.startswith("profiler.")}
        assert tags == {
            "profiler.LossNotDecreasing": "NoIssuesFound",
            "profiler.Overfit": "IssuesFound",
            "profiler.Overtraining": "NotApplicable",
            "profiler.ClassImbalance": "IssuesFound",
        }


def test_trial_that_failed_in_its_first_epoch_is_not_judged(bench: Bench) -> None:
    judge = EpochJudge({"beagle": 30, "collie": 2})
    with pytest.raises(SearchError):
        bench.run(_config(num_trials=1), failing, judge=judge)
    assert not any(name.startswith("profiler.") for name in bench.tracker.runs[0].tags)


def test_search_minimizes_where_asked(bench: Bench) -> None:
    result = bench.run(_config(metric="valid/loss", direction="minimize"))
    assert result.best.value == min(trial.value or 9 for trial in result.trials)


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_search_repeats_itself_by_seed(tmp_path: Path, sampler: str) -> None:
    def values(folder: str, seed: int) -> list[Any]:
        result = Bench(tmp_path / folder).run(_config(sampler=sampler, seed=seed))
        return [trial.values["train.lr"] for trial in result.trials]

    assert values("a", 1) == values("b", 1)
    assert values("c", 2) != values("a2", 1)


def test_continued_search_does_not_draw_its_first_values_again(bench: Bench) -> None:
    bench.run(_config(num_trials=3))
    result = bench.run(_config(num_trials=6))
    assert len({trial.values["train.lr"] for trial in result.trials}) == 6


def test_value_is_that_of_the_epoch_whose_weights_are_kept(bench: Bench) -> None:
    def overfitting(config: ExperimentConfig) -> Iterator[Any]:
        for epoch, value in enumerate([0.5, 0.8, 0.6]):
            yield Epoch(epoch, epoch, {"valid/accuracy_top1": value}, is_best=epoch < 2)

    result = bench.run(_config(num_trials=1), overfitting)
    assert (result.best.value, result.best.best_epoch, result.best.num_epochs) == (0.8, 1, 3)


def test_pruned_trial_is_left_early_and_its_run_killed(bench: Bench) -> None:
    closed: list[int] = []

    def ordered(config: ExperimentConfig) -> Iterator[Any]:
        level = 1.0 - 0.1 * len(bench.tracker.runs)
        try:
            for epoch in range(config.train.num_epochs):
                yield Epoch(epoch, epoch, {"valid/accuracy_top1": level})
        finally:
            closed.append(epoch)

    result = bench.run(_config(pruner="median", num_trials=7), ordered)
    pruned = [trial for trial in result.trials if trial.state == "PRUNED"]
    assert [trial.number for trial in pruned] == [4, 5, 6]
    assert all(trial.num_epochs == 2 for trial in pruned)
    assert [bench.tracker.runs[5].status, bench.tracker.runs[5].tags["trial.state"]] == ["KILLED", "PRUNED"]
    assert closed == [2, 2, 2, 2, 1, 1, 1]


def test_failed_trial_is_recorded_and_the_search_goes_on(bench: Bench) -> None:
    def picky(config: ExperimentConfig) -> Iterator[Any]:
        if len(bench.tracker.runs) == 2:
            raise RuntimeError("out of memory")
        yield from good(config)

    result = bench.run(_config(), picky)
    assert [trial.state for trial in result.trials] == ["COMPLETE", "FAILED", *["COMPLETE"] * 4]
    assert result.trials[1].cause == "RuntimeError: out of memory"
    assert result.trials[1].value is None
    assert bench.tracker.runs[1].status == "FAILED"
    assert bench.tracker.runs[1].tags["trial.state"] == "FAILED"


@pytest.mark.parametrize(
    ("metrics", "cause"),
    [
        ({"valid/accuracy_top1": math.nan}, "must be finite, got nan in epoch 0"),
        ({"valid/loss": 1.0}, r"one that an epoch logs \(valid/loss\), got 'valid/accuracy_top1'"),
    ],
)
def test_metric_that_cannot_decide_fails_the_trial(bench: Bench, metrics: dict[str, float], cause: str) -> None:
    def odd(_: ExperimentConfig) -> Iterator[Any]:
        yield Epoch(0, 0, metrics)

    with pytest.raises(SearchError, match=cause):
        bench.run(_config(num_trials=2), odd)


def test_value_that_the_config_refuses_fails_the_trial(bench: Bench) -> None:
    space = {"train.num_views": IntDimension(low=1, high=2)}
    with pytest.raises(SearchError, match="num_views above 1 needs"):
        bench.run(_config(space={"train.num_views": CategoricalDimension(choices=[2])}, num_trials=9))
    assert len(bench.tracker.runs) == 5
    result = bench.run(_config(space=space, num_trials=12))
    assert {trial.state for trial in result.trials} == {"COMPLETE", "FAILED"}


def test_search_stops_when_the_first_five_fail_and_then_starts_afresh(bench: Bench) -> None:
    with pytest.raises(SearchError, match=r"All of the first 5 trials failed: DataError: no photographs for dogs\."):
        bench.run(_config(), failing)
    assert len(bench.tracker.runs) == 5
    study = bench.open(_config())
    assert not study.resumed
    assert study.study_name.endswith("-2")
    study.close()


def test_programming_mistake_stops_the_search(bench: Bench) -> None:
    def wrong(_: ExperimentConfig) -> Iterator[Any]:
        yield undefined_name  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(NameError):
        bench.run(_config(), wrong)


def test_store_that_stays_away_stops_the_search_and_keeps_it(bench: Bench) -> None:
    def cut_off(config: ExperimentConfig) -> Iterator[Any]:
        yield from good(config)
        if len(bench.tracker.runs) == 3:
            raise TrackingError("away")

    with pytest.raises(TrackingError):
        bench.run(_config(), cut_off)
    result = bench.run(_config())
    assert len(result.trials) == 6
    assert 2 not in [trial.number for trial in result.trials]


def test_finished_search_is_not_continued(bench: Bench) -> None:
    study = bench.open(_config())
    study.begin("first")
    study.finish()
    again = bench.open(_config())
    assert (again.resumed, again.parent_run_id) == (False, None)
    assert again.study_name == study.study_name[:-1] + "2"
    again.close()


def test_unfinished_search_is_continued_under_its_parent(bench: Bench) -> None:
    with bench.open(_config()) as study:
        study.begin("first")
    longer = bench.open(_config(num_trials=50, timeout_s=3.0, num_parallel=2))
    assert (longer.resumed, longer.parent_run_id, longer.study_name) == (True, "first", study.study_name)
    longer.close()
    with bench.open(_config(seed=5)) as other:
        assert not other.resumed
    with bench.open(replace(_config(), name="cats")) as other:
        assert not other.resumed


def test_search_whose_parent_was_deleted_is_not_continued(bench: Bench) -> None:
    with bench.open(_config()) as study:
        study.begin("deleted")
    with bench.open(_config(), tracker=bench.tracker) as again:
        assert not again.resumed


def _leave_running(bench: Bench, config: ExperimentConfig, *, num_before: int = 2) -> None:
    """Ends a search in the middle of a trial, as kill -9 would: nothing is tidied up."""
    with bench.open(config) as study:
        study.begin(bench.parent.run_id)

        def dying(trial_config: ExperimentConfig) -> Iterator[Any]:
            yield from good(trial_config)
            if len(bench.tracker.runs) > num_before:
                raise SystemExit

        with pytest.raises(SystemExit):
            study.run(dying, tracker=bench.tracker, parent=bench.parent)
    run = bench.tracker.runs[-1]
    run.status, run.tags = "RUNNING", {"optuna.trial_number": run.tags["optuna.trial_number"]}


def test_cut_off_trial_is_run_again_with_its_values(bench: Bench) -> None:
    _leave_running(bench, _config())
    cut_off = bench.tracker.runs[2]
    result = bench.run(_config())
    assert [trial.number for trial in result.trials] == [0, 1, 3, 4, 5, 6]
    assert (cut_off.status, cut_off.tags["trial.state"]) == ("KILLED", INTERRUPTED)
    retried = bench.tracker.runs[3]
    assert retried.tags["dogbreed.retry_of"] == "2"
    assert retried.params["train.lr"] == cut_off.params["train.lr"]


@pytest.mark.parametrize(
    ("status", "tags", "metrics", "state"),
    [
        ("FINISHED", {"trial.state": "COMPLETE", "trial.best_epoch": "1"}, {"objective": 0.99}, "COMPLETE"),
        ("KILLED", {"trial.state": "PRUNED"}, {"objective": 0.2}, "PRUNED"),
        ("FAILED", {"trial.state": "FAILED", "failure.cause": "ValueError: no"}, {}, "FAILED"),
    ],
)
def test_trial_whose_run_had_ended_is_adopted(
    bench: Bench, status: str, tags: dict[str, str], metrics: dict[str, float], state: str
) -> None:
    _leave_running(bench, _config())
    run = bench.tracker.runs[2]
    run.status, run.metrics = status, metrics
    run.tags.update(tags)
    result = bench.run(_config())
    assert [trial.number for trial in result.trials] == list(range(6))
    assert result.trials[2].state == state
    assert result.trials[2].run_id == run.run_id
    assert (result.best.number == 2) == (state == "COMPLETE")


def test_trial_that_kills_its_process_each_time_is_given_up(bench: Bench) -> None:
    for crash in range(3):
        _leave_running(bench, _config(), num_before=2 + crash)
    result = bench.run(_config())
    failed = [trial for trial in result.trials if trial.state == "FAILED"]
    assert [trial.cause for trial in failed] == ["the process was killed in it 3 times"]


def test_interrupted_trial_is_killed_and_not_counted_as_a_crash(bench: Bench) -> None:
    def interrupted(config: ExperimentConfig) -> Iterator[Any]:
        yield from good(config)
        raise KeyboardInterrupt

    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            bench.run(_config(), interrupted)
    assert [run.status for run in bench.tracker.runs] == ["KILLED"] * 4
    result = bench.run(_config())
    assert {trial.state for trial in result.trials} == {"COMPLETE"}
    assert len({run.params["train.lr"] for run in bench.tracker.runs[:5]}) == 1


def test_timeout_starts_no_more_trials(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr("dogbreed_ml.search.time.monotonic", lambda: float(next(now)))
    result = bench.run(_config(num_trials=50, timeout_s=4.0))
    assert len(result.trials) == 3


def test_search_without_a_complete_trial_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr("dogbreed_ml.search.time.monotonic", lambda: float(next(now)))
    with pytest.raises(SearchError, match=r"No trial was completed .* raise search.timeout_s"):
        bench.run(_config(timeout_s=0.5))


def test_grid_stops_when_it_is_exhausted_and_covers_all(bench: Bench) -> None:
    space: dict[str, Dimension] = {
        "train.lr": FloatDimension(low=0.1, high=0.3, step=0.1),
        "train.batch_size": CategoricalDimension(choices=[16, 32]),
    }
    config = _config(sampler="grid", space=space, num_trials=50)
    assert num_possible_trials(config.search) == 6
    result = bench.run(config)
    assert len({tuple(trial.values.values()) for trial in result.trials}) == 6


def test_grid_goes_on_after_an_interruption(bench: Bench) -> None:
    space: dict[str, Dimension] = {"train.lr": FloatDimension(low=0.1, high=0.5, step=0.1)}
    config = _config(sampler="grid", space=space, num_trials=50)
    _leave_running(bench, config)
    result = bench.run(config)
    assert len({trial.values["train.lr"] for trial in result.trials}) == len(result.trials) == 5


def test_grid_values_keep_both_ends() -> None:
    assert grid_values(FloatDimension(low=0.1, high=0.3, step=0.1)) == pytest.approx([0.1, 0.2, 0.3])
    assert grid_values(IntDimension(low=2, high=7, step=2)) == [2, 4, 6]
    assert grid_values(CategoricalDimension(choices=[None, 2])) == [None, 2]


def test_journal_survives_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    study = optuna.create_study(study_name="a", storage=open_journal(path))
    study.tell(study.ask(), 1.0)
    with path.open("ab") as journal:
        journal.write(b'{"op_code": 4, "worker_id": "x", "stu')
    again = optuna.load_study(study_name="a", storage=open_journal(path))
    again.tell(again.ask(), 2.0)
    trials = optuna.load_study(study_name="a", storage=open_journal(path)).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2


def test_search_logs_a_line_per_trial_without_a_terminal(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="dogbreed_ml"):
        result = bench.run(_config(num_trials=2), console=Console(file=StringIO()))
    first = result.trials[0].value
    assert f"trial=0 state=COMPLETE valid/accuracy_top1={first:.4f} best={first:.4f}" in caplog.messages


def test_search_shows_a_bar_on_a_terminal(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    screen = StringIO()
    with caplog.at_level(logging.INFO, logger="dogbreed_ml"):
        result = bench.run(_config(), console=Console(file=screen, force_terminal=True, width=120))
    assert "6/6" in screen.getvalue()
    assert f"best valid/accuracy_top1 {result.best.value:.4f}" in screen.getvalue()
    assert "trial=0 state" not in caplog.text


def test_best_of_a_tie_is_the_first(bench: Bench) -> None:
    def constant(_: ExperimentConfig) -> Iterator[Any]:
        yield Epoch(0, 0, {"valid/accuracy_top1": 0.0})

    result = bench.run(_config(), constant)
    assert result.best.number == 0
