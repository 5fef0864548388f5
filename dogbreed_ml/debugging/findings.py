"""What the tensor rules look for: plain functions over figures and arrays, whoever brings them.

Epochs of a search's trial and tensors that smdebug saved are judged by the same functions. A step is whatever the
caller counts in: optimizer steps. Each function returns every step at which its rule's condition held.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

_NOISE_SHARE = 0.01

Array = NDArray[Any]
"""Any shape, float or integer."""


@dataclass(frozen=True)
class Finding:
    """One step at which a rule's condition held."""

    step: int
    where: str
    """The tensor, layer, breed or metric."""
    what: str
    """One sentence."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Finite figures behind the sentence."""


class Findings(Sequence[Finding]):
    """Findings of a curve, put into words when they are looked at.

    A trial of 300 epochs may have 1,200 of which its verdict shows 20; in words they would take 4 us each.
    """

    def __init__(self, hits: Sequence[tuple[Any, ...]], render: Callable[..., Finding]) -> None:
        """Each hit is (step, where, figures...), which `render` takes as its arguments."""
        self._hits = hits
        self._render = render

    def places(self) -> Iterator[tuple[int, str]]:
        """Step and where of each."""
        return ((hit[0], hit[1]) for hit in self._hits)

    def __len__(self) -> int:
        return len(self._hits)

    @overload
    def __getitem__(self, index: int) -> Finding: ...
    @overload
    def __getitem__(self, index: slice) -> list[Finding]: ...
    def __getitem__(self, index: int | slice) -> Finding | list[Finding]:
        if isinstance(index, slice):
            return [self._render(*hit) for hit in self._hits[index]]
        return self._render(*self._hits[index])


def places(findings: Sequence[Finding]) -> tuple[set[int], set[str]]:
    """The steps of all findings, and where they are."""
    each = findings.places() if isinstance(findings, Findings) else ((one.step, one.where) for one in findings)
    pairs = set(each)
    return {step for step, _ in pairs}, {where for _, where in pairs}


def loss_not_decreasing(
    steps: Sequence[int],
    losses: Sequence[float],
    *,
    num_steps: int,
    diff_percent: float,
    where: str = "loss",
) -> Findings:
    """A loss is compared with the one at least `num_steps` steps before; then the next comparison starts from it.

    Without `diff_percent` it must be lower at all, else lower by so many percent.
    """
    hits, start, far = [], 0, max(num_steps, 1)
    for now, step in enumerate(steps):
        if step - steps[start] < far:
            continue
        before, after = losses[start], losses[now]
        limit = before - abs(before) * diff_percent / 100
        # Not "after >= limit": NaN has not decreased either.
        if not (after < before and after <= limit):
            hits.append((step, where, before, after, steps[start]))
        start = now
    return Findings(hits, _not_decreased)


def _not_decreased(step: int, where: str, before: float, after: float, step_before: int) -> Finding:
    what = f"The loss went from {before:.4g} at step {step_before} to {after:.4g} at step {step}."
    return Finding(step, where, what, _finite(loss_before=before, loss_after=after, step_before=step_before))


def overfit(
    steps: Sequence[int],
    train: Sequence[float],
    valid: Sequence[float],
    *,
    start_step: int,
    patience: int,
    ratio_threshold: float,
) -> Findings:
    """valid above train by more than `ratio_threshold` of train, `patience` times in a row."""
    hits, run, enough = [], 0, max(patience, 1)
    for step, train_loss, valid_loss in zip(steps, train, valid, strict=True):
        if step < start_step or not valid_loss - train_loss > ratio_threshold * abs(train_loss):
            run = 0
            continue
        run += 1
        if run >= enough:
            hits.append((step, "valid/loss", train_loss, valid_loss))
    return Findings(hits, _overfitted)


