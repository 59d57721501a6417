"""Messages between process.py and worker.py: a length in four bytes, then JSON."""

from __future__ import annotations

import json
import struct
from typing import IO, Any


def send(stream: IO[bytes], message: dict[str, Any]) -> None:
    """Write one message to an unbuffered stream."""
    data = json.dumps(message).encode()
    left = memoryview(struct.pack("<I", len(data)) + data)
    while left:
        left = left[stream.write(left) :]


def receive(stream: IO[bytes]) -> dict[str, Any] | None:
    """The next message of an unbuffered stream; None where it ends."""
    head = _exactly(stream, 4)
    data = head and _exactly(stream, *struct.unpack("<I", head))
    if not data:
        return None
    message: dict[str, Any] = json.loads(data)
    return message


def _exactly(stream: IO[bytes], count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        more = stream.read(count - len(data))
        if not more:
            return None
        data += more
    return bytes(data)
