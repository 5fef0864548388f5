"""The gate on planted measurements: better, worse, equal, better but slow, better but a breed lost."""

import json
import math
from dataclasses import replace

import pytest
from measurements import BREEDS, LABELS, PER_BREED, plant
from sklearn.metrics import f1_score

from dogbreed_ml.measurement import Answer, Measurement
from dogbreed_ml.policies import PromotionConfig
from dogbreed_ml.promotion import Verdict, judge, score

GATE = PromotionConfig()


def _judge(challenger: Measurement, champion: Measurement | None, *, config: PromotionConfig = GATE) -> Verdict:
    return judge(challenger, champion, LABELS, config=config)


def _failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


def test_better_challenger_passes() -> None:
    verdict = _judge(plant(recalls=0.9), plant(recalls=0.8))
    assert verdict.passed
    assert verdict.reasons == ()
    assert verdict.comparison is not None
    assert (verdict.comparison.num_gained, verdict.comparison.num_lost) == (20, 0)
    change = verdict.comparison.accuracy_change
    assert change.value == pytest.approx(0.1)
    assert 0 < change.low < 0.1 < change.high


def test_equal_challenger_passes() -> None:
    verdict = _judge(plant(seed=0), plant(seed=1))
    assert verdict.passed
    assert verdict.comparison is not None
    assert verdict.comparison.num_lost == verdict.comparison.num_gained > 0
    assert verdict.comparison.p_value == 1.0


def test_worse_challenger_is_refused_for_its_accuracy() -> None:
    # Ten points less each: no single breed falls by more than the gate allows.
    verdict = _judge(plant(recalls=0.7), plant(recalls=0.8))
    assert not verdict.passed
    assert _failed(verdict) == ["accuracy"]
    assert "-10.00 points" in verdict.reasons[0]
    assert "20 lost" in verdict.reasons[0]


def test_slightly_worse_challenger_is_not_refused_by_chance() -> None:
    worse = plant(recalls=dict.fromkeys(BREEDS, 0.8) | {"Pug": 0.75})
    verdict = _judge(worse, plant(recalls=0.8))
    assert verdict.passed
    assert verdict.comparison is not None
    assert verdict.comparison.num_lost == 2
    assert verdict.comparison.p_value == 0.5


def test_better_but_slow_challenger_is_refused_for_its_latency() -> None:
    verdict = _judge(plant(recalls=0.9, factor=3.0), plant(recalls=0.8))
    assert _failed(verdict) == ["latency"]
    assert verdict.comparison is not None
    assert verdict.comparison.p95_ratio.low > GATE.max_p95_ratio


def test_better_challenger_that_lost_a_breed_is_refused_for_it() -> None:
    challenger = plant(recalls=dict.fromkeys(BREEDS, 0.95) | {"Boxer": 0.5})
    verdict = _judge(challenger, plant(recalls=0.8))
    assert verdict.comparison is not None
    assert verdict.comparison.accuracy_change.value > 0
    assert _failed(verdict) == ["breeds"]
    assert verdict.reasons == ("breeds: Boxer 80% to 50%",)
    assert verdict.comparison.breeds[0].breed == "Boxer"


def test_breed_may_fall_by_the_limit_itself() -> None:
    labels = ("Akita",) * 20 + ("Beagle",) * 20
    champion = plant(recalls=1.0, labels=labels)
    fallen = plant(recalls={"Akita": 0.85, "Beagle": 1.0}, labels=labels)
    further = plant(recalls={"Akita": 0.8, "Beagle": 1.0}, labels=labels)
    assert judge(fallen, champion, labels, config=GATE).passed
    assert _failed(judge(further, champion, labels, config=GATE)) == ["breeds"]


def test_breed_with_few_images_refuses_nothing() -> None:
    challenger = plant(recalls=dict.fromkeys(BREEDS, 0.95) | {"Boxer": 0.5})
    verdict = _judge(challenger, plant(), config=replace(GATE, min_breed_images=PER_BREED + 1))
    assert verdict.passed
    assert verdict.comparison is not None
    assert verdict.comparison.breeds[0].breed == "Boxer"
    assert "no breed has 41 test images" in verdict.checks[-1].details


@pytest.mark.parametrize(
    ("challenger", "failed"),
    [
        (plant(recalls=0.5), []),
        (plant(recalls=0.45), ["accuracy"]),
        (plant(factor=100.0), ["latency"]),
        (plant(recalls=0.2, factor=100.0), ["accuracy", "latency"]),
    ],
)
def test_first_champion_is_judged_by_absolute_limits(challenger: Measurement, failed: list[str]) -> None:
    verdict = _judge(challenger, None)
    assert _failed(verdict) == failed
    assert verdict.passed == (not failed)
    assert verdict.comparison is None


def test_limits_come_from_the_config() -> None:
    challenger, champion = plant(recalls=0.9, factor=3.0), plant(recalls=0.8)
    assert _judge(challenger, champion, config=replace(GATE, max_p95_ratio=4.0)).passed
    assert _judge(plant(recalls=0.7), champion, config=replace(GATE, max_p_value=0.0)).passed


def test_scores_are_those_of_the_answers() -> None:
    measured = plant(recalls=dict.fromkeys(BREEDS, 0.9) | {"Pug": 0.6})
    scores = score(measured, LABELS)
    predicted = [answer.breed for answer in measured.answers]
    assert scores.accuracy_top1 == pytest.approx(0.84)
    assert scores.accuracy_top5 == 1.0
    assert scores.f1_macro == pytest.approx(f1_score(list(LABELS), predicted, average="macro"))
    assert scores.worst_breed == "Pug"
    assert scores.worst_recall == pytest.approx(0.6)
    # Each answer says 0.8, and 0.84 of them are right.
    assert scores.calibration_error == pytest.approx(0.04)
    assert scores.size_mib == 94.0
    assert 9 < scores.p50_ms < scores.p95_ms < 25
    assert scores.num_unanswered == 0


def test_images_that_the_server_refused_count_as_mistaken() -> None:
    measured = plant(recalls=1.0)
    answers = (Answer(()),) * 10 + measured.answers[10:]
    scores = score(replace(measured, answers=answers), LABELS)
    assert scores.num_unanswered == 10
    assert scores.accuracy_top1 == pytest.approx(0.95)
    assert scores.worst_breed == "Akita"


def test_verdict_is_plain_json() -> None:
    verdict = _judge(plant(recalls=0.5), plant(recalls=0.8))
    told = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert told["passed"] is False
    assert told["comparison"]["p95_ratio"].keys() == {"value", "low", "high"}
    assert [check["name"] for check in told["checks"]] == ["accuracy", "latency", "breeds"]
    assert told["reasons"] == list(verdict.reasons)
    assert all(math.isfinite(check["value"]) for check in told["checks"])


def test_verdict_is_the_same_again() -> None:
    assert _judge(plant(recalls=0.9), plant()) == _judge(plant(recalls=0.9), plant())
