"""The search itself, beside what a user would write without this project."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.photographs import Photographs, collect
from benchmarks.processes import run_python
from benchmarks.results import Figure, Goal, Result, each, ratios
from benchmarks.settings import CHECKOUT, RANDOM_WEIGHTS, Settings
from benchmarks.tune import Tuned, tune, write_config

logger = logging.getLogger(__name__)

START_UP_S = 10.0
"""What a search may take beside 1.5 times the bare forward pass."""
BARE_BATCH_SIZE = 16


@dataclass(frozen=True)
class Baseline:
    """A script whose search is measured in part and multiplied."""

    script: str
    num_measured_epochs: int
    """Of one trial; the last one is multiplied, so that with more than one a first slow epoch does not count."""


NAIVE = Baseline("baseline_naive.py", 1)
CAREFUL = Baseline("baseline_careful.py", 2)


def project_seconds(wall_s: float, report: dict[str, Any], *, num_trials: int, num_epochs: int) -> float:
    """The seconds of a whole search, from one measured trial.

    Start-up counts once, what a trial takes beside its epochs once a trial, and its last measured epoch for each epoch.
    """
    trial_s, epochs_s = float(report["trial_s"][0]), [float(seconds) for seconds in report["epoch_s"]]
    start_up_s = wall_s - trial_s
    return start_up_s + num_trials * (trial_s - sum(epochs_s)) + num_trials * num_epochs * epochs_s[-1]


def measure(settings: Settings) -> Result:
    """(a) naive, (b) careful, (c) ours, (d) a bare pass, one after the other in each repetition."""
    num_trials, num_epochs = (3, 2) if settings.is_quick else (20, 5)
    quick = settings.is_quick
    photographs = collect(settings, "search", num_breeds=4 if quick else 8, num_per_breed=8 if quick else 50)
    naive: list[float] = []
    careful: list[float] = []
    epoch_rates: dict[str, list[float]] = {NAIVE.script: [], CAREFUL.script: []}
    bare: list[dict[str, float]] = []
    ours: list[Tuned] = []
    again: list[Tuned] = []
    for repetition in range(settings.num_repetitions):
        logger.info("search: repetition %d of %d", repetition + 1, settings.num_repetitions)
        folder = settings.folder(f"search-{repetition}")
        for baseline, totals in ((NAIVE, naive), (CAREFUL, careful)):
            logger.info("search: %s", baseline.script)
            wall_s, report = _run_baseline(settings, baseline, photographs, folder)
            totals.append(project_seconds(wall_s, report, num_trials=num_trials, num_epochs=num_epochs))
            epoch_rates[baseline.script].append(report["images_per_epoch"] / report["epoch_s"][-1])
        logger.info("search: dogbreed tune, empty feature folder")
        project_dir = folder / "ours"
        project_dir.mkdir()
        config_path = write_config(
            settings, photographs, folder / "config.yaml", num_trials=num_trials, num_epochs=num_epochs
        )
        ours.append(tune(settings, config_path, project_dir))
        logger.info("search: bare forward pass")
        bare.append(_run_bare_forward(settings, photographs, folder))
        logger.info("search: dogbreed tune again")
        again.append(tune(settings, config_path, project_dir))
    ours_s = [tuned.wall_s for tuned in ours]
    allowed_s = [1.5 * seconds + START_UP_S for seconds in (min(layouts.values()) for layouts in bare)]
    figures = [
        each("(a) naive script, 1 trial of 1 epoch multiplied", naive, "s"),
        each("(b) careful script, 1 trial of 2 epochs, the second multiplied", careful, "s"),
        each("(c) ours, whole process, empty feature folder", ours_s, "s"),
        each("(a) / (c)", ratios(naive, ours_s), "x", goal=Goal("at least", 100)),
        each("(b) / (c)", ratios(careful, ours_s), "x", goal=Goal("at least", 30)),
        *(
            each(f"(d) bare eager bf16 forward pass, {layout}", [seconds[layout] for seconds in bare], "s")
            for layout in bare[0]
        ),
        each("1.5 x the faster (d) + 10 s", allowed_s, "s"),
        each("(c) / that", ratios(ours_s, allowed_s), "x", goal=Goal("at most", 1)),
        *_stages(ours),
        each("second search, same folder, whole process", [tuned.wall_s for tuned in again], "s"),
        each(
            "second search, tables of features found", [float(tuned.summary["cache_hits"]) for tuned in again], "",
            goal=Goal("at least", 1),
        ),
        each("second search, feature stage", [tuned.seconds.get("features", 0.0) for tuned in again], "s"),
        each("naive script, images/s within an epoch", epoch_rates[NAIVE.script], ""),
        each("careful script, images/s within an epoch", epoch_rates[CAREFUL.script], ""),
    ]  # fmt: skip
    title = f"{num_trials} trials of {num_epochs} epochs"
    return Result("search", title, tuple(figures), _notes(photographs, num_trials))


def _notes(photographs: Photographs, num_trials: int) -> tuple[str, ...]:
    return (
        f"{photographs.describe()}; each side trains on 70 %, validates on 15 % each epoch and keeps 15 % for test.",
        "(a) and (b) are not run to their end: start-up is counted once, the rest of the one measured trial "
        f"{num_trials} times, and its (last) epoch with its valid pass once for each epoch of each trial. They neither "
        "evaluate on test nor refit, register or report; (c) does.",
        f"(d) is module.bfloat16() without autocast, batch {BARE_BATCH_SIZE}, on normalised tensors in memory, after "
        "one batch to warm up; the goal is held against the faster layout.",
        "(c) has a new project folder: no features, no chosen back end, no tracking store. Stages are its own JSON's; "
        "what they leave of its wall time is Python's start and imports.",
    )


def _stages(ours: list[Tuned]) -> list[Figure]:
    stages = list(dict.fromkeys(stage for tuned in ours for stage in tuned.seconds))
    figures = [each(f"(c) stage {stage}", [tuned.seconds.get(stage, 0.0) for tuned in ours], "s") for stage in stages]
    outside = [tuned.wall_s - sum(tuned.seconds.values()) for tuned in ours]
    return [*figures, each("(c) outside its stages", outside, "s")]


def _run_baseline(
    settings: Settings, baseline: Baseline, photographs: Photographs, folder: Path
) -> tuple[float, dict[str, Any]]:
    cwd = folder / Path(baseline.script).stem
    cwd.mkdir()
    arguments = [str(CHECKOUT / "benchmarks" / baseline.script), "--data", str(photographs.dir)]
    arguments += ["--num-trials", "1", "--num-epochs", str(baseline.num_measured_epochs)]
    if settings.weights != RANDOM_WEIGHTS:
        arguments += ["--weights", settings.weights, "--resnet-version", settings.resnet_version]
    finished = run_python(arguments, cwd=cwd, environment=settings.environment)
    report: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return finished.wall_s, report


def _run_bare_forward(settings: Settings, photographs: Photographs, folder: Path) -> dict[str, float]:
    cwd = folder / "bare"
    cwd.mkdir()
    arguments = ["-m", "benchmarks.bare_forward", "--photographs", str(photographs.dir)]
    arguments += ["--weights", settings.weights, "--resnet-version", settings.resnet_version]
    arguments += ["--batch-size", str(BARE_BATCH_SIZE)]
    report = json.loads(run_python(arguments, cwd=cwd, environment=settings.environment).stdout)
    return {layout: float(seconds) for layout, seconds in report["seconds"].items()}
