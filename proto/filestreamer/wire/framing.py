"""Frames: length (4 bytes), XXH3-64 of the body (8 bytes), body; big-endian (proto/README.md, "Frames").

Pure: bytes in, bodies out. The length is checked before the body is waited for, so that no peer can make this end
buffer more. The checksum is checked before the body is parsed, so that a flipped bit in a chunk header can't send good
bytes to the wrong place.
"""

import struct
from collections.abc import Callable

from filestreamer.wire import limits
from filestreamer.wire.codec import encode
from filestreamer.wire.digests import checksum
from filestreamer.wire.errors import Code, RemoteProtocolError
from filestreamer.wire.messages import Message

_HEADER = struct.Struct(">I8s")


def frame(message: Message) -> bytes:
    """Encode a message as a frame. Raises LocalProtocolError where it is too large."""
    return frame_of(encode(message))


def frame_of(body: bytes) -> bytes:
    """Make a frame of an encoded body."""
    return _HEADER.pack(len(body), checksum(body)) + body


def parse_header(header: bytes | memoryview, limit: int) -> tuple[int, bytes]:
    """Read a frame header of FRAME_HEADER_BYTES into (body length, checksum).

    Raises RemoteProtocolError where the length is 0 or over `limit`: PROTOCOL where the bytes look like another
    protocol, which the message names; else CORRUPT, as no peer of this protocol sends such a length undamaged.
    """
    length, expected = _HEADER.unpack(header)
    if not 0 < length <= limit:
        if stranger := _other_protocol(bytes(header)):
            raise RemoteProtocolError(stranger, Code.PROTOCOL)
        raise RemoteProtocolError(f"a frame announces {length} bytes, the limit is {limit}", Code.CORRUPT)
    return length, expected


def check_body(body: bytes | memoryview, expected: bytes) -> None:
    """Compare a body with its frame's checksum. Raises RemoteProtocolError(CORRUPT), which is retryable."""
    if checksum(body) != expected:
        raise RemoteProtocolError(f"the checksum of a frame of {len(body)} bytes is wrong", Code.CORRUPT)


def read_body(read_exact: Callable[[int], bytes | memoryview], limit: int) -> bytes:
    """Read one frame by `read_exact(count)`; return its body, whose length and checksum are right.

    Raises RemoteProtocolError as `parse_header` and `check_body` do, and whatever `read_exact` raises.
    """
    length, expected = parse_header(read_exact(limits.FRAME_HEADER_BYTES), limit)
    body = bytes(read_exact(length))
    check_body(body, expected)
    return body


def _other_protocol(header: bytes) -> str:
    """Return the error of a peer whose protocol begins with these bytes; "" where it is none of the usual ones."""
    if header[:2] == b"\x16\x03":
        return "a TLS client is at the other end, and this port speaks clear text"
    if header[:4] in (b"GET ", b"POST", b"HEAD", b"PUT ", b"OPTI", b"HTTP"):
        return "an HTTP peer is at the other end, and not filestreamer: check the address and the port"
    if header[:4] == b"SSH-":
        return "an SSH peer is at the other end, and not filestreamer: check the address and the port"
    return ""
