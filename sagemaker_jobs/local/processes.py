"""Commands as processes that leave nothing behind: each under a keeper of its own (keeper.py)."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

_KEEPER = Path(__file__).with_name("keeper.py")
_BLOCK = 1 << 20
_KILLED = -int(signal.SIGKILL)


class Process:
    """A running or ended command."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        output: Callable[[bytes], None] | Path,
        pass_fds: Sequence[int],
        on_end: Callable[["Process"], None],
    ) -> None:
        self._ended = threading.Event()
        self._code: int | None = None
        self._on_end = on_end
        self._control, keeper_end = socket.socketpair()
        keeper = [sys.executable, "-I", "-S", str(_KEEPER), str(keeper_end.fileno()), *command]
        with keeper_end, contextlib.ExitStack() as stack:
            stdout: int | IO[bytes] = subprocess.PIPE
            if isinstance(output, Path):
                stdout = stack.enter_context(output.open("ab"))
            try:
                self._keeper = subprocess.Popen(
                    keeper, cwd=cwd, env=dict(environment), stdin=subprocess.DEVNULL, stdout=stdout,
                    stderr=subprocess.STDOUT, bufsize=0, start_new_session=True,
                    pass_fds=[keeper_end.fileno(), *pass_fds],
                )  # fmt: skip
            except BaseException:
                self._control.close()
                raise
        self._lines = self._control.makefile("rb")
        started = self._lines.readline()
        self.pid: int = json.loads(started)["pid"] if started else self._keeper.pid
        """The leader of the command's process group; the keeper is its parent."""
        sink = output if callable(output) else None
        self._thread = threading.Thread(target=self._follow, args=(sink,), name=f"process-{self.pid}", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return not self._ended.is_set()

    @property
    def code(self) -> int | None:
        """The exit status, negative for the signal that ended the command; None while it runs."""
        return self._code if self._ended.is_set() else None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """The exit status once the command and all that it started are gone; None after the time-out."""
        self._ended.wait(timeout_s)
        return self.code

    def terminate(self) -> None:
        """SIGTERM to the command's process group; returns at once."""
        self._order(b"T")

    def kill(self) -> None:
        """SIGKILL to every process of the command; returns at once."""
        self._order(b"K")

    def stop(self, grace_s: float) -> int:
        """SIGTERM, and SIGKILL after `grace_s`; returns the exit status when nothing is left."""
        self.terminate()
        if not self._ended.wait(grace_s):
            self.kill()
            self._ended.wait()
        return self._code if self._code is not None else _KILLED

    def _order(self, order: bytes) -> None:
        # Gone already, or going.
        with contextlib.suppress(OSError):
            self._control.send(order)

    def _follow(self, sink: Callable[[bytes], None] | None) -> None:
        """Hands on the output until its end, then waits for the keeper's last word."""
        code = _KILLED
        try:
            if self._keeper.stdout is not None and sink is not None:
                with self._keeper.stdout as stream:
                    while chunk := os.read(stream.fileno(), _BLOCK):
                        sink(chunk)
            if last := self._lines.readline():
                code = json.loads(last)["code"]
            else:
                # The keeper itself was killed, and with it the command; its group is all that can be found now.
                with contextlib.suppress(OSError):
                    os.killpg(self.pid, signal.SIGKILL)
        finally:
            self.kill()
            self._keeper.wait()
            self._lines.close()
            self._control.close()
            self._code = code
            self._ended.set()
            self._on_end(self)

    def join(self) -> None:
        """Waits for the thread that follows the command."""
        self._thread.join()


class Processes:
    """All commands of a server; closing it ends them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[Process] = set()
        self._is_closed = False

    def start(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        output: Callable[[bytes], None] | Path,
        pass_fds: Sequence[int] = (),
        on_end: Callable[[Process], None] | None = None,
    ) -> Process:
        """Starts `command` with exactly this environment, stdout and stderr together to a file (appended) or callback.

        The callback runs in the command's own thread, with chunks of at most 1 MiB that break lines anywhere; what it
        raises ends the command. A command that cannot be started ends with 127 or 126, with the reason in its output.
        Of this process's open files it gets `pass_fds` alone. `on_end` is called once, from the command's own thread,
        when nothing of it is left.
        """

        def ended(process: Process) -> None:
            with self._lock:
                self._running.discard(process)
            if on_end:
                on_end(process)

        process = Process(command, cwd=cwd, environment=environment, output=output, pass_fds=pass_fds, on_end=ended)
        with self._lock:
            if process.is_running:
                self._running.add(process)
            is_closed = self._is_closed
        if is_closed:
            process.kill()
        return process

    def close(self) -> None:
        """Kills what still runs."""
        with self._lock:
            self._is_closed = True
            running = list(self._running)
        for process in running:
            process.kill()
        for process in running:
            process.join()
