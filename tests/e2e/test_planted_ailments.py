"""Ailments made for real in a training run: the rule for each fires, and is silent on a healthy run."""

import csv
import math
import mmap
import multiprocessing
import multiprocessing.synchronize
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
from profilerfiles import START_S, steps, write_samples, write_trace
from smdebug_rulesconfig.profiler_rules import rules as rule_configs
from torch import Tensor, nn

from dogbreed_ml.config import (
    DataConfig,
    ExperimentConfig,
    FeaturesConfig,
    ModelConfig,
    TrackingConfig,
    TrainConfig,
)
from dogbreed_ml.context import Context
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.data.splits import Splits
from dogbreed_ml.pipeline.profiled import profile
from dogbreed_ml.pipeline.runprofiler import RunProfiler
from dogbreed_ml.policies import ProfileConfig
from dogbreed_ml.profiling.readers import read_recording
from dogbreed_ml.profiling.recordings import LoaderProcesses
from dogbreed_ml.profiling.rules import judge
from dogbreed_ml.profiling.sampler import FIRST_SAMPLE_S
from dogbreed_ml.profiling.session import RAW_DIR, ProfileSession, profiled
from dogbreed_ml.profiling.verdicts import Verdict
from dogbreed_ml.train import fit
from dogbreed_ml.workbench import Workbench

