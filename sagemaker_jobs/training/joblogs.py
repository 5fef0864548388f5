"""A job's log lines, as CloudWatch Logs gets them."""

import logging
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from sagemaker_jobs.client import Aws, error_code, is_transient

logger = logging.getLogger(__name__)

TRAINING_LOG_GROUP = "/aws/sagemaker/TrainingJobs"

_MAX_PAGES = 50
"""Of one stream and one look: a chatty job must not keep its follower from looking at the job."""


@dataclass
class JobLogs:
    """Reads on where it stopped; a host's stream begins where the job's name ends: NAME/algo-1-1234567890."""

    aws: Aws
    job_name: str
    _tokens: dict[str, str] = field(default_factory=dict)
    _is_refused: bool = False

    def read(self) -> list[str]:
        """The lines since the last call, each with its host's name where there are several hosts.

        Logs are told, never waited for: where AWS does not answer, the next call reads on; where it refuses, a
        warning says so once.
        """
        if self._is_refused:
            return []
        lines: list[str] = []
        try:
            streams = self._streams()
            for stream in streams:
                host = stream.removeprefix(f"{self.job_name}/").rpartition("-")[0]
                prefix = f"{host}: " if len(streams) > 1 else ""
                self._read_stream(stream, prefix, lines)
        except (BotoCoreError, ClientError) as error:
            # Neither group nor stream is there before the first line.
            if error_code(error) != "ResourceNotFoundException" and not is_transient(error):
                self._is_refused = True
                logger.warning("The job's log lines cannot be read here (%s); the job goes on.", error)
        return lines

    def _streams(self) -> list[str]:
        pages = self.aws.client("logs").get_paginator("describe_log_streams")
        found = pages.paginate(logGroupName=TRAINING_LOG_GROUP, logStreamNamePrefix=f"{self.job_name}/")
        return [each["logStreamName"] for page in found for each in page["logStreams"]]

    def _read_stream(self, stream: str, prefix: str, lines: list[str]) -> None:
        for _ in range(_MAX_PAGES):
            token: dict[str, Any] = {"nextToken": self._tokens[stream]} if stream in self._tokens else {}
            page = self.aws.client("logs").get_log_events(
                logGroupName=TRAINING_LOG_GROUP, logStreamName=stream, startFromHead=True, **token
            )
            lines += [f"{prefix}{event['message'].rstrip()}" for event in page["events"]]
            is_end = page["nextForwardToken"] == self._tokens.get(stream)
            self._tokens[stream] = page["nextForwardToken"]
            # A page without lines is no end: CloudWatch answers such in the midst of a stream too.
            if is_end:
                return
