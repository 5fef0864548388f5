"""Rules about the training loop, and SageMaker's two overall tables; none of them needs a GPU."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pandas as pd

from dogbreed_ml.profiling.recordings import SEARCH, Recording, Timeline
from dogbreed_ml.profiling.verdicts import MAX_EVIDENCE, Evidence, Verdict, not_applicable

MAX_DATA_WAIT_SHARE: Final = 0.5
"""Share of the steps' time spent waiting for data from which the Dataloader rule triggers.

SageMaker's rule counts loader processes alone, and a loader of the right number may still starve the device.
"""

AGGREGATES: Final = frozenset({"OverallSystemUsage", "OverallFrameworkMetrics"})
"""Rules that sum up and cannot trigger; like SageMaker's, they find no issue."""

_DATA_WAITS: Final = r"^data_wait$|DataLoaderIter.*(?:GetNext|__next__)|^DataIterator|^DataIteration"
"""Ours, smdebug's of PyTorch and of TensorFlow."""


def step_outlier(recording: Recording, parameters: Mapping[str, Any]) -> Verdict:
    """Triggers for each step that took longer than mean + stddev x standard deviation of its mode's steps; an issue
    where more than n_outliers did. `mode` (such as ModeKeys.TRAIN or TRAIN) restricts it to one.

    Of any N figures at most N / (1 + stddev^2) are that far above their mean (Cantelli's inequality): a run of so few
    steps that n_outliers cannot be exceeded is not judged.

    details: modes -> num_steps, mean_ms, std_ms, p50_ms, p95_ms, p99_ms, min_ms, max_ms, limit_ms, num_outliers,
    lost_s (time above the mean in outliers), outliers (step, start_s, duration_ms; the longest).
    """
    timeline, wanted = recording.timeline, parameters["mode"]
    modes = [mode for mode in timeline.modes if wanted is None or str(wanted).split(".")[-1] == mode]
    if not modes:
        return not_applicable("StepOutlier", f"no steps{f' of mode {wanted}' if wanted else ''} were recorded")
    details: dict[str, Any] = {}
    evidence: list[Evidence] = []
    num_steps = num_outliers = num_possible = 0
    for mode in modes:
        steps = timeline.steps(mode)
        num_possible += int(len(steps) / (1.0 + parameters["stddev"] ** 2))
        durations = steps["duration_us"].to_numpy() / 1e3
        limit = float(durations.mean() + parameters["stddev"] * durations.std())
        slow = steps[durations > limit].sort_values("duration_us", ascending=False)
        details[mode] = step_figures(durations) | {
            "limit_ms": limit,
            "num_outliers": len(slow),
            "lost_s": float((slow["duration_us"] / 1e3 - durations.mean()).sum() / 1e3),
            "outliers": [
                {"step": row["step"], "start_s": row["start_us"] / 1e6, "duration_ms": row["duration_us"] / 1e3}
                for row in records(slow.head(MAX_EVIDENCE))
            ],
        }
        evidence += [_outlier(row, mode, float(durations.mean()), limit) for row in records(slow.head(MAX_EVIDENCE))]
        num_steps, num_outliers = num_steps + len(steps), num_outliers + len(slow)
    evidence.sort(key=lambda each: each.start_s - each.end_s)
    details = {"modes": details}
    if num_possible <= parameters["n_outliers"]:
        short = (
            f"a short run, of {num_steps} steps no more than {num_possible} can be {parameters['stddev']} standard "
            f"deviations above the mean, and {parameters['n_outliers']} are tolerated"
        )
        verdict = not_applicable("StepOutlier", short, datapoints=num_steps)
        return replace(verdict, triggered=num_outliers, evidence=tuple(evidence[:MAX_EVIDENCE]), details=details)
    is_issue = num_outliers > parameters["n_outliers"]
    lost = sum(details["modes"][mode]["lost_s"] for mode in modes)
    reason = (
        f"{num_outliers} of {num_steps} steps took longer than the mean plus {parameters['stddev']} standard "
        f"deviations; {parameters['n_outliers']} are tolerated."
    )
    return Verdict(
        "StepOutlier",
        "IssuesFound" if is_issue else "NoIssuesFound",
        reason,
        num_outliers,
        num_steps,
        evidence=tuple(evidence[:MAX_EVIDENCE]),
        recommendation=f"The outliers cost {lost:.1f} s. Look at what runs at their times: checkpoints, evaluation, "
        "a loader that refills, other programs on the machine." if is_issue else "",
        details=details,
    )  # fmt: skip


