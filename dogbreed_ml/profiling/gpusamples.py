"""GPUs' samples beside their node's, and the windows in which rules look at them.

A rule's first evaluation is at `patience` datapoints; a shorter recording is not judged, and the verdict says how much
is missing. Datapoints before the first window are left out as warm-up.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dogbreed_ml.profiling.recordings import Recording, SystemSamples
from dogbreed_ml.profiling.verdicts import NO_GPU, Verdict, not_applicable

Values = NDArray[np.float64]


class Gpu(NamedTuple):
    """One GPU's samples, side by side with its node's."""

    where: str
    """`algo-1 gpu0`."""
    table: pd.DataFrame
    """Indexed by time: gpu, memory (percent), cpu (mean of the cores), core (the busiest), wait (I/O, mean); NaN where
    nothing was sampled near that time."""


def patient_gpus(
    recording: Recording, rule: str, parameters: Mapping[str, Any], column: str = "gpu", num_windows: int = 1
) -> tuple[list[Gpu], Verdict | None]:
    """The GPUs with at least `patience` datapoints, and enough for `num_windows` where the rule has windows; or the
    verdict where there is none.
    """
    gpus = [gpu for node in recording.system.nodes for gpu in _gpus(recording.system, node)]
    if not gpus:
        # NaN alone, which is what a GPU leaves whose driver refuses to tell.
        has_gpu = recording.system.has_gpu
        return [], not_applicable(rule, "no GPU's utilisation could be read" if has_gpu else NO_GPU)
    gpus = [gpu._replace(table=gpu.table.dropna(subset=[column])) for gpu in gpus]
    patient = [gpu for gpu in gpus if shortness(len(gpu.table), parameters, num_windows) is None]
    if not patient:
        longest = max(len(gpu.table) for gpu in gpus)
        missing = shortness(longest, parameters, num_windows) if longest else None
        return [], not_applicable(rule, missing or f"no GPU {column} was sampled", datapoints=longest)
    return patient, None


def shortness(num: int, parameters: Mapping[str, Any], num_windows: int = 1) -> str | None:
    """What a recording of `num` datapoints lacks; None where it is long enough."""
    patience, window = int(parameters["patience"]), int(parameters.get("window", 0))
    if num < patience:
        return f"a short run, {num} datapoints of the {patience} that patience asks for"
    # A last window may reach back into the one before it.
    needed = max(patience, window) + num_windows - 1 if window else patience
    if num < needed:
        asked = "a window asks" if num_windows == 1 else f"{num_windows} windows ask"
        return f"a short run, {num} datapoints of the {needed} that {asked} for"
    return None


def _gpus(system: SystemSamples, node: str) -> Iterator[Gpu]:
    utilisation, memory = system.wide("GPUUtilization", node=node), system.wide("GPUMemoryUtilization", node=node)
    if utilisation.empty:
        return
    cores, waits = system.wide("CPUUtilization", node=node), system.wide("I/OWaitPercentage", node=node)
    beside = {"cpu": cores.mean(axis=1), "core": cores.max(axis=1), "wait": waits.mean(axis=1)}
    tolerance = 2.0 * float(np.median(np.diff(utilisation.index))) if len(utilisation) > 1 else 1.0
    for name in utilisation.columns:
        table = pd.DataFrame({"gpu": utilisation[name].dropna()})
        own = memory[name] if name in memory else pd.Series(dtype=float)
        for column, series in {"memory": own, **beside}.items():
            table[column] = _nearest(series, table.index.to_numpy(), tolerance)
        yield Gpu(f"{node} {name}", table)


def _nearest(series: "pd.Series[float]", times: Values, tolerance_s: float) -> Values:
    """Values at the times nearest to those asked for; NaN beyond the tolerance. SageMaker's agent samples CPUs and
    GPUs a little apart."""
    known = series.dropna()
    if known.empty:
        return np.full(len(times), np.nan)
    index = known.index.to_numpy()
    right = np.searchsorted(index, times).clip(0, len(index) - 1)
    left = (right - 1).clip(0)
    nearest = np.where(np.abs(index[left] - times) < np.abs(index[right] - times), left, right)
    return np.where(np.abs(index[nearest] - times) <= tolerance_s, known.to_numpy()[nearest], np.nan)


def windows(table: pd.DataFrame, parameters: Mapping[str, Any]) -> Iterator[tuple[float, float, pd.DataFrame]]:
    """Windows one after the other, the first of them full at the datapoint that patience names, the last one at the
    end of the recording."""
    size, end = int(parameters["window"]), len(table)
    starts = list(range(_first_looked_at(parameters), end - size + 1, size))
    if starts and starts[-1] + size < end:
        starts.append(end - size)
    for start in starts:
        rows = table.iloc[start : start + size]
        yield float(rows.index[0]), float(rows.index[-1]), rows


def _first_looked_at(parameters: Mapping[str, Any]) -> int:
    return max(0, int(parameters["patience"]) - int(parameters["window"]))


def num_looked_at(gpus: Sequence[Gpu], parameters: Mapping[str, Any]) -> int:
    """The datapoints within any window."""
    return sum(len(gpu.table) - _first_looked_at(parameters) for gpu in gpus)
