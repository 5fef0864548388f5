"""The gate: a challenger against the champion, judged by what their servers showed on the same test images.

Pure: measurements in, a verdict out. Latency refuses only what is surely slower, accuracy only what is surely worse.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dogbreed_ml.calibration import expected_calibration_error, reliability_bins
from dogbreed_ml.measurement import Measurement
from dogbreed_ml.policies import PromotionConfig
from dogbreed_ml.significance import Interval, accuracy_change, mcnemar_p_value, p95_ratio


@dataclass(frozen=True)
class Scores:
    """A measurement in figures; shares in [0, 1]."""

    accuracy_top1: float
    accuracy_top5: float
    f1_macro: float
    """Mean over the breeds of the test images."""
    worst_recall: float
    worst_breed: str
    calibration_error: float
    """Expected calibration error of the probability of the breed named."""
    p50_ms: float
    p95_ms: float
    images_per_s: float
    """Median over the rounds, several clients at once."""
    cold_start_s: float
    size_mib: float
    num_unanswered: int
    """Test images that the server refused; they count as mistaken."""
    backend: str


@dataclass(frozen=True)
class BreedChange:
    """One breed's recall through both servers; shares in [0, 1]."""

    breed: str
    num_images: int
    champion: float
    challenger: float

    @property
    def change(self) -> float:
        return self.challenger - self.champion


@dataclass(frozen=True)
class Comparison:
    """What pairs of answers to the same image, and turns of the same round, tell."""

    accuracy_change: Interval
    """Challenger minus champion."""
    p_value: float
    """McNemar's exact two-sided test."""
    num_gained: int
    """Images that the challenger alone recognised."""
    num_lost: int
    """Images that the champion alone recognised."""
    p95_ratio: Interval
    """Challenger over champion."""
    breeds: tuple[BreedChange, ...]
    """The greatest fall first."""


@dataclass(frozen=True)
class Check:
    """One rule of the gate and what it found."""

    name: str
    rule: str
    value: float
    limit: float
    passed: bool
    details: str


