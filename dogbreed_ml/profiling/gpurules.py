"""Rules about how GPUs are used. Without one they say so: an idle CPU is no idle GPU."""

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dogbreed_ml.profiling.gpusamples import Values, num_looked_at, patient_gpus, shortness, windows
from dogbreed_ml.profiling.recordings import Recording
from dogbreed_ml.profiling.verdicts import MAX_EVIDENCE, NO_GPU, Evidence, Status, Verdict, not_applicable


def low_gpu_utilization(recording: Recording, parameters: Mapping[str, Any]) -> Verdict:
    """For each GPU, over each `window` datapoints: triggers where the 95th percentile is below threshold_p95 (too
    little work), and where it is above while the 5th is below threshold_p5 (fluctuation).

    details: gpus -> where -> num, p5, p50, p95, num_low, num_fluctuating.
    """
    gpus, short = patient_gpus(recording, "LowGPUUtilization", parameters)
    if short is not None:
        return short
    evidence: list[Evidence] = []
    details: dict[str, Any] = {}
    for gpu in gpus:
        counts = {"num_low": 0, "num_fluctuating": 0}
        for start_s, end_s, window in windows(gpu.table, parameters):
            p5, p95 = np.percentile(window["gpu"], (5, 95))
            if p95 < parameters["threshold_p95"]:
                kind, what = "num_low", f"was little used: 95 % of the samples are below {p95:.0f} %."
            elif p5 < parameters["threshold_p5"]:
                kind, what = "num_fluctuating", f"fluctuates between {p5:.0f} % and {p95:.0f} %."
            else:
                continue
            counts[kind] += 1
            evidence.append(Evidence(start_s, end_s, gpu.where, what, {"p5": float(p5), "p95": float(p95)}))
        details[gpu.where] = _percentiles(gpu.table["gpu"]) | counts
    return _verdict(
        "LowGPUUtilization", evidence, num_looked_at(gpus, parameters), {"gpus": details},
        good="every GPU is well used.",
        advice="Give the GPU more to do at once (a larger train.batch_size), keep it fed (Dataloader, CPUBottleneck "
        "and IOBottleneck say whether it waits), or take a smaller machine.",
    )  # fmt: skip


def batch_size(recording: Recording, parameters: Mapping[str, Any]) -> Verdict:
    """For each GPU, over each `window` datapoints: triggers where the 95th percentiles of CPU (mean of the cores), GPU
    and GPU memory utilisation are all below their thresholds.

    details: gpus -> where -> cpu_p95, gpu_p95, gpu_memory_p95 (of the whole recording), num_low.
    """
    gpus, short = patient_gpus(recording, "BatchSize", parameters)
    if short is not None:
        return short
    columns = {"cpu": "cpu", "gpu": "gpu", "gpu_memory": "memory"}
    evidence: list[Evidence] = []
    details: dict[str, Any] = {}
    for gpu in gpus:
        num_low = 0
        for start_s, end_s, window in windows(gpu.table, parameters):
            p95s = {name: _p95(window[column]) for name, column in columns.items()}
            # What was not sampled (no CPU in the files) does not speak against a larger batch.
            if all(np.isnan(p95) or p95 < parameters[f"{name}_threshold_p95"] for name, p95 in p95s.items()):
                num_low += 1
                known = {f"{name}_p95": p95 for name, p95 in p95s.items() if not np.isnan(p95)}
                what = f"CPU, GPU and GPU memory were little used together: {_render(known)}."
                evidence.append(Evidence(start_s, end_s, gpu.where, what, known))
        figures = {f"{name}_p95": _p95(gpu.table[column]) for name, column in columns.items()}
        details[gpu.where] = {k: None if np.isnan(v) else v for k, v in figures.items()} | {"num_low": num_low}
    return _verdict(
        "BatchSize", evidence, num_looked_at(gpus, parameters), {"gpus": details},
        good="the GPU, its memory or the CPU is well used.",
        advice="Raise train.batch_size (and train.lr with it), or take a smaller machine.",
    )  # fmt: skip


def cpu_bottleneck(recording: Recording, parameters: Mapping[str, Any]) -> Verdict:
    """A datapoint is a bottleneck where the GPU is below gpu_threshold while the busiest core is above cpu_threshold
    (one core at its limit is what a loader without workers looks like); triggers for each, and is an issue where
    they are more than `threshold` percent of the time of the training.

    details: gpus -> where -> num, num_bottlenecks, percent, num_low_gpu.
    """
    return _bottleneck(
        recording, parameters, "CPUBottleneck", "core", parameters["cpu_threshold"], "the busiest core was at",
        advice="The GPU waits for the CPU: spread the loading over more train.num_workers, move augmentation to the "
        "GPU, or keep features.",
    )  # fmt: skip


