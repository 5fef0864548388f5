"""A recording in memory: what the system did, sample by sample, and what the training did, event by event.

Both are the same whether this project or SageMaker wrote the files. Columns that repeat few texts are pandas
categoricals, so that 1,000,000 samples take some 25 MB.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

Mode = Literal["TRAIN", "EVAL"]

STEP_PREFIX = "Step:ModeKeys."
"""smdebug's name of a step event is this and the mode; GLOBAL where a script never set one."""

WORKER_PREFIX = "worker-"
"""The name of a worker process in samples is this and its process id."""

SEARCH = "search"
"""The name of the event of a search's trials, whose own steps are not recorded."""

SYSTEM_COLUMNS = ("timestamp_s", "value", "kind", "name", "dimension", "node")
TIMELINE_COLUMNS = ("name", "phase", "node", "worker", "thread", "start_us", "duration_us", "step")


@dataclass(frozen=True)
class SystemSamples:
    """Samples of the machine's use."""

    frame: pd.DataFrame
    """One row a sample, by time. timestamp_s float64, seconds since the epoch; value float64, percent unless the
    dimension says otherwise, NaN where the file has NaN; categoricals kind (cpu, gpu, memory, i/o, network, worker),
    name (cpu0, gpu1, ...), dimension (CPUUtilization, GPUUtilization, GPUMemoryUtilization, I/OWaitPercentage, ...)
    and node (algo-1)."""
    notes: tuple[str, ...] = ()
    """What was wrong with the files and what was made of it: one sentence each."""

    def select(self, dimension: str, *, node: str | None = None, kind: str | None = None) -> pd.DataFrame:
        """The samples of one dimension, without NaN, by time."""
        frame = self.frame
        keep = (frame["dimension"] == dimension) & frame["value"].notna()
        if node is not None:
            keep &= frame["node"] == node
        if kind is not None:
            keep &= frame["kind"] == kind
        return frame[keep]

    def wide(self, dimension: str, *, node: str) -> pd.DataFrame:
        """One column a name, indexed by timestamp_s; NaN where a name has no sample at a time."""
        chosen = self.select(dimension, node=node)
        table = chosen.pivot_table(
            index="timestamp_s", columns="name", values="value", aggfunc="last", observed=True, sort=True
        )
        table.columns = pd.Index([str(name) for name in table.columns])
        return table

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(sorted(str(node) for node in self.frame["node"].unique()))

    @property
    def has_gpu(self) -> bool:
        return bool((self.frame["dimension"] == "GPUUtilization").any())

    @property
    def start_s(self) -> float:
        """NaN where there is no sample."""
        return float(self.frame["timestamp_s"].min()) if len(self.frame) else float("nan")

    @property
    def end_s(self) -> float:
        return float(self.frame["timestamp_s"].max()) if len(self.frame) else float("nan")


@dataclass(frozen=True)
class Timeline:
    """Events of the training loop."""

    frame: pd.DataFrame
    """One row an event, by start. Categoricals name, phase (smdebug's process), node (algo-1), worker (algo-1-PID);
    thread int64 (0 the loop's own), start_us int64 since the epoch, duration_us int64, step int64 (-1 for none).
    Our own names: data_wait, transfer, forward, backward, optimizer; evaluation, and inside it evaluation/data_wait,
    evaluation/transfer, evaluation/forward; logging, initialisation; features/decode, features/transform,
    features/forward, features/write. Steps are Step:ModeKeys.TRAIN and Step:ModeKeys.EVAL."""
    notes: tuple[str, ...] = ()
    loader: "LoaderProcesses | None" = None
    """How images are loaded; None where nobody wrote it down."""

    @property
    def modes(self) -> tuple[str, ...]:
        """TRAIN, EVAL, GLOBAL: those that have steps, in order of appearance."""
        found = self.frame.loc[_is_step(self.frame), "name"].unique()
        return tuple(str(name).removeprefix(STEP_PREFIX) for name in found)

    def steps(self, mode: str, *, worker: str | None = None) -> pd.DataFrame:
        """step, start_us, duration_us and worker of each step of a mode, by start."""
        frame = self.frame
        keep = frame["name"] == f"{STEP_PREFIX}{mode}"
        if worker is not None:
            keep &= frame["worker"] == worker
        return frame.loc[keep, ["step", "start_us", "duration_us", "worker"]]

    def phases(self) -> pd.DataFrame:
        """Every event that is no step."""
        return self.frame[~_is_step(self.frame)]

    def parts(self, mode: str) -> pd.DataFrame:
        """The events, none of them a step, that begin within a step of a mode and of their own worker, by start; `step`
        is that step's number.

        Not by the events' own numbers: those of what happens between steps are the last step's.
        """
        steps, phases = self.steps(mode), self.phases()
        found = [phases.head(0)]
        for worker, own in steps.groupby("worker", observed=True):
            events = phases[phases["worker"] == worker]
            starts = events["start_us"].to_numpy()
            place = np.searchsorted(own["start_us"].to_numpy(), starts, side="right") - 1
            ends = (own["start_us"] + own["duration_us"]).to_numpy()
            inside = (place >= 0) & (starts < ends[place])
            found.append(events[inside].assign(step=own["step"].to_numpy()[place[inside]]))
        return pd.concat(found).sort_index()

    @property
    def workers(self) -> tuple[str, ...]:
        return tuple(sorted(str(worker) for worker in self.frame["worker"].unique()))


