"""Processes of the local SageMaker: orders that come early."""

import signal
from pathlib import Path

from sagemaker_jobs.local.processes import Processes


def test_process_that_is_stopped_as_soon_as_it_is_started_gets_the_sigterm(tmp_path: Path) -> None:
    processes = Processes()
    try:
        codes = []
        for _ in range(20):
            process = processes.start(
                ["sleep", "600"], cwd=tmp_path, environment={"PATH": "/usr/bin:/bin"}, output=tmp_path / "output"
            )
            codes.append(process.stop(20.0))
    finally:
        processes.close()
    assert codes == [-signal.SIGTERM] * 20
