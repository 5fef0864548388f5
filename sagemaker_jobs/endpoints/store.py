"""The tracking store for the events of endpoints."""

from dataclasses import replace

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.tracking import Tracker


def opened_store(config: ExperimentConfig, context: Context, *, retry_s: float | None = None) -> Tracker:
    """The project's store; an event's run waits more than it computes, so that no system metrics are sampled."""
    tracking = replace(config.tracking, system_metrics=False)
    if retry_s is not None:
        tracking = replace(tracking, retry_s=min(retry_s, tracking.retry_s))
    return Tracker.open(project_dir=context.project_dir, config=tracking, environment=context.environment)
