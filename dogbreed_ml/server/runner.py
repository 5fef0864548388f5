"""One server, from its socket to its end: bind, start the workers, serve, drain, stop."""

import asyncio
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from dogbreed_ml.errors import ServingError
from dogbreed_ml.server.app import access_logger, build_app
from dogbreed_ml.server.metrics import Metrics
from dogbreed_ml.server.pool import Pool
from dogbreed_ml.server.settings import ServerSettings

logger = logging.getLogger(__name__)

_BACKLOG = 2048
_KEEP_ALIVE_S = 75
"""How long an idle connection stays open: longer than a load balancer's 60 s, so that it is not the one to close."""


def bind(host: str, port: int) -> socket.socket:
    """A socket on that address; ServingError where it is taken."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # A server that has just ended leaves connections in TIME_WAIT; they are no reason to refuse its port.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ServingError(
            f"The server must have an address that is free, and {host}:{port} is not ({error.strerror}); "
            "give another --port, or 0 for a free one."
        ) from error
    return listener


def serve(settings: ServerSettings, listener: socket.socket) -> None:
    """Serves until SIGTERM or Ctrl-C, then answers what is in flight; ServingError where no worker can start."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    access_logger.addHandler(handler)
    access_logger.setLevel(logging.INFO)
    access_logger.propagate = False
    metrics = Metrics()
    pool = Pool(settings, metrics)
    config = uvicorn.Config(
        build_app(settings, pool, metrics),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.deploy.grace_s),
    )
    try:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_serve(settings, pool, metrics, _Server(config), listener))
    finally:
        access_logger.removeHandler(handler)


async def _serve(
    settings: ServerSettings, pool: Pool, metrics: Metrics, server: "_Server", listener: socket.socket
) -> None:
    async def warm_up() -> None:
        try:
            ready = await pool.wait_ready()
        except ServingError:
            server.should_exit = True
            raise
        metrics.model.info({"name": settings.model_name, "version": settings.model_version, "backend": ready.backend})
        host, port = listener.getsockname()[:2]
        logger.info("ready on http://%s:%d with %s after %.1f s", host, port, ready.backend, ready.seconds)

    pool.start()
    warming = asyncio.create_task(warm_up())
    if settings.ends_with_stdin:
        _stop_at_end_of_stdin(server)
    try:
        await server.serve(sockets=[listener])
    finally:
        await pool.stop()
        if not warming.done():
            warming.cancel()
    if warming.done() and not warming.cancelled():
        warming.result()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn does, but the signal is not raised again once the server has drained: that is how it ends well."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _: FrameType | None) -> None:
        # A second Ctrl-C does not wait for what is in flight.
        self.force_exit = self.should_exit and number == signal.SIGINT
        self.should_exit = True


def _stop_at_end_of_stdin(server: _Server) -> None:
    """A caller that is killed closes its end, whatever killed it."""
    loop = asyncio.get_running_loop()
    stdin = sys.stdin.fileno()

    def read() -> None:
        if not os.read(stdin, 4096):
            loop.remove_reader(stdin)
            server.should_exit = True

    loop.add_reader(stdin, read)
