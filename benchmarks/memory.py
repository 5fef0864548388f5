"""Whether anonymous memory grows with the number of photographs."""

import json
import logging

from benchmarks.photographs import Photographs, collect
from benchmarks.processes import run_python
from benchmarks.results import Figure, Goal, Result, each
from benchmarks.settings import Settings

logger = logging.getLogger(__name__)

_MIB = 1024**2
_TITLE = "peak anonymous memory against the number of photographs"


def measure(settings: Settings) -> Result:
    """Feature pass and head training, a process for each size, turn by turn."""
    quick = settings.is_quick
    few = collect(settings, "memory-few", num_breeds=4 if quick else 100, num_per_breed=5 if quick else 10)
    many = collect(settings, "memory-many", num_breeds=4 if quick else 120, num_per_breed=12 if quick else 50)
    sizes = [few, many]
    peaks: list[list[float]] = [[], []]
    features: list[float] = [0.0, 0.0]
    for repetition in range(settings.num_repetitions):
        for index, photographs in enumerate(sizes):
            logger.info("memory: repetition %d, %s", repetition + 1, photographs.describe())
            peak, size = _run(settings, photographs, f"memory-{repetition}-{index}")
            peaks[index].append(peak)
            features[index] = size
    if any(peak == 0 for row in peaks for peak in row):
        return Result("memory", _TITLE, (), ("not applicable: this system has no /proc/PID/status with RssAnon",))
    growth = [large - small for small, large in zip(*peaks, strict=True)]
    figures: list[Figure] = []
    for photographs, row, size in zip(sizes, peaks, features, strict=True):
        count = f"{len(photographs.samples):,} photographs"
        figures += [each(f"peak RssAnon, {count}", row, "MiB"), Figure(f"kept features, {count}", (size,), "MiB")]
    allowed = features[1] - features[0]
    name = "growth of peak RssAnon (goal: at most the features' growth)"
    figures.append(each(name, growth, "MiB", goal=Goal("at most", allowed)))
    notes = (
        "RssAnon of the process, read every 20 ms from outside: load_splits, feature pass on an empty folder, and "
        "training of a linear head for 5 epochs.",
        "The features are mapped from their file and count as RssFile.",
    )
    return Result("memory", _TITLE, tuple(figures), notes)


def _run(settings: Settings, photographs: Photographs, name: str) -> tuple[float, float]:
    """Peak RssAnon and size of the features, in MiB; a peak of 0 means that the system does not tell."""
    arguments = ["-m", "benchmarks.memory_process", "--photographs", str(photographs.dir)]
    arguments += ["--weights", settings.weights, "--resnet-version", settings.resnet_version]
    finished = run_python(arguments, cwd=settings.folder(name), environment=settings.environment)
    report = json.loads(finished.stdout.splitlines()[-1])
    return (finished.peak_anon_bytes or 0) / _MIB, report["features_bytes"] / _MIB
