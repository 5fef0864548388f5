"""The profile of any run that trains: recorded while it does, judged and attached at its end."""

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from torch import nn

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.data.loaders import ImageBatches
from dogbreed_ml.data.splits import Split
from dogbreed_ml.debugging.debugger import Debugger
from dogbreed_ml.debugging.epochs import judge_epochs
from dogbreed_ml.errors import DogbreedError, ProfileError
from dogbreed_ml.evaluation import compute_metrics
from dogbreed_ml.policies import ProfileConfig
from dogbreed_ml.profiling.recordings import SEARCH, LoaderProcesses
from dogbreed_ml.profiling.report import save_profiler_report
from dogbreed_ml.profiling.session import TAG_PREFIX, Profile, ProfileSession, profiled
from dogbreed_ml.profiling.verdicts import Verdict
from dogbreed_ml.ruleparameters import RuleName
from dogbreed_ml.spans import NO_SPANS, Spans
from dogbreed_ml.train import Batches, EpochResult, FitState, Metrics, build_loss, fit
from dogbreed_ml.workbench import Workbench, uses_features

if TYPE_CHECKING:
    from dogbreed_ml.tracking import Run

logger = logging.getLogger(__name__)

PROFILES_DIR: Final = ".dogbreed/profiles"
ARTIFACT_DIR: Final = "profiler"
"""Of the run, and of its folder under PROFILES_DIR; tensors lie beside the latter and are not uploaded."""
TENSORS_DIR: Final = "tensors"
STOPPED_BY_TAG: Final = f"{TAG_PREFIX}stopped_by"
"""The rule of profile.stop_on that ended a run's training."""


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
        self.report_path = save_report(self._profile, title=f"Run {run.run_id}")
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


def save_report(found: Profile, *, title: str) -> Path:
    found.folder.mkdir(parents=True, exist_ok=True)
    return save_profiler_report(found.folder, found.recording, found.verdicts, title=title, operators=found.operators)