CORES = ("cpu0", "cpu1")

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@dataclass
class Batches:
    """Random samples; whatever is in `before` is called before each batch."""

    num_samples: int = 480
    num_features: int = 64
    before: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inputs = torch.randn(self.num_samples, self.num_features)
        self.labels = torch.arange(self.num_samples) % 3

    def batches(self, batch_size: int, *, order: Tensor | None, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in (torch.arange(self.num_samples) if order is None else order).split(batch_size):
            for call in self.before:
                call()
            yield self.inputs[rows], self.labels[rows]


class Head(nn.Module):
    """A linear head whose step takes 2 ms at least, as a network's would; `stall_s` every twentieth time."""

    def __init__(self, *, stall_s: float = 0.0, num_features: int = 64):
        super().__init__()
        self.linear = nn.Linear(num_features, 3)
        self.stall_s = stall_s
        self.num_calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.num_calls += 1
        time.sleep(self.stall_s if self.stall_s and self.num_calls % 20 == 7 else 0.002)
        output: Tensor = self.linear(inputs)
        return output


def train(
    session: ProfileSession,
    batches: Batches,
    model: nn.Module,
    *,
    batch_size: int = 2,
    num_epochs: int = 1,
    device: str = "cpu",
) -> None:
    config = TrainConfig(num_epochs=num_epochs, batch_size=batch_size)
    results = fit(
        model, batches, valid=None, config=config, metrics=lambda logits, labels: {}, num_classes=3,
        device=torch.device(device), spans=session.spans,
    )  # fmt: skip
    assert all(math.isfinite(result.metrics["train/loss"]) for result in results)


def verdict_of(folder: Path, rule: rule_configs.ProfilerRuleBase) -> Verdict:
    (verdict,) = judge(read_recording(folder / RAW_DIR), [rule])
    return verdict


CPU_RULES = (
    rule_configs.Dataloader(),
    rule_configs.StepOutlier(),
    rule_configs.MaxInitializationTime(threshold=1),
)


@pytest.fixture(scope="module")
def healthy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("healthy")
    with profiled(folder, ProfileConfig(interval_ms=20)) as session:
        train(session, Batches(), Head())
    return folder


@pytest.mark.parametrize("rule", CPU_RULES, ids=lambda rule: str(rule.rule_name))
def test_a_healthy_run_has_no_issue(healthy_dir: Path, rule: rule_configs.ProfilerRuleBase) -> None:
    verdict = verdict_of(healthy_dir, rule)
    assert (verdict.status, verdict.recommendation) == ("NoIssuesFound", ""), verdict.reason
    assert verdict.datapoints > 0


def test_a_loader_that_sleeps_is_found(tmp_path: Path) -> None:
    with profiled(tmp_path, ProfileConfig()) as session:
        train(session, Batches(num_samples=40, before=[lambda: time.sleep(0.02)]), Head())
    verdict = verdict_of(tmp_path, rule_configs.Dataloader())
    assert verdict.status == "IssuesFound"
    assert verdict.details["data_wait_share"] > 0.7
    assert "starves" in verdict.recommendation


def test_reading_from_a_throttled_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "photographs.bin"
    path.write_bytes(bytes(1 << 20))

    def read_throttled() -> None:
        """A batch's 64 KiB at 4 MiB/s."""
        with path.open("rb") as file:
            while file.tell() < 1 << 16 and file.read(1 << 14):
                time.sleep((1 << 14) / (4 << 20))

    with profiled(tmp_path / "profiler", ProfileConfig()) as session:
        train(session, Batches(num_samples=40, before=[read_throttled]), Head())
    verdict = verdict_of(tmp_path / "profiler", rule_configs.Dataloader())
    assert verdict.status == "IssuesFound"
    assert verdict.details["data_wait"]["p50_ms"] > 10


class Direct:
    """Reads a file past the page cache, from several threads, as fast as the disk goes."""

    NUM_THREADS, BLOCK_BYTES, NUM_BLOCKS = 4, 1 << 20, 64

    def __init__(self, path: Path) -> None:
        path.write_bytes(os.urandom(self.BLOCK_BYTES) * self.NUM_BLOCKS)
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        except OSError as error:
            pytest.skip(f"needs a file system that reads past the page cache (O_DIRECT): {error}")
        # O_DIRECT wants pages; made once, because new ones cost the CPU as much as the reading.
        self._blocks = [mmap.mmap(-1, self.BLOCK_BYTES) for _ in range(self.NUM_THREADS)]
        self._pool = ThreadPoolExecutor(self.NUM_THREADS)

    def __call__(self) -> None:
        list(self._pool.map(self._read, range(self.NUM_THREADS)))

    def _read(self, number: int) -> None:
        for row in range(number, 2 * self.NUM_THREADS, self.NUM_THREADS):
            offset = row % self.NUM_BLOCKS * self.BLOCK_BYTES
            assert os.preadv(self._file, [self._blocks[number]], offset) == self.BLOCK_BYTES

    def close(self) -> None:
        self._pool.shutdown()
        os.close(self._file)


def kernel_counts() -> tuple[float, float, float]:
    """The cores' seconds in I/O wait, all of their seconds, and MiB read from disks, since the machine's start."""
    times, disks = psutil.cpu_times(), psutil.disk_io_counters()
    spent_s = sum(getattr(times, name) for name in times._fields if "guest" not in name)
    return getattr(times, "iowait", 0.0), spent_s, disks.read_bytes / 2**20 if disks is not None else 0.0


def test_reads_past_the_cache_are_sampled_as_the_kernel_counts_them(tmp_path: Path) -> None:
    """How much of the reading is I/O wait is the machine's affair: where a core has other work, none of it is."""
    read = Direct(tmp_path / "photographs.bin")
    before = kernel_counts()
    try:
        with profiled(tmp_path / "profiler", ProfileConfig(interval_ms=50)) as session:
            train(session, Batches(num_samples=100, before=[read]), Head())
    finally:
        read.close()
    waited_s, spent_s, read_mib = (after - was for was, after in zip(before, kernel_counts(), strict=True))
    system = read_recording(tmp_path / "profiler" / RAW_DIR).system

    def rows_of(dimension: str) -> pd.DataFrame:
        """One row a moment: the mean of the cores or the one disk's value, and the seconds that it stands for."""
        means = system.select(dimension).groupby("timestamp_s")["value"].mean().reset_index()
        return means.assign(seconds=means["timestamp_s"].diff().fillna(FIRST_SAMPLE_S))

    waits, reads = rows_of("I/OWaitPercentage"), rows_of("DiskReadMiBPerSecond")
    if len(waits):
        share = (waits["value"] * waits["seconds"]).sum() / waits["seconds"].sum()
        assert share == pytest.approx(100 * waited_s / spent_s, abs=10)
    assert (reads["value"] * reads["seconds"]).sum() == pytest.approx(read_mib, rel=0.25)


DISK_READS_PATH = Path(__file__).with_name("disk_reads.csv")
"""Recorded every 50 ms by our sampler on two cores, while each step of a training waited for 64 MiB that four threads
read past the page cache; Linux counts I/O wait only while a core has nothing else to do, so that a test of its own
recording would depend on what else runs."""


@pytest.mark.parametrize(("gpu", "status"), [(2.0, "IssuesFound"), (80.0, "NoIssuesFound")], ids=["ailing", "healthy"])
def test_waiting_for_a_disk_is_found(tmp_path: Path, gpu: float, status: str) -> None:
    with DISK_READS_PATH.open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    samples = [
        sample
        for row in rows
        for sample in (
            *((START_S + row["time_s"], "cpu", core, "CPUUtilization", row[f"{core}_use"]) for core in CORES),
            *((START_S + row["time_s"], "i/o", core, "I/OWaitPercentage", row[f"{core}_wait"]) for core in CORES),
            # By hand: the machine that was recorded had no GPU.
            (START_S + row["time_s"], "gpu", "gpu0", "GPUUtilization", gpu),
        )
    ]
    write_samples(tmp_path, samples)
    write_trace(tmp_path, steps([80_000] * 50))
    # Half of SageMaker's io_threshold: half of the cores' time they computed, which is not counted as waiting.
    (verdict,) = judge(read_recording(tmp_path), [rule_configs.IOBottleneck(patience=50, io_threshold=25)])
    during = sum(row["time_s"] <= 50 * 0.08 for row in rows)
    assert (verdict.status, verdict.datapoints) == (status, during), verdict.reason
    assert ("disk" in verdict.recommendation) == (status == "IssuesFound")


@pytest.mark.parametrize("is_ailing", [True, False], ids=["ailing", "healthy"])
def test_memory_that_grows_is_seen_without_a_gpu(tmp_path: Path, is_ailing: bool) -> None:
    kept: list[mmap.mmap] = []

    def leak() -> None:
        """4 MiB new to the process; bytes might lie where earlier tests' memory was, which it has still."""
        kept.append(mmap.mmap(-1, 4 << 20))
        kept[-1].write(bytes(4 << 20))
        time.sleep(0.01)

    with profiled(tmp_path, ProfileConfig(interval_ms=20)) as session:
        train(session, Batches(num_samples=80, before=[leak] if is_ailing else []), Head())
    usage = verdict_of(tmp_path, rule_configs.OverallSystemUsage())
    memory = usage.details["nodes"]["algo-1"]["ProcessMemoryMiB"]
    grown_mib = session.judge().figures["profiler/process_memory_growth_mib"]
    # Half of the 160 MiB: on a loaded machine the loop's first and last samples come late and early.
    assert (memory["max"] - memory["min"] > 80) == (grown_mib > 80) == is_ailing
    # SageMaker's rule is about GPUs.
    assert verdict_of(tmp_path, rule_configs.GPUMemoryIncrease()).reason == "not applicable: no GPU"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Splits, Path]:
    """Photographs of three invented breeds."""
    folder = tmp_path_factory.mktemp("drawn")
    return load_splits(LOADED.data, project_dir=folder), folder