def io_bottleneck(recording: Recording, parameters: Mapping[str, Any]) -> Verdict:
    """As cpu_bottleneck, with the CPU's time in I/O wait (mean of the cores) above io_threshold."""
    return _bottleneck(
        recording, parameters, "IOBottleneck", "wait", parameters["io_threshold"], "I/O wait was",
        advice="The GPU waits for the disk or the network: copy the data to a local disk, read fewer and larger files, "
        "or keep features.",
    )  # fmt: skip


def _bottleneck(
    recording: Recording,
    parameters: Mapping[str, Any],
    rule: str,
    column: str,
    limit: float,
    words: str,
    *,
    advice: str,
) -> Verdict:
    gpus, short = patient_gpus(recording, rule, parameters)
    if short is not None:
        return short
    tables = {gpu.where: gpu.table.dropna(subset=[column]) for gpu in gpus}
    if all(table.empty for table in tables.values()):
        return not_applicable(rule, "nothing but the GPU was sampled")
    tables = {where: _during_training(recording, table) for where, table in tables.items()}
    tables = {where: table for where, table in tables.items() if len(table)}
    if not tables:
        return not_applicable(rule, "nothing was sampled while the steps ran")
    evidence: list[Evidence] = []
    details: dict[str, Any] = {}
    num_bottlenecks = num_points = 0
    is_issue = False
    for where, table in tables.items():
        idle = table["gpu"] < parameters["gpu_threshold"]
        stuck = idle & (table[column] > limit)
        percent = 100.0 * float(stuck.mean())
        details[where] = {
            "num": len(table), "num_bottlenecks": int(stuck.sum()), "percent": percent, "num_low_gpu": int(idle.sum()),
        }  # fmt: skip
        num_points, num_bottlenecks = num_points + len(table), num_bottlenecks + int(stuck.sum())
        is_issue = is_issue or percent > parameters["threshold"]
        for start_s, end_s, rows in _stretches(table, stuck.to_numpy()):
            values = {"gpu": float(rows["gpu"].mean()), column: float(rows[column].mean())}
            what = f"was at {values['gpu']:.0f} % while {words} {values[column]:.0f} %."
            evidence.append(Evidence(start_s, end_s, where, what, values))
    evidence.sort(key=lambda each: each.start_s - each.end_s)
    worst = max(each["percent"] for each in details.values())
    status: Status = "IssuesFound" if is_issue else "NoIssuesFound"
    reason = f"the GPU waited in {worst:.0f} % of the training's time; the limit is {parameters['threshold']} %."
    return Verdict(
        rule, status, f"T{reason[1:]}", num_bottlenecks, num_points, evidence=tuple(evidence[:MAX_EVIDENCE]),
        recommendation=advice if is_issue else "", details={"gpus": details},
    )  # fmt: skip


def gpu_memory_increase(recording: Recording, parameters: Mapping[str, Any]) -> Verdict:
    """For each GPU: triggers where the mean of `window` datapoints is more than `increase` percentage points above the
    last level. The level is the lowest mean since it last triggered, so that slow growth adds up.

    details: gpus -> where -> num, p50, p95, max, num_increases.
    """
    # One window alone has nothing to be compared with.
    gpus, short = patient_gpus(recording, "GPUMemoryIncrease", parameters, column="memory", num_windows=2)
    if short is not None:
        return short
    evidence: list[Evidence] = []
    details: dict[str, Any] = {}
    for gpu in gpus:
        level, num_increases = float("inf"), 0
        for start_s, end_s, window in windows(gpu.table, parameters):
            mean = float(window["memory"].mean())
            if mean > level + parameters["increase"]:
                num_increases += 1
                what = f"memory rose from {level:.1f} % to {mean:.1f} %."
                evidence.append(Evidence(start_s, end_s, gpu.where, what, {"before": level, "after": mean}))
                level = mean
            level = min(level, mean)
        details[gpu.where] = _percentiles(gpu.table["memory"]) | {"num_increases": num_increases}
    return _verdict(
        "GPUMemoryIncrease", evidence, num_looked_at(gpus, parameters), {"gpus": details},
        good="GPU memory does not grow.",
        advice="Something keeps tensors alive: sum losses as detached values, drop references to outputs between "
        "steps, and look for lists that grow with every step.",
    )  # fmt: skip


