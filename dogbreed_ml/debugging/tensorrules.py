"""SageMaker's tensor rules as smdebug custom rules, over tensors that smdebug saved; each calls its plain function.

Imported only where tensors are judged: smdebug takes 2.4 s to import.
"""

import math
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy.stats import binom
from smdebug import modes
from smdebug.exceptions import TensorUnavailableForStep
from smdebug.rules.rule import Rule
from smdebug.trials import create_trial

from dogbreed_ml.debugging import findings as find
from dogbreed_ml.debugging.classnames import load_class_names
from dogbreed_ml.debugging.epochs import judge_loss, judge_overfit, judge_overtraining
from dogbreed_ml.debugging.findings import Array, Finding
from dogbreed_ml.debugging.verdict import judged
from dogbreed_ml.errors import ProfileError
from dogbreed_ml.profiling.verdicts import Verdict, not_applicable
from dogbreed_ml.ruleparameters import RuleName, parse_parameters

LOSSES, EPOCH_COLLECTION, TRAINING_STEP_COLLECTION = "losses", "epoch", "training_step"
_MIN_LABELS_A_CLASS = 30
"""Classes' counts are compared from so many saved labels a class on: of 120 equal classes, 500 labels hold some class
more than ten times as often as another in a third of all draws, 3,600 at most six times as often."""
_MIN_LABELS_OF_CLASS = 5
"""A breed is judged by its mispredictions from so many labels on."""
_MAX_CHANCE = 1e-4
"""How likely at most some breed has so many mispredictions by chance, if all are mistaken equally often."""


def open_trial(tensors_dir: Path) -> Any:
    """smdebug's trial of saved tensors, live or ended; raises ProfileError where nothing was saved."""
    # create_trial waits for ever for a collections file.
    if not any(tensors_dir.glob("collections/*/*.json")):
        raise ProfileError(f"{tensors_dir} must hold tensors that smdebug saved; it has no collections/ with a file.")
    trial = create_trial(str(tensors_dir))
    # smdebug sleeps so many seconds before each last look at a trial that has ended.
    trial._training_end_delay_refresh = 0
    return trial


def saved_at(tensors_dir: Path) -> dict[int, float]:
    """When each step was saved, seconds since the epoch, by the global step in its file's name."""
    return {int(path.name.split("_")[0]): path.stat().st_mtime for path in tensors_dir.glob("events/*/*.tfevents")}


class TensorRule(Rule):  # type: ignore[misc]
    """A rule that looks at one saved step at a time, in order, and remembers what it found.

    `step` in findings counts optimizer steps (mode TRAIN) where the trial has that mode.
    """

    rule: ClassVar[RuleName]

    def __init__(self, base_trial: Any, action_str: str | None = None, **parameters: Any) -> None:
        """`parameters` by SageMaker's names; raises ConfigError for one that the rule does not have."""
        super().__init__(base_trial, action_str)
        self.parameters = parse_parameters(self.rule, parameters)
        self.found: list[Finding] = []
        self.global_steps: dict[int, int] = {}
        """Global step by training step."""
        self.datapoints = 0
        self.train_step = 0
        self.report["RuleParameters"] = "\n".join(f"{name}:{value}" for name, value in self.parameters.items())

    def invoke_at_step(self, step: int) -> bool:
        mode, mode_step = self.base_trial.mode_modestep(step)
        is_training = mode != modes.EVAL
        if is_training:
            self.train_step = mode_step
            self.global_steps[mode_step] = step
        found = self.look(step) if is_training else self.look_at_evaluation(step)
        self.found.extend(found)
        self.report["Datapoints"] = self.datapoints
        self.report["Violations"] = self.report["RuleTriggered"] = len(self.found)
        return bool(found)

    @abstractmethod
    def look(self, step: int) -> list[Finding]:
        """Judges one saved training step, by global step."""

    def look_at_evaluation(self, step: int) -> list[Finding]:
        """Judges what was saved of one evaluation, by global step."""
        del step
        return []

    def verdict(self) -> Verdict:
        if not self.datapoints:
            return not_applicable(self.rule, f"no {self.needs} were saved", self.parameters)
        directory = Path(self.base_trial.path)
        times = saved_at(directory)
        times_s = {mine: times[its] for mine, its in self.global_steps.items() if its in times}
        return judged(
            self.rule,
            self.found,
            datapoints=self.datapoints,
            parameters=self.parameters,
            unit=f"saved {self.needs}",
            times_s=times_s,
        )

    needs: ClassVar[str] = "tensors"

    def tensors(self, step: int, *collections: str) -> dict[str, Array]:
        """What of these collections was saved at a step, by name; counted as datapoints by the caller."""
        names: set[str] = set()
        for collection in collections:
            if collection in self.base_trial.collections():
                names.update(self.base_trial.tensor_names(step=step, collection=collection))
        found = {}
        for name in sorted(names):
            try:
                found[name] = np.asarray(self.base_trial.tensor(name).value(step))
            # Only reductions of it were saved.
            except TensorUnavailableForStep:
                continue
        return found

    def loss(self, step: int) -> float | None:
        """The mean of the losses saved at a step; None without one."""
        values = [float(np.mean(value)) for value in self.tensors(step, LOSSES).values()]
        return float(np.mean(values)) if values else None


