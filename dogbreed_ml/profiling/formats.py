"""smdebug's files: where they lie, and how ours are written; SageMaker's look the same.

    ROOT/system/incremental/YYYYMMDDHH/<10 digits: s at which it was begun>.algo-1.json
    ROOT/framework/pevents/YYYYMMDDHH/<16 digits: us of the last event's end>_<pid>-algo-1_model_timeline.json

A system file is JSON lines, a framework file a Chrome trace. smdebug's readers go by the names: the first system file's
time is their zero, and events that ended before it vanish.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from dogbreed_ml.files import write_whole

LOADER_EVENT: Final = "DataLoaderIterInitialize"
"""smdebug's name of the phase in which a PyTorch loader starts; its args have num_workers and pin_memory."""

SYSTEM_FILE: Final = re.compile(r"(\d{10})\.(algo-\d+)\.json")
TIMELINE_FILE: Final = re.compile(r"(\d{16})_(?:(\d+)-)?(algo-\d+)_\w+\.json")

MAX_FILE_CHARS: Final = 10_485_760
"""smdebug's own limit; what is longer goes on in the next file."""


def system_path(root: Path, timestamp_s: float, node: str = "algo-1") -> Path:
    """Where a file belongs that was begun then: at its first sample, or before it."""
    return root / "system" / "incremental" / _hour(timestamp_s) / f"{int(timestamp_s):010d}.{node}.json"


def timeline_path(root: Path, end_us: int, *, pid: int, node: str = "algo-1") -> Path:
    """Where a file belongs whose last event ends then."""
    return root / "framework" / "pevents" / _hour(end_us / 1e6) / f"{end_us:016d}_{pid}-{node}_model_timeline.json"


def render_sample(
    kind: str, name: str, dimension: str, value: float, *, timestamp_s: float, node: str = "algo-1"
) -> str:
    """One line of a system file, with its newline."""
    sample = {
        "Type": kind,
        "Name": name,
        "Dimension": dimension,
        "Value": round(value, 3),
        "NodeId": node,
        "Timestamp": round(timestamp_s, 6),
    }
    return json.dumps(sample, separators=(",", ":")) + "\n"


@dataclass(frozen=True, slots=True)
class Event:
    """One complete event of a timeline."""

    name: str
    phase: str
    """smdebug's process: Step:ModeKeys.TRAIN, forward, ..."""
    start_us: int
    """Since the epoch."""
    duration_us: int
    step: int
    """smdebug's PandasFrameAnalysis refuses events outside every step that have none."""
    thread: int = 0
    args: Mapping[str, object] = field(default_factory=dict)


def write_timeline(
    root: Path, events: Iterable[Event], *, pid: int, node: str = "algo-1", max_file_chars: int = MAX_FILE_CHARS
) -> list[Path]:
    """Writes events, in files of `max_file_chars` at most and of one hour each; the paths, by time."""
    paths: list[Path] = []
    lines: list[str] = []
    num_chars, end_us, origin_us = 0, 0, 0
    phases: dict[str, int] = {}

    def close() -> None:
        if lines:
            head = _render_head(origin_us, list(phases))
            paths.append(write_whole(_free_path(root, end_us, pid, node), [*head, ",\n".join(lines), "\n]\n"]))

    for event in events:
        if lines and (num_chars > max_file_chars or _hour(event.start_us / 1e6) != _hour(origin_us / 1e6)):
            close()
            lines, num_chars, end_us, phases = [], 0, 0, {}
        if not lines:
            origin_us = event.start_us
        lines.append(_render_event(event, phases.setdefault(event.phase, len(phases) + 1), origin_us))
        num_chars += len(lines[-1])
        end_us = max(end_us, event.start_us + event.duration_us)
    close()
    return paths


def _render_event(event: Event, pid: int, origin_us: int) -> str:
    # By hand: json.dumps of the whole takes three times as long, which counts for a million steps.
    more = f", {json.dumps(dict(event.args))[1:-1]}" if event.args else ""
    start_us = event.start_us - origin_us
    return (
        f'{{"name": "{event.name}", "pid": {pid}, "tid": {event.thread}, "ph": "X", "ts": {start_us}, '
        f'"dur": {event.duration_us}, "args": {{"step_num": "{event.step}"{more}}}}}'
    )


def _render_head(origin_us: int, phases: Sequence[str]) -> Iterator[str]:
    """The origin of the file's times, and phase N as process N + 1."""
    origin: dict[str, object] = {"start_time_since_epoch_in_micros": origin_us}
    yield "[\n"
    for pid, args in enumerate([origin, *({"name": phase} for phase in phases)]):
        yield json.dumps({"name": "process_name", "ph": "M", "pid": pid, "args": args}) + ",\n"
        yield json.dumps({"name": "process_sort_index", "ph": "M", "pid": pid, "args": {"sort_index": pid}}) + ",\n"


def _free_path(root: Path, end_us: int, pid: int, node: str) -> Path:
    path = timeline_path(root, end_us, pid=pid, node=node)
    return path if not path.exists() else _free_path(root, end_us + 1, pid, node)


def _hour(timestamp_s: float) -> str:
    return datetime.fromtimestamp(timestamp_s, UTC).strftime("%Y%m%d%H")
