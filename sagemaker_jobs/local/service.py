"""One local SageMaker: a server on loopback, the jobs and endpoints behind it, and all of it ended with it."""

import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

from werkzeug.serving import BaseWSGIServer, make_server

from dogbreed_ml.errors import ConfigError
from sagemaker_jobs.local.application import Application, RequestHandler
from sagemaker_jobs.local.cloud import ACCESS_KEY_ID, INSIDE_ACCESS_KEY_ID, SECRET_ACCESS_KEY, Cloud
from sagemaker_jobs.local.endpoints import Endpoints
from sagemaker_jobs.local.faults import Faults
from sagemaker_jobs.local.hosting import HostingSettings
from sagemaker_jobs.local.processes import Processes
from sagemaker_jobs.local.records import Records
from sagemaker_jobs.local.tags import Tags
from sagemaker_jobs.local.training import TrainingJobs
from sagemaker_jobs.local.tuning import TuningJobs

logger = logging.getLogger(__name__)

ACCOUNT = "123456789012"
"""moto's own, which STS and IAM answer with."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Settings:
    """What a server is told once, when it starts."""

    region: str = "us-west-2"
    num_parallel_jobs: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Hosts of training jobs that run at once; jobs that find no room wait as Pending."""
    stop_grace_s: float = 120.0
    """From SIGTERM to SIGKILL, as SageMaker has it."""
    requirements: Literal["install", "skip"] = "install"
    """What becomes of a job's requirements.txt: a kept environment of its own, or nothing."""
    max_log_bytes: int = 8 * 2**20
    """Of each host's output in CloudWatch Logs; of the rest, the end is kept."""
    checkpoint_interval_s: float = 2.0
    """Between two looks at a job's checkpoint folder."""
    hosting: HostingSettings = field(default_factory=HostingSettings)
    environment: Mapping[str, str] = field(default_factory=dict)
    """What jobs and endpoints may see of the user's environment: PATH and the like, never credentials."""

    def __post_init__(self) -> None:
        if self.num_parallel_jobs < 1:
            raise ConfigError(f"num_parallel_jobs must be at least 1, got {self.num_parallel_jobs}.")
        if not self.stop_grace_s >= 0:
            raise ConfigError(f"stop_grace_s must be at least 0, got {self.stop_grace_s}.")


class LocalSageMaker:
    """`with LocalSageMaker(folder) as server:` answers boto3 at `server.url` until the block ends.

    What it knows lies in `root_dir`; jobs and endpoints that were alive when a server ended are Failed for the next
    one on the same folder. S3, logs and metrics are moto's, in memory, and shared by the servers of one process.
    """

    def __init__(
        self, root_dir: Path, *, host: str = "127.0.0.1", port: int = 0, settings: Settings | None = None
    ) -> None:
        self.root_dir = root_dir.resolve()
        self.settings = settings or Settings()
        self._host, self._port = host, port
        self._server: BaseWSGIServer | None = None
        self._thread: threading.Thread | None = None
        self.records = Records(self.root_dir / "records")
        self.processes = Processes()
        self.faults = Faults()
        self.training = TrainingJobs(self)
        self.tuning = TuningJobs(self)
        self.endpoints = Endpoints(self)
        self.tags = Tags(self)

    @property
    def url(self) -> str:
        if self._server is None:
            raise RuntimeError("The server has no address before start().")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self._server.server_port}"

    def arn(self, kind: str, name: str) -> str:
        """Such as arn:aws:sagemaker:us-west-2:123456789012:training-job/NAME; names in it are lower case."""
        return f"arn:aws:sagemaker:{self.settings.region}:{ACCOUNT}:{kind}/{name.lower()}"

    def client_environment(self) -> dict[str, str]:
        """What boto3 in the user's shell needs to find this server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_DEFAULT_REGION": self.settings.region,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
        }

    def container_environment(self) -> dict[str, str]:
        """The same for a job or a model, whose calls meet no fault."""
        return {**self.client_environment(), "AWS_ACCESS_KEY_ID": INSIDE_ACCESS_KEY_ID}

    def start(self) -> None:
        """Answers requests when it returns; raises ConfigError where the address cannot be had."""
        try:
            self._server = make_server(
                self._host, self._port, Application(self), threaded=True, request_handler=RequestHandler
            )
        # werkzeug prints its advice and leaves by SystemExit where a port is taken.
        except (OSError, SystemExit) as error:
            raise ConfigError(
                f"{self._host}:{self._port} cannot be listened on: {error}; give another --port."
            ) from error
        self.cloud = Cloud(self.url, self.settings.region)
        for area in (self.training, self.tuning, self.endpoints):
            area.recover()
        # Looks 50 times a second whether it shall end.
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), name="sagemaker-local", daemon=True
        )
        self._thread.start()
        self.cloud.warm_up()
        for area in (self.training, self.tuning, self.endpoints):
            area.start()

    def close(self) -> None:
        """Ends every job, endpoint, process and thread of this server; their records say so."""
        if self._server is None:
            return
        for area in (self.tuning, self.endpoints, self.training):
            area.close()
        self.processes.close()
        self._server.shutdown()
        if self._thread is not None:
            self._thread.join()
        self.cloud.close()
        self._server.server_close()
        self._server = None

    def __enter__(self) -> "LocalSageMaker":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
