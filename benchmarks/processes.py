"""Runs a Python process to its end and measures it from outside."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter, sleep

from benchmarks.results import BenchmarkError
from benchmarks.settings import CHECKOUT

DEADLINE_S = 7200.0
_POLL_S = 0.02
_KIB = 1024


@dataclass(frozen=True)
class Finished:
    """A process that ended with 0."""

    stdout: str
    wall_s: float
    """From before the process starts to after it is gone."""
    peak_anon_bytes: int | None
    """The largest RssAnon seen every 20 ms; None where the system has no /proc."""


def run_python(
    arguments: Sequence[str], *, cwd: Path, environment: Mapping[str, str], deadline_s: float = DEADLINE_S
) -> Finished:
    """Runs this interpreter with `arguments`; raises BenchmarkError where it fails or outlives the deadline."""
    stdout_path, stderr_path = cwd / "stdout.txt", cwd / "stderr.txt"
    command = [sys.executable, *arguments]
    with stdout_path.open("wb") as stdout, stderr_path.open("wb") as stderr:
        start = perf_counter()
        process = subprocess.Popen(
            command, cwd=cwd, env=_environment(environment), stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL
        )
        try:
            peak = _wait(process, monotonic() + deadline_s)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        wall_s = perf_counter() - start
    if process.returncode != 0:
        tail = "\n".join(stderr_path.read_text(errors="replace").splitlines()[-15:])
        by_signal = f"was killed by signal {-process.returncode} after {wall_s:.0f} s"
        what = by_signal if process.returncode < 0 else f"ended with {process.returncode}"
        raise BenchmarkError(f"python {' '.join(arguments)} {what}; the end of its stderr:\n{tail}")
    return Finished(stdout_path.read_text(), wall_s, peak)


def _wait(process: "subprocess.Popen[bytes]", deadline: float) -> int | None:
    """Polls until the process ends; the peak of its RssAnon in bytes."""
    peak: int | None = None
    while process.poll() is None:
        if monotonic() > deadline:
            return peak
        anon = anon_bytes(process.pid)
        if anon is not None:
            peak = max(peak or 0, anon)
        sleep(_POLL_S)
    return peak


def anon_bytes(pid: int) -> int | None:
    """RssAnon of a process now; None where it is gone or the system has no /proc."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * _KIB for line in lines if line.startswith("RssAnon:")), None)


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without MLflow's variables, so that each process keeps its own store in its own folder."""
    kept = {name: value for name, value in environment.items() if not name.startswith("MLFLOW_")}
    return kept | {"PYTHONPATH": str(CHECKOUT), "MLFLOW_DISABLE_TELEMETRY": "true"}