LOADED = ExperimentConfig(
    data=DataConfig(num_breeds=3, num_per_breed=12, image_size=32),
    model=ModelConfig(weights="random"),
    features=FeaturesConfig(backend="torch-fp32"),
    train=TrainConfig(num_epochs=1, batch_size=8, augmentation="flip", num_workers=2),
    profile=ProfileConfig(interval_ms=50),
    tracking=TrackingConfig(system_metrics=False),
)
"""Images loaded by worker processes: what augments afresh each epoch keeps no features."""

NUM_CORES = multiprocessing.cpu_count()


class Colours(Head):
    """Trained on the mean colours of images, in steps of 30 ms: no loader of images this small starves it."""

    def __init__(self) -> None:
        super().__init__(num_features=3)

    def forward(self, inputs: Tensor) -> Tensor:
        time.sleep(0.03)
        return super().forward(inputs.float().mean(dim=(2, 3)) / 255)


@pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes:UserWarning")
@pytest.mark.parametrize(
    ("num_workers", "status"),
    [
        pytest.param(
            1, "IssuesFound", marks=pytest.mark.skipif(NUM_CORES < 2, reason="one process is right for one core")
        ),
        (2 * NUM_CORES + 1, "IssuesFound"),
        (NUM_CORES, "NoIssuesFound"),
    ],
    ids=["too few", "too many", "as many as cores"],
)
def test_the_wrong_number_of_loader_processes_is_found(
    drawn: tuple[Splits, Path], tmp_path: Path, num_workers: int, status: str
) -> None:
    config = replace(LOADED, train=replace(LOADED.train, num_epochs=3, batch_size=2, num_workers=num_workers))
    splits, folder = drawn
    with closing(Workbench(splits, folder, torch.device("cpu"))) as bench:
        feed = bench.feeds(config).train
        # On a busy machine processes take long to start; that is another ailment.
        assert len(list(feed.batches(2, order=None, epoch=0))) == math.ceil(feed.num_samples / 2)
        with profiled(tmp_path, config.profile) as session:
            profiler = RunProfiler(config.profile, session, tmp_path)
            assert len(list(profiler.epochs(bench, config, Colours(), feed, valid=None))) == 3
    recording = read_recording(tmp_path / RAW_DIR)
    loader = recording.timeline.loader
    assert loader is not None
    # The processes that ran, by their ids.
    assert len(set(loader.pids["train"])) == num_workers
    (verdict,) = judge(recording, [rule_configs.Dataloader()])
    assert verdict.status == status, verdict.reason
    what = [each.what for each in verdict.evidence if each.where == "loader"]
    share = round(100 * num_workers / NUM_CORES)
    assert what == (
        [f"{num_workers} loader processes for {NUM_CORES} cores, {share} %."] if status == "IssuesFound" else []
    )
    assert (f"Set train.num_workers to {NUM_CORES}" in verdict.recommendation) == (status == "IssuesFound")


