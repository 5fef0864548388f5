"""What the recorder makes of the loop's spans."""

import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from dogbreed_ml.profiling.formats import Event, write_timeline
from dogbreed_ml.profiling.readers import read_timeline
from dogbreed_ml.profiling.recordings import LoaderProcesses
from dogbreed_ml.profiling.timeline import TimelineRecorder

STEP_PARTS = ("data_wait", "transfer", "forward", "backward", "optimizer")
START_US = 1_591_160_700_000_000


def record_epoch(recorder: TimelineRecorder, *, num_steps: int, num_eval_steps: int = 0, work: int = 0) -> None:
    """The spans of one epoch as `fit` marks them; each part of a step adds up `work` numbers."""
    for _ in range(num_steps):
        for name in STEP_PARTS:
            with recorder.span(name):
                sum(range(work))
    with recorder.span("data_wait"):
        pass
    if num_eval_steps:
        with recorder.span("evaluation"):
            for _ in range(num_eval_steps):
                for name in ("data_wait", "transfer", "forward"):
                    with recorder.span(f"evaluation/{name}"):
                        pass
            with recorder.span("evaluation/data_wait"):
                pass
    with recorder.span("logging"):
        pass


def test_steps_follow_from_the_spans_and_count_on_over_epochs() -> None:
    recorder = TimelineRecorder()
    for _ in range(3):
        record_epoch(recorder, num_steps=4, num_eval_steps=2)
    events = list(recorder.events())
    train = [event for event in events if event.name == "Step:ModeKeys.TRAIN"]
    evaluation = [event for event in events if event.name == "Step:ModeKeys.EVAL"]
    assert [event.step for event in train] == list(range(12))
    assert [event.step for event in evaluation] == list(range(6))
    counts = Counter(event.name for event in events)
    assert counts["data_wait"] == 15
    assert counts["backward"] == 12
    assert counts["evaluation"] == counts["logging"] == 3


def test_a_step_holds_its_parts_and_ends_where_the_next_begins() -> None:
    recorder = TimelineRecorder()
    record_epoch(recorder, num_steps=3)
    events = list(recorder.events())
    assert [event.start_us for event in events] == sorted(event.start_us for event in events)
    steps = [event for event in events if event.name == "Step:ModeKeys.TRAIN"]
    for before, after in pairwise(steps):
        assert abs(before.start_us + before.duration_us - after.start_us) <= 1
    for part in (event for event in events if event.name in STEP_PARTS[1:]):
        step = steps[part.step]
        # Each end is rounded down to whole microseconds.
        assert step.start_us <= part.start_us
        assert part.start_us + part.duration_us <= step.start_us + step.duration_us + 1


def test_a_training_that_breaks_off_in_a_step_keeps_that_step() -> None:
    recorder = TimelineRecorder()
    with recorder.span("data_wait"):
        pass
    with pytest.raises(ZeroDivisionError), recorder.span("transfer"):
        raise ZeroDivisionError
    assert [event.name for event in recorder.events()] == ["Step:ModeKeys.TRAIN", "data_wait", "transfer"]


def test_spans_of_other_threads_are_no_steps(tmp_path: Path) -> None:
    recorder = TimelineRecorder()
    thread = threading.Thread(target=record_epoch, args=(recorder,), kwargs={"num_steps": 2})
    thread.start()
    thread.join()
    record_epoch(recorder, num_steps=1)
    recorder.write(tmp_path)
    timeline = read_timeline(tmp_path)
    assert len(timeline.steps("TRAIN")) == 1
    assert timeline.phases().groupby("thread")["name"].count().to_dict() == {0: 7, 1: 12}


def test_spans_beyond_the_limit_are_counted_and_left_out() -> None:
    recorder = TimelineRecorder(max_spans=7)
    record_epoch(recorder, num_steps=2)
    assert recorder.num_dropped == 12 - 7
    assert sum(event.name in (*STEP_PARTS, "logging") for event in recorder.events()) == 7


def test_on_step_is_told_of_training_steps_alone() -> None:
    told: list[int] = []

    def tell() -> bool:
        told.append(len(told))
        return False

    recorder = TimelineRecorder(on_step=tell)
    record_epoch(recorder, num_steps=3, num_eval_steps=5)
    assert len(told) == 3


def test_steps_in_which_the_trace_window_moved_are_left_out_and_their_parts_count_for_no_other(tmp_path: Path) -> None:
    moves = iter([False, True, False, False, True, False])
    recorder = TimelineRecorder(on_step=lambda: next(moves))
    # Some 20 us, so that no part begins in the microsecond in which its step ends.
    record_epoch(recorder, num_steps=6, num_eval_steps=2, work=2000)
    recorder.write(tmp_path)
    timeline = read_timeline(tmp_path)
    assert {mode: timeline.steps(mode)["step"].tolist() for mode in timeline.modes} == {
        "TRAIN": [0, 2, 3, 5],
        "EVAL": [0, 1],
    }
    parts = timeline.parts("TRAIN")
    # Without the wait that found the data at its end.
    assert parts["step"].tolist() == [step for step in (0, 2, 3, 5) for _ in STEP_PARTS]
    assert list(map(str, parts["name"])) == 4 * list(STEP_PARTS)
    left_out = timeline.phases().drop(parts.index)
    assert left_out.loc[left_out["name"] == "forward", "step"].tolist() == [1, 4]


def test_nothing_recorded_writes_no_file(tmp_path: Path) -> None:
    assert TimelineRecorder().write(tmp_path) == []


def test_what_is_written_is_read_back_to_the_last_event(tmp_path: Path) -> None:
    recorder = TimelineRecorder()
    recorder.loader = LoaderProcesses(3, pin_memory=True, pids={"train": (7, 8, 9)})
    record_epoch(recorder, num_steps=50, num_eval_steps=3)
    recorder.write(tmp_path)
    timeline = read_timeline(tmp_path)
    columns = ["name", "phase", "thread", "start_us", "duration_us", "step"]
    read = sorted(timeline.frame[columns].astype({"name": str, "phase": str}).itertuples(index=False, name=None))
    made = [(e.name, e.phase, e.thread, e.start_us, e.duration_us, e.step) for e in recorder.events()]
    assert read == sorted(made)
    assert timeline.loader == recorder.loader
    assert timeline.notes == ()


def test_files_end_at_their_limit_and_at_the_hour(tmp_path: Path) -> None:
    events = [Event("forward", "forward", START_US + i * 1000, 500, i) for i in range(100)]
    events.append(Event("forward", "forward", START_US + 3_600_000_000, 500, 100))
    paths = write_timeline(tmp_path, events, pid=7, max_file_chars=2000)
    assert len(paths) > 3
    assert {path.parent.name for path in paths} == {"2020060305", "2020060306"}
    assert paths == sorted(paths)
    assert [int(step) for step in read_timeline(tmp_path).frame["step"]] == list(range(101))


def test_a_second_timeline_of_the_same_end_gets_a_file_of_its_own(tmp_path: Path) -> None:
    event = Event("forward", "forward", START_US, 500, 0)
    assert len({*write_timeline(tmp_path, [event], pid=7), *write_timeline(tmp_path, [event], pid=7)}) == 2