class ExplodingTensor(TensorRule):
    """NaN or infinity anywhere in what was saved."""

    rule = "ExplodingTensor"

    def look(self, step: int) -> list[Finding]:
        tensors = self.tensors(step, "losses", "gradients", "weights", "biases", "relu_input", "relu_output")
        self.datapoints += len(tensors)
        return find.exploding_tensor(self.train_step, tensors, **self.parameters)

    def look_at_evaluation(self, step: int) -> list[Finding]:
        return self.look(step)


class VanishingGradient(TensorRule):
    rule, needs = "VanishingGradient", "gradients"

    def look(self, step: int) -> list[Finding]:
        gradients = self.tensors(step, "gradients")
        self.datapoints += len(gradients)
        return find.vanishing_gradient(self.train_step, gradients, **self.parameters)


class AllZero(TensorRule):
    """Over gradients and weights: activations and labels may well be zero."""

    rule, needs = "AllZero", "gradients and weights"

    def look(self, step: int) -> list[Finding]:
        tensors = self.tensors(step, "gradients", "weights")
        self.datapoints += len(tensors)
        return find.all_zero(self.train_step, tensors, **self.parameters)


class DeadRelu(TensorRule):
    rule, needs = "DeadRelu", "outputs of ReLUs"

    def look(self, step: int) -> list[Finding]:
        outputs = self.tensors(step, "relu_output")
        self.datapoints += len(outputs)
        return find.dead_relu(self.train_step, outputs, **self.parameters)


class PoorWeightInitialization(TensorRule):
    rule, needs = "PoorWeightInitialization", "losses"

    def __init__(self, base_trial: Any, action_str: str | None = None, **parameters: Any) -> None:
        super().__init__(base_trial, action_str, **parameters)
        self._losses: list[float] = []

    def look(self, step: int) -> list[Finding]:
        loss = self.loss(step)
        if loss is None or len(self._losses) >= self.parameters["steps"]:
            return []
        self._losses.append(loss)
        self.datapoints += 1
        if len(self._losses) <= self.parameters["patience"]:
            return []
        inputs, gradients = self.tensors(step, "relu_input"), self.tensors(step, "gradients")
        return find.poor_weight_initialization(self.train_step, inputs, gradients, self._losses, **self.parameters)

    def verdict(self) -> Verdict:
        if 0 < self.datapoints <= self.parameters["patience"]:
            reason = f"too short to tell, {self.datapoints} saved losses where more than patience are needed"
            return not_applicable(self.rule, reason, self.parameters, self.datapoints)
        return super().verdict()


