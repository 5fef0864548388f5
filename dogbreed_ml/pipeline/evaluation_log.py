"""What `dogbreed evaluate` answers, and how it is recorded: an evaluation run, and tags on the version."""

import json
import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from dogbreed_ml.calibration_figures import breeds_figure, coverage_figure, reliability_figure
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.data.splits import Splits, quarantine_rows
from dogbreed_ml.evaluation import Evaluation, ProbabilityReport
from dogbreed_ml.figures import confused_figure, confusion_figure, mistakes_figure
from dogbreed_ml.quantization import QuantizationReport

if TYPE_CHECKING:
    from dogbreed_ml.registry import ModelVersion
    from dogbreed_ml.tracking import Run, Tracker

_NUM_WEAKEST = 3


@dataclass(frozen=True, kw_only=True)
class EvaluationSummary:
    """The answer of `dogbreed evaluate`."""

    run_id: str
    model: str
    data: str
    """For people: where the images come from."""
    split: Literal["test", "folder"]
    """Prefix of the logged metrics."""
    trained_on: str
    """Whether the model may have been trained on these images."""
    metrics: dict[str, float]
    """accuracy_top1, accuracy_top5, f1_macro, loss (log loss, nats), ece; loss_raw and ece_raw without temperature."""
    top1_interval: tuple[float, float]
    num_images: int
    temperature: float
    backend: str
    images_per_s: float
    """Of decoding and recognising, one process."""
    latency_ms: dict[str, float]
    """One image's forward pass by back end, where `auto` compared them."""
    flip: bool
    min_probability: float
    answered: tuple[float, float]
    """Coverage and accuracy at min_probability; accuracy is NaN where nothing is answered."""
    weakest: tuple[tuple[str, float, int], ...]
    """The weakest breeds: name, recall, photographs."""
    int8: QuantizationReport | None
    url: str | None

    def to_dict(self) -> dict[str, Any]:
        coverage, accuracy = self.answered
        # JSON has no NaN.
        answered = {"coverage": coverage, "accuracy": accuracy if coverage else None}
        return asdict(self) | {"answered": answered, "int8": self.int8.to_dict() if self.int8 else None}

    def render(self) -> str:
        figures, (low, high) = self.metrics, self.top1_interval
        weakest = ", ".join(f"{breed} {recall:.0%} of {count}" for breed, recall, count in self.weakest)
        lines = [
            f"model   {self.model}, {self.backend}{', with mirror images' if self.flip else ''}",
            f"data    {self.data}, {self.num_images} images: {self.trained_on}",
            f"top-1   {figures['accuracy_top1']:.2%} (95 % interval {low:.2%} to {high:.2%}), "
            f"top-5 {figures['accuracy_top5']:.2%}, macro F1 {figures['f1_macro']:.4f}",
            f"trust   log loss {figures['loss']:.4f}, calibration error {figures['ece']:.2%} "
            f"(before the temperature of {self.temperature:.2f}: {figures['loss_raw']:.4f}, {figures['ece_raw']:.2%})",
            f"weakest {weakest}",
            f"speed   {self.images_per_s:.1f} images/s{self._render_latencies()}",
        ]
        if self.min_probability > 0:
            coverage, accuracy = self.answered
            right = f"{accuracy:.2%} of them right" if coverage else "none of them right"
            lines.append(f"unsure  below {self.min_probability:g}: {coverage:.2%} answered, {right}")
        if self.int8 is not None:
            lines.append(
                f"int8    {'accepted' if self.int8.accepted else 'refused'}: valid top-1 "
                f"{self.int8.accuracy_fp32:.2%} in fp32, {self.int8.accuracy_int8:.2%} in INT8"
            )
        return "\n".join([*lines, f"run     {self.run_id}", f"look    {self.url or 'make ui'}"])

    def _render_latencies(self) -> str:
        times = ", ".join(f"{name} {value:.1f}" for name, value in self.latency_ms.items())
        return f"; one image, ms: {times}" if times else ""


def weakest_breeds(evaluation: Evaluation) -> tuple[tuple[str, float, int], ...]:
    """The breeds with the lowest recall among those that have photographs."""
    shown = sorted((each for each in evaluation.breeds if each.support), key=lambda each: (each.recall, each.f1))
    return tuple((each.breed, each.recall, each.support) for each in shown[:_NUM_WEAKEST])


