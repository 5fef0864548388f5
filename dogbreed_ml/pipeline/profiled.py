"""`dogbreed profile`: a profiled run, or a recording judged."""

import hashlib
import json
import logging
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dogbreed_ml.backend import device_of
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.data.s3 import mirror_prefix
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.debugging.debugger import has_tensors, judge_tensors
from dogbreed_ml.errors import ProfileError
from dogbreed_ml.features import CHOICES_FILE
from dogbreed_ml.pipeline.runprofiler import ARTIFACT_DIR, PROFILES_DIR, TENSORS_DIR, profiled_run, save_report
from dogbreed_ml.profiling.rulereports import load_rule_reports
from dogbreed_ml.profiling.session import judge_folder
from dogbreed_ml.profiling.verdicts import Verdict
from dogbreed_ml.ruleparameters import TENSOR_RULES
from dogbreed_ml.workbench import Workbench, keeping_features, uses_features

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

DEBUG_OUTPUT_DIR: Final = "debug-output"
"""Where a SageMaker job's hook saves tensors, beside profiler-output."""

_PASS_NOTE: Final = (
    "The training runs the whole network on images and keeps no features: the feature pass was made for this profile "
    "alone, through the frozen whole network on plain images, and counts as initialisation."
)

AS_RECORDED: Final = " (judged during the run, by its parameters)"
"""Ends the reason of a verdict that was not made anew."""

_RUN_ID: Final = re.compile(r"[0-9a-f]{32}")
_RECORDED_SUFFIXES: Final = frozenset({".json", ".csv", ".tfevents", ".ts"})
"""Profiler files, tensors with their index, and smdebug's mark of a job's end."""


@dataclass(frozen=True, kw_only=True)
class ProfileSummary:
    """A profile's verdicts and where to read on."""

    run_id: str | None
    """Null where a recording was judged without a run."""
    report_path: str
    verdicts: tuple[Verdict, ...]
    figures: dict[str, float]
    url: str | None = None

    def to_dict(self) -> dict[str, Any]:
        verdicts = [json.loads(json.dumps(asdict(verdict))) for verdict in self.verdicts]
        return asdict(replace(self, verdicts=())) | {"verdicts": verdicts}

    def render(self) -> str:
        rule_width = max(len(verdict.rule) for verdict in self.verdicts)
        lines = []
        for verdict in self.verdicts:
            lines.append(f"{verdict.rule:{rule_width}}  {verdict.status:13}  {verdict.reason}")
            if verdict.recommendation:
                lines.append(f"{'':{rule_width}}  {'':13}  -> {verdict.recommendation}")
        lines.append(f"report  {self.report_path}")
        if self.run_id is not None:
            lines.append(f"run     {self.run_id}{f', {self.url}' if self.url else ''}")
        return "\n".join(lines)


def profile(config: ExperimentConfig, *, context: Context) -> ProfileSummary:
    """A profiled training run. A feature pass is always made, cold: the kept features are not looked at, and where the
    training keeps none, a pass is made for the profile alone."""
    from dogbreed_ml.tracking import Tracker

    profiled_config = replace(config, profile=replace(config.profile, enabled=True))
    tracker = Tracker.open(project_dir=context.project_dir, config=config.tracking, environment=context.environment)
    with tracker, tracker.start_run(config.name, run_name="profile") as run:
        run.log_config(profiled_config)
        run.log_environment(project_dir=context.project_dir, argv=context.argv, seed=config.train.seed)
        run.log_text(shlex.join(context.argv), "command.txt")
        with ExitStack() as stack:
            profiler = stack.enter_context(profiled_run(profiled_config, run, project_dir=context.project_dir))
            with profiler.spans.span("data"):
                splits = load_splits(config.data, project_dir=context.project_dir, progress=context.progress)
            run.log_splits(splits)
            cold = stack.enter_context(_cold_features(profiled_config, context.project_dir))
            bench = Workbench(splits, context.project_dir, device_of(), context.progress, spans=profiler.spans)
            stack.enter_context(closing(bench))
            with profiler.spans.span("features"):
                bench.feeds(keeping_features(cold))
                feeds = bench.feeds(cold)
            if not uses_features(cold):
                profiler.note(_PASS_NOTE)
            for result in profiler.epochs(bench, cold, bench.model(cold), feeds.train, valid=feeds.valid):
                logger.info("%s", result.render())
                run.log_epoch(result)
        found = profiler.profile
        return ProfileSummary(
            run_id=run.run_id,
            report_path=str(profiler.report_path),
            verdicts=found.verdicts,
            figures=found.figures,
            url=tracker.run_url(run),
        )


