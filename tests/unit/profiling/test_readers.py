"""Profiler files read: SageMaker's, and what crashes and clocks make of them."""

import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from profilerfiles import START_S, hour, steps, write_machine, write_samples, write_trace

from dogbreed_ml.errors import ProfileError
from dogbreed_ml.profiling.readers import read_recording, read_system, read_timeline


def only_file(root: Path, kind: str) -> Path:
    (path,) = (root / kind).rglob("*.json")
    return path


def test_samples_of_all_files_and_nodes_come_in_order_of_time(tmp_path: Path) -> None:
    for node in ("algo-2", "algo-1"):
        write_machine(tmp_path, cpus={"cpu0": [1.0] * 200, "cpu1": [2.0] * 200}, node=node)
    samples = read_system(tmp_path)
    assert len(samples.frame) == 800
    assert len(list((tmp_path / "system").rglob("*.json"))) == 4
    assert samples.nodes == ("algo-1", "algo-2")
    assert samples.frame["timestamp_s"].is_monotonic_increasing
    wide = samples.wide("CPUUtilization", node="algo-2")
    assert wide.shape == (200, 2)
    assert wide["cpu1"].eq(2.0).all()
    assert samples.notes == ()


def test_events_have_absolute_times_phases_steps_and_workers(tmp_path: Path) -> None:
    forward = {"phase": "Forward", "name": "ResNet", "ts": 10, "dur": 50, "args": {"step_num": "1"}}
    write_trace(tmp_path, [*steps([100, 200]), forward])
    timeline = read_timeline(tmp_path)
    assert timeline.modes == ("TRAIN",)
    assert timeline.steps("TRAIN")["duration_us"].tolist() == [100, 200]
    assert timeline.steps("TRAIN")["start_us"].tolist() == [int(START_S * 1e6), int(START_S * 1e6) + 100]
    (row,) = timeline.phases().to_dict("records")
    assert (row["name"], row["phase"], row["step"], row["worker"]) == ("ResNet", "Forward", 1, "algo-1-1234")


def test_begin_and_end_events_make_one_event(tmp_path: Path) -> None:
    path = write_trace(tmp_path, steps([10]))
    events = json.loads(path.read_text())
    begin = {"ph": "B", "name": "broadcast", "pid": 1, "ts": 5}
    path.write_text(json.dumps([*events, begin, {"ph": "E", "name": "", "pid": 1, "ts": 9}]))
    assert read_timeline(tmp_path).phases()["duration_us"].tolist() == [4]


def test_a_trace_with_its_events_in_an_object_is_an_error(tmp_path: Path) -> None:
    path = write_trace(tmp_path, steps([10]))
    path.write_text(json.dumps({"traceEvents": json.loads(path.read_text())}))
    with pytest.raises(ProfileError, match=r"must hold Chrome trace events, but item 1 is none: KeyError\('ph'\)"):
        read_timeline(tmp_path)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_trace_may_stand_on_one_line_or_on_many(tmp_path: Path, indent: int | None) -> None:
    path = write_trace(tmp_path, steps(list(range(1, 3000))))
    path.write_text(json.dumps(json.loads(path.read_text()), indent=indent))
    timeline = read_timeline(tmp_path)
    assert timeline.steps("TRAIN")["duration_us"].tolist() == list(range(1, 3000))
    assert timeline.notes == ()


def test_damage_in_the_middle_of_one_line_is_an_error_and_its_end_may_be_cut_off(tmp_path: Path) -> None:
    path = write_trace(tmp_path, steps([100] * 10))
    text = json.dumps(json.loads(path.read_text()))
    before, step, after = text.partition('"step_num": "4"')
    path.write_text(f'{before}"step_nu{after}')
    with pytest.raises(ProfileError, match=r"is damaged after item 8, at '\{\"name\": \"Step.*; it must be a list"):
        read_timeline(tmp_path)
    path.write_text(before + step)
    timeline = read_timeline(tmp_path)
    assert (len(timeline.frame), len(timeline.notes)) == (4, 1)


@pytest.mark.parametrize("num_chars", [1, 20, 60])
def test_a_cut_off_last_line_costs_that_line_and_is_told(tmp_path: Path, num_chars: int) -> None:
    write_machine(tmp_path, cpus={"cpu0": [1.0] * 10})
    write_trace(tmp_path, steps([100] * 10))
    for kind in ("system", "framework"):
        path = only_file(tmp_path, kind)
        text = path.read_text().rstrip("\n]")
        path.write_text(text[:-num_chars])
    recording = read_recording(tmp_path)
    assert len(recording.system.frame) == 9
    assert len(recording.timeline.steps("TRAIN")) == 9
    assert [note.partition(": ")[2] for note in recording.all_notes] == ["the last line is cut off and left out."] * 2


def test_an_empty_file_is_told_and_costs_nothing_else(tmp_path: Path) -> None:
    write_machine(tmp_path, cpus={"cpu0": [1.0] * 10})
    empty = tmp_path / "system" / "incremental" / hour(START_S) / "1591160760.algo-1.json"
    empty.touch()
    samples = read_system(tmp_path)
    assert len(samples.frame) == 10
    assert samples.notes == ("1591160760.algo-1.json is empty.",)


@pytest.mark.parametrize("kind", ["system", "framework"])
def test_damage_in_the_middle_is_an_error_with_its_place(tmp_path: Path, kind: str) -> None:
    write_machine(tmp_path, cpus={"cpu0": [1.0] * 10})
    write_trace(tmp_path, steps([100] * 10))
    path = only_file(tmp_path, kind)
    lines = path.read_text().splitlines()
    lines[7] = '{"oops": tru'
    path.write_text("\n".join(lines))
    with pytest.raises(ProfileError, match=r"json is damaged after item [67], at '\{\"oops\": tru'; remove that line"):
        read_recording(tmp_path)


