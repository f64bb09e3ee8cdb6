"""What a worker and its removal processes say to each other through pipes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

_REQUEST = struct.Struct("!IIQ")
_ANSWER = struct.Struct("!BI")
PING = _REQUEST.pack(0, 0, 0)
"""A request without a pixel: it is answered with READY, by a process that lives."""


class Answer(IntEnum):
    STAGE = 1
    FILLED = 2
    OUT_OF_MEMORY = 3
    READY = 4


@dataclass(frozen=True)
class Request:
    """picture (H, W, 3), hole (H, W)."""

    picture: NDArray[np.uint8]
    hole: NDArray[np.bool_]
    seed: int


def request_parts(request: Request) -> tuple[bytes, bytes, bytes]:
    height, width = request.hole.shape
    head = _REQUEST.pack(height, width, request.seed)
    return head, request.picture.tobytes(), np.packbits(request.hole).tobytes()


def read_request(pipe: BinaryIO) -> Request | None:
    """None at the end of the pipe."""
    head = pipe.read(_REQUEST.size)
    if len(head) < _REQUEST.size:
        return None
    height, width, seed = _REQUEST.unpack(head)
    pixels = height * width
    picture = np.frombuffer(pipe.read(3 * pixels), np.uint8).reshape(height, width, 3)
    bits = np.frombuffer(pipe.read(-(-pixels // 8)), np.uint8)
    return Request(picture=picture, hole=np.unpackbits(bits, count=pixels).reshape(height, width) > 0, seed=seed)


def write_answer(pipe: BinaryIO, kind: Answer, data: bytes = b"") -> None:
    pipe.write(_ANSWER.pack(kind, len(data)) + data)
    pipe.flush()


def read_answer(read: Callable[[int], bytes]) -> tuple[Answer, bytes]:
    """`read` gives so many bytes."""
    kind, length = _ANSWER.unpack(read(_ANSWER.size))
    return Answer(kind), read(length)
