"""Reads smdebug's files, SageMaker's and ours; formats.py says where they lie.

The readers stream: a file is never in memory as a whole. A file that was cut off while it was written loses its last
line and no more, and the recording's notes say so; a file damaged elsewhere raises ProfileError with the place.
"""

import json
import math
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dogbreed_ml.errors import ProfileError
from dogbreed_ml.profiling.formats import LOADER_EVENT, SYSTEM_FILE, TIMELINE_FILE
from dogbreed_ml.profiling.recordings import (
    LoaderProcesses,
    Recording,
    SystemSamples,
    Timeline,
    build_system,
    build_timeline,
)

_BLOCK_CHARS = 1 << 20
_CLOCK_JUMP_S = 1.0
_MAX_GAP_S = 60.0
_MAX_GAP_INTERVALS = 20
_SEPARATORS = re.compile(r"[\s,\[\]]*")
_NEXT_OBJECT = re.compile(r"[^:\s]\s*\{\s*\"")
"""One that is no other's value."""
_MAX_TIME_S = 4e9
"""In 2096; what is later is in another unit, or damaged."""


def read_recording(root: Path) -> Recording:
    """Reads a folder that holds system/ or framework/, or one that holds it as profiler-output/ or raw/.

    Raises ProfileError where there is neither, and for a damaged file.
    """
    tried = [root, root / "profiler-output", root / "raw"]
    found = next((each for each in tried if (each / "system").is_dir() or (each / "framework").is_dir()), None)
    if found is None:
        raise ProfileError(
            f"{root} must hold profiler files, in system/ or framework/ as SageMaker writes them; it has neither."
        )
    return Recording(read_system(found), read_timeline(found), source=str(root))


def read_system(root: Path) -> SystemSamples:
    """All samples of all nodes, by time."""
    series: dict[tuple[str, str, str, str], int] = {}
    codes, times, values = array("i"), array("d"), array("d")
    notes: list[str] = []
    for path in _files(root / "system", SYSTEM_FILE, notes):
        before = len(times)
        for place, sample in _objects(path, notes):
            try:
                key = (str(sample["Type"]), str(sample.get("Name")), str(sample["Dimension"]), str(sample["NodeId"]))
                time, value = _time(float(sample["Timestamp"])), _value(sample["Value"])
            except (KeyError, TypeError, ValueError) as error:
                raise ProfileError(f"{path} must hold samples, but {place} lacks one: {error!r}.") from error
            codes.append(series.setdefault(key, len(series)))
            times.append(time)
            values.append(value)
        _note_clock(path, np.frombuffer(times)[before:], notes)
    columns = {"timestamp_s": np.frombuffer(times), "value": np.frombuffer(values)}
    _note_gap(columns["timestamp_s"], notes)
    num_nan = int(np.isnan(columns["value"]).sum())
    if num_nan:
        notes.append(f"{num_nan} samples are NaN; the rules leave them out.")
    by_sample = np.frombuffer(codes, dtype=np.int32)
    keys = list(series)
    texts = {
        name: _categories(by_sample, keys, place) for place, name in enumerate(("kind", "name", "dimension", "node"))
    }
    return build_system({**columns, **texts}, tuple(notes))


def _value(value: Any) -> float:
    """NaN for null, which some exporters write for a missing value."""
    number = float("nan") if value is None else float(value)
    if math.isinf(number):
        raise ValueError(f"a value must be finite or NaN, got {number}")
    return number


def _time(seconds: float) -> float:
    # Not "seconds < 0 or seconds > ...": NaN is no time either.
    if not 0 <= seconds <= _MAX_TIME_S:
        raise ValueError(f"a time must be seconds since 1970, up to {_MAX_TIME_S:.0f}, got {seconds:.15g}")
    return seconds


def _note_clock(path: Path, times: NDArray[np.float64], notes: list[str]) -> None:
    """Samples of one file are in order of time unless the machine's clock was set back."""
    back = -np.diff(times).min(initial=0.0)
    if back > _CLOCK_JUMP_S:
        notes.append(f"{path.name}: the clock went back by {back:.1f} s; samples are put in order of time.")


def _note_gap(times: NDArray[np.float64], notes: list[str]) -> None:
    """A clock set forward is told by the samples that lack then, and so is a machine that was suspended."""
    moments = np.unique(times)
    gaps = np.diff(moments)
    if len(gaps) and gaps.max() > max(_MAX_GAP_S, _MAX_GAP_INTERVALS * float(np.median(gaps))):
        before = float(moments[gaps.argmax()] - moments[0])
        notes.append(
            f"Nothing was sampled for {gaps.max():.0f} s from {before:.0f} s after the start on: the clock was set "
            "forward, or the machine stood still. Rules count that time too."
        )


def read_timeline(root: Path) -> Timeline:
    """All events of all workers, by start."""
    rows = _Rows()
    notes: list[str] = []
    for path in _files(root / "framework", TIMELINE_FILE, notes):
        match = TIMELINE_FILE.fullmatch(path.name)
        node = match[3] if match else "algo-1"
        worker = f"{node}-{match[2]}" if match and match[2] else node
        _read_events(path, rows, node, worker, notes)
    if rows.num_backwards:
        notes.append(f"{rows.num_backwards} events end before they start, as a clock set back makes them; left out.")
    return build_timeline(rows.columns(), tuple(notes), rows.loader)


