"""Why a job failed, in the words and the length that SageMaker has for it."""

import signal
from pathlib import Path

MAX_REASON = 1024
"""Characters of FailureReason."""


def render_failure(failure_path: Path, code: int, output_end: str, command: str) -> str:
    """`AlgorithmError: ..., exit code: N` from the failure file, or from the end of the output where there is none.

    A negative code is the signal that ended the process; SageMaker says 128 + signal, as a shell does.
    """
    by_signal = ""
    if code < 0:
        by_signal = f" ({signal.Signals(-code).name})" if -code in signal.valid_signals() else f" (signal {-code})"
        code = 128 - code
    ending = f", exit code: {code}{by_signal}"
    room = MAX_REASON - len(ending) - len("AlgorithmError: ")
    text = _read(failure_path)
    if not text:
        head = f'ExecuteUserScriptError:\nExitCode {code}\nCommand "{command[:200]}"\nThe output ends with:\n'
        text = head + output_end.strip()[-(room - len(head)) :]
    return f"AlgorithmError: {text[:room]}{ending}"


def _read(path: Path) -> str:
    """The beginning of a failure file, however large it is; nothing where a job made something else of it."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(4 * MAX_REASON).decode("utf-8", errors="replace").strip()
