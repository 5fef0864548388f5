"""What a verb answers: plain values for --json, and a few lines for people."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class DataDescription:
    """A data set, as `data.splits.describe` tells it, and what was quarantined."""

    description: dict[str, Any]
    quarantine: list[dict[str, str]]

    def to_dict(self) -> dict[str, Any]:
        return self.description | {"quarantine": self.quarantine}

    def render(self) -> str:
        told = self.description
        images = told["num_images"]
        smallest, largest = told["smallest_breed"], told["largest_breed"]
        lines = [
            f"{told['source']}: {told['num_breeds']} breeds, {sum(images.values())} images "
            f"(train {images['train']}, valid {images['valid']}, test {images['test']})",
            f"smallest breed: {smallest['breed']} ({smallest['num_images']}), "
            f"largest: {largest['breed']} ({largest['num_images']})",
            f"bad images: {told['num_bad_images']}, duplicates: {told['num_duplicates']}, "
            f"fingerprint: {told['fingerprint']}",
        ]
        lines += [f"  quarantined: {row['path']}: {row['reason']}" for row in self.quarantine]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """One training run."""

    run_id: str
    model_uri: str
    num_epochs: int
    valid: dict[str, float]
    test: dict[str, float]
    test_top1_interval: tuple[float, float]
    seconds: dict[str, float]
    url: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self) -> str:
        return "\n".join(
            [
                f"run     {self.run_id}, {self.num_epochs} epochs",
                f"valid   top-1 {self.valid['accuracy_top1']:.2%}",
                _render_test(self.test, self.test_top1_interval),
                f"model   {self.model_uri}",
                _render_seconds(self.seconds),
                _render_link(self.url),
            ]
        )


@dataclass(frozen=True, kw_only=True)
class TuneSummary:
    """One search."""

    parent_run_id: str
    study_name: str
    num_trials: int
    best_trial: int
    metric: str
    best_value: float
    best_params: dict[str, Any]
    model_uri: str
    model_name: str
    model_version: int
    test: dict[str, float]
    test_top1_interval: tuple[float, float]
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage: start, data, features, search, refit, evaluation, model, report."""
    cache_hits: int = 0
    """Tables of features that were there already."""
    resumed: bool = False
    url: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self) -> str:
        params = ", ".join(f"{name}={_render_value(value)}" for name, value in self.best_params.items())
        return "\n".join(
            [
                f"search  {self.study_name}: {self.num_trials} trials{', resumed' if self.resumed else ''}",
                f"best    trial {self.best_trial}: {self.metric} {self.best_value:.4f} with {params}",
                _render_test(self.test, self.test_top1_interval),
                f"model   {self.model_name} version {self.model_version}, alias challenger",
                _render_seconds(self.seconds),
                _render_link(self.url),
            ]
        )


def render_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table: heads first, columns as wide as their widest cell, no blanks at the ends."""
    lines = [heads, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _render_value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _render_test(metrics: dict[str, float], interval: tuple[float, float]) -> str:
    low, high = interval
    return (
        f"test    top-1 {metrics['accuracy_top1']:.2%} (95 % interval {low:.2%} to {high:.2%}), "
        f"top-5 {metrics['accuracy_top5']:.2%}"
    )


def _render_seconds(seconds: dict[str, float]) -> str:
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items())
    return f"seconds {sum(seconds.values()):.1f} ({stages})"


def _render_link(url: str | None) -> str:
    return f"look    {url}" if url else "look    make ui"