class _Rows:
    """Events as they are read: 40 bytes each, texts by code."""

    def __init__(self) -> None:
        self.texts: dict[tuple[str, str, str, str], int] = {}
        self.codes = array("i")
        self.numbers = array("q")
        self.num_backwards = 0
        self.loader: LoaderProcesses | None = None

    def add(self, text: tuple[str, str, str, str], thread: int, start_us: int, duration_us: int, step: int) -> None:
        if duration_us < 0:
            self.num_backwards += 1
            return
        _time(start_us / 1e6), _time((start_us + duration_us) / 1e6)
        self.codes.append(self.texts.setdefault(text, len(self.texts)))
        self.numbers.extend((thread, start_us, duration_us, step))

    def columns(self) -> dict[str, object]:
        codes = np.frombuffer(self.codes, dtype=np.int32)
        numbers = np.frombuffer(self.numbers, dtype=np.int64).reshape(-1, 4)
        keys = list(self.texts)
        texts: dict[str, object] = {
            name: _categories(codes, keys, place) for place, name in enumerate(("name", "phase", "node", "worker"))
        }
        return texts | {name: numbers[:, i] for i, name in enumerate(("thread", "start_us", "duration_us", "step"))}


def _read_events(path: Path, rows: _Rows, node: str, worker: str, notes: list[str]) -> None:
    origin, phases = 0, dict[Any, str]()
    begun: dict[Any, list[Mapping[str, Any]]] = {}
    for place, event in _objects(path, notes):
        try:
            kind = event["ph"]
            args = _args(event)
            if kind == "M":
                origin = int(args.get("start_time_since_epoch_in_micros", origin))
                if event["name"] == "process_name" and "name" in args:
                    phases[event["pid"]] = str(args["name"])
            elif kind == "B":
                begun.setdefault(event["pid"], []).append(event)
            elif kind in ("X", "E"):
                first: Mapping[str, Any] = event
                if kind == "E":
                    if not begun.get(event["pid"]):
                        continue
                    first = begun[event["pid"]].pop()
                    args = _args(first) or args
                start = float(first["ts"])
                duration = float(event["dur"]) if kind == "X" else float(event["ts"]) - start
                phase = phases.get(event["pid"], "Unknown")
                name = str(args.get("layer_name") or args.get("name") or first["name"])
                thread, step = int(event.get("tid", 0)), int(args.get("step_num", -1))
                rows.add((name, phase, node, worker), thread, origin + int(start), int(duration), step)
                if phase == LOADER_EVENT and "num_workers" in args:
                    rows.loader = _loader(args)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ProfileError(f"{path} must hold Chrome trace events, but {place} is none: {error!r}.") from error


def _loader(args: Mapping[str, Any]) -> LoaderProcesses:
    pids = {split: tuple(map(int, each)) for split, each in dict(args.get("pids", {})).items()}
    return LoaderProcesses(int(args["num_workers"]), bool(args.get("pin_memory", False)), pids)


def _args(event: Mapping[str, Any]) -> Mapping[str, Any]:
    args = event.get("args") or {}
    if not isinstance(args, Mapping):
        raise TypeError(f"args must be an object, got {args!r}")
    return args


def _categories(codes: NDArray[np.int32], keys: Sequence[tuple[str, ...]], place: int) -> "pd.Categorical[str]":
    """One text of each key as a column, from the rows' codes of whole keys."""
    known: dict[str, int] = {}
    lookup = np.array([known.setdefault(key[place], len(known)) for key in keys] or [0], dtype=np.int32)
    rows = lookup[codes] if len(codes) else codes
    return pd.Categorical.from_codes(rows, categories=pd.Index(list(known), dtype="str"))


def _files(folder: Path, pattern: re.Pattern[str], notes: list[str]) -> Iterator[Path]:
    """The files of that kind by time of their names, empty ones left out with a note."""
    paths = [path for path in folder.rglob("*.json") if pattern.fullmatch(path.name)]
    for path in sorted(paths, key=lambda each: (each.name, each)):
        if path.stat().st_size == 0:
            notes.append(f"{path.name} is empty.")
        else:
            yield path


def _objects(path: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each JSON object of the file, with its place in words; commas, brackets and line ends between are skipped."""
    decode: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().raw_decode
    rest, num_read = "", 0
    with path.open(encoding="utf-8", errors="replace") as file:
        while True:
            block = file.read(_BLOCK_CHARS)
            text, position = rest + block, 0
            while (match := _SEPARATORS.match(text, position)) and (position := match.end()) < len(text):
                try:
                    value, position = decode(text, position)
                except json.JSONDecodeError:
                    break
                num_read += 1
                if not isinstance(value, dict):
                    raise ProfileError(f"{path} must hold JSON objects, but item {num_read} is {str(value)[:40]!r}.")
                yield f"item {num_read}", value
            rest = text[position:]
            # No event is that long: what cannot be read is damage, and need not be carried to the end of the file.
            if not block or len(rest) > 2 * _BLOCK_CHARS:
                break
    if rest.rstrip():
        _judge_rest(path, rest, num_read, notes)


def _judge_rest(path: Path, rest: str, num_read: int, notes: list[str]) -> None:
    """Only the end of a file may be cut off: where a line or an object follows, something in between is broken."""
    head, newline, after = rest.partition("\n")
    damage = f"{path} is damaged after item {num_read}, at {head[:60]!r}"
    if newline and after.strip(" \t\r\n,]"):
        raise ProfileError(f"{damage}; remove that line.")
    if _NEXT_OBJECT.search(head):
        raise ProfileError(f"{damage}; it must be a list of whole objects.")
    notes.append(f"{path.name}: the last line is cut off and left out.")
