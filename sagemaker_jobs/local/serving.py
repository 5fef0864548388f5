"""One process that serves a model: started on a socket of its own, watched, started again when it dies, stopped."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import urllib3
from urllib3.exceptions import HTTPError, ReadTimeoutError

from sagemaker_jobs.local.hosting import ServingKind
from sagemaker_jobs.local.processes import Process, Processes

logger = logging.getLogger(__name__)

_PING_TIMEOUT_S = 1.0
_PING_PAUSE_S = 0.02
_STOP_GRACE_S = 2.0
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.2, 10.0
_TAIL_BYTES = 2000
_NUM_CONNECTIONS = 64
_BACKLOG = 256


@dataclass(frozen=True)
class ServingPlan:
    """What a serving process is made from."""

    kind: ServingKind
    model_dir: Path
    environment: Mapping[str, str]
    """The whole environment of the process."""
    python: Path
    """An interpreter of the variant's own: what a model installs does not reach the one that runs the server."""

    def build_command(self, fd: int) -> list[str]:
        """The command that serves the model on the listening socket `fd`."""
        # -P: the scripts' own folder must not shadow what a model's code imports.
        start = [str(self.python), "-u", "-P"]
        if self.kind == "mlflow":
            return [*start, str(Path(__file__).with_name("scoring.py")), "--fd", str(fd)]
        command = [*start, str(Path(__file__).with_name("handlers.py")), "--fd", str(fd)]
        command += ["--model-dir", str(self.model_dir)]
        program = self.environment.get("SAGEMAKER_PROGRAM")
        return [*command, "--program", program] if program else command

    def build_environment(self) -> dict[str, str]:
        """`environment` and what the process behind the image reads."""
        own = {"SM_MODEL_DIR": str(self.model_dir)}
        if self.kind == "mlflow":
            # The name of mlflow.pyfunc.scoring_server's variable for the model that app.py loads.
            own["__pyfunc_model_path__"] = self.model_dir.as_uri()
        return {**self.environment, **own}


@dataclass(frozen=True)
class Reply:
    """What a model's container answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NoReply(Exception):
    """The container closed the connection, or took too long; the message is AWS's for the client."""


