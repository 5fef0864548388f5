"""smdebug's own readers and ours, on the same files: ours, and files as SageMaker writes them."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from profilerfiles import START_S, steps, write_machine, write_trace

from dogbreed_ml.profiling.looprules import job_summary
from dogbreed_ml.profiling.readers import read_recording
from dogbreed_ml.profiling.recordings import LoaderProcesses, Recording
from dogbreed_ml.profiling.sampler import SystemSampler
from dogbreed_ml.profiling.timeline import Clock, TimelineRecorder

STEP_PARTS = ("data_wait", "transfer", "forward", "backward", "optimizer")


@pytest.fixture(scope="module")
def smdebug() -> Iterator[Any]:
    """smdebug's profiler modules; smdebug 1.0.34 warns of its own code when it is imported and used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from smdebug.profiler import algorithm_metrics_reader, system_metrics_reader
        from smdebug.profiler.analysis.utils import pandas_data_analysis, profiler_data_to_pandas

        class Modules:
            system_reader = system_metrics_reader.LocalSystemMetricsReader
            framework_reader = algorithm_metrics_reader.LocalAlgorithmMetricsReader
            pandas_frame = profiler_data_to_pandas.PandasFrame
            analysis = pandas_data_analysis.PandasFrameAnalysis

        yield Modules


def record(root: Path) -> None:
    """Two epochs of steps that take time, beside a running sampler.

    It is started 20 ms before a full second, so that the first file's name and the first sample are of different ones.
    """
    now = Clock.start()
    clock = Clock(now.epoch_ns // 10**9 * 10**9 + 980_000_000, now.counter_ns)
    with SystemSampler(root, interval_ms=10, clock=clock):
        recorder = TimelineRecorder(clock)
        recorder.loader = LoaderProcesses(2)
        with recorder.span("initialisation"):
            sum(range(100_000))
        for _ in range(2):
            for _ in range(30):
                for name in STEP_PARTS:
                    with recorder.span(name):
                        sum(range(20_000))
            with recorder.span("data_wait"):
                pass
            with recorder.span("evaluation"):
                for _ in range(3):
                    for name in STEP_PARTS[:3]:
                        with recorder.span(f"evaluation/{name}"):
                            sum(range(20_000))
                with recorder.span("evaluation/data_wait"):
                    pass
            with recorder.span("logging"):
                sum(range(20_000))
    recorder.write(root)


def write_job(root: Path) -> None:
    """A SageMaker job of two nodes: rotated system files, GPUs, two timelines, one of them a Python one."""
    for node in ("algo-1", "algo-2"):
        machine: dict[str, Any] = {"gpus": {"gpu0": [50.0] * 400, "gpu1": [60.5] * 400}, "memory": [30.0] * 400}
        write_machine(root, **machine, cpus={"cpu0": [10.0] * 400, "cpu1": [12.25] * 400}, node=node)
    forward = [
        {"phase": "Forward", "name": "ResNet", "ts": 2_000_000 + i * 100_000, "dur": 60_000,
         "args": {"step_num": str(i)}}
        for i in range(40)
    ]  # fmt: skip
    write_trace(root, [*steps([100_000] * 40, first_ts=2_000_000), *forward], worker="77-algo-1")
    write_trace(root, steps([90_000] * 40, first_ts=2_000_000), worker="78-algo-2", suffix="pythontimeline")


@pytest.fixture(params=["ours", "sagemaker"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "ours":
        record(tmp_path)
    else:
        write_job(tmp_path)
    return tmp_path


class TestSmdebugReaders:
    def test_system_samples_agree_to_the_last_one(self, root: Path, smdebug: Any) -> None:
        ours = read_recording(root).system
        events = smdebug.system_reader(str(root)).get_events(0, int((ours.end_s + 600) * 1e6))
        theirs = sorted((e.timestamp, e.type, e.name, e.dimension, e.node_id, e.value) for e in events)
        columns = ["timestamp_s", "kind", "name", "dimension", "node", "value"]
        assert sorted(ours.frame[columns].itertuples(index=False, name=None)) == theirs
        # The samples at start and end alone are as many, on two cores.
        assert len(theirs) >= 20

    def test_framework_events_agree_to_the_last_one(self, root: Path, smdebug: Any) -> None:
        recording = read_recording(root)
        events = smdebug.framework_reader(str(root)).get_events(0, int((recording.end_s + 600) * 1e6))
        theirs = sorted(
            (e.event_name, e.event_phase, e.start_time, e.duration, int(e.event_args["step_num"]), e.node_id)
            for e in events
        )
        columns = ["name", "phase", "start_us", "duration_us", "step", "worker"]
        assert sorted(recording.timeline.frame[columns].itertuples(index=False, name=None)) == theirs
        assert len(theirs) > 80

    def test_pandas_frame_loses_no_step_and_no_sample(self, root: Path, smdebug: Any) -> None:
        recording = read_recording(root)
        frame = smdebug.pandas_frame(str(root))
        system, framework = frame.get_all_system_metrics(), frame.get_all_framework_metrics()
        assert len(system) == len(recording.system.frame)
        for mode in recording.timeline.modes:
            theirs = framework[framework["framework_metric"] == f"Step:ModeKeys.{mode}"]
            assert len(theirs) == len(recording.timeline.steps(mode))

    def test_pandas_frame_analysis_finds_the_same_parts_of_the_job(self, root: Path, smdebug: Any) -> None:
        recording = read_recording(root)
        analysis = _analysis(root, smdebug)
        theirs, ours = analysis.get_job_statistics(), job_summary(recording)
        assert ours is not None
        # smdebug counts from the whole second in the first file's name, which may be the one before the first sample's.
        zero_s = min(int(path.name.split(".")[0]) for path in (root / "system").rglob("*.json"))
        assert theirs["initialization"] / 1e6 + zero_s == pytest.approx(
            ours["job_start_s"] + ours["initialization_s"], abs=1e-5
        )
        assert theirs["job_duration"] / 1e6 == pytest.approx(
            recording.system.end_s - recording.system.start_s, abs=1e-5
        )

    def test_pandas_frame_analysis_finds_the_same_step_times(self, root: Path, smdebug: Any) -> None:
        recording = read_recording(root)
        statistics = _analysis(root, smdebug).get_step_statistics().set_index("training_phase")
        for mode in recording.timeline.modes:
            # smdebug takes one step of several workers for one, from the first start to the last end.
            every = recording.timeline.steps(mode).assign(end=lambda f: f["start_us"] + f["duration_us"])
            merged = every.groupby("step").agg(start=("start_us", "min"), end=("end", "max"))
            durations = merged["end"] - merged["start"]
            theirs = statistics.loc[f"Step:ModeKeys.{mode}"]
            assert theirs["duration_mean_us"] == pytest.approx(durations.mean())
            assert theirs["duration_p95_us"] == pytest.approx(durations.quantile(0.95))


def test_job_starts_where_its_first_sample_is(tmp_path: Path) -> None:
    write_job(tmp_path)
    recording: Recording = read_recording(tmp_path)
    assert recording.start_s == START_S


def _analysis(root: Path, smdebug: Any) -> Any:
    frame = smdebug.pandas_frame(str(root))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return smdebug.analysis(frame.get_all_system_metrics(), frame.get_all_framework_metrics())