def _outlier(row: Mapping[str, Any], mode: str, mean_ms: float, limit_ms: float) -> Evidence:
    start_s, duration_ms = row["start_us"] / 1e6, row["duration_us"] / 1e3
    return Evidence(
        start_s, start_s + duration_ms / 1e3, f"{row['worker']} {mode} step {row['step']}",
        f"took {duration_ms:.1f} ms, {duration_ms / max(mean_ms, 1e-6):.1f} times the mean.",
        {"duration_ms": duration_ms, "mean_ms": mean_ms, "limit_ms": limit_ms},
    )  # fmt: skip


def max_initialization_time(recording: Recording, parameters: Mapping[str, Any]) -> Verdict:
    """Triggers where the first step began later than `threshold` minutes after the recording's start, or has not
    begun by then.

    details: job_start_s, job_end_s, initialization_s, training_loop_s, finalization_s, first_step, last_step.
    """
    limit_s, summary = 60.0 * parameters["threshold"], job_summary(recording)
    if summary is None:
        return not_applicable("MaxInitializationTime", "nothing was recorded")
    if "initialization_s" not in summary:
        lasted = summary["job_end_s"] - summary["job_start_s"]
        if lasted <= limit_s:
            return not_applicable("MaxInitializationTime", "no step was recorded")
        waited, what = lasted, f"no step within {lasted:.1f} s."
    else:
        waited = summary["initialization_s"]
        what = f"the first step began after {waited:.1f} s."
    is_issue = waited > limit_s
    found = Evidence(
        summary["job_start_s"], summary["job_start_s"] + waited, "initialisation", what, {"initialization_s": waited}
    )
    return Verdict(
        "MaxInitializationTime",
        "IssuesFound" if is_issue else "NoIssuesFound",
        f"{what[0].upper()}{what[1:-1]}; the limit is {limit_s:g} s.",
        int(is_issue),
        1,
        evidence=(found,) if is_issue else (),
        recommendation="Move work out of the start: keep features and unpacked data between runs, and download once."
        if is_issue
        else "",
        details=summary,
    )


def job_summary(recording: Recording) -> dict[str, float] | None:
    """Seconds of SageMaker's three parts of a job; without steps only its start and end; None for nothing at all.

    A search's trials are part of the training loop; where nothing was trained, the evaluation is the loop.
    """
    start, end = recording.start_s, recording.end_s
    if np.isnan(start):
        return None
    summary = {"job_start_s": start, "job_end_s": end}
    modes = [mode for mode in recording.timeline.modes if mode != "EVAL"] or recording.timeline.modes
    if modes:
        steps = pd.concat([recording.timeline.steps(mode) for mode in modes])
        every = pd.concat([recording.timeline.steps(mode) for mode in recording.timeline.modes])
        searches = recording.timeline.frame.loc[recording.timeline.frame["name"] == SEARCH, "start_us"]
        first = float(min([steps["start_us"].min(), *searches])) / 1e6
        last = float((every["start_us"] + every["duration_us"]).max()) / 1e6
        summary |= {"initialization_s": first - start, "training_loop_s": last - first, "finalization_s": end - last}
        summary |= {"first_step": float(steps["step"].min()), "last_step": float(steps["step"].max())}
    return summary


