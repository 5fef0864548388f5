"""A profiled training from end to end: what lies in its folder, what its verdicts and figures say."""

import errno
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from profilerfiles import steps, write_machine, write_trace
from torch import Tensor, nn

from dogbreed_ml.config import TrainConfig
from dogbreed_ml.errors import ProfileError
from dogbreed_ml.policies import ProfileConfig
from dogbreed_ml.profiling import sampler as sampler_module
from dogbreed_ml.profiling import traces as traces_module
from dogbreed_ml.profiling.readers import read_recording
from dogbreed_ml.profiling.rules import RULES
from dogbreed_ml.profiling.sampler import SystemSampler
from dogbreed_ml.profiling.session import NOTES_FILE, RAW_DIR, TRACE_DIR, ProfileSession, judge_folder, profiled
from dogbreed_ml.profiling.timeline import Clock
from dogbreed_ml.profiling.traces import OPERATORS_FILE, TRACE_FILE, load_operators
from dogbreed_ml.profiling.verdicts import Verdict
from dogbreed_ml.train import fit


class Batches:
    labels = torch.arange(24) % 3
    num_samples = 24
    inputs = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))

    def batches(self, batch_size: int, *, order: Tensor | None, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in (torch.arange(24) if order is None else order).split(batch_size):
            yield self.inputs[rows], self.labels[rows]


def train(session: ProfileSession) -> None:
    """Two epochs of six steps, each followed by one step of evaluation."""
    results = fit(
        nn.Linear(8, 3), Batches(), valid=Batches(), config=TrainConfig(num_epochs=2, batch_size=4),
        metrics=lambda logits, labels: {"loss": 0.0}, num_classes=3, device=torch.device("cpu"), spans=session.spans,
    )  # fmt: skip
    assert len(list(results)) == 2


def test_a_profiled_training_is_recorded_and_judged(tmp_path: Path) -> None:
    config = ProfileConfig(rules={"StepOutlier_n_outliers": 12, "DeadRelu_threshold_layer": 10})
    with profiled(tmp_path, config) as session:
        train(session)
    tensors = Verdict("DeadRelu", "IssuesFound", "planted")
    profile = session.judge([tensors])
    assert [verdict.rule for verdict in profile.verdicts] == [*RULES, "DeadRelu"]
    assert profile.tags["profiler.StepOutlier"] == "NotApplicable"
    assert profile.tags["profiler.DeadRelu"] == "IssuesFound"
    assert profile.verdicts[0].parameters["n_outliers"] == 12
    timeline = profile.recording.timeline
    assert [len(timeline.steps(mode)) for mode in ("TRAIN", "EVAL")] == [12, 2]
    assert {"start", "initialisation", "logging", "evaluation", "evaluation/forward"} <= set(timeline.frame["name"])
    assert profile.recording.all_notes == ()
    assert profile.trace_path is None


def test_figures_are_metrics_of_the_training(tmp_path: Path) -> None:
    with profiled(tmp_path, ProfileConfig()) as session:
        train(session)
    figures = session.judge().figures
    assert all(name.startswith("profiler/") and math.isfinite(value) for name, value in figures.items())
    assert figures["profiler/num_steps"] == 12
    parts = ("data_wait", "transfer", "forward", "backward", "optimizer")
    assert 0.2 < sum(figures[f"profiler/{part}_share"] for part in parts) <= 1.0
    assert figures["profiler/step_p50_ms"] <= figures["profiler/step_p95_ms"]
    assert 0 < figures["profiler/memory_max"] <= 100


def test_a_training_that_fails_leaves_its_recording(tmp_path: Path) -> None:
    def fail(session: ProfileSession) -> None:
        train(session)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), profiled(tmp_path, ProfileConfig()) as session:
        fail(session)
    assert len(read_recording(tmp_path / RAW_DIR).timeline.steps("TRAIN")) == 12
    assert session.judge().tags["profiler.OverallFrameworkMetrics"] == "NoIssuesFound"


@pytest.mark.parametrize("interval_ms", [1e6, 1e16])
def test_the_sampler_takes_a_first_and_a_last_sample_whatever_the_interval(tmp_path: Path, interval_ms: float) -> None:
    sampler = SystemSampler(tmp_path, interval_ms=interval_ms, clock=Clock.start())
    with sampler:
        deadline = time.monotonic() + 30
        while sampler.num_ticks == 0 and time.monotonic() < deadline:
            pass
    sampler.stop()
    samples = read_recording(tmp_path).system
    assert samples.frame["timestamp_s"].nunique() == sampler.num_ticks == 2
    dimensions = set(samples.frame["dimension"])
    assert {"CPUUtilization", "MemoryUsedPercent", "ProcessMemoryMiB"} <= dimensions
    percents = samples.frame[~samples.frame["dimension"].str.contains("MiB")]["value"]
    assert percents.between(0, 100).all()
    assert not (samples.frame["dimension"] == "GPUUtilization").any() or torch.cuda.is_available()


class Driver:
    """NVML as a driver with two GPUs answers; the second does not tell its use, as MIG does not."""

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None:
        pass

    nvmlShutdown = nvmlInit

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        if handle:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(gpu=70)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=1 << 30, total=4 << 30)


