"""The debugger of one training: tensors saved by smdebug's hook, judged while it runs and at its end.

with Debugger.open(folder, save_interval=10, max_gib=4, stop_on=["ExplodingTensor"]) as debugger:
    debugger.watch(model, loss_function)
    for result in debugger.epochs(fit(model, ..., loss_function=loss_function)):
        ...
debugger.verdicts
"""

import contextlib
import importlib
import io
import logging
import struct
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from dogbreed_ml.debugging.budget import SaveBudget
from dogbreed_ml.debugging.classnames import save_class_names
from dogbreed_ml.errors import ConfigError
from dogbreed_ml.profiling.verdicts import Verdict, not_applicable
from dogbreed_ml.ruleparameters import TENSOR_RULES, RuleName, parse_parameters

if TYPE_CHECKING:
    from torch import nn

    from dogbreed_ml.debugging.hook import TrainingHook
    from dogbreed_ml.debugging.tensorrules import TensorRule
    from dogbreed_ml.train import EpochResult

logger = logging.getLogger(__name__)

Parameters = Mapping[str, Mapping[str, Any]]


class Debugger:
    """Watches one training; where smdebug cannot be imported it watches nothing, and its verdicts say why."""

    def __init__(
        self, tensors_dir: Path, *, budget: SaveBudget, stop_on: Sequence[RuleName], parameters: Parameters
    ) -> None:
        self.tensors_dir = tensors_dir
        self.stopped_by: RuleName | None = None
        """The rule that ended the training before its time."""
        self.verdicts: tuple[Verdict, ...] = ()
        """One a rule of TENSOR_RULES, once the debugger is closed."""
        self._stop_on = stop_on
        self._parameters = parameters
        self._budget = budget
        self._missing: str | None = None
        self._stop_note: str | None = None
        self._hook: TrainingHook | None = None
        self._judge: TrialJudge | None = None

    @classmethod
    def open(
        cls,
        tensors_dir: Path,
        *,
        save_interval: int,
        max_gib: float,
        stop_on: Sequence[RuleName] = (),
        parameters: Parameters | None = None,
        class_names: Sequence[str] = (),
    ) -> Self:
        """Saves into `tensors_dir`, which must not exist yet, every `save_interval` steps, more rarely near `max_gib`.

        `parameters` are by rule, over SageMaker's defaults. `class_names`, by label, are saved with the tensors, and
        the verdicts use them; without them a class is named by its label. Raises ConfigError for an unknown rule or
        parameter.
        """
        check_rules([*stop_on, *(parameters or {})])
        for rule in TENSOR_RULES:
            parse_parameters(rule, (parameters or {}).get(rule, {}))
        budget = SaveBudget(max_gib * 2**30, save_interval)
        debugger = cls(tensors_dir, budget=budget, stop_on=stop_on, parameters=parameters or {})
        try:
            hooks = import_smdebug("hook")
        except ImportError as error:
            debugger._missing = f"smdebug cannot be imported ({error})"
            logger.warning("The debugger is off: %s.", debugger._missing)
        else:
            debugger._hook = hooks.TrainingHook(tensors_dir, budget=budget)
            # After the hook, which refuses a folder that is there.
            if class_names:
                save_class_names(tensors_dir, class_names)
        return debugger

    @property
    def notes(self) -> tuple[str, ...]:
        """Which rule ended the training, and what was not saved of what was asked for: one sentence each."""
        return tuple(note for note in (self._stop_note, self._budget.note()) if note)

    def watch(self, model: "nn.Module", loss_function: "nn.Module") -> None:
        """Hooks onto what `fit` is given; before its first step, and after the model stands on its device."""
        if self._hook is not None:
            self._hook.attach(model, loss_function)

    def epochs(self, results: "Iterator[EpochResult]", *, num_epochs: int | None = None) -> "Iterator[EpochResult]":
        """Passes on the epochs; the one in which a rule of `stop_on` triggered is the last.

        Of `num_epochs` the last one ends by itself, whatever triggered in it.
        """
        try:
            for result in results:
                rule = self._look(result)
                yield result
                if rule is not None and result.epoch + 1 != num_epochs:
                    self.stopped_by = rule
                    self._stop_note = f"The rule {rule} ended the training after epoch {result.epoch}."
                    logger.warning("epoch=%d training stopped by the rule %s.", result.epoch, rule)
                    return
        finally:
            # Left early, the training's own clean-up runs now.
            close = getattr(results, "close", None)
            if close is not None:
                close()

    def close(self) -> None:
        """Takes the hook off and judges what was saved; the files stay."""
        if self._hook is not None:
            has_tensors = self._hook.flush()
            self._hook.detach()
            self._hook = None
            if has_tensors:
                self._judged().look()
            self.verdicts = self._judge.verdicts() if self._judge else _all_not_applicable("no step was saved")
        elif self._missing is not None:
            self.verdicts = _all_not_applicable(self._missing)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _look(self, result: "EpochResult") -> RuleName | None:
        """The first rule of `stop_on` that triggered in the epoch."""
        if self._hook is None:
            return None
        self._hook.save_epoch(result.metrics["train/loss"], result.metrics.get("valid/loss"))
        if not self._hook.flush() or not self._stop_on:
            return None
        triggered = self._judged().look()
        return next((rule for rule in self._stop_on if rule in triggered), None)

    def _judged(self) -> "TrialJudge":
        if self._judge is None:
            self._judge = TrialJudge(self.tensors_dir, self._parameters)
        return self._judge


