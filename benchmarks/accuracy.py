"""Top-1 on the held-back test split, over five fixed data seeds, through the command itself."""

import logging

from benchmarks.photographs import collect
from benchmarks.results import BenchmarkError, Figure, Goal, Result
from benchmarks.settings import Settings
from benchmarks.tune import Tuned, tune

logger = logging.getLogger(__name__)

DATA_SEEDS = (0, 1, 2, 3, 4)
"""Fixed by the goal, not to be chosen."""


def measure(settings: Settings) -> Result:
    """A whole search for each seed, all in one project folder, so that features are kept where they can be."""
    config_path = settings.accuracy_config
    if not config_path.is_file():
        raise BenchmarkError(f"--accuracy-config must be a config file, got {config_path}.")
    quick = settings.is_quick
    seeds = DATA_SEEDS[:2] if quick else DATA_SEEDS
    photographs = collect(settings, "accuracy", num_breeds=4 if quick else 120, num_per_breed=16 if quick else 50)
    flags = ["--data.source", "folder", "--data.path", str(photographs.dir)]
    flags += ["--model.weights", settings.weights, "--model.resnet_version", settings.resnet_version]
    if quick:
        flags += ["--search.num_trials", "2", "--train.num_epochs", "2"]
    project_dir = settings.folder("accuracy")
    searches: list[Tuned] = []
    for seed in seeds:
        searches.append(tune(settings, config_path, project_dir, flags=[*flags, "--data.seed", str(seed)]))
        accuracy = searches[-1].summary["test"]["accuracy_top1"]
        logger.info("accuracy: data.seed %d: test top-1 %.2f %% in %.0f s", seed, 100 * accuracy, searches[-1].wall_s)
    top1 = [100 * float(tuned.summary["test"]["accuracy_top1"]) for tuned in searches]
    figures = [
        Figure("test top-1, mean over the seeds", tuple(top1), "%", Goal("at least", 80), statistic="mean"),
        *(
            Figure(f"data.seed {seed}: test top-1, 95 % interval {_interval(tuned)}", (percent,), "%")
            for seed, tuned, percent in zip(seeds, searches, top1, strict=True)
        ),
        Figure("one search, whole process", tuple(tuned.wall_s for tuned in searches), "s"),
    ]
    trials = sorted({int(tuned.summary["num_trials"]) for tuned in searches})
    notes = (
        f"{photographs.describe()}; {config_path.name}, {'/'.join(map(str, trials))} trials a seed.",
        f"Tables of features found by each search: {[tuned.summary['cache_hits'] for tuned in searches]}.",
        "Test is looked at once per seed. Weights drawn from ImageNet have probably seen most photographs of Stanford "
        "Dogs: this figure compares ways of training a head, it is no claim about new dogs.",
        *(f"data.seed {seed}: {_render_params(tuned)}" for seed, tuned in zip(seeds, searches, strict=True)),
    )
    return Result("accuracy", "top-1 on test over the data seeds", tuple(figures), notes)


def _interval(tuned: Tuned) -> str:
    low, high = tuned.summary["test_top1_interval"]
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _render_params(tuned: Tuned) -> str:
    params = tuned.summary["best_params"].items()
    told = (f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in params)
    return f"best trial {tuned.summary['best_trial']}, {', '.join(told)}"