def test_a_gpu_that_does_not_tell_its_use_costs_no_other_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No GPU here: what a driver answers is the seam.
    monkeypatch.setitem(sys.modules, "pynvml", Driver())
    with profiled(tmp_path, ProfileConfig()) as session:
        train(session)
    profile = session.judge()
    assert "gpu1: GPUUtilization cannot be read: Not Supported." in profile.recording.all_notes
    system = profile.recording.system
    assert {*system.select("GPUUtilization")["name"]} == {"gpu0"}
    assert {*system.select("GPUMemoryUtilization")["name"]} == {"gpu0", "gpu1"}
    assert len(system.select("MemoryUsedPercent")) == session.sampler.num_ticks
    assert profile.figures["profiler/gpu_mean"] == 70.0


def test_gpus_that_cannot_be_counted_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Uncounted(Driver):
        def nvmlDeviceGetCount(self) -> int:
            raise self.NVMLError("Unknown Error")

    monkeypatch.setitem(sys.modules, "pynvml", Uncounted())
    with SystemSampler(tmp_path, interval_ms=1e6, clock=Clock.start()) as sampler:
        pass
    assert sampler.notes == ["The number of GPUs cannot be read: Unknown Error."]
    assert len(read_recording(tmp_path).system.select("MemoryUsedPercent")) == 1


def test_a_sampler_that_fails_is_told_of_and_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sampler_module, "render_sample", full)
    with profiled(tmp_path, ProfileConfig()) as session:
        train(session)
    profile = session.judge()
    note = "The machine was not sampled any more after 0 samples: [Errno 28] No space left on device."
    assert note in profile.recording.all_notes
    assert len(profile.recording.timeline.steps("TRAIN")) == 12


def test_what_cannot_be_traced_costs_neither_samples_nor_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(traces_module, "save_operators", full)
    config = ProfileConfig(trace_start=8, trace_steps=100)
    with pytest.raises(OSError, match="No space left"), profiled(tmp_path, config) as session:
        train(session)
    recording = read_recording(tmp_path / RAW_DIR)
    assert len(recording.timeline.steps("TRAIN")) == 11
    assert session.sampler.num_ticks >= 1


def test_a_worker_is_measured_from_its_second_look_on(tmp_path: Path) -> None:
    worker = multiprocessing.get_context("fork").Process(target=_spin, daemon=True)
    sampler = SystemSampler(tmp_path, interval_ms=250, clock=Clock.start())
    worker.start()
    try:
        with sampler:
            deadline = time.monotonic() + 30
            while sampler.num_ticks < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
    finally:
        worker.terminate()
        worker.join()
    uses = read_recording(tmp_path).system.select("WorkerCPUUtilization")["value"]
    assert len(uses) >= 2
    # Not 0, as what was never measured would be.
    assert uses.iloc[0] > 0


def _spin() -> None:
    while True:
        pass


def test_the_trace_window_covers_its_steps_alone(tmp_path: Path) -> None:
    with profiled(tmp_path, ProfileConfig(trace_start=2, trace_steps=3)) as session:
        train(session)
    profile = session.judge()
    assert profile.trace_path == tmp_path / TRACE_DIR / TRACE_FILE
    assert '"traceEvents"' in profile.trace_path.read_text()
    parts = ("data_wait", "transfer", "forward", "backward", "optimizer")
    assert sum(profile.figures[f"profiler/{part}_share"] for part in parts) <= 1.0
    by_name = {each.name: each for each in profile.operators}
    # One linear layer, forward and backward, in each of three steps.
    assert by_name["aten::addmm"].num_calls == 3
    assert not (tmp_path / NOTES_FILE).exists()
    assert all(each.self_cpu_ms <= each.cpu_ms + 1e-6 for each in profile.operators)
    assert load_operators(tmp_path / TRACE_DIR / OPERATORS_FILE) == profile.operators


def test_a_training_that_ends_within_the_trace_window_ends_it(tmp_path: Path) -> None:
    with profiled(tmp_path, ProfileConfig(trace_start=10, trace_steps=100)) as session:
        train(session)
    calls = {each.name: each.num_calls for each in session.judge().operators}
    # Two training steps, and the evaluation after them.
    assert calls["aten::addmm"] == 3
    assert "2 steps were traced" in (tmp_path / NOTES_FILE).read_text()


def test_a_trace_window_after_the_training_traces_nothing(tmp_path: Path) -> None:
    with profiled(tmp_path, ProfileConfig(trace_start=1000, trace_steps=5)) as session:
        train(session)
    assert session.judge().operators == ()
    assert "The training had 12 steps" in (tmp_path / NOTES_FILE).read_text()
    assert "to be of steps 1000 to 1004" in (tmp_path / NOTES_FILE).read_text()


def test_sagemakers_files_are_judged_without_a_training(tmp_path: Path) -> None:
    root = tmp_path / "job" / "profiler-output"
    write_machine(root, gpus={"gpu0": [10.0] * 1100}, cpus={"cpu0": [99.0] * 1100})
    write_trace(root, steps([100_000] * 100))
    profile = judge_folder(tmp_path / "job", ProfileConfig(), folder=tmp_path / "answers")
    assert profile.folder == tmp_path / "answers"
    assert profile.tags["profiler.LowGPUUtilization"] == "IssuesFound"
    assert profile.figures["profiler/step_p50_ms"] == 100.0
    assert profile.figures["profiler/gpu_mean"] == 10.0


def test_a_folder_without_a_recording_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="must hold profiler files"):
        judge_folder(tmp_path, ProfileConfig())