def judge_source(source: str, config: ExperimentConfig, *, context: Context) -> ProfileSummary:
    """Judges recorded files without a training: a folder, s3://bucket/prefix, or the id of a profiled run.

    Ours and a SageMaker job's are the same to it; where saved tensors lie beside them, they are judged too, and where
    none do, the tensor rules' verdicts are those of the run itself. The report is kept under PROFILES_DIR.
    """
    parent_dir = context.project_dir / PROFILES_DIR
    if source.startswith("s3://"):
        parent_dir.mkdir(parents=True, exist_ok=True)
        folder = mirror_prefix(source, parent_dir, progress=context.progress, suffixes=_RECORDED_SUFFIXES)
        recorded = folder
        beside = recorded
    elif Path(source).is_dir():
        recorded = Path(source).resolve()
        path_hash = hashlib.sha256(str(recorded).encode()).hexdigest()[:8]
        folder = _emptied(parent_dir / f"from-{recorded.name}-{path_hash}")
        if (recorded / ARTIFACT_DIR).is_dir():
            recorded = recorded / ARTIFACT_DIR
        beside = recorded
    else:
        # Not into the run's own folder, whose report is by its own parameters; its tensors are there alone.
        recorded = folder = _fetched_run(source, config, context, parent_dir)
        beside = parent_dir / source / ARTIFACT_DIR
    tensors_dir = _tensors_beside(beside)
    if tensors_dir is not None:
        tensors = judge_tensors(tensors_dir, parameters=config.profile.tensor_rules)
    else:
        tensors = tuple(_as_recorded(verdict) for verdict in load_rule_reports(recorded, TENSOR_RULES))
    found = judge_folder(recorded, config.profile, folder=folder, tensor_verdicts=tensors)
    return ProfileSummary(
        run_id=None, report_path=str(save_report(found, title=source)), verdicts=found.verdicts, figures=found.figures
    )


def _as_recorded(verdict: Verdict) -> Verdict:
    """Tensors stay on the machine of their run, and epochs' figures are in its metrics: neither is in the files."""
    return replace(verdict, reason=f"{verdict.reason.removesuffix(AS_RECORDED)}{AS_RECORDED}")


def _tensors_beside(recorded: Path) -> Path | None:
    """Ours lie beside the profile's folder, a SageMaker job's beside its profiler-output."""
    folders = (recorded / DEBUG_OUTPUT_DIR, recorded.parent / DEBUG_OUTPUT_DIR, recorded.parent / TENSORS_DIR)
    return next((folder for folder in folders if has_tensors(folder)), None)


def _emptied(folder: Path) -> Path:
    """A new, empty folder: nothing of an earlier judgement stays beside this one's."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _fetched_run(run_id: str, config: ExperimentConfig, context: Context, parent_dir: Path) -> Path:
    from dogbreed_ml.tracking import Tracker

    unknown = ProfileError(f"--from must be a folder, s3://bucket/prefix or the id of a run, got {run_id!r}.")
    if not _RUN_ID.fullmatch(run_id):
        raise unknown
    tracker = Tracker.open(project_dir=context.project_dir, config=config.tracking, environment=context.environment)
    with tracker:
        if not tracker.has_run(run_id):
            raise unknown
        return tracker.fetch_artifacts(run_id, ARTIFACT_DIR, _emptied(parent_dir / f"from-{run_id}"))


@contextmanager
def _cold_features(config: ExperimentConfig, project_dir: Path) -> Iterator[ExperimentConfig]:
    """The config with an empty folder of features, which goes away; the choice of a back end is taken along."""
    with tempfile.TemporaryDirectory(prefix="dogbreed-features-") as folder:
        choices = project_dir / config.features.dir / CHOICES_FILE
        if choices.is_file():
            shutil.copy(choices, Path(folder) / CHOICES_FILE)
        yield replace(config, features=replace(config.features, dir=folder))