@dataclass(frozen=True)
class LoaderProcesses:
    """The processes that load images for one training process."""

    num_workers: int
    """For one split."""
    pin_memory: bool = False
    pids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By split; empty where nobody wrote it down."""

    def split_of(self, worker: str) -> str:
        """Of a worker as samples name it, such as worker-1234; empty where it is not known."""
        pid = worker.removeprefix(WORKER_PREFIX)
        return next((split for split, pids in self.pids.items() if pid in map(str, pids)), "")


@dataclass(frozen=True)
class Recording:
    """Whatever was recorded of one training job."""

    system: SystemSamples
    timeline: Timeline
    source: str
    """Where it was read from, for people."""
    notes: tuple[str, ...] = field(default=())

    @property
    def all_notes(self) -> tuple[str, ...]:
        return (*self.notes, *self.system.notes, *self.timeline.notes)

    @property
    def start_s(self) -> float:
        """Of the first sample or event, seconds since the epoch; NaN for an empty recording."""
        starts = [self.system.start_s, *(self.timeline.frame["start_us"].head(1) / 1e6)]
        return float(np.nanmin(starts)) if not np.isnan(starts).all() else float("nan")

    @property
    def end_s(self) -> float:
        frame = self.timeline.frame
        ends = [self.system.end_s]
        if len(frame):
            ends.append(float((frame["start_us"] + frame["duration_us"]).max()) / 1e6)
        return float(np.nanmax(ends)) if not np.isnan(ends).all() else float("nan")


def build_system(columns: dict[str, object], notes: tuple[str, ...] = ()) -> SystemSamples:
    """From one sequence a column of SYSTEM_COLUMNS, in any order of time."""
    frame = pd.DataFrame({name: columns[name] for name in SYSTEM_COLUMNS})
    for name in ("kind", "name", "dimension", "node"):
        frame[name] = frame[name].astype("category")
    frame = frame.sort_values("timestamp_s", kind="stable", ignore_index=True)
    return SystemSamples(frame.astype({"timestamp_s": np.float64, "value": np.float64}), notes)


def build_timeline(
    columns: dict[str, object], notes: tuple[str, ...] = (), loader: LoaderProcesses | None = None
) -> Timeline:
    """From one sequence a column of TIMELINE_COLUMNS, in any order of time."""
    frame = pd.DataFrame({name: columns[name] for name in TIMELINE_COLUMNS})
    for name in ("name", "phase", "node", "worker"):
        frame[name] = frame[name].astype("category")
    frame = frame.astype(dict.fromkeys(("thread", "start_us", "duration_us", "step"), np.int64))
    return Timeline(frame.sort_values("start_us", kind="stable", ignore_index=True), notes, loader)


def empty_system() -> SystemSamples:
    return build_system({name: [] for name in SYSTEM_COLUMNS})


def empty_timeline() -> Timeline:
    return build_timeline({name: [] for name in TIMELINE_COLUMNS})


def _is_step(frame: pd.DataFrame) -> "pd.Series[bool]":
    # On the categories: text methods over every row take a second a million.
    return frame["name"].isin([name for name in frame["name"].cat.categories if str(name).startswith(STEP_PREFIX)])
