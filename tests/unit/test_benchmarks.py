"""The arithmetic of the benchmarks: what is multiplied, what counts as met. Nothing is measured here."""

import math
from pathlib import Path

import pytest

from benchmarks.__main__ import DEFAULT_NAMES, parse
from benchmarks.agreement import split_per_breed
from benchmarks.photographs import Photographs
from benchmarks.results import Figure, Goal, Result, each, ratios, render, render_number
from benchmarks.search import project_seconds
from benchmarks.trials import cost_around
from dogbreed_ml.data.splits import Sample


def test_goal_is_met_at_its_bound_and_never_by_nan() -> None:
    assert Goal("at least", 85).is_met(85)
    assert not Goal("at least", 85).is_met(84.9)
    assert Goal("at most", 1.3).is_met(1.3)
    assert not Goal("at most", 1.3).is_met(math.nan)
    assert not Goal("at least", 1.3).is_met(math.nan)


def test_figure_is_the_median_or_the_mean_of_its_repetitions() -> None:
    assert each("time", [1.0, 9.0, 2.0], "s").value == 2.0
    assert Figure("accuracy", (1.0, 9.0, 2.0), "%", statistic="mean").value == 4.0
    assert math.isnan(each("none", [], "s").value)


def test_ratios_pair_the_repetitions() -> None:
    assert ratios([10.0, 30.0], [1.0, 2.0]) == [10.0, 15.0]
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


def test_render_puts_the_goal_and_the_verdict_beside_the_figure() -> None:
    missed = each("share", [70.0, 80.0, 75.0], "%", goal=Goal("at least", 85))
    text = render(Result("features", "the pass", (missed, each("total", [12.0], "s")), ("a note",)))
    lines = text.splitlines()
    share = next(line for line in lines if "share" in line)
    total = next(line for line in lines if "total" in line)
    assert [cell.strip() for cell in share.split("|")[1:-1]] == [
        "share", "75 %", "median of 3, 70 to 80", "at least 85", "missed",
    ]  # fmt: skip
    assert [cell.strip() for cell in total.split("|")[1:-1]] == ["total", "12 s", "", "", ""]
    assert len({len(line) for line in lines if line.startswith("|")}) == 1
    assert lines[-1] == "- a note"


@pytest.mark.parametrize(("value", "text"), [(12345.6, "12,346"), (0.99987, "0.9999"), (61.23456, "61.23"), (0, "0")])
def test_render_number_has_no_exponent(value: float, text: str) -> None:
    assert render_number(value) == text


def test_project_seconds_counts_start_up_once_and_epochs_for_each_trial() -> None:
    # 10 s of start-up, then one trial: 2 s beside its epochs, a first epoch of 5 s and one of 3 s.
    report = {"trial_s": [10.0], "epoch_s": [5.0, 3.0]}
    assert project_seconds(20.0, report, num_trials=20, num_epochs=5) == 10 + 20 * 2 + 100 * 3


def test_cost_around_is_the_median_step_between_starts() -> None:
    starts_ms = [0]
    for number in range(60):
        starts_ms.append(starts_ms[-1] + (30 if number < 30 else 40) + (500 if number == 10 else 0))
    assert cost_around(starts_ms, 10) == 30
    assert cost_around(starts_ms, 50) == 40
    assert cost_around(starts_ms, 2) == 30


def test_split_per_breed_holds_out_the_same_share_of_each() -> None:
    samples = tuple(Sample(Path(f"{n}.jpg"), n % 3, f"{n:064x}") for n in range(150))
    train, held_out = split_per_breed(Photographs(Path(), ("a", "b", "c"), samples))
    assert [int((held_out.labels == label).sum()) for label in range(3)] == [15, 15, 15]
    assert len(train) == 105
    assert not {s.digest for s in train.samples} & {s.digest for s in held_out.samples}


def test_parse_finds_the_data_folder_and_its_weights(tmp_path: Path) -> None:
    (tmp_path / "dogs").mkdir()
    (tmp_path / "weights").mkdir()
    weights = tmp_path / "weights" / "resnet50-v1-imagenet-fp16.pth"
    weights.touch()
    found = parse([], {"DOGBREED_DATA_DIR": str(tmp_path)})
    assert (found.data, found.weights, found.resnet_version) == (tmp_path / "dogs", weights, "1")
    assert tuple(found.only) == DEFAULT_NAMES
    bare = parse([], {})
    assert (bare.data, bare.weights, bare.resnet_version) == (None, None, "1.5")


@pytest.mark.parametrize("argv", [["--data", "nowhere"], ["--only", "everything"], ["--quic"], ["--repetitions", "0"]])
def test_parse_refuses_what_it_does_not_know(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(argv, {})
    assert stopped.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_accuracy_runs_only_where_it_is_asked_for() -> None:
    assert "accuracy" not in parse([], {}).only
    assert parse(["--only", "accuracy"], {}).only == ["accuracy"]
