"""The channel `features`: what one pass computed, for every job of a search.

It holds a folder a table, augmented/ where there are augmented views and plain/; or, where a first job made them, the
folders that that job left.
"""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dogbreed_ml.config import ExperimentConfig, with_values
from dogbreed_ml.errors import CloudError
from dogbreed_ml.features import TABLE_FILE, adopt_table
from dogbreed_ml.progress import Progress
from dogbreed_ml.workbench import Feeds
from sagemaker_jobs.storage import Storage

logger = logging.getLogger(__name__)

CHANNEL: Final = "features"
FEATURES_KEY: Final = "features"
UNKNOWN_KEY: Final = "KEY-KNOWN-ONCE-COMPUTED"
"""Stands for the features' key in a dry run, which computes none."""


@dataclass(frozen=True)
class FeatureChannel:
    """Where the tables lie in S3, and what must be sent for that."""

    uri: str
    files: dict[str, Path]
    """By key in the bucket."""

    @classmethod
    def of(cls, feeds: Feeds, features_dir: Path, *, uri: Callable[[str], str]) -> "FeatureChannel | None":
        """Of the feeds' kept tables; None where the config keeps none. `uri` makes an s3:// URI of a key."""
        if feeds.table is None:
            return None
        # In this order a job that takes the tables one by one has the augmented views before the plain ones.
        tables = {"augmented": feeds.views, "plain": feeds.table}
        named = {name: table.key for name, table in tables.items() if table is not None}
        key = f"{FEATURES_KEY}/{next(iter(named.values()))}"
        files = {
            f"{key}/{name}/{path.name}": path
            for name, table_key in named.items()
            for path in sorted((features_dir / table_key).iterdir())
            if path.is_file()
        }
        return cls(f"{uri(key)}/", files)

    def upload(self, storage: Storage, *, progress: Progress) -> dict[str, Any]:
        """Sends what S3 has not, and returns the channel. Raises CloudError."""
        storage.upload_all(self.files, what="features", progress=progress)
        return render_channel(self.uri)


def render_channel(uri: str) -> dict[str, Any]:
    """A member of InputDataConfig; tables are read at random places, hence as files."""
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": CHANNEL, "DataSource": {"S3DataSource": source}, "InputMode": "File"}


def fetch_features(config: ExperimentConfig, uri: str, *, storage: Storage, project_dir: Path) -> ExperimentConfig:
    """Brings the tables of a first job here; the config with the back end that made them, so that they are found.

    Raises CloudError where the job left none.
    """
    root = project_dir / config.features.dir
    root.mkdir(parents=True, exist_ok=True)
    # Beside the tables, which become links to it: it must live as long as they do.
    folder = Path(tempfile.mkdtemp(prefix="fetched-", dir=root))
    fetched = [path for path in storage.fetch_all(uri, folder) if path.name == TABLE_FILE]
    backends = [adopt_table(path.parent, root) for path in fetched]
    if not backends or backends[0] is None:
        raise CloudError(f"{uri} holds no features; the log of the job that should have left them says why.")
    logger.info("%d tables of features fetched", len(fetched))
    return with_values(config, {"features.backend": backends[0]})