class Server:
    """A serving process and its successors; `start`, `wait_ready`, then `invoke` from any thread, then `stop`."""

    def __init__(self, plan: ServingPlan, processes: Processes, *, name: str, output: Callable[[bytes], None]):
        self._plan, self._processes, self._name, self._output = plan, processes, name, output
        self._changed = threading.Condition()
        self._is_ready = self._was_ready = self._is_stopping = False
        self._failure: str | None = None
        self._num_running = 0
        self._process: Process | None = None
        self._pool: urllib3.HTTPConnectionPool | None = None
        self._tail = b""
        self._thread = threading.Thread(target=self._keep, name=f"serving-{name}", daemon=True)

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.is_running else None

    @property
    def url(self) -> str | None:
        """http://127.0.0.1:PORT of the process; another one after a restart."""
        pool = self._pool
        return None if pool is None else f"http://{pool.host}:{pool.port}"

    @property
    def is_ready(self) -> bool:
        return self._is_ready

    @property
    def num_running(self) -> int:
        """Invocations that wait for an answer."""
        return self._num_running

    def start(self) -> None:
        """Returns at once."""
        self._thread.start()

    def wait_ready(self, timeout_s: float) -> str | None:
        """Waits until /ping is answered with 200; None, or why it is not."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_ready or self._failure or self._is_stopping, timeout_s)
            if self._is_ready:
                return None
            return self._failure or f"no answer to /ping within {timeout_s:g} s{self._said()}"

    def acquire(self) -> None:
        """Announces an invocation, so that `stop` waits for its answer; `invoke` ends it."""
        with self._changed:
            self._num_running += 1

    def invoke(self, body: bytes, headers: Mapping[str, str], *, timeout_s: float) -> Reply:
        """POST /invocations, after `acquire`; raises NoReply."""
        try:
            pool = self._pool
            if pool is None:
                raise NoReply("The container is not running.")
            answer = pool.urlopen(
                "POST", "/invocations", body=body, headers=dict(headers), retries=False, redirect=False,
                timeout=urllib3.Timeout(connect=_PING_TIMEOUT_S, read=timeout_s), decode_content=False,
            )  # fmt: skip
            return Reply(answer.status, dict(answer.headers), answer.data)
        except ReadTimeoutError as error:
            raise NoReply(
                "Your invocation timed out while waiting for a response from container primary. Review the latency "
                "metrics for each container in Amazon CloudWatch, resolve the issue, and try again."
            ) from error
        except HTTPError as error:
            raise NoReply(f"The container closed the connection before it answered: {error}") from error
        finally:
            with self._changed:
                self._num_running -= 1
                self._changed.notify_all()

    def stop(self, *, drain_s: float = 0.0) -> None:
        """Ends the process, after its invocations or `drain_s`; returns when it is gone."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_running == 0, drain_s)
            self._is_stopping, self._is_ready = True, False
            self._changed.notify_all()
            process = self._process
        if process is not None:
            process.stop(_STOP_GRACE_S)
        if self._thread.ident is not None:
            self._thread.join()

    def _keep(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while not self._is_stopping:
            started_s = time.monotonic()
            try:
                process = self._launch()
            except OSError as error:
                self._fail(f"its process could not be started: {error}")
                break
            if process is not None:
                if self._is_answering(process):
                    self._set_ready(True)
                process.wait()
                self._set_ready(False)
            if not self._failure and not self._was_ready:
                self._fail(f"its process ended with {_render_code(process)}{self._said()}")
            if self._failure or self._is_stopping:
                break
            logger.warning("%s ended with %s; starting it again", self._name, _render_code(process))
            if time.monotonic() - started_s > _MAX_BACKOFF_S:
                backoff_s = _FIRST_BACKOFF_S
            with self._changed:
                self._changed.wait_for(lambda: self._is_stopping, backoff_s)
            backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)
        if self._pool is not None:
            self._pool.close()

    def _launch(self) -> Process | None:
        # Bound here and handed over: a port that was only looked up could be taken before the process has it.
        with socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG) as listening, self._changed:
            if self._is_stopping:
                return None
            fd = listening.fileno()
            self._process = self._processes.start(
                self._plan.build_command(fd), cwd=self._plan.model_dir, environment=self._plan.build_environment(),
                output=self._hear, pass_fds=[fd],
            )  # fmt: skip
            if self._pool is not None:
                self._pool.close()
            self._pool = urllib3.HTTPConnectionPool("127.0.0.1", listening.getsockname()[1], maxsize=_NUM_CONNECTIONS)
            return self._process

    def _is_answering(self, process: Process) -> bool:
        """Pings until the answer is 200; the kernel keeps the first connection until the process accepts it."""
        assert self._pool is not None
        while process.is_running and not self._is_stopping:
            try:
                if self._pool.urlopen("GET", "/ping", timeout=_PING_TIMEOUT_S, retries=False).status == 200:
                    return True
            except HTTPError:
                pass
            process.wait(_PING_PAUSE_S)
        return False

    def _set_ready(self, is_ready: bool) -> None:
        with self._changed:
            self._is_ready = is_ready and not self._is_stopping
            self._was_ready |= self._is_ready
            self._changed.notify_all()

    def _fail(self, reason: str) -> None:
        with self._changed:
            self._failure = reason
            self._changed.notify_all()

    def _hear(self, chunk: bytes) -> None:
        self._tail = (self._tail + chunk)[-_TAIL_BYTES:]
        self._output(chunk)

    def _said(self) -> str:
        lines = self._tail.decode(errors="replace").strip().splitlines()
        return f": {lines[-1].strip()}" if lines else ""


def _render_code(process: Process | None) -> str:
    code = None if process is None else process.code
    return f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
