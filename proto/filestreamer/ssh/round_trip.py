"""How long the round-trip to the far side takes, asked of the kernel for the connection that ssh has made.

Only ssh has that socket; the kernel answers for it by its addresses (Linux, sock_diag(7), INET_DIAG_INFO).
"""

import socket
import struct
from typing import Final

_SOCK_DIAG: Final = 4
"""NETLINK_SOCK_DIAG."""
_BY_FAMILY: Final = 20
"""SOCK_DIAG_BY_FAMILY."""
_REQUEST: Final = 1
"""NLM_F_REQUEST."""
_INFO: Final = 2
"""INET_DIAG_INFO: the attribute with a tcp_info; in a request, a bit for each attribute from 1."""
_HEADER: Final = struct.Struct("=IHHII")
"""nlmsghdr: length, type, flags, sequence, port."""
_ASKED: Final = struct.Struct("=BBBxI2s2s16s16sIII")
"""inet_diag_req_v2: family, protocol, attributes, states; ports and addresses in network order, interface, cookie."""
_ANSWER_BYTES: Final = 72
"""inet_diag_msg."""
_ATTRIBUTE: Final = struct.Struct("=HH")
"""nlattr: length, type."""
_RTT_AT: Final = 68
"""Where a tcp_info has the smoothed round-trip time, in microseconds."""
_ANY: Final = 0xFFFFFFFF
ANSWER_SECONDS: Final = 1.0

End = tuple[bytes, int]
"""An address in network order, of 4 or 16 bytes, and a port."""


def seconds(local: End, remote: End) -> float | None:
    """Return the smoothed round-trip time of a TCP connection of this machine; None where the kernel does not tell."""
    family = socket.AF_INET if len(local[0]) == 4 else socket.AF_INET6
    asked = _ASKED.pack(
        family,
        socket.IPPROTO_TCP,
        1 << (_INFO - 1),
        _ANY,
        *(struct.pack("!H", port) for _, port in (local, remote)),
        *(address for address, _ in (local, remote)),
        0,
        _ANY,
        _ANY,
    )
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
            kernel.settimeout(ANSWER_SECONDS)
            kernel.send(_HEADER.pack(_HEADER.size + len(asked), _BY_FAMILY, _REQUEST, 0, 0) + asked)
            return _rtt(kernel.recv(1 << 16))
    except (OSError, struct.error):
        return None


def _rtt(answer: bytes) -> float | None:
    """Read the time from an answer; None where it is an error, or has none."""
    if _HEADER.unpack_from(answer)[1] != _BY_FAMILY:
        return None
    at = _HEADER.size + _ANSWER_BYTES
    while at + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if kind == _INFO:
            (microseconds,) = struct.unpack_from("=I", answer, at + _ATTRIBUTE.size + _RTT_AT)
            return float(microseconds) / 1e6
        at += max(_ATTRIBUTE.size, length + 3 & ~3)  # attributes begin at multiples of 4
    return None
