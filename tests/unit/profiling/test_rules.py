"""Each rule on files written by hand in SageMaker's format: it fires on the ailment and is silent without it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from profilerfiles import INTERVAL_S, START_S, steps, write_machine, write_samples, write_trace
from smdebug_rulesconfig.profiler_rules import rules as rule_configs

from dogbreed_ml.errors import ProfileError
from dogbreed_ml.profiling.figures import profile_figures
from dogbreed_ml.profiling.readers import read_recording
from dogbreed_ml.profiling.recordings import Recording, Timeline
from dogbreed_ml.profiling.rules import RULES, judge, profiler_report
from dogbreed_ml.profiling.verdicts import Verdict

NUM = 1200
"""Samples: more than the 1000 of patience."""

BUSY: dict[str, Any] = {
    "gpus": {"gpu0": [95.0] * NUM},
    "memory": [80.0] * NUM,
    "cpus": {"cpu0": [50.0] * NUM, "cpu1": [40.0] * NUM},
}


def one(root: Path, rule: rule_configs.ProfilerRuleBase) -> Verdict:
    (verdict,) = judge(read_recording(root), [rule])
    return verdict


def constant(value: float, num: int = NUM) -> list[float]:
    return [value] * num


# The GPU rules: what the machine looks like, and the first words of the evidence.
AILMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "LowGPUUtilization": ({"gpus": {"gpu0": constant(20)}}, "algo-1 gpu0 was little used: 95 % of the samples"),
    "BatchSize": (
        {"gpus": {"gpu0": constant(20)}, "memory": constant(10), "cpus": {"cpu0": constant(30)}},
        "algo-1 gpu0 CPU, GPU and GPU memory were little used together: cpu_p95 30 %, gpu_p95 20 %",
    ),
    "CPUBottleneck": (
        {"gpus": {"gpu0": constant(5)}, "cpus": {"cpu0": constant(99), "cpu1": constant(5)}},
        "The GPU waited in 100 % of the training's time; the limit is 50 %.",
    ),
    "IOBottleneck": (
        {"gpus": {"gpu0": constant(5)}, "cpus": {"cpu0": constant(9)}, "waits": constant(80)},
        "The GPU waited in 100 % of the training's time; the limit is 50 %.",
    ),
    "GPUMemoryIncrease": (
        {"gpus": {"gpu0": constant(95)}, "memory": [10.0] * 1100 + [30.0] * 100},
        "algo-1 gpu0 memory rose from 10.0 % to 30.0 %.",
    ),
    "LoadBalancing": (
        {"gpus": {"gpu0": constant(95), "gpu1": constant(10)}},
        "algo-1 gpu0 and algo-1 gpu1 are used unequally: 95 % and 10 % in the mean.",
    ),
}
HEALTHY: dict[str, dict[str, Any]] = {
    "IOBottleneck": BUSY | {"waits": constant(5)},
    "LoadBalancing": BUSY | {"gpus": {"gpu0": constant(95), "gpu1": constant(85)}},
}


@pytest.mark.parametrize("name", AILMENTS)
def test_gpu_rule_fires_on_its_ailment(tmp_path: Path, name: str) -> None:
    machine, reason = AILMENTS[name]
    write_machine(tmp_path, **machine)
    verdict = one(tmp_path, getattr(rule_configs, name)())
    assert (verdict.rule, verdict.status) == (name, "IssuesFound")
    assert verdict.reason.startswith(reason)
    assert verdict.triggered >= 1
    # What lies before the first window is warm-up.
    skipped = {"LowGPUUtilization": 500, "BatchSize": 500, "GPUMemoryIncrease": 990}.get(name, 0)
    assert verdict.datapoints == len(machine["gpus"]) * (NUM - skipped)
    assert verdict.recommendation
    assert START_S <= verdict.evidence[0].start_s <= verdict.evidence[0].end_s <= START_S + NUM * INTERVAL_S
    assert all(math.isfinite(value) for each in verdict.evidence for value in each.values.values())


@pytest.mark.parametrize("name", AILMENTS)
def test_gpu_rule_is_silent_on_a_healthy_machine(tmp_path: Path, name: str) -> None:
    write_machine(tmp_path, **HEALTHY.get(name, BUSY))
    verdict = one(tmp_path, getattr(rule_configs, name)())
    assert (verdict.status, verdict.triggered, verdict.recommendation) == ("NoIssuesFound", 0, "")


@pytest.mark.parametrize("name", AILMENTS)
def test_gpu_rule_says_that_there_is_no_gpu(tmp_path: Path, name: str) -> None:
    write_machine(tmp_path, cpus={"cpu0": constant(1)})
    verdict = one(tmp_path, getattr(rule_configs, name)())
    assert verdict.status == "NotApplicable"
    assert verdict.reason.startswith("not applicable: no GPU")


@pytest.mark.parametrize("name", AILMENTS)
def test_gpu_rule_says_that_a_run_is_short(tmp_path: Path, name: str) -> None:
    short: dict[str, Any] = {key: {k: v[:30] for k, v in value.items()} if isinstance(value, dict) else value[:30]
             for key, value in AILMENTS[name][0].items()}  # fmt: skip
    write_machine(tmp_path, **short)
    verdict = one(tmp_path, getattr(rule_configs, name)())
    assert verdict.status == "NotApplicable"
    assert verdict.reason == "not applicable: a short run, 30 datapoints of the 1000 that patience asks for"
    assert verdict.datapoints == 30
    # What is asked for by the rule's own class decides.
    fewer = {"window": 10} if name in ("LowGPUUtilization", "BatchSize") else {}
    asked = getattr(rule_configs, name)(patience=20, **fewer)
    assert one(tmp_path, asked).status == ("NoIssuesFound" if name == "GPUMemoryIncrease" else "IssuesFound")


def test_low_gpu_utilization_tells_fluctuation_from_low_use(tmp_path: Path) -> None:
    write_machine(tmp_path, gpus={"gpu0": [95.0, 95.0, 95.0, 0.0] * 300})
    verdict = one(tmp_path, rule_configs.LowGPUUtilization())
    assert verdict.evidence[0].what == "fluctuates between 0 % and 95 %."
    gpu = verdict.details["gpus"]["algo-1 gpu0"]
    # From 500 to 1000, and the last 500.
    assert (gpu["num_fluctuating"], gpu["num_low"]) == (2, 0)
    assert (
        one(tmp_path, rule_configs.LowGPUUtilization(threshold_p95=96)).details["gpus"]["algo-1 gpu0"]["num_low"] == 2
    )


def test_gpu_that_idles_at_the_end_is_seen(tmp_path: Path) -> None:
    write_machine(tmp_path, gpus={"gpu0": [95.0] * 1000 + [0.0] * 499})
    verdict = one(tmp_path, rule_configs.LowGPUUtilization())
    assert (verdict.status, verdict.datapoints) == ("IssuesFound", 999)
    assert verdict.evidence[-1].end_s == pytest.approx(START_S + 1498 * INTERVAL_S + 0.05)


@pytest.mark.parametrize("name", ["LowGPUUtilization", "BatchSize"])
def test_recording_shorter_than_a_window_is_not_judged(tmp_path: Path, name: str) -> None:
    write_machine(tmp_path, gpus={"gpu0": constant(1, 300)}, memory=constant(1, 300))
    verdict = one(tmp_path, getattr(rule_configs, name)(patience=100))
    assert verdict.reason == "not applicable: a short run, 300 datapoints of the 500 that a window asks for"
    assert one(tmp_path, getattr(rule_configs, name)(patience=100, window=300)).status == "IssuesFound"


def test_memory_of_one_window_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    write_machine(tmp_path, gpus={"gpu0": constant(95, 1000)}, memory=constant(10, 1000))
    verdict = one(tmp_path, rule_configs.GPUMemoryIncrease())
    assert verdict.reason == "not applicable: a short run, 1000 datapoints of the 1001 that 2 windows ask for"
    write_machine(tmp_path, gpus={"gpu0": constant(95, 1001)}, memory=[*constant(10, 998), 90.0, 90.0, 90.0])
    assert one(tmp_path, rule_configs.GPUMemoryIncrease()).triggered == 1


def test_bottleneck_is_not_judged_where_nothing_was_sampled_during_the_steps(tmp_path: Path) -> None:
    write_machine(tmp_path, gpus={"gpu0": constant(5)}, cpus={"cpu0": constant(99)})
    write_trace(tmp_path, steps([1000] * 10, first_ts=int(3600e6)))
    verdict = one(tmp_path, rule_configs.CPUBottleneck())
    assert verdict.reason == "not applicable: nothing was sampled while the steps ran"


def test_bottleneck_is_a_share_of_what_was_sampled(tmp_path: Path) -> None:
    write_machine(tmp_path, gpus={"gpu0": constant(5)}, cpus={"cpu0": [99.0] * 500 + [math.nan] * 700})
    verdict = one(tmp_path, rule_configs.CPUBottleneck())
    assert (verdict.status, verdict.details["gpus"]["algo-1 gpu0"]["percent"]) == ("IssuesFound", 100.0)


def test_gpus_that_tell_nothing_are_not_called_absent(tmp_path: Path) -> None:
    write_machine(tmp_path, gpus={"gpu0": constant(math.nan)}, cpus={"cpu0": constant(9)})
    verdict = one(tmp_path, rule_configs.LowGPUUtilization())
    assert verdict.reason == "not applicable: no GPU's utilisation could be read"


def test_low_gpu_utilization_names_the_one_gpu_of_the_one_node(tmp_path: Path) -> None:
    write_machine(tmp_path, gpus={"gpu0": constant(95), "gpu1": constant(95)}, node="algo-1")
    write_machine(tmp_path, gpus={"gpu0": constant(95), "gpu1": constant(5)}, node="algo-2")
    verdict = one(tmp_path, rule_configs.LowGPUUtilization())
    assert {each.where for each in verdict.evidence} == {"algo-2 gpu1"}
    assert verdict.datapoints == 4 * (NUM - 500)


def test_cpu_bottleneck_looks_at_the_time_of_the_training_alone(tmp_path: Path) -> None:
    # Ten minutes of unpacking with an idle GPU, then a minute of healthy training.
    write_machine(tmp_path, gpus={"gpu0": [0.0] * 1200 + [95.0] * 120}, cpus={"cpu0": constant(99, 1320)})
    assert one(tmp_path, rule_configs.CPUBottleneck()).status == "IssuesFound"
    write_trace(tmp_path, steps([500_000] * 110, first_ts=int(601e6)))
    verdict = one(tmp_path, rule_configs.CPUBottleneck())
    assert (verdict.status, verdict.triggered) == ("NoIssuesFound", 0)
    assert 100 <= verdict.datapoints <= 112


def test_gpu_memory_that_leaks_slowly_adds_up(tmp_path: Path) -> None:
    memory = list(np.linspace(10, 30, 3000))
    write_machine(tmp_path, gpus={"gpu0": constant(95, 3000)}, memory=memory)
    # From one window of 10 to the next it grows by 0.07 points; from 1000 on by 13, in steps of 5.
    assert one(tmp_path, rule_configs.GPUMemoryIncrease()).triggered == 2


def test_bottlenecks_of_files_with_gpus_alone_are_not_judged(tmp_path: Path) -> None:
    write_machine(tmp_path, gpus={"gpu0": constant(5)})
    verdict = one(tmp_path, rule_configs.CPUBottleneck())
    assert (verdict.status, verdict.reason) == ("NotApplicable", "not applicable: nothing but the GPU was sampled")
    memory = one(tmp_path, rule_configs.GPUMemoryIncrease())
    assert (memory.status, memory.reason) == ("NotApplicable", "not applicable: no GPU memory was sampled")


def test_nan_samples_are_left_out(tmp_path: Path) -> None:
    write_machine(tmp_path, gpus={"gpu0": [math.nan, 5.0] * NUM}, cpus={"cpu0": constant(99, 2 * NUM)})
    verdict = one(tmp_path, rule_configs.CPUBottleneck())
    assert (verdict.status, verdict.datapoints) == ("IssuesFound", NUM)


def write_workers(root: Path, uses: dict[int, float], pids: dict[str, list[int]]) -> None:
    """Child processes with a constant use each, of which `pids` load images."""
    samples = [
        (START_S + tick, "worker", f"worker-{pid}", "WorkerCPUUtilization", use)
        for tick in range(50)
        for pid, use in uses.items()
    ]
    write_samples(root, samples)
    loader = loader_start(2)
    loader["args"]["pids"] = pids
    write_trace(root, [loader, *steps([1000] * 10)])


def test_load_balancing_judges_workers_where_there_is_no_gpu(tmp_path: Path) -> None:
    write_workers(tmp_path, {11: 90.0, 12: 3.0}, {"train": [11, 12]})
    verdict = one(tmp_path, rule_configs.LoadBalancing(patience=40))
    assert verdict.status == "IssuesFound"
    assert verdict.details["kind"] == "worker"
    assert verdict.details["pairs"][0]["distance"] == pytest.approx(0.87)
    assert sum(verdict.details["histograms"]["algo-1 worker-11"]) == pytest.approx(1.0)


@pytest.mark.parametrize(("idle_share", "status"), [(0.0, "NoIssuesFound"), (0.9, "IssuesFound")])
def test_load_balancing_compares_the_workers_of_one_split(tmp_path: Path, idle_share: float, status: str) -> None:
    # 98 and 99 are processes that load nothing, such as multiprocessing's resource tracker.
    uses = {11: 90.0, 12: 90.0 * (1 - idle_share), 21: 1.0, 22: 1.0, 98: 0.0, 99: 95.0}
    write_workers(tmp_path, uses, {"train": [11, 12], "valid": [21, 22]})
    verdict = one(tmp_path, rule_configs.LoadBalancing(patience=40))
    assert (verdict.status, len(verdict.details["pairs"]), verdict.datapoints) == (status, 2, 200)


def test_load_balancing_compares_no_processes_of_which_nobody_knows_what_they_do(tmp_path: Path) -> None:
    write_workers(tmp_path, {98: 0.0, 99: 95.0}, {})
    verdict = one(tmp_path, rule_configs.LoadBalancing(patience=40))
    assert verdict.reason == "not applicable: no GPU, and no two loader processes of one split were sampled"


def test_load_balancing_has_nothing_to_say_of_one_gpu(tmp_path: Path) -> None:
    write_machine(tmp_path, gpus={"gpu0": constant(5)})
    assert one(tmp_path, rule_configs.LoadBalancing()).reason == "not applicable: one GPU has nothing to balance"


def test_step_outlier_fires_beyond_the_tolerated_number(tmp_path: Path) -> None:
    # The first epoch's steps with a stall in every tenth.
    write_trace(tmp_path, steps([100_000 if i % 20 == 7 else 20_000 + i % 3 * 100 for i in range(240)]))
    verdict = one(tmp_path, rule_configs.StepOutlier())
    assert (verdict.status, verdict.triggered, verdict.datapoints) == ("IssuesFound", 12, 240)
    assert verdict.evidence[0].where == "algo-1-1234 TRAIN step 7"
    assert verdict.evidence[0].values["duration_ms"] == 100.0
    assert verdict.details["modes"]["TRAIN"]["lost_s"] == pytest.approx(12 * 0.0759, rel=0.02)
    assert one(tmp_path, rule_configs.StepOutlier(n_outliers=12)).status == "NoIssuesFound"
    assert one(tmp_path, rule_configs.StepOutlier(stddev=5)).triggered == 0


def test_step_outlier_of_a_short_run_is_not_judged(tmp_path: Path) -> None:
    # Eleven of 110 would be the first that can be 3 standard deviations above the mean.
    write_trace(tmp_path, steps([20_000] * 100 + [900_000] * 9))
    verdict = one(tmp_path, rule_configs.StepOutlier())
    assert verdict.reason == (
        "not applicable: a short run, of 109 steps no more than 10 can be 3 standard deviations above the mean, and 10 "
        "are tolerated"
    )
    assert (verdict.datapoints, verdict.triggered, len(verdict.evidence)) == (109, 9, 9)
    assert one(tmp_path, rule_configs.StepOutlier(n_outliers=8)).status == "IssuesFound"
    assert one(tmp_path, rule_configs.StepOutlier(n_outliers=9)).status == "NoIssuesFound"


def test_step_outlier_keeps_modes_apart(tmp_path: Path) -> None:
    write_trace(tmp_path, [*steps([20_000] * 200), *steps([500_000] * 15, mode="EVAL", first_ts=4_000_000)])
    verdict = one(tmp_path, rule_configs.StepOutlier())
    assert (verdict.status, verdict.triggered, verdict.datapoints) == ("NoIssuesFound", 0, 215)
    assert one(tmp_path, rule_configs.StepOutlier(mode="ModeKeys.EVAL")).datapoints == 15
    missing = one(tmp_path, rule_configs.StepOutlier(mode="PREDICT"))
    assert missing.reason == "not applicable: no steps of mode PREDICT were recorded"


def test_max_initialization_time_counts_from_the_first_sample(tmp_path: Path) -> None:
    write_machine(tmp_path, cpus={"cpu0": constant(50)})
    write_trace(tmp_path, steps([1000] * 10, first_ts=90_000_000))
    verdict = one(tmp_path, rule_configs.MaxInitializationTime(threshold=1))
    assert (verdict.status, verdict.triggered) == ("IssuesFound", 1)
    assert verdict.reason == "The first step began after 90.0 s; the limit is 60 s."
    assert verdict.details["initialization_s"] == 90.0
    assert verdict.details["finalization_s"] == pytest.approx(599.5 - 90.01, abs=0.01)
    assert one(tmp_path, rule_configs.MaxInitializationTime(threshold=2)).status == "NoIssuesFound"


def test_max_initialization_time_without_a_step(tmp_path: Path) -> None:
    write_machine(tmp_path, cpus={"cpu0": constant(50)})
    assert one(tmp_path, rule_configs.MaxInitializationTime(threshold=5)).status == "IssuesFound"
    short = one(tmp_path, rule_configs.MaxInitializationTime())
    assert short.reason == "not applicable: no step was recorded"


def test_initialisation_of_an_evaluation_ends_with_its_first_step(tmp_path: Path) -> None:
    write_machine(tmp_path, cpus={"cpu0": constant(50)})
    write_trace(tmp_path, steps([1_000_000] * 500, mode="EVAL", first_ts=90_000_000))
    verdict = one(tmp_path, rule_configs.MaxInitializationTime(threshold=2))
    assert (verdict.status, verdict.reason) == (
        "NoIssuesFound",
        "The first step began after 90.0 s; the limit is 120 s.",
    )


def loader_start(num_workers: int) -> dict[str, Any]:
    name = "_MultiProcessingDataLoaderIter.__init__"
    args = {"step_num": "0", "num_workers": num_workers, "pin_memory": True}
    return {"phase": "DataLoaderIterInitialize", "name": name, "ts": 0, "dur": 10, "args": args}


@pytest.mark.parametrize(("num_workers", "status"), [(1, "IssuesFound"), (4, "NoIssuesFound"), (9, "IssuesFound")])
def test_dataloader_compares_processes_with_cores(tmp_path: Path, num_workers: int, status: str) -> None:
    write_machine(tmp_path, cpus={f"cpu{i}": [50.0] * 9 for i in range(4)})
    write_trace(tmp_path, [loader_start(num_workers), *steps([1000] * 10)])
    verdict = one(tmp_path, rule_configs.Dataloader())
    assert (verdict.status, verdict.datapoints) == (status, 1)
    processes = f"{num_workers} loader processes for 4 cores, {25 * num_workers} %."
    assert verdict.reason == f"No step's wait for data was recorded. {processes}"
    assert (verdict.details["num_cores"], verdict.details["num_workers"]) == (4, num_workers)
    assert verdict.details["pin_memory"] is True


@pytest.mark.parametrize(("waited_us", "status"), [(100, "NoIssuesFound"), (800, "IssuesFound")])
@pytest.mark.parametrize("name", ["data_wait", "_MultiProcessingDataLoaderIter.__next__", "DataLoaderIter::GetNext"])
def test_dataloader_knows_steps_that_wait(tmp_path: Path, name: str, waited_us: int, status: str) -> None:
    waits = [
        {"phase": name, "name": name, "ts": i * 1000, "dur": waited_us, "args": {"step_num": str(i)}} for i in range(10)
    ]
    write_trace(tmp_path, [*steps([1000] * 10), *waits])
    verdict = one(tmp_path, rule_configs.Dataloader())
    assert verdict.status == status
    assert verdict.details["data_wait_share"] == pytest.approx(waited_us / 1000)
    assert verdict.reason.endswith("No loader processes were recorded.")


def test_dataloader_says_what_it_could_not_judge(tmp_path: Path) -> None:
    write_trace(tmp_path, [loader_start(4), *steps([1000] * 10)])
    verdict = one(tmp_path, rule_configs.Dataloader())
    assert verdict.reason == "not applicable: no core was sampled, and no step's wait for data"
    waits = [{"phase": "data_wait", "name": "data_wait", "ts": i * 1000, "dur": 100} for i in range(10)]
    write_trace(tmp_path / "waits", [loader_start(4), *steps([1000] * 10), *waits])
    verdict = one(tmp_path / "waits", rule_configs.Dataloader())
    assert (verdict.status, verdict.datapoints) == ("NoIssuesFound", 10)
    assert verdict.reason == (
        "The steps do not wait for the loader. 4 loader processes were not compared with the cores: none was sampled."
    )


def test_dataloader_knows_the_waits_between_the_steps_of_smdebugs_hook(tmp_path: Path) -> None:
    # 1,000 us of waiting, and then a step of 3,000.
    waits = [{"phase": "data_wait", "name": "data_wait", "ts": i * 4000, "dur": 1000} for i in range(10)]
    train = [
        {"phase": each["phase"], "name": each["name"], "ts": i * 4000 + 1000, "dur": 3000, "args": each["args"]}
        for i, each in enumerate(steps([3000] * 10))
    ]
    write_trace(tmp_path, [*waits, *train])
    verdict = one(tmp_path, rule_configs.Dataloader())
    assert (verdict.status, verdict.details["data_wait_share"]) == ("NoIssuesFound", 0.25)


def test_phases_have_a_share_of_the_steps_in_which_they_lie(tmp_path: Path) -> None:
    parts = [
        {"phase": name, "name": name, "ts": ts, "dur": dur, "args": {"step_num": "0"}}
        for name, ts, dur in (
            *(("features", 0, 9000), ("forward", 10_000, 600), ("forward", 11_000, 300)),
            # The wait that finds the data at its end, and an evaluation of one step.
            *(("data_wait", 10_600, 100), ("data_wait", 12_000, 5000), ("evaluation", 17_000, 1000)),
            ("evaluation/forward", 17_100, 250),
        )
    ]
    write_trace(tmp_path, [*steps([1000] * 2, first_ts=10_000), *steps([500], mode="EVAL", first_ts=17_100), *parts])
    recording = read_recording(tmp_path)
    shares = {name: each["share"] for name, each in judge(recording)[-1].details["phases"].items()}
    inside = {"forward": 0.45, "data_wait": 0.05, "evaluation/forward": 0.5}
    assert shares == {"features": None, "evaluation": None, **inside}
    figures = profile_figures(recording)
    assert (figures["profiler/forward_share"], figures["profiler/data_wait_share"]) == (0.45, 0.05)


def test_overall_rules_aggregate_and_never_trigger(tmp_path: Path) -> None:
    write_machine(tmp_path, **BUSY)
    write_trace(tmp_path, steps([1000, 3000]))
    system, framework = judge(read_recording(tmp_path))[-2:]
    assert (system.status, framework.status) == ("NoIssuesFound", "NoIssuesFound")
    assert system.details["nodes"]["algo-1"]["GPUUtilization"]["p95"] == 95.0
    assert system.details["nodes"]["algo-1"]["CPUUtilization"]["mean"] == 45.0
    assert framework.details["modes"]["TRAIN"]["mean_ms"] == 2.0
    assert framework.details["modes"]["TRAIN"]["total_s"] == 0.004


def test_without_any_rule_all_are_judged_by_sagemakers_defaults(tmp_path: Path) -> None:
    write_machine(tmp_path, **BUSY)
    verdicts = judge(read_recording(tmp_path))
    assert [verdict.rule for verdict in verdicts] == list(RULES)
    by_name = {verdict.rule: verdict for verdict in verdicts}
    for name in RULES:
        if hasattr(rule_configs, name):
            expected = dict(getattr(rule_configs, name)().rule_parameters)
            del expected["rule_to_invoke"]
            assert dict(by_name[name].parameters) == expected


def test_profiler_report_keys_set_one_rules_parameter(tmp_path: Path) -> None:
    write_machine(tmp_path, gpus={"gpu0": constant(65)})
    report = profiler_report({"lowgpuutilization_threshold_p95": 60, "StepOutlier_stddev": 2})
    by_name = {verdict.rule: verdict for verdict in judge(read_recording(tmp_path), [report])}
    assert set(by_name) == set(RULES)
    assert by_name["LowGPUUtilization"].parameters["threshold_p95"] == 60
    assert by_name["LowGPUUtilization"].parameters["window"] == 500
    assert by_name["StepOutlier"].parameters["stddev"] == 2
    assert by_name["LowGPUUtilization"].status == "NoIssuesFound"
    assert one(tmp_path, rule_configs.LowGPUUtilization()).status == "IssuesFound"


@pytest.mark.parametrize("key", ["StepOutlier", "StepOutlier_std", "Steps_stddev", "BatchSize_cpu_threshold_p95"])
def test_profiler_report_refuses_what_no_rule_has(key: str) -> None:
    with pytest.raises(ProfileError, match="A key must be RULE_PARAMETER with a value that the rule takes"):
        profiler_report({key: 101})


def test_a_rule_that_cannot_be_judged_is_an_error_and_stops_no_other(tmp_path: Path) -> None:
    write_machine(tmp_path, **BUSY)
    write_trace(tmp_path, steps([1000] * 10))
    sound = read_recording(tmp_path)
    broken = Recording(sound.system, Timeline(sound.timeline.frame.drop(columns="step")), sound.source)
    by_name = {verdict.rule: verdict for verdict in judge(broken)}
    assert by_name["StepOutlier"].status == "Error"
    assert "step" in by_name["StepOutlier"].reason
    assert by_name["LowGPUUtilization"].status == "NoIssuesFound"


def test_an_empty_recording_is_judged_as_not_applicable(tmp_path: Path) -> None:
    (tmp_path / "system").mkdir()
    (tmp_path / "framework").mkdir()
    assert {verdict.status for verdict in judge(read_recording(tmp_path))} == {"NotApplicable"}
