"""Keeps one command: its own session, nothing of it left when it ends, or when the server ends, even by kill -9.

Run as a script, with nothing but the standard library: `python -I -S keeper.py FD COMMAND...`. FD is a socket to the
server: the keeper writes one JSON line {"pid": N} when the command runs and one {"code": N} when it has ended (where
negative, the signal that ended it); it reads single bytes, T for SIGTERM to the command's group and K for SIGKILL to
all of its processes. The end of the socket means that the server is gone, and is a K. On Linux the keeper is the
reaper of whatever the command leaves behind, in whatever session, and the command dies with its keeper.
"""

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SWEEP_PAUSE_S = 0.005


def main(control_fd: int, command: list[str]) -> int:
    wake_in, wake_out = os.pipe()
    for fd in (wake_in, wake_out):
        os.set_blocking(fd, False)
    os.set_inheritable(control_fd, False)
    signal.set_wakeup_fd(wake_out)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # Ctrl-C and `kill` of a whole group are the server's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    pid = _start(command)
    _say(control_fd, {"pid": pid})
    code = None
    while code is None:
        ready, _, _ = select.select([control_fd, wake_in], [], [])
        if wake_in in ready:
            _drain(wake_in)
            code = _reap(pid)
        if control_fd in ready and code is None:
            order = _receive(control_fd)
            if order == b"T":
                _signal_group(pid, signal.SIGTERM)
            else:
                _kill_all(pid)
                if order == b"":
                    # Nobody reads any more.
                    select.select([wake_in], [], [], 1.0)
                    break
    _sweep(pid)
    _say(control_fd, {"code": code})
    return 0


def _start(command: list[str]) -> int:
    keeper_pid = os.getpid()
    # Closed by exec: a SIGTERM before it would find no group yet, or one that ignores it, and be lost.
    began, begins = os.pipe()
    pid = os.fork()
    if pid:
        os.close(begins)
        os.read(began, 1)
        os.close(began)
        return pid
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper_pid:
            os._exit(137)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]} cannot be started: {error.strerror}\n".encode())
        os._exit(127 if error.errno == errno.ENOENT else 126)


def _reap(pid: int) -> int | None:
    """Collects everything that ended; the command's code where it is among them."""
    code = None
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if ended == 0:
            return code
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)


def _sweep(pid: int) -> None:
    """Kills and collects what the command left, children of children that moved here included."""
    while True:
        _kill_all(pid)
        _reap(pid)
        if not _children(os.getpid()):
            return
        time.sleep(_SWEEP_PAUSE_S)


def _kill_all(pid: int) -> None:
    _signal_group(pid, signal.SIGKILL)
    waiting = _children(os.getpid())
    while waiting:
        each = waiting.pop()
        waiting += _children(each)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(each, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    """Only where the kernel lists them; elsewhere the command's group is all that is known."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    return found


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _receive(control_fd: int) -> bytes:
    try:
        return os.read(control_fd, 1)
    except ConnectionError:
        return b""


def _drain(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.read(fd, 512):
            pass


def _say(control_fd: int, message: dict[str, int | None]) -> None:
    with contextlib.suppress(OSError):
        os.write(control_fd, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
