"""FailureReason."""

from pathlib import Path

import pytest

from sagemaker_jobs.local.failures import MAX_REASON, render_failure


def test_failure_file_is_the_reason(tmp_path: Path) -> None:
    (tmp_path / "failure").write_text("no dogs\n")
    assert (
        render_failure(tmp_path / "failure", 1, "output", "python train.py") == "AlgorithmError: no dogs, exit code: 1"
    )


@pytest.mark.parametrize(
    ("code", "ending"), [(3, ", exit code: 3"), (-9, ", exit code: 137 (SIGKILL)"), (-15, ", exit code: 143 (SIGTERM)")]
)
def test_end_of_the_output_is_the_reason_where_there_is_no_file(tmp_path: Path, code: int, ending: str) -> None:
    reason = render_failure(tmp_path / "failure", code, "x" * 5000 + "ValueError: last", "python train.py")
    assert reason.startswith("AlgorithmError: ExecuteUserScriptError:\n")
    assert reason.endswith("ValueError: last" + ending)
    assert len(reason) <= MAX_REASON


def test_reason_is_cut_and_keeps_its_code(tmp_path: Path) -> None:
    (tmp_path / "failure").write_bytes(b"\xff" * 10 + "ä".encode() * 500_000)
    reason = render_failure(tmp_path / "failure", 255, "", "python train.py")
    assert len(reason) == MAX_REASON
    assert reason.endswith(", exit code: 255")


def test_failure_that_is_a_folder_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "failure").mkdir()
    assert "the output" in render_failure(tmp_path / "failure", 1, "the output", "python train.py")
