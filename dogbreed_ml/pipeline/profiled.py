"""`dogbreed profile`: a profiled run, or a recording judged; and the profile of any other run that trains."""

import hashlib
import json
import logging
import re
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from torch import nn

from dogbreed_ml.backend import device_of
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.data.loaders import ImageBatches
from dogbreed_ml.data.s3 import mirror_prefix
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.data.splits import Split
from dogbreed_ml.debugging.debugger import Debugger, has_tensors, judge_tensors
from dogbreed_ml.debugging.epochs import judge_epochs
from dogbreed_ml.errors import DogbreedError, ProfileError
from dogbreed_ml.evaluation import compute_metrics
from dogbreed_ml.features import CHOICES_FILE
from dogbreed_ml.policies import ProfileConfig
from dogbreed_ml.profiling.recordings import SEARCH, LoaderProcesses
from dogbreed_ml.profiling.report import save_profiler_report
from dogbreed_ml.profiling.rulereports import load_rule_reports
from dogbreed_ml.profiling.session import TAG_PREFIX, Profile, ProfileSession, judge_folder, profiled
from dogbreed_ml.profiling.verdicts import Verdict
from dogbreed_ml.ruleparameters import TENSOR_RULES, RuleName
from dogbreed_ml.spans import NO_SPANS, Spans
from dogbreed_ml.train import Batches, EpochResult, FitState, Metrics, build_loss, fit
from dogbreed_ml.workbench import Workbench, keeping_features, uses_features

if TYPE_CHECKING:
    from dogbreed_ml.tracking import Run

logger = logging.getLogger(__name__)

PROFILES_DIR: Final = ".dogbreed/profiles"
ARTIFACT_DIR: Final = "profiler"
"""Of the run, and of its folder under PROFILES_DIR; tensors lie beside the latter and are not uploaded."""
TENSORS_DIR: Final = "tensors"
DEBUG_OUTPUT_DIR: Final = "debug-output"
"""Where a SageMaker job's hook saves tensors, beside profiler-output."""

STOPPED_BY_TAG: Final = f"{TAG_PREFIX}stopped_by"
"""The rule of profile.stop_on that ended a run's training."""

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
        run_id=None, report_path=str(_save_report(found, title=source)), verdicts=found.verdicts, figures=found.figures
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


class RunProfiler:
    """What a run that trains asks of its profile; off, it costs nothing."""

    spans: Spans = NO_SPANS
    report_path: Path | None = None
    stopped_by: RuleName | None = None
    """The rule of profile.stop_on that ended the training, once its epochs are over."""

    def __init__(self, config: ProfileConfig, session: ProfileSession | None = None, folder: Path | None = None):
        self._config = config
        self._session = session
        self._folder = folder
        self._profile: Profile | None = None
        self._tensor_verdicts: tuple[Verdict, ...] = ()
        self._notes: tuple[str, ...] = ()
        self._ending: Callable[[], tuple[Verdict, ...]] | None = None
        """Judges the training, once it has begun and until that was done."""
        if session is not None:
            self.spans = session.spans

    @property
    def profile(self) -> Profile:
        """Once the `with` of `profiled_run` has ended; ProfileError where profiling is off."""
        if self._profile is None:
            raise ProfileError("There is a profile only where profile.enabled is true, and after the training.")
        return self._profile

    def note(self, text: str) -> None:
        """One sentence for the report and the log."""
        self._notes += (text,)

    def note_data(self, seconds: float) -> None:
        """For a run that had its data before its profile began."""
        self.note(
            f"The data was fetched, checked and split before the recording began, in {seconds:.1f} s; `dogbreed "
            "profile` records that too."
        )

    @contextmanager
    def search(self, bench: Workbench) -> Iterator[None]:
        """A search is one span: the steps of its trials, of as many hyperparameters, are not those of one training."""
        bench.spans = NO_SPANS
        try:
            with self.spans.span(SEARCH):
                yield
        finally:
            bench.spans = self.spans

    def epochs(
        self,
        bench: Workbench,
        config: ExperimentConfig,
        model: nn.Module,
        batches: Batches,
        *,
        valid: Batches | None,
        metrics: Metrics = compute_metrics,
        state: FitState | None = None,
    ) -> Generator[EpochResult]:
        """As `fit`, recorded; the tensor rules watch where profile.debugger is on, and may end it."""
        loss_function = build_loss(batches.labels, config.train, bench.num_classes)
        results: Iterator[EpochResult] = fit(
            model,
            batches,
            valid=valid,
            config=config.train,
            metrics=metrics,
            num_classes=bench.num_classes,
            device=bench.device,
            loss_function=loss_function,
            spans=self.spans,
            state=state,
        )
        if self._session is None:
            yield from results
            return
        if not uses_features(config):
            self._session.spans.loader = LoaderProcesses(config.train.num_workers)
        if self._config.debugger:
            debugger = self._open_debugger(bench.splits.classes)
            self._ending = partial(self._close_debugger, debugger)
            debugger.watch(model.to(bench.device), loss_function)
            results = debugger.epochs(results, num_epochs=config.train.num_epochs)
        seen: list[EpochResult] = []
        if not self._config.debugger:
            counts = label_counts(bench.splits.train, bench.splits.classes)
            self._ending = partial(judge_epochs, seen, label_counts=counts, parameters=self._config.tensor_rules)
        try:
            for result in results:
                seen.append(result)
                yield result
        finally:
            if (loader := self._session.spans.loader) is not None:
                self._session.spans.loader = replace(loader, pids=_worker_pids(train=batches, valid=valid))
            self._end_training()

    def _open_debugger(self, classes: Sequence[str]) -> Debugger:
        assert self._folder is not None
        return Debugger.open(
            self._folder / TENSORS_DIR,
            save_interval=self._config.save_interval,
            max_gib=self._config.max_gib,
            stop_on=self._config.stop_on,
            parameters=self._config.tensor_rules,
            class_names=classes,
        )

    def _close_debugger(self, debugger: Debugger) -> tuple[Verdict, ...]:
        debugger.close()
        self._notes += debugger.notes
        self.stopped_by = debugger.stopped_by
        return debugger.verdicts

    def _end_training(self) -> None:
        """Judges the tensors, or the epochs, once; also where whoever reads the epochs fails and never comes back."""
        if self._ending is not None:
            ending, self._ending = self._ending, None
            self._tensor_verdicts = ending()

    def finish(self, run: "Run") -> None:
        """Judges, writes the report and attaches everything to the run."""
        if self._session is None:
            return
        self._end_training()
        if self.stopped_by is not None:
            run.set_tags({STOPPED_BY_TAG: self.stopped_by})
        self._profile = self._session.judge(self._tensor_verdicts, notes=self._notes)
        self.report_path = _save_report(self._profile, title=f"Run {run.run_id}")
        run.set_tags(self._profile.tags)
        run.log_metrics(self._profile.figures)
        run.log_artifact(self._profile.folder, artifact_dir=ARTIFACT_DIR)