def dataloader(recording: Recording, parameters: Mapping[str, Any]) -> Verdict:
    """Triggers where the loader has fewer processes than min_threshold percent of the cores, or more than
    max_threshold percent; and where waiting for data took more than MAX_DATA_WAIT_SHARE of the training steps' time.
    The reason says which of the two was not judged for want of data. Datapoints are the loader and each wait.

    details: num_cores, num_workers, pin_memory (the last two null where no loader ran), data_wait_share,
    data_wait (figures of one wait as in step_figures).
    """
    waits = _data_waits(recording)
    loader, num_cores = recording.timeline.loader, _num_cores(recording)
    counts_processes = loader is not None and num_cores > 0
    if waits is None and not counts_processes:
        missing = "no core was sampled" if loader is not None else "no loader processes were recorded"
        return not_applicable("Dataloader", f"{missing}, and no step's wait for data")
    details: dict[str, Any] = {
        "num_cores": num_cores,
        "num_workers": None if loader is None else loader.num_workers,
        "pin_memory": None if loader is None else loader.pin_memory,
    }
    evidence: list[Evidence] = []
    advice: list[str] = []
    start, end = recording.start_s, recording.end_s
    if loader is None:
        processes = "No loader processes were recorded."
    elif not num_cores:
        processes = f"{loader.num_workers} loader processes were not compared with the cores: none was sampled."
    else:
        share = 100.0 * loader.num_workers / num_cores
        processes = f"{loader.num_workers} loader processes for {num_cores} cores, {share:.0f} %."
        if not parameters["min_threshold"] <= share <= parameters["max_threshold"]:
            evidence.append(Evidence(start, end, "loader", processes, {"processes_percent_of_cores": share}))
            advice.append(f"Set train.num_workers to {num_cores}, the number of cores.")
    num_waits, waiting = 0, "No step's wait for data was recorded."
    if waits is not None:
        durations, share, worst = waits
        num_waits, waiting = len(durations), "The steps do not wait for the loader."
        details |= {"data_wait_share": share, "data_wait": step_figures(durations)}
        if share > MAX_DATA_WAIT_SHARE:
            waiting = f"{share:.0%} of the steps' time went into waiting for data."
            evidence += [Evidence(start, end, "data_wait", waiting, {"data_wait_share": share}), *worst]
            advice.append("The loader starves the device: more train.num_workers, a faster disk, smaller image files, "
                          "or kept features (train.num_views instead of fresh augmentation).")  # fmt: skip
    return Verdict(
        "Dataloader",
        "IssuesFound" if evidence else "NoIssuesFound",
        f"{waiting} {processes}",
        len(advice),
        num_waits + counts_processes,
        evidence=tuple(evidence[:MAX_EVIDENCE]),
        recommendation=" ".join(advice),
        details=details,
    )


def data_wait_share(recording: Recording) -> float | None:
    """Share of the training steps' time spent waiting for data, in [0, 1]; None where that was not recorded."""
    waits = _data_waits(recording)
    return None if waits is None else waits[1]


def phase_shares(timeline: Timeline) -> dict[str, float]:
    """Share of the steps' time by phase, of the modes within whose steps it begins; without the phases that begin
    within none."""
    inside: dict[str, float] = {}
    whole: dict[str, float] = {}
    for mode in timeline.modes:
        total_us = float(timeline.steps(mode)["duration_us"].sum())
        for name, spent_us in timeline.parts(mode).groupby("name", observed=True)["duration_us"].sum().items():
            inside[str(name)] = inside.get(str(name), 0.0) + float(spent_us)
            whole[str(name)] = whole.get(str(name), 0.0) + total_us
    return {name: inside[name] / total_us for name, total_us in whole.items() if total_us > 0}


def _data_waits(recording: Recording) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float, list[Evidence]] | None:
    """Waits in ms, their share of the steps' time, and the longest as evidence.

    Waits within steps where there are such: the last one of an epoch, which finds the data at its end, belongs to none.
    A step of smdebug's hook begins with the forward pass, and the wait before it is not in it: its time is added.
    """
    timeline = recording.timeline
    modes = [mode for mode in timeline.modes if mode != "EVAL"]
    if not modes:
        return None
    total = sum(int(timeline.steps(mode)["duration_us"].sum()) for mode in modes)
    waits = pd.concat([_waits_of(timeline.parts(mode)) for mode in modes])
    if waits.empty:
        waits = _waits_of(timeline.phases())
        total += int(waits["duration_us"].sum())
    if waits.empty:
        return None
    worst = [
        Evidence(
            row["start_us"] / 1e6, (row["start_us"] + row["duration_us"]) / 1e6, f"{row['worker']} step {row['step']}",
            f"waited {row['duration_us'] / 1e3:.1f} ms for data.", {"data_wait_ms": row["duration_us"] / 1e3},
        )
        for row in records(waits.nlargest(3, "duration_us"))
    ]  # fmt: skip
    share = min(1.0, float(waits["duration_us"].sum()) / max(1, total))
    return waits["duration_us"].to_numpy() / 1e3, share, worst


