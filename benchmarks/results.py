"""What a measurement found: figures, each beside its goal where it has one; nothing here measures."""

import math
import statistics
from dataclasses import dataclass
from typing import Any, Literal


class BenchmarkError(Exception):
    """A measurement that could not be made; the message says what failed. A missed goal is no error."""


@dataclass(frozen=True)
class Goal:
    """What a figure ought to be."""

    relation: Literal["at least", "at most"]
    bound: float

    def is_met(self, value: float) -> bool:
        """False for NaN."""
        return value >= self.bound if self.relation == "at least" else value <= self.bound


@dataclass(frozen=True)
class Figure:
    """One number, as measured in each repetition."""

    name: str
    values: tuple[float, ...]
    """One per repetition (or per seed); the figure is their median, or their mean where `statistic` says so."""
    unit: str
    goal: Goal | None = None
    statistic: Literal["median", "mean"] = "median"

    @property
    def value(self) -> float:
        if not self.values:
            return math.nan
        return statistics.median(self.values) if self.statistic == "median" else statistics.fmean(self.values)

    @property
    def verdict(self) -> str:
        """`met`, `missed`, or nothing where there is no goal."""
        if self.goal is None:
            return ""
        return "met" if self.goal.is_met(self.value) else "missed"

    def to_dict(self) -> dict[str, Any]:
        goal = None if self.goal is None else f"{self.goal.relation} {self.goal.bound:g}"
        return {
            "name": self.name, "value": self.value, "unit": self.unit, "statistic": self.statistic,
            "values": list(self.values), "goal": goal, "verdict": self.verdict,
        }  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One measurement."""

    name: str
    title: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()
    """What a reader must know to believe the figures: sizes, what was multiplied, what was left out."""

    def to_dict(self) -> dict[str, Any]:
        figures = [figure.to_dict() for figure in self.figures]
        return {"name": self.name, "title": self.title, "figures": figures, "notes": list(self.notes)}


def each(name: str, values: list[float], unit: str, *, goal: Goal | None = None) -> Figure:
    """The median over the repetitions."""
    return Figure(name, tuple(values), unit, goal)


def ratios(numerators: list[float], denominators: list[float]) -> list[float]:
    """Repetition by repetition, so that what slows both of a pair cancels."""
    return [above / below for above, below in zip(numerators, denominators, strict=True)]


def render(result: Result) -> str:
    """A Markdown table, aligned for a terminal, under the measurement's title."""
    header = ("figure", "value", "spread", "goal", "")
    rows = [header, *(_cells(figure) for figure in result.figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = [f"| {' | '.join(cells)} |" for cells in padded]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    notes = [f"- {note}" for note in result.notes]
    return "\n".join([f"## {result.name}: {result.title}", "", *lines, *([""] if notes else []), *notes])


def _cells(figure: Figure) -> tuple[str, str, str, str, str]:
    number = f"{render_number(figure.value)} {figure.unit}".strip()
    spread = ""
    if len(figure.values) > 1:
        low, high = render_number(min(figure.values)), render_number(max(figure.values))
        spread = f"{figure.statistic} of {len(figure.values)}, {low} to {high}"
    goal = f"{figure.goal.relation} {render_number(figure.goal.bound)}" if figure.goal else ""
    return figure.name, number, spread, goal, figure.verdict


def render_number(value: float) -> str:
    """Four significant digits, never an exponent in the range of these figures."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
