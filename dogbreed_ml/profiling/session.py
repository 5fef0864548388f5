"""One profiled training: collectors started and stopped, the recording judged, everything in one folder.

with profiled(folder, config.profile) as session:
    for result in fit(..., spans=session.spans): ...
profile = session.judge()

FOLDER/
  raw/system/ raw/framework/          what was recorded, in smdebug's formats
  trace/trace.json operators.csv      torch.profiler's window, where profile.trace_steps asks for one
  profiler-output/profiler-reports/   one JSON a rule
  profiler-report.html
  notes.txt                           what was left out, where something was
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from dogbreed_ml.files import write_whole
from dogbreed_ml.policies import ProfileConfig
from dogbreed_ml.profiling.figures import profile_figures
from dogbreed_ml.profiling.readers import read_recording
from dogbreed_ml.profiling.recordings import Recording
from dogbreed_ml.profiling.rules import judge, profiler_report
from dogbreed_ml.profiling.sampler import SystemSampler
from dogbreed_ml.profiling.timeline import Clock, TimelineRecorder
from dogbreed_ml.profiling.traces import OPERATORS_FILE, TRACE_FILE, OperatorTime, TraceWindow, load_operators
from dogbreed_ml.profiling.verdicts import Verdict

logger = logging.getLogger(__name__)

RAW_DIR: Final = "raw"
TRACE_DIR: Final = "trace"
NOTES_FILE: Final = "notes.txt"
"""One note a line, for the report, also when the recording is judged again."""

START: Final = "start"
"""The first span of a recording; takes no time."""

TAG_PREFIX: Final = "profiler."
"""`profiler.StepOutlier=IssuesFound`."""


@dataclass(frozen=True)
class Profile:
    """A recording and what was made of it."""

    folder: Path
    """Where its files are."""
    recording: Recording
    verdicts: tuple[Verdict, ...]
    """Of the profiler's rules, then of the tensor rules where a debugger ran."""
    figures: dict[str, float]
    """By MLflow metric name."""
    operators: tuple[OperatorTime, ...] = ()
    trace_path: Path | None = None

    @property
    def tags(self) -> dict[str, str]:
        """The verdicts as a run's tags."""
        return {f"{TAG_PREFIX}{verdict.rule}": verdict.status for verdict in self.verdicts}


class ProfileSession:
    """The collectors of one training; made by `profiled`."""

    def __init__(self, folder: Path, config: ProfileConfig):
        self.folder = folder
        self.config = config
        clock = Clock.start()
        self.trace = TraceWindow(folder / TRACE_DIR, start=config.trace_start, num_steps=config.trace_steps)
        self.spans = TimelineRecorder(clock, on_step=self.trace.step if config.trace_steps else None)
        """What `fit`, the workbench and the pipeline mark their phases with."""
        self.sampler = SystemSampler(folder / RAW_DIR, interval_ms=config.interval_ms, clock=clock)

    def judge(self, tensor_verdicts: Sequence[Verdict] = (), *, notes: Sequence[str] = ()) -> Profile:
        """Reads what was recorded and judges it; after the `with` of `profiled` has ended.

        `notes` are for the report, one sentence each.
        """
        told = [*notes, *self.sampler.notes, *self.trace.notes]
        if self.spans.num_dropped:
            told.append(f"{self.spans.num_dropped} spans were left out of the timeline: more than it keeps in memory.")
        if told:
            write_whole(self.folder / NOTES_FILE, [f"{note}\n" for note in told])
        return judge_folder(self.folder, self.config, tensor_verdicts=tensor_verdicts)


@contextmanager
def profiled(folder: Path, config: ProfileConfig) -> Iterator[ProfileSession]:
    """Records from the start of the `with` to its end, into `folder`; also where the training fails.

    The timeline is written at the end, so that no step waits for a disk.
    """
    session = ProfileSession(folder, config)
    # In this order where one of them fails too: the trace, the samples, the timeline.
    with ExitStack() as ends:
        ends.callback(session.spans.write, folder / RAW_DIR)
        # The sampler first: smdebug's readers drop events from before its first file.
        ends.enter_context(session.sampler)
        ends.enter_context(session.trace)
        # The first sample follows a little later: this mark is where the job starts.
        with session.spans.span(START):
            pass
        yield session


def judge_folder(
    source: Path, config: ProfileConfig, *, folder: Path | None = None, tensor_verdicts: Sequence[Verdict] = ()
) -> Profile:
    """Judges a recording of ours or of a SageMaker job; `folder` (default: `source`) is where the answers belong.

    Raises ProfileError where `source` has no profiler files, or damaged ones.
    """
    recording = read_recording(source)
    recording = replace(recording, notes=(*recording.notes, *_load_notes(source / NOTES_FILE)))
    for note in recording.all_notes:
        logger.warning("%s", note)
    trace_dir = source / TRACE_DIR
    trace_path = trace_dir / TRACE_FILE
    return Profile(
        folder or source,
        recording,
        (*judge(recording, [profiler_report(config.profiler_rules)]), *tensor_verdicts),
        profile_figures(recording),
        load_operators(trace_dir / OPERATORS_FILE),
        trace_path if trace_path.is_file() else None,
    )


def _load_notes(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