def _waits_of(events: pd.DataFrame) -> pd.DataFrame:
    names = pd.Index(events["name"].cat.categories).union(events["phase"].cat.categories)
    matching = list(names[names.str.contains(_DATA_WAITS)]) if len(names) else []
    return events[events["name"].isin(matching) | events["phase"].isin(matching)]


def _num_cores(recording: Recording) -> int:
    """Of the node with the most; 0 where no CPU was sampled."""
    cores = recording.system.select("CPUUtilization", kind="cpu")
    return int(cores.groupby("node", observed=True)["name"].nunique().max()) if len(cores) else 0


def overall_system_usage(recording: Recording, parameters: Mapping[str, Any]) -> Verdict:
    """Aggregates, and cannot trigger.

    details: nodes -> dimension -> num, mean, p50, p95, p99, min, max; units as in SystemSamples.
    """
    samples = recording.system.frame.dropna(subset=["value"])
    if samples.empty:
        return not_applicable("OverallSystemUsage", "no system samples were recorded")
    nodes: dict[str, dict[str, dict[str, float]]] = {}
    for (node, dimension), values in samples.groupby(["node", "dimension"], observed=True)["value"]:
        nodes.setdefault(str(node), {})[str(dimension)] = _figures(values.to_numpy())
    return Verdict(
        "OverallSystemUsage", "NoIssuesFound", "This rule aggregates and does not judge.", 0, len(samples),
        details={"nodes": nodes},
    )  # fmt: skip


def overall_framework_metrics(recording: Recording, parameters: Mapping[str, Any]) -> Verdict:
    """Aggregates, and cannot trigger.

    details: modes -> figures of a step as in step_figures and total_s; phases -> name -> total_s, share (as in
    phase_shares, null outside steps), figures.
    """
    timeline = recording.timeline
    if timeline.frame.empty:
        return not_applicable("OverallFrameworkMetrics", "no events of the training loop were recorded")
    modes: dict[str, Any] = {}
    for mode in timeline.modes:
        durations = timeline.steps(mode)["duration_us"].to_numpy() / 1e3
        modes[mode] = step_figures(durations) | {"total_s": float(durations.sum() / 1e3)}
    shares = phase_shares(timeline)
    phases: dict[str, Any] = {}
    for name, values in timeline.phases().groupby("name", observed=True)["duration_us"]:
        durations = values.to_numpy() / 1e3
        phases[str(name)] = {
            "total_s": float(durations.sum() / 1e3),
            "share": shares.get(str(name)),
            **step_figures(durations),
        }
    return Verdict(
        "OverallFrameworkMetrics", "NoIssuesFound", "This rule aggregates and does not judge.", 0,
        len(timeline.frame), details={"modes": modes, "phases": phases},
    )  # fmt: skip


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dicts of plain Python values."""
    rows: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]
    return rows


def step_figures(durations_ms: np.ndarray[Any, Any]) -> dict[str, float]:
    """num_steps, mean_ms, std_ms, p50_ms, p95_ms, p99_ms, min_ms, max_ms of at least one duration."""
    figures = _figures(durations_ms)
    renamed = {f"{name}_ms": value for name, value in figures.items() if name != "num"}
    return {"num_steps": figures["num"], **renamed, "std_ms": float(durations_ms.std())}


def _figures(values: np.ndarray[Any, Any]) -> dict[str, float]:
    p50, p95, p99 = (float(each) for each in np.percentile(values, (50, 95, 99)))
    return {
        "num": len(values), "mean": float(values.mean()), "p50": p50, "p95": p95, "p99": p99,
        "min": float(values.min()), "max": float(values.max()),
    }  # fmt: skip
