"""The server's own process: `python -m dogbreed_ml.server SETTINGS [FD]`, settings as JSON, the socket by descriptor.

`dogbreed deploy` is the command for people; it starts this one.
"""

import logging
import socket
import sys

from dogbreed_ml.errors import DogbreedError
from dogbreed_ml.server.runner import bind, serve
from dogbreed_ml.server.settings import ServerSettings


def main(arguments: list[str]) -> int:
    """Serves until it is told to stop; 0 after that, 1 where it could not start."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("dogbreed_ml").setLevel(logging.INFO)
    settings = ServerSettings.from_json(arguments[0])
    try:
        has_socket = len(arguments) > 1
        serve(settings, socket.socket(fileno=int(arguments[1])) if has_socket else bind(settings.host, settings.port))
    except DogbreedError as error:
        logging.getLogger("dogbreed_ml.server").error("error: %s", " ".join(str(error).split()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