def load_balancing(recording: Recording, parameters: Mapping[str, Any]) -> Verdict:
    """For each pair of GPUs: triggers where the distance between the histograms of their utilisation is above
    `threshold`. The distance is the earth mover's, as a share of the whole range: 0 for equal ones, 1 for one at 0 %
    and one at 100 %. On a machine without a GPU the pairs are the worker processes of one split's loader: valid's have
    nothing to do while train's work, and of other child processes nobody knows what they should do.

    details: kind (GPU or worker), pairs (a, b, distance; the largest), histograms -> where -> 10 shares, 0 to 100 %.
    """
    kind, groups = _balanced_series(recording)
    comparable = [sorted(map(len, group.values()))[-2] for group in groups if len(group) > 1]
    if not comparable:
        without = f"{NO_GPU}, and no two loader processes of one split were sampled"
        few = without if kind == "worker" else "one GPU has nothing to balance"
        return not_applicable("LoadBalancing", few)
    if missing := shortness(max(comparable), parameters):
        return not_applicable("LoadBalancing", missing, datapoints=max(comparable))
    patience = parameters["patience"]
    groups = [{where: each for where, each in group.items() if len(each) >= patience} for group in groups]
    series = {where: values for group in groups for where, values in group.items() if len(group) > 1}
    from scipy.stats import wasserstein_distance

    start_s, end_s = recording.system.start_s, recording.system.end_s
    pairs = sorted(
        (
            (float(wasserstein_distance(group[a], group[b])) / 100.0, a, b)
            for group in groups
            for a, b in combinations(group, 2)
        ),
        reverse=True,
    )
    evidence = [
        Evidence(
            start_s, end_s, f"{a} and {b}",
            f"are used unequally: {series[a].mean():.0f} % and {series[b].mean():.0f} % in the mean.",
            {"distance": distance, "mean_a": float(series[a].mean()), "mean_b": float(series[b].mean())},
        )
        for distance, a, b in pairs
        if distance > parameters["threshold"]
    ]  # fmt: skip
    details = {
        "kind": kind,
        "pairs": [{"a": a, "b": b, "distance": distance} for distance, a, b in pairs[:MAX_EVIDENCE]],
        "histograms": {
            where: (np.histogram(values, bins=10, range=(0, 100))[0] / len(values)).tolist()
            for where, values in series.items()
        },
    }
    return _verdict(
        "LoadBalancing", evidence, sum(len(values) for values in series.values()), details,
        good=f"the {kind}s are used alike.",
        advice="Give each the same share of the work: equal batches, and files of like size spread over all.",
    )  # fmt: skip


def _balanced_series(recording: Recording) -> tuple[str, list[dict[str, Values]]]:
    """What should be used alike, group by group: utilisation in percent by `node name`."""
    system, loader = recording.system, recording.timeline.loader
    kind, dimension = ("GPU", "GPUUtilization") if system.has_gpu else ("worker", "WorkerCPUUtilization")
    groups: dict[str, dict[str, Values]] = {}
    for (node, name), values in system.select(dimension).groupby(["node", "name"], observed=True)["value"]:
        group = loader.split_of(str(name)) if loader is not None and kind == "worker" else ""
        if kind == "GPU" or group:
            groups.setdefault(group, {})[f"{node} {name}"] = values.clip(0, 100).to_numpy()
    return kind, list(groups.values())


def _stretches(table: pd.DataFrame, flags: NDArray[np.bool_]) -> Iterator[tuple[float, float, pd.DataFrame]]:
    """Runs of neighbouring datapoints that are flagged."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        rows = table.iloc[start:end]
        yield float(rows.index[0]), float(rows.index[-1]), rows


def _during_training(recording: Recording, table: pd.DataFrame) -> pd.DataFrame:
    """The datapoints from the first step's start to the last one's end; all of them where no step was recorded."""
    steps = [recording.timeline.steps(mode) for mode in recording.timeline.modes]
    if not steps:
        return table
    every = pd.concat(steps)
    start, end = every["start_us"].min() / 1e6, (every["start_us"] + every["duration_us"]).max() / 1e6
    inside: pd.DataFrame = table[(table.index >= start) & (table.index <= end)]
    return inside


def _p95(values: "pd.Series[float]") -> float:
    known = values.dropna()
    return float(np.percentile(known, 95)) if len(known) else float("nan")


def _percentiles(values: "pd.Series[float]") -> dict[str, float]:
    p5, p50, p95 = (float(each) for each in np.percentile(values.dropna(), (5, 50, 95)))
    return {"num": len(values), "p5": p5, "p50": p50, "p95": p95, "max": float(values.max())}


def _render(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.0f} %" for name, value in figures.items())


def _verdict(
    rule: str, evidence: list[Evidence], datapoints: int, details: dict[str, Any], *, good: str, advice: str
) -> Verdict:
    """An issue where there is evidence."""
    if not evidence:
        return Verdict(rule, "NoIssuesFound", f"{good[0].upper()}{good[1:]}", 0, datapoints, details=details)
    first = evidence[0]
    return Verdict(
        rule, "IssuesFound", f"{first.where} {first.what}", len(evidence), datapoints,
        evidence=tuple(evidence[:MAX_EVIDENCE]), recommendation=advice, details=details,
    )  # fmt: skip
