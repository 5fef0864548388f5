"""A local SageMaker with one endpoint, in a process of its own: prints the endpoint's process id, and waits."""

import os
import sys
import time
from pathlib import Path

from endpointmodels import serving

with serving(Path(sys.argv[1]), path=os.environ["PATH"]) as client:
    client.deploy("served")
    print(client.server.endpoints.servers("served")[0]["pid"], flush=True)
    time.sleep(600)
