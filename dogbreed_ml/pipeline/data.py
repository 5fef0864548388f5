"""`dogbreed data`: fetch, check and describe a data set, or free its kept features."""

from dogbreed_ml.backend import device_of
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.data.splits import describe, quarantine_rows
from dogbreed_ml.features import FeatureStore
from dogbreed_ml.summaries import DataDescription


def describe_data(config: ExperimentConfig, *, context: Context) -> DataDescription:
    """Fetches, checks and splits the data set, and says what it found."""
    splits = load_splits(config.data, project_dir=context.project_dir, progress=context.progress)
    return DataDescription(describe(splits), quarantine_rows(splits))


def clear_features(config: ExperimentConfig, *, context: Context) -> int:
    """Deletes the kept features and returns the bytes freed."""
    return FeatureStore(config.features, context.project_dir / config.features.dir, device=device_of()).clear()