def test_a_step_that_stalls_is_found(tmp_path: Path) -> None:
    with profiled(tmp_path, ProfileConfig()) as session:
        train(session, Batches(), Head(stall_s=0.05))
    verdict = verdict_of(tmp_path, rule_configs.StepOutlier(n_outliers=8))
    assert verdict.status == "IssuesFound"
    stalled = {row["step"] for row in verdict.details["modes"]["TRAIN"]["outliers"]}
    assert set(range(6, 240, 20)) <= stalled


def test_a_slow_initialisation_is_found(tmp_path: Path) -> None:
    with profiled(tmp_path, ProfileConfig()) as session:
        time.sleep(1.3)
        train(session, Batches(num_samples=20), Head())
    verdict = verdict_of(tmp_path, rule_configs.MaxInitializationTime(threshold=0.02))
    assert verdict.status == "IssuesFound"
    assert verdict.details["initialization_s"] > 1.3


def _work(is_busy: bool, stop: multiprocessing.synchronize.Event) -> None:
    while not stop.is_set():
        if is_busy:
            sum(range(10_000))
        else:
            time.sleep(0.01)


@pytest.mark.parametrize(("busy", "status"), [((True, False), "IssuesFound"), ((False, False), "NoIssuesFound")])
def test_two_imbalanced_workers_are_found(tmp_path: Path, busy: tuple[bool, bool], status: str) -> None:
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    workers = [context.Process(target=_work, args=(is_busy, stop)) for is_busy in busy]
    for worker in workers:
        worker.start()
    try:
        with profiled(tmp_path, ProfileConfig(interval_ms=50)) as session:
            session.spans.loader = LoaderProcesses(2, pids={"train": tuple(worker.pid or 0 for worker in workers)})
            train(session, Batches(), Head(), num_epochs=3)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    # Below SageMaker's 0.5: on a loaded machine a busy worker gets a part of a core.
    verdict = verdict_of(tmp_path, rule_configs.LoadBalancing(patience=10, threshold=0.1))
    assert verdict.status == status, verdict.reason
    assert verdict.details["kind"] == "worker"


