"""`mlflow run --env-manager uv` for real; its small siblings are the pins' tests in contract/test_mlproject.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files that git would carry, without the environment that the tests run in."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    folder = tmp_path / "clone"
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


# The installation alone takes 16 s from uv's cache, minutes without it, and 7 GB.
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_mlflow_run_makes_its_environment_with_uv(clone: Path, tmp_path: Path) -> None:
    bin_dir = Path(sys.executable).parent
    environment = os.environ | {"MLFLOW_ENV_ROOT": str(tmp_path / "envs"), "PATH": f"{bin_dir}:{os.environ['PATH']}"}
    environment.pop("VIRTUAL_ENV", None)
    small = ["-P", "data.num_breeds=2", "-P", "data.num_per_breed=5", "-P", "data.image_size=32"]
    command = [str(bin_dir / "mlflow"), "run", ".", "-e", "data", "--env-manager", "uv", *small]
    shown = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert "2 breeds, 10 images" in shown.stdout
    (run,) = MlflowClient(f"sqlite:///{clone}/mlflow.db").search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.project.env"] == "uv"
