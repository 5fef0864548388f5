"""The profiler report and its JSON files: SageMaker's sections and layout, and figures that are the recording's."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from profilerfiles import START_S, steps, write_machine, write_samples, write_trace

from dogbreed_ml.errors import ProfileError
from dogbreed_ml.profiling import plots
from dogbreed_ml.profiling.readers import read_recording
from dogbreed_ml.profiling.recordings import Recording, empty_system, empty_timeline
from dogbreed_ml.profiling.report import REPORT_FILE, render_profiler_report, save_profiler_report
from dogbreed_ml.profiling.rulereports import REPORTS_DIR, load_rule_reports, rule_report, save_rule_reports
from dogbreed_ml.profiling.rules import RULES, judge
from dogbreed_ml.profiling.traces import OperatorTime
from dogbreed_ml.profiling.verdicts import Evidence, Verdict

SECTIONS = [
    "Training job summary",
    "System usage statistics",
    "Framework metrics",
    "Rules summary",
    "Step durations",
    "GPU utilisation",
    "Batch size",
    "CPU bottlenecks",
    "I/O bottlenecks",
    "Data loader",
    "Load balancing",
    "Memory",
    "Tensor rules",
]

OVERFIT = Verdict(
    "Overfit",
    "IssuesFound",
    "The valid loss is 0.9 where the train loss is 0.2.",
    3,
    5,
    {"patience": 1},
    (Evidence(0.0, 0.0, "valid/loss", "It is <high>.", {"ratio": 3.5}),),
    "Train fewer epochs.",
)


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    """Two cores and a GPU for 60 s, 100 steps of 0.2 s of which one took 5 s, half of each in forward."""
    ticks = range(120)
    write_machine(
        tmp_path,
        cpus={"cpu0": [90.0 for _ in ticks], "cpu1": [10.0 for _ in ticks]},
        gpus={"gpu0": [50.0 for _ in ticks]},
        memory=[float(tick) / 2 for tick in ticks],
    )
    events = steps([5_000_000 if number == 40 else 200_000 for number in range(100)], first_ts=10_000_000)
    forwards = [
        {"phase": "forward", "name": "forward", "ts": each["ts"], "dur": each["dur"] // 2, "args": each["args"]}
        for each in events
    ]
    write_trace(tmp_path, [*events, *forwards])
    return read_recording(tmp_path)


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="[\w-]+"><h2>(.*?)</h2>', page)


def section(page: str, title: str) -> str:
    return page.partition(f"<h2>{title}</h2>")[2].partition("</section>")[0]


def test_report_has_sagemakers_sections_in_their_order(recording: Recording) -> None:
    page = render_profiler_report(recording, judge(recording), title="run")
    assert sections(page) == SECTIONS
    operators = [OperatorTime("aten::convolution", 3, 1.5, 2.5, 0.0)]
    page = render_profiler_report(recording, judge(recording), title="run", operators=operators)
    assert sections(page) == [*SECTIONS, "Top operators"]
    assert "<td>aten::convolution</td><td>3</td><td>1.5</td><td>2.5</td>" in page


def test_report_tells_what_was_recorded(recording: Recording) -> None:
    page = render_profiler_report(recording, judge(recording), title="run")
    job = section(page, "Training job summary")
    assert "2020-06-03 05:05:00.00" in job
    assert "<th>Initialisation</th><td>10.0 s" in job
    assert "<th>Training loop</th><td>24.8 s" in job
    usage = section(page, "System usage statistics")
    assert "<td>algo-1</td><td>CPUUtilization</td><td>%</td><td>90</td>" in usage
    framework = section(page, "Framework metrics")
    assert "<td>Step:TRAIN</td><td>100</td><td>24.8</td>" in framework
    assert "<td>forward</td><td>100</td><td>12.4</td><td>50.0%</td>" in framework
    assert "TRAIN step 40" in section(page, "Step durations")


def test_report_says_what_does_not_apply_without_a_gpu(tmp_path: Path) -> None:
    write_machine(tmp_path, cpus={"cpu0": [50.0] * 20})
    recording = read_recording(tmp_path)
    page = render_profiler_report(recording, judge(recording), title="run")
    for title in ("GPU utilisation", "Batch size", "CPU bottlenecks", "I/O bottlenecks", "Memory"):
        assert "not applicable: no GPU" in section(page, title), title
    assert "No events of the training loop were recorded." in section(page, "Framework metrics")


def test_report_of_nothing_says_so() -> None:
    recording = Recording(empty_system(), empty_timeline(), "nowhere", ("A file was empty.",))
    page = render_profiler_report(recording, judge(recording), title="run")
    assert sections(page) == SECTIONS
    assert "Nothing was recorded." in section(page, "Training job summary")
    assert "<li>A file was empty.</li>" in page
    assert "Plotly.newPlot" not in page.partition("</head>")[2]


def test_headline_counts_what_was_judged(recording: Recording) -> None:
    page = render_profiler_report(recording, judge(recording), title="run")
    # MaxInitializationTime; 100 steps are too few for StepOutlier, and two rules sum up and judge nothing.
    assert '<p class="headline">1 rule judged, no issue found.</p>' in page
    broken = Verdict("BatchSize", "Error", "could not be judged")
    page = render_profiler_report(recording, [OVERFIT, broken], title="run")
    assert '"headline">1 rule judged, 1 found an issue: Overfit. 1 ended in an error: BatchSize.</p>' in page


def test_report_shows_tensor_rules_and_escapes_what_it_quotes(recording: Recording) -> None:
    page = render_profiler_report(recording, [*judge(recording), OVERFIT], title="<b>run</b>")
    tensor_rules = section(page, "Tensor rules")
    assert "Train fewer epochs." in tensor_rules
    assert "<td>-</td><td>valid/loss</td><td>It is &lt;high&gt;.</td><td>ratio 3.5</td>" in tensor_rules
    assert "<b>run</b>" not in page
    assert "12 rules judged" not in page
    assert re.search(r"found an issue: .*Overfit\.", page)


def test_rules_summary_lists_every_rule_issues_first(recording: Recording) -> None:
    verdicts = [*judge(recording), OVERFIT]
    summary = section(render_profiler_report(recording, verdicts, title="run"), "Rules summary")
    listed = re.findall(r"<td><b>(\w+)</b></td><td><span class=\"badge (\w+)\">", summary)
    assert {rule for rule, _ in listed} == {*RULES, "Overfit"}
    order = ["IssuesFound", "Error", "NoIssuesFound", "NotApplicable"]
    assert [order.index(status) for _, status in listed] == sorted(order.index(status) for _, status in listed)


def test_report_asks_nothing_of_the_network(recording: Recording) -> None:
    page = render_profiler_report(recording, judge(recording), title="run")
    references = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"?([^\">\s]+)", page)
    assert references == ["data:,"]


def test_files_are_in_sagemakers_layout(recording: Recording, tmp_path: Path) -> None:
    verdicts = [*judge(recording), OVERFIT]
    folder = tmp_path / "profiler"
    path = save_profiler_report(folder, recording, verdicts, title="run")
    assert path == folder / REPORT_FILE
    written = {each.stem: json.loads(each.read_text()) for each in (folder / REPORTS_DIR).iterdir()}
    assert set(written) == {*RULES, "Overfit"}
    for report in written.values():
        assert set(report) == {"RuleTriggered", "Violations", "Details", "Datapoints", "RuleParameters"}
    assert written["Overfit"]["RuleTriggered"] == 3
    assert written["Overfit"]["Datapoints"] == 5
    assert written["Overfit"]["RuleParameters"] == "patience:1"
    assert written["Overfit"]["Details"]["evidence"][0]["values"] == {"ratio": 3.5}
    assert written["StepOutlier"]["Details"]["modes"]["TRAIN"]["num_steps"] == 100
    assert not list(folder.rglob("*.partial"))


def test_json_has_smdebugs_own_keys() -> None:
    from dogbreed_ml.debugging.debugger import import_smdebug

    rules = import_smdebug("tensorrules")

    class Trial:
        """What a rule asks of a trial before its first step."""

        logger = None

    rule = rules.AllZero(Trial())
    assert set(rule.report) == set(rule_report(OVERFIT))


def test_rule_reports_come_back_as_they_were_saved(tmp_path: Path) -> None:
    save_rule_reports([OVERFIT], tmp_path)
    assert load_rule_reports(tmp_path, ("AllZero", "Overfit")) == (replace(OVERFIT, parameters={"patience": "1"}),)


@pytest.mark.parametrize("text", ["", "[]", '{"Details": {}}', '{"Details": null}'])
def test_a_file_that_is_no_rule_report_is_refused(tmp_path: Path, text: str) -> None:
    (path,) = save_rule_reports([OVERFIT], tmp_path)
    path.write_text(text)
    with pytest.raises(ProfileError, match=r"Overfit\.json is not a rule's report as dogbreed writes it"):
        load_rule_reports(tmp_path, ["Overfit"])


def test_json_has_null_where_a_number_is_not_finite() -> None:
    verdict = Verdict("Overfit", "NoIssuesFound", "", details={"a": float("nan"), "b": [np.float64(1.5), float("inf")]})
    details = json.loads(json.dumps(rule_report(verdict), allow_nan=False))["Details"]
    assert (details["a"], details["b"]) == (None, [1.5, None])


def test_heat_map_has_a_row_a_core_and_a_gpu(recording: Recording) -> None:
    figure = plots.heat_map_figure(recording.system)
    assert figure is not None
    (heat_map,) = figure.data
    assert list(heat_map.y) == ["cpu0", "cpu1", "gpu0"]
    assert np.asarray(heat_map.z).shape == (3, 120)
    assert np.nanmean(np.asarray(heat_map.z), axis=1) == pytest.approx([90, 10, 50])


def test_memory_of_the_process_is_drawn_on_an_axis_of_its_own(tmp_path: Path) -> None:
    samples = [
        (START_S + tick, "memory", name, name, value)
        for tick in range(20)
        for name, value in (("MemoryUsedPercent", 50.0), ("ProcessMemoryMiB", 800.0 + tick))
    ]
    write_samples(tmp_path, samples)
    figure = plots.memory_figure(read_recording(tmp_path).system)
    assert figure is not None
    machine, process = figure.data
    assert (machine.name, machine.yaxis, list(machine.y)) == ("memory", None, [50.0] * 20)
    assert (process.name, process.yaxis) == ("this training's process (MiB)", "y2")
    assert list(process.y) == [800.0 + tick for tick in range(20)]
    assert figure.layout.showlegend


def test_cores_of_several_nodes_are_told_apart(tmp_path: Path) -> None:
    for node in ("algo-1", "algo-2"):
        write_machine(tmp_path, cpus={f"cpu{n}": [20.0] * 10 for n in (0, 2, 10)}, node=node)
    figure = plots.heat_map_figure(read_recording(tmp_path).system)
    assert figure is not None
    assert list(figure.data[0].y) == [f"{node} cpu{n}" for node in ("algo-1", "algo-2") for n in (0, 2, 10)]


def test_heat_map_of_many_cores_keeps_the_gpus_and_the_busiest(tmp_path: Path) -> None:
    cpus = {f"cpu{core}": [float(core)] * 20 for core in range(96)}
    write_machine(tmp_path, cpus=cpus, gpus={"gpu0": [50.0] * 20})
    figure = plots.heat_map_figure(read_recording(tmp_path).system)
    assert figure is not None
    assert list(figure.data[0].y) == [*(f"cpu{core}" for core in range(33, 96)), "gpu0"]


def test_heat_map_has_no_hole_where_samples_come_early_or_late(tmp_path: Path) -> None:
    late = [0.0, 0.45, -0.45, 0.45, -0.45, 0.0]
    samples = [(START_S + tick + late[tick % 6], "cpu", "cpu0", "CPUUtilization", 50.0) for tick in range(60)]
    write_samples(tmp_path, samples)
    figure = plots.heat_map_figure(read_recording(tmp_path).system)
    assert figure is not None
    assert np.isfinite(np.asarray(figure.data[0].z)).all()


def test_many_samples_make_a_small_plot(tmp_path: Path) -> None:
    samples = [
        (START_S + tick / 10, "cpu", f"cpu{core}", "CPUUtilization", float(tick % 100))
        for tick in range(5000)
        for core in range(4)
    ]
    write_samples(tmp_path, samples)
    system = read_recording(tmp_path).system
    heat_map, lines = plots.heat_map_figure(system), plots.utilisation_figure(system)
    assert heat_map is not None
    assert lines is not None
    assert np.asarray(heat_map.data[0].z).shape == (4, plots.MAX_BINS)
    assert len(lines.data[0].x) == plots.MAX_BINS
    assert np.mean(lines.data[0].y) == pytest.approx(49.5, abs=0.5)


def test_histogram_counts_every_step(recording: Recording) -> None:
    figure = plots.step_histogram_figure(recording.timeline, {"TRAIN": 1000.0})
    assert figure is not None
    assert sum(figure.data[0].y) == 100
    assert figure.layout.shapes[0].x0 == 1000.0


def test_step_parts_add_up_to_the_steps(recording: Recording) -> None:
    figure = plots.step_parts_figure(recording.timeline)
    assert figure is not None
    parts = {bar.name: np.asarray(bar.y) for bar in figure.data}
    assert set(parts) == {"forward", "other"}
    assert parts["forward"][0] == pytest.approx(100)
    assert parts["forward"][40] == pytest.approx(2500)
    assert sum(each.sum() for each in parts.values()) == pytest.approx(99 * 200 + 5000)


def test_step_parts_are_the_mean_of_several_workers(tmp_path: Path) -> None:
    train = steps([100_000] * 20)
    forwards = [{**each, "phase": "forward", "name": "forward", "dur": 60_000} for each in train]
    for worker in ("11-algo-1", "12-algo-1"):
        write_trace(tmp_path, [*train, *forwards], worker=worker)
    figure = plots.step_parts_figure(read_recording(tmp_path).timeline)
    assert figure is not None
    for bar, height in zip(figure.data, (60, 40), strict=True):
        assert list(bar.x) == list(range(20))
        assert list(bar.y) == pytest.approx([height] * 20), bar.name


def test_step_series_marks_the_outliers(recording: Recording) -> None:
    details = {verdict.rule: verdict.details for verdict in judge(recording)}
    figure = plots.all_figures(recording, details)["step-series"]
    assert figure is not None
    line, outliers = figure.data
    assert max(line.y) == pytest.approx(5000)
    assert (list(outliers.x), list(outliers.y)) == ([40], [5000.0])