@contextmanager
def profiled_run(config: ExperimentConfig, run: "Run", *, project_dir: Path) -> Iterator[RunProfiler]:
    """Profiles the body where profile.enabled or profile.debugger is true, and attaches the profile to the run at its
    end.

    Where the body fails, what was recorded until then is judged and attached all the same; an interrupt ends at once,
    and leaves the recording in PROFILES_DIR.
    """
    if not config.profile.enabled and not config.profile.debugger:
        yield RunProfiler(config.profile)
        return
    folder = project_dir / PROFILES_DIR / run.run_id
    shutil.rmtree(folder, ignore_errors=True)
    profiler: RunProfiler | None = None
    try:
        with profiled(folder / ARTIFACT_DIR, config.profile) as session:
            profiler = RunProfiler(config.profile, session, folder)
            yield profiler
    except Exception:
        if profiler is not None:
            _finish_failed(profiler, run)
        raise
    except KeyboardInterrupt:
        logger.warning("What was recorded is kept: `dogbreed profile --from %s` judges it.", folder)
        raise
    profiler.finish(run)


def _finish_failed(profiler: RunProfiler, run: "Run") -> None:
    """The cause of the failure is what is raised, whatever becomes of its profile."""
    try:
        profiler.finish(run)
    except (DogbreedError, OSError) as error:
        logger.warning("What was recorded of the failed run could not be judged: %s", error)
    else:
        logger.warning("The run failed; what was recorded of it is judged in %s.", profiler.report_path)


def _worker_pids(**feeds: Batches | None) -> dict[str, tuple[int, ...]]:
    """The processes that load images, by split."""
    return {split: feed.worker_pids for split, feed in feeds.items() if isinstance(feed, ImageBatches)}


def label_counts(split: Split, classes: Mapping[int, str] | tuple[str, ...]) -> dict[str, int]:
    """Images of each breed in a split."""
    counts = Counter(int(label) for label in split.labels)
    return {classes[label]: counts[label] for label in sorted(counts)}


@contextmanager
def _cold_features(config: ExperimentConfig, project_dir: Path) -> Iterator[ExperimentConfig]:
    """The config with an empty folder of features, which goes away; the choice of a back end is taken along."""
    with tempfile.TemporaryDirectory(prefix="dogbreed-features-") as folder:
        choices = project_dir / config.features.dir / CHOICES_FILE
        if choices.is_file():
            shutil.copy(choices, Path(folder) / CHOICES_FILE)
        yield replace(config, features=replace(config.features, dir=folder))


def _save_report(found: Profile, *, title: str) -> Path:
    found.folder.mkdir(parents=True, exist_ok=True)
    return save_profiler_report(found.folder, found.recording, found.verdicts, title=title, operators=found.operators)