def _overfitted(step: int, where: str, train: float, valid: float) -> Finding:
    what = f"The valid loss is {valid:.4g} where the train loss is {train:.4g}."
    ratio = (valid - train) / abs(train) if train else math.inf
    return Finding(step, where, what, _finite(train=train, valid=valid, ratio=ratio))


def overtraining(
    steps: Sequence[int],
    train: Sequence[float],
    valid: Sequence[float] | None,
    *,
    patience_train: int,
    patience_validation: int,
    delta: float,
) -> Findings:
    """One of the losses has no new best, lower by at least `delta`, for as many points as its patience."""
    series = [("train/loss", train, max(patience_train, 1))]
    if valid is not None:
        series.append(("valid/loss", valid, max(patience_validation, 1)))
    hits = []
    for where, losses, patience in series:
        best, since = math.inf, 0
        for step, loss in zip(steps, losses, strict=True):
            if loss <= best - delta or (best == math.inf and loss < best):
                best, since = loss, 0
                continue
            since += 1
            if since >= patience:
                hits.append((step, where, loss, best, since, delta))
    return Findings(sorted(hits, key=itemgetter(0)), _overtrained)


def _overtrained(step: int, where: str, loss: float, best: float, since: int, delta: float) -> Finding:
    what = f"{where} has not improved by {delta:g} on {best:.4g} for {since} points."
    return Finding(step, where, what, _finite(loss=loss, best=best, points_since_best=since))


def class_imbalance(
    step: int,
    counts: Mapping[str, int],
    mispredicted: Mapping[str, tuple[int, int]] | None = None,
    *,
    threshold_imbalance: float,
    threshold_misprediction: float,
    samples: int,
    min_labels_a_class: int = 0,
) -> list[Finding]:
    """Labels seen so far by class; and of some classes how many were taken for another, of how many looked at.

    Nothing is judged before `samples` labels, and counts are not compared before `min_labels_a_class` on average:
    where they are drawn, chance makes some class of many rare.
    """
    seen = {name: count for name, count in counts.items() if count > 0}
    total = sum(seen.values())
    if total < samples or len(seen) < 2:
        return []
    found = []
    small, large = min(seen, key=seen.__getitem__), max(seen, key=seen.__getitem__)
    ratio = seen[large] / seen[small]
    # Equal counts are none, however low the threshold.
    if total >= min_labels_a_class * len(seen) and ratio > max(threshold_imbalance, 1.0):
        what = f"{large} has {seen[large]} samples, {small} {seen[small]}: {ratio:.3g} times as many."
        found.append(Finding(step, small, what, _finite(ratio=ratio, largest=seen[large], smallest=seen[small])))
    for name, (wrong, looked_at) in (mispredicted or {}).items():
        share = wrong / looked_at
        if share > threshold_misprediction:
            what = f"{share:.0%} of the {looked_at} samples of {name} were taken for another class."
            found.append(Finding(step, name, what, _finite(mispredicted_share=share, samples=looked_at)))
    return found


@np.errstate(all="ignore")
def vanishing_gradient(step: int, gradients: Mapping[str, Array], *, threshold: float) -> list[Finding]:
    """A gradient whose mean magnitude is below `threshold`."""
    found = []
    for name, gradient in gradients.items():
        mean = float(np.abs(gradient).mean()) if gradient.size else math.inf
        if mean < threshold:
            what = f"The mean magnitude of {name} is {mean:.3g}."
            found.append(Finding(step, name, what, _finite(mean_magnitude=mean)))
    return found


@np.errstate(all="ignore")
def exploding_tensor(step: int, tensors: Mapping[str, Array], *, only_nan: bool) -> list[Finding]:
    """A tensor that holds NaN, or infinity too without `only_nan`."""
    found = []
    for name, tensor in tensors.items():
        # A sum is not finite if one element is not, and takes a tenth of the time; it may overflow by itself.
        if np.isfinite(tensor.sum(dtype=np.float64)):
            continue
        num_nan = int(np.isnan(tensor).sum())
        num_inf = int(np.isinf(tensor).sum())
        if num_nan or (num_inf and not only_nan):
            what = f"{num_nan} of {tensor.size} values of {name} are NaN and {num_inf} infinite."
            found.append(Finding(step, name, what, _finite(num_nan=num_nan, num_inf=num_inf, size=tensor.size)))
    return found


