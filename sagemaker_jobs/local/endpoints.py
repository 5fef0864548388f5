"""Models, endpoint configs and endpoints."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sagemaker_jobs.local.service import LocalSageMaker


class Endpoints:
    """Endpoints of one server."""

    def __init__(self, service: "LocalSageMaker") -> None:
        self._service = service

    def recover(self) -> None:
        """Marks what was running under the server before as Failed."""

    def start(self) -> None:
        """Starts the threads."""

    def close(self) -> None:
        """Ends the threads."""
