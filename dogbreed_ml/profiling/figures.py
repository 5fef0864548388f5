"""The main figures of a recording, as a run's metrics: what runs are compared and filtered by."""

import math
from typing import Final

from dogbreed_ml.profiling.looprules import data_wait_share, job_summary, phase_shares, step_figures
from dogbreed_ml.profiling.recordings import Recording

PREFIX: Final = "profiler/"

_PHASES: Final = ("transfer", "forward", "backward", "optimizer")


def profile_figures(recording: Recording) -> dict[str, float]:
    """By MLflow name, finite; what was not recorded is left out.

    step_p50_ms, step_p95_ms, step_mean_ms, num_steps; data_wait_share, transfer_share, forward_share, backward_share
    and optimizer_share of the training steps' time; evaluation_s, logging_s, initialization_s, training_loop_s;
    cpu_mean, memory_max, gpu_mean and gpu_memory_max in percent; process_memory_growth_mib, from the training loop's
    start to its end.
    """
    figures = _loop_figures(recording) | _system_figures(recording)
    return {f"{PREFIX}{name}": value for name, value in figures.items() if math.isfinite(value)}


def _loop_figures(recording: Recording) -> dict[str, float]:
    figures: dict[str, float] = {}
    timeline = recording.timeline
    mode = next((mode for mode in timeline.modes if mode != "EVAL"), None)
    phases = timeline.phases()
    seconds = {str(k): float(v) / 1e6 for k, v in phases.groupby("name", observed=True)["duration_us"].sum().items()}
    if mode is not None:
        durations = timeline.steps(mode)["duration_us"].to_numpy() / 1e3
        steps = step_figures(durations)
        figures |= {f"step_{name}_ms": steps[f"{name}_ms"] for name in ("p50", "p95", "mean")}
        figures["num_steps"] = float(len(durations))
        shares = phase_shares(timeline)
        figures |= {f"{name}_share": shares[name] for name in _PHASES if name in shares}
    share = data_wait_share(recording)
    if share is not None:
        figures["data_wait_share"] = share
    figures |= {f"{name}_s": seconds[name] for name in ("evaluation", "logging") if name in seconds}
    summary = job_summary(recording) or {}
    return figures | {name: summary[name] for name in ("initialization_s", "training_loop_s") if name in summary}


def _system_figures(recording: Recording) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, dimension, is_max in (
        ("cpu_mean", "CPUUtilization", False),
        ("memory_max", "MemoryUsedPercent", True),
        ("gpu_mean", "GPUUtilization", False),
        ("gpu_memory_max", "GPUMemoryUtilization", True),
    ):
        values = recording.system.select(dimension)["value"]
        if len(values):
            figures[name] = float(values.max() if is_max else values.mean())
    return figures | _memory_growth(recording)


def _memory_growth(recording: Recording) -> dict[str, float]:
    """Without the network's and the data's own arrival, which come before the loop."""
    memory, summary = recording.system.select("ProcessMemoryMiB"), job_summary(recording) or {}
    if "initialization_s" in summary:
        loop_s = summary["job_start_s"] + summary["initialization_s"]
        during = memory["timestamp_s"].between(loop_s, loop_s + summary["training_loop_s"])
        memory = memory[during]
    values = memory["value"]
    return {"process_memory_growth_mib": float(values.iloc[-1] - values.iloc[0])} if len(values) > 1 else {}
