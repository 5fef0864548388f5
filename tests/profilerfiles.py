"""Profiler files as SageMaker's agent leaves them, written by hand; nothing of the library writes here."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

START_S = 1_591_160_700.0
"""2020-06-03 05:05:00 UTC."""
INTERVAL_S = 0.5


def hour(timestamp_s: float) -> str:
    return datetime.fromtimestamp(timestamp_s, UTC).strftime("%Y%m%d%H")


def write_samples(root: Path, samples: Iterable[tuple[float, str, str, str, float]], *, node: str = "algo-1") -> None:
    """Samples (timestamp_s, type, name, dimension, value), in one file a minute."""
    files: dict[int, list[str]] = {}
    for timestamp_s, kind, name, dimension, value in samples:
        line = {"Type": kind, "Name": name, "Dimension": dimension, "Value": value}
        line |= {"NodeId": node, "Timestamp": timestamp_s}
        files.setdefault(int(timestamp_s // 60 * 60), []).append(json.dumps(line))
    for minute, lines in files.items():
        path = root / "system" / "incremental" / hour(minute) / f"{minute}.{node}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


def write_machine(
    root: Path,
    *,
    gpus: Mapping[str, Sequence[float]] | None = None,
    memory: Sequence[float] | None = None,
    cpus: Mapping[str, Sequence[float]] | None = None,
    waits: Sequence[float] | None = None,
    node: str = "algo-1",
    start_s: float = START_S,
) -> None:
    """A machine's samples every half second, one list a core or GPU; GPUs are sampled 50 ms after the CPUs, as
    SageMaker's agent does it. `memory` is each GPU's, `waits` each core's time in I/O wait."""
    samples: list[tuple[float, str, str, str, float]] = []
    for name, values in (cpus or {}).items():
        for tick, value in enumerate(values):
            now = start_s + tick * INTERVAL_S
            samples.append((now, "cpu", name, "CPUUtilization", value))
            if waits is not None:
                samples.append((now, "i/o", name, "I/OWaitPercentage", waits[tick]))
    for name, values in (gpus or {}).items():
        for tick, value in enumerate(values):
            now = start_s + tick * INTERVAL_S + 0.05
            samples.append((now, "gpu", name, "GPUUtilization", value))
            if memory is not None:
                samples.append((now, "gpu", name, "GPUMemoryUtilization", memory[tick]))
    write_samples(root, sorted(samples), node=node)


def write_trace(
    root: Path,
    events: Sequence[Mapping[str, Any]],
    *,
    start_us: int = int(START_S * 1e6),
    worker: str = "1234-algo-1",
    suffix: str = "model_timeline",
) -> Path:
    """Events (phase, name, ts, dur, args) in us from `start_us`, one a line and closed as smdebug closes them."""
    phases = list(dict.fromkeys(str(event["phase"]) for event in events))
    lines = [
        {"name": "process_name", "ph": "M", "pid": 0, "args": {"start_time_since_epoch_in_micros": start_us}},
        {"name": "process_sort_index", "ph": "M", "pid": 0, "args": {"sort_index": 0}},
    ]
    for pid, phase in enumerate(phases, start=1):
        lines.append({"name": "process_name", "ph": "M", "pid": pid, "args": {"name": phase}})
        lines.append({"name": "process_sort_index", "ph": "M", "pid": pid, "args": {"sort_index": pid}})
    for event in events:
        pid = 1 + phases.index(str(event["phase"]))
        times = {"ph": "X", "ts": event["ts"], "dur": event["dur"]}
        lines.append({"name": event["name"], "pid": pid, **times, "args": event.get("args", {})})
    end_us = start_us + max(int(event["ts"]) + int(event["dur"]) for event in events)
    path = root / "framework" / "pevents" / hour(end_us / 1e6) / f"{end_us:016d}_{worker}_{suffix}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]")
    return path


def steps(durations_us: Sequence[int], *, mode: str = "TRAIN", first_ts: int = 0) -> list[dict[str, Any]]:
    """Steps one after the other."""
    events, ts = [], first_ts
    for number, duration in enumerate(durations_us):
        name = f"Step:ModeKeys.{mode}"
        events.append({"phase": name, "name": name, "ts": ts, "dur": duration, "args": {"step_num": str(number)}})
        ts += duration
    return events
