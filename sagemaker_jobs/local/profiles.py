"""What profiles a training job: its ProfilerConfig read, its machine sampled, its rules judged and all of it in S3.

S3OutputPath/JOB/profiler-output/system/incremental/...      samples, from a process beside the job
                 profiler-output/framework/pevents/...       what the job itself wrote into $SM_OUTPUT_DIR/profiler
                 rule-output/RULE/profiler-output/...        the report of each rule configuration

Sampling and judging are rulejudge.py's, a process of its own: pandas and plotly take a second to load.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dogbreed_ml.errors import DataError
from sagemaker_jobs.local.container import Host
from sagemaker_jobs.local.errors import ServiceError
from sagemaker_jobs.local.processes import Process

if TYPE_CHECKING:
    from sagemaker_jobs.local.service import LocalSageMaker

logger = logging.getLogger(__name__)

KIND: Final = "training-job"
DEFAULT_INTERVAL_MS: Final = 500
RECORDED_DIR: Final = "profiler-output"
MAX_DETAILS: Final = 1024
_STATUSES: Final = "ProfilerRuleEvaluationStatuses"
_NEVER_RECORDED: Final = "not evaluated: nothing was recorded of this job."
_PROFILER_OFF: Final = "not evaluated: ProfilerConfig has no S3OutputPath, or DisableProfiler."
_NO_TENSORS: Final = "not evaluated: the local SageMaker saves and judges no tensors; only profiler rules are judged."
SERVER_ENDED: Final = "not evaluated: the local SageMaker ended before."
_PROGRAM: Final = "sagemaker_jobs.local.rulejudge"


def profiling_status(params: Mapping[str, Any]) -> str:
    """ProfilingStatus: whether a request, or a record, asks for a profile."""
    config = params.get("ProfilerConfig", {})
    return "Enabled" if config.get("S3OutputPath") and not config.get("DisableProfiler") else "Disabled"


def rule_statuses(params: Mapping[str, Any], *, time_s: float) -> dict[str, Any]:
    """The rule members of DescribeTrainingJob for a job that has not ended; none where no rule was asked for.

    SageMaker knows no NotApplicable: what is never judged is Stopped, and its StatusDetails say why.
    """
    found = {}
    is_on = profiling_status(params) == "Enabled"
    for member, answer, status, details in (
        (
            "ProfilerRuleConfigurations", _STATUSES, "InProgress" if is_on else "Stopped",
            None if is_on else _PROFILER_OFF,
        ),
        ("DebugRuleConfigurations", "DebugRuleEvaluationStatuses", "Stopped", _NO_TENSORS),
    ):  # fmt: skip
        names = [each["RuleConfigurationName"] for each in params.get(member, ())]
        if names:
            found[answer] = [rule_status(name, status, details, time_s=time_s) for name in names]
    return found


def rule_status(name: str, status: str, details: str | None = None, *, time_s: float) -> dict[str, Any]:
    """One RuleEvaluationStatus; its details on one line, as its shape demands."""
    found = {"RuleConfigurationName": name, "RuleEvaluationStatus": status, "LastModifiedTime": time_s}
    return found | ({"StatusDetails": " ".join(details.split())[:MAX_DETAILS]} if details else {})


def rule_output_uri(params: Mapping[str, Any], job_name: str, rule: Mapping[str, Any]) -> str:
    """Where a rule configuration's report belongs; its own S3OutputPath goes before the profiler's."""
    base = rule.get("S3OutputPath") or params["ProfilerConfig"]["S3OutputPath"]
    return f"{base.rstrip('/')}/{job_name}/rule-output/{rule['RuleConfigurationName']}"


@dataclass
class _Recording:
    """One job's profile while it grows."""

    folder: Path
    created_s: float
    """CreationTime: a deleted job's name may be in use again."""
    samplers: list[Process] = field(default_factory=list)
    """One a life of the job."""
    pipes: list[int] = field(default_factory=list)
    """Of the samplers that sample: closed, it tells them to end."""

    @property
    def recorded_dir(self) -> Path:
        return self.folder / RECORDED_DIR

    @property
    def log_path(self) -> Path:
        return self.folder / "log.txt"

    def tell_samplers(self) -> None:
        """Their last sample is that of now."""
        # Another thread may be at it.
        with contextlib.suppress(IndexError):
            while True:
                os.close(self.pipes.pop())


