"""CPU, memory, disk, network and GPU use of this machine, sampled into a run."""

import logging
import threading
from collections.abc import Callable

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

logger = logging.getLogger(__name__)

PREFIX = "system/"
"""MLflow's UI shows metrics of this prefix in a tab of their own."""


class SystemMetrics:
    """Samples in a thread, with MLflow's own readers.

    MLflow's thread would stop for good at the first request that the store does not answer; here the samples go the
    way of all metrics, through `log`, and wait while the store is away.
    """

    def __init__(
        self,
        log: Callable[[dict[str, float], int], None],
        *,
        run_id: str,
        tracking_uri: str,
        interval_s: float,
        first_step: int,
    ):
        self._readers = SystemMetricsMonitor(run_id, tracking_uri=tracking_uri).monitors
        self._log = log
        self._interval_s = interval_s
        self._step = first_step
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="dogbreed-system-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Logs a last sample and ends the thread."""
        self._stopped.set()
        self._thread.join()

    def _sample(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._stopped.wait(self._interval_s)
            figures: dict[str, float] = {}
            for reader in self._readers:
                reader.collect_metrics()
                figures |= {f"{PREFIX}{name}": float(value) for name, value in reader.aggregate_metrics().items()}
                reader.clear_metrics()
            self._log(figures, self._step)
            self._step += 1
