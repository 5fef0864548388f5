"""Where a command runs: everything of the outside world that a stage may look at, handed in by the command line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from dogbreed_ml.progress import NO_PROGRESS, Progress


@dataclass(frozen=True)
class Context:
    """The project's folder, the environment as it was at the start, and who is told of progress."""

    project_dir: Path
    """The folder of MLproject, mlflow.db, mlruns/ and .dogbreed/; absolute."""
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Environment variables; os.environ is read by the command line and nowhere else."""
    argv: tuple[str, ...] = ()
    """The command line that repeats this command, program name first."""
    progress: Progress = NO_PROGRESS

    @property
    def tracking_uri(self) -> str:
        """MLflow's store: MLFLOW_TRACKING_URI where it is set, else MLflow's own default anchored at the project."""
        return self.environment.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.project_dir / 'mlflow.db'}"
