"""The search report and its advice, on made-up trials."""

import re
from collections.abc import Sequence
from html.parser import HTMLParser

import pytest

from dogbreed_ml.advice import build_advice
from dogbreed_ml.config import (
    CategoricalDimension,
    Dimension,
    ExperimentConfig,
    FloatDimension,
    IntDimension,
    SearchConfig,
    TrainConfig,
)
from dogbreed_ml.report import render_search_report
from dogbreed_ml.search import SearchResult, TrialRecord

LR = FloatDimension(low=1e-4, high=1e-1, log=True)
BATCH = CategoricalDimension(choices=[16, 32, 64])


def _config(**space: Dimension) -> ExperimentConfig:
    dotted = {f"train.{name}": dimension for name, dimension in space.items()}
    return ExperimentConfig(name="dogs", search=SearchConfig(space=dotted), train=TrainConfig())


def _trial(number: int, value: float | None, *, state: str = "COMPLETE", **values: object) -> TrialRecord:
    return TrialRecord(
        number=number,
        run_id=f"{number:032x}",
        state=state,  # type: ignore[arg-type]
        value=value,
        values={f"train.{name}": each for name, each in values.items()},
        best_epoch=4,
        num_epochs=5,
        seconds=0.1,
        cause="ValueError: <lr> too large" if state == "FAILED" else None,
    )


def _result(trials: Sequence[TrialRecord]) -> SearchResult:
    best = max((t for t in trials if t.state == "COMPLETE"), key=lambda t: t.value or 0.0)
    return SearchResult("dogs-abc-1", best, tuple(trials), "maximize", "valid/accuracy_top1")


def _advice(config: ExperimentConfig, trials: Sequence[TrialRecord], **importances: float) -> str:
    shares = {f"train.{name}": share for name, share in importances.items()}
    best = _result(trials).best
    return "\n".join(build_advice(config, best, trials, shares, test_value=None, test_interval=None))


SEVERAL = [_trial(i, 0.5 + 0.01 * i, lr=10 ** (-4 + i * 0.2), batch_size=(16, 32, 64)[i % 3]) for i in range(12)]
CASES = {
    "several": (_config(lr=LR, batch_size=BATCH), SEVERAL),
    "one_trial": (_config(lr=LR, batch_size=BATCH), SEVERAL[:1]),
    "one_dimension": (_config(lr=LR), [_trial(i, 0.5 + 0.01 * i, lr=1e-3 * (i + 1)) for i in range(6)]),
    "constant": (_config(lr=LR, batch_size=BATCH), [_trial(i, 0.5, lr=1e-3, batch_size=16) for i in range(6)]),
    "failed_only_dimension": (
        _config(lr=LR, batch_size=BATCH),
        [*SEVERAL[:5], _trial(5, None, state="FAILED", lr=0.1, batch_size=64), _trial(6, None, state="FAILED")],
    ),
    "pruned": (
        _config(lr=LR, batch_size=BATCH),
        [*SEVERAL[:2], *(_trial(i, 0.1, state="PRUNED", lr=0.09, batch_size=64) for i in range(2, 14))],
    ),
    "mixed_choices": (
        _config(
            patience=CategoricalDimension(choices=[None, 2]), optimizer=CategoricalDimension(choices=["sgd", "adamw"])
        ),
        [
            _trial(i, 0.5 + 0.01 * i, patience=(None, 2)[i % 2], optimizer=("sgd", "adamw")[i // 3 % 2])
            for i in range(8)
        ],
    ),
}


class _Outside(HTMLParser):
    """Finds whatever a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.found += [value for name in ("src", "srcset", "data") if (value := values.get(name))]
        if tag == "link":
            self.found.append(values.get("href") or "")
        if tag == "a":
            self.links.append(values.get("href") or "")


@pytest.mark.parametrize("case", CASES)
def test_report_is_one_file_that_fetches_nothing(case: str) -> None:
    config, trials = CASES[case]
    page = render_search_report(_result(trials), config=config, experiment_id="3")
    parser = _Outside()
    parser.feed(page)
    assert parser.found == []
    assert parser.links.count(f"#/experiments/3/runs/{trials[0].run_id}") >= 1
    assert page.count("plotly.js v") == 1
    assert "$" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def test_report_shows_test_metrics_trials_and_causes() -> None:
    config, trials = CASES["failed_only_dimension"]
    page = render_search_report(
        _result(trials),
        config=config,
        experiment_id="3",
        test={"accuracy_top1": 0.8, "loss": 0.5},
        interval=(0.75, 0.85),
        base_url="http://127.0.0.1:5000/",
    )
    assert "0.7500 to 0.8500" in page
    assert "ValueError: &lt;lr&gt; too large" in page
    assert f'href="http://127.0.0.1:5000/#/experiments/3/runs/{trials[6].run_id}"' in page
    assert "7 trials (5 complete, 2 failed)" in page


def test_advice_widens_a_range_whose_edge_won() -> None:
    config = _config(lr=LR, num_epochs=IntDimension(low=2, high=8), batch_size=BATCH)
    trials = [_trial(i, 0.5 + 0.01 * i, lr=0.02 * i + 0.001, num_epochs=2 + i, batch_size=64) for i in range(5)]
    trials.append(_trial(5, 0.9, lr=0.0999, num_epochs=8, batch_size=64))
    told = _advice(config, trials, lr=0.5, num_epochs=0.3, batch_size=0.2)
    assert "train.lr is best at 0.0999, at the high end of its range: widen it, for example to 1." in told
    assert "train.num_epochs is best at 8" in told
    assert "for example to 11" in told
    assert "train.batch_size is best at 64, at the high end of its range: widen it, for example to 128" in told
    assert "train.lr is best" not in _advice(config, trials, lr=0.01, num_epochs=0.9, batch_size=0.09)


def test_advice_does_not_leave_what_the_config_allows() -> None:
    config = _config(label_smoothing=FloatDimension(low=0.0, high=0.6))
    trials = [_trial(i, 0.5 + 0.01 * i, label_smoothing=0.1 * i) for i in range(7)]
    told = _advice(config, [*trials, _trial(7, 0.99, label_smoothing=0.0)])
    assert "low end of its range; that is as far as it goes" in told


def test_advice_names_what_decides_and_fixes_the_rest() -> None:
    told = _advice(*CASES["several"], lr=0.95, batch_size=0.05)
    assert "train.lr alone explains 95% of the differences; fix train.batch_size=64" in told


def test_advice_notices_a_plateau_pruning_and_too_few_trials() -> None:
    config = _config(lr=LR)
    plateau = [_trial(i, 0.9 if i == 2 else 0.5, lr=1e-2) for i in range(20)]
    assert "The best came with trial 3 of 20" in _advice(config, plateau)
    assert "12 of 14 trials were pruned; what was not lies in train.lr 0.0001 to 0.0001585" in _advice(*CASES["pruned"])
    assert "One trial is too few for 2 dimensions; search.num_trials=16" in _advice(*CASES["one_trial"])


def test_advice_sees_valid_fitted_by_the_search() -> None:
    config, trials = CASES["several"]
    best = _result(trials).best
    told = build_advice(config, best, trials, {}, test_value=0.4, test_interval=(0.35, 0.45))
    assert any("0.6100 on valid but 0.4000 on test" in each for each in told)
    fine = build_advice(config, best, trials, {}, test_value=0.6, test_interval=(0.55, 0.65))
    assert not any("on test" in each for each in fine)
