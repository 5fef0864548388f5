"""One training job from its inputs to its artifacts: download, run, watch, stop, upload."""

import logging
import queue
import shutil
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dogbreed_ml.errors import DataError
from sagemaker_jobs.local.checkpoints import CheckpointSync
from sagemaker_jobs.local.container import FRAMEWORK_PREFIXES, Cluster, Host, arguments, decode, free_port
from sagemaker_jobs.local.environments import JobEnvironment
from sagemaker_jobs.local.failures import render_failure
from sagemaker_jobs.local.jobdata import fetch_inputs, upload_outputs
from sagemaker_jobs.local.joblog import HostLog
from sagemaker_jobs.local.processes import Process
from sagemaker_jobs.local.trainingplan import TrainingPlan

if TYPE_CHECKING:
    from sagemaker_jobs.local.training import TrainingJobs

logger = logging.getLogger(__name__)

Order = Literal["stop", "interrupt", "server", "MaxRuntimeExceeded", "MaxWaitTimeExceeded"]
"""Why a job's processes are ended before they end themselves."""

_WEIGHTS: dict[Order | None, int] = {
    None: 0, "interrupt": 1, "MaxRuntimeExceeded": 2, "MaxWaitTimeExceeded": 2, "stop": 2, "server": 3,
}  # fmt: skip
_NOTES = {
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Uploading": "Uploading generated training model",
    "Interrupted": "The spot instance was interrupted; the job starts again",
    "Restarting": "Restarting the training job",
}


@dataclass(frozen=True)
class Ending:
    """How a job's processes ended."""

    order: Order | None
    failed: "tuple[Host, int] | None" = None
    """The first host whose process ended with another code than 0, where nobody asked for it."""


class _Ended(Exception):
    """An order that came before there was a process."""


