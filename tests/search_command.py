"""Starts tests/e2e/search_process.py and watches it; for tests that cut it off."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

SCRIPT = Path(__file__).parent / "e2e" / "search_process.py"
TIMEOUT_S = 200.0


class SearchCommand:
    """One running search; its log lines are in `folder`."""

    def __init__(self, folder: Path, environment: dict[str, str], options: dict[str, Any]):
        self._log_path = folder / f"search-{time.monotonic_ns()}.log"
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(SCRIPT), str(folder), json.dumps(options)],
                cwd=folder,
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=log,
                # A group of its own, as a terminal gives it: Ctrl-C goes to all of it.
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def num_ended(self) -> int:
        return self.log.count(" state=")

    def wait_for_trials(self, count: int) -> None:
        self.wait_until(lambda: self.num_ended() >= count)

    def wait_until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not holds():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"The search ended with {self.process.poll()} too early:\n{self.log[-3000:]}")
            time.sleep(0.02)

    def workers(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if any("spawn_main" in part for part in child.cmdline())]

    def interrupt(self) -> int:
        """Ctrl-C; the exit status."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(TIMEOUT_S)

    def kill(self) -> None:
        """kill -9 of the command alone; what it started must end by itself."""
        workers = self.workers()
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive, f"{alive} outlived their command"

    def result(self) -> dict[str, Any]:
        out, _ = self.process.communicate(timeout=TIMEOUT_S)
        assert self.process.returncode == 0, self.log[-3000:]
        told: dict[str, Any] = json.loads(out)
        return told

    def close(self) -> None:
        for process in _family(self.process.pid):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return []


@contextmanager
def search_command(folder: Path, environment: dict[str, str] | None = None, **options: Any) -> Iterator[SearchCommand]:
    command = SearchCommand(folder, environment or {}, options)
    try:
        yield command
    finally:
        command.close()