def test_objects_that_are_no_samples_are_an_error(tmp_path: Path) -> None:
    write_samples(tmp_path, [(START_S, "cpu", "cpu0", "CPUUtilization", 1.0)])
    only_file(tmp_path, "system").write_text('{"Type": "cpu"}\n')
    with pytest.raises(ProfileError, match="must hold samples, but item 1 lacks one"):
        read_system(tmp_path)
    only_file(tmp_path, "system").write_text('17\n{"Type": "cpu"}\n')
    with pytest.raises(ProfileError, match="must hold JSON objects, but item 1 is '17'"):
        read_system(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("Timestamp", START_S * 1000, "up to 4000000000, got 1591160700000"),
        ("Timestamp", -1.0, "got -1"),
        ("Timestamp", math.nan, "got nan"),
        ("Value", math.inf, "finite or NaN, got inf"),
    ],
)
def test_a_sample_of_no_time_or_of_no_number_is_an_error(
    tmp_path: Path, field: str, value: float, complaint: str
) -> None:
    write_machine(tmp_path, cpus={"cpu0": [1.0] * 3})
    path = only_file(tmp_path, "system")
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {field: value})
    path.write_text("\n".join(lines))
    with pytest.raises(ProfileError, match=f"must hold samples, but item 2 lacks one: .*{complaint}"):
        read_system(tmp_path)


def test_a_clock_set_back_is_told_and_samples_are_put_in_order(tmp_path: Path) -> None:
    times = [START_S + 10, START_S + 11, START_S + 2, START_S + 3]
    lines = [json.dumps({"Type": "cpu", "Name": "cpu0", "Dimension": "CPUUtilization", "Value": i, "NodeId": "algo-1",
                         "Timestamp": time}) for i, time in enumerate(times)]  # fmt: skip
    path = tmp_path / "system" / "incremental" / hour(START_S) / f"{int(START_S)}.algo-1.json"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines))
    samples = read_system(tmp_path)
    assert samples.frame["value"].tolist() == [2, 3, 0, 1]
    assert samples.notes == ("1591160700.algo-1.json: the clock went back by 9.0 s; samples are put in order of time.",)


def test_a_clock_set_forward_is_told(tmp_path: Path) -> None:
    write_machine(tmp_path, cpus={"cpu0": [1.0] * 100})
    write_machine(tmp_path, cpus={"cpu0": [1.0] * 100}, start_s=START_S + 3600)
    (note,) = read_system(tmp_path).notes
    assert note.startswith("Nothing was sampled for 3550 s from 50 s after the start on: the clock was set forward, or")


@pytest.mark.parametrize(("field", "value"), [("dur", "Infinity"), ("args", "[1]"), ("ts", "null"), ("ts", "1e18")])
def test_events_of_no_use_are_an_error(tmp_path: Path, field: str, value: str) -> None:
    path = write_trace(tmp_path, steps([100] * 3))
    lines = path.read_text().splitlines()
    event = json.loads(lines[-2])
    lines[-2] = json.dumps(event | {field: "VALUE"}).replace('"VALUE"', value)
    path.write_text("\n".join(lines))
    with pytest.raises(ProfileError, match=r"must hold Chrome trace events, but item \d+ is none"):
        read_timeline(tmp_path)


def test_events_that_end_before_they_start_are_left_out_and_told(tmp_path: Path) -> None:
    write_trace(tmp_path, [*steps([100] * 3), {"phase": "x", "name": "x", "ts": 50, "dur": -20}])
    timeline = read_timeline(tmp_path)
    assert len(timeline.frame) == 3
    assert timeline.notes == ("1 events end before they start, as a clock set back makes them; left out.",)


def test_nan_is_kept_apart_from_what_rules_see(tmp_path: Path) -> None:
    write_machine(tmp_path, cpus={"cpu0": [1.0, float("nan"), 3.0]})
    samples = read_system(tmp_path)
    assert len(samples.frame) == 3
    assert samples.select("CPUUtilization")["value"].tolist() == [1.0, 3.0]
    assert samples.notes == ("1 samples are NaN; the rules leave them out.",)


def test_a_recording_may_lie_below_profiler_output_and_lack_one_half(tmp_path: Path) -> None:
    write_trace(tmp_path / "profiler-output", steps([100]))
    recording = read_recording(tmp_path)
    assert recording.system.frame.empty
    assert np.isnan(recording.system.start_s)
    assert recording.start_s == START_S
    assert recording.end_s == pytest.approx(START_S + 1e-4)


def test_a_folder_without_profiler_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="must hold profiler files, in system/ or framework/"):
        read_recording(tmp_path)


@pytest.mark.parametrize("num_samples", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_many_samples_of_one_file_take_bounded_memory(tmp_path: Path, num_samples: int) -> None:
    line = '{{"Type":"cpu","Name":"cpu{}","Dimension":"CPUUtilization","Value":{},"NodeId":"algo-1","Timestamp":{}}}\n'
    path = tmp_path / "system" / "incremental" / hour(START_S) / f"{int(START_S)}.algo-1.json"
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        file.writelines(line.format(i % 64, i % 100, START_S + i // 64) for i in range(num_samples))
    tracemalloc.start()
    samples = read_system(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(samples.frame) == num_samples
    assert samples.wide("CPUUtilization", node="algo-1").shape == (-(-num_samples // 64), 64)
    assert peak < 24e6 + 120 * num_samples