def all_zero(step: int, tensors: Mapping[str, Array], *, threshold: float) -> list[Finding]:
    """A tensor of which at least `threshold` percent are zero."""
    found = []
    for name, tensor in tensors.items():
        percent = 100 * (1 - np.count_nonzero(tensor) / tensor.size) if tensor.size else 0.0
        if tensor.size and percent >= threshold:
            found.append(Finding(step, name, f"{percent:.4g} % of {name} is zero.", _finite(zero_percent=percent)))
    return found


@np.errstate(all="ignore")
def dead_relu(
    step: int, outputs: Mapping[str, Array], *, threshold_inactivity: float, threshold_layer: float
) -> list[Finding]:
    """A layer, outputs (B, C, ...), of whose C units more than `threshold_layer` percent are dead.

    Dead is a unit that is above zero in less than `threshold_inactivity` percent of the batch and its places.
    """
    found = []
    for name, output in outputs.items():
        if output.ndim < 2 or not output.size:
            continue
        axes = tuple(axis for axis in range(output.ndim) if axis != 1)
        active = 100 * (output > 0).mean(axis=axes)
        dead = 100 * float((active < threshold_inactivity).mean())
        if dead > threshold_layer:
            what = f"{dead:.3g} % of the {len(active)} units of {name} are dead."
            found.append(Finding(step, name, what, _finite(dead_percent=dead, units=len(active))))
    return found


@np.errstate(all="ignore")
def poor_weight_initialization(
    step: int,
    relu_inputs: Mapping[str, Array],
    gradients: Mapping[str, Array],
    losses: Sequence[float],
    *,
    threshold: float,
    distribution_range: float,
    patience: int,
    steps: int,
) -> list[Finding]:
    """In the first `steps` saved steps, `losses` are theirs: no new lowest loss for `patience` of them, and a cause.

    A new lowest loss is lower by 1 %: batches differ by as much.

    A cause is a variance of activation inputs that differs between layers by a factor above `threshold`, or a
    gradient whose 5th and 95th percentiles are closer than `distribution_range`. Either alone is no ailment: with
    pretrained weights gradients are as small as that while the loss falls.
    """
    if len(losses) > steps or not _has_stalled(losses, patience):
        return []
    found = []
    variances = {name: float(np.var(values, dtype=np.float64)) for name, values in relu_inputs.items() if values.size}
    if len(variances) > 1:
        low, high = min(variances, key=variances.__getitem__), max(variances, key=variances.__getitem__)
        ratio = variances[high] / variances[low] if variances[low] else math.inf
        # Written so that NaN, from a loss that exploded, is a finding as well.
        if not ratio <= threshold:
            what = f"Inputs vary by {variances[high]:.3g} at {high} and by {variances[low]:.3g} at {low}."
            found.append(Finding(step, low, what, _finite(ratio=ratio, low=variances[low], high=variances[high])))
    spreads = {
        name: float(np.subtract(*np.percentile(values, [95, 5]))) for name, values in gradients.items() if values.size
    }
    if spreads:
        narrow = min(spreads, key=spreads.__getitem__)
        if not spreads[narrow] >= distribution_range:
            what = f"90 % of {narrow} lie within {spreads[narrow]:.3g}."
            found.append(Finding(step, narrow, what, _finite(range_5_to_95=spreads[narrow])))
    return found


def _has_stalled(losses: Sequence[float], patience: int) -> bool:
    if len(losses) <= patience:
        return False
    before, after = losses[: len(losses) - patience], losses[len(losses) - patience :]
    return not min(after, default=math.inf) < (1 - _NOISE_SHARE) * min(before)


def _finite(**values: float) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}