class TrialJudge:
    """Every tensor rule over one folder of saved tensors, step by step, each step once."""

    def __init__(self, tensors_dir: Path, parameters: Parameters) -> None:
        self._rules = import_smdebug("tensorrules")
        self._trial = self._rules.open_trial(tensors_dir)
        self._by_name: dict[RuleName, TensorRule] = {
            name: kind(self._trial, **parameters.get(name, {})) for name, kind in self._rules.RULE_CLASSES.items()
        }
        self._last_step = -1
        self._errors: dict[RuleName, str] = {}

    def look(self) -> set[RuleName]:
        """Judges the steps saved since the last look; the rules that triggered in them."""
        from google.protobuf.message import DecodeError
        from smdebug.exceptions import RuleEvaluationConditionMet, SMDebugError

        triggered: set[RuleName] = set()
        for step in [each for each in self._trial.steps() if each > self._last_step]:
            for name, rule in self._by_name.items():
                try:
                    rule.invoke(step)
                except RuleEvaluationConditionMet:
                    triggered.add(name)
                # What smdebug's readers raise for a damaged file; one rule's trouble is not another's.
                except (SMDebugError, DecodeError, struct.error, OSError, ValueError, LookupError) as error:
                    self._errors.setdefault(name, f"step {step} could not be read: {type(error).__name__}: {error}")
            self._last_step = step
        return triggered

    def verdicts(self) -> tuple[Verdict, ...]:
        """One a rule, in the order of TENSOR_RULES."""
        return tuple(self._verdict(name) for name in TENSOR_RULES)

    def _verdict(self, name: RuleName) -> Verdict:
        rule = self._by_name[name]
        if name in self._errors:
            return Verdict(name, "Error", self._errors[name], 0, rule.datapoints, rule.parameters)
        return rule.verdict()


def judge_tensors(tensors_dir: Path, *, parameters: Parameters | None = None) -> tuple[Verdict, ...]:
    """A verdict for each of TENSOR_RULES on tensors that smdebug saved, ours or a SageMaker job's.

    Raises ProfileError where the folder holds none, ConfigError for an unknown rule or parameter.
    """
    check_rules(list(parameters or {}))
    try:
        judge = TrialJudge(tensors_dir, parameters or {})
    except ImportError as error:
        return _all_not_applicable(f"smdebug cannot be imported ({error})")
    judge.look()
    return judge.verdicts()


def has_tensors(folder: Path) -> bool:
    """Whether smdebug saved tensors there."""
    return any(folder.glob("collections/*/*.json"))


def check_rules(names: Sequence[str]) -> None:
    """Raises ConfigError for a name that is none of TENSOR_RULES."""
    for name in names:
        if name not in TENSOR_RULES:
            raise ConfigError(f"A tensor rule must be one of {', '.join(TENSOR_RULES)}, got {name!r}.")


def import_smdebug(module: str) -> ModuleType:
    """dogbreed_ml.debugging.<module>, which imports smdebug; 2.4 s the first time."""
    # On import smdebug logs to the stdout that it finds, and warns about what it imports.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        imported = importlib.import_module(f"dogbreed_ml.debugging.{module}")
        # pyinstrument, which smdebug imports, leaves a finder of Python 2's kind: each later import of what is absent
        # would warn.
        sys.meta_path[:] = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
    smdebug_logger = logging.getLogger("smdebug")
    smdebug_logger.handlers.clear()
    smdebug_logger.propagate = True
    smdebug_logger.setLevel(logging.ERROR)
    return imported


def _all_not_applicable(reason: str) -> tuple[Verdict, ...]:
    return tuple(not_applicable(rule, reason) for rule in TENSOR_RULES)
