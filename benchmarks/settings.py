"""What all measurements share: the photographs, the weights, how often, and where to work."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
RANDOM_WEIGHTS = "random"


@dataclass(frozen=True)
class Settings:
    """Parsed once by __main__."""

    data_dir: Path | None
    """A folder per breed; None draws the project's synthetic dogs."""
    weights: str
    """A file of ResNet50 weights, or `random`."""
    resnet_version: str
    num_repetitions: int
    is_quick: bool
    """Tiny sizes: it shows that a measurement runs, and its figures mean nothing."""
    accuracy_config: Path
    environment: Mapping[str, str]
    """The environment variables that subprocesses start from."""
    work_dir: Path
    """Empty at the start, removed at the end."""

    def folder(self, name: str) -> Path:
        """A new empty folder to work in."""
        path = self.work_dir / name
        path.mkdir(parents=True)
        return path

    def model_section(self) -> dict[str, Any]:
        """The config's model section."""
        return {"weights": self.weights, "resnet_version": self.resnet_version}

    def describe(self) -> list[str]:
        """For the head of the output."""
        lines = [
            f"photographs: {self.data_dir.name if self.data_dir else 'SYNTHETIC, drawn by the project (no --data)'}",
            f"weights: {Path(self.weights).name}, ResNet50 version {self.resnet_version}",
            f"repetitions: {self.num_repetitions}; values are medians unless the table says otherwise",
        ]
        if self.weights == RANDOM_WEIGHTS:
            lines.append("RANDOM WEIGHTS: speeds hold, accuracies mean nothing")
        if self.is_quick:
            lines.append("QUICK: tiny sizes, to see that it runs; these figures mean nothing")
        return lines