def log_evaluation_run(
    run: "Run",
    summary: EvaluationSummary,
    *,
    evaluation: Evaluation,
    report: ProbabilityReport,
    splits: Splits,
    config: ExperimentConfig,
    context: Context,
) -> None:
    """Config, command, data set, tables and figures; the metrics are `logged_metrics`."""
    from dogbreed_ml.runs import data_inputs

    run.log_config(config)
    run.log_environment(project_dir=context.project_dir, argv=context.argv, seed=config.train.seed)
    run.log_text(shlex.join(context.argv), "command.txt")
    run.log_inputs(data_inputs(splits, names=("test",)))
    run.set_tags(
        {"evaluation.backend": summary.backend, "evaluation.flip": str(summary.flip).lower()}
        | {f"latency_ms.{name}": f"{value:.2f}" for name, value in summary.latency_ms.items()}
    )
    if splits.bad_images:
        run.log_table(quarantine_rows(splits), "data/quarantine.csv")
    samples = splits.test.samples
    mistakes = [
        {"photograph": f"{samples[each.index].path.parent.name}/{samples[each.index].path.name}"} | vars(each)
        for each in report.mistakes
    ]
    run.log_table(evaluation.breed_rows(), "evaluation/breeds.csv")
    run.log_table(evaluation.confused_rows(), "evaluation/confused.csv")
    run.log_table(report.coverage_rows(), "evaluation/coverage.csv")
    run.log_table(report.reliability_rows(), "evaluation/reliability.csv")
    if mistakes:
        run.log_table(mistakes, "evaluation/mistakes.csv")
    run.log_figure(confusion_figure(evaluation), "evaluation/confusion.png")
    run.log_figure(breeds_figure(evaluation), "evaluation/breeds.png")
    run.log_figure(reliability_figure(report), "evaluation/reliability.png")
    run.log_figure(coverage_figure(report, min_probability=summary.min_probability), "evaluation/coverage.png")
    run.log_figure(mistakes_figure(report.mistakes, samples), "evaluation/mistakes.png")
    if evaluation.confused_pairs:
        run.log_figure(confused_figure(evaluation.confused_pairs, samples), "evaluation/confused.png")
    run.log_text(json.dumps(summary.to_dict(), indent=2), "evaluation/summary.json")


def logged_metrics(summary: EvaluationSummary) -> dict[str, float]:
    """By MLflow name."""
    low, high = summary.top1_interval
    coverage, accuracy = summary.answered
    figures = summary.metrics | {"accuracy_top1_low": low, "accuracy_top1_high": high}
    if summary.min_probability > 0:
        figures |= {"coverage": coverage} | ({"accuracy_answered": accuracy} if coverage else {})
    metrics = {f"{summary.split}/{name}": value for name, value in figures.items()}
    metrics |= {"temperature": summary.temperature, "images_per_s": summary.images_per_s}
    if summary.int8 is not None:
        metrics |= {
            "valid/accuracy_top1_fp32": summary.int8.accuracy_fp32,
            "valid/accuracy_top1_int8": summary.int8.accuracy_int8,
        }
    return metrics


def tag_version(tracker: "Tracker", version: "ModelVersion", summary: EvaluationSummary) -> None:
    """The main figures as tags of the version; those of a folder stay with their run."""
    from dogbreed_ml.registry import set_version_tags

    tags: dict[str, str] = {}
    if summary.split == "test":
        names = ("accuracy_top1", "accuracy_top5", "f1_macro", "loss", "ece")
        tags |= {f"evaluation.{name}": f"{summary.metrics[name]:.6g}" for name in names}
        tags |= {
            "evaluation.run_id": summary.run_id,
            "evaluation.backend": summary.backend,
            "evaluation.images_per_s": f"{summary.images_per_s:g}",
            "evaluation.data": summary.trained_on,
        }
    if summary.int8 is not None:
        tags |= {
            "int8.accepted": str(summary.int8.accepted).lower(),
            "int8.accuracy_top1": f"{summary.int8.accuracy_int8:.6g}",
            "int8.accuracy_loss": f"{summary.int8.accuracy_loss:.6g}",
        }
    set_version_tags(tracker, version, tags)
