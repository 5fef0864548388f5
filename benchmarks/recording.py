"""How long a recording of 1,000,000 samples takes from its files to the report, and how much memory at the most.

`python -m benchmarks.recording FOLDER` is the process that is watched: it prints the seconds of each part as JSON.
"""

import json
import sys
import tempfile
from itertools import islice
from pathlib import Path
from time import perf_counter

from benchmarks.processes import run_python
from benchmarks.results import Result, each
from benchmarks.settings import Settings
from dogbreed_ml.profiling.formats import Event, render_sample, system_path, write_timeline

NUM_CORES, NUM_GPUS = 64, 8
_START_S = 1_591_160_700.0
_INTERVAL_S = 0.5
_FILE_TICKS = 120
_STEP_US = 35_000
_MIB = 2**20
_PARTS = ("read", "judged", "report")


def measure(settings: Settings) -> Result:
    """Anew in each repetition, by a process of its own."""
    num_samples, num_steps = (10_000, 1_000) if settings.is_quick else (1_000_000, 100_000)
    folder = settings.folder("recording")
    _write(folder, num_samples, num_steps)
    seconds: list[dict[str, float]] = []
    peaks: list[float] = []
    for repetition in range(settings.num_repetitions):
        process_dir = settings.folder(f"recording-{repetition}")
        arguments = ["-m", "benchmarks.recording", str(folder)]
        finished = run_python(arguments, cwd=process_dir, environment=settings.environment)
        seconds.append(json.loads(finished.stdout.splitlines()[-1]))
        peaks.append((finished.peak_anon_bytes or 0) / _MIB)
    figures = [each(f"{num_samples:,} samples: {part}", [told[part] for told in seconds], "s") for part in _PARTS]
    if all(peaks):
        figures.append(each("peak RssAnon of the process, libraries included", peaks, "MiB"))
    notes = (
        f"{NUM_CORES} cores (use and I/O wait) and {NUM_GPUS} GPUs (use and memory) sampled every {_INTERVAL_S} s in "
        f"files of a minute, and {num_steps:,} training steps of a forward span each.",
    )
    return Result("recording", "a long recording judged", tuple(figures), notes)


def _write(root: Path, num_samples: int, num_steps: int) -> None:
    """Files as the profiler writes them: cores and GPUs whose use goes up and down."""
    names = [("cpu", f"cpu{n}", "CPUUtilization") for n in range(NUM_CORES)]
    names += [("i/o", f"cpu{n}", "I/OWaitPercentage") for n in range(NUM_CORES)]
    names += [("gpu", f"gpu{n}", "GPUUtilization") for n in range(NUM_GPUS)]
    names += [("gpu", f"gpu{n}", "GPUMemoryUtilization") for n in range(NUM_GPUS)]
    lines = (
        (tick, render_sample(*name, float((7 * tick + place) % 100), timestamp_s=_START_S + tick * _INTERVAL_S))
        for tick in range(-(-num_samples // len(names)))
        for place, name in enumerate(names)
    )
    files: dict[int, list[str]] = {}
    for tick, line in islice(lines, num_samples):
        files.setdefault(tick // _FILE_TICKS, []).append(line)
    for number, text in files.items():
        path = system_path(root, _START_S + number * _FILE_TICKS * _INTERVAL_S)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(text), encoding="utf-8")
    start_us = int(_START_S * 1e6)
    events = (
        Event(name, name, start_us + step * _STEP_US, duration_us + step % 100, step)
        for step in range(num_steps)
        for name, duration_us in (("Step:ModeKeys.TRAIN", _STEP_US - 100), ("forward", _STEP_US // 2))
    )
    write_timeline(root, events, pid=1)


def main(source: Path) -> None:
    """Prints the seconds of reading, judging and writing the report."""
    from dogbreed_ml.profiling.readers import read_recording
    from dogbreed_ml.profiling.report import save_profiler_report
    from dogbreed_ml.profiling.rules import judge

    times = [perf_counter()]
    recording = read_recording(source)
    times.append(perf_counter())
    verdicts = judge(recording)
    times.append(perf_counter())
    with tempfile.TemporaryDirectory() as folder:
        save_profiler_report(Path(folder), recording, verdicts, title="benchmark")
        times.append(perf_counter())
    print(json.dumps({part: times[i + 1] - times[i] for i, part in enumerate(_PARTS)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