class ClassImbalance(TensorRule):
    """Over the counts of all labels that were saved, and over the last answers, as many as `samples`.

    A breed that is often taken for another counts only once the others are told apart (before that the whole training
    is young, and nothing is imbalanced), and where it is mistaken more often than chance makes one of many.
    """

    rule, needs = "ClassImbalance", "labels and predictions"

    def __init__(self, base_trial: Any, action_str: str | None = None, **parameters: Any) -> None:
        super().__init__(base_trial, action_str, **parameters)
        self._counts: Counter[str] = Counter()
        self._last: deque[tuple[int, int]] = deque(maxlen=self.parameters["samples"])
        self._names = load_class_names(Path(base_trial.path))

    def look(self, step: int) -> list[Finding]:
        labels, logits = self.tensors(step, "labels"), self.tensors(step, "predictions")
        for truth, predicted in zip(labels.values(), logits.values(), strict=False):
            chosen = predicted.argmax(axis=1) if predicted.ndim > 1 else predicted
            classes = truth.astype(int).tolist()
            self._last.extend(zip(classes, chosen.astype(int).tolist(), strict=True))
            self._counts.update(map(self._class_name, classes))
            self.datapoints += len(truth)
        return find.class_imbalance(
            self.train_step,
            self._counts,
            self._mispredicted(),
            min_labels_a_class=_MIN_LABELS_A_CLASS,
            **self.parameters,
        )

    def _mispredicted(self) -> dict[str, tuple[int, int]]:
        """(mistaken, looked at) of each class that is mistaken more often than the others, beyond chance."""
        if not self._last:
            return {}
        labels, answers = np.array(self._last).T
        seen, wrong = np.bincount(labels), np.bincount(labels[labels != answers], minlength=labels.max() + 1)
        if wrong.sum() > self.parameters["threshold_misprediction"] * len(labels):
            return {}
        share_of_others = (wrong.sum() - wrong) / np.maximum(seen.sum() - seen, 1)
        chance = binom.sf(wrong - 1, seen, share_of_others)
        stands_out = (seen >= _MIN_LABELS_OF_CLASS) & (chance <= _MAX_CHANCE / np.count_nonzero(seen))
        return {self._class_name(label): (int(wrong[label]), int(seen[label])) for label in np.flatnonzero(stands_out)}

    def verdict(self) -> Verdict:
        needed = max(self.parameters["samples"], _MIN_LABELS_A_CLASS * len(self._counts))
        if 0 < self.datapoints < needed and not self.found:
            reason = (
                f"too short to tell, {self.datapoints} labels of {len(self._counts)} classes where at least {needed} "
                "are needed"
            )
            return not_applicable(self.rule, reason, self.parameters, self.datapoints)
        return super().verdict()

    def _class_name(self, label: int) -> str:
        return self._names[label] if 0 <= label < len(self._names) else f"class {label}"


class LossRule(TensorRule):
    """A rule over losses: where evaluations were saved, one point an epoch, else each saved step.

    The epoch's train loss is the one that this project's hook saves, else the mean of the steps saved since the last
    evaluation.
    """

    needs = "losses"

    def __init__(self, base_trial: Any, action_str: str | None = None, **parameters: Any) -> None:
        super().__init__(base_trial, action_str, **parameters)
        self._steps: list[tuple[int, float]] = []
        self._epochs: list[tuple[int, float, float]] = []
        self._this_epoch: list[float] = []

    def look(self, step: int) -> list[Finding]:
        loss = self.loss(step)
        if loss is not None:
            self._steps.append((self.train_step, loss))
            self._this_epoch.append(loss)
            self.datapoints += 1
        return []

    def look_at_evaluation(self, step: int) -> list[Finding]:
        train = [float(value) for value in self.tensors(step, EPOCH_COLLECTION).values()] or self._this_epoch
        valid = self.loss(step)
        self._this_epoch = []
        if not train:
            return []
        # Without it (another's hook) the last step that was saved: with few of them saved, that may be long ago.
        for told in self.tensors(step, TRAINING_STEP_COLLECTION).values():
            self.train_step = int(told)
            self.global_steps[self.train_step] = step
        self.datapoints += 1
        self._epochs.append((self.train_step, float(np.mean(train)), math.nan if valid is None else valid))
        triggered = self.verdict().triggered
        return [Finding(self.train_step, LOSSES, "")] * max(0, triggered - len(self.found))

    def series(self) -> tuple[list[int], list[float], list[float]]:
        """Steps, train losses and valid losses; the last are empty without evaluations."""
        if self._epochs:
            steps, train, valid = (list(column) for column in zip(*self._epochs, strict=True))
            return steps, train, [] if all(map(math.isnan, valid)) else valid
        return [step for step, _ in self._steps], [loss for _, loss in self._steps], []


class LossNotDecreasing(LossRule):
    rule = "LossNotDecreasing"

    def verdict(self) -> Verdict:
        steps, train, _ = self.series()
        return judge_loss(steps, train, self.parameters, unit="losses")


class Overfit(LossRule):
    rule = "Overfit"

    def verdict(self) -> Verdict:
        return judge_overfit(*self.series(), self.parameters, unit="evaluations")


class Overtraining(LossRule):
    rule = "Overtraining"

    def verdict(self) -> Verdict:
        return judge_overtraining(*self.series(), self.parameters, unit="losses")


RULE_CLASSES: Mapping[RuleName, type[TensorRule]] = {
    each.rule: each
    for each in (
        LossNotDecreasing,
        VanishingGradient,
        ExplodingTensor,
        Overfit,
        Overtraining,
        PoorWeightInitialization,
        DeadRelu,
        ClassImbalance,
        AllZero,
    )
}