def test_workers_of_a_real_loader_are_compared_within_their_split(tmp_path: Path) -> None:
    summary = profile(LOADED, context=Context(tmp_path, argv=("dogbreed", "profile")))
    recording = read_recording(Path(summary.report_path).parent)
    loader = recording.timeline.loader
    assert loader is not None
    assert {split: len(pids) for split, pids in loader.pids.items()} == {"train": 2, "valid": 2}
    splits = {loader.split_of(str(name)) for name in recording.system.select("WorkerCPUUtilization")["name"]}
    assert {"train", "valid"} <= splits
    (verdict,) = judge(recording, [rule_configs.LoadBalancing(patience=2)])
    assert verdict.details["kind"] == "worker"
    for pair in verdict.details["pairs"]:
        names = [pair[each].removeprefix("algo-1 ") for each in ("a", "b")]
        assert len({loader.split_of(name) for name in names}) == 1


# On a GPU -----------------------------------------------------------------------------------------------------------


class Multiplications(nn.Module):
    """Large matrix products, which keep any GPU busy."""

    def __init__(self, num_features: int = 8192):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(num_features, num_features) for _ in range(4)))
        self.head = nn.Linear(num_features, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.head(self.layers(inputs))
        return output


class Leaking(Head):
    """Keeps a twentieth of the GPU's memory more after every thirtieth step."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        output = super().forward(inputs)
        if self.num_calls % 30 == 0:
            num_bytes = torch.cuda.get_device_properties(0).total_memory // 20
            self.kept.append(torch.empty(num_bytes, dtype=torch.uint8, device=inputs.device))
        time.sleep(0.01)
        return output


def spin() -> None:
    """50 ms of one core at its limit."""
    end = time.perf_counter() + 0.05
    while time.perf_counter() < end:
        pass


@pytest.mark.parametrize(
    "rule",
    [
        rule_configs.BatchSize(patience=20, window=10),
        rule_configs.LowGPUUtilization(patience=20, window=10),
        rule_configs.CPUBottleneck(patience=20, threshold=40),
        rule_configs.GPUMemoryIncrease(patience=20, window=5, increase=4),
    ],
    ids=lambda rule: str(rule.rule_name),
)
class TestOnAGpu:
    pytestmark = needs_gpu

    def test_an_ailing_run_is_found(self, tmp_path: Path, rule: rule_configs.ProfilerRuleBase) -> None:
        is_leak = rule.rule_name == "GPUMemoryIncrease"
        model = Leaking() if is_leak else Head()
        with profiled(tmp_path, ProfileConfig(interval_ms=50)) as session:
            batches = Batches(num_samples=240, before=[] if is_leak else [spin])
            train(session, batches, model, batch_size=1, num_epochs=1, device="cuda")
        assert verdict_of(tmp_path, rule).status == "IssuesFound"

    def test_a_healthy_run_has_no_issue(self, tmp_path: Path, rule: rule_configs.ProfilerRuleBase) -> None:
        model = Multiplications().to("cuda")
        batches = Batches(num_samples=8192, num_features=8192)
        with profiled(tmp_path / "warm", ProfileConfig()) as session:
            train(session, batches, model, batch_size=4096, device="cuda")
        with profiled(tmp_path, ProfileConfig(interval_ms=50)) as session:
            train(session, batches, model, batch_size=4096, num_epochs=40, device="cuda")
        assert verdict_of(tmp_path, rule).status == "NoIssuesFound"
