import math
from itertools import pairwise

import pytest

from sagemaker_jobs.local.stopping import CONVERGED_JOBS, Completion, Criteria, Improvement, is_below_median, is_value

COMPLETED = [(0.2, 0.4, 0.6), (0.4, 0.6, 0.8), (0.6, 0.8, 1.0)]
"""Averages up to the second epoch: 0.3, 0.5 and 0.7."""


@pytest.mark.parametrize(("last", "is_worse"), [(0.49, True), (0.5, False), (0.9, False), (math.nan, True)])
def test_median_rule_compares_the_last_value_with_the_median_of_averages(last: float, is_worse: bool) -> None:
    assert is_below_median((0.0, last), COMPLETED, maximize=True) is is_worse


@pytest.mark.parametrize(("last", "is_worse"), [(0.49, False), (0.5, False), (0.51, True), (math.nan, True)])
def test_median_rule_turns_round_where_the_objective_is_minimized(last: float, is_worse: bool) -> None:
    assert is_below_median((9.0, last), COMPLETED, maximize=False) is is_worse


def test_median_rule_waits_for_completed_jobs_that_came_as_far() -> None:
    assert not is_below_median((0.0,), COMPLETED[:2], maximize=True)
    assert not is_below_median((0.0,) * 4, COMPLETED, maximize=True)
    assert not is_below_median((), COMPLETED, maximize=True)


def test_median_rule_leaves_the_first_epochs_alone() -> None:
    long = [(0.5,) * 20] * 3

    assert not is_below_median((0.0,) * 4, long, maximize=True)
    assert is_below_median((0.0,) * 5, long, maximize=True)


def improvement(*values: float, maximize: bool = True) -> Improvement:
    result = Improvement(maximize)
    for value in values:
        result.add(value)
    return result


def test_improvement_of_one_percent_or_less_is_none() -> None:
    assert improvement(1.0, 1.009).num_not_improving == 1
    assert improvement(1.0, 1.009).best == 1.009
    assert improvement(1.0, 1.011).num_not_improving == 0
    assert improvement(0.5, 0.4, 0.3).num_not_improving == 2


def test_improvement_adds_up_small_steps() -> None:
    values = [0.5 * 1.008**step for step in range(3)]

    assert all(after / before < 1.01 for before, after in pairwise(values))
    assert improvement(*values).num_not_improving == 0


def test_improvement_of_a_minimized_objective_goes_down() -> None:
    falling = improvement(-1.0, -1.02, -0.5, maximize=False)

    assert (falling.best, falling.num_not_improving) == (-1.02, 1)
    assert falling.reaches(-1.01)
    assert not falling.reaches(-1.03)


@pytest.mark.parametrize(
    ("criteria", "values", "expected"),
    [
        (Criteria(), [0.9] * 50, None),
        (Criteria(target=0.9), [0.5, 0.91, 0.1], "target"),
        (Criteria(target=0.9), [0.5, 0.89], None),
        (Criteria(max_not_improving=3), [0.5, 0.4, 0.5, 0.5], "not_improving"),
        (Criteria(max_not_improving=3), [0.5, 0.4, 0.5, 0.6], None),
        (Criteria(stops_on_convergence=True), [0.5] * (CONVERGED_JOBS + 1), "convergence"),
        (Criteria(stops_on_convergence=True), [0.5] * CONVERGED_JOBS, None),
        (Criteria(target=0.0), [], None),
    ],
)
def test_criteria_complete_a_tuning_job(criteria: Criteria, values: list[float], expected: Completion | None) -> None:
    assert criteria.completion(improvement(*values)) == expected


def test_is_value_takes_finite_numbers() -> None:
    assert [is_value(value) for value in (0.0, None, math.nan, math.inf)] == [True, False, False, False]