class JobRun:
    """One job; run() does it all, in the calling thread. order() may be called from any other."""

    def __init__(self, jobs: "TrainingJobs", plan: TrainingPlan, folder: Path) -> None:
        self.plan = plan
        self.logs: list[HostLog] = []
        self._jobs, self._folder = jobs, folder
        # Short: a path of a Unix socket, which multiprocessing makes there, has 107 bytes.
        self._tmp_dir = jobs.tmp_dir / uuid.uuid4().hex[:8]
        self._service = jobs.service
        self._events: queue.SimpleQueue[Order | tuple[Host, int]] = queue.SimpleQueue()
        self._order: Order | None = None
        self._is_claimed = False
        self._lock = threading.Lock()
        self._started_s = time.time()
        self._pip: Process | None = None

    def order(self, order: Order) -> None:
        """Ends the job's processes, or keeps them from starting; of several orders the weightiest counts."""
        with self._lock:
            if _WEIGHTS[order] <= _WEIGHTS[self._order]:
                return
            self._order = order
            self._events.put(order)
        if self._pip:
            self._pip.kill()

    def claim(self) -> bool:
        """True once, for who runs or cancels the job."""
        with self._lock:
            was_claimed, self._is_claimed = self._is_claimed, True
        return not was_claimed

    def run(self) -> None:
        """Leaves the job Completed, Failed or Stopped; raises nothing that a job can cause."""
        try:
            ending = self._attempt()
            while ending.order == "interrupt" and self._is_restarted():
                self._say("Interrupted")
                self._say("Restarting")
                ending = self._attempt()
            self._finish(ending)
        except DataError as error:
            self._jobs.end(self.plan.name, "Failed", reason=f"ClientError: {error}", logs=self.logs)
        except _Ended:
            self._finish_early()
        finally:
            for log in self.logs:
                self._jobs.pump.remove(log)
            for folder in (self._folder, self._tmp_dir):
                shutil.rmtree(folder, ignore_errors=True)

    def _is_restarted(self) -> bool:
        """Forgets the interruption, unless a weightier order has come since."""
        with self._lock:
            if self._order != "interrupt":
                return False
            self._order, self._events = None, queue.SimpleQueue()
        return True

    def _attempt(self) -> Ending:
        """One life of the job's hosts; a spot interruption leads to another."""
        try:
            return self._live()
        except _Ended:
            if self._order == "interrupt":
                return Ending("interrupt")
            raise

    def _live(self) -> Ending:
        self._check_order()
        shutil.rmtree(self._folder, ignore_errors=True)
        for log in self.logs:
            self._jobs.pump.remove(log)
        cluster = Cluster.build(self.plan.params["ResourceConfig"], master_port=free_port())
        hosts = [Host(self._folder / name, name, cluster, tmp_dir=self._tmp_dir / name) for name in cluster.hosts]
        self._jobs.started(self.plan.name)
        self.logs = [self._open_log(host) for host in hosts]
        self._say("Downloading")
        for host in hosts:
            host.prepare(self.plan.hyperparameters, self.plan.channels)
        fetch_inputs(self._service.cloud, self.plan, hosts, check=self._check_order)
        sync = self._checkpoints(hosts)
        self._check_order()
        self._say("Training")
        if sync:
            sync.start()
        try:
            ending = self._run_hosts(hosts)
        finally:
            self._jobs.profiles.pause(self.plan.name, hosts)
            if sync:
                sync.close()
        if ending.order not in ("interrupt", "server"):
            self._say("Uploading")
            upload_outputs(self._service.cloud, self.plan, hosts, has_model=ending.failed is None)
        if ending.failed:
            host, code = ending.failed
            reason = render_failure(host.failure_path, code, self.logs[host.index].end, self._command_text)
            self._jobs.end(self.plan.name, "Failed", reason=reason, logs=self.logs)
        return ending

    def _checkpoints(self, hosts: list[Host]) -> CheckpointSync | None:
        if not self.plan.checkpoints:
            return None
        uri, path = self.plan.checkpoints
        # All hosts see one folder, as they see one prefix.
        folder = hosts[0].resolve(path)
        folder.mkdir(parents=True, exist_ok=True)
        for host in hosts[1:]:
            other = host.resolve(path)
            shutil.rmtree(other, ignore_errors=True)
            other.parent.mkdir(parents=True, exist_ok=True)
            other.symlink_to(folder, target_is_directory=True)
        sync = CheckpointSync(self._service.cloud, uri, folder, interval_s=self._service.settings.checkpoint_interval_s)
        sync.restore()
        return sync

    def _run_hosts(self, hosts: list[Host]) -> Ending:
        processes: dict[str, Process] = {}
        try:
            for host in hosts:
                processes[host.name] = self._start(host)
            self._jobs.profiles.start(self.plan.name, hosts)
            return self._watch(processes)
        finally:
            for process in processes.values():
                process.kill()
            for process in processes.values():
                process.wait()

    def _start(self, host: Host) -> Process:
        requirements = host.requirements_path() if self._service.settings.requirements == "install" else None
        host.adapt_drivers()
        log = self.logs[host.index]
        variables = self._variables(host)
        environment = self._jobs.environments.build(
            host.folder / "environment", requirements=requirements, environment=variables, output=log.feed,
            watch=self._watch_pip,
        )  # fmt: skip
        variables["PATH"] = environment.search_path(variables["PATH"])
        command = self._command(host, environment)
        self._check_order()
        # This life's queue: the end of a process may be told after the next life has begun.
        events = self._events
        return self._service.processes.start(
            command, cwd=host.code_dir, environment=variables, output=log.feed,
            on_end=lambda process: events.put((host, process.code or 0)),
        )  # fmt: skip

    def _watch_pip(self, process: Process) -> None:
        self._pip = process
        if self._order:
            process.kill()

    def _command(self, host: Host, environment: JobEnvironment) -> list[str]:
        if self.plan.entrypoint:
            return [host.localize(each) for each in self.plan.entrypoint]
        given = self.plan.hyperparameters
        own = {name: value for name, value in given.items() if not name.startswith(FRAMEWORK_PREFIXES)}
        flags = arguments({name: decode(host.localize(value)) for name, value in own.items()})
        program = str(host.code_dir / self.plan.program)
        if program.endswith(".sh"):
            return ["/bin/sh", program, *flags]
        python = str(environment.python)
        if not self.plan.has_torchrun:
            return [python, program, *flags]
        cluster = host.cluster
        nodes = [f"--nnodes={len(cluster.hosts)}", "--nproc_per_node=1", f"--node_rank={host.index}"]
        address = ["--master_addr=127.0.0.1", f"--master_port={cluster.master_port}"]
        return [python, "-m", "torch.distributed.run", *nodes, *address, program, *flags]

    @property
    def _command_text(self) -> str:
        return " ".join(self.plan.entrypoint) or f"python {self.plan.program}"

    def _variables(self, host: Host) -> dict[str, str]:
        """What the job sees: nothing of the user's environment but PATH and language, and this server's address."""
        name = self.plan.name
        own = {key: host.localize(value) for key, value in self.plan.params.get("Environment", {}).items()}
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **self._service.settings.environment,
            "HOME": str(host.home_dir), "TMPDIR": str(host.tmp_dir), "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(host.code_dir), "NO_PROXY": "127.0.0.1,localhost",
            "AWS_EC2_METADATA_DISABLED": "true", "AWS_REGION": self._service.settings.region,
            **self._service.container_environment(), "TRAINING_JOB_NAME": name,
            "TRAINING_JOB_ARN": self._service.arn("training-job", name),
            **host.variables(name, self.plan.hyperparameters, self.plan.channels), **own,
        }  # fmt: skip

    def _watch(self, processes: dict[str, Process]) -> Ending:
        """Waits for the hosts, for an order, and for the limits of time."""
        running = set(processes)
        limits: list[tuple[float, Order]] = [(time.time() + self.plan.max_runtime_s, "MaxRuntimeExceeded")]
        if self.plan.max_wait_s is not None:
            limits.append((self._started_s + self.plan.max_wait_s, "MaxWaitTimeExceeded"))
        deadline, limit = min(limits)
        while running:
            try:
                event = self._events.get(timeout=max(0.0, deadline - time.time()))
            except queue.Empty:
                event = limit
            if isinstance(event, str):
                self._order = event
                self._stop(processes, event)
                return Ending(event)
            host, code = event
            running.discard(host.name)
            if code != 0:
                return Ending(None, (host, code))
        return Ending(None)

    def _stop(self, processes: dict[str, Process], order: Order) -> None:
        if order == "server":
            return
        grace_s = self._service.settings.stop_grace_s
        if order != "interrupt":
            self._jobs.stopping(self.plan.name, order)
        for process in processes.values():
            process.terminate()
        deadline = time.monotonic() + grace_s
        for process in processes.values():
            # A server that closes cannot wait for anyone.
            while process.is_running and time.monotonic() < deadline and not self._jobs.is_closing:
                process.wait(min(0.1, max(0.0, deadline - time.monotonic())))

    def _finish(self, ending: Ending) -> None:
        name = self.plan.name
        if ending.failed:
            return
        # What was ordered while the artifacts went up, or while the job was being interrupted.
        order = self._order if ending.order in (None, "interrupt") else ending.order
        if order is None:
            self._jobs.end(name, "Completed", logs=self.logs)
        elif order in ("server", "interrupt"):
            self._finish_early()
        else:
            secondary = "Stopped" if order == "stop" else order
            self._jobs.end(name, "Stopped", secondary=secondary, logs=self.logs)

    def _finish_early(self) -> None:
        if self._order == "server":
            self._jobs.end(self.plan.name, "Failed", reason=self._jobs.SERVER_ENDED, logs=self.logs)
        else:
            self._jobs.end(self.plan.name, "Stopped", logs=self.logs)

    def _open_log(self, host: Host) -> HostLog:
        stamp = int(time.time() * 1000)
        stream = f"{self.plan.name}/{host.name}-{stamp}"
        log = HostLog(
            self._jobs.logs_dir / self.plan.name / f"{host.name}-{stamp}.log", stream,
            cloud=self._service.cloud, metrics=self.plan.metrics,
            dimensions={"TrainingJobName": self.plan.name, "Host": host.name},
            max_bytes=self._service.settings.max_log_bytes,
        )  # fmt: skip
        self._jobs.pump.add(log)
        return log

    def _check_order(self) -> None:
        if self._order is not None:
            raise _Ended

    def _say(self, secondary: str) -> None:
        self._jobs.transition(self.plan.name, secondary, _NOTES[secondary])