@dataclass(frozen=True)
class Verdict:
    """Whether a challenger may become champion, and why."""

    passed: bool
    checks: tuple[Check, ...]
    num_images: int
    challenger: Scores
    champion: Scores | None = None
    """None for the first champion, which is judged by absolute limits."""
    comparison: Comparison | None = None
    min_breed_images: int = 1
    """Breeds with fewer test images refuse nothing."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """What speaks against the challenger."""
        return tuple(f"{check.name}: {check.details}" for check in self.checks if not check.passed)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"reasons": list(self.reasons)}


def judge(
    challenger: Measurement, champion: Measurement | None, labels: Sequence[str], *, config: PromotionConfig
) -> Verdict:
    """The verdict on answers to the same test images; `labels` are their breeds, at least one.

    Without a champion the absolute limits of the config decide. The same input gives the same verdict.
    """
    scores = score(challenger, labels)
    if champion is None:
        checks: tuple[Check, ...] = (_check_minimum(scores, config), _check_maximum(scores, config))
        return Verdict(all(check.passed for check in checks), checks, len(labels), scores)
    comparison = compare(challenger, champion, labels)
    checks = (
        _check_accuracy(comparison, config),
        _check_latency(comparison, config),
        _check_breeds(comparison, config),
    )
    passed = all(check.passed for check in checks)
    champion_scores = score(champion, labels)
    return Verdict(passed, checks, len(labels), scores, champion_scores, comparison, config.min_breed_images)


def score(measured: Measurement, labels: Sequence[str]) -> Scores:
    """A measurement in figures."""
    from sklearn.metrics import f1_score

    breeds = sorted(set(labels))
    answered = [answer.breed or "" for answer in measured.answers]
    is_right = _is_right(measured, labels)
    in_top5 = [
        label in (breed for breed, _ in answer.top5) for answer, label in zip(measured.answers, labels, strict=True)
    ]
    recalls = _recalls(is_right, labels, breeds)
    worst = int(np.argmin(recalls))
    probabilities = np.array([answer.probability for answer in measured.answers])
    return Scores(
        accuracy_top1=float(is_right.mean()),
        accuracy_top5=float(np.mean(in_top5)),
        f1_macro=float(f1_score(list(labels), answered, labels=breeds, average="macro", zero_division=0.0)),
        worst_recall=float(recalls[worst]),
        worst_breed=breeds[worst],
        calibration_error=expected_calibration_error(reliability_bins(probabilities, is_right)),
        p50_ms=float(np.median(measured.timing.latencies_ms)),
        p95_ms=float(np.quantile(measured.timing.latencies_ms, 0.95)),
        images_per_s=float(np.median(measured.timing.images_per_s)),
        cold_start_s=measured.cold_start_s,
        size_mib=measured.size_bytes / 2**20,
        num_unanswered=sum(answer.breed is None for answer in measured.answers),
        backend=measured.backend,
    )


def compare(challenger: Measurement, champion: Measurement, labels: Sequence[str]) -> Comparison:
    """Challenger against champion, answers and rounds in pairs."""
    breeds = sorted(set(labels))
    new, old = _is_right(challenger, labels), _is_right(champion, labels)
    num_gained, num_lost = int((new & ~old).sum()), int((old & ~new).sum())
    counts = [sum(label == breed for label in labels) for breed in breeds]
    rows = zip(breeds, counts, _recalls(old, labels, breeds), _recalls(new, labels, breeds), strict=True)
    changes = (BreedChange(breed, count, float(before), float(after)) for breed, count, before, after in rows)
    return Comparison(
        accuracy_change=accuracy_change(new, old),
        p_value=mcnemar_p_value(num_gained, num_lost),
        num_gained=num_gained,
        num_lost=num_lost,
        p95_ratio=p95_ratio(challenger.timing.latencies_ms, champion.timing.latencies_ms),
        breeds=tuple(sorted(changes, key=lambda each: (each.change, each.breed))),
    )


def _is_right(measured: Measurement, labels: Sequence[str]) -> NDArray[np.bool_]:
    return np.array([answer.breed == label for answer, label in zip(measured.answers, labels, strict=True)])


def _recalls(is_right: NDArray[np.bool_], labels: Sequence[str], breeds: Sequence[str]) -> NDArray[np.float64]:
    label_array = np.array(labels)
    return np.array([is_right[label_array == breed].mean() for breed in breeds])


def _check_minimum(scores: Scores, config: PromotionConfig) -> Check:
    limit = config.min_accuracy_top1
    return Check(
        name="accuracy",
        rule=f"The first champion recognises at least {limit:.1%} of the test images.",
        value=scores.accuracy_top1,
        limit=limit,
        passed=scores.accuracy_top1 >= limit,
        details=f"{scores.accuracy_top1:.2%} of the test images are recognised, {limit:.1%} are asked for",
    )


def _check_maximum(scores: Scores, config: PromotionConfig) -> Check:
    limit = config.max_p95_ms
    return Check(
        name="latency",
        rule=f"The first champion's p95 is at most {limit:g} ms.",
        value=scores.p95_ms,
        limit=limit,
        passed=scores.p95_ms <= limit,
        details=f"p95 is {scores.p95_ms:.1f} ms, at most {limit:g} ms are allowed",
    )


def _check_accuracy(comparison: Comparison, config: PromotionConfig) -> Check:
    change, limit = comparison.accuracy_change, config.max_p_value
    is_worse = comparison.num_lost > comparison.num_gained
    return Check(
        name="accuracy",
        rule=f"Not significantly less accurate than the champion (McNemar's exact p below {limit:g}).",
        value=comparison.p_value,
        limit=limit,
        passed=not (is_worse and comparison.p_value < limit),
        details=(
            f"{change.value * 100:+.2f} points (95 % {change.low * 100:+.2f} to {change.high * 100:+.2f}): "
            f"{comparison.num_gained} images gained, {comparison.num_lost} lost, p {comparison.p_value:.3g}"
        ),
    )


def _check_latency(comparison: Comparison, config: PromotionConfig) -> Check:
    ratio, limit = comparison.p95_ratio, config.max_p95_ratio
    is_unclear = ratio.low <= limit < ratio.value
    return Check(
        name="latency",
        rule=f"p95 not surely above {limit:g} times the champion's (lower 95 % bound of the ratio).",
        value=ratio.low,
        limit=limit,
        passed=ratio.low <= limit,
        details=(
            f"p95 is {ratio.value:.2f} times the champion's (95 % {ratio.low:.2f} to {ratio.high:.2f})"
            f"{', too uncertain to refuse for' * is_unclear}"
        ),
    )


def _check_breeds(comparison: Comparison, config: PromotionConfig) -> Check:
    limit = config.max_breed_drop
    counted = [breed for breed in comparison.breeds if breed.num_images >= config.min_breed_images]
    # 3 of 20 images are 15 %, whatever binary fractions make of 0.85 - 1.0.
    fallen = [breed for breed in counted if -breed.change > limit + 1e-9]
    least = f"{config.min_breed_images} test images"
    if not counted:
        details = f"no breed has {least}, so none counts"
    elif fallen:
        named = ", ".join(f"{breed.breed} {breed.champion:.0%} to {breed.challenger:.0%}" for breed in fallen[:5])
        details = f"{named}{f' and {len(fallen) - 5} more' if len(fallen) > 5 else ''}"
    else:
        details = f"the greatest fall is {counted[0].breed}'s, {counted[0].change * 100:+.1f} points"
    return Check(
        name="breeds",
        rule=f"No breed with at least {least} falls by more than {limit * 100:g} points.",
        value=-counted[0].change if counted else 0.0,
        limit=limit,
        passed=not fallen,
        details=details,
    )
