"""A window of training steps traced operator by operator: torch.profiler's Chrome trace and its top operators."""

import csv
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

NUM_OPERATORS: Final = 20

TRACE_FILE: Final = "trace.json"
OPERATORS_FILE: Final = "operators.csv"


@dataclass(frozen=True)
class OperatorTime:
    """What one operator took within the window."""

    name: str
    num_calls: int
    self_cpu_ms: float
    """Without the operators that it called."""
    cpu_ms: float
    self_device_ms: float
    """On the GPU; 0 without one."""


class TraceWindow:
    """Traces `num_steps` training steps from step `start` on; `step` is called as each gets its data.

    Outside the window a step costs one comparison. A training that ends early ends the window.
    """

    def __init__(self, folder: Path, *, start: int, num_steps: int):
        """Writes TRACE_FILE and OPERATORS_FILE into `folder` when the window ends."""
        self.operators: tuple[OperatorTime, ...] = ()
        """The most expensive ones by their own time, once the window has ended."""
        self._folder = folder
        self._start = start
        self._end = start + num_steps
        self._num_begun = 0
        self._profile: Any = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was asked for and not traced, once the training has ended."""
        if self._num_begun >= self._end or self._end == self._start:
            return ()
        traced = f"{self._num_begun - self._start} steps were" if self._num_begun > self._start else "nothing was"
        return (
            f"The training had {self._num_begun} steps, and the trace was to be of steps {self._start} to "
            f"{self._end - 1} (profile.trace_start, profile.trace_steps): {traced} traced.",
        )

    def step(self) -> bool:
        """Whether the window was opened or closed, which takes longer than many a step."""
        number = self._num_begun
        self._num_begun += 1
        if number == self._start and self._end > self._start:
            self._open()
            return True
        if number == self._end and self._profile is not None:
            self.close()
            return True
        return False

    def close(self) -> None:
        """Ends an open window and writes its files."""
        if self._profile is None:
            return
        profile, self._profile = self._profile, None
        profile.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f"{TRACE_FILE}.partial"
        profile.export_chrome_trace(str(partial))
        os.replace(partial, self._folder / TRACE_FILE)
        self.operators = _top_operators(profile)
        save_operators(self.operators, self._folder / OPERATORS_FILE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        import torch
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities, acc_events=True)
        self._profile.start()


def _top_operators(profile: Any) -> tuple[OperatorTime, ...]:
    rows = [
        OperatorTime(
            each.key, each.count, each.self_cpu_time_total / 1e3, each.cpu_time_total / 1e3,
            each.self_device_time_total / 1e3,
        )
        for each in profile.key_averages()
    ]  # fmt: skip
    rows.sort(key=lambda row: -(row.self_device_ms or row.self_cpu_ms))
    return tuple(rows[:NUM_OPERATORS])


def save_operators(operators: tuple[OperatorTime, ...], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [each.name for each in fields(OperatorTime)])
        writer.writeheader()
        writer.writerows(asdict(each) for each in operators)


def load_operators(path: Path) -> tuple[OperatorTime, ...]:
    """Empty where there is no such file."""
    if not path.is_file():
        return ()
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(
            OperatorTime(
                row["name"], int(row["num_calls"]), float(row["self_cpu_ms"]), float(row["cpu_ms"]),
                float(row["self_device_ms"]),
            )
            for row in csv.DictReader(file)
        )  # fmt: skip
