"""What a rule found: SageMaker's rule names, with evidence and one recommendation each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["NoIssuesFound", "IssuesFound", "NotApplicable", "Error"]

NO_GPU = "no GPU"


@dataclass(frozen=True)
class Evidence:
    """One time and place where a rule triggered."""

    start_s: float
    """Seconds since the epoch."""
    end_s: float
    """Equals `start_s` where the evidence is one sample."""
    where: str
    """The node, core, GPU, worker, phase or tensor."""
    what: str
    """One sentence."""
    values: Mapping[str, float] = field(default_factory=dict)
    """The figures behind the sentence, with units in their names; never NaN."""


@dataclass(frozen=True)
class Verdict:
    """One rule's judgement of one recording."""

    rule: str
    """SageMaker's name, such as StepOutlier or LossNotDecreasing."""
    status: Status
    reason: str
    """One sentence: why this status. For NotApplicable what is missing, for Error what failed."""
    triggered: int = 0
    """How often the rule's condition held."""
    datapoints: int = 0
    """Samples, steps or epochs that the rule looked at."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The rule's own parameters by SageMaker's names, as they were used."""
    evidence: tuple[Evidence, ...] = ()
    """The first and worst of what triggered it, at most MAX_EVIDENCE."""
    recommendation: str = ""
    """What to do, in plain words; empty where nothing is to be done."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Figures for the report, ready for JSON; each rule says in its docstring what it puts here."""


MAX_EVIDENCE = 20


def not_applicable(rule: str, reason: str, parameters: Mapping[str, Any] | None = None, datapoints: int = 0) -> Verdict:
    return Verdict(rule, "NotApplicable", f"not applicable: {reason}", 0, datapoints, parameters or {})
