"""What the server's front and a worker process say to each other over their socket.

To the worker: a number and an image's bytes. Back: one of the dataclasses below, pickled; the front needs no torch to
read them.
"""

import pickle
import socket
import struct
from asyncio import IncompleteReadError, StreamReader
from dataclasses import dataclass
from typing import Protocol, cast

_JOB = struct.Struct("!QQ")
_ANSWER = struct.Struct("!Q")


@dataclass(frozen=True)
class Ready:
    """The worker has loaded the model and run it once."""

    backend: str
    classes: tuple[str, ...]
    seconds: float
    """From the worker's start."""


@dataclass(frozen=True)
class Refused:
    """The worker cannot load the model, and ends."""

    reason: str


@dataclass(frozen=True)
class Recognised:
    """What one image shows."""

    number: int
    answer: str
    """The breed, or `unsure`."""
    probability: float
    top5: tuple[tuple[str, float], ...]
    decode_s: float
    forward_s: float
    """Of the whole batch that the image was in."""
    batch_size: int


@dataclass(frozen=True)
class Unreadable:
    """One image that cannot be decoded."""

    number: int
    reason: str


@dataclass(frozen=True)
class Failed:
    """One image on which the worker ran into a fault of its own, which its log has."""

    number: int


Message = Ready | Refused | Recognised | Unreadable | Failed


def job_header(number: int, data: bytes) -> bytes:
    """What stands before the image's bytes."""
    return _JOB.pack(number, len(data))


class Readable(Protocol):
    """A buffered file: `read` gives all of the bytes asked for, fewer only at the end."""

    def read(self, size: int, /) -> bytes: ...


def read_job(stream: Readable) -> tuple[int, bytes] | None:
    """The next job; None where the front has closed the connection."""
    header = stream.read(_JOB.size)
    if len(header) < _JOB.size:
        return None
    number, length = _JOB.unpack(header)
    data = stream.read(length)
    return (number, data) if len(data) == length else None


def send_messages(connection: socket.socket, messages: list[Message]) -> None:
    """Sends them at once."""
    pickled = [pickle.dumps(message) for message in messages]
    connection.sendall(b"".join(part for each in pickled for part in (_ANSWER.pack(len(each)), each)))


async def read_message(stream: StreamReader) -> Message | None:
    """The next message of a worker; None where it is gone."""
    try:
        (length,) = _ANSWER.unpack(await stream.readexactly(_ANSWER.size))
        # The worker is this program's own child: what it pickles is trusted.
        return cast(Message, pickle.loads(await stream.readexactly(length)))
    except (IncompleteReadError, ConnectionResetError):
        return None
