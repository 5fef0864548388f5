"""A worker process: decodes images in threads while the network runs, and recognises together whatever is decoded.

It ends when the front closes its socket, and takes no notice of the signals that a terminal or a service manager sends
to the whole group: the front decides when the work is done.
"""

import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from dogbreed_ml.errors import DogbreedError, ImageError
from dogbreed_ml.policies import DeployConfig
from dogbreed_ml.server.messages import (
    Failed,
    Message,
    Ready,
    Recognised,
    Refused,
    Unreadable,
    read_job,
    send_messages,
)

if TYPE_CHECKING:
    from dogbreed_ml.serve import Predictor

logger = logging.getLogger(__name__)

_MAX_DECODERS = 4


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is made from; picklable."""

    checkpoint_path: Path
    deploy: DeployConfig
    cores: tuple[int, ...] = ()
    """The processor cores that it runs on; none for all of them."""


@dataclass(frozen=True)
class _Decoded:
    number: int
    square: Any
    """(S, S, 3) uint8."""
    seconds: float


def work(connection: socket.socket, spec: WorkerSpec) -> None:
    """The process: loads the model, says that it is ready, and answers until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="worker %(process)d: %(message)s")
    start = perf_counter()
    if spec.cores:
        # Before torch and OpenVINO are loaded: they make as many threads as the process may use cores.
        os.sched_setaffinity(0, spec.cores)
    try:
        predictor = _load(spec)
    except DogbreedError as error:
        send_messages(connection, [Refused(str(error))])
        return
    send_messages(connection, [Ready(predictor.backend_name, predictor.classes, perf_counter() - start)])
    _Worker(connection, predictor, max_batch_size=spec.deploy.max_batch_size).run()
    # Not by returning: an image that is being decoded has nobody left to be decoded for.
    os._exit(0)


def _load(spec: WorkerSpec) -> "Predictor":
    """The predictor, warm: its first pass is some times as long as the others."""
    import numpy as np

    from dogbreed_ml.serve import Predictor

    deploy = spec.deploy
    predictor = Predictor.load(
        spec.checkpoint_path,
        backend=deploy.backend,
        min_probability=deploy.min_probability,
        max_bytes=int(deploy.max_body_mib * 2**20),
        max_pixels=int(deploy.max_megapixels * 1e6),
    )
    side = predictor.preprocessing.image_size
    for batch_size in {1, deploy.max_batch_size}:
        predictor.recognise(np.zeros((batch_size, side, side, 3), dtype=np.uint8))
    return predictor


class _Worker:
    """Three kinds of threads: this one reads jobs, some decode, one recognises."""

    def __init__(self, connection: socket.socket, predictor: "Predictor", *, max_batch_size: int):
        self._connection = connection
        self._predictor = predictor
        self._max_batch_size = max_batch_size
        self._decoded: queue.SimpleQueue[_Decoded] = queue.SimpleQueue()
        self._sending = threading.Lock()

    def run(self) -> None:
        threading.excepthook = _die
        threading.Thread(target=self._recognise_all, name="recognise", daemon=True).start()
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        decoders = ThreadPoolExecutor(min(num_cores, _MAX_DECODERS), thread_name_prefix="decode")
        stream = self._connection.makefile("rb", buffering=2**18)
        while (job := read_job(stream)) is not None:
            number, data = job
            decoders.submit(self._decode, number, data).add_done_callback(partial(self._pass_on, number))

    def _decode(self, number: int, data: bytes) -> _Decoded:
        start = perf_counter()
        square = self._predictor.decode(data)
        return _Decoded(number, square, perf_counter() - start)

    def _pass_on(self, number: int, done: "Future[_Decoded]") -> None:
        error = done.exception()
        if error is None:
            self._decoded.put(done.result())
        elif isinstance(error, ImageError):
            self._send([Unreadable(number, str(error))])
        else:
            # A decoder's own fault costs this image its answer, and no other.
            logger.error("An image could not be decoded.", exc_info=error)
            self._send([Failed(number)])

    def _recognise_all(self) -> None:
        import numpy as np

        while True:
            batch = self._next_batch()
            start = perf_counter()
            predictions = self._predictor.recognise(np.stack([each.square for each in batch]))
            forward_s = perf_counter() - start
            self._send(
                [
                    Recognised(
                        each.number,
                        prediction.answer,
                        prediction.probability,
                        prediction.top5,
                        each.seconds,
                        forward_s,
                        len(batch),
                    )
                    for each, prediction in zip(batch, predictions, strict=True)
                ]
            )

    def _next_batch(self) -> Sequence[_Decoded]:
        """Waits for one image and takes along what else is decoded by then; none waits for others to come."""
        batch = [self._decoded.get()]
        while len(batch) < self._max_batch_size:
            try:
                batch.append(self._decoded.get_nowait())
            except queue.Empty:
                break
        return batch

    def _send(self, messages: list[Message]) -> None:
        with self._sending:
            try:
                send_messages(self._connection, messages)
            except OSError:
                # The front is gone.
                os._exit(0)


def _die(fault: threading.ExceptHookArgs) -> None:
    """A network that fails once is not trusted with the next image: the front starts another worker."""
    logger.critical("The worker ends.", exc_info=fault.exc_value)
    os._exit(1)
