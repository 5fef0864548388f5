"""A folder that is kept equal to an S3 prefix while a job runs, as CheckpointConfig promises."""

import logging
import threading
from pathlib import Path

from dogbreed_ml.errors import DataError
from sagemaker_jobs.local.cloud import Cloud

logger = logging.getLogger(__name__)

_Stamp = tuple[int, int]


class CheckpointSync:
    """restore() before the job runs, start() while it runs, close() once it has ended."""

    def __init__(self, cloud: Cloud, uri: str, folder: Path, *, interval_s: float) -> None:
        self._cloud, self._uri, self._folder, self._interval_s = cloud, uri.rstrip("/"), folder, interval_s
        self._uploaded: dict[Path, _Stamp] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)

    def restore(self) -> None:
        """Fetches what the prefix holds; raises DataError."""
        self._cloud.fetch_all(self._cloud.prefix_objects(f"{self._uri}/"), self._folder)
        self._uploaded = self._stamps()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Brings the last state up; raises DataError."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._sync()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self._sync()
            except DataError as error:
                # The last sync says so to the job; one in between may find a file that is just being replaced.
                logger.warning("%s", error)

    def _sync(self) -> None:
        for path, stamp in self._stamps().items():
            if self._uploaded.get(path) != stamp:
                self._cloud.upload(path, f"{self._uri}/{path.relative_to(self._folder).as_posix()}")
                self._uploaded[path] = stamp

    def _stamps(self) -> dict[Path, _Stamp]:
        stamps = {}
        for path in sorted(self._folder.rglob("*")):
            try:
                if path.is_file():
                    status = path.stat()
                    stamps[path] = (status.st_size, status.st_mtime_ns)
            except FileNotFoundError:
                continue
        return stamps
