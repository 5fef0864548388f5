"""A server as a process of its own: started on a free port, waited for, stopped."""

import http.client
import json
import logging
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dogbreed_ml.errors import ServingError
from dogbreed_ml.policies import DeployConfig
from dogbreed_ml.server.runner import bind
from dogbreed_ml.server.settings import LOOPBACK, ServerSettings

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 300.0
"""How long the model may take to load and warm up: INT8 and bf16 compile for tens of seconds on a slow machine."""

_POLL_S = 0.05
KILL_AFTER_S = 10.0
"""What a server may take to end beyond deploy.grace_s."""
_PING_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Ping:
    """A server's answer to /ping."""

    is_healthy: bool
    told: dict[str, Any] = field(default_factory=dict)
    """status, model, version, backend, num_classes, num_workers_ready; empty where nobody answers."""


def ping(host: str, port: int) -> Ping:
    """Asks once; not healthy where nobody answers."""
    connection = http.client.HTTPConnection(host, port, timeout=_PING_TIMEOUT_S)
    try:
        connection.request("GET", "/ping")
        answer = connection.getresponse()
        told = json.loads(answer.read())
        return Ping(answer.status == 200, told if isinstance(told, dict) else {})
    except (OSError, http.client.HTTPException, ValueError):
        return Ping(is_healthy=False)
    finally:
        connection.close()


@dataclass
class ServerProcess:
    """A server that runs; `stop` it."""

    settings: ServerSettings
    """With the port that it listens on."""
    process: "subprocess.Popen[bytes]"
    log_path: Path | None
    """Its stderr; None where that is the caller's own."""
    started_at: float
    """time.perf_counter() before the process was made."""
    startup_s: float = 0.0
    """From there to the first healthy /ping."""

    @property
    def url(self) -> str:
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"http://{host}:{self.settings.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> Ping:
        """Waits for the first healthy /ping; ServingError, and no process left, where that does not come."""
        deadline = time.monotonic() + timeout_s
        while not (answer := ping(self.settings.host, self.settings.port)).is_healthy:
            if self.process.poll() is not None:
                raise ServingError(f"The server could not start{self._last_words()}")
            if time.monotonic() > deadline:
                self.stop()
                raise ServingError(f"The server must answer within {timeout_s:g} s, and did not{self._last_words()}")
            time.sleep(_POLL_S)
        self.startup_s = time.perf_counter() - self.started_at
        return answer

    def stop(self) -> None:
        """Lets it answer what is in flight, for deploy.grace_s at most."""
        try:
            if self.process.poll() is None:
                self.process.terminate()
                self.process.wait(self.settings.deploy.grace_s + KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            logger.warning("The server %d did not end within its grace; it is killed.", self.pid)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            if self.process.stdin is not None:
                self.process.stdin.close()

    def _last_words(self) -> str:
        """What its log ends with, as the rest of a sentence."""
        if self.log_path is None:
            return "; the lines above say why."
        lines = self.log_path.read_text(errors="replace").strip().splitlines()
        return f": {lines[-1].removeprefix('error: ')}" if lines else "; it left no word."


def launch(
    settings: ServerSettings, listener: socket.socket, *, log_path: Path | None, is_detached: bool = False
) -> ServerProcess:
    """Starts the process on a socket that is bound, and returns at once; the socket stays the caller's to close.

    One that is detached outlives the caller and the terminal; any other ends with the caller.
    """
    settings = replace(settings, port=listener.getsockname()[1], ends_with_stdin=not is_detached)
    listener.set_inheritable(True)
    command = [sys.executable, "-m", "dogbreed_ml.server", settings.to_json(), str(listener.fileno())]
    started_at = time.perf_counter()
    with ExitStack() as files:
        log = None if log_path is None else files.enter_context(log_path.open("ab"))
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if is_detached else subprocess.PIPE,
            # stdout belongs to the caller's answer.
            stdout=sys.stderr.fileno() if log is None else log,
            stderr=None if log is None else log,
            pass_fds=[listener.fileno()],
            start_new_session=is_detached,
        )
    return ServerProcess(settings, process, log_path, started_at)


@contextmanager
def start_server(
    checkpoint_path: Path, *, config: DeployConfig, port: int = 0, model_name: str = "", model_version: str = ""
) -> Iterator[ServerProcess]:
    """A server of that checkpoint, healthy, on 127.0.0.1; stopped when the with statement is left.

    `.url` is its address, `.pid` its process, `.startup_s` how long it took from nothing to healthy. Raises
    ServingError, with the server's own last words, where it does not start.
    """
    settings = ServerSettings(
        checkpoint_path=checkpoint_path.resolve(),
        deploy=config,
        host=LOOPBACK,
        port=port,
        model_name=model_name,
        model_version=model_version,
    )
    with tempfile.TemporaryDirectory(prefix="dogbreed-server-") as folder:
        with bind(settings.host, settings.port) as listener:
            server = launch(settings, listener, log_path=Path(folder, "server.log"))
        try:
            server.wait_ready()
            yield server
        finally:
            server.stop()
