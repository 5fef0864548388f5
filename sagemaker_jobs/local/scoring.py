"""The process behind an `mlflow-pyfunc` image: MLflow's own scoring server, on a socket that it was handed.

`python -P scoring.py --fd N`, with the model's folder in the variable that MLflow's application reads. uvicorn's own
--fd would take the socket for a Unix one and leave Nagle's algorithm on, which costs 40 ms a request.
"""

import argparse
import socket

import uvicorn

KEEP_ALIVE_S = 3600
"""A connection that the local SageMaker keeps for the next invocation is not closed under its hands."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    listening = socket.socket(fileno=parser.parse_args().fd)
    config = uvicorn.Config(
        "mlflow.pyfunc.scoring_server.app:app", access_log=False, timeout_keep_alive=KEEP_ALIVE_S, log_level="warning"
    )
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
