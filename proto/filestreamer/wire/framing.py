"""Frames: length (4 bytes), XXH3-64 of the body (8 bytes), body; big-endian (proto/README.md, "Frames").

Pure: bytes in, bodies out. The length is checked before anything is waited for or kept, and the checksum before the
body is parsed, so that a flipped bit in a header can't write good bytes to the wrong place.
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
    """Encode a message as one whole frame. Raises LocalProtocolError where it is too large."""
    return frame_of(encode(message))


def frame_of(body: bytes) -> bytes:
    """Put the header before a body that is encoded already."""
    return _HEADER.pack(len(body), checksum(body)) + body


def parse_header(header: bytes | memoryview, limit: int) -> tuple[int, bytes]:
    """Read a frame header of FRAME_HEADER_BYTES into (body length, checksum).

    Raises RemoteProtocolError where the length is 0 or over `limit`: PROTOCOL where the bytes are a stranger's, whom
    the text names, and else CORRUPT, as nobody who speaks this protocol sends such a length.
    """
    length, expected = _HEADER.unpack(header)
    if not 0 < length <= limit:
        stranger = _stranger(bytes(header))
        reason = f"a frame announces {length} bytes, the limit is {limit}{stranger}"
        raise RemoteProtocolError(reason, Code.PROTOCOL if stranger else Code.CORRUPT)
    return length, expected


def check_body(body: bytes | memoryview, expected: bytes) -> None:
    """Compare a body with its frame's checksum. Raises RemoteProtocolError(CORRUPT), which is retryable."""
    if checksum(body) != expected:
        raise RemoteProtocolError(f"the checksum of a frame of {len(body)} bytes is wrong", Code.CORRUPT)


def read_body(read_exact: Callable[[int], bytes | memoryview], limit: int) -> bytes:
    """Read one frame by `read_exact(n)` and return its body, checked.

    Raises RemoteProtocolError as `parse_header` and `check_body` do, and whatever `read_exact` raises.
    """
    length, expected = parse_header(read_exact(limits.FRAME_HEADER_BYTES), limit)
    body = bytes(read_exact(length))
    check_body(body, expected)
    return body


def _stranger(header: bytes) -> str:
    """Name the usual strangers by their first bytes."""
    if header[:2] == b"\x16\x03":
        return " (a TLS client: this port speaks clear text)"
    if header[:4] in (b"GET ", b"POST", b"HEAD", b"PUT ", b"OPTI", b"HTTP"):
        return " (an HTTP peer)"
    if header[:4] == b"SSH-":
        return " (an SSH peer)"
    return ""
