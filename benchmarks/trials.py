"""What one more trial costs on kept features, MLflow's writes included, and whether it grows."""

import logging
import statistics
from itertools import pairwise
from pathlib import Path

from benchmarks.photographs import collect
from benchmarks.results import BenchmarkError, Goal, Result, each, ratios
from benchmarks.settings import Settings
from benchmarks.tune import LR, tune, write_config

logger = logging.getLogger(__name__)

_WINDOW = 10

# No batch size: a sampler that comes to like small batches makes later trials dearer by their steps, and the ratio
# would show its taste instead of what the bookkeeping costs (measured with 16, 32 and 64 to choose from: 1.41).
_SPACE = LR | {"train.weight_decay": {"type": "float", "low": 1e-6, "high": 1e-1, "log": True}}


def measure(settings: Settings) -> Result:
    """One long search a repetition; a trial's cost is the time from its start to the next one's."""
    num_trials, places = (16, (5, 8, 11)) if settings.is_quick else (510, (10, 100, 500))
    quick = settings.is_quick
    photographs = collect(settings, "trials", num_breeds=4 if quick else 8, num_per_breed=8 if quick else 50)
    costs: dict[int, list[float]] = {place: [] for place in places}
    all_costs: list[float] = []
    stage_s: list[float] = []
    after_s: list[float] = []
    for repetition in range(settings.num_repetitions):
        logger.info("trials: repetition %d of %d, %d trials", repetition + 1, settings.num_repetitions, num_trials)
        folder = settings.folder(f"trials-{repetition}")
        project_dir = folder / "project"
        project_dir.mkdir()
        config_path = write_config(
            settings, photographs, folder / "config.yaml", num_trials=num_trials, num_epochs=5, space=_SPACE
        )
        tuned = tune(settings, config_path, project_dir)
        starts_ms = trial_starts_ms(project_dir, str(tuned.summary["parent_run_id"]))
        if len(starts_ms) != num_trials:
            raise BenchmarkError(f"The store must hold {num_trials} child runs of the search, got {len(starts_ms)}.")
        for place in places:
            costs[place].append(cost_around(starts_ms, place))
        stage_s.append(tuned.seconds["search"])
        stages = list(tuned.seconds)
        after_s.append(sum(tuned.seconds[stage] for stage in stages[stages.index("search") + 1 :]))
        all_costs.append(1000 * tuned.seconds["search"] / num_trials)
    first, last = places[0], places[-1]
    figures = [
        each(f"one trial around trial {place}", costs[place], "ms", goal=Goal("at most", 60)) for place in places
    ]
    figures += [
        each(f"trial {last} / trial {first}", ratios(costs[last], costs[first]), "x", goal=Goal("at most", 1.3)),
        each("search stage / number of trials", all_costs, "ms", goal=Goal("at most", 60)),
        each("search stage", stage_s, "s"),
        each("stages after the search", after_s, "s"),
    ]
    notes = (
        f"{photographs.describe()}, {num_trials} trials of 5 epochs of batches of 32, learning rate and weight decay "
        "searched, no pruner, one process; MLflow on SQLite.",
        f"Each figure around a trial is the median over {_WINDOW} trials of the time from one child run's start to the "
        "next one's, as the tracking store has it.",
        "Writes still waiting when the search stage ends would show in the stages after it (refit, evaluation, model, "
        "report), which take a few seconds for any number of trials.",
    )
    return Result("trials", "the cost of one more trial", tuple(figures), notes)


def trial_starts_ms(project_dir: Path, parent_run_id: str) -> list[int]:
    """Start times of a search's child runs, epoch milliseconds, in the order of trial numbers."""
    # Two seconds of import that only this function needs.
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project_dir / 'mlflow.db'}")
    parent = client.get_run(parent_run_id)
    query = f"tags.mlflow.parentRunId = '{parent_run_id}'"
    runs, token = [], None
    while True:
        page = client.search_runs([parent.info.experiment_id], query, max_results=1000, page_token=token)
        runs += list(page)
        token = page.token
        if not token:
            break
    trials = [run for run in runs if "optuna.trial_number" in run.data.tags]
    trials.sort(key=lambda run: int(run.data.tags["optuna.trial_number"]))
    return [int(run.info.start_time) for run in trials]


def cost_around(starts_ms: list[int], place: int) -> float:
    """The median milliseconds from one trial's start to the next one's over the ten trials around number `place`."""
    low = max(0, place - _WINDOW // 2)
    window = starts_ms[low : low + _WINDOW + 1]
    return float(statistics.median(after - before for before, after in pairwise(window)))