class Profiles:
    """The profiles of all jobs of a server; a job that asks for none costs nothing."""

    def __init__(self, service: "LocalSageMaker") -> None:
        self._service = service
        self._root_dir = service.root_dir / "profiles"
        self._recordings: dict[str, _Recording] = {}
        self._threads: list[threading.Thread] = []
        self._judging: Process | None = None
        self._is_closing = False
        self._lock = threading.Lock()
        # One report at a time: each keeps a core busy for a second or two that running jobs need.
        self._turn = threading.Lock()

    def recover(self) -> None:
        """Ends what a server before left in progress."""
        for record in self._service.records.list(KIND):
            self._settle(record, SERVER_ENDED)
        shutil.rmtree(self._root_dir, ignore_errors=True)

    def close(self) -> None:
        """Gives up the reports that are not there yet."""
        with self._lock:
            self._is_closing = True
            if self._judging:
                self._judging.kill()
            threads = list(self._threads)
        for recording in self._recordings.values():
            recording.tell_samplers()
        for thread in threads:
            thread.join()
        shutil.rmtree(self._root_dir, ignore_errors=True)

    def start(self, name: str, hosts: Sequence[Host]) -> None:
        """Begins to sample, for each host; called once the job's own processes are on their way."""
        record = self._service.records.get(KIND, name)
        if profiling_status(record) != "Enabled":
            return
        recording = self._recordings.get(name)
        if recording is None:
            recording = _Recording(self._root_dir / uuid.uuid4().hex[:8], record["CreationTime"])
            recording.recorded_dir.mkdir(parents=True)
            self._recordings[name] = recording
        interval_ms = record["ProfilerConfig"].get("ProfilingIntervalInMilliseconds", DEFAULT_INTERVAL_MS)
        read_fd, write_fd = os.pipe()
        try:
            flags = [f"--interval-ms={interval_ms}", f"--until-fd={read_fd}", *(host.name for host in hosts)]
            process = self._run("sample", recording, *flags, pass_fds=[read_fd])
        finally:
            os.close(read_fd)
        recording.samplers.append(process)
        recording.pipes.append(write_fd)
        # An update since the record was read found no pipe to close.
        if profiling_status(self._service.records.get(KIND, name)) != "Enabled":
            recording.tell_samplers()

    def pause(self, name: str, hosts: Sequence[Host]) -> None:
        """Ends the sampling and takes along what the job itself recorded, before its folder goes."""
        recording = self._recordings.get(name)
        if recording is None:
            return
        recording.tell_samplers()
        for host in hosts:
            for kind in ("framework", "system"):
                own = host.profiler_dir / kind
                if not own.is_dir() or own.is_symlink():
                    continue
                try:
                    shutil.copytree(own, recording.recorded_dir / kind, dirs_exist_ok=True, ignore=_odd_files)
                except OSError as error:
                    # A profile is no reason for a job to fail.
                    logger.warning("The profiler files of %s were not all taken along: %s", name, error)

    def disable(self, name: str) -> None:
        """Ends the sampling of a job that runs on."""
        if recording := self._recordings.get(name):
            recording.tell_samplers()

    def finish(self, record: Mapping[str, Any], *, is_server_closing: bool) -> None:
        """Uploads and judges, in a thread of its own; for a job that just ended."""
        with self._lock:
            recording = self._recordings.pop(record["TrainingJobName"], None)
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            if recording is None or is_server_closing or self._is_closing:
                details = SERVER_ENDED if is_server_closing else _NEVER_RECORDED
            else:
                name = f"profile-{record['TrainingJobName']}"
                thread = threading.Thread(target=self._complete, args=(record, recording), name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
                return
        if recording:
            recording.tell_samplers()
        self._settle(record, details)

    def _complete(self, record: Mapping[str, Any], recording: _Recording) -> None:
        statuses = _all_rules(record, "Error", "InternalServerError: the server's log has the cause.")
        try:
            for process in recording.samplers:
                process.wait()
            with self._turn:
                if self._is_closing:
                    statuses = _all_rules(record, "Stopped", SERVER_ENDED)
                else:
                    statuses = self._publish(record, recording)
        except DataError as error:
            statuses = _all_rules(record, "Error", str(error))
        finally:
            shutil.rmtree(recording.folder, ignore_errors=True)
            self._save(record, statuses)

    def _publish(self, record: Mapping[str, Any], recording: _Recording) -> list[dict[str, Any]]:
        """Raises DataError where a bucket cannot be written."""
        name, cloud = record["TrainingJobName"], self._service.cloud
        rules = record.get("ProfilerRuleConfigurations", [])
        is_on = profiling_status(record) == "Enabled"
        base = record["ProfilerConfig"]["S3OutputPath"].rstrip("/")
        cloud.upload_folder(recording.recorded_dir, f"{base}/{name}/{RECORDED_DIR}")
        # Switched off while the job ran, the statuses say so already.
        if not rules or not is_on:
            return []
        asked = [each.get("RuleParameters", {}) for each in rules]
        (recording.folder / "rules.json").write_text(json.dumps(asked), encoding="utf-8")
        code = self._judge(recording, title=name)
        if code != 0 and self._is_closing:
            return _all_rules(record, "Stopped", SERVER_ENDED)
        if code != 0:
            log = recording.log_path.read_text(encoding="utf-8", errors="replace").strip()
            logger.warning("The rules of %s could not be judged: %s", name, log[-2000:])
            return _all_rules(record, "Error", f"InternalServerError: {log.rpartition(chr(10))[2]} (status {code})")
        now, statuses = time.time(), []
        verdicts = json.loads((recording.folder / "verdicts.json").read_text(encoding="utf-8"))
        for number, (rule, verdict) in enumerate(zip(rules, verdicts, strict=True)):
            cloud.upload_folder(recording.folder / "reports" / str(number), rule_output_uri(record, name, rule))
            status = rule_status(rule["RuleConfigurationName"], verdict["status"], verdict["details"], time_s=now)
            statuses.append(status)
        return statuses

    def _judge(self, recording: _Recording, *, title: str) -> int | None:
        process = self._run("judge", recording, f"--title={title}")
        with self._lock:
            self._judging = process
            if self._is_closing:
                process.kill()
        code = process.wait()
        with self._lock:
            self._judging = None
        return code

    def _run(self, verb: str, recording: _Recording, *flags: str, pass_fds: Sequence[int] = ()) -> Process:
        command = [sys.executable, "-m", _PROGRAM, verb, str(recording.folder), *flags]
        # The program is this very package, wherever it was imported from.
        environment = {"PATH": os.defpath, **self._service.settings.environment, "LANG": "C.UTF-8"}
        environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
        return self._service.processes.start(
            command, cwd=recording.folder, environment=environment, output=recording.log_path, pass_fds=pass_fds
        )

    def _settle(self, record: Mapping[str, Any], details: str) -> None:
        """Nobody will judge any more what is in progress still."""
        if any(each["RuleEvaluationStatus"] == "InProgress" for each in record.get(_STATUSES, ())):
            self._save(record, _all_rules(record, "Stopped", details))

    def _save(self, record: Mapping[str, Any], statuses: list[dict[str, Any]]) -> None:
        def change(current: dict[str, Any]) -> None:
            if statuses and current["CreationTime"] == record["CreationTime"]:
                current[_STATUSES] = statuses

        try:
            self._service.records.update(KIND, record["TrainingJobName"], change)
        except ServiceError:
            logger.info("%s was deleted before its rules were judged", record["TrainingJobName"])


def _odd_files(folder: str, names: Sequence[str]) -> list[str]:
    """What is neither a folder nor a file of the job's own: links lead elsewhere, a FIFO has no end."""
    odd = []
    for name in names:
        path = Path(folder, name)
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            odd.append(name)
    return odd


def _all_rules(record: Mapping[str, Any], status: str, details: str) -> list[dict[str, Any]]:
    rules, now = record.get("ProfilerRuleConfigurations", ()), time.time()
    return [rule_status(each["RuleConfigurationName"], status, details, time_s=now) for each in rules]
